"""When a computer may be connected to again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.farm.backoff import Backoff, pauses, wait_s
from grange.farm.errors import AuthenticationRefused, HostKeyRefused, TransportUnavailable

PLAIN = Backoff(interval_s=10, base_s=20, jitter=0.25, failures=5, longest_s=600)
AWAY = TransportUnavailable("there", "no answer")


def test_the_first_connection_waits_for_nothing() -> None:
    assert wait_s(PLAIN, 0, None, 0.5) == 0


@pytest.mark.parametrize(("since_s", "wait"), [(0, 10), (4, 6), (10, 0), (1e9, 0)])
def test_connections_keep_their_interval(since_s: float, wait: float) -> None:
    assert wait_s(PLAIN, 0, since_s, 0.5) == wait


def test_waits_double_with_each_failure() -> None:
    assert [wait_s(PLAIN, failures, 0, 0) for failures in range(1, 5)] == [20, 40, 80, 160]
    assert wait_s(PLAIN, 3, 30, 0) == 50


def test_luck_only_makes_longer() -> None:
    assert wait_s(PLAIN, 1, 0, 1.0) == 25


def test_no_wait_is_shorter_than_the_interval_or_longer_than_the_longest() -> None:
    slow = Backoff(interval_s=60, base_s=1)
    assert wait_s(slow, 1, 0, 0) == 60
    assert wait_s(PLAIN, 1000, 0, 0) == 600


@given(
    failures=st.integers(0, 10**6),
    since_s=st.floats(0, 1e7),
    luck=st.floats(0, 1),
    more=st.floats(0, 1e5),
)
def test_waiting_helps(failures: int, since_s: float, luck: float, more: float) -> None:
    now = wait_s(PLAIN, failures, since_s, luck)
    assert 0 <= now <= 750
    assert wait_s(PLAIN, failures, since_s + now, luck) < 1e-6
    assert wait_s(PLAIN, failures, since_s + more, luck) <= now
    assert wait_s(PLAIN, failures + 1, since_s, luck) >= now


def test_a_pause_comes_after_some_failures_or_at_once_where_a_person_has_to_act() -> None:
    assert [pauses(PLAIN, failures, AWAY) for failures in range(1, 7)] == [False] * 4 + [True] * 2
    assert pauses(PLAIN, 1, AuthenticationRefused("there", "no key"))
    assert pauses(PLAIN, 1, HostKeyRefused("there", "not known"))
