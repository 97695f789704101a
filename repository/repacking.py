"""Repacking: packs of which little is needed become fewer and full ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from grange.repository.errors import BlobCorrupt, BlobMissing
from grange.repository.index import BlobLocation, MemoryIndex
from grange.repository.key import Key
from grange.repository.pack import TARGET_BYTES
from grange.repository.packing import Packing
from grange.repository.repack_plan import RepackPlan
from grange.repository.repository import Repository

#: (done, of how many) bytes of packs
Progress = Callable[[int, int], None]


class RepackIndex(Protocol):
    """An index whose blobs can be moved, while others read and store."""

    def locations(self, names: Collection[str]) -> dict[Key, BlobLocation]:
        """Where the blobs in these objects lie, in the order in which they do."""
        ...

    def move(self, rows: Mapping[Key, BlobLocation], only_from: Collection[str]) -> int:
        """Let blobs lie elsewhere from now on, those that still lie in these objects; says how many.

        Objects in which no blob is left are dead from then on.
        """
        ...


@dataclass(slots=True)
class Repacked:
    """What repacking has done.

    packs, size: that were emptied, and their bytes. new_packs, new_size: what their blobs lie in now.
    damaged: packs that stay because something in them cannot be read, and why.
    """

    packs: int = 0
    size: int = 0
    blobs: int = 0
    new_packs: int = 0
    new_size: int = 0
    damaged: dict[str, str] = field(default_factory=dict)


def repack(
    repository: Repository,
    index: RepackIndex,
    plan: RepackPlan,
    progress: Progress = lambda done, total: None,
    *,
    target_bytes: int = TARGET_BYTES,
) -> Repacked:
    """Do what a plan says: new packs first, then the index, a group of packs at a time.

    Every blob is compared with its key on the way. The old packs are left to pruning. It may be killed
    anywhere: new packs that the index does not know are orphans, which pruning removes.

    Units: a group's contents are read piece by piece; in memory are some packs.
    Errors: those of the store and the index; what was done is done.
    """
    done = Repacked()
    total = sum(plan.sizes.values())
    for group in plan.groups:
        names = set(group)
        while names:
            rows = index.locations(names)
            try:
                new = _packed(repository, rows, target_bytes)
            except (BlobCorrupt, BlobMissing) as error:
                for name in _packs_of(error, rows):
                    names.discard(name)
                    done.damaged[name] = str(error)
                continue
            done.blobs += index.move(new, names)
            done.packs += len(names)
            done.size += sum(plan.sizes[name] for name in names)
            for name in {row.object_name for row in new.values()}:
                done.new_packs += 1
                done.new_size += repository.store.head(name) or 0
            break
        progress(done.size + sum(plan.sizes[name] for name in done.damaged), total)
    return done


def _packed(
    repository: Repository, rows: Mapping[Key, BlobLocation], target_bytes: int
) -> dict[Key, BlobLocation]:
    """Write blobs into new packs, in the order of rows; gives where they lie now."""
    index = MemoryIndex()
    index.rows.update(rows)
    with Packing(repository.store, target_bytes) as packing:
        contents: Iterable[bytes] = repository.read_each(list(rows), index, verify=True)
        for key, content in zip(rows, contents, strict=True):
            packing.add(key, content)
    return packing.rows


def _packs_of(error: BlobCorrupt | BlobMissing, rows: Mapping[Key, BlobLocation]) -> set[str]:
    if isinstance(error, BlobCorrupt):
        return {error.pack}
    return {rows[Key(key)].object_name for key in error.keys}
