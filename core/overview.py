"""What is there, in numbers and lists: the read-only questions behind the command line.

Functions take a cursor and never write; the caller owns the transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any
from uuid import UUID

from grange.core.database import Cursor
from grange.core.errors import NotFound
from grange.core.worker import holders, workers_at

#: Tables with more rows are estimated from the planner's statistics: counting a million rows takes longer
#: than `grange status` may.
COUNTED_EXACTLY = 300_000

#: More rows than this beyond a list's end are not counted, only said to be there.
MORE_COUNTED = 100_000

#: The order in which the outcomes of processes are shown. "ok" and "failed" are the two ways to be finished.
OUTCOMES = ("ok", "failed", "excepted", "killed", "running", "waiting", "created")

UNFINISHED = ("running", "waiting", "created")

# What stands for the outcome of a process p; the words are those of OUTCOMES.
_OUTCOME = """CASE WHEN p.state = 'finished' THEN CASE WHEN p.exit_status = 0 THEN 'ok' ELSE 'failed' END
             ELSE p.state::text END"""

# A failure that still stands: one that was tried again is history.
_FAILED = """(p.superseded_by IS NULL AND (p.state IN ('excepted', 'killed')
             OR p.state = 'finished' AND p.exit_status <> 0))"""


@dataclass(frozen=True, slots=True)
class Totals:
    """How much there is. exact is False where large tables were estimated; outcomes then holds only
    what is unfinished. Units: bytes."""

    nodes: int
    processes: int
    outcomes: dict[str, int]
    exact: bool
    packs: int
    blobs: int
    content_bytes: int | None
    stored_bytes: int | None
    database_bytes: int
    server_version: str


@dataclass(frozen=True, slots=True)
class CampaignSummary:
    """One campaign and how its processes stand; outcomes has only what there is.

    computer: where it was last run or submitted to, None for this machine. run_by: who runs it now.
    submitted: whether a dispatcher is to run what is left.
    """

    id: int
    name: str
    description: str
    time: datetime
    outcomes: dict[str, int]
    cached: int
    started_at: datetime | None
    ended_at: datetime | None
    computer: str | None
    run_by: str | None
    submitted: bool

    @property
    def total(self) -> int:
        """The number of processes that count: those tried again do not."""
        return sum(self.outcomes.values())

    @property
    def unfinished(self) -> int:
        """The number of processes that are still to run or running."""
        return sum(self.outcomes.get(name, 0) for name in UNFINISHED)


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one kind: equal state and exit status, messages that differ in numbers at most."""

    state: str
    exit_status: int | None
    message: str
    count: int
    example_id: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One line in a list of nodes; attributes is None where they are too large for a line."""

    id: int
    uuid: UUID
    kind: str
    node_type: str
    label: str
    ctime: datetime
    attributes: dict[str, Any] | None
    state: str | None
    exit_status: int | None
    process_label: str | None


# The planner's idea of how many rows three tables have, -1 for a table that was never looked at, beside
# the size of the database.
_ESTIMATES = """
SELECT (SELECT reltuples FROM pg_class WHERE oid = 'node'::regclass)::bigint,
       (SELECT reltuples FROM pg_class WHERE oid = 'process'::regclass)::bigint,
       (SELECT reltuples FROM pg_class WHERE oid = 'blob'::regclass)::bigint,
       pg_database_size(current_database()), current_setting('server_version')
"""

# How many nodes, packs and blobs there are, and the bytes of contents before and after compression.
_COUNTS = """
SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM pack), count(*), coalesce(sum(size), 0)::bigint,
       coalesce(sum(stored_size), 0)::bigint FROM blob
"""

# How many processes have each outcome.
_OUTCOMES_OF_ALL = f"SELECT {_OUTCOME}, count(*) FROM process p GROUP BY 1"  # noqa: S608

# How many processes are in each of the states that the index of the unfinished holds.
_OUTCOMES_OF_UNFINISHED = """
SELECT p.state::text, count(*) FROM process p WHERE p.state IN ('created', 'waiting', 'running') GROUP BY 1
"""


def totals(cursor: Cursor, exact: bool = False) -> Totals:
    """How much the profile holds; estimated where it is much, unless exact numbers are asked for."""
    cursor.execute(_ESTIMATES)
    nodes, processes, blobs, database_bytes, version = _single(cursor)
    if exact or max(nodes, processes, blobs) <= COUNTED_EXACTLY:
        cursor.execute(_COUNTS)
        nodes, packs, blobs, content_bytes, stored_bytes = _single(cursor)
        cursor.execute(_OUTCOMES_OF_ALL)
        outcomes = dict(cursor.fetchall())
        return Totals(
            nodes, sum(outcomes.values()), outcomes, True,
            packs, blobs, content_bytes, stored_bytes, database_bytes, version,
        )  # fmt: skip
    cursor.execute(_OUTCOMES_OF_UNFINISHED)
    outcomes = dict(cursor.fetchall())
    cursor.execute("SELECT count(*) FROM pack")
    (packs,) = _single(cursor)
    return Totals(
        max(nodes, 0), max(processes, 0), outcomes, False,
        packs, max(blobs, 0), None, None, database_bytes, version,
    )  # fmt: skip


# The newest campaigns, or those of some ids.
_CAMPAIGNS = """
SELECT id, label, description, time, extras->>'executor', extras ? 'submitted' FROM "group"
WHERE type_string = 'campaign' AND (%(ids)s::integer[] IS NULL OR id = ANY (%(ids)s))
ORDER BY time DESC, id DESC LIMIT %(limit)s
"""

# How the processes of some campaigns stand; those that were tried again are left out.
_CAMPAIGN_OUTCOMES = f"""
SELECT p.campaign_id, {_OUTCOME}, count(*), count(p.cached_from) FILTER (WHERE p.finished_at IS NOT NULL),
       min(p.started_at), max(p.finished_at)
FROM process p WHERE p.campaign_id = ANY (%(ids)s) AND p.superseded_by IS NULL GROUP BY 1, 2
"""  # noqa: S608

# The campaigns that have something left to do, found through the index of the unfinished.
_UNDER_WAY = """
SELECT DISTINCT campaign_id FROM process
WHERE state IN ('created', 'waiting', 'running') AND campaign_id IS NOT NULL AND NOT paused
"""


def campaigns(
    cursor: Cursor, limit: int | None = None, ids: Sequence[int] | None = None
) -> list[CampaignSummary]:
    """The newest campaigns, or those of some ids, with how their calls stand."""
    cursor.execute(_CAMPAIGNS, {"ids": None if ids is None else list(ids), "limit": limit})
    heads = cursor.fetchall()
    found = {"ids": [head[0] for head in heads]}
    cursor.execute(_CAMPAIGN_OUTCOMES, found)
    rows: dict[int, list[tuple[Any, ...]]] = {}
    for row in cursor.fetchall():
        rows.setdefault(row[0], []).append(row)
    run_by = workers_at(cursor, found["ids"]) | holders(cursor, found["ids"])
    return [_campaign(head, rows.get(head[0], []), run_by.get(head[0])) for head in heads]


def campaigns_under_way(cursor: Cursor) -> list[CampaignSummary]:
    """The campaigns that have something left to do, newest first."""
    cursor.execute(_UNDER_WAY)
    return campaigns(cursor, ids=[row[0] for row in cursor.fetchall()])


def campaign_id(cursor: Cursor, name: str) -> int:
    """The id of a campaign.

    Errors: NotFound, with the names that are most like it.
    """
    cursor.execute("""SELECT id FROM "group" WHERE type_string = 'campaign' AND label = %s""", (name,))
    row = cursor.fetchone()
    if row is not None:
        return int(row[0])
    cursor.execute("""SELECT label FROM "group" WHERE type_string = 'campaign' ORDER BY id DESC LIMIT 1000""")
    near = get_close_matches(name, [row[0] for row in cursor.fetchall()], n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise NotFound(f"there is no campaign {name!r}{hint}")


def campaign_count(cursor: Cursor) -> int:
    """How many campaigns there are."""
    cursor.execute("""SELECT count(*) FROM "group" WHERE type_string = 'campaign'""")
    return int(_single(cursor)[0])


# The failures of a campaign by state, exit status and message with its numbers blotted out, the most
# frequent first, each with the message and the id of one of them, and how many kinds there are.
_FAILURE_GROUPS = f"""
SELECT p.state::text, p.exit_status, (array_agg(coalesce(p.exit_message, '') ORDER BY p.node_id))[1],
       count(*), min(p.node_id), count(*) OVER ()
FROM process p WHERE p.campaign_id = %(campaign_id)s AND {_FAILED}
GROUP BY 1, 2, regexp_replace(left(coalesce(p.exit_message, ''), 200), '\\d+', '0', 'g')
ORDER BY 4 DESC, 5 LIMIT %(limit)s
"""  # noqa: S608


def failure_groups(cursor: Cursor, campaign_id: int, limit: int) -> tuple[list[FailureGroup], int]:
    """The kinds of failures of a campaign, the most frequent first, and how many kinds there are."""
    cursor.execute(_FAILURE_GROUPS, {"campaign_id": campaign_id, "limit": limit})
    rows = cursor.fetchall()
    return [FailureGroup(*row[:5]) for row in rows], rows[0][5] if rows else 0


#: Above every id.
NEWEST = 2**63 - 1


# Which nodes a list is of: a kind, or a whole part between the dots of the type, in any case.
_NODE_FILTER = """
    (%(type)s::text IS NULL OR n.kind::text = lower(%(type)s)
     OR strpos('.' || lower(n.node_type), '.' || lower(%(type)s) || '.') > 0)
    AND n.id < %(before)s
"""

# The newest nodes that pass the filter and are older than a given one.
_NODES = f"""
SELECT n.id, n.uuid::text, n.kind::text, n.node_type, n.label, n.ctime,
       CASE WHEN n.kind = 'data' AND pg_column_size(n.attributes) < 65536 THEN n.attributes END,
       p.state::text, p.exit_status, p.label
FROM node n LEFT JOIN process p ON p.node_id = n.id
WHERE {_NODE_FILTER} ORDER BY n.id DESC LIMIT %(limit)s
"""  # noqa: S608

# How many nodes pass the filter, counted no further than needed to say "many".
_NODE_COUNT = f"""
SELECT count(*) FROM (SELECT FROM node n WHERE {_NODE_FILTER} LIMIT %(limit)s) AS counted
"""  # noqa: S608


def nodes(cursor: Cursor, node_type: str | None, limit: int, before: int = NEWEST) -> list[NodeRow]:
    """The newest nodes of those older than `before`; node_type is a kind or part of a type, as "int"."""
    cursor.execute(_NODES, {"type": _trimmed(node_type), "limit": limit, "before": before})
    return [NodeRow(row[0], UUID(row[1]), *row[2:]) for row in cursor.fetchall()]


def nodes_older(cursor: Cursor, node_type: str | None, before: int) -> int:
    """How many nodes a list that ended at `before` did not show, MORE_COUNTED at most."""
    cursor.execute(_NODE_COUNT, {"type": _trimmed(node_type), "limit": MORE_COUNTED, "before": before})
    return int(_single(cursor)[0])


def _trimmed(node_type: str | None) -> str | None:
    return None if node_type is None else node_type.strip(".")


def _campaign(head: tuple[Any, ...], rows: list[tuple[Any, ...]], run_by: str | None) -> CampaignSummary:
    counts = {row[1]: row[2] for row in rows}
    return CampaignSummary(
        id=head[0],
        name=head[1],
        description=head[2],
        time=head[3],
        outcomes={name: counts[name] for name in OUTCOMES if name in counts},
        cached=sum(row[3] for row in rows),
        started_at=min((row[4] for row in rows if row[4]), default=None),
        ended_at=max((row[5] for row in rows if row[5]), default=None),
        computer=head[4],
        run_by=run_by,
        submitted=head[5],
    )


def _single(cursor: Cursor) -> tuple[Any, ...]:
    row = cursor.fetchone()
    assert row is not None, "an aggregate always gives a row"
    return row
