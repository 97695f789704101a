"""Holdings: what a store holds, and how much of it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from grange.repository.object_name import BLOBS, PACKS
from grange.repository.object_use import ObjectUse
from grange.repository.store import ObjectInfo, Store


@dataclass(slots=True)
class Holdings:
    """What a store holds.

    packs, alone: objects that are packs, and large blobs; size: of both. blobs: that the index has.
    inside_bytes: what is not needed inside objects that are; unneeded: whole objects that the index knows;
    unknown: those that it does not. gone: objects of the index, with blobs, that are not in the store.
    Units: bytes.
    """

    packs: int = 0
    alone: int = 0
    size: int = 0
    blobs: int = 0
    inside_bytes: int = 0
    unneeded: int = 0
    unneeded_bytes: int = 0
    unknown: int = 0
    unknown_bytes: int = 0
    gone: int = 0

    @property
    def dead_bytes(self) -> int:
        """All that is not needed."""
        return self.inside_bytes + self.unneeded_bytes + self.unknown_bytes

    @property
    def dead_share(self) -> float:
        """How much of the store is not needed, 0 to 1."""
        return self.dead_bytes / self.size if self.size else 0.0


def objects_of(store: Store) -> Iterator[ObjectInfo]:
    """The packs and large blobs of a store; what else is in it is nobody's business here."""
    yield from store.list(PACKS)
    yield from store.list(BLOBS)


def holdings_of(uses: Iterable[ObjectUse], objects: Iterable[ObjectInfo]) -> Holdings:
    """Add up what an index and a listing of its store say. uses are to have been looked at first."""
    known = {use.name: use for use in uses}
    held = Holdings(blobs=sum(use.blobs for use in known.values()))
    gone = {use.name for use in known.values() if use.blobs}
    for found in objects:
        if found.name.startswith(PACKS):
            held.packs += 1
        elif found.name.startswith(BLOBS):
            held.alone += 1
        else:
            continue
        held.size += found.size
        gone.discard(found.name)
        use = known.get(found.name)
        if use is None:
            held.unknown += 1
            held.unknown_bytes += found.size
        elif use.needed_blobs:
            held.inside_bytes += max(0, found.size - use.needed_bytes)
        else:
            held.unneeded += 1
            held.unneeded_bytes += found.size
    held.gone = len(gone)
    return held
