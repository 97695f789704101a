"""Real numbers."""

from __future__ import annotations

from typing import Any, ClassVar

from grange.core.data.int import whole
from grange.core.errors import InputInvalid
from grange.core.json_value import is_numpy_scalar
from grange.core.node import Data, register

_LARGEST = 1.7976931348623157e308
_INFINITY = float("inf")


@register
class Float(Data):
    """A real number in double precision; NaN and the infinities are stored as PostgreSQL's words."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.float.Float."

    def __init__(self, value: float, *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid for what is no number; an int is taken, a bool is not."""
        self._begin({"value": stored_float(real(value))}, label, description)

    @property
    def value(self) -> float:
        """The number."""
        return float(self._attributes["value"])


def real(value: object, port: str = "value") -> float:
    """A value as float, if it is a number: Python's or NumPy's, whole ones too, no bool.

    Errors: InputInvalid.
    """
    if type(value) is float:
        return value
    if isinstance(value, float):
        return float(value)
    if is_numpy_scalar(value) and isinstance(value.item(), float):  # type: ignore[attr-defined]
        return float(value.item())  # type: ignore[attr-defined]
    try:
        return float(whole(value, port))
    except InputInvalid:
        raise InputInvalid(port, value, "float") from None
    except OverflowError:
        raise InputInvalid(port, value, "float (this integer is beyond double precision)") from None


def stored_float(value: float) -> Any:
    """A float as it lies in attributes: itself, or a word where JSON has no number for it."""
    if -_LARGEST <= value <= _LARGEST:
        return value + 0.0  # jsonb has no negative zero
    if value != value:
        return "NaN"
    return "Infinity" if value == _INFINITY else "-Infinity"
