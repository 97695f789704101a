"""Which processes are set aside because workers die of their code."""

from __future__ import annotations

import signal

from grange.core.blame import Blame


def test_the_third_death_is_one_too_many() -> None:
    blame = Blame()
    for status in (7, -signal.SIGSEGV):
        assert not blame.is_too_much(17, status)
        assert not blame.is_too_much(18, status)
    assert blame.is_too_much(17, 1)
    assert not blame.is_too_much(17, 1)  # played again: a clean slate
    assert blame.is_too_much(18, 1)


def test_kills_count_half() -> None:
    blame = Blame()
    assert [blame.is_too_much(17, -signal.SIGKILL) for _ in range(6)] == [False] * 5 + [True]
