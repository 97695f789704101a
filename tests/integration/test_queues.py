"""Queues: made once, whoever asks; and what of them dispatchers have to be started for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from grange.core import computer as computers
from grange.core import group
from grange.core import process as rows
from grange.core.data.code_value import CodeValue, Launch
from grange.core.errors import NotFound
from grange.core.graph import store
from grange.core.node import CalcFunctionNode
from grange.core.process import NewProcess
from grange.core.profile import Profile, open_profile
from grange.core.queue_hold import hold
from grange.core.queues import (
    CAMPAIGN_TYPE,
    QUEUE_TYPE,
    Queue,
    Queues,
    find_waiting,
    load_queue,
    mark_submitted,
    note_executor,
    unmark_submitted,
)
from grange.core.transition import State
from grange.core.worker import lock_campaign
from grange.farm.computer import Computer

HOST = socket.gethostname()


def new_process(profile: Profile, queue_id: int, *, campaign: bool = False, workflow: bool = False) -> int:
    node = CalcFunctionNode({})
    with profile.transaction() as cursor:
        store(
            cursor,
            [node],
            user_id=profile.user_id,
            repository=profile.repository,
            index=profile.index(cursor),
        )
        assert node.id is not None
        campaign_id = queue_id if campaign else None
        rows.insert(
            cursor,
            [
                NewProcess(
                    node.id, "f", None, campaign_id, 0, State.CREATED, 0, None,
                    queue_id=queue_id, workflow=workflow,
                )
            ],
        )  # fmt: skip
    return node.id


def new_campaign(profile: Profile, name: str, executor: str = "local") -> int:
    with profile.transaction() as cursor:
        made = group.create(cursor, name, user_id=profile.user_id, type_string=CAMPAIGN_TYPE)
        note_executor(cursor, made.id, executor, home=str(profile.home))
        mark_submitted(cursor, made.id)
    return made.id


def waiting(profile: Profile, *taken: int, home: str = "") -> list[int]:
    with profile.transaction() as cursor:
        return [queue.id for queue in find_waiting(cursor, home or str(profile.home), taken)]


def until(happened: Callable[[], bool]) -> None:
    """The server needs a moment to notice that somebody is gone."""
    deadline = time.monotonic() + 60.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def change(profile: Profile, statement: str, *values: object) -> None:
    with profile.transaction() as cursor:
        cursor.execute(statement, values)


def test_there_is_one_queue_for_a_host_and_executor_whoever_asks_first(profile: Profile) -> None:
    found = []
    together = threading.Barrier(4)

    def ask() -> None:
        with open_profile(profile.home) as opened:
            together.wait()
            found.append(Queues(opened).ids_of([None, "local", "hyperqueue"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(one == found[0] for one in found)
    assert found[0][None] == found[0]["local"] != found[0]["hyperqueue"]
    with profile.transaction() as cursor:
        made = load_queue(cursor, found[0]["local"])
    assert made == Queue(found[0]["local"], f"local@{HOST}", QUEUE_TYPE, "local")
    assert profile.groups() == []


def test_scripts_that_run_things_themselves_have_queues_of_their_own(profile: Profile) -> None:
    common = Queues(profile).id_of(None)
    own = partial(Queues, profile, own=True)
    # nobody has it; this process has it
    assert own().id_of(None) == common
    with hold(profile, common, "queue"):
        assert own().id_of(None) == common
    with open_profile(profile.home) as other:
        id_ = other.worker_id
        change(profile, "UPDATE worker SET pid = 1 WHERE id = %s", id_)
        with hold(other, common, "queue"):
            second = own().id_of(None)
            assert second not in (common, own().id_of("hyperqueue"))
            assert own().id_of("local") == second
            assert Queues(profile).id_of(None) == common
            with hold(other, second, "queue"):
                assert own().id_of(None) not in (common, second)
                with profile.transaction() as cursor:
                    assert load_queue(cursor, second) == Queue(second, f"local@{HOST}#2", QUEUE_TYPE, "local")
            # a daemon's is for everybody
            change(profile, "UPDATE worker SET daemon_id = 1 WHERE id = %s", id_)
            assert own().id_of(None) == common
    # what a script has left in its own is gone on with
    new_process(profile, second)
    assert waiting(profile) == [second]


def test_a_call_goes_to_where_its_code_is_unless_it_says_otherwise(profile: Profile) -> None:
    with profile.transaction() as cursor:
        computer = computers.add(
            cursor, Computer(label="here", transport="local", scheduler="direct"), user_id=profile.user_id
        )
    code = CodeValue("/bin/true", Launch(computer_id=computer.id))
    queues = Queues(profile)
    here = queues.id_of("here")
    assert here != queues.id_of(None)
    assert queues.of(None, {"n": 1, "code": code}) == here
    assert queues.of("local", {"code": code}) == queues.of(None, {"n": 1}) == queues.id_of(None)


def test_nothing_has_a_queue_that_is_no_executor(profile: Profile) -> None:
    with pytest.raises(NotFound, match="lumi"):
        Queues(profile).id_of("lumi")
    with profile.transaction() as cursor:
        assert load_queue(cursor, 12345) is None


def test_what_a_dispatcher_is_to_be_started_for(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    assert waiting(profile) == []
    process = new_process(profile, queue)
    assert waiting(profile) == [queue]
    assert waiting(profile, queue) == []
    # what nobody is to run is nothing to begin for
    for column, value in (("paused", True), ("workflow", True)):
        change(profile, f"UPDATE process SET {column} = %s WHERE node_id = %s", value, process)
        assert waiting(profile) == [], column
        change(profile, f"UPDATE process SET {column} = DEFAULT WHERE node_id = %s", process)
        assert waiting(profile) == [queue], column
    # but to end it is
    change(profile, "UPDATE process SET paused = true, to_kill = true WHERE node_id = %s", process)
    assert waiting(profile) == [queue]
    change(profile, "UPDATE process SET state = 'killed', finished_at = now() WHERE node_id = %s", process)
    assert waiting(profile) == []


def test_what_somebody_runs_is_left_to_them(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    new_process(profile, queue)
    with open_profile(profile.home) as other:
        lock_campaign(other.connection, queue)
        assert waiting(profile) == []
    until(lambda: waiting(profile) == [queue])


def test_campaigns_are_begun_only_when_they_were_submitted_and_one_at_a_time_here(profile: Profile) -> None:
    first, second = new_campaign(profile, "first"), new_campaign(profile, "second")
    elsewhere = new_campaign(profile, "elsewhere", "lumi")
    queue = Queues(profile).id_of(None)
    for one in (second, first, elsewhere):
        new_process(profile, one, campaign=True)
    new_process(profile, queue)
    assert waiting(profile) == [queue, first, elsewhere]
    assert waiting(profile, first) == [queue, elsewhere]
    assert waiting(profile, queue, elsewhere) == [first]
    with profile.transaction() as cursor:
        unmark_submitted(cursor, first, only_if_done=True)
    assert waiting(profile) == [queue, first, elsewhere]
    with profile.transaction() as cursor:
        unmark_submitted(cursor, first, only_if_done=False)
    assert waiting(profile) == [queue, second, elsewhere]
    change(profile, "UPDATE process SET state = 'killed', finished_at = now() WHERE queue_id = %s", second)
    with profile.transaction() as cursor:
        unmark_submitted(cursor, second, only_if_done=True)
        cursor.execute('SELECT extras FROM "group" WHERE id = %s', (second,))
        assert cursor.fetchone() == ({"host": HOST, "home": str(profile.home)},)


def test_a_queue_of_another_host_is_taken_over_when_nobody_is_there_any_more(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    new_process(profile, queue)
    change(profile, 'UPDATE "group" SET extras = extras || \'{"host": "gone"}\' WHERE id = %s', queue)
    assert waiting(profile) == [queue]
    assert waiting(profile, home="/another/home") == []
    with open_profile(profile.home) as there:
        id_ = there.worker_id
        change(profile, "UPDATE worker SET host = 'gone' WHERE id = %s", id_)
        assert waiting(profile) == []
    until(lambda: waiting(profile) == [queue])


def test_the_executor_of_a_queue_is_noted_anew(profile: Profile, tmp_path: Path) -> None:
    campaign = new_campaign(profile, "moves")
    with profile.transaction() as cursor:
        note_executor(cursor, campaign, "lumi", home=str(tmp_path))
        cursor.execute('SELECT extras FROM "group" WHERE id = %s', (campaign,))
        assert cursor.fetchone() == ({"executor": "lumi", "submitted": True},)
