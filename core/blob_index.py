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

# Packs by an update that changes nothing, so that a pack which another transaction has just added
# gives its id too. Sorted, so that two transactions wait for each other in one direction only.
_ADD = """
WITH new AS (
    SELECT * FROM unnest(%s::bytea[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::blob_codec[])
        AS new (key, name, "offset", stored_size, size, codec)
), named AS (
    INSERT INTO pack (name) SELECT DISTINCT name FROM new ORDER BY name
    ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name
    RETURNING id, name
)
INSERT INTO blob (key, pack_id, "offset", stored_size, size, codec)
SELECT new.key, named.id, new."offset", new.stored_size, new.size, new.codec
FROM new JOIN named USING (name) ORDER BY new.key
ON CONFLICT (key) DO NOTHING
"""


class PostgresIndex:
    """grange.repository.index.Index over the tables blob and pack, in the transaction of a cursor."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._held = False

    def hold(self) -> None:
        """Nothing is pruned or moved until the transaction ends; waits while somebody does.

        A statement of its own: find() must see what was deleted while this waited.
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
        if not rows:
            return
        locations = rows.values()
        with translated():
            self._cursor.execute(
                _ADD,
                (
                    _bytea_array(rows),
                    [location.object_name for location in locations],
                    _array(location.offset for location in locations),
                    _array(location.stored_size for location in locations),
                    _array(location.size for location in locations),
                    _array(location.codec for location in locations),
                ),
            )


def _bytea_array(keys: Collection[Key]) -> str:
    """A bytea[] as PostgreSQL reads it: one text for thousands of keys."""
    return "{\\\\x" + ",\\\\x".join(keys) + "}"


def _array(values: Iterable[object]) -> str:
    """An array of numbers or plain words as PostgreSQL reads it."""
    return "{" + ",".join(map(str, values)) + "}"
