"""Fetching: the files of nodes into a folder, for who wants them as files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from grange.core.database import Cursor
from grange.core.errors import InputInvalid, NotFound
from grange.core.file_names import apart, clash
from grange.core.files import checked_path, files_of
from grange.core.json_value import decoded
from grange.repository import BlobLocation, Key
from grange.repository.key import is_key
from grange.repository.quarantine import missing_error

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: What is longer is written piece by piece.
LONG_BYTES = 8 << 20
#: Of a name, in most file systems.
_LONGEST_NAME_BYTES = 255
_AT_ONCE = 10_000
_PART = ".grange-fetch-"

# Nodes and their own files.
_NODES = "SELECT id, kind::text, repository_metadata::text FROM node WHERE id = ANY (%s::bigint[])"

# What processes gave, as far as it has files.
_OUTPUTS = """
SELECT link.source_id, link.label, node.repository_metadata::text
FROM link JOIN node ON node.id = link.target_id
WHERE link.source_id = ANY (%s::bigint[]) AND link.type IN ('create', 'return')
  AND node.repository_metadata <> '{}'
ORDER BY link.source_id, link.label
"""

# The calls of a campaign, each as the last process that it was tried as.
_CALLS = """
SELECT process.ordinal, process.node_id FROM "group" g JOIN process ON process.campaign_id = g.id
WHERE g.type_string = 'campaign' AND g.label = %s AND process.superseded_by IS NULL ORDER BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file to write: where in the folder, which content, whose. Units: size in bytes."""

    path: str
    key: Key
    node_id: int
    size: int


@dataclass(slots=True)
class FetchPlan:
    """What fetching will write. nodes: how many were asked for; missing: files whose content is not there."""

    files: list[Fetched]
    nodes: int
    missing: list[Fetched] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


#: (done, of how many) bytes, and the file that is written
Show = Callable[[int, int, str], None]


def nodes_in_folders(ids: Sequence[int]) -> list[tuple[str, int]]:
    """Where the files of nodes go: of a single one into the folder itself, of several each into its own."""
    unique = list(dict.fromkeys(ids))
    return [("", unique[0])] if len(unique) == 1 else [(f"{node_id}/", node_id) for node_id in unique]


def calls_in_folders(cursor: Cursor, campaign: str) -> list[tuple[str, int]]:
    """Where the files of a campaign's calls go: each into a folder named by its number.

    Errors: NotFound.
    """
    cursor.execute(_CALLS, (campaign,))
    rows = cursor.fetchall()
    if not rows:
        raise NotFound(f"no campaign {campaign!r}, or it has no calls")
    width = len(str(rows[-1][0] or 0))
    return [
        (f"{node_id}/" if ordinal is None else f"{ordinal:0{width}}/", node_id) for ordinal, node_id in rows
    ]


def plan_fetch(
    profile: Profile,
    places: Sequence[tuple[str, int]],
    *,
    only: Collection[str] = (),
    rename: bool = False,
    skip_missing: bool = False,
) -> FetchPlan:
    """Find the files of nodes. A process has its own files below input/, what it gave below output/<name>/.

    places: where the files of each node go, "" or ending in "/"; ids of nodes. only: patterns, as "*.out" or
    "output/retrieved/*"; of files that match none nothing is written. rename: of names that differ only in
    case, the first keeps its own and the others get "~2", "~3" ….

    Errors: NotFound; InputInvalid for a path that climbs out or is too long, and for two that one folder
    cannot hold everywhere; BlobMissing, unless skip_missing.
    """
    found: list[tuple[str, Key, int]] = []
    with profile.transaction() as cursor:
        for at in range(0, len(places), _AT_ONCE):
            found += _files(cursor, places[at : at + _AT_ONCE], only)
        rows = _rows(cursor, profile, {key for _, key, _ in found})
    names = _checked([path for path, _, _ in found], rename)
    files = [
        Fetched(name, key, node_id, rows[key].size if key in rows else 0)
        for name, (_, key, node_id) in zip(names, found, strict=True)
    ]
    missing = [file for file in files if file.key not in rows]
    if missing and not skip_missing:
        raise missing_error(profile.repository.store, list(dict.fromkeys(file.key for file in missing)))
    # What lies together is read together.
    files = [file for file in files if file.key in rows]
    files.sort(key=lambda file: (rows[file.key].object_name, rows[file.key].offset))
    return FetchPlan(files, len(places), missing)


def fetch(
    profile: Profile,
    plan: FetchPlan,
    folder: Path,
    *,
    overwrite: bool = False,
    show: Show = lambda done, total, note: None,
) -> int:
    """Write the files of a plan; says how many were there already, with the same content.

    Nothing is written if anything is in the way: a file with another content (unless overwrite), a symbolic
    link or a file where a folder has to be. Each file gets its name when it is whole; symbolic links that
    somebody makes meanwhile are not followed. Stopped in between, it is simply called again.

    Units: two windows of 64 MiB are in memory, whatever the files' sizes.
    Errors: InputInvalid for what is in the way; OSError; BlobCorrupt, BlobMissing, StoreUnavailable.
    """
    todo, there = _in_the_way(folder, plan.files, overwrite)
    total = plan.size
    done = total - sum(file.size for file in todo)
    show(done, total, "")
    if not todo:
        return there
    folder.mkdir(parents=True, exist_ok=True)
    with _Target(folder, overwrite) as target:
        for file, pieces in _contents(profile, todo):
            target.write(file.path, pieces)
            done += file.size
            show(done, total, file.path)
    return there


def _files(
    cursor: Cursor, places: Sequence[tuple[str, int]], only: Collection[str]
) -> Iterator[tuple[str, Key, int]]:
    ids = [node_id for _, node_id in places]
    cursor.execute(_NODES, (ids,))
    nodes = {row[0]: row[1:] for row in cursor.fetchall()}
    missing = [str(node_id) for node_id in ids if node_id not in nodes]
    if missing:
        raise NotFound(f"no node has the id {', '.join(missing[:10])}")
    cursor.execute(_OUTPUTS, ([node_id for node_id, (kind, _) in nodes.items() if kind != "data"],))
    outputs: dict[int, list[tuple[str, str]]] = {}
    for node_id, label, metadata in cursor.fetchall():
        outputs.setdefault(node_id, []).append((label, metadata))
    for prefix, node_id in places:
        kind, metadata = nodes[node_id]
        parts = [("" if kind == "data" else "input/", metadata)]
        parts += [(f"output/{label}/", given) for label, given in outputs.get(node_id, ())]
        for inner, text in parts:
            if text == "{}":
                continue
            for path, key in files_of(decoded(text)).items():
                # Nodes of an archive may have been stored by somebody who did not check.
                checked_path(path, f"node {node_id}: files")
                if not only or any(_matches(inner + path, pattern) for pattern in only):
                    yield prefix + inner + path, key, node_id


def _matches(path: str, pattern: str) -> bool:
    """Whether a pattern means a path: a whole one where the pattern has a "/", else its last part."""
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


def _rows(cursor: Cursor, profile: Profile, keys: Collection[Key]) -> dict[Key, BlobLocation]:
    index = profile.index(cursor)
    wanted = [key for key in keys if is_key(key)]
    rows: dict[Key, BlobLocation] = {}
    for at in range(0, len(wanted), _AT_ONCE):
        rows |= index.find(wanted[at : at + _AT_ONCE])
    return rows


def _checked(paths: list[str], rename: bool) -> list[str]:
    for path in paths:
        if any(len(os.fsencode(part)) > _LONGEST_NAME_BYTES for part in path.split("/")):
            raise InputInvalid("files", path, f"names of at most {_LONGEST_NAME_BYTES} bytes")
    if rename:
        return list(apart(paths).values())
    found = clash.__wrapped__(tuple(paths))
    if found is not None:
        one, other = found
        raise InputInvalid(
            "files",
            other,
            f"names that differ in more than case, and none both of a file and of a folder: {one!r} is there "
            "(--rename writes them under different names)",
        )
    return paths


# ---------------------------------------------------------------- writing


def _contents(profile: Profile, files: Sequence[Fetched]) -> Iterator[tuple[Fetched, Iterable[bytes]]]:
    from grange.core.profile import ReadingIndex

    index = ReadingIndex(profile)
    short = [file for file in files if file.size <= LONG_BYTES]
    by_key: dict[Key, list[Fetched]] = {}
    for file in short:
        by_key.setdefault(file.key, []).append(file)
    for key, content in zip(by_key, profile.read_each(list(by_key)), strict=True):
        for file in by_key[key]:
            yield file, [content]
    for file in files:
        if file.size > LONG_BYTES:
            yield file, profile.repository.stream(file.key, index)


def _in_the_way(folder: Path, files: Sequence[Fetched], overwrite: bool) -> tuple[list[Fetched], int]:
    """The files that have to be written, and how many need not be.

    Errors: InputInvalid for whatever is in the way.
    """
    if not folder.exists():
        if folder.is_symlink():
            raise InputInvalid("folder", str(folder), "a folder, not a link to what is not there")
        return list(files), 0
    if not folder.is_dir():
        raise InputInvalid("folder", str(folder), "a folder")
    folders: dict[str, bool] = {"": True}
    todo = []
    there = 0
    for file in files:
        if not _folder_is_there(folder, file.path.rpartition("/")[0], folders):
            todo.append(file)
            continue
        try:
            status = os.lstat(folder / file.path)
        except FileNotFoundError:
            todo.append(file)
            continue
        if not stat.S_ISREG(status.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no file"
            raise InputInvalid("folder", str(folder / file.path), f"nothing there but files; it is {what}")
        if status.st_size == file.size and _has_content(folder / file.path, file.key):
            there += 1
        elif overwrite:
            todo.append(file)
        else:
            raise InputInvalid(
                "folder",
                str(folder / file.path),
                "a folder in which nothing is in the way; the file there has another content (--overwrite)",
            )
    return todo, there


def _folder_is_there(root: Path, path: str, known: dict[str, bool]) -> bool:
    """Whether a folder exists below the root; nothing on the way may be a link or a file."""
    if path not in known:
        above = path.rpartition("/")[0]
        known[path] = _folder_is_there(root, above, known) and _is_folder(root / path)
    return known[path]


def _is_folder(path: Path) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
        raise InputInvalid("folder", str(path), f"a folder there, or nothing; it is {what}")
    return True


def _has_content(path: Path, key: Key) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == key


class _Target:
    """A folder that files are written into, and nowhere else, whatever links somebody makes in it."""

    def __init__(self, root: Path, overwrite: bool) -> None:
        self._overwrite = overwrite
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path: list[str] = []
        self._open: list[int] = []

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(0)
        os.close(self._root)

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Make a file; it has its name when all of it is there. Errors: OSError; what the pieces raise."""
        *parents, name = path.split("/")
        folder = self._enter(parents)
        part = _PART + os.urandom(8).hex()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(part, flags, 0o666, dir_fd=folder)
        try:
            with os.fdopen(file, "wb", buffering=0) as out:
                for piece in pieces:
                    out.write(piece)
            self._name(folder, part, name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)

    def _name(self, folder: int, part: str, name: str, path: str) -> None:
        if self._overwrite:
            os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        try:
            os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            raise InputInvalid("folder", path, "nothing of that name; it was made meanwhile") from None
        except OSError as error:  # a file system without links
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _enter(self, parents: list[str]) -> int:
        same = 0
        while same < min(len(parents), len(self._path)) and parents[same] == self._path[same]:
            same += 1
        self._leave(same)
        for name in parents[same:]:
            folder = self._open[-1] if self._open else self._root
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._open.append(os.open(name, flags, dir_fd=folder))
            self._path.append(name)
        return self._open[-1] if self._open else self._root

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop())
            self._path.pop()
