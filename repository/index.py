"""The index: where in the store the bytes of a key lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from grange.repository.key import Key

Codec = Literal["stored", "deflate"]


@dataclass(frozen=True, slots=True)
class BlobLocation:
    """Where the bytes of one blob lie.

    Units: offset, stored_size and size in bytes; offset is that of the first byte of the content
    inside the object, after any ZIP local header.
    """

    object_name: str
    offset: int
    stored_size: int
    codec: Codec
    size: int


class Index(Protocol):
    """Key → location. core implements it in PostgreSQL, in the transaction that makes nodes visible."""

    def hold(self) -> None:
        """Whoever will rely on what find() tells, or on an object that is there already, says so first.

        Until its transaction ends nothing is pruned or moved; it waits while somebody does. Readers need not.
        """
        ...

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        """The locations of those of the keys that are known."""
        ...

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        """Record locations; a key that is known already keeps the location that it has."""
        ...


class MemoryIndex:
    """An index in memory: for tests, and for tools that read one pack."""

    def __init__(self) -> None:
        self.rows: dict[Key, BlobLocation] = {}

    def hold(self) -> None:
        pass  # nobody prunes under it

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        return {key: self.rows[key] for key in keys if key in self.rows}

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        for key, location in rows.items():
            self.rows.setdefault(key, location)
