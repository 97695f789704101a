"""NumPy arrays."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from grange.core.errors import InputInvalid
from grange.core.node import Data, register

if TYPE_CHECKING:
    import numpy

#: The name of an array that was given without one.
DEFAULT = "default"
_PREFIX = "array|"
_NAME = re.compile(r"[A-Za-z0-9_]+")


@register
class Array(Data):
    """One or more NumPy arrays, each a file NAME.npy; the attributes tell their shapes."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.array.ArrayData."

    def __init__(
        self,
        value: numpy.ndarray[Any, Any] | Mapping[str, numpy.ndarray[Any, Any]],
        *,
        label: str = "",
        description: str = "",
    ) -> None:
        """Errors: InputInvalid for what is no array, holds Python objects, or has a name that is no word."""
        arrays = named_arrays(value)
        self._begin(
            {_PREFIX + name: list(array.shape) for name, array in arrays.items()},
            label,
            description,
        )
        self._files = {f"{name}.npy": _npy(array) for name, array in arrays.items()}

    @property
    def value(self) -> Any:
        """The array that was given without a name; else a dict of name → array."""
        names = self.names
        contents = self.read_files([f"{name}.npy" for name in names])
        arrays = {name: _from_npy(contents[f"{name}.npy"]) for name in names}
        return arrays[DEFAULT] if names == [DEFAULT] else arrays

    @property
    def names(self) -> list[str]:
        """The names of the arrays."""
        return sorted(path.removesuffix(".npy") for path in self._files if path.endswith(".npy"))

    def shape(self, name: str = DEFAULT) -> tuple[int, ...]:
        """The shape of one of the arrays; reads no file."""
        return tuple(self._attributes[_PREFIX + name])


def named_arrays(value: object, port: str = "value") -> dict[str, numpy.ndarray[Any, Any]]:
    """An array, or a mapping of names to arrays, as a dict of arrays that can be kept.

    Errors: InputInvalid.
    """
    import numpy

    arrays: dict[Any, Any] = dict(value) if isinstance(value, Mapping) else {DEFAULT: value}
    if not arrays:
        raise InputInvalid(port, value, "at least one array")
    for name, array in arrays.items():
        where = f"{port}[{name!r}]" if isinstance(value, Mapping) else port
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputInvalid(where, name, "a name of letters, digits and underscores")
        if not isinstance(array, numpy.ndarray):
            raise InputInvalid(where, array, "numpy.ndarray")
        if array.dtype.hasobject:
            raise InputInvalid(
                where, array, f"an array of numbers or fixed text (dtype {array.dtype} holds objects)"
            )
    return arrays


def attributes_of_shape(name: str, shape: list[int]) -> dict[str, Any]:
    """The attributes of a node that has one array."""
    return {_PREFIX + name: shape}


def _npy(array: numpy.ndarray[Any, Any]) -> bytes:
    import numpy

    file = io.BytesIO()
    numpy.save(file, array, allow_pickle=False)
    return file.getvalue()


def _from_npy(content: bytes) -> Any:
    import numpy

    return numpy.load(io.BytesIO(content), allow_pickle=False)
