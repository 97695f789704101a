"""Copying all objects from one store to another: as they are, each compared with what came there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from grange.repository.errors import ObjectMissing, StoreError
from grange.repository.object_file import ObjectFile
from grange.repository.object_name import OWNERS, key_of_blob
from grange.repository.store import ObjectInfo, Store
from grange.repository.team import Team

_TRIES = 3
# So many objects at once, and at most: up to 64 MiB of each are in memory on their way to a server.
_AT_ONCE, _MOST_AT_ONCE = 2, 4

#: (bytes, objects) that are done since the beginning
Progress = Callable[[int, int], None]


class CopyDiffers(StoreError):
    """What a store has under a name is not what the other has, and objects never change."""

    def __init__(self, names: list[str], source: str, target: str) -> None:
        self.names = names
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        super().__init__(
            f"{shown}: {target} has other bytes under that name than {source}. One of the two is damaged, or "
            "the target is not this profile's: look which (`grange repository scrub` checks the source), "
            "delete the wrong one there, and do the same again"
        )


@dataclass(slots=True)
class CopyPlan:
    """What copying will do. Units: bytes.

    todo: objects to copy. compare: that are there with the right size, and have not been compared yet.
    done, done_bytes: that are there and were compared. differ: that are there with another size.
    """

    todo: list[ObjectInfo] = field(default_factory=list)
    compare: list[ObjectInfo] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    done: int = 0
    done_bytes: int = 0

    @property
    def todo_bytes(self) -> int:
        """What is to be copied."""
        return sum(found.size for found in self.todo)

    @property
    def compare_bytes(self) -> int:
        """What is only to be compared."""
        return sum(found.size for found in self.compare)

    @property
    def size(self) -> int:
        """All that there is to copy, including what is there already."""
        return self.todo_bytes + self.compare_bytes + self.done_bytes


@dataclass(slots=True)
class Copied:
    """What copying has done. Units: bytes.

    gone: objects that were removed from the source meanwhile. damaged: large blobs whose bytes are not those
    of their key, and were copied as they are.
    """

    objects: int = 0
    size: int = 0
    compared: int = 0
    gone: int = 0
    damaged: list[str] = field(default_factory=list)


def plan_copy(here: Iterable[ObjectInfo], there: Iterable[ObjectInfo], journal: CopyJournal) -> CopyPlan:
    """Decide what is to be copied; the journal says what was copied and compared before.

    Whose a store is, is not copied: a copy belongs to whoever stores files in it first.
    """
    sizes = {found.name: found.size for found in there}
    plan = CopyPlan()
    for found in here:
        if found.name.startswith(OWNERS):
            continue
        size = sizes.get(found.name)
        if size is None:
            plan.todo.append(found)
        elif size != found.size:
            plan.differ.append(found.name)
        elif journal.has(found.name, found.size):
            plan.done += 1
            plan.done_bytes += size
        else:
            plan.compare.append(found)
    return plan


def copy_objects(
    source: Store,
    target: Store,
    plan: CopyPlan,
    journal: CopyJournal,
    progress: Progress = lambda size, objects: None,
) -> Copied:
    """Do what a plan says, many objects at once, piece by piece. It may be killed anywhere and be done again.

    What was put is read from the target again and compared. Nothing is removed, here or there, but a copy
    that has just come there wrong.

    Errors: CopyDiffers; those of both stores: what was copied stays copied.
    """
    if plan.differ:
        raise CopyDiffers(plan.differ, str(source), str(target))
    done = Copied()

    def copy(found: ObjectInfo) -> tuple[ObjectInfo, ObjectFile | None, bool]:
        return found, *_copy(source, target, found)

    size = objects = 0
    at_once = max(_AT_ONCE, min(_MOST_AT_ONCE, max(source.parallel, target.parallel)))
    with Team(at_once) as team:
        # The large ones first, so that at the end not one of them is waited for.
        order = sorted([*plan.todo, *plan.compare], key=lambda found: -found.size)
        for found, file, made in team.map(copy, order):
            if file is None:
                done.gone += 1
            else:
                done.objects += made
                done.size += file.size if made else 0
                done.compared += not made
                key = key_of_blob(found.name)
                if key is not None and key != file.digest():
                    done.damaged.append(found.name)
                journal.note(found.name, file.size)
            size += found.size
            objects += 1
            progress(size, objects)
    return done


def _copy(source: Store, target: Store, found: ObjectInfo) -> tuple[ObjectFile | None, bool]:
    """Copy one object and compare; (None, False) where it is not in the source any more."""
    name = found.name
    for _ in range(_TRIES):
        file = ObjectFile(lambda: source.read(name))
        try:
            made = target.put_if_absent(name, file)
            if not made:
                file.rewind()
                while file.read(1 << 20):
                    pass
        except ObjectMissing:
            return None, False
        try:
            if _digest(target, name) == file.digest() and file.size == found.size:
                return file, made
        except ObjectMissing:  # somebody has removed it; once more
            continue
        if not made and file.size == found.size:
            raise CopyDiffers([name], str(source), str(target))
        if made:
            target.delete([name])
    raise StoreError(f"{name} does not come to {target!r} as it is in {source!r}, tried {_TRIES} times")


def _digest(store: Store, name: str) -> str:
    digest = hashlib.sha256()
    for piece in store.read(name):
        digest.update(piece)
    return digest.hexdigest()


class CopyJournal:
    """Which objects were copied and compared: a line each, read when it is opened.

    A line that a kill cut short is not counted, and its object is compared again. It belongs to one pair of
    stores: of another it remembers nothing.
    """

    def __init__(self, path: Path, source: str, target: str) -> None:
        self._path = path
        self._head = json.dumps({"format": 1, "source": source, "target": target})
        self._sizes: dict[str, int] = {}
        self._begun = self._load()
        self._file: TextIO | None = None

    def __enter__(self) -> CopyJournal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._sizes)

    def has(self, name: str, size: int) -> bool:
        """Whether this object was copied and compared."""
        return self._sizes.get(name) == size

    def note(self, name: str, size: int) -> None:
        """This object was copied and compared."""
        self._sizes[name] = size
        if self._file is None:
            self._file = self._path.open("a" if self._begun else "w", encoding="utf-8", buffering=1)
            if not self._begun:
                self._file.write(self._head + "\n")
        self._file.write(json.dumps([name, size]) + "\n")

    def remove(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)

    def _load(self) -> bool:
        try:
            lines = self._path.read_text("utf-8").split("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        if lines[0] != self._head or len(lines) < 2:
            return False
        for line in lines[1:-1]:  # after the last newline there is nothing, or what was cut short
            try:
                name, size = json.loads(line)
                self._sizes[str(name)] = int(size)
            except (ValueError, TypeError):
                continue
        if lines[-1]:
            os.truncate(self._path, len("\n".join(lines[:-1]).encode()) + 1)
        return True
