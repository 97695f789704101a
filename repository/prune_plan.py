"""What pruning will do: which rows and objects go now, which later, which never, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from grange.repository.object_name import BLOBS, PACKS
from grange.repository.object_use import ObjectUse
from grange.repository.store import ObjectInfo

#: dead      the index has no blob in it any more
#: orphan    the index does not know it: its writer was killed, or has not got as far
#: dying     all blobs in it are dead; it is dead once their rows have gone
Reason = Literal["dead", "orphan", "dying"]


@dataclass(frozen=True, slots=True)
class Doomed:
    """An object that goes, or will go. due_s: when, in seconds since the epoch."""

    name: str
    size: int
    reason: Reason
    due_s: float


@dataclass(slots=True)
class PrunePlan:
    """What pruning will do. Units: bytes; seconds.

    rows, row_bytes: dead blobs whose rows go from the index, and what they take in the store.
    sweep: the objects that have such rows, in an order in which rows are best removed: number of dead rows
    by name.
    now, later: objects that are removed, and that will be when they have been dead for the grace period.
    inside_bytes: what is not needed inside objects that stay: repacking frees it.
    held_bytes, held_for: what seems dead and stays, because campaigns under way may rely on it.
    kept_orphans: what the index does not know and stays, because it misses what nodes name (missing).
    forgotten: rows of objects that are not in the store, and need not be.
    """

    grace_s: float
    rows: int = 0
    row_bytes: int = 0
    sweep: dict[str, int] = field(default_factory=dict)
    now: list[Doomed] = field(default_factory=list)
    later: list[Doomed] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    inside_bytes: int = 0
    held_bytes: int = 0
    held_for: tuple[str, ...] = ()
    kept_orphans: list[ObjectInfo] = field(default_factory=list)
    missing: int = 0
    objects: int = 0
    object_bytes: int = 0

    @property
    def now_bytes(self) -> int:
        """What is freed at once."""
        return sum(one.size for one in self.now)

    @property
    def later_bytes(self) -> int:
        """What will be freed when the grace period is over."""
        return sum(one.size for one in self.later)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do now."""
        return not (self.sweep or self.now or self.forgotten)


def plan_prune(
    uses: Iterable[ObjectUse],
    objects: Iterable[ObjectInfo],
    *,
    now_s: float,
    grace_s: float,
    missing: int = 0,
    orphans_stay: bool = False,
) -> PrunePlan:
    """Decide what goes. uses are to have been looked at before objects were listed.

    An object goes when nothing needs anything in it and that has been so for the grace period: since
    dead_since_s where the index knows it, since it was last put where it does not.

    missing: how many blobs nodes name that the index does not have. Then, or if orphans_stay, what the index
    does not know stays: it may be what is missing. Objects outside packs/ and blobs/ are nobody's business
    here.
    """
    plan = PrunePlan(grace_s, missing=missing)
    known = {use.name: use for use in uses}
    there: set[str] = set()
    held_for: set[str] = set()
    for found in objects:
        if not found.name.startswith((PACKS, BLOBS)):
            continue
        there.add(found.name)
        plan.objects += 1
        plan.object_bytes += found.size
        use = known.get(found.name)
        if use is not None and use.held_for:
            if use.needed_blobs == 0 or use.dead_blobs:
                plan.held_bytes += use.dead_bytes if use.needed_blobs else found.size
                held_for.add(use.held_for)
        elif use is not None and use.needed_blobs:
            plan.inside_bytes += max(0, found.size - use.needed_bytes)
        elif use is None and (missing or orphans_stay):
            plan.kept_orphans.append(found)
        else:
            _doom(plan, found, use, now_s)
    for use in known.values():
        if use.held_for:
            continue
        if use.dead_blobs or (not use.blobs and use.dead_since_s is None):
            plan.rows += use.dead_blobs
            plan.row_bytes += use.dead_bytes
            plan.sweep[use.name] = use.dead_blobs
        elif not use.blobs and use.name not in there:
            plan.forgotten.append(use.name)
    plan.held_for = tuple(sorted(held_for))
    return plan


def _doom(plan: PrunePlan, found: ObjectInfo, use: ObjectUse | None, now_s: float) -> None:
    """Put an object that nothing needs among those that go now or later."""
    reason: Reason
    if use is None:
        reason, since_s = "orphan", found.mtime
    elif use.dead_since_s is not None:
        reason, since_s = "dead", use.dead_since_s
    else:
        reason, since_s = "dying", now_s
    doomed = Doomed(found.name, found.size, reason, since_s + plan.grace_s)
    (plan.now if doomed.due_s <= now_s else plan.later).append(doomed)
