"""Wake-ups: news from other processes of the installation, by PostgreSQL's LISTEN and NOTIFY.

News only hasten: whoever waits looks by itself now and then, too.
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from contextlib import suppress

import psycopg2

from grange.core.database import Connection, transaction
from grange.core.errors import DatabaseUnavailable
from grange.core.profile import Profile

CHANNEL = "grange"


class Wakeups:
    """Listens on the connection of a profile; used by one thread.

    The connection may be lost and made again: then everything counts as news.

    also: descriptors that end the waiting when they can be read from, as Stopping.descriptors.
    """

    def __init__(self, profile: Profile, also: Sequence[int] = ()) -> None:
        self._profile = profile
        self._also = tuple(also)
        self._listening: Connection | None = None

    def wait(self, timeout_s: float) -> set[str] | None:
        """The news since the last call; waits up to timeout_s seconds for the first of them.

        None: nobody knows what was missed, because it has just begun to listen. Errors: DatabaseUnavailable.
        """
        connection = self._profile.connection
        if connection is not self._listening:
            with self._profile.transaction() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
            self._listening = connection
            connection.notifies.clear()
            return None
        try:
            if not connection.notifies and timeout_s > 0:
                poll = select.poll()
                for descriptor in (connection.fileno(), *self._also):
                    poll.register(descriptor, select.POLLIN)
                poll.poll(max(1, int(timeout_s * 1000)))
            with connection.turn:
                connection.poll()
        except psycopg2.Error:  # lost: the next call listens anew
            self._listening = None
            return None
        return self._taken(connection)

    def stop(self) -> None:
        """Listen no more, until wait() is called again: who listens and does not look is a burden."""
        connection, self._listening = self._listening, None
        if connection is not None and not connection.closed:
            with suppress(DatabaseUnavailable), transaction(connection) as cursor:
                cursor.execute(f"UNLISTEN {CHANNEL}")

    def _taken(self, connection: Connection) -> set[str]:
        with connection.turn:
            news = {notice.payload for notice in connection.notifies}
            connection.notifies.clear()
        return news
