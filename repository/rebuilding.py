"""Rebuilding an index from the store alone: packs are their own index."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from grange.repository.errors import ObjectMissing, PackMalformed
from grange.repository.index import BlobLocation, Index
from grange.repository.key import Key
from grange.repository.object_blobs import blobs_in
from grange.repository.rebuild_plan import RebuildPlan
from grange.repository.store import Store
from grange.repository.team import Team

#: Objects whose blobs are added in one transaction; nothing is pruned meanwhile.
OBJECTS_AT_ONCE = 32

#: (done, of how many) objects
Progress = Callable[[int, int], None]


class RebuildIndex(Protocol):
    """An index that can be filled while others store."""

    def adding(self) -> AbstractContextManager[Index]:
        """The index, to add to; what is in the store while in the block stays there."""
        ...

    def forget(self, names: Collection[str], is_there: Callable[[str], bool]) -> int:
        """Drop the rows of blobs in those of these objects that are not there; says how many."""
        ...


@dataclass(slots=True)
class Rebuilt:
    """What rebuilding has done.

    objects, blobs: that the index got, or had already. forgotten: rows that pointed at nothing.
    malformed: objects that are no packs, and why.
    """

    objects: int = 0
    blobs: int = 0
    forgotten: int = 0
    malformed: dict[str, str] = field(default_factory=dict)


def rebuild(
    store: Store, index: RebuildIndex, plan: RebuildPlan, progress: Progress = lambda done, total: None
) -> Rebuilt:
    """Do what a plan says. It may be killed anywhere and be done again.

    Of packs the directories are read, not the contents: whoever reads a blob compares it with its key.

    Errors: those of the store and the index; what was done is done.
    """
    done = Rebuilt()
    total = len(plan.unread) + len(plan.gone)
    for start in range(0, len(plan.gone), OBJECTS_AT_ONCE):
        names = plan.gone[start : start + OBJECTS_AT_ONCE]
        done.forgotten += index.forget(names, lambda name: store.head(name) is not None)
        progress(start + len(names), total)
    with Team(store.parallel) as team:
        for start in range(0, len(plan.unread), OBJECTS_AT_ONCE):
            names = [found.name for found in plan.unread[start : start + OBJECTS_AT_ONCE]]
            with index.adding() as adding:
                rows: dict[Key, BlobLocation] = {}
                for name, found in zip(names, team.map(partial(_rows, store), names), strict=True):
                    if isinstance(found, PackMalformed):
                        done.malformed[name] = found.reason
                    elif found is not None:
                        done.objects += 1
                        done.blobs += len(found)
                        for key, row in found.items():
                            rows.setdefault(key, row)
                adding.add(rows)
            progress(len(plan.gone) + start + len(names), total)
    return done


def _rows(store: Store, name: str) -> dict[Key, BlobLocation] | PackMalformed | None:
    """What lies in an object; None where it is not there any more."""
    size = store.head(name)
    if size is None:
        return None
    try:
        return blobs_in(store, name, size)
    except PackMalformed as error:
        return error
    except ObjectMissing:
        return None
