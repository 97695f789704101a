"""A store that asks again what did not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

from grange.repository.begun_file import BegunFile
from grange.repository.errors import StoreUnavailable
from grange.repository.leftovers import KeepsLeftovers
from grange.repository.retries import Retries
from grange.repository.signer import Signer
from grange.repository.source import CHUNK_BYTES, Content, Readable, Rewindable, Source
from grange.repository.store import Contents, ObjectInfo, Range, Store

# What a file without a way back gives is kept so far, to be given once more.
_KEPT_BYTES = 8 << 20


@runtime_checkable
class _ListsOn(Protocol):
    """A store that can go on with a listing after a name; it lists in the order of the names."""

    def list_after(self, prefix: str, name: str) -> Iterator[ObjectInfo]: ...


class RetryingStore:
    """Passes everything on to a store; where that is unavailable, again, as `retries` says.

    Reading and listing go on where they were. A source that is an open file is given once more from where it
    began if it is seekable, has a `rewind()` or is short; else a failure in its midst is the caller's.
    It signs URLs where the store does.
    """

    sign_get: Callable[[Sequence[str], float], list[str]]
    sign_put: Callable[[Sequence[str], float], list[str]]

    def __init__(self, store: Store, retries: Retries | None = None) -> None:
        self.retries = Retries() if retries is None else retries
        self._store = store
        if isinstance(store, Signer):
            self.sign_get = store.sign_get
            self.sign_put = store.sign_put

    def __repr__(self) -> str:
        return f"RetryingStore({self._store!r})"

    def __str__(self) -> str:
        return str(self._store)

    @property
    def merge_gap_bytes(self) -> int:
        return self._store.merge_gap_bytes

    @property
    def parallel(self) -> int:
        return self._store.parallel

    def put_if_absent(self, name: str, source: Source) -> bool:
        source, rewind = _with_way_back(source)
        effort = self.retries.begin()
        while True:
            try:
                return self._store.put_if_absent(name, source)
            except StoreUnavailable as error:
                if rewind is None:
                    raise
                effort.failed(error)
                rewind()

    def adopt(self, name: str, path: Path) -> bool:
        return self.retries.run(lambda: self._store.adopt(name, path))

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        return self._store.scratch(chunks)

    def sweep(self, older_than_s: float) -> int:
        """Remove what killed writers left, where the store keeps such; says how many."""
        store = self._store
        return self.retries.run(lambda: store.sweep(older_than_s)) if isinstance(store, KeepsLeftovers) else 0

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        return self.retries.run(lambda: self._store.get_ranges(name, ranges))

    def read(self, name: str) -> Iterator[bytes]:
        effort = self.retries.begin()
        given = 0
        while True:
            try:
                for piece in self._store.read(name) if not given else self._read_on(name, given):
                    given += len(piece)
                    effort.progressed()
                    yield piece
                return
            except StoreUnavailable as error:
                effort.failed(error)

    def _read_on(self, name: str, offset: int) -> Iterator[bytes]:
        while True:
            [piece] = self._store.get_ranges(name, [(offset, CHUNK_BYTES)])
            if piece:
                yield piece
            if len(piece) < CHUNK_BYTES:
                return
            offset += len(piece)

    def head(self, name: str) -> int | None:
        return self.retries.run(lambda: self._store.head(name))

    def delete(self, names: Iterable[str]) -> None:
        all_names = list(names)
        self.retries.run(lambda: self._store.delete(all_names))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # Here, and not with the first object: a prefix that is none is refused by the call.
        return self._list(prefix, self._store.list(prefix))

    def _list(self, prefix: str, listing: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        effort = self.retries.begin()
        seen: set[str] = set()
        last = ""
        lists_on = self._store if isinstance(self._store, _ListsOn) else None
        while True:
            try:
                for info in listing:
                    if info.name in seen:
                        continue
                    if lists_on is None:
                        seen.add(info.name)
                    last = info.name
                    effort.progressed()
                    yield info
                return
            except StoreUnavailable as error:
                effort.failed(error)
            if lists_on is not None and last:
                listing = lists_on.list_after(prefix, last)
            else:
                listing = self._store.list(prefix)


def _with_way_back(source: Source) -> tuple[Source, Callable[[], object] | None]:
    """The source, and what makes it begin again; None where nothing does."""
    if isinstance(source, bytes | bytearray | memoryview | Path):
        return source, _nothing
    if isinstance(source, Rewindable):
        return source, source.rewind
    if (way_back := _seeking(source)) is not None:
        return source, way_back
    begun = BegunFile(source, _KEPT_BYTES)
    return (begun.content(), _nothing) if begun.ended else (begun, None)


def _nothing() -> None:
    pass


def _seeking(file: Readable) -> Callable[[], object] | None:
    seekable = getattr(file, "seekable", None)
    if seekable is None or not seekable():
        return None
    start: int = file.tell()  # type: ignore[attr-defined]
    return lambda: file.seek(start)  # type: ignore[attr-defined]
