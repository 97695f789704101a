"""Upkeep of the repository in PostgreSQL: which blobs are needed, and taking away those that are not.

**Why nothing that is wanted can go.** A blob is needed if a node names it in repository_metadata, or if it
lies in a pack that runners delivered for a campaign or queue which has calculations under way that are not
younger (a later pack of the same chunk leaves out what an earlier one has). Whoever is about to rely on a
blob or an object that is there already shares PRUNE_LOCK (PostgresIndex.hold) from before it looks, and
before its nodes have ids, to the end of its transaction. mark() has that lock alone for a moment and notes
the highest id M: whoever held it has committed, so the mark sees their nodes, and whoever comes later has
ids above M. Each step of the sweep has the lock alone again, first takes back what nodes above M name, and
moves M up; so what it removes is named by no node that is committed, and nobody is about to. Nodes are
immutable, so an old one never begins to name another blob.

**What a kill leaves.** Each step is one transaction. Rows of blobs go first; an object whose last row has
gone is dead (pack.dead_since) and goes a grace period later, its row after it: killed in between, the row
is still there, and the next pruning removes object (which is gone) and row. Repacking writes new packs
before rows point at them: killed in between, they are orphans, which go when they are old enough.

Why dead objects wait: a reader that has looked a blob up, a URL that was signed, and a dump of the database
that was made before, all name objects as they were; for the grace period these are there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg2 import errors as driver

from grange.core import database
from grange.core.blob_index import PRUNE_LOCK, PostgresIndex
from grange.core.database import Connection, Cursor
from grange.core.errors import RepositoryBusy
from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_use import ObjectUse

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: The session advisory lock of whoever prunes, repacks or rebuilds: one at a time.
UPKEEP_LOCK = 0x6772616E67650002
#: How long to wait for a gap between writers.
PATIENCE_S = 900.0
#: How long to wait for another one that prunes, repacks or rebuilds.
OTHERS_PATIENCE_S = 30.0
#: After so long somebody is told that there is none.
_LONG_S = 3.0
#: So long a gap between writers is looked for without queuing for it, so often.
_POLITE_S, _POLITE_EVERY_S = 1.0, 0.01
#: A wait for the lock holds up writers that come meanwhile: it begins short and never gets long.
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.25, 8.0

#: Every text in repository_metadata is the key of a file.
_NAMED = """jsonb_path_query(repository_metadata, 'strict $.** ? (@.type() == "string")') AS file"""

# How the key of a file and that of a blob are compared. The first lets PostgreSQL look up the many in the
# few, in parallel; the other can do with a node of an archive that names what is no key.
_SAME_KEY = ("decode(file.name, 'hex') = blob.key", "file.name = encode(blob.key, 'hex')")

# Blobs that no node names, and, without a key, what nodes name and the index does not know: in one pass, for
# taking JSON apart is most of it.
_MARK = f"""
CREATE TEMP TABLE dead AS
SELECT blob.key, blob.pack_id, blob.stored_size, file.name AS missing
FROM blob FULL JOIN (SELECT file #>> '{{}}' AS name FROM node, {_NAMED}
                     WHERE repository_metadata <> '{{}}') file ON %s
WHERE blob.key IS NULL OR file.name IS NULL
"""  # noqa: S608

_MISSING = "SELECT count(DISTINCT missing) FROM dead WHERE key IS NULL"

# The highest id that a node may have.
_LAST_ID = "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM node_id"

# What nodes of higher ids name is needed after all.
_TAKE_BACK = f"""
DELETE FROM dead WHERE key IN (
    SELECT CASE WHEN file #>> '{{}}' ~ '^[0-9a-f]{{64}}$' THEN decode(file #>> '{{}}', 'hex') END
    FROM node, {_NAMED} WHERE id > %s AND repository_metadata <> '{{}}')
"""  # noqa: S608

# Campaigns and queues whose runners may deliver packs yet, with the oldest calculation that is under way.
_UNDER_WAY = """
SELECT id, label, oldest FROM "group" CROSS JOIN LATERAL (
    SELECT min(node_id) AS oldest FROM process WHERE queue_id = "group".id AND NOT workflow AND attempt > 0
      AND state IN ('created', 'waiting', 'running')) AS process
WHERE type_string IN ('campaign', 'queue') AND oldest IS NOT NULL
"""

# Whether a later pack of a chunk may rely on a pack: one of its calculations was there when it was promised.
_RELIED_ON = "under_way.id = pack.campaign_id AND coalesce(under_way.oldest <= pack.last_node, true)"

_SWEEP = f"""
WITH under_way AS ({_UNDER_WAY}), meant AS (
    SELECT pack.id FROM pack WHERE name = ANY (%s)
      AND NOT EXISTS (SELECT FROM under_way WHERE {_RELIED_ON})
)
DELETE FROM blob USING dead
WHERE blob.key = dead.key AND blob.pack_id = dead.pack_id AND dead.pack_id IN (SELECT id FROM meant)
"""  # noqa: S608

# An object that was filled again while it was being given up.
_ALIVE = """
UPDATE pack SET dead_since = NULL WHERE name = ANY (%s) AND dead_since IS NOT NULL
  AND EXISTS (SELECT FROM blob WHERE pack_id = pack.id)
"""

_EMPTIED = f"""
UPDATE pack SET dead_since = clock_timestamp() WHERE name = ANY (%s) AND dead_since IS NULL
  AND NOT EXISTS (SELECT FROM blob WHERE pack_id = pack.id)
  AND NOT EXISTS (SELECT FROM ({_UNDER_WAY}) AS under_way WHERE {_RELIED_ON})
"""  # noqa: S608

# Of objects those that nothing needs: not known, or known to have been dead for so many seconds.
_FREE = f"""
SELECT given.name FROM unnest(%s::text[]) AS given (name) LEFT JOIN pack USING (name)
WHERE pack.id IS NULL
   OR pack.dead_since <= clock_timestamp() - make_interval(secs => %s)
      AND NOT EXISTS (SELECT FROM blob WHERE pack_id = pack.id)
      AND NOT EXISTS (SELECT FROM ({_UNDER_WAY}) AS under_way WHERE {_RELIED_ON})
"""  # noqa: S608

_USES = f"""
SELECT pack.name, coalesce(b.blobs, 0), coalesce(b.stored, 0)::bigint, coalesce(b.content, 0)::bigint,
       coalesce(d.blobs, 0), coalesce(d.stored, 0)::bigint, coalesce(under_way.label, ''),
       extract(epoch FROM pack.dead_since)::float8
FROM pack
LEFT JOIN (SELECT pack_id, count(*) AS blobs, sum(stored_size) AS stored, sum(size) AS content
           FROM blob GROUP BY 1) b ON b.pack_id = pack.id
LEFT JOIN (SELECT pack_id, count(*) AS blobs, sum(stored_size) AS stored
           FROM dead GROUP BY 1) d ON d.pack_id = pack.id
LEFT JOIN ({_UNDER_WAY}) AS under_way ON {_RELIED_ON}
"""  # noqa: S608

# What files come to: contents that nodes name, and how often.
_FILES = f"""
SELECT count(*), coalesce(sum(times), 0)::bigint, coalesce(sum(times * blob.size), 0)::bigint,
       coalesce(sum(blob.size), 0)::bigint, coalesce(sum(blob.stored_size), 0)::bigint,
       count(*) FILTER (WHERE blob.key IS NULL)
FROM (SELECT file #>> '{{}}' AS key, count(*) AS times FROM node, {_NAMED}
      WHERE repository_metadata <> '{{}}' GROUP BY 1) named
LEFT JOIN blob ON encode(blob.key, 'hex') = named.key
"""  # noqa: S608

_FORGET = "DELETE FROM blob WHERE pack_id IN (SELECT id FROM pack WHERE name = ANY (%s))"

# Blobs out of one object.
_TAKE_OUT = """
DELETE FROM blob USING pack WHERE pack.id = blob.pack_id AND pack.name = %s AND blob.key = ANY (%s)
"""

_IS_EMPTY = """
SELECT NOT EXISTS (SELECT FROM blob JOIN pack ON pack.id = blob.pack_id WHERE pack.name = %s)
"""

_LOCATIONS = """
SELECT encode(blob.key, 'hex'), pack.name, blob."offset", blob.stored_size, blob.codec::text, blob.size
FROM blob JOIN pack ON pack.id = blob.pack_id WHERE pack.name = ANY (%s) ORDER BY pack.name, blob."offset"
"""


@dataclass(frozen=True, slots=True)
class Files:
    """What the files of all nodes come to.

    files, file_bytes: as nodes name them, a content as often as it is named. contents, content_bytes,
    stored_bytes: each content once, as it is and as it is stored. missing: contents that the index has not.
    """

    contents: int
    files: int
    file_bytes: int
    content_bytes: int
    stored_bytes: int
    missing: int


class Upkeep:
    """A session of the database that prunes, repacks or rebuilds: the only one, if it was asked for alone.

    It is the index that grange.repository.pruning, .repacking and .rebuilding work on.
    on_wait: called when writers leave no gap for some seconds.
    """

    def __init__(self, connection: Connection) -> None:
        self.on_wait: Callable[[], None] = lambda: None
        self._connection = connection
        self._seen_id = 0
        with database.transaction(connection) as cursor:
            # Estimates for what JSON holds are far too high: compiling for them takes longer than running.
            # Rows that are gone must not come back when the server dies: their objects are gone, too.
            cursor.execute("SET jit = off; SET synchronous_commit = on; SET work_mem = '64MB'")
            cursor.execute("CREATE TEMP TABLE dead (key bytea, pack_id integer, stored_size bigint)")

    # ------------------------------------------------------------ looking

    def mark(self, *, settle: bool = True) -> int:
        """Find out which blobs no node names; says how many contents nodes name that the index has not.

        settle: so that they can be swept; without it, this only looks, and waits for nobody.
        A few seconds for a million nodes and as many blobs (bench/prune).
        """
        if settle:
            with self._alone() as cursor:
                self._seen_id = _number(cursor, _LAST_ID)
        quick, patient = _SAME_KEY
        try:
            return self._mark(quick)
        except driver.DataError:
            return self._mark(patient)

    def _mark(self, same_key: str) -> int:
        with database.transaction(self._connection) as cursor:
            cursor.execute("DROP TABLE dead")
            cursor.execute(_MARK % same_key)
            missing = _number(cursor, _MISSING)
            if missing:
                cursor.execute("DELETE FROM dead WHERE key IS NULL")
            cursor.execute("CREATE INDEX ON dead (key); CREATE INDEX ON dead (pack_id); ANALYZE dead")
            return missing

    def uses(self) -> list[ObjectUse]:
        """What the index knows of each object. Blobs are dead as the last mark has found."""
        with database.transaction(self._connection) as cursor:
            cursor.execute(_USES)
            return [ObjectUse(*row) for row in cursor.fetchall()]

    def files(self) -> Files:
        """What the files of all nodes come to."""
        with database.transaction(self._connection) as cursor:
            cursor.execute(_FILES)
            return Files(*(cursor.fetchone() or ()))

    def has_files(self) -> bool:
        """Whether any node has a file."""
        with database.transaction(self._connection) as cursor:
            cursor.execute("SELECT EXISTS (SELECT FROM node WHERE repository_metadata <> '{}')")
            return bool((cursor.fetchone() or (False,))[0])

    # ------------------------------------------------------------ pruning

    def sweep(self, names: Sequence[str]) -> int:
        """Remove the rows of blobs in these objects that are dead, as mark() found, and still are.

        Says how many. Objects in which no blob is left are dead from then on.
        """
        with self._alone() as cursor:
            last_id = _number(cursor, _LAST_ID)
            if last_id > self._seen_id:
                cursor.execute(_TAKE_BACK, (self._seen_id,))
            cursor.execute(_ALIVE, (list(names),))
            cursor.execute(_SWEEP, (list(names),))
            rows = cursor.rowcount
            cursor.execute(_EMPTIED, (list(names),))
        self._seen_id = last_id
        return int(rows)

    @contextmanager
    def removing(self, names: Sequence[str], grace_s: float) -> Iterator[list[str]]:
        """Those of these objects that may go; when the block ends well, their rows are gone."""
        with self._alone() as cursor:
            cursor.execute(_FREE, (list(names), grace_s))
            free = [row[0] for row in cursor.fetchall()]
            yield free
            cursor.execute("DELETE FROM pack WHERE name = ANY (%s)", (free,))

    # ------------------------------------------------------------ repacking

    def locations(self, names: Collection[str]) -> dict[Key, BlobLocation]:
        """Where the blobs in these objects lie, in the order in which they do."""
        with database.transaction(self._connection) as cursor:
            cursor.execute(_LOCATIONS, (list(names),))
            return {Key(key): BlobLocation(*location) for key, *location in cursor.fetchall()}

    def move(self, rows: Mapping[Key, BlobLocation], only_from: Collection[str]) -> int:
        """Let blobs lie elsewhere from now on, those that still lie in these objects; says how many.

        Writers are not held up: a key that they rely on stays a key. Objects in which no blob is left are
        dead from then on.
        """
        with database.transaction(self._connection) as cursor:
            index = PostgresIndex(cursor)
            index.hold()
            moved = index.move(rows, only_from)
            cursor.execute(_EMPTIED, (list(only_from),))
            return moved

    # ------------------------------------------------------------ quarantine

    def take_out(self, name: str, keys: Collection[Key], remove: Callable[[], None]) -> int:
        """Drop the rows of blobs that are damaged in an object; says how many.

        remove: takes the object away. It is called while nobody stores, if no other blob lies there: killed
        after it, the rows point at nothing, which is no worse than at what is damaged, and doing it again
        finishes it.
        """
        with self._alone() as cursor:
            cursor.execute(_TAKE_OUT, (name, [bytes.fromhex(key) for key in keys]))
            rows = cursor.rowcount
            cursor.execute(_IS_EMPTY, (name,))
            if cursor.fetchone() == (True,):
                remove()
                cursor.execute("DELETE FROM pack WHERE name = %s", (name,))
            return int(rows)

    # ------------------------------------------------------------ rebuilding

    @contextmanager
    def adding(self) -> Iterator[PostgresIndex]:
        """The index, to add what is in the store: what one finds there while in the block stays there."""
        with database.transaction(self._connection) as cursor:
            index = PostgresIndex(cursor)
            index.hold()
            yield index

    def forget(self, names: Collection[str], is_there: Callable[[str], bool]) -> int:
        """Drop the rows of blobs in those of these objects that are not there; says how many.

        It is asked while nobody stores: an object that comes again just now is seen.
        """
        with self._alone() as cursor:
            gone = [name for name in names if not is_there(name)]
            cursor.execute(_FORGET, (gone,))
            rows = cursor.rowcount
            cursor.execute("UPDATE pack SET dead_since = clock_timestamp() WHERE name = ANY (%s)", (gone,))
            return int(rows)

    # ------------------------------------------------------------ the lock

    @contextmanager
    def _alone(self) -> Iterator[Cursor]:
        """A transaction in which nobody else relies on stored blobs, or is about to.

        Errors: RepositoryBusy, when writers have left no gap for PATIENCE_S.
        """
        began_s = time.monotonic()
        wait_s = 0.0
        told = False
        while True:
            with database.transaction(self._connection) as cursor:
                if _lock(cursor, wait_s):
                    yield cursor
                    return
            passed_s = time.monotonic() - began_s
            if passed_s < _POLITE_S:
                time.sleep(_POLITE_EVERY_S)
                continue
            if passed_s > _LONG_S and not told:
                told = True
                self.on_wait()
            if passed_s > PATIENCE_S:
                raise RepositoryBusy(
                    f"somebody has been storing files without a pause for {PATIENCE_S / 60:.0f} minutes: "
                    "what was done is done; go on later, when less is stored at once"
                )
            time.sleep(wait_s * random.uniform(0.5, 1.5))  # noqa: S311  (writers have their turn meanwhile)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S) or _SHORTEST_WAIT_S


@contextmanager
def upkeep(
    profile: Profile, *, alone: bool = True, patience_s: float = OTHERS_PATIENCE_S
) -> Iterator[Upkeep]:
    """A session for upkeep; alone: no other one that prunes, repacks or rebuilds is under way meanwhile.

    Errors: RepositoryBusy when another one is for longer than patience_s; DatabaseUnavailable.
    """
    connection = profile.connect()
    try:
        if alone:
            _become_the_only_one(connection, patience_s)
        yield Upkeep(connection)
    finally:
        connection.close()


def _become_the_only_one(connection: Connection, patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while True:
        with database.transaction(connection) as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (UPKEEP_LOCK,))
            if (cursor.fetchone() or (False,))[0]:
                return
        if time.monotonic() >= deadline_s:
            raise RepositoryBusy(
                "another process prunes, repacks or rebuilds the index: wait until it has ended"
            )
        time.sleep(0.05)


def _lock(cursor: Cursor, wait_s: float) -> bool:
    """Take the lock alone, to the end of the transaction; False when it was not to be had.

    wait_s: how long to queue for it; 0: not at all, so that nobody has to wait behind this.
    """
    if not wait_s:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (PRUNE_LOCK,))
        return bool((cursor.fetchone() or (False,))[0])
    cursor.execute(f"SAVEPOINT waiting; SET LOCAL lock_timeout = {max(1, int(1000 * wait_s))}")
    try:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (PRUNE_LOCK,))
    except driver.LockNotAvailable:
        cursor.execute("ROLLBACK TO SAVEPOINT waiting")
        return False
    cursor.execute("SET LOCAL lock_timeout = 0")
    return True


def _number(cursor: Cursor, query: str) -> int:
    cursor.execute(query)
    return int((cursor.fetchone() or (0,))[0])
