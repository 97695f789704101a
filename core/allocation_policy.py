"""The rows of policies: how many allocations a computer should have. What is to be computed there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grange.core.database import Cursor, translated
from grange.core.errors import InputInvalid
from grange.core.resources import resources_of_attributes
from grange.core.worker import CAMPAIGN_LOCK
from grange.farm.allocation_policy import Backlog, Policy, cores_taken
from grange.farm.computer import Computer

#: Of so many results it is learned how long a task takes.
_MEASURED = 200
#: Of so many tasks it is looked what they need.
_LOOKED_AT = 50


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy with its row. held_reason: what failed last."""

    computer_id: int
    policy: Policy
    held_reason: str


_COLUMNS = (
    "min_allocations, max_allocations, nodes, walltime_s, idle_s, backlog, failures,"
    " coalesce(extract(epoch FROM held_until), 0)::float8, held_reason"
)

# A policy is written whole; a person who does so has looked at what failed.
_SET = """
INSERT INTO allocation_policy
    (computer_id, min_allocations, max_allocations, nodes, walltime_s, idle_s, backlog)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (computer_id) DO UPDATE SET min_allocations = EXCLUDED.min_allocations,
    max_allocations = EXCLUDED.max_allocations, nodes = EXCLUDED.nodes, walltime_s = EXCLUDED.walltime_s,
    idle_s = EXCLUDED.idle_s, backlog = EXCLUDED.backlog, failures = 0, held_until = NULL, held_reason = ''
"""

# How failures stand.
_SET_FAILURES = """
UPDATE allocation_policy
SET failures = %s, held_until = CASE WHEN %s > 0 THEN to_timestamp(%s) END, held_reason = %s
WHERE computer_id = %s
"""


def find(cursor: Cursor, computer_id: int, computer: Computer) -> StoredPolicy | None:
    """The policy of a computer, with the cores that its nodes have."""
    with translated():
        cursor.execute(f"SELECT {_COLUMNS} FROM allocation_policy WHERE computer_id = %s", (computer_id,))  # noqa: S608
        row = cursor.fetchone()
    if row is None:
        return None
    least, most, nodes, walltime_s, idle_s, backlog, failures, held_until_s, reason = row
    policy = Policy(
        min_allocations=least,
        max_allocations=most,
        nodes=nodes,
        cores_per_node=computer.cores_per_node,
        walltime_s=walltime_s,
        idle_s=idle_s,
        backlog=backlog,
        failures=failures,
        held_until_s=held_until_s,
    )
    return StoredPolicy(computer_id, policy, reason)


def computers_with_policy(cursor: Cursor) -> list[str]:
    """The labels of computers that have one."""
    with translated():
        cursor.execute(
            "SELECT c.label FROM allocation_policy p JOIN computer c ON c.id = p.computer_id ORDER BY c.label"
        )
        return [label for (label,) in cursor.fetchall()]


def write(cursor: Cursor, computer_id: int, computer: Computer, policy: Policy) -> None:
    """Say how many allocations a computer should have; lets one that was held be tried again.

    Errors: InputInvalid.
    """
    checked(policy, computer)
    with translated():
        cursor.execute(
            _SET,
            (
                *(computer_id, policy.min_allocations, policy.max_allocations, policy.nodes),
                *(policy.walltime_s, policy.idle_s, policy.backlog),
            ),
        )


def checked(policy: Policy, computer: Computer) -> Policy:
    """The policy, if it can be followed on that computer. Errors: InputInvalid."""
    bound = min(computer.max_allocations, computer.max_queued_jobs)
    if not 0 <= policy.max_allocations <= bound:
        raise InputInvalid(
            "max",
            policy.max_allocations,
            f"0 to {bound}, the bound of {computer.label} (max_allocations, max_queued_jobs): "
            f"`grange computer edit {computer.label}` changes it",
        )
    if not 0 <= policy.min_allocations <= policy.max_allocations:
        raise InputInvalid("min", policy.min_allocations, f"0 to max, which is {policy.max_allocations}")
    for name, value in (("nodes", policy.nodes), ("backlog", policy.backlog), ("idle", policy.idle_s)):
        if value < 1:
            raise InputInvalid(name, value, "1 or more")
    if policy.walltime_s < 60:
        raise InputInvalid("time", policy.walltime_s, "60 seconds or more: Slurm counts minutes")
    return policy


def record_failures(cursor: Cursor, computer_id: int, policy: Policy, reason: str) -> None:
    """Write how failures in a row stand."""
    with translated():
        cursor.execute(
            _SET_FAILURES, (policy.failures, policy.held_until_s, policy.held_until_s, reason, computer_id)
        )


def is_held_for_good(policy: Policy) -> bool:
    """Whether nothing is tried until a person looks."""
    return policy.held_until_s == math.inf


# ---------------------------------------------------------------- what is to be done

# What campaigns and queues that are being run on a computer have to compute yet, and what a task of theirs
# took lately: of those before the first that is unfinished, else of the first ones; of a queue only among the
# newest of all processes. So a million rows are not read. A campaign says in its extras where it is run, and
# it is being run while somebody holds its lock: what nobody hands over must not keep allocations waiting.
_HERE = """
WITH here AS (
    SELECT g.id FROM "group" g
    WHERE g.type_string IN ('campaign', 'queue')
      AND g.extras ->> 'executor' = (SELECT label FROM computer WHERE id = %(computer)s)
      AND EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
                  AND l.classid::bigint = %(lock)s AND l.objid::bigint = g.id
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
)
"""
_BACKLOG = f"""
{_HERE}, unfinished AS (
    SELECT here.id, count(*) AS tasks, min(p.node_id) AS first
    FROM here JOIN process p ON p.queue_id = here.id
    WHERE p.state IN ('created', 'waiting', 'running') AND NOT (p.workflow OR p.paused)
      AND p.cached_from IS NULL
    GROUP BY here.id
)
SELECT coalesce(sum(u.tasks), 0)::bigint,
       (sum(u.tasks * coalesce(latest.wall_s, first.wall_s, newest.wall_s))
        / sum(u.tasks) FILTER (
            WHERE coalesce(latest.wall_s, first.wall_s, newest.wall_s) IS NOT NULL))::float8
FROM unfinished u
LEFT JOIN LATERAL (
    SELECT avg(wall_s)::float8 AS wall_s FROM (
        SELECT wall_s FROM process p WHERE p.campaign_id = u.id AND p.node_id < u.first
        ORDER BY p.node_id DESC LIMIT %(measured)s) AS p
) AS latest ON true
LEFT JOIN LATERAL (
    SELECT avg(wall_s)::float8 AS wall_s FROM (
        SELECT wall_s FROM process p WHERE p.campaign_id = u.id
        ORDER BY p.node_id LIMIT 10 * %(measured)s) AS p
) AS first ON true
LEFT JOIN LATERAL (
    SELECT avg(wall_s)::float8 AS wall_s FROM (
        SELECT queue_id, wall_s FROM process ORDER BY node_id DESC LIMIT 10 * %(measured)s) AS p
    WHERE p.queue_id = u.id
) AS newest ON true
"""  # noqa: S608


# What the next tasks of those campaigns and queues need.
_NEEDS = f"""
{_HERE}
SELECT next.attributes FROM here CROSS JOIN LATERAL (
    SELECT jsonb_build_object('resources', n.attributes -> 'resources',
                              'max_memory_kb', n.attributes -> 'max_memory_kb') AS attributes
    FROM process p JOIN node n ON n.id = p.node_id
    WHERE p.queue_id = here.id AND p.state IN ('created', 'waiting', 'running')
      AND NOT (p.workflow OR p.paused) AND p.cached_from IS NULL
    ORDER BY p.node_id LIMIT %(looked_at)s) AS next
"""  # noqa: S608


def backlog(cursor: Cursor, computer_id: int, computer: Computer) -> Backlog:
    """What campaigns and queues that are being run on a computer have to compute yet, and are computing."""
    with translated():
        cursor.execute(_BACKLOG, {"computer": computer_id, "lock": CAMPAIGN_LOCK, "measured": _MEASURED})
        tasks, task_s = cursor.fetchone() or (0, None)
        if not tasks:
            return Backlog()
        cursor.execute(_NEEDS, {"computer": computer_id, "lock": CAMPAIGN_LOCK, "looked_at": _LOOKED_AT})
        needs = [cores_taken(resources_of_attributes(row[0]), computer) for row in cursor.fetchall()]
    cores = math.ceil(sum(needs) / len(needs)) if needs else 1
    return Backlog(tasks=tasks, cores=cores, task_s=task_s)
