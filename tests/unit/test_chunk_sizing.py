"""Chunks bury their start-up cost, and shrink towards the end of the queue."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.farm.chunk import (
    CLUSTER,
    LONGEST_FLUSH_S,
    SHORTEST_FLUSH_S,
    Estimate,
    Sizing,
    can_wait,
    chunk_size,
    chunk_sizes,
    flush_interval_s,
)

SIZING = Sizing(target_s=1.0, start_s=0.005, first=8, most=4000)

queued = st.integers(0, 100_000)
slots = st.integers(1, 500)
durations = st.none() | st.floats(0, 1e5)
sizings = st.sampled_from([SIZING, CLUSTER, Sizing()])


@settings(deadline=None, max_examples=60)
@given(queued, slots, durations, sizings)
def test_a_chunk_holds_some_of_the_queue(
    queued: int, slots: int, task_s: float | None, sizing: Sizing
) -> None:
    size = chunk_size(queued, slots, task_s, sizing)
    assert 0 <= size <= min(queued, sizing.most)
    assert (size == 0) == (queued == 0)


@settings(deadline=None, max_examples=60)
@given(queued, slots, durations, sizings, queued)
def test_a_batch_is_cut_without_rest(
    queued: int, slots: int, task_s: float | None, sizing: Sizing, under_way: int
) -> None:
    sizes = chunk_sizes(queued, slots, task_s, sizing, under_way)
    assert sum(sizes) == queued
    assert all(0 < size <= sizing.most for size in sizes)


@pytest.mark.parametrize(
    ("queued", "task_s", "expected"),
    [
        (2000, 0.05, [125] * 16),  # five seconds are worth a chunk: one round of all slots, not twenty chunks
        (3300, 0.05, [104] * 31 + [76]),  # two rounds
        (4000, 0.001, [1000] * 4),  # fewer than slots: as many as are worth it
        (160, 0.05, [40] * 4),  # few anyway: as many at once as bury their start
        (30, 3600.0, [1] * 30),
    ],
)
def test_what_is_too_little_for_guesses_is_cut_evenly(
    queued: int, task_s: float, expected: list[int]
) -> None:
    assert chunk_sizes(queued, 16, task_s, CLUSTER) == expected


def test_chunks_are_larger_while_much_is_under_way() -> None:
    assert chunk_sizes(2000, 16, 1.0, CLUSTER, under_way=8000)[0] == 180
    assert chunk_sizes(2000, 16, 1.0, CLUSTER)[0] == 63


def test_chunks_do_not_shrink_towards_the_end_of_a_queue_that_goes_on() -> None:
    assert chunk_sizes(3200, 16, 1.0, CLUSTER, more=10_000) == [100] * 32
    assert chunk_sizes(3200, 16, 1.0, CLUSTER)[-1] < 10


def test_a_few_tasks_wait_for_more_while_much_is_under_way() -> None:
    assert can_wait(100, 1000, 16, 1.0, CLUSTER)
    assert not can_wait(400, 1000, 16, 1.0, CLUSTER)  # they are enough for chunks of their own
    assert not can_wait(100, 1000, 16, 0.1, CLUSTER)  # the slots would soon be idle


def test_results_of_longer_tasks_are_kept_back_longer() -> None:
    first = flush_interval_s(None)
    assert first < flush_interval_s(0.001) == SHORTEST_FLUSH_S < flush_interval_s(0.5) < LONGEST_FLUSH_S
    assert flush_interval_s(3600.0) == LONGEST_FLUSH_S


@pytest.mark.parametrize(
    ("queued", "slots", "task_s", "expected"),
    [
        (10_000, 2, None, 8),  # nothing is known: something soon
        (4, 2, None, 1),  # and never more than half of a slot's share
        (10_000, 2, 0.001, 1000),  # a second of work
        (10_000, 2, 0.01, 100),
        (10_000, 2, 10.0, 1),  # long tasks go one by one
        (10_000_000, 2, 1e-6, 4000),  # bounded all the same
        (40, 2, 0.02, 10),  # towards the end: half of a slot's share
        (8, 2, 0.02, 3),  # but not so short that starting them costs more than a tenth
        (1, 2, 0.001, 1),
    ],
)
def test_sizes(queued: int, slots: int, task_s: float | None, expected: int) -> None:
    assert chunk_size(queued, slots, task_s, SIZING) == expected


def test_chunks_shrink_towards_the_end() -> None:
    left, sizes = 5000, []
    while left:
        sizes.append(chunk_size(left, 2, 0.001, SIZING))
        left -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 50


@settings(deadline=None)
@given(st.integers(2, 64), st.integers(100, 3000), st.floats(0.002, 0.5))
def test_slots_end_together(slots: int, count: int, task_s: float) -> None:
    """Greedy slots, equal tasks: the last ends less than the shortest chunk after the first."""
    ends = [0.0] * slots
    left = count
    while left:
        size = chunk_size(left, slots, task_s, SIZING)
        left -= size
        ends.sort()
        ends[0] += size * task_s
    assert max(ends) - min(ends) <= 0.05 + task_s + 1e-9


def test_a_batch_that_nothing_is_known_of() -> None:
    sizes = chunk_sizes(5000, 2, None, SIZING)
    assert sizes[:2] == [8, 8]
    assert len(sizes) < 40


def test_estimates_follow_what_is_measured() -> None:
    estimate = Estimate().after(10, 1.0)
    assert estimate.task_s == pytest.approx(0.1)
    assert estimate.after(0, 5.0) == estimate
    later = estimate.after(10, 3.0)
    assert later.task_s == pytest.approx(0.2)
    assert later.after(10, 3.0).task_s == pytest.approx(0.25)
