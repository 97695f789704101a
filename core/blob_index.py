"""The index of blobs in PostgreSQL: in the same transaction as the nodes that own them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from grange.core.database import Cursor, translated
from grange.repository.index import BlobLocation
from grange.repository.key import Key

#: The advisory lock that who relies on stored blobs shares, and who prunes or moves them has alone.
PRUNE_LOCK = 0x6772616E67650001

_FIND = """
SELECT encode(blob.key, 'hex'), pack.name, blob."offset", blob.stored_size, blob.codec::text, blob.size
FROM blob JOIN pack ON pack.id = blob.pack_id
WHERE blob.key = ANY(%s::bytea[])
"""

# Packs by an update, so that a pack which another transaction has just added gives its id too, and one that
# was given up lives again. Sorted, so that two transactions wait for each other in one direction only.
_NEW = """
WITH named AS (
    INSERT INTO pack (name) SELECT unnest(%s::text[])
    ON CONFLICT (name) DO UPDATE SET dead_since = NULL
    RETURNING id, name
), new AS (
    SELECT new.*, named.id AS pack_id
    FROM unnest(%s::bytea[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::blob_codec[])
        AS new (key, number, "offset", stored_size, size, codec)
    JOIN unnest(%s::text[]) WITH ORDINALITY AS known (name, number) USING (number)
    JOIN named USING (name)
)
"""

_ADD = """
INSERT INTO blob (key, pack_id, "offset", stored_size, size, codec)
SELECT key, pack_id, "offset", stored_size, size, codec FROM new ORDER BY key
ON CONFLICT (key) DO NOTHING
"""

# Keys that are known lie elsewhere from now on; only those that lie in certain packs, if any are named.
_MOVE = """
, meant AS (
    SELECT blob.key FROM blob JOIN new USING (key)
    WHERE %s::text[] IS NULL OR blob.pack_id IN (SELECT id FROM pack WHERE name = ANY (%s::text[]))
    ORDER BY blob.key FOR UPDATE OF blob
)
UPDATE blob SET pack_id = new.pack_id, "offset" = new."offset", stored_size = new.stored_size,
                size = new.size, codec = new.codec
FROM meant JOIN new USING (key) WHERE blob.key = meant.key
"""

# Rows of packs before their blobs: whose they are, and how far there are calculations that they may be of.
_PROMISE = """
INSERT INTO pack (name, campaign_id, last_node)
SELECT name, %s, (SELECT last_value FROM node_id) FROM unnest(%s::text[]) AS new (name) ORDER BY name
ON CONFLICT (name) DO UPDATE
SET campaign_id = EXCLUDED.campaign_id, last_node = EXCLUDED.last_node, dead_since = NULL
"""


class PostgresIndex:
    """grange.repository.index.Index over the tables blob and pack, in the transaction of a cursor."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._held = False

    def hold(self) -> None:
        """Nothing is pruned until the transaction ends; waits while somebody does.

        Before nodes that will name blobs get their ids: pruning looks again at those with higher ids than it
        has seen (core/upkeep.py). A statement of its own: find() must see what was deleted while this waited.
        """
        if not self._held:
            with translated():
                self._cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PRUNE_LOCK,))
            self._held = True

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        """The locations of those of the keys that are known."""
        if not keys:
            return {}
        with translated():
            self._cursor.execute(_FIND, (_bytea_array(keys),))
            return {Key(key): BlobLocation(*location) for key, *location in self._cursor.fetchall()}

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        """Record locations; a key that is known already keeps the location that it has."""
        if rows:
            with translated():
                self._cursor.execute(_NEW + _ADD, _columns(rows))

    def move(self, rows: Mapping[Key, BlobLocation], only_from: Collection[str] | None = None) -> int:
        """Let keys that are known lie elsewhere from now on; says how many did change.

        only_from: names of packs; a key that lies in none of them stays where it is.
        """
        if not rows:
            return 0
        packs = None if only_from is None else list(only_from)
        with translated():
            self._cursor.execute(_NEW + _MOVE, (*_columns(rows), packs, packs))
            return int(self._cursor.rowcount)

    def promise(self, names: Collection[str], queue_id: int) -> None:
        """These packs are, or will be, delivered for a campaign or queue by its runners.

        What bears such a name is not pruned while that has calculations under way which are there now,
        whether or not a node names the blobs in it: a later pack of the same chunk leaves out what an earlier
        one has.
        Committed before a URL is handed out to put such a pack to; harmless for packs that never come.
        """
        if names:
            with translated():
                self._cursor.execute(_PROMISE, (queue_id, list(names)))


def _columns(rows: Mapping[Key, BlobLocation]) -> tuple[object, ...]:
    """Keys and locations as the arrays that _ADD and _MOVE take: the names of packs once, then by number."""
    locations = rows.values()
    names = sorted({location.object_name for location in locations})
    numbers = {name: number for number, name in enumerate(names, 1)}
    return (
        names,
        _bytea_array(rows),
        _array(numbers[location.object_name] for location in locations),
        _array(location.offset for location in locations),
        _array(location.stored_size for location in locations),
        _array(location.size for location in locations),
        _array(location.codec for location in locations),
        names,
    )


def _bytea_array(keys: Collection[Key]) -> str:
    """A bytea[] as PostgreSQL reads it: one text for thousands of keys."""
    return "{\\\\x" + ",\\\\x".join(keys) + "}"


def _array(values: Iterable[object]) -> str:
    """An array of numbers or plain words as PostgreSQL reads it."""
    return "{" + ",".join(map(str, values)) + "}"
