"""Folders of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from grange.core.data.singlefile import file_content
from grange.core.errors import InputInvalid
from grange.core.files import Content, checked_path
from grange.core.node import Data, register
from grange.repository.key import Key


@register
class Folder(Data):
    """Files below one folder. Folders that hold no file are not kept."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.folder.FolderData."

    def __init__(
        self, value: str | Path | Mapping[str, bytes | Path], *, label: str = "", description: str = ""
    ) -> None:
        """A folder given by its path, or as path → content (or path of the file to take).

        Errors: InputInvalid for a path that is no folder, or a file in it that cannot be read.
        """
        self._begin({}, label, description)
        self._files = folder_contents(value)

    @classmethod
    def of_keys(cls, files: Mapping[str, Key]) -> Folder:
        """A folder of files whose contents the repository has already."""
        return cls.from_attributes({}, files)

    @property
    def value(self) -> dict[str, bytes]:
        """Path → content, of all files."""
        return self.read_files()


def folder_contents(value: object, port: str = "value") -> dict[str, Content]:
    """The files of a folder, or of a mapping, by path.

    Errors: InputInvalid.
    """
    if isinstance(value, Mapping):
        return {checked_path(path, port): _content(item, f"{port}[{path!r}]") for path, item in value.items()}
    if not isinstance(value, str | Path):
        raise InputInvalid(port, value, "the path of a folder, or a dict of path → content")
    folder = Path(value)
    if not folder.is_dir():
        raise InputInvalid(port, value, "a folder" if folder.exists() else "a folder that exists")
    return {
        checked_path(path.relative_to(folder).as_posix(), port): file_content(path, port)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }


def _content(value: object, port: str) -> Content:
    if not isinstance(value, bytes | Path):
        raise InputInvalid(port, value, "bytes, or the path of a file")
    return file_content(value, port)
