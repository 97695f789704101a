"""Dicts whose items can be written as attributes: ctx.children, inputs.pw.structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AttributeDict(dict[str, Any]):
    """A dict with attributes. What is a method of dicts has to be written as an item."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            there = ", ".join(map(str, self)) or "nothing"
            raise AttributeError(f"there is no {name!r}; there is: {there}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self)]


def nested(values: Mapping[str, Any]) -> AttributeDict:
    """A copy of a dict, and of the dicts in it, with attributes."""
    return AttributeDict(
        {name: nested(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    )
