"""How often and how long a call is made again."""

from __future__ import annotations

import threading
import time

import pytest

from grange.repository.errors import ObjectMissing, StoreUnavailable
from grange.repository.retries import Retries


def failing(times: int) -> list[StoreUnavailable]:
    return [StoreUnavailable(f"not now ({n})") for n in range(times)]


class Call:
    """Raises what it was given, one after the other, then returns 42."""

    def __init__(self, errors: list[StoreUnavailable]) -> None:
        self.errors = errors
        self.made = 0

    def __call__(self) -> int:
        self.made += 1
        if self.errors:
            raise self.errors.pop(0)
        return 42


def test_a_call_is_made_until_it_succeeds() -> None:
    told: list[tuple[str, float]] = []
    retries = Retries(first_pause_s=0.001, on_retry=lambda error, pause_s: told.append((str(error), pause_s)))
    call = Call(failing(3))
    assert retries.run(call) == 42
    assert call.made == 4
    assert (retries.retried, retries.given_up) == (3, 0)
    assert [said for said, _ in told] == [f"not now ({n})" for n in range(3)]


def test_it_gives_up_after_so_many_tries() -> None:
    retries = Retries(tries=3, first_pause_s=0.001)
    call = Call(failing(9))
    with pytest.raises(StoreUnavailable, match=r"not now \(2\); tried 3 times in 0\.\d s") as raised:
        retries.run(call)
    assert call.made == 3
    assert raised.value.tries == 3
    assert isinstance(raised.value.__cause__, StoreUnavailable)
    assert (retries.retried, retries.given_up) == (2, 1)


def test_it_gives_up_after_so_long() -> None:
    retries = Retries(tries=10_000, patience_s=0.2, first_pause_s=0.01, longest_pause_s=0.02)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="tried"):
        retries.run(Call(failing(10_000)))
    assert 0.15 < time.monotonic() - began < 2


def test_a_single_try_says_nothing_of_tries() -> None:
    with pytest.raises(StoreUnavailable) as raised:
        Retries(tries=1).run(Call(failing(1)))
    assert str(raised.value) == "not now (0)"


def test_what_is_permanent_ends_at_once() -> None:
    retries = Retries()

    def missing() -> None:
        raise ObjectMissing("a", "the store")

    with pytest.raises(ObjectMissing):
        retries.run(missing)
    assert (retries.retried, retries.given_up) == (0, 0)


def test_what_somebody_further_in_has_given_up_is_not_tried_again() -> None:
    inner = Retries(tries=2, first_pause_s=0.001)
    outer = Retries(first_pause_s=0.001)
    call = Call(failing(9))
    with pytest.raises(StoreUnavailable):
        outer.run(lambda: inner.run(call))
    assert call.made == 2
    assert outer.retried == 0


def test_after_progress_the_count_begins_anew() -> None:
    effort = Retries(tries=3, first_pause_s=0.001).begin()
    for _ in range(5):
        effort.failed(StoreUnavailable("x"))
        effort.failed(StoreUnavailable("x"))
        effort.progressed()
    effort.failed(StoreUnavailable("x"))
    effort.failed(StoreUnavailable("x"))
    with pytest.raises(StoreUnavailable):
        effort.failed(StoreUnavailable("x"))


def test_pauses_grow_up_to_a_bound_and_differ() -> None:
    retries = Retries(first_pause_s=1.0, longest_pause_s=10.0)
    for failures, longest in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (1000, 10)):
        pauses = [retries._pause(failures) for _ in range(300)]
        assert 0 <= min(pauses) < longest * 0.1
        assert longest * 0.9 < max(pauses) <= longest


def test_threads_are_counted_each() -> None:
    retries = Retries(first_pause_s=0.0001)
    threads = [
        threading.Thread(target=lambda: [retries.run(Call(failing(2))) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert retries.retried == 8 * 50 * 2
