"""How processes stand, in a word with a colour, and many of them in a bar."""

from __future__ import annotations

from collections.abc import Mapping

import click

from grange.cli.table import Cell
from grange.core.overview import OUTCOMES

COLORS = {
    "ok": "green",
    "failed": "red",
    "excepted": "red",
    "killed": "red",
    "running": "yellow",
    "waiting": "cyan",
    "created": None,
}

_BLOCKS = {
    "ok": "█",
    "failed": "▓",
    "excepted": "▓",
    "killed": "▓",
    "running": "▒",
    "waiting": "░",
    "created": "░",
}


def outcome(state: str, exit_status: int | None) -> Cell:
    """The state of a process; "failed" with the exit status where it finished with one."""
    if state == "finished" and exit_status:
        return Cell(f"failed {exit_status}", COLORS["failed"])
    return Cell(state, COLORS["ok" if state == "finished" else state])


def standing(
    state: str, exit_status: int | None, *, paused: bool = False, to_kill: bool = False, follows: bool = False
) -> Cell:
    """The same, and what is to become of a process that has not ended.

    follows: it waits for an equal process to end.
    """
    shown = outcome(state, exit_status)
    if state not in ("created", "waiting", "running"):
        return shown
    if to_kill:
        return Cell(f"{state}, to be killed", COLORS["killed"])
    if paused:
        return Cell(f"{state}, paused", "magenta")
    return Cell(f"{state} for an equal one", shown.color) if follows else shown


def outcomes_line(outcomes: Mapping[str, int]) -> str:
    """ "2,098 ok · 2 failed": what there is of each outcome."""
    return " · ".join(
        click.style(f"{outcomes[name]:,} {name}", fg=COLORS[name]) for name in OUTCOMES if outcomes.get(name)
    )


def bar(outcomes: Mapping[str, int], width: int) -> str:
    """A bar of the shares of the outcomes; what occurs at all is given at least one block."""
    return "".join(
        click.style(_BLOCKS[name] * length, fg=COLORS[name]) for name, length in shares(outcomes, width)
    )


def shares(outcomes: Mapping[str, int], width: int) -> list[tuple[str, int]]:
    """The widths of the parts of a bar, in order; they add up to the width."""
    present = [(name, outcomes[name]) for name in OUTCOMES if outcomes.get(name)]
    total = sum(count for _, count in present)
    if not total:
        return []
    # one block each; the others by where the running sum falls, so that rounding never adds up
    spare, seen, begin = width - len(present), 0, 0
    parts = []
    for name, count in present:
        end = round(spare * (seen + count) / total)
        parts.append((name, 1 + end - begin))
        seen, begin = seen + count, end
    return parts


def plain_line(outcomes: Mapping[str, int]) -> str:
    """outcomes_line without colours: for a cell of a table."""
    return " · ".join(f"{outcomes[name]:,} {name}" for name in OUTCOMES if outcomes.get(name))


def plain_bar(outcomes: Mapping[str, int], width: int) -> str:
    """bar without colours: for a cell of a table."""
    return "".join(_BLOCKS[name] * length for name, length in shares(outcomes, width))
