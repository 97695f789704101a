"""Processes and what they have called, and these in turn: the tree of calls, a statement a level."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from grange.core.database import Cursor
from grange.core.errors import NotFound

# What some processes have called, and what that has called …, the processes themselves with it.
TREE = """
WITH RECURSIVE tree (id) AS (
    SELECT id FROM unnest(%(ids)s::bigint[]) AS given (id)
    UNION
    SELECT called.node_id FROM tree JOIN process called ON called.parent_id = tree.id)
"""


def tree_ids(cursor: Cursor, ids: Collection[int]) -> list[int]:
    """These processes and all that they have called, and so on, in the order in which they were made."""
    cursor.execute(f"{TREE} SELECT id FROM tree ORDER BY id", {"ids": list(ids)})  # noqa: S608
    return [row[0] for row in cursor.fetchall()]


@dataclass(slots=True)
class Branch:
    """A process in a tree, with those of its calls that are shown.

    calls: how many it has made. more: how many calls are not shown, by outcome. open_children: how many of
    its calls have not ended, as its row says.
    """

    id: int
    process_label: str
    label: str
    state: str
    exit_status: int | None
    exit_message: str | None
    paused: bool
    to_kill: bool
    cached_from: int | None
    superseded_by: int | None
    workflow: bool
    open_children: int
    started_at: datetime | None
    finished_at: datetime | None
    wall_s: float | None
    calls: int = 0
    shown: list[Branch] = field(default_factory=list)
    more: dict[str, int] = field(default_factory=dict)


_BRANCH = """
p.node_id, p.label, n.label, p.state::text, p.exit_status, p.exit_message, p.paused, p.to_kill, p.cached_from,
p.superseded_by, p.workflow, p.open_children, p.started_at, p.finished_at, p.wall_s
"""

_ROOTS = f"""
SELECT {_BRANCH} FROM process p JOIN node n ON n.id = p.node_id WHERE p.node_id = ANY (%(ids)s)
"""  # noqa: S608

# Of the calls of some processes the first so many of each, those that are under way or have failed before
# those that are done; and how many it has.
_CALLS = f"""
SELECT p.parent_id, ranked.total, {_BRANCH}
FROM (SELECT node_id, count(*) OVER (PARTITION BY parent_id) AS total,
             row_number() OVER (PARTITION BY parent_id ORDER BY
                 (state = 'finished' AND exit_status = 0), state IN ('created', 'waiting'), sequence) AS rank
      FROM process WHERE parent_id = ANY (%(ids)s)) AS ranked
JOIN process p USING (node_id) JOIN node n ON n.id = p.node_id
WHERE ranked.rank <= %(width)s ORDER BY p.parent_id, p.sequence
"""  # noqa: S608

# How the calls of some processes stand.
_OUTCOMES = """
SELECT parent_id, CASE WHEN state = 'finished' THEN CASE WHEN exit_status = 0 THEN 'ok' ELSE 'failed' END
                       ELSE state::text END, count(*)
FROM process WHERE parent_id = ANY (%(ids)s) GROUP BY 1, 2
"""


def call_trees(
    cursor: Cursor, ids: Sequence[int], *, depth: int | None = None, width: int, lines: int
) -> list[Branch]:
    """The trees of calls below some processes, in their order.

    depth: so many levels below them; width: so many calls of one process, those under way or failed first;
    lines: when so many are shown no further level is looked at. What is not shown is counted.

    Errors: NotFound where one is no process.
    """
    cursor.execute(_ROOTS, {"ids": list(ids)})
    found = {row[0]: Branch(*row) for row in cursor.fetchall()}
    for one in ids:
        if one not in found:
            raise NotFound(f"node {one} is no process")
    level, shown, at = found, len(found), 0
    while level and (depth is None or at < depth) and shown < lines:
        cursor.execute(_CALLS, {"ids": list(level), "width": width})
        below: dict[int, Branch] = {}
        for parent_id, total, *row in cursor.fetchall():
            branch = Branch(*row)
            level[parent_id].calls = total
            level[parent_id].shown.append(branch)
            below[branch.id] = branch
        _count_others(cursor, [branch for branch in level.values() if branch.calls > len(branch.shown)])
        level, shown, at = below, shown + len(below), at + 1
    _count_others(cursor, level.values())
    return [found[one] for one in ids]


def _count_others(cursor: Cursor, branches: Collection[Branch]) -> None:
    """Count the calls of these that are not shown."""
    if not branches:
        return
    by_id = {branch.id: branch for branch in branches}
    cursor.execute(_OUTCOMES, {"ids": list(by_id)})
    for parent_id, outcome, count in cursor.fetchall():
        branch = by_id[parent_id]
        left = count - sum(outcome_of(call.state, call.exit_status) == outcome for call in branch.shown)
        if left:
            branch.more[outcome] = left
    for branch in branches:
        branch.calls = len(branch.shown) + sum(branch.more.values())


def outcome_of(state: str, exit_status: int | None) -> str:
    """How a process stands, in the words of overview.OUTCOMES."""
    if state != "finished":
        return state
    return "failed" if exit_status else "ok"


def as_document(branch: Branch) -> dict[str, Any]:
    """A branch for machines: its fields by name, calls that are shown inside."""
    document = {name: getattr(branch, name) for name in Branch.__dataclass_fields__ if name != "shown"}
    return {**document, "shown": [as_document(call) for call in branch.shown]}
