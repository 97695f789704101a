"""The states of a process, by properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.errors import TransitionInvalid
from grange.core.transition import (
    ENDED,
    Event,
    Excepted,
    Finished,
    Killed,
    ProcessStatus,
    Requeued,
    Started,
    State,
    Submitted,
    step,
)

attempts = st.integers(1, 4)
events = st.one_of(
    st.just(Submitted()),
    st.builds(Started, attempts),
    st.builds(Requeued, attempts),
    st.builds(Finished, attempts, st.integers(0, 999), st.text()),
    st.builds(Excepted, attempts, st.text()),
    st.builds(Killed, st.text()),
)


def check(status: ProcessStatus) -> None:
    """What holds of every status, whatever led to it."""
    assert (status.exit_status is not None) == (status.state is State.FINISHED)
    assert status.attempt >= (0 if status.state in {State.CREATED, State.KILLED} else 1)


def walk(history: list[Event]) -> list[ProcessStatus]:
    """The statuses along a history, leaving out what the state refuses."""
    statuses = [ProcessStatus()]
    for event in history:
        try:
            statuses.append(step(statuses[-1], event))
        except TransitionInvalid:
            continue
    return statuses


@given(st.lists(events, max_size=20))
def test_every_history_keeps_the_invariants(history: list[Event]) -> None:
    for status in walk(history):
        check(status)


@given(st.lists(events, max_size=20))
def test_an_end_is_final(history: list[Event]) -> None:
    statuses = walk(history)
    ends = [status for status in statuses if status.state in ENDED]
    assert all(status == ends[0] for status in ends)


@given(st.lists(events, max_size=20))
def test_attempts_never_go_back(history: list[Event]) -> None:
    numbers = [status.attempt for status in walk(history)]
    assert numbers == sorted(numbers)


@given(st.lists(events, max_size=20), events)
def test_the_same_news_twice_changes_nothing_more(history: list[Event], event: Event) -> None:
    status = walk(history)[-1]
    try:
        once = step(status, event)
    except TransitionInvalid:
        return
    if isinstance(event, Submitted):
        with pytest.raises(TransitionInvalid):
            step(once, event)
    else:
        assert step(once, event) == once


def test_the_straight_way() -> None:
    status = step(ProcessStatus(), Submitted())
    assert status == ProcessStatus(State.WAITING, attempt=1)
    status = step(status, Started(1))
    assert status == ProcessStatus(State.RUNNING, attempt=1)
    assert step(status, Finished(1, 0)) == ProcessStatus(State.FINISHED, 1, exit_status=0)


def test_results_of_a_lost_attempt_are_late() -> None:
    status = step(step(step(ProcessStatus(), Submitted()), Requeued(1)), Submitted())
    assert status == ProcessStatus(State.WAITING, attempt=2)
    assert step(status, Finished(1, 0)) == status
    assert step(status, Finished(2, 0)).state is State.FINISHED


def test_news_from_the_future_is_refused() -> None:
    with pytest.raises(TransitionInvalid, match="attempt 2"):
        step(step(ProcessStatus(), Submitted()), Finished(2, 0))
