"""Who has the files of a profile open: sessions of its database that share a lock.

A profile shares the lock before it opens its store, and reads only then from profile.toml which store that
is. Who has the lock alone may name another store there: nobody has the old one open, and nobody opens one
meanwhile. PostgreSQL drops a session's locks with its connection; a profile that makes its connection anew
opens its store anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from grange.core.database import Connection, transaction, translated
from grange.core.errors import RepositoryBusy

#: The session advisory lock of whoever has the store open.
STORE_LOCK = 0x6772616E67650003
#: How long to wait for a store that is just being moved; its last step is short.
PATIENCE_S = 60.0

# Sessions that have the store open, but for our own.
_HOLDERS = """
SELECT count(*), min(activity.backend_start) FROM pg_locks held
JOIN pg_stat_activity activity ON activity.pid = held.pid
WHERE held.locktype = 'advisory' AND held.objsubid = 1 AND held.granted AND held.pid <> pg_backend_pid()
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND held.classid::bigint = %s AND held.objid::bigint = %s
"""


def share(connection: Connection, patience_s: float = PATIENCE_S) -> None:
    """Have the store open, until the connection ends. Inside a transaction or outside of any.

    Errors: RepositoryBusy when the store is being moved for longer than patience_s.
    """
    if not _take(connection, "pg_try_advisory_lock_shared", patience_s):
        raise RepositoryBusy("the files of this profile are just being moved to another store: wait a moment")


@contextmanager
def alone(connection: Connection, patience_s: float) -> Iterator[None]:
    """Nobody else has the store open until the block ends.

    Errors: RepositoryBusy when others have, for longer than patience_s.
    """
    if not _take(connection, "pg_try_advisory_lock", patience_s):
        count, since = holders(connection)
        when = f", the first of them since {since.astimezone():%Y-%m-%d %H:%M}" if since else ""
        raise RepositoryBusy(
            f"{count} other {'process has' if count == 1 else 'processes have'} the files of this profile "
            f"open{when}: end the campaigns that run, notebooks and what else uses it (daemons stand by "
            "after `grange profile lock --wait`), then do the same again"
        )
    try:
        yield
    finally:
        if not connection.closed:
            _ask(connection, "SELECT pg_advisory_unlock(%s)", STORE_LOCK)


def holders(connection: Connection) -> tuple[int, datetime | None]:
    """How many other sessions have the store open, and since when the first of them is there."""
    with transaction(connection) as cursor:
        cursor.execute(_HOLDERS, (STORE_LOCK >> 32, STORE_LOCK & 0xFFFFFFFF))
        count, since = cursor.fetchone() or (0, None)
    return int(count), since


def _take(connection: Connection, function: str, patience_s: float) -> bool:
    deadline_s = time.monotonic() + patience_s
    while not _ask(connection, f"SELECT {function}(%s)", STORE_LOCK):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.05)
    return True


def _ask(connection: Connection, query: str, lock: int) -> bool:
    """One question, in the transaction of this thread or in one of its own."""
    from psycopg2.extensions import TRANSACTION_STATUS_IDLE

    with connection.turn:
        if connection.info.transaction_status == TRANSACTION_STATUS_IDLE:
            with transaction(connection) as cursor:
                cursor.execute(query, (lock,))
                return bool((cursor.fetchone() or (False,))[0])
        with translated(), connection.cursor() as cursor:
            cursor.execute(query, (lock,))
            return bool((cursor.fetchone() or (False,))[0])
