"""A store that keeps what was read in a local folder."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from grange.repository.block_cache import BlockCache, CacheInfo
from grange.repository.cache_page import PAGE_BYTES, Piece, Pieces
from grange.repository.leftovers import KeepsLeftovers
from grange.repository.object_name import check_name
from grange.repository.ranges import LARGEST_MERGED_BYTES, merge
from grange.repository.signer import Signer
from grange.repository.source import CHUNK_BYTES, Content, Source
from grange.repository.store import Contents, ObjectInfo, Range, Store

#: What is fetched for a small range at least: it takes hardly longer than 16 KiB, 1 MiB three times as long
#: (bench/cache).
BLOCK_BYTES = 64 << 10
#: How much of a long read is asked for at a time, once a part of it has come out of the cache.
_READ_BYTES = 8 << 20


class CachedStore:
    """A store before another, usually far one: what was read once is read from a folder of this machine.

    Objects never change, so that nothing is ever stale; what deleting or another process's putting does to a
    name is no matter, for a name stands for one content. Nothing that is in the folder is believed unless its
    checksum says so, and nothing that goes wrong with the folder is an error: it makes reads slower
    (block_cache.py). Processes, threads and forks may share a folder; two that want the same at once may both
    fetch it. Signed URLs come from the store itself, if it has them: this is a Signer where that is.

    Units: limit_bytes in bytes, on the disk of the folder. Of one object its first quarter of that is kept; a
    call for more than half of it goes by the cache.
    """

    # From a folder, more bytes cost less than more parts, up to a page.
    merge_gap_bytes = PAGE_BYTES

    def __init__(self, store: Store, folder: Path, limit_bytes: int) -> None:
        self.store = store
        self._cache = BlockCache(folder, limit_bytes)
        if isinstance(store, Signer):
            self.sign_get = store.sign_get
            self.sign_put = store.sign_put

    def __repr__(self) -> str:
        return f"CachedStore({self.store!r}, {str(self._cache.folder)!r})"

    def __str__(self) -> str:
        return str(self.store)

    @property
    def parallel(self) -> int:
        return self.store.parallel

    def put_if_absent(self, name: str, source: Source) -> bool:
        made = self.store.put_if_absent(name, source)
        if made:  # what is here of that name, if anything, was deleted or moved away by somebody else
            self._cache.forget([name])
        return made

    def adopt(self, name: str, path: Path) -> bool:
        made = self.store.adopt(name, path)
        if made:
            self._cache.forget([name])
        return made

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        return self.store.scratch(chunks)

    def sweep(self, older_than_s: float) -> int:
        """Remove what killed writers left, where the store keeps such; says how many."""
        return self.store.sweep(older_than_s) if isinstance(self.store, KeepsLeftovers) else 0

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        check_name(name)
        wanted = _aligned(ranges, PAGE_BYTES)
        if not wanted or sum(length for _, length in wanted) > self._cache.limit_bytes // 2:
            return self.store.get_ranges(name, ranges)
        pieces, missing = self._cache.read(name, wanted)
        hit = sum(len(content) for _, content in pieces)
        fetched = 0
        if missing:
            more, fetched = self._fetch(name, missing)
            pieces = sorted(pieces + more)
        starts = [offset for offset, _ in pieces]
        misses = sum(_overlaps(missing, asked) for asked in ranges) if missing else 0
        self._cache.count(len(ranges) - misses, misses, hit, fetched)
        return [_cut(pieces, starts, offset, offset + length) for offset, length in ranges]

    def read(self, name: str) -> Iterator[bytes]:
        check_name(name)
        if not self._cache.read(name, [(0, PAGE_BYTES)])[0]:
            yield from self._read_and_keep(name)
            return
        offset = 0
        while True:
            [content] = self.get_ranges(name, [(offset, _READ_BYTES)])
            if content:
                yield content
            if len(content) < _READ_BYTES:
                return
            offset += len(content)

    def head(self, name: str) -> int | None:
        return self.store.head(name)

    def delete(self, names: Iterable[str]) -> None:
        names = list(names)
        try:
            self.store.delete(names)
        finally:
            self._cache.forget(names)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix)

    def forget(self, names: Iterable[str]) -> None:
        """Read these objects from the store again: for whoever finds that what he read is damaged."""
        self._cache.forget(names)

    def info(self) -> CacheInfo:
        """What the cache holds, and what use it was."""
        return self._cache.info()

    def clear(self) -> int:
        """Empty the cache; says how many bytes that frees.

        Errors: as BlockCache.clear().
        """
        return self._cache.clear()

    def _fetch(self, name: str, missing: Sequence[Range]) -> tuple[Pieces, int]:
        """What is missing, from the store by one call, whole blocks of it; and how many bytes came."""
        blocks = _aligned(missing, BLOCK_BYTES, self.store.merge_gap_bytes, LARGEST_MERGED_BYTES)
        contents = self.store.get_ranges(name, blocks)
        for (offset, length), content in zip(blocks, contents, strict=True):
            self._cache.keep(name, offset, content, length)
        fetched = [(offset, content) for (offset, _), content in zip(blocks, contents, strict=True)]
        starts = [offset for offset, _ in fetched]
        pieces = [(offset, _cut(fetched, starts, offset, offset + length)) for offset, length in missing]
        return [piece for piece in pieces if piece[1]], sum(map(len, contents))

    def _read_and_keep(self, name: str) -> Iterator[bytes]:
        keep = partial(self._cache.keep, name)
        rest = bytearray()
        kept = fetched = 0
        for chunk in self.store.read(name):
            fetched += len(chunk)
            if kept < self._cache.share_bytes:
                rest += chunk
                whole = len(rest) // CHUNK_BYTES * CHUNK_BYTES
                if whole:
                    keep(kept, rest[:whole], whole)
                    kept += whole
                    del rest[:whole]
            yield chunk
        if kept < self._cache.share_bytes:
            keep(kept, rest, len(rest) // PAGE_BYTES * PAGE_BYTES + PAGE_BYTES)
        self._cache.count(0, 1, 0, fetched)


def truth_of(store: Store) -> Store:
    """The store itself, without a cache before it: what is to be sure of what lies there reads from it."""
    while isinstance(store, CachedStore):
        store = store.store
    return store


def _aligned(
    ranges: Sequence[Range], unit: int, gap_bytes: int = 0, limit_bytes: int = sys.maxsize
) -> list[Range]:
    """Whole units that cover the ranges, sorted; those that touch, or are gap_bytes apart, as one."""
    whole = []
    for offset, length in ranges:
        if length > 0:
            start = offset // unit * unit
            whole.append((start, -(-(offset + length) // unit) * unit - start))
    return merge(sorted(whole), gap_bytes, limit_bytes)


def _overlaps(missing: Sequence[Range], asked: Range) -> bool:
    at = bisect_right(missing, (sum(asked), -1)) - 1
    return at >= 0 and sum(missing[at]) > asked[0] and asked[1] > 0


def _cut(pieces: Sequence[Piece], starts: Sequence[int], offset: int, end: int) -> bytes:
    """What lies in the pieces between two places; it ends where they have a gap, and with the object."""
    parts: list[bytes | memoryview] = []
    for at in range(max(0, bisect_right(starts, offset) - 1), len(pieces)):
        start, content = pieces[at]
        if start > offset or offset >= end:
            break
        part = memoryview(content)[offset - start : end - start]
        parts.append(part)
        offset += len(part)
    if len(parts) == 1:
        return bytes(parts[0])
    return b"".join(parts)
