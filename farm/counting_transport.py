"""A transport that counts what is done with another one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from grange.farm.transport import Completed, Entry, Transport


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was done. calls: of file methods, each for many files at once. "In" is towards us.

    Units: bytes of contents, of commands' input and of their output; not what SSH adds.
    """

    commands: int = 0
    calls: int = 0
    files_out: int = 0
    files_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    folders_listed: int = 0
    folders_made: int = 0
    removed: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What was done since then."""
        return Traffic(
            **{each.name: getattr(self, each.name) - getattr(earlier, each.name) for each in fields(self)}
        )


class CountingTransport:
    """A Transport around a Transport; what fails is counted, too."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._traffic = Traffic()
        self._lock = threading.Lock()

    @property
    def traffic(self) -> Traffic:
        """What was done so far."""
        return self._traffic

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end."""
        self._count(commands=1, bytes_out=len(stdin))
        completed = self._transport.run(argv, stdin=stdin, cwd=cwd, timeout_s=timeout_s)
        self._count(bytes_in=len(completed.stdout) + len(completed.stderr))
        return completed

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents)."""
        sizes = (len(source) if isinstance(source, bytes) else source.stat().st_size for source, _ in files)
        self._count(calls=1, files_out=len(files), bytes_out=sum(sizes))
        self._transport.put(files, mode=mode)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files."""
        self._count(calls=1)
        self._transport.get(files)
        self._count(files_in=len(files), bytes_in=sum(target.stat().st_size for _, target in files))

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files."""
        self._count(calls=1)
        contents = self._transport.read(paths)
        there = [content for content in contents if content is not None]
        self._count(files_in=len(there), bytes_in=sum(map(len, there)))
        return contents

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders."""
        self._count(calls=1, folders_listed=len(folders))
        return self._transport.list(folders)

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders."""
        self._count(calls=1, folders_made=len(paths))
        self._transport.make_folders(paths, mode=mode)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files and folders."""
        self._count(calls=1, removed=len(paths))
        self._transport.remove(paths)

    def home(self) -> str:
        """Our home folder there."""
        self._count(calls=1)
        return self._transport.home()

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def _count(self, **more: int) -> None:
        with self._lock:
            now = {name: getattr(self._traffic, name) + count for name, count in more.items()}
            self._traffic = replace(self._traffic, **now)
