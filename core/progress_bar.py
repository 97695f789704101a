"""The progress bar of a run: how far, how fast, how long yet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from grange.core.engine import Progress

#: Seconds between lines where the output is no terminal.
LINE_EVERY_S = 10.0


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A live bar on standard error; where that is no terminal, a line now and then."""
    if not sys.stderr.isatty():
        lines = _Lines(title)
        yield lines.show
        lines.end()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(
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
            said = f"{progress.done:,} of {progress.total:,}  {escape(_said(progress))}"
            bar.update(task, total=progress.total, completed=progress.done, said=said)

        yield show


def _width() -> int:
    """The columns of the terminal, less those that ^C takes: else it breaks the line of the bar in two."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 80
    return max(columns - 3, 20)


def _said(progress: Progress) -> str:
    parts = []
    if progress.computed:
        parts.append(f"{progress.rate:,.0f}/s" if progress.rate >= 10 else f"{progress.rate:.1f}/s")
        if progress.done < progress.total and _is_telling(progress):
            parts.append(f"{_whole((progress.total - progress.done) / progress.rate)} left")
    if progress.done >= progress.total:
        parts.append(f"in {duration(time.monotonic() - progress.started_at)}")
    if progress.reused:
        parts.append(f"{progress.reused:,} from the record")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.note and progress.done < progress.total:
        parts.append(progress.note)
    return ", ".join(parts)


def _is_telling(progress: Progress) -> bool:
    """Whether the rate is more than that of the first few, who wait for the runners to start."""
    return progress.computed * 20 >= progress.total or time.monotonic() - progress.started_at > 5


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
        self._last: Progress | None = None
        self._next_s = time.monotonic() + LINE_EVERY_S

    def show(self, progress: Progress) -> None:
        self._last = progress
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + LINE_EVERY_S
            self._print(progress)

    def end(self) -> None:
        if self._last is not None and self._last.total:
            self._print(self._last)

    def _print(self, progress: Progress) -> None:
        said = _said(progress)
        print(  # noqa: T201
            f"{self._title}: {progress.done:,} of {progress.total:,}" + (f", {said}" if said else ""),
            file=sys.stderr,
            flush=True,
        )
