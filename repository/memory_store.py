"""Memory as a store: for tests, gone with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from grange.repository.errors import ObjectMissing
from grange.repository.object_name import check_name, check_prefix
from grange.repository.scratch import scratch_file
from grange.repository.source import CHUNK_BYTES, Content, Source, chunks_of
from grange.repository.store import Contents, ObjectInfo, Range


class MemoryStore:
    """A dictionary, whose values are the objects."""

    merge_gap_bytes = 0
    parallel = 1

    def __init__(self) -> None:
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "MemoryStore()"

    def put_if_absent(self, name: str, source: Source) -> bool:
        check_name(name)
        content = b"".join(chunks_of(source))
        with self._lock:
            there = self._objects.get(name)
            self._objects[name] = (content if there is None else there[0], time.time())
        return there is None

    def adopt(self, name: str, path: Path) -> bool:
        return self.put_if_absent(name, path)

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        import tempfile  # takes longer to import than the rest of this file

        return scratch_file(Path(tempfile.gettempdir()), chunks)

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        content = self._content(name)
        return [content[offset : offset + length] for offset, length in ranges]

    def read(self, name: str) -> Iterator[bytes]:
        content = self._content(name)
        for offset in range(0, len(content), CHUNK_BYTES):
            yield content[offset : offset + CHUNK_BYTES]

    def head(self, name: str) -> int | None:
        there = self._objects.get(check_name(name))
        return None if there is None else len(there[0])

    def delete(self, names: Iterable[str]) -> None:
        for name in [check_name(name) for name in names]:
            with self._lock:
                self._objects.pop(name, None)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        with self._lock:
            there = sorted(self._objects.items())
        return (
            ObjectInfo(name, len(content), mtime)
            for name, (content, mtime) in there
            if name.startswith(prefix)
        )

    def _content(self, name: str) -> bytes:
        try:
            return self._objects[check_name(name)][0]
        except KeyError:
            raise ObjectMissing(name, repr(self)) from None
