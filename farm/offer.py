"""What a computer has to offer to tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """What the allocations of a computer come to, as far as it is known.

    cores: of all that may be there at once, for how much is kept submitted. nodes, walltime_s: of the largest
    and of the longest one; a task that needs more is refused, because it would wait for ever.
    """

    cores: int = 0
    nodes: int | None = None
    walltime_s: float | None = None
