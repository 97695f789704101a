"""Members of enumerations."""

from __future__ import annotations

import enum
import importlib
from typing import Any, ClassVar, cast

from grange.core.errors import InputInvalid, NotFound
from grange.core.json_value import checked
from grange.core.node import Data, register


@register
class Enum(Data):
    """A member of an enumeration: recorded are its name, its value, and where the enumeration is defined."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.enum.EnumData."

    def __init__(self, value: enum.Enum, *, label: str = "", description: str = "") -> None:
        """Errors: InputInvalid for what is no member of an enumeration, or has a value that is no JSON."""
        self._begin(attributes_of_member(value), label, description)

    @property
    def value(self) -> enum.Enum:
        """The member.

        Errors: NotFound if the enumeration cannot be imported here, or has no such member any more.
        """
        identifier = self._attributes["identifier"]
        module, _, qualname = identifier.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in qualname.split("."):
                found = getattr(found, part)
            return cast("enum.Enum", found[self._attributes["name"]])
        except (ImportError, AttributeError, KeyError, ValueError) as error:
            raise NotFound(
                f"the enumeration member {self._attributes['name']} of {identifier} is not to be had here "
                f"({error}); its value was {self._attributes['value']!r}"
            ) from error


def attributes_of_member(value: object, port: str = "value") -> dict[str, Any]:
    """The attributes that record a member.

    Errors: InputInvalid.
    """
    if not isinstance(value, enum.Enum):
        raise InputInvalid(port, value, "a member of an enumeration")
    cls = type(value)
    if "<locals>" in cls.__qualname__:
        raise InputInvalid(
            port, value, "a member of an enumeration that a module defines (this one is local)"
        )
    return {
        "name": value.name,
        "value": checked(value.value, port),
        "identifier": f"{cls.__module__}:{cls.__qualname__}",
    }
