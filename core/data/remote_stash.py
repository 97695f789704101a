"""Where files of a calculation stayed on its computer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from grange.core.data.str import text
from grange.core.errors import InputInvalid
from grange.core.node import Data, register


class RemoteStash(Data):
    """Files that stayed on a computer: their place is recorded, they are not.

    stash_mode: AiiDA's word for how. source_list: the patterns that were asked for.
    """

    __slots__ = ()

    def __init__(
        self,
        target_basepath: str,
        source_list: Sequence[str],
        stash_mode: str,
        *,
        computer_id: int | None = None,
        label: str = "",
        description: str = "",
    ) -> None:
        """Errors: InputInvalid for a path that is not absolute."""
        if not text(target_basepath, "target_basepath").startswith("/"):
            raise InputInvalid("target_basepath", target_basepath, "an absolute path")
        attributes = {
            "stash_mode": text(stash_mode, "stash_mode"),
            "target_basepath": target_basepath,
            "source_list": [text(path, "source_list") for path in source_list],
        }
        self._begin(attributes, label, description)
        self._computer_id = computer_id

    @property
    def target_basepath(self) -> str:
        """The folder or archive, on its computer."""
        return str(self._attributes["target_basepath"])

    @property
    def stash_mode(self) -> str:
        """ "copy", or "compress.tar" and the like."""
        return str(self._attributes["stash_mode"])

    @property
    def source_list(self) -> list[str]:
        """The patterns of what was stashed."""
        return list(self._attributes["source_list"])

    @property
    def value(self) -> str:
        """The folder or archive, on its computer: what a job that goes on from it needs."""
        return self.target_basepath


@register
class RemoteStashFolder(RemoteStash):
    """A folder of files that stayed on a computer."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.remote.stash.folder.RemoteStashFolderData."


@register
class RemoteStashArchive(RemoteStash):
    """An archive of files that stayed on a computer."""

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.remote.stash.compress.RemoteStashCompressedData."
