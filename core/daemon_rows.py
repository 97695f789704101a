"""The rows of daemons: who supervises where, and what people want of them. Plain SQL, plural.

There is one daemon for a host and a home there. It holds an advisory lock on the id of its row for as long as
its session lives; the row alone proves nothing. People write their wishes into the row, from whatever host,
and notify.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from grange.core.database import Connection, Cursor, transaction
from grange.core.errors import DaemonException
from grange.core.worker import CAMPAIGN_LOCK, WORKER_LOCK

#: First keys of advisory locks. The second is the daemon's id; of the other, a hash of host and home.
DAEMON_LOCK = 0x67_72_61_32
DAEMON_BEGINS_LOCK = 0x67_72_61_33

_NOTIFY = "NOTIFY grange, 'control'"
_COLUMNS = "id, host, home, pid, workers_wanted, started_at, stop_asked_at, restart_asked_at, stopped_at"
# Ids of a kind of lock that somebody in this database holds.
_HELD = """
SELECT objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid::bigint = %s
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True, slots=True)
class DaemonRow:
    """A daemon, as the database knows it."""

    id: int
    host: str
    home: str
    pid: int
    workers_wanted: int
    started_at: datetime
    stop_asked_at: datetime | None
    restart_asked_at: datetime | None
    stopped_at: datetime | None


@dataclass(frozen=True, slots=True)
class PartRow:
    """A living process of a daemon.

    id: of the worker. role: worker or dispatcher. workflows: how many it has in its hands. queue: what a
    dispatcher runs.
    """

    id: int
    daemon_id: int
    host: str
    pid: int
    role: str
    started_at: datetime
    workflows: int
    queue: str | None


# ---------------------------------------------------------------- the daemon itself


def register(connection: Connection, home: str, workers: int) -> int:
    """Make this process the daemon of its host and a home, for as long as the connection lives; its id.

    Commits: the row is seen by others only with its lock held.
    Errors: DaemonException where there is one already.
    """
    host = socket.gethostname()
    with transaction(connection) as cursor:
        _begin_alone(cursor, host, home)
        _refuse_second(cursor, host, home)
        cursor.execute(
            "INSERT INTO daemon (host, home, pid, workers_wanted) VALUES (%s, %s, %s, %s) RETURNING id",
            (host, home, os.getpid(), workers),
        )
        (daemon_id,) = cursor.fetchone() or (0,)
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (DAEMON_LOCK, daemon_id))
    return int(daemon_id)


def register_again(connection: Connection, daemon_id: int, home: str) -> None:
    """Hold the lock of one's row again, after the session was lost.

    Errors: DaemonException where another one has taken the place meanwhile.
    """
    host = socket.gethostname()
    with transaction(connection) as cursor:
        _begin_alone(cursor, host, home)
        _refuse_second(cursor, host, home)
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (DAEMON_LOCK, daemon_id))
        cursor.execute("UPDATE daemon SET stopped_at = NULL WHERE id = %s", (daemon_id,))


def _begin_alone(cursor: Cursor, host: str, home: str) -> None:
    """One at a time may become the daemon of a home; a statement of its own, so that the next one sees it."""
    cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (DAEMON_BEGINS_LOCK, f"{host}:{home}"))


def _refuse_second(cursor: Cursor, host: str, home: str) -> None:
    running = find_alive(cursor, host, home)
    if running:
        raise DaemonException(
            f"the daemon of {home} runs already, as process {running[0].pid} on {host} since "
            f"{running[0].started_at:%Y-%m-%d %H:%M} UTC"
        )


def find(cursor: Cursor, daemon_id: int) -> DaemonRow | None:
    """A daemon by its id, whether or not it lives."""
    cursor.execute(f"SELECT {_COLUMNS} FROM daemon WHERE id = %s", (daemon_id,))  # noqa: S608
    row = cursor.fetchone()
    return None if row is None else DaemonRow(*row)


def note_stopped(cursor: Cursor, daemon_id: int) -> DaemonRow | None:
    """The daemon ends, with all that it has started; its row, with what was wished for last."""
    cursor.execute(
        f"UPDATE daemon SET stopped_at = now() WHERE id = %s RETURNING {_COLUMNS}",  # noqa: S608
        (daemon_id,),
    )
    row = cursor.fetchone()
    cursor.execute(_NOTIFY)
    return None if row is None else DaemonRow(*row)


def note_dead(cursor: Cursor) -> list[DaemonRow]:
    """Note of daemons whose lock is free that they have ended; returns them."""
    cursor.execute(
        f"UPDATE daemon SET stopped_at = now() WHERE stopped_at IS NULL AND id NOT IN ({_HELD})"  # noqa: S608
        f" RETURNING {_COLUMNS}",
        (DAEMON_LOCK,),
    )
    return [DaemonRow(*row) for row in cursor.fetchall()]


# ---------------------------------------------------------------- who asks


def find_alive(cursor: Cursor, host: str | None = None, home: str | None = None) -> list[DaemonRow]:
    """The daemons that live, oldest first: all, or those of a host and home."""
    cursor.execute(
        f"SELECT {_COLUMNS} FROM daemon WHERE stopped_at IS NULL AND id IN ({_HELD})"  # noqa: S608
        " AND (%s::text IS NULL OR host = %s) AND (%s::text IS NULL OR home = %s) ORDER BY id",
        (DAEMON_LOCK, host, host, home, home),
    )
    return [DaemonRow(*row) for row in cursor.fetchall()]


def find_last(cursor: Cursor, host: str, home: str) -> DaemonRow | None:
    """The daemon that was started last for a host and home, whether or not it lives."""
    cursor.execute(
        f"SELECT {_COLUMNS} FROM daemon WHERE host = %s AND home = %s ORDER BY id DESC LIMIT 1",  # noqa: S608
        (host, home),
    )
    row = cursor.fetchone()
    return None if row is None else DaemonRow(*row)


def find_parts(cursor: Cursor, daemon_ids: Collection[int]) -> list[PartRow]:
    """The living processes of daemons, whether or not these live themselves; oldest first."""
    cursor.execute(
        f"""
        SELECT worker.id, daemon_id, host, pid, role, started_at,
               (SELECT count(*) FROM process WHERE worker_id = worker.id AND workflow
                AND state IN ('created', 'waiting', 'running')),
               queue.label
        FROM worker
        LEFT JOIN LATERAL (
            SELECT "group".label FROM pg_locks own
            JOIN pg_locks held ON held.pid = own.pid AND held.locktype = 'advisory' AND held.objsubid = 2
                 AND held.granted AND held.classid::bigint = %(campaign)s AND held.database = own.database
            JOIN "group" ON "group".id = held.objid::bigint
            WHERE own.locktype = 'advisory' AND own.objsubid = 2 AND own.granted
              AND own.classid::bigint = %(worker)s AND own.objid::bigint = worker.id
              AND own.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            LIMIT 1) AS queue ON worker.role = 'dispatcher'
        WHERE ended_at IS NULL AND daemon_id = ANY (%(ids)s)
          AND worker.id IN ({_HELD.replace("%s", "%(worker)s")})
        ORDER BY worker.id
        """,  # noqa: S608
        {"campaign": CAMPAIGN_LOCK, "worker": WORKER_LOCK, "ids": list(daemon_ids)},
    )
    return [PartRow(*row) for row in cursor.fetchall()]


def find_orphans(cursor: Cursor, host: str, home: str) -> list[PartRow]:
    """Living processes on a host that daemons of a home there have started which live no more."""
    cursor.execute(
        f"""
        SELECT id FROM daemon WHERE host = %s AND home = %s AND id NOT IN ({_HELD})
          AND EXISTS (SELECT FROM worker WHERE daemon_id = daemon.id AND ended_at IS NULL)
        """,  # noqa: S608
        (host, home, DAEMON_LOCK),
    )
    dead = [row[0] for row in cursor.fetchall()]
    return [part for part in find_parts(cursor, dead) if part.host == host] if dead else []


def most_workers(cursor: Cursor) -> int:
    """So many workers leave PostgreSQL enough connections for everybody else."""
    cursor.execute("SELECT current_setting('max_connections')::int / 2")
    (most,) = cursor.fetchone() or (0,)
    return int(most)


def ask_to_stop(cursor: Cursor, daemon_ids: Collection[int]) -> None:
    """Wish that daemons end."""
    cursor.execute(
        "UPDATE daemon SET stop_asked_at = coalesce(stop_asked_at, now()) WHERE id = ANY (%s)",
        (list(daemon_ids),),
    )
    cursor.execute(_NOTIFY)


def ask_to_restart(cursor: Cursor, daemon_ids: Collection[int], workers: int | None = None) -> None:
    """Wish that daemons end and begin anew, with so many workers."""
    cursor.execute(
        "UPDATE daemon SET restart_asked_at = coalesce(restart_asked_at, now()),"
        " workers_wanted = coalesce(%s, workers_wanted) WHERE id = ANY (%s)",
        (workers, list(daemon_ids)),
    )
    cursor.execute(_NOTIFY)


def add_workers(cursor: Cursor, daemon_id: int, number: int) -> int:
    """Wish for more workers, or for fewer; returns how many that are, never less than none."""
    cursor.execute(
        "UPDATE daemon SET workers_wanted = greatest(0, workers_wanted + %s) WHERE id = %s"
        " RETURNING workers_wanted",
        (number, daemon_id),
    )
    (wanted,) = cursor.fetchone() or (0,)
    cursor.execute(_NOTIFY)
    return int(wanted)
