"""The store: keeps objects under names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from grange.repository.source import Content, Source

#: offset and length, in bytes
Range = tuple[int, int]
Contents = list[bytes]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it.

    Units: size in bytes; mtime in seconds since the epoch, when it was last put.
    """

    name: str
    size: int
    mtime: float


class Store(Protocol):
    """Objects under names: written once, whole or not at all, never changed.

    Every method may be called again after any error and by many threads and processes at once: a put that is
    repeated, a delete that is repeated do no harm. What a method has returned survives a power cut.

    Errors, of every method: StoreUnavailable is the one worth repeating the call for. StoreReadOnly and
    StoreFull (of whatever writes) need a person. ObjectMissing of get_ranges and read. ObjectNameInvalid,
    before anything is done, for names that not every store can keep. What goes wrong in reading a source is
    raised as it is.
    """

    @property
    def merge_gap_bytes(self) -> int:
        """Two ranges that lie no farther apart than this are cheaper asked for as one."""
        ...

    @property
    def parallel(self) -> int:
        """How many calls at once are worth making; 1 where a call costs less than handing it to a thread."""
        ...

    def put_if_absent(self, name: str, source: Source) -> bool:
        """Keep an object, unless there is one of that name; says whether this call made it.

        Of many callers at once exactly one is told True. Nothing is visible before everything is; a source
        that fails half-way leaves nothing. False makes the age of the object begin anew where the store can
        do so, so that a pruning under way sees that it is wanted.
        """
        ...

    def adopt(self, name: str, path: Path) -> bool:
        """Like put_if_absent(name, path), but without copying where that can be done.

        The file must be on the disk (fsync) and must never be written to afterwards: it may have become the
        object itself. It may stay where it is or be gone.
        """
        ...

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        """A temporary file with this content, on the disk (fsync), from where adopt() is cheap.

        It is gone when the block ends, and some time later if the process is killed in it.
        """
        ...

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        """Many parts of one object, in the order asked for.

        As with slices, what lies past the end is left out: the answer is shorter, or empty.
        """
        ...

    def read(self, name: str) -> Iterator[bytes]:
        """A whole object, piece by piece. ObjectMissing comes with the first piece at the latest."""
        ...

    def head(self, name: str) -> int | None:
        """The size of an object in bytes; None if there is none of that name."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; a name that is not there is no error."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """The objects whose names begin so, in no promised order.

        What is put or deleted meanwhile may or may not be among them; everything else is, once.
        """
        ...
