"""Nothing, as a value: what an optional input was given when it was given None."""

from __future__ import annotations

from typing import ClassVar

from grange.core.node import Data, register


@register
class Null(Data):
    """None."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.none.NoneData."

    def __init__(self, *, label: str = "", description: str = "") -> None:
        self._begin({}, label, description)

    @property
    def value(self) -> None:
        """None."""
        return None
