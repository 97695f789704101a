"""A file that must still be what it was."""

from __future__ import annotations

import hashlib

from grange.repository.errors import ContentChanged
from grange.repository.key import Key
from grange.repository.source import Seekable


class UnchangedFile:
    """Passes on what a file gives, and refuses to end if that is not the content of the key.

    A store that is putting it then leaves nothing. size: how many bytes it has given.

    Errors: ContentChanged, instead of the end.
    """

    def __init__(self, file: Seekable, key: Key, path: str) -> None:
        self.size = 0
        self._file = file
        self._key = key
        self._path = path
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        chunk = self._file.read(size)
        self.size += len(chunk)
        self._digest.update(chunk)
        if not chunk and self._digest.hexdigest() != self._key:
            raise ContentChanged(self._path)
        return chunk

    def rewind(self) -> None:
        """Begin again: who was putting it has to do so once more."""
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self.size = 0
