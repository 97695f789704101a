"""A file here that appears whole or not at all: written under another name, on the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

PREFIX = ".grange-"
SUFFIX = ".part"


def part_name() -> str:
    """A name for what is not whole yet: hidden, and never the name of another."""
    return f"{PREFIX}{os.urandom(12).hex()}{SUFFIX}"


class WholeFile:
    """A file that is being written; commit() makes it appear, abandon() leaves nothing.

    Errors: OSError.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._path = path
        self._part = path.with_name(part_name())
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if mode != 0o600:
            os.fchmod(self._file, mode)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Put bytes at a place."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file, rest, offset)
            rest, offset = rest[written:], offset + written

    def copy_from(self, source: int) -> None:
        """Copy what is left of an open file, by the kernel."""
        while os.sendfile(self._file, source, None, 1 << 26):
            pass

    def commit(self) -> None:
        """Let it appear, with its content on the disk; sync_folders() does the same for its name."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
            self._file = -1
        os.rename(self._part, self._path)

    def abandon(self) -> None:
        """Leave nothing, if it was not committed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        with contextlib.suppress(OSError):
            os.unlink(self._part)


def sync_folders(folders: Iterable[Path]) -> None:
    """Have the names in these folders on the disk."""
    for folder in set(folders):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
