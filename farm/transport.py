"""The transport: a computer's shell and files, as seen from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completed:
    """What became of a command there."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a folder there; of a link what it leads to. Units: size in bytes, mtime in seconds since
    the epoch."""

    name: str
    size: int
    mtime: float
    is_folder: bool
    is_link: bool = False


class Transport(Protocol):
    """Runs commands and moves files. Several threads may use it at once. Paths there are absolute.

    Every method may be repeated after any error.
    Errors, of all methods: TransportUnavailable (retry), AuthenticationRefused and HostKeyRefused (a person
    has to act), RemoteFull.
    """

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end; what its arguments hold is quoted for the shell.

        Errors: besides those of all methods, CommandRefused where the account may not run it.
        """
        ...

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents), each whole or not at all: under a temporary name, then renamed.

        Folders above a path are made where they are missing (0700).
        """
        ...

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files, each whole or not at all, on our disk when this returns. Errors: RemoteMissing."""
        ...

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        ...

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        ...

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them; those that are there stay as they are."""
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them; what is not there is no error."""
        ...

    def home(self) -> str:
        """Our home folder there."""
        ...

    def close(self) -> None:
        """End the connection; it is no error to close twice."""
        ...
