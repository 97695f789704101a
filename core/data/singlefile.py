"""Single files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from grange.core.errors import InputInvalid
from grange.core.files import Content, checked_path, readable
from grange.core.node import Data, register
from grange.repository.key import Key

#: Smaller files are read at once, so that what is stored is what was there when the node was made.
READ_AT_ONCE = 256 * 1024


@dataclass(frozen=True, slots=True)
class FileValue:
    """A file as a plain value: its name and its content. Reads like a pathlib.Path."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        """The content."""
        return self.content

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content as text."""
        return self.content.decode(encoding, errors)


@register
class SingleFile(Data):
    """One file and its name."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.singlefile.SinglefileData."

    def __init__(
        self,
        value: str | Path | bytes | FileValue,
        filename: str | None = None,
        *,
        label: str = "",
        description: str = "",
    ) -> None:
        """A file given by its path, or by its content and a filename.

        Errors: InputInvalid for a path that is no readable file.
        """
        if isinstance(value, FileValue):
            name, content = filename or value.name, file_content(value.content)
        elif isinstance(value, bytes):
            if not filename:
                raise InputInvalid("filename", filename, "a name for the content")
            name, content = filename, file_content(value)
        elif isinstance(value, str | Path):
            name, content = filename or Path(value).name, file_content(Path(value))
        else:
            raise InputInvalid("value", value, "the path of a file, or its content as bytes")
        if "/" in name:
            raise InputInvalid("filename", name, "a name without folders")
        self._begin({"filename": checked_path(name, "filename")}, label, description)
        self._files = {name: content}

    @classmethod
    def of_key(cls, filename: str, key: Key) -> SingleFile:
        """A file whose content the repository has already."""
        return cls.from_attributes({"filename": checked_path(filename, "filename")}, {filename: key})

    @property
    def filename(self) -> str:
        """The file's name."""
        return str(self._attributes["filename"])

    @property
    def content(self) -> bytes:
        """The file's content."""
        return self.read_file(self.filename)

    @property
    def value(self) -> FileValue:
        """The file's name and content."""
        return FileValue(self.filename, self.content)


def file_content(value: bytes | Path, port: str = "value") -> Content:
    """Content, or a path that can be read; small files are read at once.

    Errors: InputInvalid.
    """
    if isinstance(value, bytes):
        return value
    path = readable(value, port)
    return path.read_bytes() if path.stat().st_size <= READ_AT_ONCE else path
