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
#: A column that gives way is not made narrower than the first, and at the last than the second.
_NARROW, _NARROWEST = 16, 8
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
    head = [_styled(Cell(columns[i].name), widths[i], columns[i].right) for i in kept]
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
    """Which columns are shown, and how wide each is.

    Too wide: flexible columns become narrower, then optional ones leave, the last first, and only then
    do flexible ones become narrower still.
    """
    natural = {
        i: max(display_width(columns[i].name), *(display_width(row[i].text) for row in cells)) for i in kept
    }
    if width is None:
        return kept, natural
    optional = [i for i in kept if columns[i].optional]
    while True:
        for least in (_NARROW, _NARROWEST) if not optional else (_NARROW,):
            widths = _squeezed(
                columns, {i: natural[i] for i in kept}, width - len(_GAP) * (len(kept) - 1), least
            )
            if sum(widths.values()) + len(_GAP) * (len(kept) - 1) <= width:
                return kept, widths
        if not optional:
            return kept, widths
        leaving = optional.pop()
        kept = [i for i in kept if i != leaving]


def _squeezed(columns: Sequence[Column], widths: dict[int, int], room: int, least: int) -> dict[int, int]:
    """The widths with the widest flexible columns made narrower until all fit, or none can give way."""
    flexible = [i for i in widths if columns[i].flexible]
    while sum(widths.values()) > room:
        widest = max(flexible, key=lambda i: widths[i], default=None)
        if widest is None or widths[widest] <= least:
            break
        widths[widest] -= 1
    return widths


def _styled(cell: Cell, width: int, right: bool) -> str:
    text = _fitted(cell.text, width)
    shown = click.style(text, fg=cell.color) if cell.color else text
    # colour ends with the text, so that blanks at the end of a line can be seen and taken off
    blanks = " " * (width - display_width(text))
    return blanks + shown if right else shown + blanks


def _fitted(text: str, width: int) -> str:
    """The text, cut with a mark where it is wider than the width."""
    if display_width(text) <= width:
        return text
    while display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"
