"""Fetching the files of nodes: what comes is right, and nothing is written where it must not be."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grange as gr
from grange.core.errors import InputInvalid, NotFound
from grange.core.fetch import FetchPlan, calls_in_folders, fetch, nodes_in_folders, plan_fetch
from grange.core.profile import Profile
from grange.repository import BlobCorrupt, BlobMissing, Key, key_of

LARGE = random.Random(1).randbytes(20 << 20)


class Job(gr.CalcJob):
    class Inputs:
        n: int

    class Outputs:
        total: int

    def prepare(self, inputs):  # type: ignore[no-untyped-def]
        return gr.Command(
            ["sh", "-c", "cat in/x.inp; mkdir -p deep/er; echo $0 > deep/er/y.out", str(inputs.n)],
            files={"in/x.inp": f"n = {inputs.n}\n"},
            retrieve=["deep"],
        )

    def parse(self, files):  # type: ignore[no-untyped-def]
        return {"total": len(files)}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def plan_of(profile: Profile, *nodes: gr.Folder, **options: bool) -> FetchPlan:
    return plan_fetch(profile, nodes_in_folders([node.id or 0 for node in nodes]), **options)


def forced(profile: Profile, metadata: dict[str, object]) -> gr.Folder:
    """A node whose files nobody has checked, as it may come from elsewhere."""
    node = gr.Folder({"x": b"content"})
    profile.store(node)
    with profile.transaction() as cursor:
        cursor.execute("ALTER TABLE node DISABLE TRIGGER node_immutable")
        cursor.execute(
            "UPDATE node SET repository_metadata = %s WHERE id = %s", (json.dumps(metadata), node.id)
        )
        cursor.execute("ALTER TABLE node ENABLE TRIGGER node_immutable")
    return node


@pytest.fixture
def folders(profile: Profile) -> list[gr.Folder]:
    made = [
        gr.Folder({"a.txt": b"one", "b/c.txt": b"same", "empty": b""}),
        gr.Folder({"a.txt": b"same", "large": LARGE}),
    ]
    profile.store(*made)
    return made


def test_files_of_one_node_and_of_several(profile: Profile, folders: list[gr.Folder], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    one, both = tmp_path / "new" / "one", tmp_path / "both"
    plan = plan_of(profile, folders[0])
    assert fetch(profile, plan, one, show=lambda done, total, note: seen.append((done, total))) == 0
    assert tree(one) == {"a.txt": b"one", "b/c.txt": b"same", "empty": b""}
    assert seen[-1] == (7, 7)
    fetch(profile, plan_of(profile, *folders), both)
    first, second = (str(node.id) for node in folders)
    assert tree(both) == {
        f"{first}/a.txt": b"one", f"{first}/b/c.txt": b"same", f"{first}/empty": b"",
        f"{second}/a.txt": b"same", f"{second}/large": LARGE,
    }  # fmt: skip


def test_calculations_with_what_they_took_and_gave(profile: Profile, tmp_path: Path) -> None:
    campaign = gr.Campaign("jobs", profile)
    campaign.map(Job, n=range(12))
    campaign.run(progress=False)
    with profile.transaction() as cursor:
        places = calls_in_folders(cursor, "jobs")
        with pytest.raises(NotFound, match="no campaign 'nobody'"):
            calls_in_folders(cursor, "nobody")
    fetch(profile, plan_fetch(profile, places, only=["*.out", "input/in/*"]), tmp_path / "out")
    assert tree(tmp_path / "out") == {
        **{f"{n:02}/input/in/x.inp": f"n = {n}\n".encode() for n in range(12)},
        **{f"{n:02}/output/retrieved/deep/er/y.out": f"{n}\n".encode() for n in range(12)},
    }


def test_called_again_it_writes_what_is_not_there(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path
) -> None:
    plan = plan_of(profile, *folders)
    first = str(folders[0].id)
    fetch(profile, plan, tmp_path)
    (tmp_path / first / "a.txt").unlink()
    kept = (tmp_path / first / "empty").stat()
    assert fetch(profile, plan, tmp_path) == 4
    assert (tmp_path / first / "a.txt").read_bytes() == b"one"
    assert (tmp_path / first / "empty").stat().st_ino == kept.st_ino


def test_what_is_there_is_not_overwritten_unless_told(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "b").mkdir(parents=True)
    (out / "b" / "c.txt").write_bytes(b"mine")
    plan = plan_of(profile, folders[0])
    with pytest.raises(InputInvalid, match="the file there has another content"):
        fetch(profile, plan, out)
    assert tree(out) == {"b/c.txt": b"mine"}
    fetch(profile, plan, out, overwrite=True)
    assert tree(out)["b/c.txt"] == b"same"


def test_strange_names_stay_what_they_are(profile: Profile, tmp_path: Path) -> None:
    names = [
        "-rf",
        "a b",
        "new\nline",
        "back\\slash",
        "..hidden",
        "...",
        "~",
        "ä/ö",
        "*",
        "C:",
        "x" * 255,
        "a.",
        " ",
    ]
    node = gr.Folder({name: name.encode() for name in names})
    profile.store(node)
    fetch(profile, plan_of(profile, node), tmp_path / "out")
    assert tree(tmp_path / "out") == {name: name.encode() for name in names}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "way", ["link to a folder", "link to a file", "dangling link", "file", "folder", "link itself"]
)
def test_links_and_other_things_in_the_way(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path, way: str, overwrite: bool
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "c.txt").write_bytes(b"same")
    target.mkdir()
    if way == "link to a folder":
        (target / "b").symlink_to(outside)
    elif way == "link to a file":
        (target / "a.txt").symlink_to(outside / "c.txt")
    elif way == "dangling link":
        (target / "a.txt").symlink_to(outside / "new")
    elif way == "file":
        (target / "b").write_bytes(b"")
    elif way == "folder":
        (target / "a.txt").mkdir()
    else:
        target.rmdir()
        target.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputInvalid, match="folder: expected"):
        fetch(profile, plan_of(profile, folders[0]), target, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    assert tree(outside) == {"c.txt": b"same"}


def test_a_link_that_is_made_meanwhile_is_not_followed(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path
) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()

    def show(done: int, total: int, note: str) -> None:
        if not (target / "b").is_symlink() and not (target / "b").exists():
            (target / "b").symlink_to(outside)

    with pytest.raises(OSError, match="b"):
        fetch(profile, plan_of(profile, folders[0]), target, show=show)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["../out", "/etc/out", "a/../../out", "..", "a//b", "./a", "x" * 256], ids=lambda path: path[:12]
)
def test_paths_that_climb_out_are_refused_before_anything_is_written(
    profile: Profile, tmp_path: Path, path: str
) -> None:
    entry: dict[str, object] = {"k": key_of(b"content")}
    for part in reversed(path.split("/")):
        entry = {"o": {part: entry}}
    entry["o"]["good"] = {"k": key_of(b"content")}  # type: ignore[index]
    node = forced(profile, entry)
    target = tmp_path / "a" / "target"
    with pytest.raises(InputInvalid):
        plan_of(profile, node)
    assert list(tmp_path.rglob("*out*")) == []
    assert not target.exists()


@pytest.mark.parametrize("key", ["", "../" * 21 + "x", "0" * 63, "A" * 64])
def test_a_key_that_is_none_is_as_good_as_missing(profile: Profile, key: str) -> None:
    node = forced(profile, {"o": {"x": {"k": key}}})
    with pytest.raises(BlobMissing, match="not in the repository"):
        plan_of(profile, node)


def test_names_that_differ_only_in_case(profile: Profile, tmp_path: Path) -> None:
    entry = {"k": key_of(b"content")}
    node = forced(
        profile,
        {"o": {"A": entry, "a": entry, "d": {"o": {"x": entry}}, "D": {"o": {"X": entry, "y": entry}}}},
    )
    with pytest.raises(InputInvalid, match=r"'(A|D/X)' is there"):
        plan_of(profile, node)
    plan = plan_of(profile, node, rename=True)
    fetch(profile, plan, tmp_path / "out")
    assert sorted(tree(tmp_path / "out")) == ["A", "D/X", "D/y", "a~2", "d/x~2"]


def test_what_is_missing_is_told_before_anything_is_written(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path
) -> None:
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob WHERE key = %s", (bytes.fromhex(key_of(b"one")),))
    with pytest.raises(BlobMissing):
        plan_of(profile, *folders)
    plan = plan_of(profile, *folders, skip_missing=True)
    assert [(file.path, file.key) for file in plan.missing] == [(f"{folders[0].id}/a.txt", key_of(b"one"))]
    fetch(profile, plan, tmp_path / "out")
    assert len(tree(tmp_path / "out")) == 4


@pytest.mark.parametrize("content", [b"one", LARGE], ids=["short", "large"])
def test_damaged_bytes_get_no_name(
    profile: Profile, folders: list[gr.Folder], tmp_path: Path, content: bytes
) -> None:
    with profile.transaction() as cursor:
        row = profile.index(cursor).find([key_of(content)])[key_of(content)]
    path = profile.home / "store" / row.object_name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(row.offset)
        file.write(b"\xff\0\xff")
    with pytest.raises(BlobCorrupt):
        fetch(profile, plan_of(profile, *folders), tmp_path / "out")
    for found in tree(tmp_path / "out").values():
        assert key_of(found) in {key_of(part) for part in (b"one", b"same", b"", LARGE)}
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))


def test_memory_is_bounded(profile: Profile, tmp_path: Path) -> None:
    def huge() -> Iterator[bytes]:
        noise = random.Random(7)
        for _ in range(40):
            yield noise.randbytes(10 << 20)

    source = tmp_path / "huge"
    with source.open("wb") as file:
        file.writelines(huge())
    node = gr.SingleFile(source)
    profile.store(node)
    script = (
        "import sys; from pathlib import Path; from grange.core.fetch import *\n"
        "from grange.core.profile import open_profile\n"
        "with open_profile(sys.argv[1]) as profile:\n"
        "    fetch(profile, plan_fetch(profile, nodes_in_folders([int(sys.argv[2])])), Path(sys.argv[3]))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(profile.home), str(node.id), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) < 150_000
    assert (tmp_path / "out" / "huge").stat().st_size == 400 << 20


def grange(profile: Profile, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grange", "--home", str(profile.home), "repository", "fetch", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command(profile: Profile, folders: list[gr.Folder], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = grange(profile, str(folders[0].id), "-o", str(out), "--dry-run")
    assert done.returncode == 0
    assert "b/c.txt" in done.stdout
    assert "3 files of 1 node, 7 B" in done.stdout
    assert not out.exists()
    done = grange(profile, str(folders[0].id), "-o", str(out))
    assert done.stdout == f"3 files in {out}, 7 B\n"
    done = grange(profile, str(folders[0].id), "-o", str(out))
    assert done.stdout == f"3 files in {out}, 7 B, 3 of them were there already\n"
    (out / "a.txt").write_bytes(b"mine")
    done = grange(profile, str(folders[0].id), "-o", str(out))
    assert done.returncode == 1
    assert "--overwrite" in done.stderr
    profile.create_group("both", folders)
    document = json.loads(grange(profile, "--group", "both", "-o", str(tmp_path / "group"), "--json").stdout)
    assert document["written"] == 5
    assert {Key(file["key"]) for file in document["files"]} == {
        key_of(part) for part in (b"one", b"same", b"", LARGE)
    }
    assert grange(profile, "-o", str(out)).returncode == 2
    assert grange(profile, "1", "--campaign", "x", "-o", str(out)).returncode == 2
