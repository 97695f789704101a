"""When a process is to end: signals, a supervisor that is gone, and whoever asks twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

CODE = """
import sys
from grange.core.stopping import Stopping
lifeline = int(sys.argv[1]) if len(sys.argv) > 1 else None
stopping = Stopping(lifeline)
assert not stopping()
print("begun", flush=True)
assert stopping.wait(60.0)
assert stopping() and stopping.wait(60.0)
print("asked", flush=True)
if lifeline is None and sys.stdin.readline():
    print("ends", flush=True)
"""


def started(*arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    assert line(process) == "begun"
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with started() as process:
        process.send_signal(number)
        assert line(process) == "asked"
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "ends"
        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_one_ends_it_at_once(number: signal.Signals) -> None:
    with started() as process:
        process.send_signal(number)
        assert line(process) == "asked"
        process.send_signal(number)
        assert process.wait(30) == -number


def test_it_ends_when_the_other_end_of_its_lifeline_is_gone() -> None:
    reading, writing = os.pipe()
    with started(str(reading), pass_fds=(reading,)) as process:
        os.close(reading)
        assert process.poll() is None
        os.close(writing)
        assert line(process) == "asked"
        assert process.wait(30) == 0
