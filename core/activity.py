"""What a campaign has been doing: how much was under way and done at each time, from its events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from grange.core.database import Cursor

#: Points of the curves where nobody says how many.
POINTS = 400


@dataclass(frozen=True, slots=True)
class Activity:
    """Counts at the ends of equal spans of time.

    Shapes: all sequences are of one length, 0 where nothing has happened. running: calculations that a runner
    had, also those that workflows of the campaign called; workflows: those that had begun and not ended.
    finished, failed: how many calls of the campaign had ended so far, well or not; what an equal process
    answered is finished.
    """

    times: Sequence[datetime]
    running: Sequence[int]
    workflows: Sequence[int]
    finished: Sequence[int]
    failed: Sequence[int]


# The processes of a campaign and all that they have called.
_MEANT = """
WITH RECURSIVE meant (id, workflow, own) AS (
    SELECT node_id, workflow, true FROM process WHERE campaign_id = %(campaign)s
    UNION ALL
    SELECT called.node_id, called.workflow, false
    FROM meant JOIN process called ON called.parent_id = meant.id
    WHERE meant.workflow)
"""

_SPAN = f"""
{_MEANT}
SELECT min(event.time), max(event.time) FROM event JOIN meant ON meant.id = event.process_id
"""  # noqa: S608

# A process is under way from a start to its end, or to where it was given back. For a workflow being given
# back is no end: another worker goes on with it. A start that follows a start begins nothing new.
_CHANGES = f"""
{_MEANT}, told AS (
    SELECT meant.workflow, meant.own, event.time, event.kind, event.detail,
           lag(event.kind) OVER (PARTITION BY event.process_id ORDER BY event.id) AS before
    FROM event JOIN meant ON meant.id = event.process_id
    WHERE event.kind IN ('started', 'finished', 'reused', 'excepted', 'killed')
       OR event.kind = 'released' AND NOT meant.workflow
), changes AS (
    SELECT workflow, own,
           least(floor(extract(epoch FROM time - %(first)s) / %(step_s)s), %(points)s - 1)::int AS at,
           CASE WHEN kind = 'started' THEN (before IS DISTINCT FROM 'started')::int
                ELSE - (before IS NOT DISTINCT FROM 'started')::int END AS under_way,
           (kind = 'reused' OR kind = 'finished' AND detail IS NULL)::int AS finished,
           (kind IN ('excepted', 'killed') OR kind = 'finished' AND detail IS NOT NULL)::int AS failed
    FROM told)
SELECT at, sum(under_way) FILTER (WHERE NOT workflow), sum(under_way) FILTER (WHERE workflow),
       sum(finished) FILTER (WHERE own), sum(failed) FILTER (WHERE own)
FROM changes GROUP BY 1
"""  # noqa: S608


def activity(cursor: Cursor, campaign_id: int, points: int = POINTS) -> Activity:
    """How a campaign went, from its first event to its last."""
    cursor.execute(_SPAN, {"campaign": campaign_id})
    first, last = cursor.fetchone() or (None, None)
    if first is None or last is None:
        return Activity((), (), (), (), ())
    step_s = max((last - first).total_seconds() / points, 1e-6)
    cursor.execute(_CHANGES, {"campaign": campaign_id, "first": first, "step_s": step_s, "points": points})
    changes = [(0, 0, 0, 0)] * points
    for at, *counts in cursor.fetchall():
        changes[max(at, 0)] = tuple(count or 0 for count in counts)  # type: ignore[assignment]
    sums = [0, 0, 0, 0]
    curves: list[list[int]] = [[], [], [], []]
    for change in changes:
        for number, count in enumerate(change):
            sums[number] += count
            curves[number].append(sums[number])
    times = [first + timedelta(seconds=step_s * (number + 1)) for number in range(points)]
    return Activity(times, *curves)
