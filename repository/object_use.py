"""What an index knows of an object: how much of it is needed."""

from __future__ import annotations

from dataclasses import dataclass

from grange.repository.object_name import PACKS
from grange.repository.pack import size_of_pack


@dataclass(frozen=True, slots=True)
class ObjectUse:
    """A row of the index that stands for an object of the store, and the blobs that lie in it.

    blobs, stored_bytes, content_bytes: of all blobs that the index has there, as stored and as they are.
    dead_blobs, dead_bytes: of those that nothing needs any more, as stored.
    held_for: a campaign under way that may rely on blobs in it which no node names; "" for none.
    dead_since_s: since when no blob lies in it; None where one does, or that has not been seen yet.
    Units: bytes; seconds since the epoch.
    """

    name: str
    blobs: int = 0
    stored_bytes: int = 0
    content_bytes: int = 0
    dead_blobs: int = 0
    dead_bytes: int = 0
    held_for: str = ""
    dead_since_s: float | None = None

    @property
    def needed_blobs(self) -> int:
        """How many blobs in it are needed."""
        return self.blobs - self.dead_blobs

    @property
    def needed_bytes(self) -> int:
        """The size of an object that holds what is needed of it and nothing else."""
        stored_bytes = self.stored_bytes - self.dead_bytes
        if not self.name.startswith(PACKS):
            return stored_bytes
        return size_of_pack(self.needed_blobs, stored_bytes) if self.needed_blobs else 0
