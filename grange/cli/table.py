"""Tables that fit the terminal. In a pipe nothing is cut, so that what follows sees whole values.

Written here because importing a library for it takes longer than drawing the table.
"""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import click

from grange.summary import clipped

_GAP = "  "
#: A column that gives way is not made narrower than this.
_NARROWEST = 8
#: Of a value in a pipe; longer ones are whole in --json.
_WIDEST = 400


@dataclass(frozen=True, slots=True)
class Column:
    """One column: flexible ones are cut when the terminal is narrow, then optional ones left out."""

    name: str
    right: bool = False
    flexible: bool = False
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A text with a colour."""

    text: str
    color: str | None = None


def terminal_width() -> int | None:
    """The columns of the terminal; None in a pipe, unless COLUMNS says how many to use."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size((80, 24)).columns
    return None


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str | Cell]], indent: str = "") -> None:
    """Print rows below the names of their columns; columns that are empty throughout are left out."""
    width = terminal_width()
    cells = [[_cell(value, width) for value in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i].text for row in cells)]
    kept, widths = _layout(columns, cells, kept, None if width is None else width - len(indent))
    head = [_padded(columns[i].name, widths[i], columns[i].right) for i in kept]
    click.secho((indent + _GAP.join(head)).rstrip(), bold=True)
    for row in cells:
        click.echo((indent + _GAP.join(_styled(row[i], widths[i], columns[i].right) for i in kept)).rstrip())


def print_fields(pairs: Iterable[tuple[str, str | Cell]], indent: str = "") -> None:
    """Print names and values, a line each; those without a value are left out."""
    shown = [(name, value if isinstance(value, Cell) else Cell(value)) for name, value in pairs]
    shown = [(name, value) for name, value in shown if value.text]
    longest = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        lines = value.text.splitlines() or [""]
        click.echo(
            indent + click.style(name.ljust(longest), dim=True) + _GAP + click.style(lines[0], value.color)
        )
        for line in lines[1:]:
            click.echo(indent + " " * longest + _GAP + click.style(line, value.color))


def display_width(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian letters two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _cell(value: str | Cell, width: int | None) -> Cell:
    text, color = (value.text, value.color) if isinstance(value, Cell) else (value, None)
    return Cell(clipped(text, _WIDEST if width is None else max(width, _NARROWEST)), color)


def _layout(
    columns: Sequence[Column], cells: list[list[Cell]], kept: list[int], width: int | None
) -> tuple[list[int], dict[int, int]]:
    """Which columns are shown, and how wide each is."""
    widths = {
        i: max([len(columns[i].name), *(display_width(row[i].text) for row in cells)])
        for i in kept
    }  # fmt: skip
    if width is None:
        return kept, widths
    kept = list(kept)
    while True:
        excess = sum(widths[i] for i in kept) + len(_GAP) * (len(kept) - 1) - width
        if excess <= 0:
            return kept, widths
        widest = max((i for i in kept if columns[i].flexible), key=lambda i: widths[i], default=None)
        if widest is not None and widths[widest] > _NARROWEST:
            widths[widest] = max(widths[widest] - 1, _NARROWEST)
            continue
        leaving = next((i for i in reversed(kept) if columns[i].optional), None)
        if leaving is None:
            return kept, widths
        kept.remove(leaving)


def _styled(cell: Cell, width: int, right: bool) -> str:
    return (
        click.style(_padded(cell.text, width, right), fg=cell.color)
        if cell.color
        else _padded(cell.text, width, right)
    )


def _padded(text: str, width: int, right: bool) -> str:
    if display_width(text) > width:
        while display_width(text) > width - 1:
            text = text[:-1]
        text += "…"
    blanks = " " * (width - display_width(text))
    return blanks + text if right else text + blanks
