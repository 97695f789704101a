"""Tasks that wait for a runner, in groups that may share a chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from grange.farm.task import Batch, CommandTask, Resources, Task


@dataclass(slots=True)
class Group:
    """Waiting tasks of one kind (program or function) that need the same resources.

    more: how many will follow.
    """

    kind: Hashable
    resources: Resources
    commands: bool
    tasks: deque[Task] = field(default_factory=deque)
    more: int = 0

    @property
    def key(self) -> Hashable:
        return self.kind, self.resources


class Queue:
    """Groups in the order in which they came; within a group, tasks in the order in which they came."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, Group] = {}

    def __len__(self) -> int:
        return sum(len(group.tasks) for group in self._groups.values())

    def add(self, batch: Batch) -> None:
        """Append the tasks of a batch, each to the group of its kind."""
        group = None
        previous: Hashable = None
        for task in batch.tasks:
            commands = isinstance(task, CommandTask)
            kind: Hashable = task.argv[:1] if isinstance(task, CommandTask) else task.function
            if group is None or (kind is not previous and kind != previous):
                key = (kind, batch.resources)
                group = self._groups.get(key)
                if group is None:
                    group = self._groups[key] = Group(kind, batch.resources, commands)
                previous = kind
                group.more = batch.more
            group.tasks.append(task)

    def groups(self) -> list[Group]:
        """All groups, as they are now."""
        return list(self._groups.values())

    def first(self) -> Group | None:
        """The group whose turn it is."""
        return next(iter(self._groups.values()), None)

    def drop(self, group: Group, count: int) -> None:
        """Remove the first tasks of a group."""
        for _ in range(count):
            group.tasks.popleft()
        if not group.tasks:
            del self._groups[group.key]

    def take_out(self, ids: set[str] | None) -> list[Task]:
        """Remove the tasks of these ids (None: all) and return them."""
        taken: list[Task] = []
        for group in list(self._groups.values()):
            taken += [task for task in group.tasks if ids is None or task.id in ids]
            group.tasks = deque(task for task in group.tasks if ids is not None and task.id not in ids)
            if not group.tasks:
                del self._groups[group.key]
        return taken
