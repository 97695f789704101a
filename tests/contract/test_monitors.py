"""Monitors of running programs, on every executor: what stops a program, and what must not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import farm_functions as functions
import pytest
from test_executor import KINDS, drain, make, processes_of, run, running, shell, wait_until

from grange.farm import Batch, CommandTask, Executor, Resources, ShippedFunction, ship
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.monitor import Monitor

#: Fraction of the seconds that our sleeps take: it tells them from anybody else's.
TAG = str(os.getpid())


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def executor(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    spool = tmp_path_factory.mktemp(f"monitors-{kind}")
    made = make(kind, spool)
    yield made
    made.close()
    assert processes_of(spool) == []


def touching(path: Path) -> ShippedFunction:
    """A monitor's function that leaves a file and wants nothing."""

    def touch(text: str) -> None:
        path.touch()

    return ship(touch)


def pattern(look: str, **more: Any) -> Monitor:
    return Monitor("stdout.txt", look, **{"every_s": 0.1, **more})


def test_a_line_of_the_output_stops_the_program(executor: Executor) -> None:
    script = f"echo kept > out.dat; echo step 1; echo ' energy: nan'; echo more; sleep 301.{TAG}"
    result = run(
        executor,
        shell("a", script, retrieve=("out.*",), monitors=(pattern(r"^ *energy: nan$"),)),
        shell("b", "echo energy: 1; sleep 0.4", monitors=(pattern(r"^ *energy: nan$"),)),
    )
    stopped = result.results["a"]
    assert (stopped.outcome, stopped.message) == ("stopped", "stdout.txt: energy: nan")
    assert result.text("a") == "step 1\n energy: nan\nmore\n"
    assert result.text("a", "out.dat") == "kept\n"
    assert not running(f"sleep 301.{TAG}")
    assert (result.results["b"].outcome, result.results["b"].return_code) == ("finished", 0)
    assert set(result.results["b"].files) == {"stdout.txt", "stderr.txt"}


def test_what_is_written_between_two_looks_is_seen_however_much_it_is(executor: Executor) -> None:
    script = "sleep 0.3; echo ERROR 7; head -c 500000 /dev/zero | tr '\\0' '.'; sleep 302"
    result = run(
        executor, shell("a", script, monitors=(pattern("ERROR (?P<n>.)", tail_bytes=10, message="an error"),))
    )
    assert (result.results["a"].outcome, result.results["a"].message) == ("stopped", "an error")


def test_a_function_of_the_tail_stops_the_program(executor: Executor) -> None:
    limit = 5

    def too_many_steps(text: str) -> str | None:
        print("looked")  # nobody's answer
        steps = text.count("step")
        return f"{steps} steps" if steps >= limit else None

    script = "while true; do echo step; sleep 0.05; done"
    tasks = [
        shell(name, script, monitors=(Monitor("stdout.txt", ship(function), every_s=0.2),))
        for name, function in (("value", too_many_steps), ("reference", functions.stop_at_five))
    ]
    result = run(executor, *tasks)
    assert ship(functions.stop_at_five).pickle is None
    assert {one.outcome for one in result.results.values()} == {"stopped"}
    assert int(result.results["value"].message.split()[0]) >= limit
    assert result.results["reference"].message == "the monitor stop_at_five of stdout.txt wants it"


@pytest.mark.parametrize("kind", ["computer"], indirect=True)
def test_functions_of_monitors_go_by_value_to_other_computers(executor: ClusterExecutor) -> None:
    """This machine, used as another one, would find the module; a cluster does not."""
    shipped = ship(functions.stop_at_five)
    monitors = (Monitor("stdout.txt", shipped), Monitor("stdout.txt", "nan"))
    tasks = [shell("a", "true", monitors=monitors), shell("b", "true", monitors=monitors), shell("c", "true")]
    first, second, plain = executor._travelling(tasks)
    assert isinstance(first, CommandTask)
    assert isinstance(second, CommandTask)
    look = first.monitors[0].look
    assert isinstance(look, ShippedFunction)
    assert look.pickle is not None
    assert look is second.monitors[0].look
    assert first.monitors[1:] == monitors[1:]
    assert plain is tasks[2]


def test_a_program_is_asked_to_stop_by_a_file_and_has_time_for_it(executor: Executor) -> None:
    script = "echo bad; until [ -e STOP ]; do sleep 0.05; done; sleep 0.3; cp STOP checkpoint"
    monitor = pattern("bad", stop_file="STOP", stop_text="LABORT\n", grace_s=60.0)
    result = run(executor, shell("a", script, retrieve=("checkpoint",), monitors=(monitor,)))
    stopped = result.results["a"]
    assert (stopped.outcome, stopped.return_code, stopped.signal) == ("stopped", 0, None)
    assert result.text("a", "checkpoint") == "LABORT\n"


def test_a_program_that_does_not_stop_by_itself_is_ended(executor: Executor) -> None:
    script = f"echo bad; trap 'echo asked; sleep 303.{TAG}' TERM; sleep 303.{TAG} & wait; sleep 303.{TAG}"
    began = time.monotonic()
    result = run(
        executor,
        shell("file", f"echo bad; sleep 303.{TAG}", monitors=(pattern("bad", stop_file="S", grace_s=0.2),)),
        shell("deaf", script, monitors=(pattern("bad", grace_s=0.2),)),
        shell("now", script, monitors=(pattern("bad", grace_s=0.0),)),
    )
    assert {one.outcome for one in result.results.values()} == {"stopped"}
    assert result.text("deaf").startswith("bad\nasked\n")
    assert result.text("now") == "bad\n"
    assert time.monotonic() - began < 30
    assert not running(f"sleep 303.{TAG}")


def test_a_program_that_has_time_to_stop_can_be_cancelled_meanwhile(
    executor: Executor, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    script = f"echo bad; until [ -e STOP ]; do sleep 0.05; done; touch {seen}; sleep 304"
    executor.submit(Batch((shell("a", script, monitors=(pattern("bad", stop_file="STOP", grace_s=600.0),)),)))
    # nobody else listens to the runners of the local pool
    wait_until(lambda: not executor.poll(0.05) and seen.exists(), 30)
    executor.cancel(["a"])
    assert drain(executor).results["a"].outcome == "cancelled"


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_a_limit_holds_while_a_program_has_time_to_stop(executor: Executor) -> None:
    task = shell("a", "echo bad; sleep 305", monitors=(pattern("bad", stop_file="STOP", grace_s=600.0),))
    result = run(executor, task, resources=Resources(walltime_s=6)).results["a"]
    assert (result.outcome, result.message) == ("stopped", "stdout.txt: bad")
    assert 6 <= result.wall_s < 60


def test_monitors_that_cannot_do_their_work_end_nothing_and_are_told(
    executor: Executor, tmp_path: Path
) -> None:
    def raises(text: str) -> None:
        raise LookupError(f"no energy in {text!r}")

    def hangs(text: str) -> None:
        time.sleep(306)

    def dies(text: str) -> None:
        os._exit(3)

    def says_a_number(text: str) -> float:
        return 1.5

    looks = [ship(function) for function in (raises, hangs, dies, says_a_number)]
    monitors = tuple(Monitor("stdout.txt", look, every_s=0.1, timeout_s=1.0) for look in [*looks, "(?P<n>a"])
    monitors += (pattern("never"), Monitor("not-there.txt", "x", every_s=0.1))
    # the last ones work on beside them: they are asked when all others were
    monitors += (Monitor("second.txt", "stop here", every_s=0.1),)
    tasks = []
    for name, script in (("a", "exit 0"), ("b", "echo stop here > second.txt; sleep 307")):
        go = tmp_path / name
        last = Monitor("stdout.txt", touching(go), every_s=0.1)
        wait = f"echo begun; until [ -e {go} ]; do sleep 0.05; done"
        tasks.append(shell(name, f"{wait}; {script}", monitors=(*monitors, last)))
    result = run(executor, *tasks)
    assert (result.results["a"].outcome, result.results["a"].return_code) == ("finished", 0)
    assert result.results["b"].outcome == "stopped"
    for name in "ab":
        told = result.text(name, "monitors.txt")
        assert "the monitor raises of stdout.txt: LookupError: no energy in 'begun\\n'\n" in told
        assert "the monitor hangs of stdout.txt: it did not answer within 1 s\n" in told
        assert "the monitor dies of stdout.txt: its process has ended\n" in told
        assert "the monitor says_a_number of stdout.txt: TypeError: it returned float" in told
        assert "the monitor '(?P<n>a' of stdout.txt: " in told
        assert len(told.splitlines()) == 5


def test_monitors_of_short_programs_are_never_asked(executor: Executor, tmp_path: Path) -> None:
    asked = tmp_path / "asked"

    def ask(text: str) -> bool:
        asked.touch()
        return True

    monitor = Monitor("stdout.txt", ship(ask), every_s=60.0)
    result = run(executor, *(shell(f"t{n}", "echo 1", monitors=(monitor,)) for n in range(50)))
    assert {one.outcome for one in result.results.values()} == {"finished"}
    assert not asked.exists()


def lookouts(spool: Path) -> list[int]:
    """The processes that look at files for monitors of this spool."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = folder.joinpath("cmdline").read_bytes().split(b"\0")
            if any(b"lookout.main" in word for word in words) and os.fsencode(spool) in b" ".join(words):
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("kind", ["local"], indirect=True)
def test_a_lookout_ends_with_its_runner_however_that_ends(tmp_path: Path, kind: str) -> None:
    spool, asked = tmp_path / "spool", tmp_path / "asked"

    def hangs(text: str) -> None:
        with asked.open("a") as file:
            file.write("x")
        time.sleep(308)

    with make(kind, spool) as executor:
        monitor = Monitor("stdout.txt", ship(hangs), every_s=0.1, timeout_s=600.0)
        executor.submit(Batch((shell("a", f"echo begun; sleep 309.{TAG}", monitors=(monitor,)),)))
        for tries in (1, 2):
            wait_until(
                lambda n=tries: not executor.poll(0.05) and asked.exists() and len(asked.read_text()) == n, 30
            )
            [lookout] = lookouts(spool)
            fields = Path(f"/proc/{lookout}/stat").read_text().rpartition(")")[2].split()
            if tries == 1:
                os.kill(int(fields[1]), signal.SIGKILL)
                wait_until(lambda pid=lookout: not executor.poll(0.05) and pid not in lookouts(spool), 30)
            else:
                executor.cancel(["a"])
                assert drain(executor).results["a"].outcome == "cancelled"
        wait_until(lambda: not lookouts(spool), 30)
    assert processes_of(spool) == []
    assert not running(f"sleep 309.{TAG}")
