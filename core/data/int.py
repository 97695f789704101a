"""Whole numbers."""

from __future__ import annotations

from typing import ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.json_value import checked_integer, is_numpy_scalar
from grange.core.node import Data, register

#: Below this nothing has to be checked.
_SMALL = 2**63


@register
class Int(Data):
    """A whole number of any size (up to 14,284 bits)."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.int.Int."

    def __init__(self, value: int, *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid for what is no whole number; a bool is none."""
        self._begin({"value": whole(value)}, label, description)

    @property
    def value(self) -> int:
        """The number."""
        return cast("int", self._attributes["value"])


def whole(value: object, port: str = "value") -> int:
    """A value as int, if it is one: Python's or NumPy's, no bool, no float.

    Errors: InputInvalid.
    """
    if type(value) is int and -_SMALL < value < _SMALL:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return checked_integer(int(value), port)
    if is_numpy_scalar(value):
        plain = value.item()  # type: ignore[attr-defined]
        if type(plain) is int:
            return plain
    raise InputInvalid(port, value, "int")
