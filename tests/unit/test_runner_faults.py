"""The runner where others are at its chunk, where it is told to end, and where its spool cannot be had."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grange.farm import FunctionTask, TaskResult, read_result_pack, runner, ship
from grange.farm.chunk_folder import write_chunk
from grange.farm.function import by_value
from grange.farm.task import CommandTask, Resources


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks work in a scratch of the test's own."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def chunk(tmp_path: Path, *tasks: CommandTask, flush_s: float = 0.05, **more: Any) -> Path:
    folder = tmp_path / "run-1" / "chunk-000001"
    folder.mkdir(parents=True)
    (folder.parent / "done").mkdir()
    name = f"grange-test-{tmp_path.name}-{os.getpid()}"
    assert write_chunk(folder, tasks, Resources(), scratch=name, fetch=None, flush_s=flush_s, more=more) == {}
    return folder


def shell(task_id: object, script: str) -> CommandTask:
    return CommandTask(str(task_id), ("/bin/sh", "-c", script))


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A runner in a process group of its own, as HyperQueue starts it."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", runner.__file__, "run", str(folder)], start_new_session=True
    )


def wait_until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.01)


def results(folder: Path) -> list[TaskResult]:
    """All that runners delivered of a chunk, in its folder and in those beside it."""
    return [
        result
        for path in sorted(folder.parent.glob(f"{folder.name}*/result-*.zip"))
        for result in read_result_pack(path).results
    ]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Another runner holds the chunk and does nothing."""
    script = "import fcntl, sys; fd = open(sys.argv[1], 'rb+'); fcntl.lockf(fd, fcntl.LOCK_EX)"
    holder = subprocess.Popen(
        [sys.executable, "-c", script + "; print(flush=True); sys.stdin.read()", str(folder / "marks")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate()


def test_a_chunk_stays_locked_when_a_part_of_it_was_handed_over(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    folder = chunk(tmp_path, *(shell(n, f"echo {n} >> {tally}; sleep 0.03") for n in range(40)))
    first = start(folder)
    wait_until((folder / "result-2.zip").exists)
    second = start(folder)
    assert [first.wait(30), second.wait(30)] == [0, 0]
    assert sorted(map(int, tally.read_text().split())) == list(range(40))
    assert len(results(folder)) == 40


def test_a_runner_that_waits_for_a_long_task_is_waited_for(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    folder = chunk(tmp_path, shell("long", f"echo x >> {tally}; sleep 2"), twin_s=0.3)
    first = start(folder)
    wait_until(tally.exists)
    second = start(folder)
    assert [first.wait(30), second.wait(30)] == [0, 0]
    assert tally.read_text() == "x\n"
    assert [path.name for path in folder.parent.glob("chunk-*")] == [folder.name]


def test_a_runner_that_is_stopped_is_not_waited_for_and_delivers_when_it_wakes(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    tasks = [shell(n, f"echo {n} >> {tally}; sleep 0.05; echo {n}") for n in range(20)]
    folder = chunk(tmp_path, *tasks, twin_s=0.3)
    first = start(folder)
    wait_until((folder / "result-1.zip").exists)
    os.killpg(first.pid, signal.SIGSTOP)
    assert start(folder).wait(30) == 0
    assert {result.id for result in results(folder)} == {str(n) for n in range(20)}
    assert (folder.parent / "done" / "chunk-000001+1.end").exists()
    os.killpg(first.pid, signal.SIGCONT)
    assert first.wait(30) == 0
    found = [result.id for result in results(folder)]
    assert set(found) == {str(n) for n in range(20)}
    assert len(found) > 20


def test_what_was_cancelled_is_cancelled_in_the_folder_beside_it_too(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    folder = chunk(tmp_path, *(shell(n, f"echo x >> {tally}") for n in range(3)), twin_s=0.2)
    (folder / "marks").write_bytes(bytes(8 + 4 * 3))
    (folder / "cancel").write_text(json.dumps([]))
    with held(folder):
        assert start(folder).wait(30) == 0
    assert [result.outcome for result in results(folder)] == ["cancelled"] * 3
    assert not tally.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_finished_is_handed_over_within_a_second_of_the_signal_to_end(
    tmp_path: Path, number: signal.Signals
) -> None:
    """HyperQueue sends SIGINT and kills a second later; a scheduler sends SIGTERM."""
    tally = tmp_path / "tally"
    tasks = [shell(n, f"trap '' TERM; sleep 0.02; echo {n} >> {tally}") for n in range(500)]
    folder = chunk(tmp_path, *tasks, shell("last", "trap '' TERM INT; sleep 30"), flush_s=60.0)
    running = start(folder)
    wait_until(lambda: tally.exists() and tally.read_text().count("\n") > 10)
    os.killpg(running.pid, number)
    began = time.monotonic()
    assert running.wait(10) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 1.0
    ended = {result.id for result in results(folder) if result.outcome == "finished"}
    # but for the one that was ended
    assert len(set(tally.read_text().split()) - ended) <= 1
    assert len(ended) >= 10


@pytest.mark.parametrize(
    "script",
    ["(sleep 0.2; kill -TERM $PPID) & kill -TERM $$", "kill -TERM $PPID; exit 0", "kill -TERM $PPID; exit 1"],
    ids=["it first", "both, in order", "both, as a failure"],
)
def test_a_signal_that_ends_the_task_and_its_runner_is_nothing_that_the_task_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """scancel sends SIGTERM to all processes of a job."""
    monkeypatch.setenv("GRANGE_WORK", str(tmp_path))
    folder = chunk(tmp_path, shell("before", "true"), shell("ended", script), shell("after", "true"))
    assert start(folder).wait(30) == 128 + signal.SIGTERM
    assert [result.id for result in results(folder)] == ["before"]


def run_what_is_ended_with_us() -> None:
    script = f"(sleep 0.2; kill -TERM {os.getpid()}) & kill -TERM $$"
    subprocess.run(["/bin/sh", "-c", script], check=True)


def test_a_call_whose_program_is_ended_together_with_its_runner_has_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRANGE_WORK", str(tmp_path))
    folder = tmp_path / "run-1" / "chunk-000001"
    folder.mkdir(parents=True)
    task = FunctionTask("a", by_value(ship(run_what_is_ended_with_us)), {})
    write_chunk(folder, [task], Resources(), scratch=f"grange-test-{tmp_path.name}", fetch=None)
    running = subprocess.Popen([sys.executable, runner.__file__, "run", str(folder)])
    assert running.wait(30) == 128 + signal.SIGTERM
    assert results(folder) == []


def test_a_task_that_dies_of_a_signal_of_its_own_has_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRANGE_WORK", str(tmp_path))
    folder = chunk(tmp_path, shell("a", "kill -TERM $$"), shell("b", "exit 143"))
    assert start(folder).wait(30) == 0
    found = {result.id: (result.outcome, result.return_code) for result in results(folder)}
    assert found == {"a": ("crashed", None), "b": ("finished", 143)}


def test_a_runner_without_a_folder_ends_its_task(tmp_path: Path) -> None:
    folder = chunk(tmp_path, shell("long", "sleep 30"))
    running = start(folder)
    wait_until(lambda: runner.children_of(running.pid) and (folder / "marks").exists())
    time.sleep(0.5)
    shutil.rmtree(folder)
    assert running.wait(10) == 0
    assert not runner.strays(str(folder))


def test_a_log_that_cannot_be_written_is_told_apart_from_a_crash(tmp_path: Path) -> None:
    folder = chunk(tmp_path, shell("a", "true"))
    (folder.parent / "log").mkdir()
    assert start(folder).wait(30) == runner.EXIT_UNWRITABLE


def test_locks_are_seen_by_others_while_marks_are_read(tmp_path: Path) -> None:
    """To close a file ends all record locks of the process on it: whoever holds a chunk must not open it."""
    made = runner.Results(str(tmp_path), 3, 0.0, lambda *_: None)
    made.add(0, runner.result_of({"id": "a"}, "finished"))
    made.flush()
    assert not made.complete
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'rb+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "marks")], check=False, capture_output=True
    )
    assert b"BlockingIOError" in done.stderr
    made.close()


@pytest.fixture
def small_job() -> Iterator[Path]:
    """A memory cgroup of 64 MiB, as a scheduler makes one for a job."""
    for parent, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        folder = Path("/sys/fs/cgroup", parent, f"grange-test-{os.getpid()}")
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(64 << 20))
        except OSError:
            folder.rmdir()
            continue
        yield folder
        wait_until(lambda folder=folder: not (folder / "cgroup.procs").read_text())  # type: ignore[misc]
        folder.rmdir()
        return
    pytest.skip("no memory cgroup can be made here")


def test_a_task_that_the_kernel_ends_for_want_of_memory_is_told(tmp_path: Path, small_job: Path) -> None:
    """Whoever gave the job its memory did not ask us."""
    hungry = [sys.executable, "-I", "-S", "-c", "x = bytearray(300 << 20)"]
    tasks = [
        CommandTask("hungry", tuple(hungry)),
        CommandTask("after", ("sh", "-c", "kill -9 $$")),
        # with a shell around the program
        CommandTask("around", tuple(hungry), epilogue="echo over"),
        CommandTask("well", ("/bin/true",)),
    ]
    folder = chunk(tmp_path, *tasks)
    enter = f'echo $$ > {small_job}/cgroup.procs; exec "$@"'
    command = [sys.executable, "-I", "-S", runner.__file__, "run", str(folder)]
    subprocess.run(["sh", "-c", enter, "sh", *command], check=True, timeout=60)
    found = {result.id: result.outcome for result in results(folder)}
    assert found == {
        "hungry": "memory_exceeded",
        "after": "crashed",
        "around": "memory_exceeded",
        "well": "finished",
    }
    told = "ended by the kernel: the memory of the job that it ran in was used up"
    assert {result.message for result in results(folder) if result.outcome == "memory_exceeded"} == {told}
