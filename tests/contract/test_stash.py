"""Files that stay where a task ran, on every executor."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_executor import KINDS, drain, make, processes_of, run, shell, wait_until

from grange.farm import Batch, Executor
from grange.farm.monitor import Monitor
from grange.farm.stash import STASH_MODES, Stash
from grange.repository.key import key_of

#: Leaves files, folders, links inside and outside, an empty folder, and a program.
SCRIPT = r"""
mkdir -p out/deep empty; echo one > wfc1; printf 'two\0' > out/deep/wfc2; : > out/nothing
ln -s deep/wfc2 out/link; ln -s /etc/passwd out/passwd; ln -s nowhere out/broken; echo '#!/bin/sh' > go
chmod 700 go; echo left > other
"""
FILES = {
    "wfc1": b"one\n",
    "out/deep/wfc2": b"two\0",
    "out/nothing": b"",
    "out/link": b"two\0",
    "go": b"#!/bin/sh\n",
}
PATHS = ("wfc*", "out", "go", "empty", "not-there")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def executor(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    spool = tmp_path_factory.mktemp(f"stash-{kind}")
    made = make(kind, spool)
    yield made
    made.close()
    assert processes_of(spool) == []


def stashing(name: str, script: str, to: Path | str, mode: Any = "copy", **more: Any) -> Any:
    return shell(name, script, stash=Stash(PATHS, str(to), mode), **more)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", STASH_MODES)
def test_files_stay_in_a_folder_or_an_archive(executor: Executor, tmp_path: Path, mode: str) -> None:
    to = tmp_path / "new" / "stash"
    tasks = [stashing(f"t{n}", f"{SCRIPT} exit {n}", to, mode, retrieve=("other",)) for n in range(3)]
    result = run(executor, *tasks)
    for n in range(3):
        one = result.results[f"t{n}"]
        assert (one.outcome, one.return_code) == ("finished", n)
        assert set(one.files) == {"stdout.txt", "stderr.txt", "other"}
        assert one.stash is not None
        assert (one.stash.mode, one.stash.count, one.stash.patterns) == (mode, len(FILES), PATHS)
        place = Path(one.stash.path)
        assert place.parent == to
        assert place.name.startswith(f"t{n}-")
        if mode == "copy":
            assert files_below(place) == FILES
            assert stat.S_IMODE((place / "go").stat().st_mode) == 0o700
        else:
            with tarfile.open(place) as archive:
                members = {member.name: archive.extractfile(member) for member in archive}
                assert {name: file.read() if file else None for name, file in members.items()} == FILES
    assert len(list(to.iterdir())) == 3


def test_what_was_stopped_is_stashed_and_what_was_killed_is_not(executor: Executor, tmp_path: Path) -> None:
    ready = (Monitor("stdout.txt", "ready", every_s=0.1),)
    result = run(
        executor,
        stashing("stopped", f"{SCRIPT} echo ready; sleep 60", tmp_path / "a", monitors=ready),
        stashing("empty", "mkdir empty", tmp_path / "b"),
    ).results
    assert result["stopped"].outcome == "stopped"
    assert result["stopped"].stash is not None
    assert files_below(Path(result["stopped"].stash.path)) == FILES
    assert (result["empty"].outcome, result["empty"].stash) == ("finished", None)
    seen = tmp_path / "seen"
    executor.submit(Batch((stashing("killed", f"{SCRIPT} touch {seen}; sleep 60", tmp_path / "b"),)))
    wait_until(lambda: not executor.poll(0.05) and seen.exists(), 30)
    executor.cancel(["killed"])
    killed = drain(executor).results["killed"]
    assert (killed.outcome, killed.stash) == ("cancelled", None)
    assert not (tmp_path / "b").exists()


def test_names_of_the_place_are_filled_in_there(
    executor: Executor, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(
        executor,
        stashing("unset", SCRIPT, "$GRANGE_TEST_NOT_SET/x"),
        stashing("relative", SCRIPT, "$PWD_IS_NOT_SET"),
        stashing("failed", f"{SCRIPT} exit 3", "$GRANGE_TEST_NOT_SET/x"),
        stashing("file", SCRIPT, "/dev/null/x"),
        stashing("home", SCRIPT, f"$TMPDIR/../{tmp_path}" if "TMPDIR" in os.environ else tmp_path),
    )
    for name in ("unset", "relative", "failed", "file"):
        one = result.results[name]
        assert (one.outcome, one.stash) == ("stash_failed", None)
        assert one.message.startswith("files that could not be stashed: ")
        assert set(one.files) == {"stdout.txt", "stderr.txt"}
    assert result.results["failed"].return_code == 3
    assert "a variable that is not set" in result.results["unset"].message
    home = result.results["home"].stash
    assert home is not None
    assert files_below(Path(home.path)) == FILES


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_another_file_system_and_a_full_one(executor: Executor, tmp_path: Path) -> None:
    """/dev/shm is another file system than the runners' scratch, or the same: both have to do."""
    with_copy = Path(f"/dev/shm/grange-test-{os.getpid()}")
    try:
        result = run(executor, stashing("a", SCRIPT, with_copy), stashing("b", SCRIPT, with_copy, "tar"))
        copied = result.results["a"].stash
        assert copied is not None
        assert files_below(Path(copied.path)) == FILES
        assert stat.S_IMODE((Path(copied.path) / "go").stat().st_mode) == 0o700
    finally:
        subprocess.run(["rm", "-r", str(with_copy)], check=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a full file system needs the right to mount one")
    try:
        script = "head -c 1000000 /dev/zero > wfc1; echo kept"
        result = run(
            executor, stashing("a", script, tmp_path / "s"), stashing("b", script, tmp_path / "s", "tar")
        )
        for name in "ab":
            assert result.results[name].outcome == "stash_failed"
            assert "No space left" in result.results[name].message
            assert result.results[name].files["stdout.txt"] == key_of(b"kept\n")
        assert list((tmp_path / "s").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
