"""Events: the database notes what happens to processes, whoever changes them, a statement at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import psycopg2
import pytest

import grange as gr
from grange.core import database, equal_rows, event
from grange.core import process as rows
from grange.core.process import End, NewProcess
from grange.core.profile import Profile
from grange.core.transition import State


def new_nodes(profile: Profile, count: int, kind: str = "calculation") -> list[int]:
    with profile.transaction() as cursor:
        ids = list(database.reserve_ids(cursor, count))
        node_type = "process.calculation.calcfunction.CalcFunctionNode."
        cursor.execute(
            "INSERT INTO node (id, uuid, kind, user_id, node_type)"
            " SELECT id, gen_random_uuid(), %s, %s, %s FROM unnest(%s::bigint[]) AS id",
            (kind, profile.user_id, node_type, ids),
        )
    return ids


def add(profile: Profile, new: Sequence[NewProcess]) -> None:
    with profile.transaction() as cursor:
        rows.insert(cursor, new)


def told(profile: Profile, process_id: int) -> list[tuple[str, int, str | None]]:
    with profile.transaction() as cursor:
        return [(one.kind, one.attempt, one.detail) for one in event.events(cursor, [process_id])]


def waiting(node_id: int, **more: object) -> NewProcess:
    return NewProcess(node_id, "energy", None, None, None, State.WAITING, 1, 7, **more)  # type: ignore[arg-type]


def created(node_id: int) -> NewProcess:
    return NewProcess(node_id, "energy", None, None, None, State.CREATED, 0, None)


def test_the_life_of_a_calculation(profile: Profile) -> None:
    well, badly, refused = new_nodes(profile, 3)
    add(profile, [waiting(well), waiting(badly), waiting(refused)])
    started_at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with profile.transaction() as cursor:
        at = started_at.timestamp()
        rows.end(
            cursor,
            [
                End(well, 1, State.FINISHED, 0, None, at, 2.0, None, None, "n1"),
                End(badly, 1, State.FINISHED, 120, "no time left", at, 2.0, None, None, "n1"),
                End.excepted(refused, 1, "prepare() raised " + "x" * 1000),
            ],
        )
    assert told(profile, well) == [("submitted", 1, None), ("started", 1, None), ("finished", 1, None)]
    assert told(profile, badly)[1:] == [("started", 1, None), ("finished", 1, "120: no time left")]
    kind, _, detail = told(profile, refused)[-1]  # it never ran: no start
    assert (kind, len(told(profile, refused))) == ("excepted", 2)
    assert detail is not None
    assert len(detail) == 200
    with profile.transaction() as cursor:
        _, start, end = event.events(cursor, [well])
    assert start.time == started_at
    assert (end.time - start.time).total_seconds() == 2.0


def test_what_was_run_before_it_was_recorded_has_an_end_only(profile: Profile) -> None:
    (one,) = new_nodes(profile, 1)
    add(profile, [NewProcess(one, "f", None, None, None, State.EXCEPTED, 1, None, exit_message="ValueError")])
    assert told(profile, one) == [("excepted", 1, "ValueError")]


def test_claims_pauses_kills_and_returns(profile: Profile) -> None:
    (one,) = new_nodes(profile, 1)
    add(profile, [created(one)])
    with profile.transaction() as cursor:
        rows.claim(cursor, [one], profile.worker_id)
    with profile.transaction() as cursor:
        rows.pause(cursor, [one], "its code has changed")
    with profile.transaction() as cursor:
        rows.play(cursor, [one])
    with profile.transaction() as cursor:
        rows.claim(cursor, [one], profile.worker_id)
    with profile.transaction() as cursor:
        rows.ask_to_kill(cursor, ids=[one])
    with profile.transaction() as cursor:
        rows.end(cursor, [End.killed(one, 2, "nobody wants it")])
    assert told(profile, one) == [
        ("created", 0, None),
        ("claimed", 1, None),
        ("paused", 1, "its code has changed"),
        ("released", 1, None),
        ("played", 1, None),
        ("claimed", 2, None),
        ("kill_asked", 2, None),
        ("killed", 2, "nobody wants it"),
    ]
    with profile.transaction() as cursor:
        of_worker = [one.worker for one in event.events(cursor, [one])]
    mine = f"client {profile.worker_id} (process "
    assert [name is not None and name.startswith(mine) for name in of_worker] == [
        False, True, True, True, False, True, True, True,
    ]  # fmt: skip


def test_an_equal_process_answers(profile: Profile) -> None:
    source, at_once, later, never = new_nodes(profile, 4)
    finished = {"exit_status": 0, "cached_from": source}
    add(
        profile,
        [
            created(source),
            NewProcess(at_once, "f", None, None, None, State.FINISHED, 0, None, **finished),
            NewProcess(later, "f", None, None, None, State.CREATED, 0, None, cached_from=source),
            NewProcess(never, "f", None, None, None, State.CREATED, 0, None, cached_from=source),
        ],
    )
    with profile.transaction() as cursor:
        end = End(later, 0, State.FINISHED, 0, None, None, None, None, None, None, cached_from=source)
        rows.end(cursor, [end])
        cursor.execute("UPDATE process SET cached_from = NULL WHERE node_id = %s", (never,))
    assert told(profile, at_once) == [("reused", 0, str(source))]
    assert told(profile, later) == [("follows", 0, str(source)), ("reused", 0, str(source))]
    assert told(profile, never) == [("follows", 0, str(source)), ("released", 0, None)]


def test_one_that_was_claimed_and_turns_out_to_have_an_equal_one(profile: Profile) -> None:
    leader, one = new_nodes(profile, 2)
    add(profile, [created(leader), created(one)])
    with profile.transaction() as cursor:
        rows.claim(cursor, [one], profile.worker_id)
        equal_rows.follow(cursor, {one: leader})
    assert told(profile, one) == [("created", 0, None), ("claimed", 1, None), ("follows", 0, str(leader))]


def test_a_workflow_that_is_run_in_pieces(profile: Profile) -> None:
    (one,) = new_nodes(profile, 1, "workflow")
    add(profile, [NewProcess(one, "w", None, None, None, State.CREATED, 0, None, workflow=True, ready=True)])
    worker = profile.worker_id
    for change in (
        f"worker_id = {worker}, attempt = 1, state = 'running', ready = false",
        "open_children = 3, wake_at = 0",
        "state = 'waiting'",
        "open_children = 0, ready = true",
        "state = 'running', ready = false",
    ):
        with profile.transaction() as cursor:
            cursor.execute(f"UPDATE process SET {change} WHERE node_id = %s", (one,))
    with profile.transaction() as cursor:
        rows.end(cursor, [End(one, 1, State.FINISHED, 0, None, time.time(), 1.0, None, None, None)])
    kinds = [kind for kind, _, _ in told(profile, one)]
    assert kinds == ["created", "claimed", "started", "waiting", "started", "finished"]


def test_what_begins_as_it_is_recorded_has_begun(profile: Profile) -> None:
    (one,) = new_nodes(profile, 1, "workflow")
    add(profile, [NewProcess(one, "w", None, None, None, State.RUNNING, 1, 7, workflow=True)])
    with profile.transaction() as cursor:
        rows.end(cursor, [End(one, 1, State.FINISHED, 0, None, time.time(), 1.0, None, None, None)])
    assert told(profile, one) == [("started", 1, None), ("finished", 1, None)]


def test_a_retried_call_says_as_which(profile: Profile) -> None:
    with profile.transaction() as cursor:
        pass
    campaign_id = gr.Campaign("tries", profile).id
    (one,) = new_nodes(profile, 1)
    add(profile, [NewProcess(one, "f", b"1" * 32, campaign_id, 0, State.EXCEPTED, 1, None)])
    with profile.transaction() as cursor:
        (new,) = rows.retry_failed(cursor, campaign_id)
    assert told(profile, one)[-1] == ("retried", 1, str(new))
    assert told(profile, new) == [("created", 0, None)]


def test_what_is_rolled_back_never_happened(profile: Profile) -> None:
    (one,) = new_nodes(profile, 1)
    add(profile, [created(one)])
    connection, worker_id = profile.connection, profile.worker_id
    with connection.cursor() as cursor:
        rows.claim(cursor, [one], worker_id)
        assert len(event.events(cursor, [one])) == 2
    connection.rollback()
    assert told(profile, one) == [("created", 0, None)]


def test_events_are_only_added_and_go_with_their_process(profile: Profile) -> None:
    one, other = new_nodes(profile, 2)
    add(profile, [created(one), created(other)])
    with pytest.raises(psycopg2.errors.CheckViolation), profile.transaction() as cursor:
        cursor.execute("UPDATE event SET kind = 'killed'")
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM node WHERE id = %s", (one,))
        cursor.execute("SELECT process_id FROM event")
        assert cursor.fetchall() == [(other,)]


def test_news_of_each_process_since_its_own_last_event(profile: Profile) -> None:
    one, other, third = new_nodes(profile, 3)
    add(profile, [created(one), created(other), created(third)])
    worker_id = profile.worker_id
    with profile.transaction() as cursor:
        known = {e.process_id: e.id for e in event.events(cursor, [one, other])}
        rows.claim(cursor, [other, third], worker_id)
        news = event.events_since(cursor, known | {third: 0})
    assert [(e.process_id, e.kind) for e in news if e.process_id != third] == [(other, "claimed")]
    assert sorted(e.kind for e in news if e.process_id == third) == ["claimed", "created"]


def test_many_at_once_after_one_alone_take_no_quadratic_time(profile: Profile) -> None:
    """The trigger's plan is made for its first statement, of one row, and kept."""
    few, many = 2_000, 16_000
    ids = new_nodes(profile, 1 + few + many)
    took = []
    for some in (ids[:1], ids[1 : 1 + few], ids[1 + few :]):
        add(profile, [waiting(node_id) for node_id in some])
        with profile.transaction() as cursor:
            began = time.perf_counter()
            cursor.execute("UPDATE process SET worker_id = NULL WHERE node_id = ANY(%s)", (some,))
            took.append(time.perf_counter() - began)
    # hashing takes 8 times as long for 8 times as many, a nested loop 60 times
    assert took[2] < 32 * took[1]


@gr.calcfunction
def double(x: int) -> int:
    return 2 * x


def test_a_calcfunction_has_its_events(profile: Profile) -> None:
    double.run(profile, x=1)
    with profile.transaction() as cursor:
        cursor.execute("SELECT node_id FROM process")
        (process_id,) = cursor.fetchone() or (0,)
    assert told(profile, process_id)[-1][0] == "finished"
