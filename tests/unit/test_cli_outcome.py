from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.cli.outcome import outcome, plain_bar, plain_line, shares
from grange.core.overview import OUTCOMES


@pytest.mark.parametrize(
    ("state", "exit_status", "text"),
    [("finished", 0, "finished"), ("finished", 301, "failed 301"), ("excepted", None, "excepted"),
     ("created", None, "created")],
)  # fmt: skip
def test_outcome(state: str, exit_status: int | None, text: str) -> None:
    assert outcome(state, exit_status).text == text


@given(st.dictionaries(st.sampled_from(OUTCOMES), st.integers(0, 10**7)), st.integers(10, 80))
def test_the_parts_of_a_bar_fill_it(outcomes: dict[str, int], width: int) -> None:
    parts = dict(shares(outcomes, width))
    present = {name for name, count in outcomes.items() if count}
    assert set(parts) == present
    assert sum(parts.values()) == (width if present else 0)
    assert all(length >= 1 for length in parts.values())


def test_bar_and_line() -> None:
    outcomes = {"ok": 2098, "failed": 2, "killed": 0}
    assert plain_line(outcomes) == "2,098 ok · 2 failed"
    assert plain_bar(outcomes, 10) == "█████████▓"
