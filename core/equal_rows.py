"""Rows of equal processes: which may answer others, which are under way, and which wait for those.

A calculation of which an equal one is under way follows that one: `cached_from` names it, and nobody runs it
meanwhile. Whoever holds the queue of the follower looks after it; who runs the other one knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grange.core.transition import ENDED, State
from grange.core.worker import WORKER_LOCK

#: First key of the advisory locks that make "is an equal one under way?" and "now I am" one step; the second
#: one is the first byte of a key, modulo KEY_LOCKS.
KEY_LOCK = 0x67_72_61_20
KEY_LOCKS = 16


#: Of processes with one key so many are looked at: there may be a hundred thousand, each as good as another.
LOOKED_AT = 20

# Of finished processes of a key one that may answer: that succeeded, that was computed itself, the oldest.
_SOURCE = f"""
SELECT node_id, exit_status, exit_message FROM (
    SELECT node_id, exit_status, exit_message, cached_from FROM process
    WHERE process.key = given.key AND state = 'finished' AND valid_cache LIMIT {LOOKED_AT}) AS looked
ORDER BY exit_status <> 0, cached_from IS NOT NULL, node_id LIMIT 1
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Source:
    """A process that may answer equal ones, and how it finished."""

    node_id: int
    exit_status: int
    exit_message: str | None


@dataclass(slots=True)
class Equal:
    """An unfinished process that an equal one may answer."""

    node_id: int
    attempt: int
    parent_id: int | None
    key: bytes


@dataclass(slots=True)
class Follower:
    """A process that need not wait any longer. source: what answers it; None: it has to be run."""

    node_id: int
    attempt: int
    parent_id: int | None
    source: Source | None


def find_reusable(cursor: Any, keys: Collection[bytes]) -> dict[bytes, Source]:
    """For these calls, a process anywhere in the profile that was equal and finished, if possible well."""
    if not keys:
        return {}
    cursor.execute(
        f"""
        SELECT given.key, source.node_id, source.exit_status, source.exit_message
        FROM unnest(%s::bytea[]) AS given (key) CROSS JOIN LATERAL ({_SOURCE}) AS source
        """,  # noqa: S608
        (list(keys),),
    )
    return {bytes(key): Source(node_id, status, said) for key, node_id, status, said in cursor.fetchall()}


def find_failed_before(
    cursor: Any, sources: Mapping[bytes, Source], calls: Iterable[tuple[int | None, bytes]]
) -> set[tuple[int | None, bytes]]:
    """Of calls (workflow, key) those that the same workflow has made before, and that failed.

    No failure answers these: who makes a call again after it failed means it to be tried again.
    """
    failures = {key for key, source in sources.items() if source.exit_status}
    asked: set[tuple[int | None, bytes]] = {
        (parent, key) for parent, key in calls if parent is not None and key in failures
    }
    if not asked:
        return set()
    cursor.execute(
        """
        SELECT DISTINCT parent_id, key FROM process
        WHERE key = ANY(%s) AND parent_id = ANY(%s) AND state = 'finished' AND exit_status <> 0
        """,
        ([key for _, key in asked], [parent for parent, _ in asked]),
    )
    return asked & {(parent, bytes(key)) for parent, key in cursor.fetchall()}


def lock_keys(cursor: Any, keys: Collection[bytes]) -> None:
    """Be alone with these keys to the end of the transaction.

    The last lock that a transaction takes: who has it waits for nobody. So it is sure by then to be let
    write, whoever deletes nodes.
    """
    if keys:
        cursor.execute(
            "LOCK TABLE link IN ROW EXCLUSIVE MODE;"
            " SELECT pg_advisory_xact_lock(%s, number) FROM unnest(%s::int[]) AS number",
            (KEY_LOCK, sorted({key[0] % KEY_LOCKS for key in keys})),
        )


def find_leaders(
    cursor: Any, keys: Collection[bytes], but_not: Collection[int] = ()
) -> tuple[dict[bytes, Source], dict[bytes, int]]:
    """For these calls, which may be answered: by what, or by which calculation once that has ended.

    The second are those that a living worker has under way. but_not: processes that are none of these.
    """
    sources = find_reusable(cursor, keys)
    left = set(keys) - sources.keys()
    if not left:
        return sources, {}
    cursor.execute(
        """
        SELECT key, node_id, worker_id FROM process
        WHERE key = ANY(%s) AND state IN ('created', 'waiting', 'running') AND worker_id IS NOT NULL
          AND cached_from IS NULL AND valid_cache AND NOT (to_kill OR workflow OR node_id = ANY(%s))
        ORDER BY node_id DESC
        """,
        (list(left), list(but_not)),
    )
    under_way = cursor.fetchall()
    alive = find_living(cursor) if under_way else set()
    return sources, {bytes(key): node_id for key, node_id, worker_id in under_way if worker_id in alive}


def find_living(cursor: Any) -> set[int]:
    """The workers that are at work: whose session lock somebody has."""
    cursor.execute(
        """
        SELECT objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND classid::bigint = %s AND objsubid = 2 AND granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        (WORKER_LOCK,),
    )
    return {row[0] for row in cursor.fetchall()}


def find_equal(cursor: Any, ids: Collection[int]) -> list[Equal]:
    """Of these unfinished processes those that equal ones may answer, oldest first."""
    if not ids:
        return []
    cursor.execute(
        """
        SELECT node_id, attempt, parent_id, key FROM process
        WHERE node_id = ANY(%s) AND use_cache AND key IS NOT NULL AND cached_from IS NULL
          AND state IN ('created', 'waiting', 'running') ORDER BY node_id
        """,
        (list(ids),),
    )
    return [
        Equal(node_id, attempt, parent, bytes(key)) for node_id, attempt, parent, key in cursor.fetchall()
    ]


def follow(cursor: Any, leaders: Mapping[int, int]) -> None:
    """Let claimed processes, of which no task was made yet, follow others: process → the one it waits for."""
    if leaders:
        cursor.execute(
            """
            UPDATE process
            SET cached_from = leader, worker_id = NULL, state = 'created', attempt = attempt - 1
            FROM unnest(%s::bigint[], %s::bigint[]) AS given (id, leader) WHERE node_id = given.id
            """,
            (list(leaders), list(leaders.values())),
        )


def find_following(cursor: Any, queue_id: int) -> list[int]:
    """The processes of a campaign or queue that wait for equal ones. (None of them is paused.)"""
    cursor.execute(
        """
        SELECT node_id FROM process
        WHERE queue_id = %s AND cached_from IS NOT NULL AND state IN ('created', 'waiting', 'running')
        """,
        (queue_id,),
    )
    return [row[0] for row in cursor.fetchall()]


def find_settled(cursor: Any, queue_id: int, limit: int) -> list[Follower]:
    """Of the followers of a campaign or queue those that need not wait any longer.

    The one that is waited for has ended, is gone, is run by nobody any more, or is about to be killed.
    """
    alive = find_living(cursor)
    cursor.execute(
        """
        SELECT f.node_id, f.attempt, f.parent_id, l.node_id, l.state::text, l.valid_cache, l.exit_status,
               l.exit_message
        FROM process f LEFT JOIN process l ON l.node_id = f.cached_from
        WHERE f.queue_id = %s AND f.cached_from IS NOT NULL AND f.state IN ('created', 'waiting', 'running')
          AND NOT (f.workflow OR f.to_kill)
          AND (l.node_id IS NULL OR l.state NOT IN ('created', 'waiting', 'running') OR l.worker_id IS NULL
               OR l.worker_id <> ALL(%s) OR l.cached_from IS NOT NULL OR l.to_kill)
        ORDER BY f.node_id LIMIT %s
        """,
        (queue_id, list(alive), limit),
    )
    found = []
    for node_id, attempt, parent_id, leader, state, valid, status, said in cursor.fetchall():
        answers = state == State.FINISHED and valid
        found.append(Follower(node_id, attempt, parent_id, Source(leader, status, said) if answers else None))
    return found


def find_outcomes(cursor: Any, ids: Collection[int]) -> dict[int, bool | None]:
    """Of these processes those that are there: whether they have ended well; None for those that are open."""
    cursor.execute(
        "SELECT node_id, state::text, exit_status FROM process WHERE node_id = ANY(%s)", (list(ids),)
    )
    return {
        node_id: None if state not in ENDED else state == State.FINISHED and not status
        for node_id, state, status in cursor.fetchall()
    }


def free(cursor: Any, ids: Sequence[int]) -> None:
    """Let followers be run.

    Where the one they have waited for has failed, so may the next one: they wait for no other.
    """
    if ids:
        cursor.execute(
            """
            UPDATE process f
            SET cached_from = NULL, use_cache = f.use_cache AND coalesce(l.state <> 'excepted'
                AND NOT (l.state = 'finished' AND l.exit_status <> 0), true)
            FROM process g LEFT JOIN process l ON l.node_id = g.cached_from
            WHERE f.node_id = ANY(%s) AND g.node_id = f.node_id
            """,
            (list(ids),),
        )
