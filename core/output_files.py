"""The files that a calculation left, as its parser sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from grange.core.exit_code import ExitCode
from grange.repository.index import BlobLocation
from grange.repository.key import Key

Reader = Callable[[Sequence[Key]], list[bytes]]


class OutputFiles(Mapping[str, bytes]):
    """Path → content, read when asked for; what the engine has read ahead costs nothing.

    return_code: what the program ended with. ended_by: what ended it before it was done, as exit_status has
    it (a limit, a monitor, a signal); None where it ended by itself. places: where contents lie, as far as
    that is known.
    """

    __slots__ = ("_ahead", "_keys", "_places", "_read", "ended_by", "return_code")
    ended_by: ExitCode | None

    def __init__(
        self,
        keys: Mapping[str, Key],
        read: Reader,
        ahead: Mapping[Key, bytes],
        return_code: int | None,
        places: Mapping[Key, BlobLocation] = MappingProxyType({}),
    ) -> None:
        self._keys = keys
        self._read = read
        self._ahead = ahead
        self._places = places
        self.return_code = return_code
        self.ended_by = None

    def __getitem__(self, path: str) -> bytes:
        try:
            key = self._keys[path]
        except KeyError:
            there = ", ".join(sorted(self._keys)) or "none"
            raise KeyError(f"no file {path!r} was kept; kept: {there}") from None
        content = self._ahead.get(key)
        return self._read([key])[0] if content is None else content

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, path: object) -> bool:
        return path in self._keys

    def key(self, path: str) -> Key:
        """The key of a file's content."""
        return self._keys[path]

    def size(self, path: str) -> int | None:
        """The bytes of a file, without reading it; None where that is not known."""
        place = self._places.get(self._keys[path])
        return None if place is None else place.size

    def text(self, path: str, encoding: str = "utf-8") -> str:
        """The content of a file as text; bytes that are no text are replaced, as programs write such."""
        return self[path].decode(encoding, errors="replace")
