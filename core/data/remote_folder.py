"""Folders on other computers."""

from __future__ import annotations

from typing import ClassVar

from grange.core.data.str import text
from grange.core.errors import InputInvalid
from grange.core.node import Data, register


@register
class RemoteFolder(Data):
    """A folder on a computer: its path is recorded, its files are not."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.remote.RemoteData."

    def __init__(
        self, remote_path: str, *, computer_id: int | None = None, label: str = "", description: str = ""
    ) -> None:
        """Errors: InputInvalid for a path that is not absolute."""
        if not text(remote_path, "remote_path").startswith("/"):
            raise InputInvalid("remote_path", remote_path, "an absolute path")
        self._begin({"remote_path": remote_path}, label, description)
        self._computer_id = computer_id

    @property
    def value(self) -> str:
        """The path of the folder."""
        return str(self._attributes["remote_path"])
