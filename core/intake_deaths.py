"""What a process has died at while it took results in: a parser of the user's may end it, whatever we catch.

Before results are parsed, it is written down whose; afterwards the note goes. Who finds a note knows that the
one before was killed, or killed by one of these. When that has happened twice, each of them is parsed alone;
one that is alone three times when it happens is taken for the cause.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Deaths in a row at which results are parsed one by one, and at which one that was alone is the cause.
TOGETHER = 2
ALONE = 3


class IntakeDeaths:
    """The note of a campaign or queue; used by whoever holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._suspects: set[str] = set()
        self._deaths = 0
        self._was_alone = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_text())
            self._suspects = set(map(str, found["ids"]))
            self._deaths = int(found["deaths"]) + 1
            self._was_alone = bool(found["alone"])

    def culprits(self, ids: Collection[str]) -> set[str]:
        """Of these results those at which a process has died too often."""
        return self._suspects & set(ids) if self._was_alone and self._deaths >= ALONE else set()

    def alone(self, ids: Collection[str]) -> list[str]:
        """Of these results those that have to be parsed one by one."""
        if self._was_alone or self._deaths >= TOGETHER:
            return sorted(self._suspects & set(ids), key=int)
        return []

    @contextmanager
    def at(self, ids: Collection[str], *, alone: bool = False) -> Iterator[None]:
        """These results are being parsed. alone: because they have to be."""
        again = not self._suspects.isdisjoint(ids) and alone == self._was_alone
        note = {"ids": sorted(ids), "deaths": self._deaths if again else 0, "alone": alone}
        if ids:
            self._write(json.dumps(note))
        try:
            yield
        finally:
            # not reached by who dies
            self._suspects.difference_update(ids)
            if ids:
                with suppress(OSError):
                    self._path.unlink()

    def forget(self, ids: Collection[str]) -> None:
        """These have been dealt with."""
        self._suspects.difference_update(ids)

    def _write(self, text: str) -> None:
        """Whole or not at all; a disk that is full is no reason not to go on."""
        part = self._path.with_name(self._path.name + ".part")
        with suppress(OSError):
            part.write_text(text)
            os.replace(part, self._path)
