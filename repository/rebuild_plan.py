"""What rebuilding the index will do: which objects are read, which rows are dropped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from grange.repository.object_name import BLOBS, PACKS
from grange.repository.object_use import ObjectUse
from grange.repository.store import ObjectInfo


@dataclass(slots=True)
class RebuildPlan:
    """What rebuilding will do.

    unread: objects whose blobs the index gets. gone: objects with blobs in the index that are not in the
    store; gone_blobs: how many these are. known: objects that stay as they are.
    """

    unread: list[ObjectInfo] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    gone_blobs: int = 0
    known: int = 0

    @property
    def unread_bytes(self) -> int:
        """The size of the objects that the index gets; of packs only the directories are read."""
        return sum(found.size for found in self.unread)

    @property
    def nothing(self) -> bool:
        """Whether index and store agree."""
        return not (self.unread or self.gone)


def plan_rebuild(
    uses: Iterable[ObjectUse], objects: Iterable[ObjectInfo], *, everything: bool = False
) -> RebuildPlan:
    """Compare index and store. uses are to have been looked at before objects were listed.

    everything: read also the objects that the index knows, should it know them wrongly.
    """
    known = {use.name: use for use in uses}
    plan = RebuildPlan()
    there = set()
    for found in objects:
        if not found.name.startswith((PACKS, BLOBS)):
            continue
        there.add(found.name)
        if everything or found.name not in known:
            plan.unread.append(found)
        else:
            plan.known += 1
    for use in known.values():
        if use.blobs and use.name not in there:
            plan.gone.append(use.name)
            plan.gone_blobs += use.blobs
    plan.unread.sort(key=lambda found: found.name)
    return plan
