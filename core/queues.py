"""Queues: what calculations wait in that belong to no campaign, and who has to run what waits where.

A queue is a group of the type "queue": one for each computer, and one for the cores of each host. Campaigns
are queues of their own calculations. Whoever holds the lock on a queue runs all that is in it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from grange.core import group
from grange.core.data.code_value import CodeValue
from grange.core.database import Cursor, translated
from grange.core.errors import NameExists
from grange.core.executors import NAMES, computer_id_of
from grange.core.profile import Profile
from grange.core.worker import CAMPAIGN_LOCK, WORKER_LOCK

#: The type of the groups that are queues, and of those that are campaigns.
QUEUE_TYPE = "queue"
CAMPAIGN_TYPE = "campaign"
#: Extras of both. On which computer it is run, or how on this machine; then also on which host, and with the
#: spool of which home.
EXECUTOR_EXTRA = "executor"
HOST_EXTRA = "host"
HOME_EXTRA = "home"
#: Extra of a campaign that somebody has submitted, so that a dispatcher is to run it.
SUBMITTED_EXTRA = "submitted"

#: The lock, for one transaction, of who records calls of a campaign; its second key is the campaign's id.
RECORD_LOCK = 0x67_72_61_04

_LOCAL = "local"


class Queues:
    """The queues of a profile by the name of what runs them; made when they are first asked for.

    own: for a script that runs itself what it puts there. On this machine each such script has a queue of its
    own, unless a daemon runs the common one: else all would depend on the one that came first, and what they
    have under way would end with it.
    """

    def __init__(self, profile: Profile, *, own: bool = False) -> None:
        self._profile = profile
        self._own = own
        self._ids: dict[str, int] = {}
        self._computer_ids: dict[int, int | None] = {}
        self._computers: dict[int, str | None] = {}

    def ids_of(self, executors: Collection[str | None]) -> dict[str | None, int]:
        """The queue for each executor: "local" (None is the same), "hyperqueue" …, or a computer's label.

        Not inside a transaction. Errors: NotFound, ComputerDisabled, InputInvalid.
        """
        wanted = {executor: executor or _LOCAL for executor in executors}
        for name in {*wanted.values()} - self._ids.keys():
            self._ids[name] = self._found_or_made(name)
        return {executor: self._ids[name] for executor, name in wanted.items()}

    def id_of(self, executor: str | None) -> int:
        """The queue for one executor. Errors: as ids_of."""
        return self.ids_of([executor])[executor]

    def of(self, executor: str | None, values: Mapping[str, object]) -> int:
        """The queue for a call of these plain values: where nothing is said, that of its code's computer.

        Not inside a transaction. Errors: as ids_of.
        """
        return self.id_of(executor or self._computer_of_code(values))

    def computer_of(self, queue_id: int) -> int | None:
        """The computer of a queue that this has given; None where it is this machine."""
        return self._computer_ids[queue_id]

    def _computer_of_code(self, values: Mapping[str, object]) -> str | None:
        for value in values.values():
            if type(value) is CodeValue and (computer_id := value.launch.computer_id) is not None:
                if computer_id not in self._computers:
                    with self._profile.transaction() as cursor:
                        cursor.execute("SELECT label FROM computer WHERE id = %s", (computer_id,))
                        (self._computers[computer_id],) = cursor.fetchone() or (None,)
                return self._computers[computer_id]
        return None

    def _found_or_made(self, name: str) -> int:
        profile = self._profile
        computer_id = computer_id_of(profile, name)  # what is not there, or disabled, is refused here
        label = f"{name}@{socket.gethostname()}" if name in NAMES else name
        with profile.transaction() as cursor:
            if self._own and name in NAMES:
                label = _own_label(cursor, label)
            try:
                made = group.create(cursor, label, user_id=profile.user_id, type_string=QUEUE_TYPE)
            except NameExists:
                made = group.load(cursor, label, QUEUE_TYPE)
            note_executor(cursor, made.id, name, home=str(profile.home))
        self._computer_ids[made.id] = computer_id
        return made.id


# The queues of an executor on a machine, who holds each, if anybody does, and for which daemon.
_OF_MACHINE = """
SELECT g.label, held.pid IS NULL, worker.host, worker.pid, worker.daemon_id
FROM "group" g
LEFT JOIN pg_locks held ON held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted
     AND held.classid::bigint = %(queue)s AND held.objid::bigint = g.id
     AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
LEFT JOIN pg_locks lock ON lock.pid = held.pid AND lock.locktype = 'advisory' AND lock.objsubid = 2
     AND lock.granted AND lock.classid::bigint = %(worker)s AND lock.database = held.database
LEFT JOIN worker ON worker.id = lock.objid::bigint
WHERE g.type_string = 'queue' AND (g.label = %(label)s OR starts_with(g.label, %(label)s || '#'))
ORDER BY length(g.label), g.label
"""


def _own_label(cursor: Cursor, label: str) -> str:
    """The first queue of a machine that nobody has, or this process or a daemon: label, label#2, label#3 …"""
    with translated():
        cursor.execute(_OF_MACHINE, {"label": label, "queue": CAMPAIGN_LOCK, "worker": WORKER_LOCK})
        taken = set()
        for found, is_free, host, pid, daemon_id in cursor.fetchall():
            if is_free or daemon_id is not None or (host, pid) == (socket.gethostname(), os.getpid()):
                return str(found)
            taken.add(found)
    return next(one for n in range(1, 10**6) if (one := label if n == 1 else f"{label}#{n}") not in taken)


def note_executor(cursor: Cursor, group_id: int, executor: str, *, home: str) -> None:
    """Note at a campaign or queue what is to run it; where it is this machine, which one, and whose spool."""
    here = executor in NAMES
    with translated():
        cursor.execute(
            """
            UPDATE "group" SET extras = new.extras FROM (
                SELECT jsonb_strip_nulls(extras || jsonb_build_object(
                    'executor', %(executor)s::text, 'host', %(host)s::text, 'home', %(home)s::text)) AS extras
                FROM "group" WHERE id = %(id)s) AS new
            WHERE id = %(id)s AND "group".extras IS DISTINCT FROM new.extras
            """,
            {
                "id": group_id,
                "executor": None if executor == _LOCAL else executor,
                "host": socket.gethostname() if here else None,
                "home": home if here else None,
            },
        )


def lock_recording(cursor: Cursor, campaign_id: int) -> None:
    """Record calls of a campaign alone, to the end of the transaction: two calls of one key would collide.

    A statement of its own, so that what follows sees what others have recorded.
    """
    with translated():
        cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", (RECORD_LOCK, campaign_id))


def mark_submitted(cursor: Cursor, campaign_id: int) -> None:
    """A dispatcher is to run the campaign; in the transaction that records calls of it."""
    with translated():
        cursor.execute(
            'UPDATE "group" SET extras = extras || \'{"submitted": true}\''
            " WHERE id = %s AND NOT extras ? 'submitted'",
            (campaign_id,),
        )


def unmark_submitted(cursor: Cursor, campaign_id: int, *, only_if_done: bool) -> None:
    """No dispatcher is to begin with the campaign any more: it is done, or somebody has interrupted it."""
    lock_recording(cursor, campaign_id)
    with translated():
        cursor.execute(
            """
            UPDATE "group" SET extras = extras - 'submitted'
            WHERE id = %(id)s AND extras ? 'submitted' AND (NOT %(done)s OR NOT EXISTS (
                SELECT FROM process WHERE queue_id = %(id)s AND state IN ('created', 'waiting', 'running')))
            """,
            {"id": campaign_id, "done": only_if_done},
        )


@dataclass(frozen=True, slots=True)
class Queue:
    """A campaign or queue, as whoever is to run it has to know it.

    executor: "local", "hyperqueue" …, or a computer's label.
    """

    id: int
    label: str
    type_string: str
    executor: str

    @property
    def is_campaign(self) -> bool:
        """Whether it is a campaign."""
        return self.type_string == CAMPAIGN_TYPE


# Campaigns that were submitted, and queues, whose lock is free and that have something to do. What runs on a
# machine is run there; by another host with the same home only if nobody of the grange of that host is alive.
_WAITING = """
WITH held AS (
    SELECT classid::bigint AS kind, objid::bigint AS id FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 2 AND granted AND classid::bigint IN (%(campaign)s, %(worker)s)
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), alive AS (
    SELECT DISTINCT worker.host FROM worker JOIN held ON held.kind = %(worker)s AND held.id = worker.id
)
SELECT g.id, g.label, g.type_string, coalesce(g.extras ->> 'executor', 'local')
FROM "group" g
WHERE (g.type_string = 'queue' OR g.type_string = 'campaign' AND g.extras ? 'submitted')
  AND g.id <> ALL (%(taken)s)
  AND NOT EXISTS (SELECT FROM held WHERE held.kind = %(campaign)s AND held.id = g.id)
  AND (NOT g.extras ? 'host' OR g.extras ->> 'host' = %(host)s
       OR g.extras ->> 'home' = %(home)s AND g.extras ->> 'host' NOT IN (SELECT host FROM alive))
  AND EXISTS (SELECT FROM process p
              WHERE p.queue_id = g.id AND NOT p.workflow AND p.state IN ('created', 'waiting', 'running')
                AND (NOT p.paused OR p.to_kill))
ORDER BY g.type_string DESC, g.id
"""


def find_waiting(cursor: Cursor, home: str, taken: Collection[int] = ()) -> list[Queue]:
    """What a dispatcher of this host has to be started for, queues first, then the oldest campaign.

    taken: those that the caller has dispatchers for. Of campaigns that are run on this machine there is one
    at a time, beside its queue: each would take all its cores.
    """
    with translated():
        cursor.execute(
            _WAITING,
            {
                "campaign": CAMPAIGN_LOCK,
                "worker": WORKER_LOCK,
                "taken": list(taken),
                "host": socket.gethostname(),
                "home": home,
            },
        )
        found = [Queue(*row) for row in cursor.fetchall()]
        busy = _has_local_campaign(cursor, taken)
    waiting = []
    for one in found:
        if one.is_campaign and one.executor in NAMES:
            if busy:
                continue
            busy = True
        waiting.append(one)
    return waiting


def _has_local_campaign(cursor: Cursor, ids: Collection[int]) -> bool:
    if not ids:
        return False
    cursor.execute(
        """
        SELECT EXISTS (SELECT FROM "group" WHERE id = ANY (%s) AND type_string = 'campaign'
                       AND coalesce(extras ->> 'executor', 'local') = ANY (%s))
        """,
        (list(ids), list(NAMES)),
    )
    return bool((cursor.fetchone() or (False,))[0])


def load_queue(cursor: Cursor, group_id: int) -> Queue | None:
    """A campaign or queue by its id; None where there is none."""
    cursor.execute(
        """
        SELECT id, label, type_string, coalesce(extras ->> 'executor', 'local') FROM "group"
        WHERE id = %s AND type_string IN ('campaign', 'queue')
        """,
        (group_id,),
    )
    row = cursor.fetchone()
    return None if row is None else Queue(*row)
