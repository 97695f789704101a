"""Texts."""

from __future__ import annotations

from typing import ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.json_value import checked_text
from grange.core.node import Data, register


@register
class Str(Data):
    """A text."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.str.Str."

    def __init__(self, value: str, *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid for what is no text, or holds NUL or lone surrogates."""
        self._begin({"value": text(value)}, label, description)

    @property
    def value(self) -> str:
        """The text."""
        return cast("str", self._attributes["value"])


def text(value: object, port: str = "value") -> str:
    """A value as str, if it is one that PostgreSQL can keep.

    Errors: InputInvalid.
    """
    if not isinstance(value, str):
        raise InputInvalid(port, value, "str")
    return checked_text(value if type(value) is str else str.__str__(value), port)
