"""Durations on the command line."""

from __future__ import annotations

import click
import pytest

from grange.cli.span import SPAN, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200), ("90m", 5400), ("90min", 5400), ("30s", 30), ("1h30m", 5400), ("1 h 30 min", 5400),
        ("1.5h", 5400), ("2D", 172_800), ("1-12:00:00", 129_600), ("12:00:00", 43_200), ("00:01:30", 90),
    ],
)  # fmt: skip
def test_a_duration(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "2 weeks", "h", "1:30", "-2h", "0s", "0.2s", "2h?", "1-12"])
def test_what_is_none(text: str) -> None:
    assert seconds_of(text) is None
    with pytest.raises(click.BadParameter, match="expected 2h, 90m"):
        SPAN.convert(text, None, None)
