"""Events: everything that happened to processes, a row each, written by the database itself.

Two triggers on the table `process` add them, a statement at a time, so nothing that changes a process can
forget to say so, and what is rolled back never happened. Here they are only read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from grange.core.database import Cursor

#: Ends of processes; "reused" is the end of one that an equal one answered.
END_KINDS = ("finished", "reused", "excepted", "killed")


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a process. Of one process events are in the order of their ids.

    kind: as the type event_kind of the database has them. worker: who had the process, in words.
    """

    id: int
    process_id: int
    process_label: str
    time: datetime
    kind: str
    attempt: int
    worker: str | None
    detail: str | None


_EVENT = """
SELECT e.id, e.process_id, p.label, e.time, e.kind::text, e.attempt,
       w.role || ' ' || w.id || ' (process ' || w.pid || ' on ' || w.host || ')', e.detail
"""

# The last events of some processes, oldest first.
_OF_PROCESSES = f"""
SELECT * FROM (
    {_EVENT}
    FROM event e JOIN process p ON p.node_id = e.process_id LEFT JOIN worker w ON w.id = e.worker_id
    WHERE e.process_id = ANY (%(ids)s::bigint[]) ORDER BY e.id DESC LIMIT %(limit)s) AS last
ORDER BY 1
"""  # noqa: S608

# The last events of the newest processes of a campaign, oldest first.
_OF_CAMPAIGN = f"""
SELECT * FROM (
    {_EVENT}
    FROM process p JOIN event e ON e.process_id = p.node_id LEFT JOIN worker w ON w.id = e.worker_id
    WHERE p.campaign_id = %(campaign)s ORDER BY e.id DESC LIMIT %(limit)s) AS last
ORDER BY 1
"""  # noqa: S608

# What has happened to each of some processes since an event of it.
_SINCE = f"""
{_EVENT}
FROM unnest(%(ids)s::bigint[], %(last)s::bigint[]) AS seen (id, last)
JOIN event e ON e.process_id = seen.id AND e.id > seen.last
JOIN process p ON p.node_id = e.process_id LEFT JOIN worker w ON w.id = e.worker_id
ORDER BY e.id
"""


def events(cursor: Cursor, ids: Collection[int], limit: int | None = None) -> list[Event]:
    """What happened to these processes, oldest first; limit: the last so many."""
    cursor.execute(_OF_PROCESSES, {"ids": list(ids), "limit": limit})
    return [Event(*row) for row in cursor.fetchall()]


def events_of_campaign(cursor: Cursor, campaign_id: int, limit: int | None = None) -> list[Event]:
    """What happened to the processes of a campaign, oldest first; limit: the last so many."""
    cursor.execute(_OF_CAMPAIGN, {"campaign": campaign_id, "limit": limit})
    return [Event(*row) for row in cursor.fetchall()]


def events_since(cursor: Cursor, last: Mapping[int, int]) -> list[Event]:
    """What has happened since: process → the last event of it that is known, 0 for none.

    Not by one number for all: an event with a smaller id may be committed later, but not of the same process.
    """
    cursor.execute(_SINCE, {"ids": list(last), "last": list(last.values())})
    return [Event(*row) for row in cursor.fetchall()]
