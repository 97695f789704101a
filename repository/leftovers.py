"""Leftovers: what killed writers leave in a store that never became an object."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class KeepsLeftovers(Protocol):
    """A store in which a killed writer leaves something: scratch files, parts of uploads."""

    def sweep(self, older_than_s: float) -> int:
        """Remove what was last written to longer ago than this and whose writer is gone; says how many.

        Where a server cannot tell who is gone, nobody may be putting meanwhile.
        Errors: as Store.
        """
        ...
