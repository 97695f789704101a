"""The ledger of a cache folder: how much is in it and what use it was, for all processes together."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

_FIELDS = struct.Struct("<7Q")
_CHECKSUM = struct.Struct("<I")
_SIZE = _FIELDS.size + _CHECKSUM.size
#: More than there can be: until somebody has looked.
UNKNOWN = 1 << 60
_TRIES = 40
_PAUSE_S = 0.0005


@dataclass(slots=True)
class Figures:
    """What is in the ledger.

    kept: estimate of what is on the disk, rather too much; added: what has ever been, never less; hits,
    misses: ranges that were answered without and with asking the store; hit, fetched: what came out of the
    cache and what came from the store.
    Units: kept, added, hit, fetched in bytes; since in whole seconds since the epoch, when counting began.
    """

    kept: int = 0
    added: int = 0
    hits: int = 0
    misses: int = 0
    hit: int = 0
    fetched: int = 0
    since: int = 0


def read_ledger(path: Path) -> Figures | None:
    """What is in the ledger; None where there is none that can be believed."""
    try:
        return _decoded(path.read_bytes())
    except OSError:
        return None


@contextmanager
def change_ledger(path: Path) -> Iterator[Figures]:
    """The figures, to change in the block. Where there are none that can be believed, UNKNOWN is kept.

    Nobody waits long: a process that was stopped while it held the lock holds up no one else.

    Errors: BlockingIOError, after 20 ms; OSError where it cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        lock(file, _TRIES)
        try:
            figures = _decoded(os.pread(file, _SIZE, 0)) or Figures(kept=UNKNOWN, since=int(time.time()))
            yield figures
            # one write of fewer bytes than a sector; a torn one is found by its checksum
            os.pwrite(file, _encoded(figures), 0)
        finally:
            unlock(file)
    finally:
        os.close(file)


def lock(file: int, tries: int = 1) -> None:
    """Lock a file against all other openings of it.

    Errors: BlockingIOError, when somebody else holds it at each of the tries.
    """
    while True:
        tries -= 1
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if tries <= 0:
                raise
        time.sleep(_PAUSE_S)


def unlock(file: int) -> None:
    """Closing is not enough: a process that was forked meanwhile has the file open too."""
    fcntl.flock(file, fcntl.LOCK_UN)


def _encoded(figures: Figures) -> bytes:
    fields = _FIELDS.pack(*(max(0, value) for value in astuple(figures)))
    return fields + _CHECKSUM.pack(zlib.crc32(fields, 1))


def _decoded(content: bytes) -> Figures | None:
    fields, checksum = content[: _FIELDS.size], content[_FIELDS.size : _SIZE]
    if len(content) < _SIZE or checksum != _CHECKSUM.pack(zlib.crc32(fields, 1)):
        return None
    return Figures(*_FIELDS.unpack(fields))
