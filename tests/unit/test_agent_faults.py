"""The agent where something of its spool is missing, half made or in doubt."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grange.farm import TaskResult, agent, read_result_pack, runner
from grange.farm.chunk_folder import write_chunk
from grange.farm.task import CommandTask, Resources

SETTINGS = {"dispatcher": "direct", "python": sys.executable, "slots": 1}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory whose pool is taken: nothing runs."""
    path = tmp_path / "work"
    (path / "spool" / "run-1" / "jobs").mkdir(parents=True)
    return path


@pytest.fixture
def run(work: Path) -> Path:
    return work / "spool" / "run-1"


def write(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    name = folder.name.partition("+")[0]
    tasks = [CommandTask(f"{name}-{n}", ("/bin/true",)) for n in range(count)]
    assert write_chunk(folder, tasks, Resources(), scratch="grange-test", fetch=None) == {}


def job_of(run: Path, *chunks: str, **more: Any) -> agent.Job:
    """A job that is there, with its chunks unpacked."""
    for chunk in chunks:
        write(run / chunk)
    content = {"chunks": list(chunks), "need": {}, "kind": "command", "settings": SETTINGS, **more}
    (run / "jobs" / "job.json").write_text(json.dumps(content))
    (run / "done").mkdir(exist_ok=True)
    return agent.Job(str(run), "job", content)


def ask(command: str, request: dict[str, Any]) -> dict[str, Any]:
    """What the agent answers as a program."""
    done = subprocess.run(
        [sys.executable, agent.__file__, command],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    (line,) = [line for line in done.stdout.decode().splitlines() if line.startswith(agent.ANSWER)]
    answer: dict[str, Any] = json.loads(line[len(agent.ANSWER) :])
    return answer


def results(run: Path) -> list[TaskResult]:
    return [
        result
        for path in sorted(run.glob("chunk-*/result-*.zip"))
        for result in read_result_pack(path).results
    ]


def finish(folder: Path) -> None:
    runner.settle(str(folder), "finished", "")


# What comes back


def test_what_waits_for_another_node_waits_however_long_that_takes(run: Path) -> None:
    job = job_of(run, "chunk-000001", need={"walltime_s": 600})
    reason = f"Program terminated with exit code {runner.EXIT_ELSEWHERE}"
    said = [agent.take_back(job, "chunk-000001", reason) for _ in range(1000)]
    assert job.is_open("chunk-000001")
    assert results(run) == []
    assert said[0] == ""
    assert said[-1] == "tasks that may take 600 s wait for an allocation with as much time left"
    assert 0 < job.later["chunk-000001"] - time.time() <= 30


def test_a_full_disk_is_waited_for_for_hours_and_not_for_ever(run: Path) -> None:
    job = job_of(run, "chunk-000001")
    reason = f"Program terminated with exit code {runner.EXIT_UNWRITABLE}"
    waits = []
    while job.is_open("chunk-000001"):
        assert agent.take_back(job, "chunk-000001", reason).startswith("the spool could not be written")
        waits.append(job.later["chunk-000001"] - time.time())
    assert sum(waits) > 12 * 3600
    assert max(waits) <= 600
    assert {result.outcome for result in results(run)} == {"crashed"}


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        ("Program terminated with signal 9", "crashed"),
        ("exit code 137 (OUT_OF_MEMORY)", "memory_exceeded"),
    ],
)
def test_a_runner_that_crashes_again_and_again_is_given_up(run: Path, reason: str, outcome: str) -> None:
    job = job_of(run, "chunk-000001")
    for _ in range(3 * runner.DEATHS):
        agent.take_back(job, "chunk-000001", reason)
    assert job.is_open("chunk-000001")
    agent.take_back(job, "chunk-000001", reason)
    assert not job.is_open("chunk-000001")
    assert [result.outcome for result in results(run)] == [outcome] * 3
    assert (run / "done" / "chunk-000001.end").exists()


def test_what_was_done_beside_a_chunk_is_not_said_to_have_crashed(run: Path) -> None:
    job = job_of(run, "chunk-000001")
    write(run / "chunk-000001+1")
    runner.settle(str(run / "chunk-000001+1"), "finished", "", {"chunk-000001-1"})
    for _ in range(3 * runner.DEATHS + 2):
        agent.take_back(job, "chunk-000001", "Program terminated with signal 9")
    outcomes = {(result.id, result.outcome) for result in results(run)}
    assert outcomes == {
        ("chunk-000001-0", "crashed"),
        ("chunk-000001-1", "finished"),
        ("chunk-000001-2", "crashed"),
    }


@pytest.mark.parametrize(
    ("said", "outcomes"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", True),
        ("Batch job submission failed: Invalid partition name specified", False),
    ],
)
def test_a_refused_account_is_told_and_other_refusals_wait(
    work: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, outcomes: bool
) -> None:
    """The programs of Slurm are stubs: one without an accounting database knows no account to refuse."""
    for name, text in (("squeue", "exit 0"), ("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job_of(run, "chunk-000001", "chunk-000002", settings={**SETTINGS, "dispatcher": "slurm"})
    for _ in range(agent.ACCOUNT_REFUSALS - 1):
        with pytest.raises(agent.Refused, match=said[:20]):
            agent.advance(str(run), str(work))
    assert results(run) == []
    if not outcomes:
        for _ in range(3):
            with pytest.raises(agent.Refused, match="partition"):
                agent.advance(str(run), str(work))
        assert results(run) == []
        return
    assert agent.advance(str(run), str(work)) == []
    assert {result.outcome for result in results(run)} == {"account_refused"}
    assert len(results(run)) == 6
    assert "Invalid account" in results(run)[0].message
    assert not (run / "jobs" / "job.json").exists()


def test_how_a_runner_of_the_pool_ended_is_known_until_the_job_says_so(work: Path, run: Path) -> None:
    """Whoever reads it may be killed before it is written down."""
    job = job_of(run, "chunk-000001", handed=[{"id": 7, "chunks": ["chunk-000001"], "at": 0.0}])
    agent.write_json(agent.failure_path(job, "chunk-000001", 7), "signal 9")
    with agent.Locked(str(work / "pool.lock")):
        pool = agent.Pool(SETTINGS, str(work))
        assert pool.returned(job) == [("chunk-000001", "signal 9")]
        assert pool.returned(job) == [("chunk-000001", "signal 9")]
        job.taken_back(["chunk-000001"])
        job.save()
        pool.saved(job)
    assert [path.name for path in (run / "jobs").iterdir()] == ["job.json"]


# What is missing


def test_what_nobody_has_is_told_and_what_is_done_is_said_again(work: Path, run: Path) -> None:
    job_of(run, "chunk-000001")
    write(run / "chunk-000002")
    finish(run / "chunk-000002")
    (run / "done" / "chunk-000002.end").unlink()
    write(run / "chunk-000003")
    chunks = [f"chunk-{n:06d}" for n in range(1, 5)]
    with agent.Locked(str(work / "pool.lock")):
        answer = ask("poll", {"work": str(work), "runs": ["run-1"], "open": {"run-1": chunks}})["ok"]
    assert answer["missing"] == {"run-1": ["chunk-000003", "chunk-000004"]}
    assert "chunk-000002.end" in answer["marks"]["run-1"]
    answer = ask("poll", {"work": str(work), "runs": ["run-2"], "open": {"run-2": chunks}})["ok"]
    assert answer["missing"] == {"run-2": chunks}


@pytest.mark.parametrize("damaged", ["job.json", "job.zip"])
def test_a_job_that_cannot_be_read_is_missing(work: Path, run: Path, damaged: str) -> None:
    job_of(run, "chunk-000001")
    (run / "jobs" / damaged).write_bytes(b"\0" * 100)
    with agent.Locked(str(work / "pool.lock")):
        missing = agent.missing(str(run), ["chunk-000001"])
    assert missing == ["chunk-000001"]
    assert list((run / "jobs").iterdir()) == []


# Cancel, sweep


def test_cancel_takes_what_is_half_made_or_not_there(work: Path, run: Path) -> None:
    job_of(run, "chunk-000001")
    (run / "chunk-000001+1").mkdir()
    wanted = {"run-1": {"chunk-000001": [], "chunk-000009": []}, "run-2": {"chunk-000001": []}}
    with agent.Locked(str(work / "pool.lock")):
        answer = ask("cancel", {"work": str(work), "chunks": wanted})["ok"]
    assert answer == {"missing": {"run-1": ["chunk-000009"], "run-2": ["chunk-000001"]}}
    assert [result.outcome for result in results(run)] == ["cancelled"] * 3


def test_sweep_ends_what_was_sent_and_not_unpacked(work: Path, run: Path, tmp_path: Path) -> None:
    job_of(run, "chunk-000001")
    write(tmp_path / "chunk-000002")
    pack = runner.ZipWriter(str(run / "jobs" / "late.zip"))
    pack.add("chunk-000002", (tmp_path / "chunk-000002" / "chunk.zip").read_bytes())
    pack.close()
    content = json.loads((run / "jobs" / "job.json").read_text())
    (run / "jobs" / "late.json").write_text(json.dumps({**content, "chunks": ["chunk-000002"]}))
    (run / "chunk-000001+1").mkdir()
    with agent.Locked(str(work / "pool.lock")):
        assert ask("sweep", {"work": str(work), "runs": ["run-1"]}) == {"ok": {}}
    assert not run.exists()


# Answers


def test_a_spool_that_cannot_be_written_is_told_as_such(work: Path, run: Path) -> None:
    write(run / "chunk-000001")
    finish(run / "chunk-000001")
    (run / "done").mkdir()
    (run / "done" / "chunk-000001.end").mkdir()  # root may write everything, but not this
    request = {"work": str(work), "runs": ["run-1"], "open": {"run-1": ["chunk-000001"]}}
    answer = ask("poll", request)
    assert answer["errno"] == errno.ENOSPC
    assert "the spool cannot be written" in answer["refused"]


def test_a_poll_ends_when_nobody_hears_it(work: Path) -> None:
    waiting = subprocess.Popen(
        [sys.executable, agent.__file__, "poll"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    waiting.stdin.write(json.dumps({"work": str(work), "runs": ["run-1"], "wait_s": 60}).encode())
    waiting.stdin.close()
    time.sleep(1.0)
    assert waiting.poll() is None
    waiting.stdout.close()
    waiting.wait(5)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    agent.write_json(str(tmp_path / "a"), {"a": 1})
    assert agent.read_json(str(tmp_path / "a")) == {"a": 1}
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        agent.write_json(str(tmp_path / "b"), {})
    (tmp_path / ".c.17.part").write_text("half")
    assert agent.names_in(str(tmp_path)) == ["a", "b"]
    assert sorted(os.listdir(tmp_path)) == [".c.17.part", "a", "b"]


def test_the_end_of_a_runner_is_seen_though_others_are_started(work: Path, run: Path) -> None:
    """Python buries children that it has started when it starts others: not those that the pool waits for."""
    job = job_of(run, "chunk-000001")
    pid = agent.start_runner(job, "chunk-000001", str(work))
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)
    subprocess.run(["true"], check=True)
    running = {pid: (job, "chunk-000001", 1, 1)}
    agent.bury(running, {})
    assert not running
