"""Repair: processes that no worker owns, or that wait for nothing: found, and set right.

A kill -9 leaves none of it for longer than seconds while somebody works: what a worker held is free when its
lock is. It is for what somebody changed by hand, for databases that were restored, for bugs, and for when
nobody works. It may be run while others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from grange.core import process as rows
from grange.core.database import Cursor
from grange.core.process import READY_NEWS, queue_news
from grange.core.process_control import end_abandoned_kills, kill_processes, lock_open
from grange.core.profile import Profile
from grange.core.worker import WORKER_LOCK, free_dead

#: So many rows are locked, looked at again and mended in one transaction.
SLICE = 2000

_KILLED = "killed with the workflow that called it"
_NO_QUEUE = "nobody can run it: it belongs to no campaign or queue; kill it, and make the call again"

_OPEN = "p.state IN ('created', 'waiting', 'running')"
_OPEN_CALLS = """(SELECT count(*) FROM process c WHERE c.parent_id = p.node_id
                  AND c.state IN ('created', 'waiting', 'running'))"""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of what can be wrong, with what is done about it, and the processes that are so."""

    what: str
    repair: str
    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Kind:
    """condition: of a process p, in SQL. mend: sets rows right that are locked, or (locks) locks them."""

    what: str
    repair: str
    condition: str
    mend: Callable[[Cursor, list[int]], object]
    locks: bool = False


def find_faults(cursor: Cursor) -> list[Fault]:
    """What is wrong at this moment, by kind; kinds that do not occur are left out."""
    found = [Fault(kind.what, kind.repair, _find(cursor, kind)) for kind in _KINDS]
    return [fault for fault in found if fault.ids]


def repair(profile: Profile) -> list[Fault]:
    """Set right what is wrong; returns what was. Not inside a transaction.

    Each row is looked at again once it is locked: what others had half done is no fault any more.
    """
    mended = []
    for kind in _KINDS:
        with profile.transaction() as cursor:
            found = _find(cursor, kind)
        done: list[int] = []
        for start in range(0, len(found), SLICE):
            with profile.transaction() as cursor:
                wrong = found[start : start + SLICE]
                if not kind.locks:
                    lock_open(cursor, wrong, tree=False)
                    wrong = _find(cursor, kind, wrong)
                kind.mend(cursor, wrong)
            done += wrong
        if done:
            mended.append(Fault(kind.what, kind.repair, done))
    free_dead(profile)
    return mended


def _find(cursor: Cursor, kind: _Kind, ids: list[int] | None = None) -> list[int]:
    among = "" if ids is None else "AND p.node_id = ANY (%(ids)s)"
    cursor.execute(
        f"{_ALIVE} SELECT p.node_id FROM process p"  # noqa: S608
        f" WHERE {_OPEN} AND {kind.condition} {among} ORDER BY p.node_id",
        {"ids": ids, "lock": WORKER_LOCK},
    )
    return [row[0] for row in cursor.fetchall()]


# Workers that live: they hold the lock on their id.
_ALIVE = """
WITH alive AS MATERIALIZED (
    SELECT objid::bigint AS id FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid::bigint = %(lock)s
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


def _free(cursor: Cursor, ids: list[int]) -> None:
    cursor.execute(
        """
        UPDATE process SET worker_id = NULL, ready = workflow,
            state = CASE WHEN workflow THEN state ELSE 'created' END
        WHERE node_id = ANY (%s) RETURNING workflow, queue_id
        """,
        (ids,),
    )
    _tell(cursor, cursor.fetchall())


def _count(cursor: Cursor, ids: list[int]) -> None:
    # What it waits for was reckoned with the wrong number, too: a worker has to look.
    cursor.execute(
        f"UPDATE process p SET open_children = {_OPEN_CALLS}, ready = true"  # noqa: S608
        " WHERE p.node_id = ANY (%s) RETURNING workflow, queue_id",
        (ids,),
    )
    _tell(cursor, cursor.fetchall())


def _wake(cursor: Cursor, ids: list[int]) -> None:
    cursor.execute(
        "UPDATE process SET ready = true WHERE node_id = ANY (%s) RETURNING workflow, queue_id", (ids,)
    )
    _tell(cursor, cursor.fetchall())


def _run_itself(cursor: Cursor, ids: list[int]) -> None:
    cursor.execute(
        "UPDATE process SET cached_from = NULL WHERE node_id = ANY (%s) RETURNING workflow, queue_id", (ids,)
    )
    _tell(cursor, cursor.fetchall())


def _queue(cursor: Cursor, ids: list[int]) -> None:
    cursor.execute(
        """
        UPDATE process SET queue_id = campaign_id, paused = campaign_id IS NULL,
            exit_message = CASE WHEN campaign_id IS NULL THEN %s END
        WHERE node_id = ANY (%s) RETURNING workflow, queue_id
        """,
        (_NO_QUEUE, ids),
    )
    _tell(cursor, cursor.fetchall())


def _tell(cursor: Cursor, changed: Iterable[tuple[bool, int | None]]) -> None:
    """Tell who has something to do now: (whether it is a workflow, its queue) for each process."""
    told = {READY_NEWS if workflow else queue_news(queue or 0) for workflow, queue in changed}
    rows.tell(cursor, told)


_KINDS = (
    _Kind(
        "belong to a worker that is gone",
        "let others have them",
        "p.worker_id IS NOT NULL AND p.worker_id NOT IN (SELECT id FROM alive)",
        _free,
    ),
    _Kind(
        "workflows with a wrong count of open calls",
        "count them",
        f"p.workflow AND p.open_children <> {_OPEN_CALLS}",
        _count,
    ),
    _Kind(
        "workflows that wait for nothing",
        "let a worker look at them",
        """p.workflow AND p.worker_id IS NULL AND NOT p.ready AND NOT p.paused AND NOT p.to_kill
           AND CASE WHEN p.awaits IS NULL THEN p.open_children <= p.wake_at
                    ELSE NOT EXISTS (SELECT FROM process c WHERE c.node_id = p.awaits
                                     AND c.state IN ('created', 'waiting', 'running')) END""",
        _wake,
    ),
    _Kind(
        "calls of workflows that were killed",
        "end them",
        """NOT p.to_kill AND p.parent_id IS NOT NULL
           AND EXISTS (SELECT FROM process c WHERE c.node_id = p.parent_id AND c.state = 'killed')""",
        lambda cursor, ids: kill_processes(cursor, ids, _KILLED),
        locks=True,
    ),
    _Kind(
        "were to be killed, and nobody has them",
        "end them",
        "p.to_kill AND p.worker_id IS NULL AND (p.workflow OR p.cached_from IS NOT NULL)",
        lambda cursor, _: end_abandoned_kills(cursor),
        locks=True,
    ),
    _Kind(
        "wait for an equal process that is not there",
        "let them be run",
        "p.cached_from IS NOT NULL AND NOT EXISTS (SELECT FROM process c WHERE c.node_id = p.cached_from)",
        _run_itself,
    ),
    _Kind(
        "calculations that wait in no queue",
        "put them into that of their campaign, or pause them",
        "NOT p.workflow AND p.queue_id IS NULL AND NOT p.paused",
        _queue,
    ),
)
