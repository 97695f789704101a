"""The progress bar: what it says, and when it says nothing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import time

import pytest

from grange.core import progress_bar as module
from grange.core.engine import Progress
from grange.core.progress_bar import PACE_S, Pace, progress_bar


def pace(*seen: tuple[float, int]) -> Pace:
    made = Pace()
    for now_s, computed in seen:
        made.saw(now_s, computed)
    return made


class TestPace:
    def test_none_before_the_second_delivery(self) -> None:
        assert pace().rate(5.0) is None
        assert pace((1.0, 500)).rate(5.0) is None

    def test_what_was_there_at_the_beginning_does_not_count(self) -> None:
        assert pace((1.0, 500), (3.0, 520)).rate(3.0) == 10.0

    def test_what_comes_together_is_one_delivery(self) -> None:
        assert pace((1.0, 1), (1.1, 2), (1.2, 3)).rate(2.1) == pytest.approx(2 / 1.1)

    def test_the_first_few_tell_nothing_while_the_rest_is_waited_for(self) -> None:
        first = pace((2.0, 1), (2.5, 16))
        assert first.rate(3.0) == 15.0
        assert first.rate(10.0) is None

    def test_it_is_that_of_late(self) -> None:
        slow = [(float(n), n) for n in range(1, 200)]
        fast = [(float(n), 200 + 10 * (n - 199)) for n in range(200, 300)]
        assert pace(*slow, *fast).rate(299.0) == pytest.approx(10.0, rel=0.05)

    def test_none_when_nothing_comes_any_more(self) -> None:
        steady = pace(*((float(n), n) for n in range(1, 200)))
        assert steady.rate(200.0) == pytest.approx(1.0, rel=0.05)
        assert steady.rate(199.0 + PACE_S + 1) is None

    def test_deliveries_that_are_far_apart_have_one(self) -> None:
        assert pace((0.0, 10), (600.0, 20), (1200.0, 30)).rate(1200.0) == pytest.approx(1 / 60)


class Terminal:
    """A terminal of some columns, and what was written to it."""

    def __init__(self, columns: int) -> None:
        self.mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.file = os.fdopen(theirs, "w")

    def written(self) -> str:
        self.file.flush()
        os.set_blocking(self.mine, False)
        said = b""
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(self.mine, 65536):
                said += part
        return said.decode()


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, progress: Progress) -> list[str]:
    """The lines of the bar on a terminal of so many columns, as they are drawn last."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal = Terminal(columns)
    monkeypatch.setattr("sys.stderr", terminal.file)
    with progress_bar("pairs") as show:
        show(progress)
    drawn = terminal.written().rsplit("\x1b[2K", 1)[-1]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.replace("\r", ""))
    return [line.rstrip() for line in plain.split("\n") if line.strip()]


NOTE = "lumi: nothing is started before 12:00, after 1 failure: sbatch: invalid partition specified: nowhere"


def test_the_note_has_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 60, Progress(total=200, done=20, note=NOTE))
    assert all(len(line) <= 57 for line in lines)
    said = " ".join(" ".join(lines).split())
    assert "20 of 200" in said
    assert NOTE in said


def test_without_results_it_tells_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = shown(monkeypatch, 100, Progress(total=10, started_at=time.monotonic() - 30))
    assert "0 of 10  for 30 s" in line


def test_no_note_when_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = shown(monkeypatch, 100, Progress(total=10, done=10, note=NOTE))
    assert "10 of 10" in line


def test_lines_for_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    with progress_bar("pairs") as show:
        show(Progress(total=10, done=3, reused=3, note="lumi: 16 cores"))
    assert log.getvalue().splitlines()[0] == "pairs: 3 of 10, 3 from the record, lumi: 16 cores"


def test_what_it_waits_for_before_it_knows_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    early = Progress(note="waiting for the store", started_at=time.monotonic() - 30)
    said = " ".join(shown(monkeypatch, 100, early))
    assert "for 30 s" in said
    assert "waiting for the store" in said
    assert "0 of 0" not in said
