"""One node in full: what it holds, what it is linked with, its files, and how it ran if it is a process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from grange.core.database import Cursor
from grange.core.errors import NotFound
from grange.core.files import files_of
from grange.repository.key import Key


@dataclass(frozen=True, slots=True)
class NodeDetail:
    """A node with all that its row says."""

    id: int
    uuid: UUID
    kind: str
    node_type: str
    process_type: str | None
    label: str
    description: str
    ctime: datetime
    mtime: datetime
    user: str | None
    computer: str | None
    attributes: dict[str, Any]
    extras: dict[str, Any]
    repository_metadata: dict[str, Any]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProcessDetail:
    """How a process ran. Units: seconds, mebibytes.

    worker: who has it now, or had it last; queue: of a calculation, what it waits in or was run from;
    open_calls: of a workflow, how many of its calls have not ended.
    """

    label: str
    state: str
    exit_status: int | None
    exit_message: str | None
    attempt: int
    paused: bool
    campaign: str | None
    ordinal: int | None
    cached_from: int | None
    superseded_by: int | None
    started_at: datetime | None
    finished_at: datetime | None
    wall_s: float | None
    cpu_s: float | None
    peak_memory_mb: float | None
    host: str | None
    to_kill: bool
    worker: str | None
    queue: str | None
    open_calls: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """The other end of one link of a node; attributes is None where they are too large for a line."""

    type: str
    link_label: str
    id: int
    uuid: UUID
    kind: str
    node_type: str
    label: str
    attributes: dict[str, Any] | None
    state: str | None
    exit_status: int | None
    process_label: str | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The links on one side of a node: the first of them, and how many there are by type."""

    shown: tuple[Neighbour, ...]
    totals: dict[str, int]


@dataclass(frozen=True, slots=True)
class NodeFile:
    """One file of a node. size is None where the index does not know the key. Units: bytes."""

    path: str
    key: Key
    size: int | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the log of a process."""

    time: datetime
    level: str
    message: str


# One node with the names of its user, computer and groups.
_NODE = """
SELECT n.id, n.uuid::text, n.kind::text, n.node_type, n.process_type, n.label, n.description, n.ctime,
       n.mtime, u.email, c.label, n.attributes, n.extras, n.repository_metadata,
       ARRAY (SELECT g.label FROM group_node m JOIN "group" g ON g.id = m.group_id
              WHERE m.node_id = n.id ORDER BY g.label)
FROM node n LEFT JOIN "user" u ON u.id = n.user_id LEFT JOIN computer c ON c.id = n.computer_id
WHERE n.id = %s
"""

# How one process ran, with the name of its campaign.
_PROCESS = """
SELECT p.label, p.state::text, p.exit_status, p.exit_message, p.attempt, p.paused, g.label, p.ordinal,
       p.cached_from, p.superseded_by, p.started_at, p.finished_at, p.wall_s, p.cpu_s,
       p.peak_memory_mb, p.host, p.to_kill,
       w.role || ' ' || w.id || ' (process ' || w.pid || ' on ' || w.host || ')', q.label, p.open_children
FROM process p LEFT JOIN "group" g ON g.id = p.campaign_id LEFT JOIN worker w ON w.id = p.worker_id
LEFT JOIN "group" q ON q.id = p.queue_id AND q.type_string = 'queue'
WHERE p.node_id = %s
"""

# What stands in a line about the node at the far end of a link, and the order of the lines: that of the
# alphabet, but elements of a list by their number.
_NEIGHBOUR = """
SELECT l.type::text, l.label, n.id, n.uuid::text, n.kind::text, n.node_type, n.label,
       CASE WHEN n.kind = 'data' AND pg_column_size(n.attributes) < 65536 THEN n.attributes END,
       p.state::text, p.exit_status, p.label, l.total
FROM ({links}) l JOIN node n ON n.id = l.far_id LEFT JOIN process p ON p.node_id = n.id
ORDER BY l.type, regexp_replace(l.label, '__[0-9]+$', ''),
         substring(l.label FROM '__([0-9]{{1,9}})$')::integer NULLS FIRST, l.label, n.id
"""

# The first links that arrive at a node, by each partial index, with how many there are of their type.
_ARRIVING = _NEIGHBOUR.format(
    links="""
    (SELECT type, label, source_id AS far_id, count(*) OVER (PARTITION BY type) AS total FROM link
     WHERE target_id = %(id)s AND type IN ('input_calc', 'input_work')
     ORDER BY substring(label FROM '__([0-9]{1,9})$')::integer NULLS FIRST, label LIMIT %(limit)s)
    UNION ALL
    (SELECT type, label, source_id, 1 FROM link WHERE target_id = %(id)s AND type = 'create')
    UNION ALL
    (SELECT type, label, source_id, 1 FROM link
     WHERE target_id = %(id)s AND type IN ('call_calc', 'call_work'))
    UNION ALL
    (SELECT type, label, source_id, count(*) OVER () FROM link
     WHERE target_id = %(id)s AND type = 'return' ORDER BY source_id LIMIT %(limit)s)
    """
)

# The first links that leave a node, by each partial index, with how many there are of their type.
_LEAVING = _NEIGHBOUR.format(
    links="""
    (SELECT type, label, target_id AS far_id, count(*) OVER (PARTITION BY type) AS total FROM link
     WHERE source_id = %(id)s AND type IN ('input_calc', 'input_work', 'call_calc', 'call_work')
     ORDER BY target_id LIMIT %(limit)s)
    UNION ALL
    (SELECT type, label, target_id, count(*) OVER (PARTITION BY type) FROM link
     WHERE source_id = %(id)s AND type IN ('create', 'return') ORDER BY label LIMIT %(limit)s)
    """
)

# The sizes of some contents.
_SIZES = "SELECT key, size FROM blob WHERE key = ANY (%s::bytea[])"

# The last lines of the log of a process, the oldest of them first.
_LOG = """
SELECT time, levelname, message FROM (
    SELECT * FROM log WHERE node_id = %s ORDER BY id DESC LIMIT %s) last ORDER BY id
"""


def node_detail(cursor: Cursor, node_id: int) -> NodeDetail:
    """All that the row of a node says. Errors: NotFound."""
    cursor.execute(_NODE, (node_id,))
    row = cursor.fetchone()
    if row is None:
        raise NotFound(f"no node has the id {node_id}")
    values: list[Any] = list(row)
    values[1], values[14] = UUID(row[1]), tuple(row[14])
    return NodeDetail(*values)


def process_detail(cursor: Cursor, node_id: int) -> ProcessDetail | None:
    """How a process ran; None for data, and for processes that came without a record of it."""
    cursor.execute(_PROCESS, (node_id,))
    row = cursor.fetchone()
    return None if row is None else ProcessDetail(*row)


def arriving(cursor: Cursor, node_id: int, limit: int | None) -> Neighbours:
    """The links that arrive at a node: inputs and caller of a process, creator and returners of data."""
    cursor.execute(_ARRIVING, {"id": node_id, "limit": limit})
    return _neighbours(cursor.fetchall())


def leaving(cursor: Cursor, node_id: int, limit: int | None) -> Neighbours:
    """The links that leave a node: outputs and calls of a process, uses of data."""
    cursor.execute(_LEAVING, {"id": node_id, "limit": limit})
    return _neighbours(cursor.fetchall())


def files(cursor: Cursor, repository_metadata: dict[str, Any]) -> list[NodeFile]:
    """The files of a node, by path, with their sizes: one statement for all."""
    found = sorted(files_of(repository_metadata).items())
    if not found:
        return []
    cursor.execute(_SIZES, ([bytes.fromhex(key) for _, key in found],))
    sizes = {bytes(key).hex(): size for key, size in cursor.fetchall()}
    return [NodeFile(path, key, sizes.get(key)) for path, key in found]


def last_log_lines(cursor: Cursor, node_id: int, limit: int) -> list[LogLine]:
    """The end of the log of a process."""
    cursor.execute(_LOG, (node_id, limit))
    return [LogLine(*row) for row in cursor.fetchall()]


def _neighbours(rows: list[tuple[Any, ...]]) -> Neighbours:
    shown = tuple(Neighbour(row[0], row[1], row[2], UUID(row[3]), *row[4:11]) for row in rows)
    return Neighbours(shown, {row[0]: row[11] for row in rows})
