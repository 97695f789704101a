"""The rows of allocations: every statement on the table `allocation`, in the caller's transaction.

A row is written with its token before the job is submitted, and gets the job's number after. Who
submits holds a session advisory lock on the row's id, so that a row whose submitter died is told from
one that is on its way; its job, if there is one, is found in the queue by the token in its name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from grange.core.database import Cursor, translated
from grange.core.errors import NotFound
from grange.farm.allocation import AllocationRequest
from grange.farm.computer import Computer
from grange.farm.errors import SchedulerRefused
from grange.farm.slurm import Job

#: First key of the advisory locks of those who submit; the second is the id of the row.
SUBMIT_LOCK = 0x67_72_61_11

AllocationState = Literal["submitting", "queued", "running", "ended", "failed", "cancelled"]
OPEN: tuple[AllocationState, ...] = ("submitting", "queued", "running")

#: What an open row says from when its end is asked for; however its job ends then, it is cancelled.
STOPPING = "it was told to stop"
#: What a row says whose job was never seen. Should the job turn up after all, the row is opened again.
NEVER_SUBMITTED = "never submitted: whoever was to do it was interrupted"
#: So long is looked out for such a job. Seconds.
LOOKED_OUT_FOR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Allocation:
    """One allocation. left_s: of its walltime while it runs, by what Slurm told when it was last asked.

    Units: seconds.
    """

    id: int
    computer_id: int
    computer: str
    token: str
    job_id: str | None
    state: AllocationState
    nodes: int
    cores_per_node: int | None
    walltime_s: int
    idle_s: int
    by_policy: bool
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    reason: str
    elapsed_s: float | None
    submitter_lives: bool
    age_s: float

    @property
    def is_open(self) -> bool:
        """Whether it is queued or runs, or is just being submitted."""
        return self.state in OPEN

    @property
    def is_stopping(self) -> bool:
        """Whether its end was asked for."""
        return self.is_open and self.reason == STOPPING

    @property
    def left_s(self) -> float | None:
        """What is left of its walltime; all of it before it runs, nothing after its end."""
        if not self.is_open:
            return None
        return max(self.walltime_s - (self.elapsed_s or 0.0), 0.0)

    @property
    def cores(self) -> int | None:
        """The cores of all its nodes; None where they are not known."""
        return None if self.cores_per_node is None else self.nodes * self.cores_per_node

    @property
    def name(self) -> str:
        """The name of its job."""
        return AllocationRequest(token=self.token).name


_COLUMNS = """
a.id, a.computer_id, c.label, a.token, a.job_id, a.state::text, a.nodes, a.cores_per_node, a.walltime_s,
a.idle_s, a.by_policy, a.submitted_at, a.started_at, a.ended_at, a.reason,
extract(epoch FROM coalesce(a.ended_at, now()) - a.started_at)::float8,
EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
        AND l.classid::bigint = %(lock)s AND l.objid::bigint = a.id
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())),
extract(epoch FROM now() - a.submitted_at)::float8
"""

# Allocations by id.
_BY_ID = f"""
SELECT {_COLUMNS} FROM allocation a JOIN computer c ON c.id = a.computer_id
WHERE a.id = ANY (%(ids)s) ORDER BY a.id
"""  # noqa: S608

# What the queue is to be asked about: open allocations, and those whose job may turn up yet.
_WATCHED = f"""
SELECT {_COLUMNS} FROM allocation a JOIN computer c ON c.id = a.computer_id
WHERE a.computer_id = %(computer)s AND (a.state IN ('submitting', 'queued', 'running')
      OR a.job_id IS NULL AND a.reason = %(never)s AND a.ended_at > now() - %(looked)s * interval '1 s')
ORDER BY a.id
"""  # noqa: S608

# The newest allocations, of one computer or all, the open ones first.
_LIST = f"""
SELECT {_COLUMNS} FROM allocation a JOIN computer c ON c.id = a.computer_id
WHERE (%(computer)s::integer IS NULL OR a.computer_id = %(computer)s)
  AND (%(ended)s OR a.state IN ('submitting', 'queued', 'running')) AND a.id < %(before)s
ORDER BY a.id DESC LIMIT %(limit)s
"""  # noqa: S608


def _read(cursor: Cursor, statement: str, values: dict[str, object]) -> list[Allocation]:
    with translated():
        cursor.execute(statement, {"lock": SUBMIT_LOCK, **values})
        return [Allocation(*row) for row in cursor.fetchall()]


def find(cursor: Cursor, ids: Collection[int]) -> list[Allocation]:
    """Allocations by id, in that order. Errors: NotFound."""
    found = {one.id: one for one in _read(cursor, _BY_ID, {"ids": list(ids)})}
    for id_ in ids:
        if id_ not in found:
            raise NotFound(
                f"there is no allocation {id_}; `grange allocation list --all` shows those there are"
            )
    return [found[id_] for id_ in ids]


def watched(cursor: Cursor, computer_id: int) -> list[Allocation]:
    """What the queue of a computer is to be asked about."""
    return _read(
        cursor, _WATCHED, {"computer": computer_id, "never": NEVER_SUBMITTED, "looked": LOOKED_OUT_FOR_S}
    )


def list_allocations(
    cursor: Cursor, computer_id: int | None = None, *, ended: bool = False, limit: int, before: int
) -> list[Allocation]:
    """Allocations with ids below `before`, the newest first; ended: with those that have ended."""
    return _read(cursor, _LIST, {"computer": computer_id, "ended": ended, "limit": limit, "before": before})


def open_allocations(cursor: Cursor, computer_id: int) -> list[Allocation]:
    """All that are open on a computer, by id."""
    return [one for one in watched(cursor, computer_id) if one.is_open]


def lock_queue(cursor: Cursor, computer_id: int) -> None:
    """Be the only one to add to a computer's queue, or to decide about it, until the transaction ends."""
    with translated():
        cursor.execute("SELECT FROM computer WHERE id = %s FOR NO KEY UPDATE", (computer_id,))


def reserve(
    cursor: Cursor,
    computer_id: int,
    computer: Computer,
    requests: Sequence[AllocationRequest],
    *,
    by_policy: bool = False,
) -> list[int]:
    """Rows for allocations that are about to be submitted by this session; returns their ids.

    The bounds hold over all processes together, because each reserves under a lock on the computer. The
    session holds a lock on each row from now on: release() it when it is known what became of the job.
    Errors: SchedulerRefused where the computer's bounds leave no room for all of them.
    """
    lock_queue(cursor, computer_id)
    there = len(open_allocations(cursor, computer_id))
    for bound, name in (
        (computer.max_queued_jobs, "max_queued_jobs"),
        (computer.max_allocations, "max_allocations"),
    ):
        if there + len(requests) > bound:
            raise SchedulerRefused(
                computer.label,
                f"{there} allocations are open there, and {len(requests)} more would be beyond {name} "
                f"({bound}): wait, stop some, or `grange computer edit {computer.label}`",
                retryable=True,
            )
    ids = []
    with translated():
        for request in requests:
            cursor.execute(
                "INSERT INTO allocation"
                " (computer_id, token, nodes, cores_per_node, walltime_s, idle_s, by_policy)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id",
                (
                    *(computer_id, request.token, request.nodes, request.cores_per_node),
                    *(request.walltime_s, request.idle_s, by_policy),
                ),
            )
            (id_,) = cursor.fetchone() or (0,)
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (SUBMIT_LOCK, id_))
            ids.append(int(id_))
    return ids


def release(cursor: Cursor, ids: Collection[int]) -> None:
    """This session submits these no more."""
    with translated():
        cursor.execute(
            "SELECT pg_advisory_unlock(%s, id) FROM unnest(%s::int[]) AS t (id)", (SUBMIT_LOCK, list(ids))
        )


def record_submitted(cursor: Cursor, id_: int, job_id: str) -> None:
    """A job was submitted; a row that others took for lost is opened again."""
    with translated():
        cursor.execute(
            "UPDATE allocation SET job_id = %s, state = 'queued', ended_at = NULL,"
            " reason = CASE WHEN reason = %s THEN '' ELSE reason END"
            " WHERE id = %s AND job_id IS NULL",
            (job_id, NEVER_SUBMITTED, id_),
        )


def record_not_submitted(
    cursor: Cursor, ids: Collection[int], state: Literal["failed", "cancelled"], reason: str
) -> None:
    """Jobs that will not be submitted."""
    with translated():
        cursor.execute(
            "UPDATE allocation SET state = %s, reason = %s, ended_at = now()"
            " WHERE id = ANY (%s) AND state = 'submitting'",
            (state, reason, list(ids)),
        )


def record_stopping(cursor: Cursor, ids: Collection[int]) -> None:
    """The end of open allocations is asked for."""
    with translated():
        cursor.execute(
            "UPDATE allocation SET reason = %s"
            " WHERE id = ANY (%s) AND state IN ('submitting', 'queued', 'running')",
            (STOPPING, list(ids)),
        )


@dataclass(frozen=True, slots=True)
class Observed:
    """What was learned of an allocation. Units: seconds."""

    id: int
    job_id: str | None
    state: AllocationState
    reason: str
    elapsed_s: float | None


def observe(one: Allocation, job: Job | None, *, lost_after_s: float) -> Observed | None:
    """What a look into the queue says about an allocation; None where it says nothing new.

    job: None where the scheduler does not know it. lost_after_s: so old a row without a job has to be before
    it is given up: what was submitted may take a moment to show up.
    """
    if job is None:
        if not one.is_open:
            return None
        if one.job_id is None:
            if one.submitter_lives or one.age_s < lost_after_s:
                return None
            return Observed(one.id, None, "cancelled", NEVER_SUBMITTED, None)
        if one.age_s < lost_after_s:
            return None
        if one.is_stopping:
            return Observed(one.id, one.job_id, "cancelled", "stopped", None)
        return Observed(one.id, one.job_id, "ended", "Slurm does not know it any more", None)
    state: AllocationState = job.state
    reason = _reason(job)
    if one.reason == STOPPING:
        is_over = job.state not in OPEN
        state, reason = ("cancelled", "stopped") if is_over else (state, STOPPING)
    has_begun = job.state == "running" or (job.state != "queued" and job.elapsed_s > 0)
    elapsed_s = job.elapsed_s if has_begun else None
    if (one.state, one.job_id, one.reason) == (state, job.id, reason) and one.is_open:
        return None
    return Observed(one.id, job.id, state, reason, elapsed_s)


def _reason(job: Job) -> str:
    """Why a job waits, or how it ended; nothing of one that runs or ended well."""
    if job.state == "running" or job.word == "COMPLETED":
        return ""
    if job.state == "queued":
        return job.reason
    return f"{job.word}: {job.reason}" if job.reason else job.word


def record_observed(cursor: Cursor, observed: Collection[Observed]) -> set[int]:
    """Write what was learned; returns the ids of the rows that changed. Ends are final, but for lost ones."""
    changed = set()
    with translated():
        for one in observed:
            cursor.execute(
                """
                UPDATE allocation SET job_id = coalesce(%(job)s, job_id), state = %(state)s::allocation_state,
                    reason = %(reason)s,
                    started_at = coalesce(started_at, now() - %(elapsed)s * interval '1 s'),
                    ended_at = CASE WHEN %(open)s THEN NULL ELSE now() END
                WHERE id = %(id)s AND (state IN ('submitting', 'queued', 'running')
                      OR job_id IS NULL AND reason = %(never)s AND %(job)s IS NOT NULL)
                """,
                {
                    "id": one.id,
                    "job": one.job_id,
                    "state": one.state,
                    "reason": one.reason,
                    "elapsed": one.elapsed_s,
                    "open": one.state in OPEN,
                    "never": NEVER_SUBMITTED,
                },
            )
            if cursor.rowcount:
                changed.add(one.id)
    return changed
