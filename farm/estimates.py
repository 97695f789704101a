"""What tasks take, kind by kind, as far as it was measured."""

from __future__ import annotations

from collections.abc import Hashable

from grange.farm.chunk import Estimate

#: So many kinds are remembered: functions that are made anew for each call must not pile up in an executor
#: that lives for weeks.
KEPT = 1000


class Estimates:
    """Estimates of the kinds of tasks that were measured last."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._known: dict[Hashable, Estimate] = {}

    def __contains__(self, kind: Hashable) -> bool:
        return kind in self._known

    def __len__(self) -> int:
        return len(self._known)

    def task_s(self, kind: Hashable) -> float | None:
        """What a task of a kind takes; None while nothing is known. Units: seconds."""
        known = self._known.get(kind)
        return None if known is None else known.task_s

    def note(self, kind: Hashable, tasks: int, wall_s: float) -> None:
        """So many tasks of a kind took wall_s seconds together."""
        self._known[kind] = self._known.pop(kind, Estimate()).after(tasks, wall_s)
        if len(self._known) > self._kept:
            del self._known[next(iter(self._known))]
