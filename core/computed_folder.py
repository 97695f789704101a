"""Folders in which somebody has run a program before: what lies in them, here or on another computer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from grange.core.errors import InputInvalid
from grange.core.output_files import OutputFiles
from grange.farm.runner import clean_text, glob_regex
from grange.farm.transport import Transport
from grange.repository import Key

#: More files than that are no calculation.
MOST_FILES = 100_000
#: A folder of a folder of a folder …
DEEPEST = 32


class ComputedFolder(Protocol):
    """The files of a folder by their paths in it, without ".", ".." and links that leave it."""

    place: str

    def paths(self, patterns: Sequence[str]) -> list[str]:
        """The files that glob patterns name; those of a folder where a pattern names one."""
        ...

    def fetched(self, paths: Sequence[str]) -> list[Path]:
        """Where files lie here, in order."""
        ...


class FolderHere:
    """A folder of this machine. Errors: InputInvalid where there is none."""

    def __init__(self, path: Path, where: str) -> None:
        self._root = path.expanduser().absolute()
        self.place = str(self._root)
        if not self._root.is_dir():
            raise InputInvalid(where, str(path), "a folder that exists")

    def paths(self, patterns: Sequence[str]) -> list[str]:
        root = os.path.realpath(self._root)
        found: list[str] = []
        for folder, _, names in os.walk(self._root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path) and os.path.realpath(path).startswith(f"{root}/"):
                    found.append(os.path.relpath(path, self._root))
            _bounded(len(found), self.place)
        return chosen(found, patterns)

    def fetched(self, paths: Sequence[str]) -> list[Path]:
        return [self._root / path for path in paths]


class FolderThere:
    """A folder of another computer, whose files are known; see folders_there()."""

    def __init__(self, transport: Transport, place: str, files: Sequence[str], scratch: Path) -> None:
        self._transport = transport
        self._files = files
        self._scratch = scratch
        self._fetched: dict[str, Path] = {}
        self.place = place

    def paths(self, patterns: Sequence[str]) -> list[str]:
        return chosen(self._files, patterns)

    def fetched(self, paths: Sequence[str]) -> list[Path]:
        prefetch([(self, paths)])
        return [self._fetched[path] for path in paths]

    def wanted(self, paths: Sequence[str]) -> list[tuple[str, Path]]:
        """What of these is still to be fetched, and where to."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._fetched]
        places = [self._scratch / f"{len(self._fetched) + number}" for number in range(len(missing))]
        if missing:
            self._scratch.mkdir(parents=True, exist_ok=True)
        return [(f"{self.place}/{path}", place) for path, place in zip(missing, places, strict=True)]

    def have(self, files: Sequence[tuple[str, Path]]) -> None:
        """These have been fetched."""
        start = len(self.place) + 1
        self._fetched.update((path[start:], place) for path, place in files)

    @property
    def transport(self) -> Transport:
        """How its computer is reached."""
        return self._transport


def folders_there(
    transport: Transport, places: Sequence[str], scratch: Path, where: str
) -> list[ComputedFolder]:
    """Folders of another computer: all of them are listed in one go for each level.

    Files are fetched into a folder here when they are asked for, each once; links are left out.
    Errors: InputInvalid where there is none; those of the transport, here and of all methods.
    """
    for place in places:
        if not place.startswith("/"):
            raise InputInvalid(where, place, "an absolute path there")
    roots = [place.rstrip("/") for place in places]
    found: list[list[str]] = [[] for _ in roots]
    level = [(number, "") for number in range(len(roots))]
    for depth in range(DEEPEST):
        listed = transport.list([f"{roots[number]}/{folder}".rstrip("/") or "/" for number, folder in level])
        below: list[tuple[int, str]] = []
        for (number, folder), entries in zip(level, listed, strict=True):
            if entries is None and not depth:
                raise InputInvalid(where, places[number], "a folder that exists there")
            for entry in entries or ():
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_link:
                    continue  # it may lead to what is nothing of the calculation, or somebody else's
                if entry.is_folder:
                    below.append((number, path))
                else:
                    found[number].append(path)
            _bounded(len(found[number]), places[number])
        _bounded(len(below), places[0])
        level = below
        if not level:
            break
    return [
        FolderThere(transport, root, files, scratch / str(number))
        for number, (root, files) in enumerate(zip(roots, found, strict=True))
    ]


def prefetch(wanted: Iterable[tuple[ComputedFolder, Sequence[str]]]) -> None:
    """Fetch files of many folders of one computer in one go; those of folders here are there."""
    files: list[tuple[FolderThere, list[tuple[str, Path]]]] = [
        (folder, folder.wanted(paths)) for folder, paths in wanted if isinstance(folder, FolderThere)
    ]
    pairs = [pair for _, some in files for pair in some]
    if pairs:
        files[0][0].transport.get(pairs)
    for folder, some in files:
        folder.have(some)


def _bounded(count: int, place: str) -> None:
    if count > MOST_FILES:
        raise InputInvalid("folder", place, f"the folder of one calculation, with at most {MOST_FILES} files")


def chosen(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The paths that patterns mean, as a runner takes them. Names that are no text are left out."""
    regexes = [glob_regex(pattern) for pattern in patterns]
    return sorted(
        path for path in paths if clean_text(path) == path and any(regex.fullmatch(path) for regex in regexes)
    )


def files_of(folder: ComputedFolder, names: Mapping[str, str]) -> OutputFiles:
    """Files of a folder as parsers see them: name → path in the folder; read when asked for."""

    def read(paths: Sequence[Key]) -> list[bytes]:
        return [place.read_bytes() for place in folder.fetched(paths)]

    return OutputFiles({name: Key(path) for name, path in names.items()}, read, {}, None)
