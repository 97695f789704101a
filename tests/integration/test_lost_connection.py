"""Connections that are lost, inherited by a fork, or wanted by several threads at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

import grange as gr
from grange.core.errors import CampaignBusy, DatabaseUnavailable
from grange.core.profile import Profile, open_profile


def square(n: int) -> int:
    return n * n


def backend(profile: Profile) -> int:
    return profile.connection.info.backend_pid


def end_session(profile: Profile) -> None:
    """As a restart of the server ends it, without disturbing anybody else."""
    further = profile.connect()
    with further.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (backend(profile),))
    further.close()


def test_a_profile_whose_session_was_ended_goes_on_with_another(profile: Profile) -> None:
    first = gr.Campaign("before", profile)
    first.map(square, n=range(3))
    first.run(progress=False)
    worker = profile.worker_id
    end_session(profile)
    again = gr.Campaign("after", profile)
    again.map(square, n=range(3, 9))
    again.run(progress=False)
    assert list(again.results()["result"]) == [n * n for n in range(3, 9)]
    assert profile.worker_id != worker
    assert list(first.results()["result"]) == [0, 1, 4]


def test_a_run_whose_session_was_ended_stops_and_the_next_goes_on(profile: Profile) -> None:
    campaign = gr.Campaign("cut", profile)
    campaign.map(square, n=range(3000))
    ended = False

    def cut(progress: gr.Progress) -> None:
        nonlocal ended
        if progress.done > 100 and not ended:
            ended = True
            end_session(profile)

    with pytest.raises(DatabaseUnavailable):
        campaign.run(progress=cut)
    done = campaign.run(progress=False)
    assert done.done == done.total == 3000
    assert done.failed == 0
    assert done.reused >= 100
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*), count(DISTINCT key) FROM process WHERE state = 'finished'")
        assert cursor.fetchone() == (3000, 3000)


def test_a_fork_is_told_to_open_the_profile_itself(profile: Profile) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with profile.transaction():
                os.write(writing, b"it took its parent's connection")
        except DatabaseUnavailable as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as said:
        assert "open it again here" in said.read()


def together(work: Callable[[int], None], count: int) -> list[BaseException]:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_take_turns_on_one_profile(profile: Profile) -> None:
    def work(number: int) -> None:
        campaign = gr.Campaign(f"thread {number}", profile)
        campaign.map(square, n=range(1000 * number, 1000 * number + 200))
        assert campaign.run(progress=False).done == 200

    assert together(work, 3) == []
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process WHERE state = 'finished' AND exit_status = 0")
        assert cursor.fetchone() == (600,)


def test_threads_that_see_at_once_that_a_session_has_ended_make_one_anew(profile: Profile) -> None:
    end_session(profile)
    barrier = threading.Barrier(8)
    renewed: list[object] = []
    profile.on_renewal.append(renewed.append)

    def look(_: int) -> None:
        barrier.wait()
        assert not profile.connection.closed

    assert together(look, 8) == []
    assert renewed == [profile.connection]


def test_one_campaign_is_not_run_by_two_threads(profile: Profile) -> None:
    campaign = gr.Campaign("one at a time", profile)
    campaign.map(square, n=range(5))
    refused: list[str] = []

    def listen(_: gr.Progress) -> None:
        with pytest.raises(CampaignBusy) as busy:
            gr.Campaign("one at a time", profile).retry()
        refused.append(str(busy.value))

    campaign.run(progress=listen)
    assert set(refused) == {"campaign one at a time is being run by this process: wait for its end"}


def test_scripts_that_begin_a_campaign_at_the_same_moment(profile: Profile) -> None:
    home = profile.home
    barrier = threading.Barrier(4)
    ids: set[int] = set()

    def begin(_: int) -> None:
        with open_profile(home) as own:
            barrier.wait()
            ids.add(gr.Campaign("race", own).id)

    assert together(begin, 4) == []
    assert len(ids) == 1
