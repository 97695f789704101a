"""What repacking will do: which packs are written anew, without what nobody needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from grange.repository.object_name import PACKS
from grange.repository.object_use import ObjectUse
from grange.repository.pack import TARGET_BYTES
from grange.repository.store import ObjectInfo

#: A pack is written anew when so much of it is not needed.
DEAD_SHARE = 0.5
#: Packs below so much of the target are small; they are put together when they fill one pack, or are so many.
SMALL_SHARE = 0.25
MANY_SMALL = 100
#: As much content as is put together at a time.
GROUP_BYTES = 64 << 20


@dataclass(slots=True)
class RepackPlan:
    """What repacking will do. Units: bytes.

    groups: names of packs whose blobs are written into new packs together; sizes: of these packs.
    blobs, needed_bytes: what is written anew; dead_bytes: what is left behind.
    mostly_dead, small: how many packs are written anew for that reason.
    """

    groups: list[list[str]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    blobs: int = 0
    needed_bytes: int = 0
    dead_bytes: int = 0
    mostly_dead: int = 0
    small: int = 0

    @property
    def packs(self) -> int:
        """How many packs are written anew."""
        return len(self.sizes)


def plan_repack(
    uses: Iterable[ObjectUse],
    objects: Iterable[ObjectInfo],
    *,
    dead_share: float = DEAD_SHARE,
    target_bytes: int = TARGET_BYTES,
) -> RepackPlan:
    """Decide which packs are written anew: those of which at least dead_share is not needed, and small ones.

    A pack that a campaign under way may rely on stays as it is, and so does one in which nothing is needed:
    pruning removes it. Small packs are put together when they are many, or enough for a whole pack, so that
    what is written anew is not small again.
    """
    if not 0 < dead_share <= 1:
        raise ValueError(f"dead_share: expected more than 0 and at most 1, got {dead_share}")
    there = {found.name: found.size for found in objects if found.name.startswith(PACKS)}
    packs = [use for use in uses if use.name in there and use.needed_blobs and not use.held_for]
    dead = [use for use in packs if there[use.name] - use.needed_bytes >= dead_share * there[use.name]]
    chosen = {use.name for use in dead}
    small = [use for use in packs if use.name not in chosen and there[use.name] < SMALL_SHARE * target_bytes]
    if len(small) < MANY_SMALL and sum(use.needed_bytes for use in small) < target_bytes:
        small = []
    plan = RepackPlan(mostly_dead=len(dead), small=len(small))
    group: list[str] = []
    size = 0
    for use in sorted([*dead, *small], key=lambda use: use.name):
        plan.sizes[use.name] = there[use.name]
        plan.blobs += use.needed_blobs
        plan.needed_bytes += use.needed_bytes
        plan.dead_bytes += max(0, there[use.name] - use.needed_bytes)
        group.append(use.name)
        size += use.content_bytes
        if size >= GROUP_BYTES:
            plan.groups.append(group)
            group, size = [], 0
    if group:
        plan.groups.append(group)
    return plan
