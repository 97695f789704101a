"""Pruning: doing what a plan says, in small steps that writers hardly notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from grange.repository.leftovers import KeepsLeftovers
from grange.repository.prune_plan import PrunePlan
from grange.repository.store import Store

#: So many rows are removed while writers wait: a tenth of a second (bench/prune).
ROWS_AT_ONCE = 5_000
#: Objects are removed in batches of as many as take about so long, because writers wait meanwhile.
_HOLD_S = 0.3
_MOST_AT_ONCE = 1000
#: What is younger may have a writer that is just beginning.
_YOUNGEST_LEFTOVER_S = 60.0

#: (done, of how many) steps; the steps are rows and objects
Progress = Callable[[int, int], None]


class PruneIndex(Protocol):
    """An index from which what nobody needs can be removed, while others store."""

    def sweep(self, names: Sequence[str]) -> int:
        """Remove the rows of blobs in these objects that were found dead and still are; says how many.

        Objects in which no blob is left are dead from then on.
        """
        ...

    def removing(self, names: Sequence[str], grace_s: float) -> AbstractContextManager[list[str]]:
        """Those of these objects that may go: dead for grace_s, or not known at all.

        Until the block ends nobody can begin to rely on any of them; when it ends well, they are not known
        any more. Killed inside it, they are as they were, and pruning again finishes it.
        """
        ...


@dataclass(slots=True)
class Pruned:
    """What pruning has done. size: bytes of the objects that it removed."""

    rows: int = 0
    objects: int = 0
    size: int = 0
    leftovers: int = 0


def prune(
    store: Store, index: PruneIndex, plan: PrunePlan, progress: Progress = lambda done, total: None
) -> Pruned:
    """Do what a plan says. What is needed again since the plan was made stays.

    It may be killed anywhere and be done again: rows go before objects, so that no row points at nothing; an
    object whose rows have gone is found by the next plan.

    Errors: those of the store and the index; what was done is done.
    """
    done = Pruned()
    total = plan.rows + len(plan.now)
    for names in _batches(plan.sweep):
        done.rows += index.sweep(names)
        progress(min(done.rows, plan.rows), total)
    sizes = {one.name: one.size for one in plan.now}
    names = [*sizes, *plan.forgotten]
    at, step = 0, 16
    while at < len(names):
        with index.removing(names[at : at + step], plan.grace_s) as free:
            held_since_s = time.monotonic()  # not since it waited for its turn
            store.delete(free)
            taken_s = time.monotonic() - held_since_s
        done.objects += sum(name in sizes for name in free)
        done.size += sum(sizes.get(name, 0) for name in free)
        at += step
        progress(plan.rows + min(at, len(sizes)), total)
        step = min(_MOST_AT_ONCE, step * 2) if taken_s < _HOLD_S / 2 else max(1, step // 2)
    if isinstance(store, KeepsLeftovers):
        with index.removing([], plan.grace_s):  # nobody puts meanwhile
            done.leftovers = store.sweep(max(plan.grace_s, _YOUNGEST_LEFTOVER_S))
    progress(total, total)
    return done


def _batches(rows: dict[str, int]) -> Iterator[list[str]]:
    """Names of objects, so many together as have some ROWS_AT_ONCE rows to remove."""
    batch: list[str] = []
    count = 0
    for name, dead in rows.items():
        batch.append(name)
        count += dead + 1
        if count >= ROWS_AT_ONCE:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
