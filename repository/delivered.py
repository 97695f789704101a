"""Packs that others put into the store: what is told of them, and what of that is believed.

Nobody's word is taken for where blobs lie: rows are made of the pack's directory, and that is compared with
the object in the store, byte by byte, before anything relies on it. What lies at those places is checked by
whoever reads it, against the key, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grange.repository.errors import ObjectMissing, PackMalformed
from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.pack import PackReader
from grange.repository.store import Contents, Range, Store


@dataclass(frozen=True, slots=True)
class DeliveredPack:
    """A pack that lies in the store, as a receipt tells of it.

    directory: all of the object from directory_at on.
    Units: size and directory_at in bytes.
    """

    object_name: str
    size: int
    directory_at: int
    directory: bytes

    def reader(self) -> PackReader:
        """What lies where in it. Errors: PackMalformed."""
        if self.directory_at < 0 or self.directory_at + len(self.directory) != self.size:
            raise PackMalformed(self.object_name, "its receipt contradicts itself")
        return PackReader(self.object_name, self.size, self._read, headers=False)

    def locations(self) -> dict[Key, BlobLocation]:
        """Where its blobs lie. Errors: PackMalformed."""
        return self.reader().locations(self.object_name)

    def is_in(self, store: Store) -> bool:
        """Whether the store has this very pack under its name: of this size, with this directory.

        Errors: StoreUnavailable (retry).
        """
        try:
            # one byte more than there should be
            [end] = store.get_ranges(self.object_name, [(self.directory_at, len(self.directory) + 1)])
        except ObjectMissing:
            return False
        return bytes(end) == self.directory

    def _read(self, ranges: Sequence[Range]) -> Contents:
        """Of the object only its directory is known here; the rest is as if it were empty."""
        found = []
        for offset, length in ranges:
            before = max(0, min(length, self.directory_at - offset))
            at = max(0, offset - self.directory_at)
            found.append(bytes(before) + self.directory[at : at + length - before])
        return found
