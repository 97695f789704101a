"""The lock of a profile: who works is waited for, who would begin is refused, in whatever order they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import grange as gr
from grange.core import profile_lock
from grange.core.errors import ProfileLocked
from grange.core.profile import Profile, open_profile
from grange.core.profile_lock import Share, wait_until_idle, working


@pytest.fixture
def other(profile: Profile) -> Iterator[Profile]:
    """The same profile, opened by somebody else."""
    with open_profile(profile.home) as opened:
        yield opened


def lock(profile: Profile, reason: str = "a new disk") -> None:
    with profile.transaction() as cursor:
        profile_lock.lock(cursor, reason, "ada@barn")


def unlock(profile: Profile) -> None:
    with profile.transaction() as cursor:
        profile_lock.unlock(cursor)


def end_session(profile: Profile) -> None:
    """As a restart of the server ends it."""
    further = profile.connect()
    with further.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (profile.connection.info.backend_pid,))
    further.close()


def test_nobody_begins_to_work_while_it_is_locked(profile: Profile, other: Profile) -> None:
    lock(profile)
    with pytest.raises(ProfileLocked, match=r"locked by ada@barn since 20.* UTC: a new disk"):
        with working(other):
            pytest.fail("it worked")
    share = Share(other)
    found = share.take()
    assert found is not None
    assert found.reason == "a new disk"
    assert wait_until_idle(profile, 0.0) == []  # who was refused holds nothing
    unlock(profile)
    assert share.take() is None
    with working(other):
        pass


def test_it_is_locked_once(profile: Profile, other: Profile) -> None:
    lock(profile)
    with pytest.raises(ProfileLocked, match="a new disk"):
        lock(other, "something else")
    with profile.transaction() as cursor:
        found = profile_lock.find(cursor)
        assert found is not None
        assert found.reason == "a new disk"
        assert profile_lock.unlock(cursor) == found
        assert profile_lock.unlock(cursor) is None
        assert profile_lock.find(cursor) is None


def test_who_works_is_named_and_waited_for(profile: Profile, other: Profile) -> None:
    worker_id = other.worker_id
    assert worker_id
    at_work = threading.Event()
    told: list[str] = []

    def work() -> None:
        with working(other), working(other):  # a campaign within a run
            at_work.set()
            is_told.wait()

    is_told = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    at_work.wait()
    lock(profile)
    (left,) = wait_until_idle(profile, 0.0)
    assert str(left).startswith("process ")
    assert left.role == "client"

    def tell(who: object) -> None:
        told.append(str(who))
        is_told.set()

    assert wait_until_idle(profile, None, tell) == []
    assert len(told) == 1
    thread.join()


def test_a_share_is_let_go_when_somebody_locks(
    profile: Profile, other: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_lock, "LOOK_S", 0.0)
    share = Share(other)
    assert share.take() is None
    assert not share.is_wanted()
    lock(profile)
    assert share.is_wanted()
    assert len(wait_until_idle(profile, 0.0)) == 1
    share.let_go()
    assert wait_until_idle(profile, 0.0) == []


def test_a_share_outlives_its_session(profile: Profile, other: Profile) -> None:
    share = Share(other)
    assert share.take() is None
    end_session(other)
    assert not share.is_wanted()
    with profile.transaction() as cursor:
        assert len(profile_lock.at_work(cursor)) == 1
    end_session(other)
    lock(profile)
    assert share.is_wanted()  # also where a look was not due yet
    assert wait_until_idle(profile, 0.0) == []


def test_a_script_whose_session_was_lost_is_waited_for_all_the_same(profile: Profile, other: Profile) -> None:
    with working(other):
        end_session(other)
        lock(profile)
        with other.transaction() as cursor:  # it goes on
            cursor.execute("SELECT")
        assert len(wait_until_idle(profile, 0.0)) == 1
    assert wait_until_idle(profile, 0.0) == []
    assert other.on_renewal == []


def test_running_a_process_is_refused(profile: Profile, other: Profile) -> None:
    @gr.workflow
    def nothing() -> None:
        """Does nothing."""

    lock(profile)
    with pytest.raises(ProfileLocked, match="a new disk"):
        gr.run(nothing, profile=other, progress=False)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process")
        assert cursor.fetchone() == (0,)  # nothing was recorded either
    unlock(profile)
    gr.run(nothing, profile=other, progress=False)
    assert wait_until_idle(profile, 0.0) == []


def test_either_sees_the_other(profile: Profile, other: Profile) -> None:
    """Locking and beginning at the same moment, many times: nobody works in a locked profile unseen."""
    rounds = 60
    begin = threading.Barrier(2, timeout=60)
    agree = threading.Barrier(2, timeout=60)
    works: list[bool] = []

    def work() -> None:
        for _ in range(rounds):
            share = Share(other)
            begin.wait()
            works.append(share.take() is None)
            agree.wait()
            share.let_go()
            agree.wait()

    thread = threading.Thread(target=work)
    thread.start()
    seen = []
    for _ in range(rounds):
        begin.wait()
        lock(profile)
        seen.append(bool(wait_until_idle(profile, 0.0)))
        agree.wait()
        agree.wait()
        unlock(profile)
    thread.join()
    assert all(seen or not worked for seen, worked in zip(seen, works, strict=True))
    assert any(works) or any(seen)  # they did meet
