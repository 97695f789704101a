"""The files of a node: which paths they may have, and AiiDA's layout of them in the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grange.core.errors import InputInvalid
from grange.core.file_names import clash
from grange.core.json_value import checked_text
from grange.repository.key import Key, is_key

#: What a node's file is before storing: its content, where it lies, or the key of what the repository has.
Content = bytes | Path | Key

NO_FILES: Mapping[str, Content] = MappingProxyType({})


def checked_path(path: str, where: str = "files") -> str:
    """A path of a file inside a node: relative, with "/" between its parts, going nowhere else.

    Errors: InputInvalid.
    """
    if not isinstance(path, str) or not path:
        raise InputInvalid(where, path, "a relative path as a string")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise InputInvalid(where, path, 'a relative path without empty, "." or ".." parts')
    return checked_text(path, where)


def check_files(files: Mapping[str, Content], where: str) -> None:
    """See that files can lie in one folder on every machine, and that what should be a key is one.

    Errors: InputInvalid, which names both of two paths that cannot be together.
    """
    if len(files) > 1:
        check_names(tuple(files), where)
    for path, content in files.items():
        if not isinstance(content, bytes | Path) and not is_key(content):
            raise InputInvalid(
                f"{where}: {path}", content, "bytes, a path, or a key of 64 hexadecimal digits"
            )


def check_names(paths: tuple[str, ...], where: str) -> None:
    """See that paths can lie in one folder on every machine.

    Errors: InputInvalid, which names both of two that cannot.
    """
    found = clash(paths)
    if found is not None:
        one, other = found
        raise InputInvalid(
            where,
            other,
            f"names that differ in more than case, and none both of a file and of a folder: {one!r} is there",
        )


def readable(path: Path, where: str) -> Path:
    """The absolute path of a file that can be read.

    Errors: InputInvalid.
    """
    try:
        if path.is_file():
            with path.open("rb"):
                return path.absolute()
        expected = "a file" if path.exists() else "a file that exists"
    except OSError as error:
        expected = f"a file that can be read ({error.strerror})"
    raise InputInvalid(where, path, expected)


def metadata_of(files: Mapping[str, Key]) -> dict[str, Any]:
    """Files as the column repository_metadata has them: folders are nested under "o", keys are under "k".

    Errors: InputInvalid if a path is both a file and a folder.
    """
    root: dict[str, Any] = {}
    for path, key in files.items():
        folder = root
        *parents, name = path.split("/")
        for parent in parents:
            folder = folder.setdefault("o", {}).setdefault(parent, {})
            if "k" in folder:
                raise InputInvalid("files", path, f"another path: {parent!r} is a file")
        if name in folder.setdefault("o", {}):
            raise InputInvalid("files", path, "another path: there is a folder of that name")
        folder["o"][name] = {"k": key}
    return root


def files_of(metadata: Mapping[str, Any]) -> dict[str, Key]:
    """The files in a column repository_metadata; empty folders have no files and do not show."""
    return dict(_walk(metadata, ""))


def _walk(folder: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Key]]:
    for name, entry in folder.get("o", {}).items():
        if "k" in entry:
            yield prefix + name, Key(entry["k"])
        else:
            yield from _walk(entry, f"{prefix}{name}/")
