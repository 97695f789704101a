"""The stower: puts files of a task where they are to stay on its computer.

Standard library only, Python 3.9 or newer: it travels with runner.py, which lies beside it and loads it for
tasks that stash files.

What is there under its name is complete, and on the disk: it is made beside that, as .<name>.part, and then
renamed. Each try of a task has a name of its own, so that no other try, nor a runner that wakes late, can
change what a result tells of. What a killed runner has made and nobody knows of costs room and nothing else.
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import IO, Any, Callable, Dict, List, Optional

Json = Dict[str, Any]
#: Files are copied in pieces; after each it is said that we are alive. Bytes.
PIECE = 4 << 20
TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def stow(paths: List[str], spec: Json, name: str, alive: Callable[[], None]) -> Json:
    """Put files of the working directory into spec["to"], under a name of their own.

    alive: called now and then. Returns path, mode, patterns and count. Errors: OSError, ValueError.
    """
    base = folder_of(spec["to"])
    os.makedirs(base, exist_ok=True)
    mode = spec["mode"]
    target = os.path.join(base, name if mode == "copy" else "%s.%s" % (name, mode))
    part = os.path.join(base, ".%s.part" % os.path.basename(target))
    try:
        if mode == "copy":
            copy_all(paths, part, alive)
        else:
            archive(paths, part, TAR_MODES[mode], alive)
        os.rename(part, target)
        sync_folder(base)
    except BaseException:
        if mode == "copy":
            shutil.rmtree(part, ignore_errors=True)
        elif os.path.exists(part):
            os.unlink(part)
        raise
    return {"path": target, "mode": mode, "patterns": spec["paths"], "count": len(paths)}


def folder_of(to: str) -> str:
    """The folder that is meant, with ~ and $NAME filled in. Errors: ValueError."""
    path = os.path.expanduser(os.path.expandvars(to))
    if "$" in path:
        raise ValueError("%r names a variable that is not set where the task ran" % to)
    if not path.startswith("/"):
        raise ValueError("%r is no absolute path where the task ran" % to)
    return os.path.normpath(path)


def copy_all(paths: List[str], target: str, alive: Callable[[], None]) -> None:
    folders = {target}
    os.mkdir(target)
    for path in paths:
        place = os.path.join(target, path)
        folder = os.path.dirname(place)
        os.makedirs(folder, exist_ok=True)
        while folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
        copy(path, place, alive)
    for folder in folders:
        sync_folder(folder)


def copy(path: str, place: str, alive: Callable[[], None]) -> None:
    """Copy a file; where it costs nothing it is the same file, as the task's directory goes."""
    if not os.path.islink(path):
        try:
            os.link(path, place)
        except OSError as problem:
            if problem.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise
        else:
            with open(place, "rb") as file:
                os.fsync(file.fileno())
            return
    with open(path, "rb") as source, open(place, "xb") as target:
        os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
        for piece in iter(lambda: source.read(PIECE), b""):
            target.write(piece)
            alive()
        target.flush()
        os.fsync(target.fileno())


class Alive:
    """A file to be read that says that we are alive."""

    def __init__(self, file: IO[bytes], alive: Callable[[], None]) -> None:
        self._file = file
        self._alive = alive

    def read(self, size: Optional[int] = -1) -> bytes:
        self._alive()
        return self._file.read(-1 if size is None else size)


def archive(paths: List[str], target: str, mode: str, alive: Callable[[], None]) -> None:
    import tarfile

    with open(target, "xb") as file:
        with tarfile.open(fileobj=file, mode=mode, dereference=True) as tar:  # type: ignore[call-overload]
            for path in paths:
                member = tar.gettarinfo(path, path)
                with open(path, "rb") as content:
                    tar.addfile(member, Alive(content, alive))
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
