"""Sources: where the bytes of an object come from when it is put."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

CHUNK_BYTES = 1 << 20

Content = bytes | bytearray | memoryview


class Readable(Protocol):
    """An open binary file, as far as storing it goes."""

    def read(self, size: int, /) -> bytes: ...


class Seekable(Readable, Protocol):
    """An open binary file that can be read from its beginning again."""

    def seek(self, offset: int, /) -> int: ...


@runtime_checkable
class Rewindable(Protocol):
    """A source that can be read once more from where it began."""

    def rewind(self) -> None: ...


Source = Content | Readable | Path


def chunks_of(source: Source) -> Iterator[Content]:
    """The bytes of a source, piece by piece: a file is never whole in memory.

    Errors: OSError, as it comes, when a file cannot be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield source
    elif isinstance(source, Path):
        with source.open("rb", buffering=0) as file:
            yield from _chunks_of_file(file)
    else:
        yield from _chunks_of_file(source)


def _chunks_of_file(file: Readable) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
