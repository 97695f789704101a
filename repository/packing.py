"""Packing: blobs come in one by one, packs go to a store as they fill."""

from __future__ import annotations

import os

from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_name import pack_name
from grange.repository.pack import PackWriter
from grange.repository.store import Store


class Packing:
    """Writes packs one after the other.

    rows: where everything added lies; valid once close() has returned.
    """

    def __init__(self, store: Store, target_bytes: int) -> None:
        self.rows: dict[Key, BlobLocation] = {}
        self._store = store
        self._target_bytes = target_bytes
        self._writer: PackWriter | None = None

    def add(self, key: Key, content: bytes) -> None:
        """Put a blob into the open pack; a pack that is full goes to the store."""
        if self._writer is None:
            # A name of its own for each pack: one named by its content could be an old orphan that is being
            # pruned while we rely on it.
            self._writer = PackWriter(pack_name(os.urandom(16).hex()), self._target_bytes)
        self.rows[key] = self._writer.add(key, content)
        if self._writer.full:
            self.close()

    def close(self) -> None:
        """Send the open pack to the store."""
        if self._writer is not None:
            # False is as good as True: nobody else can know the name, so an earlier try of this put made it.
            self._store.put_if_absent(self._writer.object_name, self._writer.finish())
            self._writer = None
