"""A store that counts what another is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from grange.repository.source import Content, Source, chunks_of
from grange.repository.store import Contents, ObjectInfo, Range, Store


class CountingStore:
    """Passes everything on to a store, and counts: for tests and benches of one thread.

    Units: calls by method; sent_bytes and received_bytes by method, in bytes.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()
        self.received_bytes: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"CountingStore({self._store!r})"

    def __str__(self) -> str:
        return str(self._store)

    @property
    def merge_gap_bytes(self) -> int:
        return self._store.merge_gap_bytes

    @property
    def parallel(self) -> int:
        return self._store.parallel

    def put_if_absent(self, name: str, source: Source) -> bool:
        self.calls["put_if_absent"] += 1
        return self._store.put_if_absent(name, _Counted("put_if_absent", chunks_of(source), self.sent_bytes))

    def adopt(self, name: str, path: Path) -> bool:
        self.calls["adopt"] += 1
        return self._store.adopt(name, path)

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        self.calls["scratch"] += 1
        return self._store.scratch(_counted("scratch", chunks, self.sent_bytes))

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        self.calls["get_ranges"] += 1
        contents = self._store.get_ranges(name, ranges)
        self.received_bytes["get_ranges"] += sum(map(len, contents))
        return contents

    def read(self, name: str) -> Iterator[bytes]:
        self.calls["read"] += 1
        for chunk in self._store.read(name):
            self.received_bytes["read"] += len(chunk)
            yield chunk

    def head(self, name: str) -> int | None:
        self.calls["head"] += 1
        return self._store.head(name)

    def delete(self, names: Iterable[str]) -> None:
        self.calls["delete"] += 1
        self._store.delete(names)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.calls["list"] += 1
        return self._store.list(prefix)


def _counted(method: str, chunks: Iterable[Content], into: Counter[str]) -> Iterator[Content]:
    for chunk in chunks:
        into[method] += len(chunk)
        yield chunk


class _Counted:
    """A source that counts its bytes as they are read."""

    def __init__(self, method: str, chunks: Iterator[Content], into: Counter[str]) -> None:
        self._chunks = _counted(method, chunks, into)

    def read(self, _size: int, /) -> bytes:
        return bytes(next((chunk for chunk in self._chunks if len(chunk)), b""))
