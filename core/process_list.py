"""Lists of processes, the newest first: quick also among ten million.

Each state that is asked for is a question of its own that one index answers in the order of the list, so
that no more rows are read than are shown; the answers are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from grange.core.database import Cursor
from grange.core.overview import MORE_COUNTED, NEWEST

#: What one can ask for; "ok" and "failed" are the two ways to be finished.
STATES = ("ok", "failed", "finished", "excepted", "killed", "running", "waiting", "created")

_STATE = {
    **{name: f"p.state = '{name}'" for name in STATES},
    "ok": "p.state = 'finished' AND p.exit_status = 0",
    "failed": "p.state = 'finished' AND p.exit_status <> 0",
}

# A failure that still stands: one that was tried again is history. The index process_failed has these words.
FAILED = """p.superseded_by IS NULL AND (p.state IN ('excepted', 'killed')
    OR p.state = 'finished' AND p.exit_status <> 0)"""

_UNFINISHED = "p.state IN ('created', 'waiting', 'running')"


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One line in a list of processes. open_calls: of a workflow, how many of its calls have not ended."""

    id: int
    uuid: UUID
    node_type: str
    process_label: str
    label: str
    state: str
    exit_status: int | None
    exit_message: str | None
    paused: bool
    to_kill: bool
    campaign: str | None
    ordinal: int | None
    parent_id: int | None
    open_calls: int
    ctime: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wall_s: float | None
    cached_from: int | None
    superseded_by: int | None


@dataclass(frozen=True, slots=True)
class ProcessFilter:
    """Which processes a list is of; None asks for all.

    failed: those that failed and were not tried again. paused: those that wait to be played. roots: those
    that no workflow called. called_by: those that this workflow called. process_label: the name of the
    function or class.
    """

    states: tuple[str, ...] | None = None
    campaign_id: int | None = None
    failed: bool = False
    paused: bool = False
    roots: bool = False
    called_by: int | None = None
    process_label: str | None = None


def processes(cursor: Cursor, which: ProcessFilter, limit: int, before: int = NEWEST) -> list[ProcessRow]:
    """The newest processes, of those that are older than `before`: call again with the last id to go on."""
    cursor.execute(
        f"""
        SELECT n.id, n.uuid::text, n.node_type, p.label, n.label, p.state::text, p.exit_status,
               p.exit_message, p.paused, p.to_kill, g.label, p.ordinal, p.parent_id, p.open_children, n.ctime,
               p.started_at, p.finished_at, p.wall_s, p.cached_from, p.superseded_by
        FROM ({_newest(which)}) AS newest
        JOIN process p USING (node_id) JOIN node n ON n.id = p.node_id
        LEFT JOIN "group" g ON g.id = p.campaign_id
        ORDER BY p.node_id DESC
        """,  # noqa: S608
        _values(which, limit, before),
    )
    return [ProcessRow(row[0], UUID(row[1]), *row[2:]) for row in cursor.fetchall()]


def processes_older(cursor: Cursor, which: ProcessFilter, before: int) -> int:
    """How many processes a list that ended at `before` did not show, MORE_COUNTED at most."""
    cursor.execute(
        f"SELECT count(*) FROM ({_newest(which)}) AS counted",  # noqa: S608
        _values(which, MORE_COUNTED, before),
    )
    return int((cursor.fetchone() or (0,))[0])


def _newest(which: ProcessFilter) -> str:
    """The SELECT of the ids of the newest that pass, from the newest to the oldest."""
    common = ["p.node_id < %(before)s"]
    if which.campaign_id is not None:
        common.append("p.campaign_id = %(campaign)s")
    if which.failed:
        common.append(f"({FAILED})")
    if which.paused:
        common.append(f"p.paused AND {_UNFINISHED}")
    if which.roots:
        common.append("p.parent_id IS NULL")
    if which.called_by is not None:
        common.append("p.parent_id = %(called_by)s")
    if which.process_label is not None:
        common.append("p.label = %(label)s")
    states: Sequence[str] = which.states or ("",)
    questions = [
        "(SELECT p.node_id FROM process p WHERE "  # noqa: S608
        + " AND ".join([*common, *([_STATE[state]] if state else [])])
        + " ORDER BY p.node_id DESC LIMIT %(limit)s)"
        for state in dict.fromkeys(states)
    ]
    if len(questions) == 1:
        return questions[0]
    # "finished" has "ok" in it, so two questions may have one answer
    return " UNION ".join(questions) + " ORDER BY node_id DESC LIMIT %(limit)s"


def _values(which: ProcessFilter, limit: int, before: int) -> dict[str, Any]:
    return {
        "campaign": which.campaign_id,
        "called_by": which.called_by,
        "label": which.process_label,
        "limit": limit,
        "before": before,
    }
