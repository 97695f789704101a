"""Editing profile.toml: the store is named anew, and everything else stays as people wrote it."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from grange.core.errors import ProfileInvalid
from grange.core.profile_file import read_profile_file
from grange.repository.s3_settings import S3Settings

_HEADER = re.compile(r"\s*\[")
_STORE_TABLE = re.compile(r"""\s*\[\s*["']?store["']?\s*\]""")
_STORE_KEY = re.compile(r"""\s*["']?store["']?\s*[=.]""")
_NOTHING = re.compile(r"\s*(#.*)?$")


def set_store(path: Path, store: str | S3Settings) -> None:
    """Name another store in a profile.toml, at once or not at all; what was there before is replaced.

    A link is followed. What is on the disk when this returns survives a power cut.

    Errors: ProfileInvalid for a file that cannot be read or edited, OSError when it cannot be written.
    """
    read_profile_file(path)  # written with its defaults where there is none, and refused where it is wrong
    path = path.resolve(strict=True)
    _replace(path, with_store(path.read_text("utf-8"), store, path))


def with_store(text: str, store: str | S3Settings, path: Path = Path("profile.toml")) -> str:
    """The text of a profile.toml with another store: a folder by a line, a bucket by a table at the end.

    path: for messages.
    Errors: ProfileInvalid where it is written so that this cannot be done by lines.
    """
    import tomli_w

    wanted = store if isinstance(store, str) else store.to_table()
    kept, place = _without_store(text.splitlines(keepends=True))
    new = tomli_w.dumps({"store": wanted})
    if isinstance(store, str):
        _end_line(kept, place)
        kept.insert(place, new)
    else:
        _end_line(kept, len(kept))
        kept.append("\n" + new)
    edited = "".join(kept)
    if not _differ_only_by_store(text, edited, wanted):
        raise ProfileInvalid(
            f"{path} is written in a way that cannot be edited safely: put this into it by hand, in place of "
            f"the store that it names now:\n{new}"
        )
    return edited


def _without_store(lines: list[str]) -> tuple[list[str], int]:
    """The lines that say nothing of the store, and the place among them for one that does."""
    kept: list[str] = []
    place: int | None = None
    first_table: int | None = None
    in_store = False
    loose: list[str] = []
    for line in lines:
        if _HEADER.match(line):
            in_store = bool(_STORE_TABLE.match(line))
            # comments and blank lines before a header belong to what follows
            kept += loose
            loose = []
            if in_store:
                continue
            if first_table is None:
                first_table = len(kept)
        elif in_store:
            loose = [*loose, line] if _NOTHING.match(line) else []
            continue
        elif first_table is None and _STORE_KEY.match(line):
            place = len(kept) if place is None else place
            continue
        kept.append(line)
    kept += loose
    if place is None:
        place = len(kept) if first_table is None else first_table
    return kept, place


def _end_line(lines: list[str], place: int) -> None:
    if place and not lines[place - 1].endswith("\n"):
        lines[place - 1] += "\n"


def _differ_only_by_store(text: str, edited: str, wanted: object) -> bool:
    try:
        before, after = _rest(text), _rest(edited)
        return before == after and tomllib.loads(edited).get("store") == wanted
    except tomllib.TOMLDecodeError:
        return False


def _rest(text: str) -> dict[str, Any]:
    return {key: value for key, value in tomllib.loads(text).items() if key != "store"}


def _replace(path: Path, text: str) -> None:
    """Write a file anew, keeping its rights: whole or not at all, and on the disk."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
