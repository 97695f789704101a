"""Pausing, playing and killing: of one process, of many, of whole trees, each in one transaction.

What is asked for is a mark on the row, and news; whoever has the process sees to it: the worker of a
workflow, the holder of the queue of a calculation. What nobody has is ended here, at once. Of two that change
the rows of one tree each locks them in the order of their ids, so that neither waits for the other for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from grange.core import process as rows
from grange.core.database import Cursor
from grange.core.process import CONTROL_NEWS, READY_NEWS, End, queue_news
from grange.core.process_tree import tree_ids
from grange.core.profile import Profile

_OPEN = "state IN ('created', 'waiting', 'running')"


@dataclass(slots=True)
class Killing:
    """What asking for the end of processes came to.

    asked: how many have not ended and are to. ended: those of them that nobody had, and that have ended now.
    queues: campaigns and queues whose holders have to see to the rest of the calculations.
    """

    asked: int = 0
    ended: list[int] = field(default_factory=list)
    queues: list[int] = field(default_factory=list)


def pause(profile: Profile, ids: Collection[int], reason: str = "", *, tree: bool = False) -> int:
    """Set processes aside until somebody plays them; tree: with all that they have called.

    A calculation that the farm has goes on to its end; one that nobody has begun does not begin. A workflow
    makes no further step. Returns how many were set aside now. Not inside a transaction.
    """
    with profile.transaction() as cursor:
        return len(pause_processes(cursor, ids, reason or f"paused by {profile.config.email}", tree=tree))


def play(profile: Profile, ids: Collection[int], *, tree: bool = False) -> int:
    """Let paused processes go on; tree: with all that they have called. Returns how many were paused."""
    with profile.transaction() as cursor:
        return len(play_processes(cursor, ids, tree=tree))


def kill(profile: Profile, ids: Collection[int], reason: str = "") -> Killing:
    """Ask for the end of processes and of all that they have called.

    What nobody has is ended at once; what somebody has he ends within seconds. Calculations of queues that
    nobody holds are ended by the next holder, or by grange.core.kill.kill(). Not inside a transaction.
    """
    with profile.transaction() as cursor:
        return kill_processes(cursor, ids, reason or f"killed by {profile.config.email}")


# -- in the caller's transaction


def find_open(
    cursor: Cursor,
    ids: Collection[int] | None,
    *,
    campaign_id: int | None = None,
    tree: bool = False,
    paused: bool | None = None,
) -> list[int]:
    """Those of these processes that have not ended, oldest first.

    ids: None is all there are, or all of a campaign. tree: with all that these have called. paused: only
    those that are, or are not.
    """
    if ids is not None and tree:
        ids = tree_ids(cursor, ids)
    cursor.execute(
        f"""
        SELECT node_id FROM process
        WHERE {_OPEN} AND (%(paused)s::bool IS NULL OR paused = %(paused)s)
          {"" if campaign_id is None else "AND campaign_id = %(campaign)s"}
          {"" if ids is None else "AND node_id = ANY (%(ids)s)"}
        ORDER BY node_id
        """,  # noqa: S608
        {"ids": None if ids is None else list(ids), "campaign": campaign_id, "paused": paused},
    )
    return [row[0] for row in cursor.fetchall()]


def lock_open(cursor: Cursor, ids: Collection[int], *, tree: bool) -> list[int]:
    """Lock those of these processes (tree: and of all that they have called) that have not ended.

    The workflows that called them are locked with them, because an end is written there too. Returns the
    ids of those meant, growing.
    """
    # Three statements of ids as constants: one with the tree inside was planned as a nested loop over both.
    wanted = tree_ids(cursor, ids) if tree else list(ids)
    cursor.execute(
        f"SELECT node_id, parent_id FROM process WHERE node_id = ANY (%s) AND {_OPEN}",  # noqa: S608
        (wanted,),
    )
    callers = dict(cursor.fetchall())
    locked = callers.keys() | {caller for caller in callers.values() if caller is not None}
    cursor.execute(
        f"SELECT node_id, {_OPEN} FROM process WHERE node_id = ANY (%s)"  # noqa: S608
        " ORDER BY node_id FOR NO KEY UPDATE",
        (list(locked),),
    )
    return [node_id for node_id, is_open in cursor.fetchall() if is_open and node_id in callers]


def pause_processes(cursor: Cursor, ids: Collection[int], reason: str, *, tree: bool = False) -> list[int]:
    """Set processes aside, with the reason; returns those that were not."""
    cursor.execute(
        f"""
        UPDATE process SET paused = true, exit_message = %(reason)s, cached_from = NULL
        WHERE node_id = ANY (%(ids)s) AND {_OPEN} AND NOT paused AND NOT to_kill
        RETURNING node_id
        """,  # noqa: S608
        {"ids": lock_open(cursor, ids, tree=tree), "reason": rows.storable(reason)},
    )
    paused = [row[0] for row in cursor.fetchall()]
    rows.tell(cursor, [CONTROL_NEWS] if paused else [])
    return paused


def play_processes(cursor: Cursor, ids: Collection[int], *, tree: bool = False) -> list[int]:
    """Let paused processes go on; returns those that were paused."""
    cursor.execute(
        f"""
        UPDATE process SET paused = false, exit_message = NULL
        WHERE node_id = ANY (%(ids)s) AND {_OPEN} AND paused
        RETURNING node_id, workflow, queue_id
        """,  # noqa: S608
        {"ids": lock_open(cursor, ids, tree=tree)},
    )
    played = cursor.fetchall()
    rows.tell(
        cursor,
        [CONTROL_NEWS] if played else [],
        [READY_NEWS] if any(workflow for _, workflow, _ in played) else [],
        _news_of_queues(queue for _, workflow, queue in played if not workflow),
    )
    return [row[0] for row in played]


def kill_processes(cursor: Cursor, ids: Collection[int], reason: str) -> Killing:
    """Ask for the end of processes and of all that they have called; end those that nobody has.

    For a worker, too, when it has ended a workflow that was to be killed: what that has called meanwhile.
    """
    open_ = lock_open(cursor, ids, tree=True)
    if not open_:
        return Killing()
    cursor.execute(
        "UPDATE process SET to_kill = true, exit_message = %s WHERE node_id = ANY (%s) AND NOT to_kill",
        (rows.storable(reason), open_),
    )
    done = Killing(asked=len(open_), ended=_end_unowned(cursor, open_, reason))
    cursor.execute(
        f"SELECT DISTINCT queue_id FROM process WHERE node_id = ANY (%s) AND NOT workflow AND {_OPEN}"  # noqa: S608
        " AND queue_id IS NOT NULL",
        (open_,),
    )
    done.queues = [row[0] for row in cursor.fetchall()]
    rows.tell(cursor, [CONTROL_NEWS], _news_of_queues(done.queues))
    return done


def end_abandoned_kills(cursor: Cursor) -> list[int]:
    """End what was to be killed and has lost its owner before he did so, with what it had called.

    For whoever frees what dead workers had. Returns those ended.
    """
    cursor.execute(
        f"SELECT node_id FROM process WHERE to_kill AND {_OPEN} AND worker_id IS NULL"  # noqa: S608
        " AND (workflow OR cached_from IS NOT NULL)"
    )
    ids = [row[0] for row in cursor.fetchall()]
    return kill_processes(cursor, ids, "").ended if ids else []


def _end_unowned(cursor: Cursor, ids: Sequence[int], reason: str) -> list[int]:
    """End those of these locked processes that nobody has.

    A calculation that has had an attempt may be under way on a computer still: the holder of its queue ends
    it there.
    """
    cursor.execute(
        f"""
        SELECT node_id, attempt, parent_id FROM process
        WHERE node_id = ANY (%s) AND {_OPEN} AND worker_id IS NULL
          AND (workflow OR attempt = 0 OR cached_from IS NOT NULL)
        ORDER BY node_id
        """,  # noqa: S608
        (list(ids),),
    )
    ends = []
    for node_id, attempt, parent_id in cursor.fetchall():
        end = End.killed(node_id, attempt, reason)
        end.parent_id = parent_id
        ends.append(end)
    return sorted(rows.end(cursor, ends))


def _news_of_queues(queues: Iterable[int | None]) -> list[str]:
    return [queue_news(queue) for queue in {*queues} if queue is not None]
