"""Names of files that cannot lie in one folder everywhere: they differ only in case, or one is a folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache


def folded(path: str) -> str:
    """What a path is to a file system that knows no case: equal for all that would be one file there."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


@lru_cache(4096)  # what many programs leave has the same few names
def clash(paths: tuple[str, ...]) -> tuple[str, str] | None:
    """Two of the paths that one folder cannot hold everywhere; None if there are none.

    Equal but for case, or for how an accent is written; or one a file where the other needs a folder.
    """
    if len(paths) < 2:
        return None
    files: dict[str, str] = {}
    for path in paths:
        plain = folded(path)
        if plain in files:
            return files[plain], path
        files[plain] = path
    for plain, path in files.items():
        for folder in _above(plain):
            if folder in files:
                return files[folder], path
    return None


def apart(paths: Collection[str]) -> dict[str, str]:
    """For each path one that clashes with no other: a name that is taken gets "~2", "~3" … at its end.

    Shapes: n paths in, n pairs out; of those that clash the first keeps its own.
    """
    files: set[str] = set()
    folders: set[str] = set()
    new: dict[str, str] = {}
    for path in paths:
        *parents, name = path.split("/")
        place = ""
        for parent in parents:
            place = _free(place + parent, files) + "/"
            folders.add(folded(place[:-1]))
        found = _free(place + name, files, folders)
        files.add(folded(found))
        new[path] = found
    return new


def _free(path: str, *taken: set[str]) -> str:
    candidate, number = path, 1
    while any(folded(candidate) in names for names in taken):
        number += 1
        candidate = f"{path}~{number}"
    return candidate


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in, from the nearest."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
