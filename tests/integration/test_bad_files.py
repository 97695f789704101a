"""Files with bad names, bad keys and bad packs: refused, or kept where they do no harm."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_bad_input import nothing_stored

import grange as gr
from grange.core.errors import InputInvalid
from grange.core.profile import Profile
from grange.farm import CommandTask, Resources, runner
from grange.farm.executor_spool import ExecutorSpool
from grange.farm.local_pool import LocalPool
from grange.farm.result import ResultPack
from grange.repository import BlobMissing, Key, KeyInvalid, key_of

NO_KEYS = [
    "",
    "abc",
    "g" * 64,
    "A" * 64,
    "0" * 63,
    "0" * 65,
    "0" * 64 + "\n",
    "../" * 21 + "x",
    "0,1" * 21 + "0",
]
BAD_PATHS = ["../out", "/etc/passwd", "a/../../b", "a//b", ".", "", "a/./b", "nul\0"]
CLASHES = [
    ({"A": b"1", "a": b"2"}, "'A'", "'a'"),
    ({"out/X.dat": b"1", "OUT/x.DAT": b"2"}, "'out/X.dat'", "'OUT/x.DAT'"),
    ({"log": b"1", "Log/today": b"2"}, "'log'", "'Log/today'"),
    ({"ä": b"1", "a\u0308": b"2"}, "'ä'", "a\u0308"),
]


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_refused(profile: Profile, key: str) -> None:
    with nothing_stored(profile):
        with pytest.raises(KeyInvalid, match="64 digits"):
            profile.read_files([Key(key)])
        with pytest.raises(KeyInvalid, match="64 digits"):
            list(profile.read_each([Key(key)]))
        folder = gr.Folder.of_keys({"x": Key(key)})
        with pytest.raises(InputInvalid, match="files: x: expected bytes, a path, or a key of 64 hex"):
            profile.store(folder)
    assert folder.id is None


def test_a_key_that_nothing_is_stored_under(profile: Profile) -> None:
    with nothing_stored(profile):
        with pytest.raises(BlobMissing):
            profile.store(gr.Folder.of_keys({"x": key_of(b"nowhere")}))


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_climbs_out_is_refused(profile: Profile, path: str) -> None:
    with nothing_stored(profile):
        with pytest.raises(InputInvalid):
            profile.store(gr.Folder({path: b"x"}))
        with pytest.raises(InputInvalid):
            profile.store(gr.SingleFile(b"x", path))


@pytest.mark.parametrize(("files", "one", "other"), CLASHES)
def test_names_that_differ_only_in_case_are_refused(
    profile: Profile, files: dict[str, bytes], one: str, other: str
) -> None:
    good = gr.Folder({"good": b"good"})
    with nothing_stored(profile):
        with pytest.raises(InputInvalid) as refused:
            profile.store(good, gr.Folder(files))
        assert one in str(refused.value)
        assert other in str(refused.value)
        assert good.id is None
    profile.store(good)


class Writes(gr.CalcJob):
    """Leaves what it is told to, with names that differ only in case."""

    class Inputs:
        names: list[str]

    class Outputs:
        count: int

    def prepare(self, inputs):  # type: ignore[no-untyped-def]
        script = "; ".join(f'mkdir -p "$(dirname {name})"; echo {name} > {name}' for name in inputs.names)
        return gr.Command(["sh", "-c", script], retrieve=["*", "*/*"])

    def parse(self, files):  # type: ignore[no-untyped-def]
        return {"count": len(files)}


class Needs(gr.CalcJob):
    """Wants input files whose names differ only in case."""

    class Inputs:
        name: str

    class Outputs:
        count: int

    def prepare(self, inputs):  # type: ignore[no-untyped-def]
        return gr.Command(["true"], files={"input": "1", inputs.name: "2"})

    def parse(self, files):  # type: ignore[no-untyped-def]
        return {"count": 1}


def test_results_with_such_names_end_clearly_and_nothing_of_them_is_lost(profile: Profile) -> None:
    campaign = gr.Campaign("cases", profile)
    campaign.map(Writes, names=[["x", "y"], ["OUT", "out", "Out"], ["d/X", "D/x", "z"], ["one"]])
    campaign.run(progress=False)
    frame = campaign.results()
    assert list(frame["exit_status"]) == [0, 172, 172, 0]
    assert "'OUT' and 'Out'" in frame["exit_message"][1]
    assert "'Out' as 'Out~2', 'out' as 'out~3'" in frame["exit_message"][1]
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT target_id FROM link JOIN process ON node_id = source_id WHERE link.label = 'retrieved'"
            " ORDER BY ordinal"
        )
        ids = [row[0] for row in cursor.fetchall()]
    first, second, third, _ = (node.read_files() for node in profile.load(*ids))
    assert {"x", "y"} <= first.keys()
    assert (second["OUT"], second["Out~2"], second["out~3"]) == (b"OUT\n", b"Out\n", b"out\n")
    assert sorted(third[name] for name in third if "z" not in name and "std" not in name) == [
        b"D/x\n",
        b"d/X\n",
    ]


def test_input_files_with_such_names_end_their_own_call(profile: Profile) -> None:
    campaign = gr.Campaign("needs", profile)
    campaign.map(Needs, name=["other", "INPUT"])
    campaign.run(progress=False)
    frame = campaign.results()
    assert list(frame["state"]) == ["finished", "excepted"]
    assert "'input' is there" in frame["exit_message"][1]


class Tampering(LocalPool):
    """A pool whose packs somebody gets hold of before they are read."""

    tamper: Callable[[ResultPack], ResultPack]

    def poll(self, timeout_s: float) -> list[ResultPack]:
        return [self.tamper(pack) for pack in super().poll(timeout_s)]


def run_tampered(
    profile: Profile, tamper: Callable[[ResultPack], ResultPack], name: str = "tampered", calls: int = 3
) -> gr.Campaign:
    campaign = gr.Campaign(name, profile)
    campaign.map(Writes, names=[[f"{name}{number}"] for number in range(calls)])
    with contextlib.closing(Tampering(profile.spool / "tampered", slots=1)) as pool:
        pool.tamper = tamper
        campaign.run(progress=False, executor=pool)
    return campaign


def twice(pack: ResultPack) -> ResultPack:
    """A member that is there twice: neither of the two can be believed."""
    pack.path.chmod(0o600)
    with zipfile.ZipFile(pack.path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = next(name for name in file.namelist() if name != "manifest.json")
        file.writestr(name, b"something else")
    return pack


def test_a_pack_that_the_repository_refuses_ends_its_calls_and_is_set_aside(profile: Profile) -> None:
    frame = run_tampered(profile, twice).results()
    assert list(frame["exit_status"]) == [100] * 3
    assert (
        frame["exit_message"]
        .str.contains("two of its members have one name; the result pack is kept as")
        .all()
    )
    with pytest.raises(BlobMissing):
        profile.read_files([key_of(b"tampered0\n")])
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM link WHERE label = 'retrieved'")
        assert cursor.fetchone() == (0,)
    kept = list((profile.spool / "tampered" / "refused").iterdir())
    assert kept
    assert all(str(path) in " ".join(frame["exit_message"]) for path in kept)
    # and the profile goes on
    assert list(run_tampered(profile, lambda pack: pack, "after").results()["exit_status"]) == [0] * 3


@pytest.mark.parametrize("path", [path for path in BAD_PATHS if path])
def test_a_manifest_with_paths_that_climb_out_ends_its_call_alone(profile: Profile, path: str) -> None:
    def tamper(pack: ResultPack) -> ResultPack:
        results = tuple(
            replace(result, files={**result.files, path: next(iter(result.files.values()))})
            if "stdout.txt" in result.files and place == 0
            else result
            for place, result in enumerate(pack.results)
        )
        return replace(pack, results=results)

    frame = run_tampered(profile, tamper, calls=1).results()
    assert list(frame["exit_status"]) == [172]
    assert "a relative path" in frame["exit_message"][0] or "NUL" in frame["exit_message"][0]
    with profile.transaction() as cursor:
        cursor.execute("SELECT target_id FROM link WHERE label = 'retrieved'")
        [(node_id,)] = cursor.fetchall()
    assert set(profile.load(node_id)[0].files) == {"stdout.txt", "stderr.txt", "tampered0"}


@pytest.mark.parametrize("key", NO_KEYS)
def test_a_manifest_with_what_is_no_key_ends_its_call_alone(profile: Profile, key: str) -> None:
    def tamper(pack: ResultPack) -> ResultPack:
        return replace(
            pack,
            results=tuple(replace(result, files={**result.files, "x": Key(key)}) for result in pack.results),
        )

    frame = run_tampered(profile, tamper, calls=1).results()
    assert list(frame["exit_status"]) == [172]
    assert "is no key of a content" in frame["exit_message"][0]


def test_a_pack_that_cannot_be_read_is_told_and_set_aside(tmp_path: Path) -> None:
    spool = ExecutorSpool(tmp_path / "spool", None, 0.0)
    tasks = [CommandTask(name, ("sh", "-c", f"echo {name}")) for name in "abc"]
    chunk, refused = spool.new_chunk(tasks, Resources())
    assert chunk is not None
    assert refused is None
    command = [sys.executable, "-I", "-S", runner.__file__, "run", str(chunk.folder)]
    subprocess.run(command, check=True, timeout=30)
    for path in chunk.folder.glob("result-*.zip"):
        path.write_bytes(path.read_bytes()[:-10])
    packs = chunk.sweep()
    results = [result for pack in packs for result in pack.results]
    assert sorted(result.id for result in results) == ["a", "b", "c"]
    assert {result.outcome for result in results} == {"retrieve_failed"}
    places = set(map(str, (tmp_path / "spool" / "refused").iterdir()))
    assert {result.message.rpartition(" ")[2] for result in results} == places
    spool.acknowledge(packs)
    chunk.finish()
    spool.close(undelivered=False)
    # of a run that died: its tasks are done again, and nothing else is held up
    again = ExecutorSpool(tmp_path / "spool", None, 0.0)
    assert again.recover() == []
    again.close(undelivered=False)
