"""Waiting for a store ends early when nobody wants any more what is waited for."""

from __future__ import annotations

import threading
import time

import pytest

from grange.repository.errors import StoreUnavailable
from grange.repository.halt import Halt, pause
from grange.repository.retries import Retries
from grange.repository.team import Team


def unavailable() -> None:
    raise StoreUnavailable("nobody listens there")


def interrupted(retries: Retries) -> None:
    with Team(4) as team:
        for _ in range(8):
            team.start(lambda: retries.run(unavailable))
        time.sleep(0.2)
        raise KeyboardInterrupt


def test_a_pause_lasts_as_long_as_it_should_where_nobody_calls() -> None:
    began = time.monotonic()
    assert pause(0.15)
    with Halt().reaching():
        assert pause(0.15)
    assert 0.3 <= time.monotonic() - began < 5


def test_what_fails_is_not_tried_again_once_it_is_called() -> None:
    halt = Halt()
    retries = Retries(first_pause_s=60, longest_pause_s=60, patience_s=600)
    timer = threading.Timer(0.2, halt.call)
    timer.start()
    began = time.monotonic()
    with halt.reaching(), pytest.raises(StoreUnavailable):
        retries.run(unavailable)
    timer.join()
    assert time.monotonic() - began < 10


def test_it_reaches_no_further_than_its_block() -> None:
    halt = Halt()
    halt.call()
    with halt.reaching():
        assert not pause(0)
    assert pause(0)


def test_a_team_that_nobody_waits_for_stops_trying() -> None:
    """Ctrl-C, say, while its threads wait for a server that is not there."""
    retries = Retries(tries=10**6, first_pause_s=60, longest_pause_s=60, patience_s=600)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted(retries)
    assert time.monotonic() - began < 10


def test_a_halt_reaches_teams_and_their_teams() -> None:
    retries = Retries(tries=10**6, first_pause_s=60, longest_pause_s=60, patience_s=600)

    def inner() -> None:
        with Team(2) as team:
            team.start(lambda: retries.run(unavailable)).result()

    halt = Halt()
    timer = threading.Timer(0.2, halt.call)
    timer.start()
    began = time.monotonic()
    with halt.reaching(), Team(2) as team, pytest.raises(StoreUnavailable):
        team.start(inner).result()
    timer.join()
    assert time.monotonic() - began < 10
