"""An object, or anything that comes in pieces, as a file that can be read from its beginning again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator


class ObjectFile:
    """Gives what `pieces` yields, and hashes it on the way; rewind() begins anew.

    size, digest(): of what was given since the beginning.

    Errors: what the pieces raise.
    """

    def __init__(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        self._make = pieces
        self.rewind()

    def rewind(self) -> None:
        """Begin anew."""
        self.size = 0
        self._digest = hashlib.sha256()
        self._pieces = self._make()
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        part, self._rest = bytes(self._rest[:size]), self._rest[size:]
        self.size += len(part)
        self._digest.update(part)
        return part

    def digest(self) -> str:
        """SHA-256 of what was given, in hexadecimal digits."""
        return self._digest.hexdigest()
