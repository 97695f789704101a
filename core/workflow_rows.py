"""The rows of workflows: claiming them, what they wait for, and their record; all plural.

Of a workflow that nobody owns, `ready` says that a worker has something to do for it; of one that a worker
owns, that calls of it have ended. Who sets it: the end of a call (process.children_ended), whoever plays it,
and the sweep of dead workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from grange.core.process import storable
from grange.core.transition import State


@dataclass(slots=True)
class ClaimedWorkflow:
    """A workflow that this worker owns now, and how far its record goes."""

    node_id: int
    attempt: int
    parent_id: int | None
    process_type: str
    attributes: dict[str, Any]
    repository_metadata: dict[str, Any]
    calls: int
    reports: int
    decisions: int


@dataclass(slots=True)
class RecordedCall:
    """One call in the record of a workflow."""

    parent_id: int
    sequence: int
    node_id: int
    label: str
    call_hash: bytes
    state: State
    exit_status: int | None
    exit_message: str | None


@dataclass(slots=True)
class Wait:
    """What a workflow waits for.

    added: how many open calls it has made since its row was last written. calls: the ids of those that it
    waits for; empty: all that are open. any: whether one of them is enough. let_go: whether the worker gives
    the workflow back.
    """

    node_id: int
    added: int
    calls: Sequence[int] = ()
    any: bool = False
    waiting: bool = True
    let_go: bool = False


def find_unfinished(cursor: Any, campaign_id: int, limit: int | None = None) -> list[int]:
    """The workflows of a campaign that have not ended, oldest first."""
    cursor.execute(
        """
        SELECT node_id FROM process WHERE queue_id = %s AND workflow
          AND state IN ('created', 'waiting', 'running') ORDER BY node_id LIMIT %s
        """,
        (campaign_id, limit),
    )
    return [row[0] for row in cursor.fetchall()]


def find_ready(cursor: Any, limit: int, among: Collection[int] | None = None) -> list[int]:
    """Workflows that nobody owns and that are ready, locked, oldest first; among: only of these."""
    cursor.execute(
        """
        SELECT node_id FROM process
        WHERE ready AND worker_id IS NULL AND NOT paused AND NOT to_kill
          AND state IN ('created', 'waiting', 'running')
          AND (%(among)s::bigint[] IS NULL OR node_id = ANY(%(among)s))
        ORDER BY node_id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        """,
        {"limit": limit, "among": None if among is None else list(among)},
    )
    return [row[0] for row in cursor.fetchall()]


def claim(cursor: Any, ids: Collection[int], worker_id: int) -> list[ClaimedWorkflow]:
    """Own workflows that find_ready() has locked in this transaction.

    One that waits for a call which is still open is not claimed, and is ready no more until another call of
    it ends. This is a statement of its own, so that it sees what was committed before the rows were locked.
    """
    if not ids:
        return []
    cursor.execute(
        """
        WITH awaited AS MATERIALIZED (
            -- row by row: as a condition of the join, the states would have all unfinished processes hashed
            SELECT q.node_id, coalesce(c.state IN ('created', 'waiting', 'running'), false) AS open
            FROM process q LEFT JOIN process c ON c.node_id = q.awaits WHERE q.node_id = ANY(%(ids)s)
        ), looked AS (
            UPDATE process p
            SET ready = false, awaits = CASE WHEN awaited.open THEN p.awaits END,
                worker_id = CASE WHEN awaited.open THEN NULL ELSE %(worker)s END,
                state = CASE WHEN awaited.open THEN p.state ELSE 'running' END,
                attempt = CASE WHEN awaited.open THEN p.attempt ELSE greatest(p.attempt, 1) END,
                started_at = CASE WHEN awaited.open THEN p.started_at ELSE coalesce(p.started_at, now()) END
            FROM awaited WHERE p.node_id = awaited.node_id
            RETURNING p.node_id, p.attempt, p.parent_id, awaited.open)
        SELECT n.id, l.attempt, l.parent_id, n.process_type, n.attributes, n.repository_metadata,
               coalesce((SELECT max(sequence) FROM process c WHERE c.parent_id = n.id), 0),
               coalesce((SELECT max(number) FROM log WHERE log.node_id = n.id AND number IS NOT NULL), 0),
               coalesce((SELECT max(number) FROM decision d WHERE d.process_id = n.id), 0)
        FROM looked l JOIN node n ON n.id = l.node_id WHERE NOT l.open ORDER BY n.id
        """,
        {"ids": list(ids), "worker": worker_id},
    )
    return [ClaimedWorkflow(*row) for row in cursor.fetchall()]


def take_ready(cursor: Any, worker_id: int, among: Collection[int] | None = None) -> list[int]:
    """Of the workflows of this worker those that calls have ended of; they are ready no more.

    among: only of these.
    """
    cursor.execute(
        """
        UPDATE process SET ready = false
        WHERE node_id IN (SELECT node_id FROM process WHERE workflow AND worker_id = %(worker)s AND ready
                            AND state IN ('created', 'waiting', 'running')
                            AND (%(among)s::bigint[] IS NULL OR node_id = ANY (%(among)s))
                          ORDER BY node_id FOR NO KEY UPDATE)
        RETURNING node_id
        """,
        {"worker": worker_id, "among": None if among is None else list(among)},
    )
    return [row[0] for row in cursor.fetchall()]


def find_interrupted(cursor: Any, worker_id: int) -> list[tuple[int, bool, bool]]:
    """Of this worker's workflows those that somebody wants to be paused or killed: id, paused, to_kill."""
    cursor.execute(
        "SELECT node_id, paused, to_kill FROM process"
        " WHERE workflow AND worker_id = %s AND (paused OR to_kill)"
        " AND state IN ('created', 'waiting', 'running')",
        (worker_id,),
    )
    return list(cursor.fetchall())


def wait(cursor: Any, waits: Sequence[Wait]) -> list[int]:
    """Write what workflows wait for; their rows are locked (process.lock) by this transaction.

    Returns those that need not wait: what they want has ended meanwhile.
    """
    if not waits:
        return []
    pairs = [(wait.node_id, call) for wait in waits for call in wait.calls]
    cursor.execute(
        """
        WITH given AS (
            SELECT * FROM unnest(%(ids)s::bigint[], %(added)s::int[], %(any)s::bool[], %(listed)s::bool[],
                                 %(waiting)s::bool[], %(let_go)s::bool[])
                AS given (id, added, any_of, listed, waiting, let_go)
        ), wanted AS (
            SELECT pair.id, count(*) FILTER (WHERE c.state IN ('created', 'waiting', 'running')) AS open,
                   count(*) AS count,
                   min(c.node_id) FILTER (WHERE c.state IN ('created', 'waiting', 'running')) AS first
            FROM unnest(%(parents)s::bigint[], %(calls)s::bigint[]) AS pair (id, call)
            JOIN process c ON c.node_id = pair.call GROUP BY pair.id
        ), meant AS (
            SELECT given.*, p.open_children + given.added AS open_children, wanted.first,
                   CASE WHEN NOT given.listed THEN CASE WHEN given.any_of
                                                      THEN p.open_children + given.added - 1 ELSE 0 END
                        WHEN given.any_of THEN CASE WHEN wanted.open < wanted.count
                            THEN p.open_children + given.added ELSE p.open_children + given.added - 1 END
                        ELSE p.open_children + given.added - coalesce(wanted.open, 0) END AS wake_at
            FROM given JOIN process p ON p.node_id = given.id LEFT JOIN wanted ON wanted.id = given.id
        )
        UPDATE process p
        SET open_children = meant.open_children,
            wake_at = CASE WHEN meant.waiting THEN meant.wake_at ELSE p.wake_at END,
            awaits = CASE WHEN meant.waiting AND NOT meant.any_of THEN meant.first END,
            state = CASE WHEN meant.waiting THEN 'waiting' ELSE p.state END,
            ready = p.ready OR meant.waiting AND meant.open_children <= meant.wake_at,
            worker_id = CASE WHEN meant.let_go THEN NULL ELSE p.worker_id END
        FROM meant WHERE p.node_id = meant.id AND p.state IN ('created', 'waiting', 'running')
        RETURNING p.node_id, p.ready
        """,
        {
            "ids": [wait.node_id for wait in waits],
            "added": [wait.added for wait in waits],
            "any": [wait.any for wait in waits],
            "listed": [bool(wait.calls) for wait in waits],
            "waiting": [wait.waiting for wait in waits],
            "let_go": [wait.let_go for wait in waits],
            "parents": [parent for parent, _ in pairs],
            "calls": [call for _, call in pairs],
        },
    )
    return [node_id for node_id, ready in cursor.fetchall() if ready]


def give_back(cursor: Any, worker_ids: Collection[int], among: Collection[int] | None = None) -> int:
    """Let go of all workflows of these workers, so that others claim them; returns how many.

    among: only of these.
    """
    cursor.execute(
        """
        UPDATE process SET worker_id = NULL, ready = true
        WHERE node_id IN (
            SELECT node_id FROM process WHERE workflow AND worker_id = ANY (%(workers)s)
              AND state IN ('created', 'waiting', 'running')
              AND (%(among)s::bigint[] IS NULL OR node_id = ANY (%(among)s))
            ORDER BY node_id FOR NO KEY UPDATE)
        """,
        {"workers": list(worker_ids), "among": None if among is None else list(among)},
    )
    return int(cursor.rowcount)


def pause(cursor: Any, reasons: Iterable[tuple[int, str]]) -> None:
    """Set workflows aside, each with its reason, until somebody plays them.

    "": somebody has set it aside, and it is let go of, whether or not he has played it since.
    """
    given = list(reasons)
    if given:
        cursor.execute(
            """
            UPDATE process p SET paused = p.paused OR given.reason <> '', worker_id = NULL, ready = true,
                exit_message = coalesce(nullif(given.reason, ''), p.exit_message)
            FROM unnest(%s::bigint[], %s::text[]) AS given (id, reason)
            WHERE p.node_id = given.id AND p.state IN ('created', 'waiting', 'running')
            """,
            ([node_id for node_id, _ in given], [storable(reason) for _, reason in given]),
        )


def read_calls(cursor: Any, after: Sequence[tuple[int, int]], limit: int) -> list[RecordedCall]:
    """A page of the record of workflows: (workflow, the number behind which the page begins), in order."""
    cursor.execute(
        """
        SELECT page.* FROM unnest(%s::bigint[], %s::int[]) AS given (id, after)
        CROSS JOIN LATERAL (
            SELECT parent_id, sequence, node_id, label, call_hash, state::text, exit_status, exit_message
            FROM process WHERE parent_id = given.id AND sequence > given.after
            ORDER BY sequence LIMIT %s) AS page
        """,
        ([node_id for node_id, _ in after], [number for _, number in after], limit),
    )
    return [
        RecordedCall(parent, sequence, node_id, label, bytes(call_hash or b""), State(state), status, message)
        for parent, sequence, node_id, label, call_hash, state, status, message in cursor.fetchall()
    ]


def read_decisions(cursor: Any, ids: Sequence[int]) -> dict[int, list[Any]]:
    """What workflows have decided, in order."""
    found: dict[int, list[Any]] = {}
    if ids:
        cursor.execute(
            "SELECT process_id, value FROM decision WHERE process_id = ANY(%s) ORDER BY process_id, number",
            (list(ids),),
        )
        for node_id, value in cursor.fetchall():
            found.setdefault(node_id, []).append(value)
    return found


def write_decisions(cursor: Any, decisions: Sequence[tuple[int, int, str]]) -> None:
    """Record decisions: workflow, number, JSON."""
    if decisions:
        cursor.execute(
            "INSERT INTO decision (process_id, number, value)"
            " SELECT * FROM unnest(%s::bigint[], %s::int[], %s::jsonb[])",
            tuple(map(list, zip(*decisions, strict=True))),
        )


def write_reports(cursor: Any, reports: Sequence[tuple[int, int, str, str, str]]) -> None:
    """Record reports: workflow, number, the logger's name, level, message."""
    if reports:
        cursor.execute(
            "INSERT INTO log (node_id, number, loggername, levelname, message)"
            " SELECT * FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::text[], %s::text[])"
            " ON CONFLICT DO NOTHING",
            tuple(map(list, zip(*reports, strict=True))),
        )


def read_ends(cursor: Any, ids: Sequence[int]) -> list[tuple[int, State, int | None, str | None]]:
    """Of these processes those that have ended: id, state, exit status and message."""
    if not ids:
        return []
    cursor.execute(
        "SELECT node_id, state::text, exit_status, exit_message FROM process"
        " WHERE node_id = ANY(%s) AND state NOT IN ('created', 'waiting', 'running')",
        (list(ids),),
    )
    return [(node_id, State(state), status, message) for node_id, state, status, message in cursor.fetchall()]


def read_outputs(cursor: Any, ids: Sequence[int]) -> list[tuple[int, str, int]]:
    """The outputs of processes: process, link label, node."""
    if not ids:
        return []
    cursor.execute(
        "SELECT source_id, label, target_id FROM link"
        " WHERE source_id = ANY(%s) AND type IN ('create', 'return')",
        (list(ids),),
    )
    return list(cursor.fetchall())


def read_given(cursor: Any, ids: Sequence[int]) -> list[tuple[int, str, int, str]]:
    """The inputs of processes: process, link label, node and its uuid."""
    if not ids:
        return []
    cursor.execute(
        "SELECT l.target_id, l.label, n.id, n.uuid::text FROM link l JOIN node n ON n.id = l.source_id"
        " WHERE l.target_id = ANY(%s) AND l.type IN ('input_calc', 'input_work')",
        (list(ids),),
    )
    return list(cursor.fetchall())


def read_inputs(cursor: Any, ids: Sequence[int]) -> list[tuple[int, str, int]]:
    """The inputs of processes: process, link label, node."""
    if not ids:
        return []
    cursor.execute(
        "SELECT target_id, label, source_id FROM link"
        " WHERE target_id = ANY(%s) AND type IN ('input_calc', 'input_work')",
        (list(ids),),
    )
    return list(cursor.fetchall())
