"""Repacking: packs of which little is needed become fewer and full ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from grange.repository.errors import BlobCorrupt, BlobMissing
from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_use import ObjectUse
from grange.repository.pack import TARGET_BYTES
from grange.repository.repack_plan import RepackPlan
from grange.repository.repository import Repository
from grange.repository.rewriting import rewritten

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

    packs, size: that were emptied, and their bytes. new_packs, new_size: what their blobs lie in now, a long
    one alone. damaged: packs that stay because something in them cannot be read, and why.
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

    Every blob is compared with its key on the way, as it lies in the store. The old packs are left to
    pruning. It may be killed anywhere: new packs that the index does not know are orphans, which pruning
    removes.

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
                new = rewritten(repository.store, rows, target_bytes)
            except (BlobCorrupt, BlobMissing) as error:
                for name in _packs_of(error, rows):
                    names.discard(name)
                    done.damaged[name] = str(error)
                continue
            done.blobs += index.move(new, names)
            done.packs += len(names)
            done.size += sum(plan.sizes[name] for name in names)
            sizes = _sizes(new)
            done.new_packs += len(sizes)
            done.new_size += sum(sizes.values())
            break
        progress(done.size + sum(plan.sizes[name] for name in done.damaged), total)
    return done


def _sizes(rows: Mapping[Key, BlobLocation]) -> dict[str, int]:
    """The sizes of the objects that hold these blobs and nothing else."""
    stored: dict[str, list[int]] = {}
    for row in rows.values():
        stored.setdefault(row.object_name, []).append(row.stored_size)
    return {name: ObjectUse(name, len(sizes), sum(sizes)).needed_bytes for name, sizes in stored.items()}


def _packs_of(error: BlobCorrupt | BlobMissing, rows: Mapping[Key, BlobLocation]) -> set[str]:
    if isinstance(error, BlobCorrupt):
        return {error.pack}
    return {rows[Key(key)].object_name for key in error.keys}
