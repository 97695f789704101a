"""The progress bar of a run: how far, how fast, how long yet, and what a person should know meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from grange.core.engine import Progress

#: Seconds between lines where the output is no terminal.
LINE_EVERY_S = 10.0
#: The pace is that of so many seconds of late, or of so many times what passes between two deliveries.
PACE_S, PACE_GAPS = 60.0, 3.0
#: What comes within so many seconds counts as one delivery.
_TOGETHER_S = 0.25
#: A pause that is longer than all that was seen before tells nothing yet, but for one of so many seconds.
_SHORT_S = 2.0
#: Without any result, how long it has been is said from so many seconds on.
_LONG_S = 5.0


class Pace:
    """How fast results come, of late.

    What a run finds done when it begins says nothing of it, nor do the first few, who waited for runners and
    workers to start: it counts from the first delivery on. Where nothing comes any more there is none.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=2000)

    def saw(self, now_s: float, computed: int) -> None:
        """So many were computed by now."""
        if not computed or (self._seen and self._seen[-1][1] == computed):
            return
        if len(self._seen) > 1 and now_s - self._seen[-1][0] < _TOGETHER_S:
            self._seen[-1] = (self._seen[-1][0], computed)
        else:
            self._seen.append((now_s, computed))

    def rate(self, now_s: float) -> float | None:
        """Results a second; None where it cannot be told."""
        seen = self._seen
        if len(seen) < 2:
            return None
        span_s = seen[-1][0] - seen[0][0]
        pause_s = now_s - seen[-1][0]
        window_s = max(PACE_S, PACE_GAPS * span_s / (len(seen) - 1))
        if pause_s > min(window_s, max(_SHORT_S, span_s)):
            return None
        since_s = now_s - window_s
        begun_s, before = next((one for one in reversed(seen) if one[0] < since_s), seen[0])
        return (seen[-1][1] - before) / (now_s - begun_s)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A live bar on standard error, with a note below it; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        lines = _Lines(title)
        yield lines.show
        lines.end()
        return
    from rich.console import Console, RenderableType
    from rich.markup import escape
    from rich.padding import Padding
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Noted(Bar):
        note = ""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield from super().get_renderables()
            if self.note:
                yield Padding(Text(self.note, style="dim"), (0, 0, 0, 2))

    console = Console(stderr=True)
    pace = Pace()
    with Noted(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[said]}"),
        console=console,
        refresh_per_second=8,
    ) as bar:
        console.show_cursor(True)  # who is killed could not bring it back
        task = bar.add_task(escape(title), total=None, said="starting")

        def show(progress: Progress) -> None:
            console.width = _width()
            said = "  ".join(filter(None, (_count(progress), escape(_said(progress, pace)))))
            bar.note = _note(progress)
            bar.update(task, total=progress.total or None, completed=progress.done, said=said)

        yield show


def _width() -> int:
    """The columns of the terminal, less those that ^C takes: else it breaks the line of the bar in two."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 80
    return max(columns - 3, 20)


def _ended(progress: Progress) -> bool:
    """How much there is to do is not known from the first moment on: what was left is taken in before."""
    return 0 < progress.total <= progress.done


def _count(progress: Progress) -> str:
    return f"{progress.done:,} of {progress.total:,}" if progress.total else ""


def _note(progress: Progress) -> str:
    return "" if _ended(progress) else progress.note


def _said(progress: Progress, pace: Pace) -> str:
    """How fast, how long yet, what of it came from the record or failed."""
    now_s = time.monotonic()
    pace.saw(now_s, progress.computed)
    parts = []
    if _ended(progress):
        if progress.computed:
            parts.append(_each_second(progress.rate))
        parts.append(f"in {duration(now_s - progress.started_at)}")
    elif rate := pace.rate(now_s):
        parts.append(_each_second(rate))
        parts.append(f"{_whole((progress.total - progress.done) / rate)} left")
    elif now_s - progress.started_at > _LONG_S:
        parts.append(f"for {duration(now_s - progress.started_at)}")
    if progress.reused:
        parts.append(f"{progress.reused:,} from the record")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    return ", ".join(parts)


def _each_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def _whole(seconds: float) -> str:
    """An estimate: without the tenths, which only flicker."""
    return f"{max(round(seconds), 1)} s" if seconds < 10 else duration(seconds)


def duration(seconds: float) -> str:
    """A duration as a person says it: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


class _Lines:
    """Progress as lines of text, for logs."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._pace = Pace()
        self._last: Progress | None = None
        self._next_s = time.monotonic() + LINE_EVERY_S

    def show(self, progress: Progress) -> None:
        self._last = progress
        self._pace.saw(time.monotonic(), progress.computed)
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_EVERY_S
            self._print(progress)

    def end(self) -> None:
        if self._last is not None and self._last.total:
            self._print(self._last)

    def _print(self, progress: Progress) -> None:
        said = ", ".join(filter(None, (_count(progress), _said(progress, self._pace), _note(progress))))
        print(f"{self._title}: {said}", file=sys.stderr, flush=True)  # noqa: T201
