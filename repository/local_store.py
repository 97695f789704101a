"""The local folder as a store."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from grange.repository.errors import ObjectMissing, ObjectNameInvalid, StoreError
from grange.repository.object_name import check_name, check_prefix
from grange.repository.os_error import translated
from grange.repository.scratch import scratch_file, sweep
from grange.repository.source import CHUNK_BYTES, Content, Source, chunks_of
from grange.repository.store import Contents, ObjectInfo, Range

# A name that begins with a dot is not one of an object: never listed, never read.
_SCRATCH = ".scratch"
_LEFTOVER_AGE_S = 3600.0
# Where a file cannot be linked, it is copied: other file system, somebody else's file, no hard links there.
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP})


class LocalStore:
    """A folder, whose files are the objects.

    An object is written to a scratch file in the same tree, flushed, then linked under its name: link()
    refuses a name that is taken, so it is atomic and has one winner. The folder is flushed before a put
    returns, also by who finds the object there already, for its maker may not have come so far. Each put
    costs two or three flushes of the disk whatever its size: put packs, not files.

    Folders are made for this user alone (0700), objects are read-only (0400). Scratch files of killed
    processes are removed by the first put of a later process.

    Errors: StoreReadOnly, StoreFull, when the folder is not there and cannot be made.
    """

    # A pread costs 1 µs. Cutting parts out of a merged one costs as much for parts of 512 bytes 1 KiB apart,
    # more for all that are larger or farther, and twice as much for parts of 32 KiB however near.
    merge_gap_bytes = 0
    parallel = 1

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._scratch = self.root / _SCRATCH
        self._swept = False
        # Folders whose own entries, up to the root, are known to be on the disk.
        self._settled: set[Path] = set()
        with translated("write", self.root):
            _make_folder(self.root)
        if not self.root.is_dir():
            raise StoreError(f"{self.root} is not a folder: a local store needs one")

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def __str__(self) -> str:
        return str(self.root)

    def put_if_absent(self, name: str, source: Source) -> bool:
        target = self._path(name)
        if self._is_there(target):
            return False
        with self.scratch(chunks_of(source)) as path:
            return self._link(path, target)

    def adopt(self, name: str, path: Path) -> bool:
        target = self._path(name)
        path = path.resolve(strict=True)
        if self._is_there(target):
            return False
        with suppress(OSError):  # another user's file: it is copied below if it cannot be linked
            os.chmod(path, 0o400)
        try:
            return self._link(path, target)
        except StoreError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _NO_LINK:
                raise
        return self.put_if_absent(name, path)

    @contextmanager
    def _scratch_file(self, chunks: Iterable[Content]) -> Iterator[Path]:
        with translated("write", self._scratch):
            _make_folder(self._scratch)
        if not self._swept:
            self._swept = True
            self.sweep()
        with scratch_file(self._scratch, chunks) as path:
            yield path

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        return self._scratch_file(chunks)

    def sweep(self, older_than_s: float = _LEFTOVER_AGE_S) -> int:
        """Remove the scratch files that killed processes left; says how many."""
        return sweep(self._scratch, older_than_s)

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        file = self._open(name)
        try:
            with translated("read", self.root / name):
                return [_read_range(file, offset, length) for offset, length in ranges]
        finally:
            os.close(file)

    def read(self, name: str) -> Iterator[bytes]:
        file = self._open(name)
        try:
            while True:
                with translated("read", self.root / name):
                    chunk = os.read(file, CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk
        finally:
            os.close(file)

    def head(self, name: str) -> int | None:
        path = self._path(name)
        with translated("read", path):
            try:
                status = os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def delete(self, names: Iterable[str]) -> None:
        folders = set()
        for path in [self._path(name) for name in names]:
            with translated("delete", path):
                try:
                    os.unlink(path)
                    folders.add(path.parent)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    pass
        for folder in folders:
            with translated("delete", folder):
                _flush_folder(folder)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._walk(check_prefix(prefix))

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        folders = [prefix[: prefix.rfind("/") + 1]]
        while folders:
            folder = folders.pop()
            with translated("read", self.root / folder):
                found = _entries(self.root / folder)
            for entry in found:
                name = folder + entry.name
                if not name.startswith(prefix):
                    continue
                if entry.is_dir():
                    folders.append(f"{name}/")
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted meanwhile
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(name, status.st_size, status.st_mtime)

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _open(self, name: str) -> int:
        path = self._path(name)
        with translated("read", path):
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise ObjectMissing(name, str(self)) from None
            if stat.S_ISREG(os.fstat(file).st_mode):
                return file
            os.close(file)
        raise ObjectMissing(name, str(self))

    def _is_there(self, target: Path) -> bool:
        with translated("write", target):
            try:
                status = os.stat(target)
            except FileNotFoundError:
                return False
            except NotADirectoryError:
                raise ObjectNameInvalid(str(target), "a part of it is the name of an object") from None
            if not stat.S_ISREG(status.st_mode):
                raise ObjectNameInvalid(str(target), "it is a folder of the store")
            with suppress(OSError):  # a store that is read-only is not pruned either
                os.utime(target)
            self._settle(target.parent)
            return True

    def _link(self, path: Path, target: Path) -> bool:
        with translated("write", target):
            if not target.parent.is_dir():
                _make_folder(target.parent)
            try:
                os.link(path, target)
            except FileExistsError:
                return not self._is_there(target)
            self._settle(target.parent)
        return True

    def _settle(self, folder: Path) -> None:
        """See to it that the entries of a folder, and its own in those above it, are on the disk."""
        _flush_folder(folder)
        if folder not in self._settled:
            above = folder
            while above != self.root:
                above = above.parent
                _flush_folder(above)
            self._settled.add(folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_range(file: int, offset: int, length: int) -> bytes:
    content = os.pread(file, length, offset)
    # One call gives at most 2 GiB.
    while len(content) < length and (more := os.pread(file, length - len(content), offset + len(content))):
        content += more
    return content


def _make_folder(folder: Path) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_folder(folder.parent)
        _make_folder(folder)
        return
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
