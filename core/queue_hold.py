"""Holding a campaign or queue: who holds it runs what is in it, and nobody else does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grange.core.database import Cursor
from grange.core.errors import CampaignBusy
from grange.core.profile import Profile
from grange.core.worker import CAMPAIGN_LOCK, DISPATCHER, WORKER_LOCK, lock_campaign, unlock_campaign


@contextmanager
def hold(profile: Profile, queue_id: int, name: str, *, wait_s: float = 2.0) -> Iterator[None]:
    """Hold a campaign or queue for the time of the block.

    name: what it is called, for people. wait_s: as of lock_campaign. Not inside a transaction.
    Errors: CampaignBusy, which says who holds it.
    """
    profile.worker_id  # noqa: B018 – registers this process, so that others can be told who runs it
    connection = profile.connection
    with connection.turn:
        if queue_id in profile.held:  # the database would let us: the lock is our own
            raise CampaignBusy(f"{name} is being run by this process: wait for its end")
        lock_campaign(connection, queue_id, wait_s=wait_s)
        profile.held.add(queue_id)
    try:
        yield
    finally:
        try:
            if not connection.closed:
                unlock_campaign(connection, queue_id)
        finally:
            profile.held.discard(queue_id)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a campaign or queue; role None: a session that is no worker."""

    host: str | None
    pid: int | None
    role: str | None

    @property
    def is_dispatcher(self) -> bool:
        """Whether it runs whatever comes, until it is told to end."""
        return self.role == DISPATCHER

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.host else "a database session"


def find_holder(cursor: Cursor, queue_id: int) -> Holder | None:
    """Who holds a campaign or queue; None where nobody does."""
    cursor.execute(
        """
        SELECT worker.host, worker.pid, worker.role
        FROM pg_locks held
        LEFT JOIN pg_locks own ON own.pid = held.pid AND own.locktype = 'advisory' AND own.objsubid = 2
             AND own.granted AND own.classid::bigint = %s AND own.database = held.database
        LEFT JOIN worker ON worker.id = own.objid::bigint
        WHERE held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted
          AND held.classid::bigint = %s AND held.objid::bigint = %s
          AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """,
        (WORKER_LOCK, CAMPAIGN_LOCK, queue_id),
    )
    row = cursor.fetchone()
    return None if row is None else Holder(*row)
