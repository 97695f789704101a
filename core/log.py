"""The log of processes: what they reported, and how those that failed ended, of whole trees of calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from grange.core.database import Cursor

#: From the least to the most; REPORT is what workflows say by report(), as in AiiDA.
LEVELS = ("DEBUG", "INFO", "REPORT", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True)
class Report:
    """One line of a report. depth: how many calls the process lies below the one that was asked for."""

    id: int
    process_label: str
    depth: int
    time: datetime
    level: str
    message: str


# What processes of trees have logged, and how those that failed did; the last so many, the oldest first. Of
# one that excepted the log has the whole story where it has an error, so it is not told twice.
_REPORTS = """
WITH RECURSIVE tree (id, depth) AS (
    SELECT id, 0 FROM unnest(%(ids)s::bigint[]) AS given (id)
    UNION
    SELECT called.node_id, tree.depth + 1 FROM tree JOIN process called ON called.parent_id = tree.id
    WHERE %(depth)s::int IS NULL OR tree.depth < %(depth)s
), said AS (
    SELECT log.node_id, tree.depth, log.time, log.levelname, log.message, log.id
    FROM tree JOIN log ON log.node_id = tree.id
    WHERE log.levelname = ANY (%(levels)s) OR log.levelname <> ALL (%(known)s)
    UNION ALL
    SELECT p.node_id, tree.depth, p.finished_at, 'ERROR',
           CASE WHEN p.state = 'finished' THEN 'failed with exit status ' || p.exit_status
                ELSE p.state::text END
           || coalesce(': ' || nullif(p.exit_message, ''), ''), 9223372036854775807
    FROM tree JOIN process p ON p.node_id = tree.id
    WHERE (p.state IN ('excepted', 'killed') OR p.state = 'finished' AND p.exit_status <> 0)
      AND 'ERROR' = ANY (%(levels)s)
      AND NOT (p.state = 'excepted'
               AND EXISTS (SELECT FROM log WHERE log.node_id = p.node_id AND log.levelname = 'ERROR'))
), last AS (
    SELECT * FROM said ORDER BY time DESC, id DESC, node_id DESC LIMIT %(limit)s
)
SELECT last.node_id, p.label, min(last.depth), last.time, last.levelname, last.message
FROM last JOIN process p USING (node_id)
GROUP BY last.node_id, p.label, last.time, last.levelname, last.message, last.id
ORDER BY last.time, last.id, last.node_id
"""


def reports(
    cursor: Cursor,
    ids: Collection[int],
    *,
    least: str = "DEBUG",
    depth: int | None = None,
    limit: int | None = None,
) -> list[Report]:
    """What these processes and all that they have called reported, and how what failed ended; oldest first.

    least: the lowest level, of LEVELS. depth: so many calls below these. limit: the last so many lines.
    """
    cursor.execute(
        _REPORTS,
        {
            "ids": list(ids),
            "depth": depth,
            "levels": list(LEVELS[LEVELS.index(least) :]),
            "known": list(LEVELS),
            "limit": limit,
        },
    )
    return [Report(*row) for row in cursor.fetchall()]
