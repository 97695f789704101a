"""The lock of a profile: while somebody maintains it, nobody works, on whatever host.

Two parts. The row of the table profile_lock says that it is locked, why and by whom: it stays until somebody
unlocks. And whoever works shares an advisory lock of the database, which PostgreSQL drops with the session.
Who begins to work takes a share first and then looks for the row; who locks writes the row first and then
looks for shares: so either the one sees the row, or the other the share.

Workers and dispatchers look again each second: they bring to an end what they are at, let go, and go on by
themselves when it is unlocked. A script that runs something is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from grange.core.database import Connection, Cursor, transaction
from grange.core.errors import ProfileLocked
from grange.core.profile import Profile
from grange.core.worker import WORKER_LOCK

#: First key of the advisory lock that is shared by whoever works; the second is 0.
PROFILE_LOCK = 0x67_72_61_31
#: Seconds between two looks.
LOOK_S = 1.0

_SHARE = "SELECT pg_advisory_lock_shared(%s, 0)"
# Sessions that share the lock, but for our own, and the workers that they are.
_AT_WORK = """
SELECT worker.host, worker.pid, worker.role, worker.started_at, held.pid
FROM pg_locks held
LEFT JOIN pg_locks own ON own.pid = held.pid AND own.locktype = 'advisory' AND own.objsubid = 2
     AND own.granted AND own.classid::bigint = %s AND own.database = held.database
LEFT JOIN worker ON worker.id = own.objid::bigint
WHERE held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted AND held.pid <> pg_backend_pid()
  AND held.classid::bigint = %s AND held.objid = 0
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY worker.id NULLS LAST, held.pid
"""


@dataclass(frozen=True, slots=True)
class ProfileLock:
    """That a profile is locked: why, by whom, since when."""

    reason: str
    by_whom: str
    locked_at: datetime

    def __str__(self) -> str:
        return f"locked by {self.by_whom} since {self.locked_at:%Y-%m-%d %H:%M} UTC: {self.reason}"


@dataclass(frozen=True, slots=True)
class AtWork:
    """Somebody who works. host, pid and role are None for a session that is no worker."""

    host: str | None
    pid: int | None
    role: str | None
    since: datetime | None
    session: int

    def __str__(self) -> str:
        if self.host is None:
            return f"the database session {self.session}"
        return f"{'process' if self.role == 'client' else self.role} {self.pid} on {self.host}"


# ---------------------------------------------------------------- who locks


def lock(cursor: Cursor, reason: str, by_whom: str) -> None:
    """Lock the profile: from the commit on nobody begins to work.

    Errors: ProfileLocked where it is locked already.
    """
    cursor.execute(
        "INSERT INTO profile_lock (reason, by_whom) VALUES (%s, %s) ON CONFLICT DO NOTHING", (reason, by_whom)
    )
    if cursor.rowcount == 0:
        found = find(cursor)
        if found is not None:
            raise ProfileLocked(f"the profile is {found}")
        lock(cursor, reason, by_whom)  # it has just been unlocked
    cursor.execute("NOTIFY grange, 'control'")


def unlock(cursor: Cursor) -> ProfileLock | None:
    """Let everybody work again; returns what the lock was, None where there was none."""
    cursor.execute("DELETE FROM profile_lock RETURNING reason, by_whom, locked_at")
    row = cursor.fetchone()
    cursor.execute("NOTIFY grange, 'control'")
    return None if row is None else ProfileLock(*row)


def find(cursor: Cursor) -> ProfileLock | None:
    """The lock, where there is one."""
    cursor.execute("SELECT reason, by_whom, locked_at FROM profile_lock")
    row = cursor.fetchone()
    return None if row is None else ProfileLock(*row)


def at_work(cursor: Cursor) -> list[AtWork]:
    """Who works now, on all hosts."""
    cursor.execute(_AT_WORK, (WORKER_LOCK, PROFILE_LOCK))
    return [AtWork(*row) for row in cursor.fetchall()]


def wait_until_idle(
    profile: Profile, timeout_s: float | None, tell: Callable[[Sequence[AtWork]], None] = lambda _: None
) -> list[AtWork]:
    """Wait until nobody works any more, in a profile that is locked; returns who still does after timeout_s.

    timeout_s: None waits for ever. tell: is told of who works, whenever that is somebody else than before.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    told: list[AtWork] = []
    pause_s = 0.02
    while True:
        with profile.transaction() as cursor:
            found = at_work(cursor)
        if not found or (deadline_s is not None and time.monotonic() >= deadline_s):
            return found
        if found != told:
            tell(found)
            told = found
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, LOOK_S)


# ---------------------------------------------------------------- who works


class Share:
    """The share in the lock of a process that works until it is told to end.

        share = Share(profile)
        if (locked := share.take()) is None:
            while not share.is_wanted():
                ...
            share.let_go()

    It goes with the session: where that is lost and made anew, the share is taken anew. Used by one thread,
    outside of transactions.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._session: Connection | None = None
        self._looks_at_s = 0.0
        self._locked: ProfileLock | None = None

    def take(self) -> ProfileLock | None:
        """Begin to work; where the profile is locked, says so and takes nothing.

        Errors: DatabaseUnavailable.
        """
        connection = self._profile.connection
        self._locked = _taken(connection)
        self._session = connection if self._locked is None else None
        self._looks_at_s = time.monotonic() + LOOK_S
        return self._locked

    def is_wanted(self) -> bool:
        """Whether it has to be let go, because somebody locks the profile; looks once a second.

        Errors: DatabaseUnavailable.
        """
        if self._session is not self._profile.connection:
            return self.take() is not None
        now_s = time.monotonic()
        if now_s >= self._looks_at_s:
            self._looks_at_s = now_s + LOOK_S
            with self._profile.transaction() as cursor:
                self._locked = find(cursor)
        return self._locked is not None

    def let_go(self) -> None:
        """Work no more."""
        session, self._session = self._session, None
        if session is not None and not session.closed:
            _let_go(session)


@contextmanager
def working(profile: Profile) -> Iterator[None]:
    """Share the lock of the profile while the block works: a run of a campaign in a script. May be nested.

    Where its session is lost and made anew, it still works, and the share is taken anew, whoever has locked
    the profile meanwhile. Not inside a transaction.
    Errors: ProfileLocked, which says why and by whom.
    """
    session = profile.connection
    with session.turn:
        locked = _taken(session)
    if locked is not None:
        raise ProfileLocked(f"the profile is {locked}")

    def take_again(renewed: Connection) -> None:
        nonlocal session
        session = renewed
        with transaction(renewed) as cursor:
            cursor.execute(_SHARE, (PROFILE_LOCK,))

    profile.on_renewal.append(take_again)
    try:
        yield
    finally:
        profile.on_renewal.remove(take_again)
        if not session.closed:
            _let_go(session)


def _taken(connection: Connection) -> ProfileLock | None:
    """Take a share unless the profile is locked. Two statements, so that the second sees what was committed
    before the first was through."""
    with transaction(connection) as cursor:
        cursor.execute(_SHARE, (PROFILE_LOCK,))
        found = find(cursor)
        if found is not None:
            cursor.execute("SELECT pg_advisory_unlock_shared(%s, 0)", (PROFILE_LOCK,))
    return found


def _let_go(connection: Connection) -> None:
    with transaction(connection) as cursor:
        cursor.execute("SELECT pg_advisory_unlock_shared(%s, 0)", (PROFILE_LOCK,))
