"""A progress bar for what is counted, or measured in bytes: how far, how fast, how long yet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from grange.cli import words

#: Seconds between lines where standard error is no terminal; what ends sooner says nothing there.
LINE_EVERY_S = 10.0

#: (done, of how many, what a person should know meanwhile)
Show = Callable[[int, int, str], None]


@contextmanager
def count_bar(title: str, shown: Callable[[int], str] = words.number) -> Iterator[Show]:
    """A live bar on standard error; where that is no terminal, a line now and then.

    shown: how a count reads: words.number, or words.size where bytes are counted.

        with count_bar("removing", words.size) as show:
            show(done_bytes, all_bytes, "packs/ab/…")
    """
    started_s = time.monotonic()
    if not sys.stderr.isatty():
        next_s = started_s + LINE_EVERY_S

        def line(done: int, total: int, note: str = "") -> None:
            nonlocal next_s
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + LINE_EVERY_S
                click.echo(f"{title}: {_said(done, total, shown, started_s)}  {note}".rstrip(), err=True)

        yield line
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True),
        refresh_per_second=8,
    ) as bar:
        bar.console.show_cursor(True)  # who is killed could not bring it back
        task = bar.add_task(escape(title), total=None, said="")

        def show(done: int, total: int, note: str = "") -> None:
            said = escape(f"{_said(done, total, shown, started_s)}  {note}".rstrip())
            bar.update(task, total=total, completed=done, said=said)

        yield show


def _said(done: int, total: int, shown: Callable[[int], str], started_s: float) -> str:
    passed_s = time.monotonic() - started_s
    said = f"{shown(done)} of {shown(total)}"
    if done >= total:
        return f"{said}, in {words.duration(passed_s)}"
    if done and passed_s > 1:
        left_s = passed_s * (total - done) / done
        return f"{said}, {words.duration(max(1, round(left_s)))} left"
    return said
