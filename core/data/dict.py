"""Mappings of names to JSON values."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.json_value import checked, copied
from grange.core.node import Data, register


@register
class Dict(Data):
    """A dict with text keys of numbers, texts, truth values, None, lists and dicts.

    The database does not keep the order of keys.
    """

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.dict.Dict."

    def __init__(
        self, value: Mapping[str, Any] | None = None, *, label: str = "", description: str = ""
    ) -> None:
        """Errors: InputInvalid, naming the item, for what is no JSON: NaN, objects, keys that are no text."""
        self._begin({} if value is None else mapping(value), label, description)

    @property
    def value(self) -> builtins.dict[str, Any]:
        """A copy of the dict."""
        return self.attributes

    def __getitem__(self, key: str) -> Any:
        return copied(self._attributes[key])

    def __contains__(self, key: object) -> bool:
        return key in self._attributes


def mapping(value: object, port: str = "value") -> builtins.dict[str, Any]:
    """A copy of a mapping that holds JSON only.

    Errors: InputInvalid.
    """
    if not isinstance(value, Mapping):
        raise InputInvalid(port, value, "dict")
    return cast("builtins.dict[str, Any]", checked(value, port))
