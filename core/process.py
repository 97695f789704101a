"""The rows of processes: every statement on the table `process`, plural, in the caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from grange.core.database import copy_rows, escape, reserve_ids
from grange.core.transition import ENDED, State

#: What is told on the channel "grange": workflows are ready; processes that somebody may wait for have ended.
READY_NEWS = "ready"
ENDED_NEWS = "ended"
#: Somebody wants processes to be paused, played or killed, or workers to do something.
CONTROL_NEWS = "control"
#: What is kept of a message of a process, and of one in its log. Characters.
LONGEST_MESSAGE, LONGEST_LOG = 10_000, 1_000_000


def queue_news(queue_id: int) -> str:
    """There is something to run in a queue."""
    return f"queue:{queue_id}"


@dataclass(slots=True)
class NewProcess:
    """A process about to be recorded; node_id is that of its node, stored in the same transaction.

    queue_id: the campaign or queue whose holder runs a calculation. parent_id, sequence, call_hash: of a call
    of a workflow. started_at, wall_s: of one that has been run already; seconds since the epoch, seconds.
    use_cache: whether equal processes may answer it; valid_cache: whether it may answer equal ones once it
    has finished.
    """

    node_id: int
    label: str
    key: bytes | None
    campaign_id: int | None
    ordinal: int | None
    state: State
    attempt: int
    worker_id: int | None
    exit_status: int | None = None
    exit_message: str | None = None
    cached_from: int | None = None
    queue_id: int | None = None
    workflow: bool = False
    ready: bool = False
    parent_id: int | None = None
    sequence: int | None = None
    call_hash: bytes | None = None
    started_at: float | None = None
    wall_s: float | None = None
    use_cache: bool = True
    valid_cache: bool = True


@dataclass(slots=True)
class End:
    """What became of an attempt of a process. Units: seconds since the epoch, seconds, mebibytes.

    parent_id: the workflow that called it, where that is known: its row is then locked first.
    invalidates_cache: it must not answer equal processes, though it has finished. cached_from: the equal one
    that has answered it.
    """

    node_id: int
    attempt: int
    state: State
    exit_status: int | None
    message: str | None
    started_at: float | None
    wall_s: float | None
    cpu_s: float | None
    peak_memory_mb: float | None
    host: str | None
    parent_id: int | None = None
    invalidates_cache: bool = False
    cached_from: int | None = None

    @classmethod
    def killed(cls, node_id: int, attempt: int, message: str, parent_id: int | None = None) -> End:
        """The end of a process that was killed before it got as far as a runner.

        message: "" leaves what was said when it was asked for.
        """
        return cls(
            node_id, attempt, State.KILLED, None, message or None, None, None, None, None, None, parent_id
        )

    @classmethod
    def excepted(cls, node_id: int, attempt: int, message: str, parent_id: int | None = None) -> End:
        """The end of a process that never got as far as a runner."""
        return cls(node_id, attempt, State.EXCEPTED, None, message, None, None, None, None, None, parent_id)


@dataclass(slots=True)
class Found:
    """A process that a campaign has already."""

    node_id: int
    state: State
    attempt: int
    exit_status: int | None


@dataclass(slots=True)
class Claimed:
    """An unfinished process that this worker has taken over."""

    node_id: int
    attempt: int
    process_type: str
    attributes: dict[str, Any]
    repository_metadata: dict[str, Any]
    parent_id: int | None = None
    inputs: list[tuple[str, int]] = field(default_factory=list)


COLUMNS = (
    "node_id",
    "state",
    "attempt",
    "worker_id",
    "campaign_id",
    "ordinal",
    "key",
    "label",
    "exit_status",
    "exit_message",
    "cached_from",
    "queue_id",
    "workflow",
    "ready",
    "parent_id",
    "sequence",
    "call_hash",
    "wall_s",
    "started_at",
    "finished_at",
    "use_cache",
    "valid_cache",
)


def insert(cursor: Any, processes: Iterable[NewProcess]) -> None:
    """Record new processes, by one COPY."""

    def lines() -> Iterable[str]:
        for new in processes:
            row = (
                str(new.node_id),
                new.state.value,
                str(new.attempt),
                _number(new.worker_id),
                _number(new.campaign_id),
                _number(new.ordinal),
                "\\N" if new.key is None else "\\\\x" + new.key.hex(),
                escape(new.label),
                _number(new.exit_status),
                "\\N" if new.exit_message is None else escape(storable(new.exit_message)),
                _number(new.cached_from),
                _number(new.queue_id),
                "t" if new.workflow else "f",
                "t" if new.ready else "f",
                _number(new.parent_id),
                _number(new.sequence),
                "\\N" if new.call_hash is None else "\\\\x" + new.call_hash.hex(),
                "\\N" if new.wall_s is None else f"{new.wall_s:.6g}",
                "\\N" if new.started_at is None else _moment(new.started_at),
                "\\N" if new.state not in ENDED else _ended(new),
                "t" if new.use_cache else "f",
                "t" if new.valid_cache else "f",
            )
            yield "\t".join(row) + "\n"

    copy_rows(cursor, "process", COLUMNS, lines())


def _number(value: int | None) -> str:
    return "\\N" if value is None else str(value)


def _ended(new: NewProcess) -> str:
    return "now" if new.started_at is None else _moment(new.started_at + (new.wall_s or 0.0))


def _moment(seconds: float) -> str:
    """A time since the epoch as PostgreSQL reads it; its sessions are in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def storable(message: str, most: int = LONGEST_MESSAGE) -> str:
    """A message, whatever somebody put into it, as PostgreSQL can keep it, and no longer than most.

    Units: characters.
    """
    if len(message) > most:
        kept = most - 50  # with what is said of the rest it is no longer than most
        message = f"{message[:kept]} … ({len(message) - kept:,} more characters)"
    if "\x00" in message:
        message = message.replace("\x00", "\N{SYMBOL FOR NULL}")
    return message if message.isascii() else message.encode("utf-8", "replace").decode()


def end(cursor: Any, ends: Sequence[End]) -> set[int]:
    """End processes: compare-and-set on state and attempt.

    Returns the ids of those that this call ended; what had ended before, or is in another attempt, is
    left alone, so that recording a result twice changes nothing. The workflows that called them know of it
    when the transaction ends, and so does who waits for them.
    """
    if not ends:
        return set()
    lock(cursor, {e.parent_id for e in ends if e.parent_id is not None} | {e.node_id for e in ends})
    cursor.execute(
        """
        UPDATE process p
        SET state = e.state::process_state, exit_status = e.exit_status,
            exit_message = coalesce(e.message, CASE WHEN e.state = 'killed' THEN p.exit_message END),
            started_at = coalesce(to_timestamp(e.started_at), p.started_at),
            finished_at = coalesce(to_timestamp(e.started_at + e.wall_s), now()),
            wall_s = coalesce(
                e.wall_s, CASE WHEN p.workflow THEN extract(epoch FROM now() - p.started_at) END),
            cpu_s = e.cpu_s, peak_memory_mb = e.peak_memory_mb, host = e.host,
            valid_cache = p.valid_cache AND NOT e.invalidates,
            cached_from = e.cached_from
        FROM unnest(%s::bigint[], %s::int[], %s::text[], %s::int[], %s::text[], %s::float8[], %s::float8[],
                    %s::float8[], %s::float8[], %s::text[], %s::bool[], %s::bigint[])
             AS e (id, attempt, state, exit_status, message, started_at, wall_s, cpu_s, peak_memory_mb, host,
                   invalidates, cached_from)
        WHERE p.node_id = e.id AND p.attempt = e.attempt AND p.state IN ('created', 'waiting', 'running')
        RETURNING p.node_id, p.parent_id, p.campaign_id
        """,
        (
            [e.node_id for e in ends],
            [e.attempt for e in ends],
            [e.state.value for e in ends],
            [e.exit_status for e in ends],
            [None if e.message is None else storable(e.message) for e in ends],
            [e.started_at for e in ends],
            [e.wall_s for e in ends],
            [e.cpu_s for e in ends],
            [e.peak_memory_mb for e in ends],
            [e.host for e in ends],
            [e.invalidates_cache for e in ends],
            [e.cached_from for e in ends],
        ),
    )
    ended = cursor.fetchall()
    tell(
        cursor,
        children_ended(cursor, [parent for _, parent, _ in ended if parent is not None]),
        [ENDED_NEWS] if any(parent is None and campaign is None for _, parent, campaign in ended) else [],
    )
    return {row[0] for row in ended}


def lock(cursor: Any, ids: Collection[int]) -> None:
    """Lock the rows of processes in the order in which everybody does: by id."""
    if ids:
        cursor.execute(
            "SELECT FROM process WHERE node_id = ANY(%s) ORDER BY node_id FOR NO KEY UPDATE", (list(ids),)
        )


def children_ended(cursor: Any, parents: Collection[int]) -> list[str]:
    """Count down the open calls of workflows: one for each time that a workflow is named.

    Returns what is to be told.
    """
    if not parents:
        return []
    counts = Counter(parents)
    cursor.execute(
        """
        UPDATE process p
        SET open_children = p.open_children - ended.count,
            ready = p.ready OR p.open_children - ended.count <= p.wake_at
        FROM unnest(%s::bigint[], %s::int[]) AS ended (id, count) WHERE p.node_id = ended.id
        RETURNING p.ready
        """,
        (list(counts), list(counts.values())),
    )
    return [READY_NEWS] if any(ready for (ready,) in cursor.fetchall()) else []


def tell(cursor: Any, *news: Collection[str]) -> None:
    """Tell everybody who listens, when the transaction is committed."""
    told = sorted({one for some in news for one in some})
    if told:
        cursor.execute("SELECT pg_notify('grange', news) FROM unnest(%s::text[]) AS news", (told,))


def find_recorded(cursor: Any, campaign_id: int, keys: Collection[bytes]) -> dict[bytes, Found]:
    """Which of these calls the campaign has recorded already."""
    if not keys:
        return {}
    cursor.execute(
        """
        SELECT key, node_id, state, attempt, exit_status FROM process
        WHERE campaign_id = %s AND key = ANY(%s) AND superseded_by IS NULL
        """,
        (campaign_id, list(keys)),
    )
    return {
        bytes(key): Found(node_id, State(state), attempt, exit_status)
        for key, node_id, state, attempt, exit_status in cursor.fetchall()
    }


def claim_unfinished(cursor: Any, queue_id: int, worker_id: int, limit: int) -> list[Claimed]:
    """Take over unfinished calculations of a campaign or queue as a new attempt of this worker, oldest first.

    The caller holds its lock, so whoever had them before is gone; those of this worker, and those that wait
    for an equal one, are left alone.
    """
    cursor.execute(
        """
        WITH taken AS (
            UPDATE process SET attempt = attempt + 1, worker_id = %(worker)s, state = 'waiting'
            WHERE node_id IN (
                SELECT node_id FROM process
                WHERE queue_id = %(queue)s AND NOT workflow AND state IN ('created', 'waiting', 'running')
                  AND worker_id IS DISTINCT FROM %(worker)s AND NOT paused AND NOT to_kill
                  AND cached_from IS NULL
                ORDER BY node_id LIMIT %(limit)s
                FOR UPDATE SKIP LOCKED)
            RETURNING node_id, attempt, parent_id)
        SELECT n.id, t.attempt, n.process_type, n.attributes, n.repository_metadata, t.parent_id
        FROM taken t JOIN node n ON n.id = t.node_id ORDER BY n.id
        """,
        {"queue": queue_id, "worker": worker_id, "limit": limit},
    )
    return _with_inputs(cursor, [Claimed(*row) for row in cursor.fetchall()])


def claim(cursor: Any, ids: Collection[int], worker_id: int) -> dict[int, int]:
    """Take over these unfinished processes, paused ones too, as a new attempt of this worker.

    The caller holds the campaign's lock. Returns id → attempt; those of this worker, and those that wait for
    an equal one, are left alone.
    """
    if not ids:
        return {}
    lock(cursor, ids)
    cursor.execute(
        """
        UPDATE process SET attempt = attempt + 1, worker_id = %(worker)s, state = 'waiting',
            paused = false, exit_message = NULL
        WHERE node_id = ANY(%(ids)s) AND state IN ('created', 'waiting', 'running')
          AND worker_id IS DISTINCT FROM %(worker)s AND cached_from IS NULL
        RETURNING node_id, attempt
        """,
        {"worker": worker_id, "ids": list(ids)},
    )
    return dict(cursor.fetchall())


def take_over(cursor: Any, attempts: Mapping[int, int], worker_id: int) -> list[Claimed]:
    """Go on with processes whose tasks are under way elsewhere: id → the attempt that is.

    The caller holds the campaign's lock. Those that have ended, are paused, or are in another attempt are
    left alone; the others are returned.
    """
    if not attempts:
        return []
    lock(cursor, attempts)
    cursor.execute(
        """
        UPDATE process p SET worker_id = %s, state = 'waiting'
        FROM unnest(%s::bigint[], %s::int[]) AS t (id, attempt)
        WHERE p.node_id = t.id AND p.attempt = t.attempt AND p.state IN ('created', 'waiting', 'running')
          AND NOT p.paused
        RETURNING p.node_id
        """,
        (worker_id, list(attempts), list(attempts.values())),
    )
    return find_open(cursor, [row[0] for row in cursor.fetchall()])


def ask_to_kill(
    cursor: Any,
    *,
    ids: Collection[int] | None = None,
    campaign_id: int | None = None,
    computer: str | None = None,
) -> dict[int, int]:
    """Mark unfinished processes as to be killed: these, those of a campaign, or all on a computer.

    Returns campaign or queue → how many of it.
    """
    cursor.execute(
        """
        WITH asked AS (
            UPDATE process SET to_kill = true
            WHERE node_id IN (
                SELECT node_id FROM process
                WHERE state IN ('created', 'waiting', 'running')
                  AND (%(ids)s::bigint[] IS NULL OR node_id = ANY(%(ids)s))
                  AND (%(campaign)s::int IS NULL OR campaign_id = %(campaign)s)
                  AND (%(computer)s::text IS NULL OR queue_id IN (
                      SELECT id FROM "group" WHERE type_string IN ('campaign', 'queue')
                      AND extras->>'executor' = %(computer)s))
                ORDER BY node_id FOR NO KEY UPDATE)
            RETURNING queue_id)
        SELECT queue_id, count(*) FROM asked WHERE queue_id IS NOT NULL GROUP BY 1
        """,
        {"ids": None if ids is None else list(ids), "campaign": campaign_id, "computer": computer},
    )
    return dict(cursor.fetchall())


def find_to_kill(cursor: Any, queue_id: int) -> dict[int, int]:
    """The unfinished calculations of a campaign or queue that somebody wants to end: id → attempt."""
    cursor.execute(
        """
        SELECT node_id, attempt FROM process
        WHERE queue_id = %s AND to_kill AND NOT workflow AND state IN ('created', 'waiting', 'running')
        """,
        (queue_id,),
    )
    return dict(cursor.fetchall())


def find_parents(cursor: Any, ids: Collection[int]) -> dict[int, int]:
    """Of these processes those that workflows have called: id → the workflow."""
    if not ids:
        return {}
    cursor.execute(
        "SELECT node_id, parent_id FROM process WHERE node_id = ANY(%s) AND parent_id IS NOT NULL",
        (list(ids),),
    )
    return dict(cursor.fetchall())


def count_backlog(cursor: Any, computer: str) -> int:
    """How many calculations are still to be run on a computer: those of campaigns and queues there."""
    cursor.execute(
        """
        SELECT count(*) FROM process p JOIN "group" g ON g.id = p.queue_id
        WHERE g.type_string IN ('campaign', 'queue') AND g.extras->>'executor' = %s AND NOT p.workflow
          AND p.state IN ('created', 'waiting', 'running') AND NOT p.paused AND NOT p.to_kill
          AND p.cached_from IS NULL
        """,
        (computer,),
    )
    return int(cursor.fetchone()[0])


def play(cursor: Any, ids: Collection[int]) -> None:
    """Let paused processes be run again."""
    if ids:
        lock(cursor, ids)
        cursor.execute(
            "UPDATE process SET paused = false, exit_message = NULL WHERE node_id = ANY(%s) AND paused",
            (list(ids),),
        )


def find_open(cursor: Any, ids: Collection[int]) -> list[Claimed]:
    """Those of these processes that have not ended, as they are."""
    cursor.execute(
        """
        SELECT n.id, p.attempt, n.process_type, n.attributes, n.repository_metadata, p.parent_id
        FROM process p JOIN node n ON n.id = p.node_id
        WHERE p.node_id = ANY(%s) AND p.state IN ('created', 'waiting', 'running') ORDER BY n.id
        """,
        (list(ids),),
    )
    return _with_inputs(cursor, [Claimed(*row) for row in cursor.fetchall()])


def _with_inputs(cursor: Any, claimed: list[Claimed]) -> list[Claimed]:
    by_id = {process.node_id: process for process in claimed}
    cursor.execute(
        """
        SELECT target_id, label, source_id FROM link
        WHERE target_id = ANY(%s) AND type IN ('input_calc', 'input_work')
        """,
        (list(by_id),),
    )
    for target_id, label, source_id in cursor.fetchall():
        by_id[target_id].inputs.append((label, source_id))
    return claimed


def count_unfinished(cursor: Any, campaign_id: int) -> int:
    """How many processes of a campaign are still to be run."""
    cursor.execute(
        """
        SELECT count(*) FROM process
        WHERE queue_id = %s AND state IN ('created', 'waiting', 'running') AND NOT paused
        """,
        (campaign_id,),
    )
    return int(cursor.fetchone()[0])


def count_paused(cursor: Any, campaign_id: int) -> dict[str, int]:
    """Why processes of a campaign are paused, and how many for that reason."""
    cursor.execute(
        """
        SELECT coalesce(exit_message, ''), count(*) FROM process
        WHERE queue_id = %s AND paused AND state IN ('created', 'waiting', 'running') GROUP BY 1 ORDER BY 1
        """,
        (campaign_id,),
    )
    return dict(cursor.fetchall())


def label_nameless(cursor: Any, labels: Mapping[int, str]) -> None:
    """Give names to processes that were recorded without one; those that have one keep it."""
    cursor.execute(
        """
        UPDATE node SET label = given.label, mtime = now()
        FROM unnest(%s::bigint[], %s::text[]) AS given (id, label)
        WHERE node.id = given.id AND node.label = '' AND given.label <> ''
        """,
        (list(labels), list(labels.values())),
    )


def pause(cursor: Any, ids: Collection[int], reason: str) -> None:
    """Set processes aside, with the reason, until somebody plays them."""
    lock(cursor, ids)
    cursor.execute(
        """
        UPDATE process SET paused = true, exit_message = %s, state = 'created', worker_id = NULL
        WHERE node_id = ANY(%s) AND state IN ('created', 'waiting', 'running')
        """,
        (storable(reason), list(ids)),
    )


def release(cursor: Any, worker_id: int, queue_id: int) -> int:
    """Give back the calculations of a campaign or queue that this worker has not ended."""
    cursor.execute(
        """
        UPDATE process SET worker_id = NULL, state = 'created'
        WHERE node_id IN (
            SELECT node_id FROM process
            WHERE worker_id = %s AND queue_id = %s AND NOT workflow
              AND state IN ('created', 'waiting', 'running')
            ORDER BY node_id FOR NO KEY UPDATE)
        """,
        (worker_id, queue_id),
    )
    return int(cursor.rowcount)


def count_states(cursor: Any, campaign_id: int) -> dict[tuple[State, bool], int]:
    """How many processes of a campaign are in a state, failed ones (exit status not 0) apart."""
    cursor.execute(
        """
        SELECT state, coalesce(exit_status, 0) <> 0, count(*) FROM process
        WHERE campaign_id = %s AND superseded_by IS NULL GROUP BY 1, 2
        """,
        (campaign_id,),
    )
    return {(State(state), failed): count for state, failed, count in cursor.fetchall()}


def retry_failed(cursor: Any, campaign_id: int, exit_statuses: Collection[int] | None = None) -> list[int]:
    """Make the failed calls of a campaign again: new processes with the same code and inputs, to be run.

    The failed ones keep their record, say by which process they are superseded, and lose their key. The new
    ones are computed, whatever equal ones there are.
    exit_statuses: only those that finished with one of these. Returns the ids of the new processes.
    """
    cursor.execute(
        """
        SELECT node_id, key FROM process
        WHERE campaign_id = %s AND superseded_by IS NULL
          AND (state IN ('excepted', 'killed') AND %s::int[] IS NULL
               OR state = 'finished' AND exit_status <> 0
                  AND (%s::int[] IS NULL OR exit_status = ANY(%s::int[])))
        ORDER BY node_id FOR UPDATE
        """,
        (campaign_id, *[None if exit_statuses is None else list(exit_statuses)] * 3),
    )
    failed = cursor.fetchall()
    if not failed:
        return []
    old_ids = [row[0] for row in failed]
    new_ids = list(reserve_ids(cursor, len(failed)))
    pairs = (new_ids, old_ids)
    cursor.execute(
        """
        INSERT INTO node (id, uuid, kind, user_id, computer_id, node_type, process_type, label,
                          description, attributes, repository_metadata)
        SELECT new_id, gen_random_uuid(), kind, user_id, computer_id, node_type, process_type, label,
               description, attributes, repository_metadata
        FROM unnest(%s::bigint[], %s::bigint[]) AS pair (new_id, old_id) JOIN node ON node.id = old_id
        """,
        pairs,
    )
    cursor.execute(
        """
        INSERT INTO link (source_id, target_id, type, label)
        SELECT source_id, new_id, type, label
        FROM unnest(%s::bigint[], %s::bigint[]) AS pair (new_id, old_id)
        JOIN link ON target_id = old_id AND type IN ('input_calc', 'input_work')
        """,
        pairs,
    )
    cursor.execute(
        """
        UPDATE process SET key = NULL, superseded_by = new_id
        FROM unnest(%s::bigint[], %s::bigint[]) AS pair (new_id, old_id) WHERE node_id = old_id
        """,
        pairs,
    )
    cursor.execute(
        """
        INSERT INTO process
            (node_id, state, attempt, campaign_id, queue_id, ordinal, key, label, workflow, ready, use_cache)
        SELECT new_id, 'created', 0, campaign_id, campaign_id, ordinal, new_key, label, workflow, workflow,
               false
        FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[]) AS pair (new_id, old_id, new_key)
        JOIN process ON node_id = old_id
        """,
        (*pairs, [row[1] for row in failed]),
    )
    return new_ids
