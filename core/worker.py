"""Workers: who is at work, known by locks that PostgreSQL drops with their connection.

A worker has a row that says where it runs, and holds a session advisory lock on the row's id. When it
dies in whatever way, its connection ends and the lock with it: what it held can be claimed at once, and
never earlier.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from grange.core.database import Connection, Cursor, transaction
from grange.core.errors import CampaignBusy

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: First keys of grange's advisory locks; the second key is the id of the row.
WORKER_LOCK = 0x67_72_61_01
CAMPAIGN_LOCK = 0x67_72_61_02
#: Roles of workers: a script or command; a process of a daemon that runs workflows; what runs the
#: calculations of a queue or campaign until it is told to end.
CLIENT = "client"
WORKER = "worker"
DISPATCHER = "dispatcher"


def register_worker(connection: Connection, role: str = CLIENT, daemon_id: int | None = None) -> int:
    """Make this process a worker for as long as the connection lives; returns the worker's id.

    Commits: the row is seen by others only with its lock held.
    """
    with transaction(connection) as cursor:
        cursor.execute(
            "INSERT INTO worker (host, pid, role, daemon_id) VALUES (%s, %s, %s, %s) RETURNING id",
            (socket.gethostname(), os.getpid(), role, daemon_id),
        )
        (worker_id,) = cursor.fetchone() or (0,)
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (WORKER_LOCK, worker_id))
    return int(worker_id)


def free_dead(profile: Profile) -> int:
    """Let others claim what workers had who are gone: their locks are free. Returns how many workflows.

    Calculations need no such thing: whoever holds the lock of their queue takes them over. What was to be
    killed, and has lost its owner before he did so, is ended.
    """
    freed = _free_dead(profile)
    from grange.core.process_control import end_abandoned_kills

    with profile.transaction() as cursor:
        end_abandoned_kills(cursor)
    return freed


def _free_dead(profile: Profile) -> int:
    from grange.core.workflow_rows import give_back

    with profile.transaction() as cursor:
        cursor.execute(
            """
            WITH alive AS MATERIALIZED (
                SELECT objid::bigint AS id FROM pg_locks
                WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid::bigint = %(lock)s
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            ), gone AS MATERIALIZED (
                SELECT id FROM worker WHERE ended_at IS NULL AND id NOT IN (SELECT id FROM alive)
                ORDER BY id FOR UPDATE SKIP LOCKED
            )
            UPDATE worker SET ended_at = now() FROM gone
            WHERE worker.id = gone.id AND pg_try_advisory_xact_lock(%(lock)s, gone.id)
            RETURNING worker.id
            """,
            {"lock": WORKER_LOCK},
        )
        gone = [row[0] for row in cursor.fetchall()]
        if not gone:
            return 0
        freed = give_back(cursor, gone)
        if freed:
            cursor.execute("SELECT pg_notify('grange', 'ready')")
    return freed


def lock_campaign(connection: Connection, campaign_id: int, *, wait_s: float = 2.0) -> None:
    """Take a campaign for this connection, until unlock_campaign or its end.

    wait_s: seconds to try again: the server needs a moment to notice that a killed holder is gone.
    Errors: CampaignBusy, which tells host and pid of the holder.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with transaction(connection) as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (CAMPAIGN_LOCK, campaign_id))
            if (cursor.fetchone() or (False,))[0]:
                return
            holder = holders(cursor, [campaign_id]).get(campaign_id, "a process that has just ended")
            name = _name(cursor, campaign_id)
        if time.monotonic() >= deadline:
            raise CampaignBusy(f"{name} is being run by {holder}: wait for it or end it")
        time.sleep(0.05)


def unlock_campaign(connection: Connection, campaign_id: int) -> None:
    """Give a campaign back."""
    with transaction(connection) as cursor:
        cursor.execute("SELECT pg_advisory_unlock(%s, %s)", (CAMPAIGN_LOCK, campaign_id))


def _name(cursor: Cursor, campaign_id: int) -> str:
    cursor.execute('SELECT type_string, label FROM "group" WHERE id = %s', (campaign_id,))
    kind, label = cursor.fetchone() or ("campaign", campaign_id)
    return f"{kind} {label}"


def holders(cursor: Cursor, campaign_ids: Collection[int]) -> dict[int, str]:
    """Who runs campaigns, in words, of those that are being run.

    The session that has a campaign's lock has its worker's lock too.
    """
    cursor.execute(
        """
        SELECT held.objid::bigint, worker.host, worker.pid, held.pid
        FROM pg_locks held
        LEFT JOIN pg_locks own ON own.pid = held.pid AND own.locktype = 'advisory' AND own.objsubid = 2
             AND own.classid::bigint = %s AND own.database = held.database
        LEFT JOIN worker ON worker.id = own.objid::bigint
        WHERE held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted
          AND held.classid::bigint = %s AND held.objid::bigint = ANY (%s)
          AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        (WORKER_LOCK, CAMPAIGN_LOCK, list(campaign_ids)),
    )
    return {
        int(id_): f"process {pid} on {host}" if host else f"the database session {session}"
        for id_, host, pid, session in cursor.fetchall()
    }


def workers_at(cursor: Cursor, campaign_ids: Collection[int]) -> dict[int, str]:
    """Who has workflows of campaigns, in words: workers share them, and hold no lock of the campaign."""
    cursor.execute(
        """
        SELECT p.campaign_id,
               array_agg(format('process %%s on %%s', worker.pid, worker.host) ORDER BY worker.id)
        FROM worker
        JOIN pg_locks own ON own.objid::bigint = worker.id AND own.locktype = 'advisory' AND own.objsubid = 2
             AND own.granted AND own.classid::bigint = %s
             AND own.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        CROSS JOIN LATERAL (
            SELECT DISTINCT campaign_id FROM process
            WHERE workflow AND worker_id = worker.id AND campaign_id = ANY (%s)
              AND state IN ('created', 'waiting', 'running')
        ) AS p
        WHERE worker.ended_at IS NULL GROUP BY 1
        """,
        (WORKER_LOCK, list(campaign_ids)),
    )
    return {int(id_): " and ".join(names) for id_, names in cursor.fetchall()}
