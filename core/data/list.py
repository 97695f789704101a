"""Lists of JSON values."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.json_value import checked, copied
from grange.core.node import Data, register


@register
class List(Data):
    """A list of numbers, texts, truth values, None, lists and dicts."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.list.List."

    def __init__(self, value: Sequence[Any] = (), *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid, naming the item, for what is no JSON: NaN, objects, keys that are no text."""
        self._begin({"list": sequence(value)}, label, description)

    @property
    def value(self) -> builtins.list[Any]:
        """A copy of the list."""
        return cast("builtins.list[Any]", copied(self._attributes["list"]))

    def __len__(self) -> int:
        return len(self._attributes["list"])

    def __getitem__(self, index: int) -> Any:
        return copied(self._attributes["list"][index])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __bool__(self) -> bool:
        return True  # a node is there, however long its list


def sequence(value: object, port: str = "value") -> builtins.list[Any]:
    """A copy of a list or tuple that holds JSON only.

    Errors: InputInvalid.
    """
    if not isinstance(value, builtins.list | tuple):
        raise InputInvalid(port, value, "list")
    return cast("builtins.list[Any]", checked(value, port))
