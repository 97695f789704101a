"""Scratch files: what is being written and is not an object yet."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grange.repository.os_error import translated
from grange.repository.source import Content

PREFIX = "grange-scratch-"


@contextmanager
def scratch_file(folder: Path, chunks: Iterable[Content]) -> Iterator[Path]:
    """A temporary file in a folder, with this content, on the disk; gone when the block ends.

    Its writer holds a lock on it, which the kernel drops with the process: sweep() knows the dead by it.

    Errors: StoreFull, StoreReadOnly, StoreUnavailable; what reading the chunks raises, as it is.
    """
    path = folder / f"{PREFIX}{os.urandom(16).hex()}"
    with translated("write", path):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a file system without locks: then leftovers stay, which does no harm
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for chunk in chunks:
            with translated("write", path):
                _write_all(file, chunk)
        with translated("write", path):
            os.fchmod(file, 0o400)
            os.fsync(file)
        yield path
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
        os.close(file)


def sweep(folder: Path, older_than_s: float) -> int:
    """Remove the scratch files that killed processes left in a folder; says how many.

    Units: older_than_s in seconds since the last write; a file has no lock in its first moment, hence not 0.
    """
    removed = 0
    limit = time.time() - older_than_s
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):  # gone meanwhile, or another user's
                if entry.name.startswith(PREFIX) and entry.stat(follow_symlinks=False).st_mtime <= limit:
                    removed += _remove_if_dead(entry.path)
    return removed


def _remove_if_dead(path: str) -> int:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return 0
    finally:
        os.close(file)
    return 1


def _write_all(file: int, content: Content) -> None:
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]
