"""A folder that keeps parts of objects, of bounded size, for any number of processes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from grange.repository.cache_ledger import Figures, change_ledger, lock, read_ledger, unlock
from grange.repository.cache_page import (
    PAGE_BYTES,
    SEGMENT_BYTES,
    Pieces,
    append_range,
    read_pages,
    write_pages,
)
from grange.repository.os_error import translated
from grange.repository.store import Range

# Another layout gets another number: what it does not know is then not there.
_LAYOUT = "blocks-1"
_FILE = re.compile(r"[0-9a-f]{30}-[0-9a-f]+")
_BUCKET = re.compile(r"[0-9a-f]{2}")
_FILE_SYSTEM_BLOCK = 4096
#: Down to which part of the bound is evicted: a look at all files is then worth a tenth of the bound.
_EVICTED_TO = 0.9
# A file is said to be in use at most so often: a write a minute for each file that is.
_TOUCH_S = 60.0
_TELL_S = 2.0
_REST_S = 30.0
_COUNTS_AT_MOST = 100_000

#: hits, misses, hit_bytes, fetched_bytes of calls that were not told to the others yet
_Counts = deque[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What is in a cache folder, and what use it was to all processes since it was last cleared.

    hits, misses: ranges that were answered without and with asking the store. Units: kept_bytes, limit_bytes,
    hit_bytes (out of the cache), fetched_bytes (from the store) in bytes; since in seconds since the epoch.
    """

    files: int
    kept_bytes: int
    limit_bytes: int
    hits: int
    misses: int
    hit_bytes: int
    fetched_bytes: int
    since: float


class BlockCache:
    """Parts of objects in a folder. What cannot be kept is not, and nobody is told: no method but clear()
    raises anything because of the folder.

    A cache file holds up to 4 MiB of one object (cache_page.py). The one that was used longest ago goes
    first; its mtime says when that was, to the minute. All files are looked at only when the bound is
    reached. The folder is made for this user alone (0700), and is not used if it is somebody else's.

    The bound is passed by no more than what is being written at the moment. Threads and forks may share it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder.absolute()
        self.limit_bytes = limit_bytes
        #: Of one object no more is kept than its first quarter of the bound: one stream of a large one would
        #: drive out everything else.
        self.share_bytes = limit_bytes // 4 // PAGE_BYTES * PAGE_BYTES
        self._files = self.folder / _LAYOUT
        self._ledger = self._files / "ledger"
        self._usable = self._prepare()
        self._rest_until = 0.0
        self._full_at = -(1 << 62)
        # Appending to it is all that a count does: no lock that a fork could find taken.
        self._counts: _Counts = deque(maxlen=_COUNTS_AT_MOST)
        self._told = time.monotonic()
        self._pid = os.getpid()
        if self._usable:
            weakref.finalize(self, _tell_at_last, self._counts, self._ledger, self._pid)

    def read(self, name: str, wanted: Sequence[Range]) -> tuple[Pieces, list[Range]]:
        """What of the wanted ranges of an object is here, and what is missing.

        Shapes: wanted: whole pages, sorted, apart from each other; so are pieces (offset and content) and
        missing, which together cover it up to the end of the object.
        """
        pieces: Pieces = []
        missing: list[Range] = []
        for number, ranges in _by_segment(wanted):
            start = number * SEGMENT_BYTES
            found, absent, ended = self._read_segment(name, number, ranges)
            pieces += [(start + offset, content) for offset, content in found]
            for offset, length in absent:
                append_range(missing, (start + offset, length))
            if ended:
                break
        return pieces, missing

    def keep(self, name: str, offset: int, content: bytes | bytearray, length: int) -> None:
        """Keep the content of a range of whole pages; it is shorter than the range where the object ends.

        What lies beyond the share of an object is not kept.
        """
        if offset + length > self.share_bytes:
            length = max(0, self.share_bytes - offset)
            content = content[:length]
        view = memoryview(content)
        for number, [(at, part)] in _by_segment([(offset, length)]):
            start = number * SEGMENT_BYTES + at - offset
            if not self._write_segment(name, number, at, view[start : start + part], part):
                return
            if start + part > len(view):
                return

    def count(self, hits: int, misses: int, hit_bytes: int, fetched_bytes: int) -> None:
        """Count for info(): told to the others every few seconds."""
        if os.getpid() != self._pid:  # forked: what was counted until then the parent will tell
            self._counts.clear()
            self._pid = os.getpid()
        self._counts.append((hits, misses, hit_bytes, fetched_bytes))
        if time.monotonic() > self._told + _TELL_S:
            self._tell()

    def forget(self, names: Iterable[str]) -> None:
        """Let go of all there is of objects."""
        buckets: dict[str, set[str]] = {}
        for name in names:
            bucket, rest = _place(name)
            buckets.setdefault(bucket, set()).add(rest)
        freed = 0
        for bucket, those in buckets.items():
            for path, size, _ in _files_in(self._files / bucket):
                if os.path.basename(path)[:30] in those:
                    freed += _remove(path, size)
        if freed:
            with suppress(OSError), change_ledger(self._ledger) as figures:
                figures.kept -= freed

    def info(self) -> CacheInfo:
        """Look at all files, and at what everybody counted."""
        self._tell()
        sizes = [size for _, size, _ in self._all_files()]
        told = read_ledger(self._ledger) or Figures()
        with suppress(OSError), change_ledger(self._ledger) as figures:  # while nobody tells anything
            told = figures
        own = [sum(values) for values in zip(*self._counts, strict=True)] or [0, 0, 0, 0]
        return CacheInfo(
            files=len(sizes),
            kept_bytes=sum(sizes),
            limit_bytes=self.limit_bytes,
            hits=told.hits + own[0],
            misses=told.misses + own[1],
            hit_bytes=told.hit + own[2],
            fetched_bytes=told.fetched + own[3],
            since=told.since,
        )

    def clear(self) -> int:
        """Remove all that is kept, and begin to count anew; says how many bytes that frees.

        Errors: StoreReadOnly, StoreError where files cannot be removed; StoreUnavailable while somebody
        evicts.
        """
        freed = 0
        if not self._usable:
            return freed
        self._counts.clear()
        with translated("delete", self._files), _locked(self._files / "evicting", tries=200):
            for path, size, _ in self._all_files():
                with suppress(FileNotFoundError):
                    os.unlink(path)
                    freed += size
            for bucket in _entries(self._files):
                if _BUCKET.fullmatch(bucket.name):
                    with suppress(OSError):  # somebody keeps something again
                        os.rmdir(bucket.path)
            with change_ledger(self._ledger) as figures:
                figures.kept = figures.hits = figures.misses = figures.hit = figures.fetched = 0
                figures.since = int(time.time())
        return freed

    def _prepare(self) -> bool:
        """Make the folder where it is missing; False where it is not to be trusted, or not to be had."""
        try:
            with suppress(FileExistsError):
                self.folder.mkdir(0o700, parents=True)
            with suppress(FileExistsError):
                self._files.mkdir(0o700)
            status = os.lstat(self._files)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                return False
            if status.st_mode & 0o077:
                os.chmod(self._files, 0o700)
        except OSError:
            return False
        return True

    def _path(self, name: str, number: int) -> Path:
        bucket, rest = _place(name)
        return self._files / bucket / f"{rest}-{number:x}"

    def _read_segment(self, name: str, number: int, ranges: list[Range]) -> tuple[Pieces, list[Range], bool]:
        if not self._usable:
            return [], ranges, False
        try:
            file = os.open(self._path(name, number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return [], ranges, False
        try:
            found = read_pages(file, _seed(name, number), ranges)
            if found[0] and os.fstat(file).st_mtime < time.time() - _TOUCH_S:
                with suppress(OSError):
                    os.utime(file)
            return found
        except OSError:
            return [], ranges, False
        finally:
            os.close(file)

    def _write_segment(self, name: str, number: int, offset: int, content: memoryview, length: int) -> bool:
        size = _FILE_SYSTEM_BLOCK + -(-len(content) // _FILE_SYSTEM_BLOCK) * _FILE_SYSTEM_BLOCK
        for _ in range(2):
            try:
                if not self._usable or not self._reserve(size):
                    return False
                file = self._open_to_write(self._path(name, number))
                try:
                    write_pages(file, _seed(name, number), offset, content, length)
                finally:
                    os.close(file)
                return True
            except OSError as error:
                if not self._mend(error, size):
                    return False
        return False

    def _open_to_write(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(0o700, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _reserve(self, size: int) -> bool:
        """Count so many bytes as kept, before they are; False where there is no room for them.

        So whoever is killed in between has counted too much, never too little.
        """
        for _ in range(2):
            with change_ledger(self._ledger) as figures:
                if figures.kept + size <= self.limit_bytes:
                    figures.kept += size
                    figures.added += size
                    return True
            if not self._make_room(size):
                return False
        return False

    def _make_room(self, size: int) -> bool:
        """Look at all files, and remove those that were used longest ago until there is room; says whether.

        While somebody does, the others do not wait: they keep nothing.
        """
        if time.monotonic() < self._rest_until:
            return False
        goal = min(int(self.limit_bytes * _EVICTED_TO), self.limit_bytes - size)
        try:
            made = self._evict(goal)
        except BlockingIOError:
            return False
        if not made:  # nothing can be removed: no need to look at every file again and again
            self._rest_until = time.monotonic() + _REST_S
        return made

    def _evict(self, goal: int) -> bool:
        """Remove the files that were used longest ago until goal bytes are left; says whether they are.

        Errors: BlockingIOError, when somebody else does.
        """
        with _locked(self._files / "evicting"):
            with change_ledger(self._ledger) as figures:
                added = figures.added
            files = sorted((used, path, size) for path, size, used in self._all_files())
            kept = sum(size for _, _, size in files)
            for _, path, size in files:
                if kept <= goal:
                    break
                kept -= _remove(path, size)
            with change_ledger(self._ledger) as figures:
                # what came meanwhile may be among what was seen; counted twice it is on the safe side
                figures.kept = kept + figures.added - added
        return kept <= goal

    def _mend(self, error: OSError, size: int) -> bool:
        """So much could not be kept: do what can be done about that; says whether to try again."""
        if error.errno == errno.ENOENT:  # somebody has removed the folder
            self._usable = self._prepare()
            return self._usable
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() < self._rest_until:
            return False
        # The disk is full before the bound is reached: keep what is new in place of what is old.
        figures = read_ledger(self._ledger) or Figures(kept=self.limit_bytes)
        kept = min(figures.kept, self.limit_bytes)
        with suppress(OSError):
            self._evict(min(int(kept * _EVICTED_TO), kept - 2 * size))
        if figures.added - self._full_at < kept // 50:  # others take what becomes free
            self._rest_until = time.monotonic() + _REST_S
        self._full_at = figures.added
        return True

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._usable:
            _tell(self._counts, self._ledger)

    def _all_files(self) -> Iterator[tuple[str, int, float]]:
        for bucket in _entries(self._files):
            if _BUCKET.fullmatch(bucket.name):
                yield from _files_in(bucket.path)


def _tell(counts: _Counts, ledger: Path) -> None:
    """Add counts to the ledger, and forget them; if that cannot be done now, later."""
    if not counts:
        return
    with suppress(OSError), change_ledger(ledger) as figures:
        with suppress(IndexError):
            while True:
                hits, misses, hit, fetched = counts.popleft()
                figures.hits += hits
                figures.misses += misses
                figures.hit += hit
                figures.fetched += fetched


def _tell_at_last(counts: _Counts, ledger: Path, pid: int) -> None:
    if os.getpid() == pid:
        _tell(counts, ledger)


def _by_segment(ranges: Sequence[Range]) -> Iterator[tuple[int, list[Range]]]:
    """The ranges cut where a segment ends, with offsets in the segment, by its number."""
    number, those = -1, list[Range]()
    for offset, length in ranges:
        while length:
            its, at = divmod(offset, SEGMENT_BYTES)
            if its != number:
                if those:
                    yield number, those
                number, those = its, []
            part = min(length, SEGMENT_BYTES - at)
            those.append((at, part))
            offset += part
            length -= part
    if those:
        yield number, those


def _place(name: str) -> tuple[str, str]:
    """The folder and the first part of the name of the files for an object."""
    digits = hashlib.sha256(name.encode()).hexdigest()
    return digits[:2], digits[2:32]


def _seed(name: str, number: int) -> int:
    return zlib.crc32(f"{name}\n{number}".encode())


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _files_in(folder: str | Path) -> Iterator[tuple[str, int, float]]:
    """Path, bytes on the disk and time of last use of the cache files in a folder; no others."""
    for entry in _entries(folder):
        with suppress(OSError):  # gone meanwhile
            if _FILE.fullmatch(entry.name):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield entry.path, status.st_blocks * 512, status.st_mtime


def _remove(path: str, size: int) -> int:
    """How many bytes are free now."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError:
        return 0
    return size


@contextmanager
def _locked(path: Path, tries: int = 1) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        lock(file, tries)
        try:
            yield
        finally:
            unlock(file)
    finally:
        os.close(file)
