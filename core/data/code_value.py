"""Codes as plain values: what prepare() and functions see of a code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from grange.repository.key import Key

_NO_FILES: Mapping[str, Key] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Launch:
    """How a code is started, besides its path.

    container: the command that runs what follows it in a container, as text for a shell; line: it takes
    all that as one argument. expand: $NAME is filled in in arguments. files: of a portable code, by path.
    computer_id: where it is installed.
    """

    prepend_text: str = ""
    append_text: str = ""
    with_mpi: bool | None = None
    container: str = ""
    line: bool = False
    expand: bool = False
    files: Mapping[str, Key] = field(default_factory=lambda: _NO_FILES)
    computer_id: int | None = None


PLAIN = Launch()


class CodeValue(str):
    """The path of a program, as text, that knows how its code wants it to be started.

    As the first of a command's arguments it brings along what belongs to the code: modules, MPI, a
    container, files. Elsewhere it is text; to another process it goes as text alone.
    """

    __slots__ = ("is_plain", "launch")
    launch: Launch
    #: whether there is nothing but the path
    is_plain: bool

    def __new__(cls, executable: str, launch: Launch = PLAIN) -> CodeValue:
        """A path, and how it is started."""
        made = super().__new__(cls, executable)
        made.launch = launch
        made.is_plain = launch == PLAIN
        return made

    def __copy__(self) -> CodeValue:
        return self

    def __deepcopy__(self, _: object) -> CodeValue:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)
