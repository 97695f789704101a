"""Durations on the command line: 2h, 90m, 1h30m, 1-12:00:00."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_PART = r"(\d+(?:\.\d+)?)\s*(min|[smhd])"


if TYPE_CHECKING:
    _Type = click.ParamType[int]
else:  # click before 8.2 does not say of what
    _Type = click.ParamType


class Span(_Type):
    """A duration in whole seconds, 1 or more.

    A number alone is refused: it is minutes to Slurm, and seconds to others.
    """

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The seconds of a text."""
        if isinstance(value, int):
            return value
        seconds = seconds_of(str(value))
        if seconds is None:
            self.fail(f"{value!r}: expected 2h, 90m, 30s, 1h30m, 1-12:00:00 or 12:00:00", param, ctx)
        return seconds


def seconds_of(text: str) -> int | None:
    """The seconds of a duration; None for what is none."""
    text = text.strip().lower()
    if re.fullmatch(rf"({_PART}\s*)+", text):
        seconds = round(sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, text)))
    elif re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text):
        from grange.farm.slurm import parse_time

        seconds = parse_time(text) or 0
    else:
        return None
    return seconds if seconds >= 1 else None


SPAN = Span()
