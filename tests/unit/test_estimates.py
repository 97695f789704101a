"""What tasks take is remembered for so many kinds, the last ones."""

from __future__ import annotations

from grange.farm.estimates import Estimates


def test_what_was_measured_last_is_remembered() -> None:
    estimates = Estimates(kept=3)
    assert estimates.task_s("a") is None
    estimates.note("a", 10, 20.0)
    assert estimates.task_s("a") == 2.0
    estimates.note("a", 0, 5.0)
    assert estimates.task_s("a") == 2.0
    for kind in ("b", "c"):
        estimates.note(kind, 1, 1.0)
    estimates.note("a", 1, 4.0)
    assert estimates.task_s("a") == 3.0
    estimates.note("d", 1, 1.0)
    assert [kind in estimates for kind in "abcd"] == [True, False, True, True]
    assert len(estimates) == 3
