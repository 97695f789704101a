"""Truth values."""

from __future__ import annotations

from typing import ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.json_value import is_numpy_scalar
from grange.core.node import Data, register


@register
class Bool(Data):
    """True or False."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.bool.Bool."

    def __init__(self, value: bool, *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid for what is neither True nor False; 0 and 1 are not."""
        self._begin({"value": truth(value)}, label, description)

    @property
    def value(self) -> bool:
        """The truth value."""
        return cast("bool", self._attributes["value"])


def truth(value: object, port: str = "value") -> bool:
    """A value as bool, if it is one: Python's or NumPy's.

    Errors: InputInvalid.
    """
    if value is True or value is False:
        return value
    if is_numpy_scalar(value):
        plain = value.item()  # type: ignore[attr-defined]
        if type(plain) is bool:
            return plain
    raise InputInvalid(port, value, "bool")
