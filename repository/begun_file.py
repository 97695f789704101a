"""A file of unknown length, of which the beginning has been looked at."""

from __future__ import annotations

from collections import deque

from grange.repository.source import CHUNK_BYTES, Readable


class BegunFile:
    """Reads so much of a file as tells whether it is short; then gives all of it, from its beginning.

    ended: whether the file has no more than limit_bytes. What was given is forgotten.

    Errors: what reading the file raises.
    """

    def __init__(self, file: Readable, limit_bytes: int) -> None:
        self.ended = False
        self._file = file
        self._read: deque[bytes] = deque()
        size = 0
        while size <= limit_bytes:
            chunk = file.read(min(CHUNK_BYTES, limit_bytes + 1 - size))
            if not chunk:
                self.ended = True
                return
            self._read.append(chunk)
            size += len(chunk)

    def content(self) -> bytes:
        """The whole of a file that has ended."""
        return b"".join(self._read)

    def read(self, size: int, /) -> bytes:
        if not self._read:
            return b"" if self.ended else self._file.read(size)
        chunk = self._read.popleft()
        if len(chunk) > size:
            self._read.appendleft(chunk[size:])
        return chunk[:size]
