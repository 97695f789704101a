"""A folder for Unix sockets that only its owner may enter, with a path that is short enough for them."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

#: Of the kernel: bytes of a socket's path, without the closing zero.
SOCKET_PATH_LIMIT = 107


def socket_folder(folder: Path, name_bytes: int) -> Path:
    """The folder (0700), made where it is missing; where its path is too long, a short one that it links to.

    name_bytes: how long the names of sockets in it may be. Processes that give the same folder get the same.
    Errors: OSError; PermissionError for a folder that others can enter.
    """
    longest = SOCKET_PATH_LIMIT - name_bytes - 1
    while True:
        if folder.is_symlink():
            place = Path(os.readlink(folder))
            if _is_private(place):
                return place
            # The system removes such folders when it starts; another one takes its place.
            with contextlib.suppress(FileNotFoundError):
                folder.unlink()
        elif len(os.fsencode(folder)) <= longest:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(folder):
                folder.chmod(0o700)
            if not _is_private(folder):
                raise PermissionError(f"{folder} must be a folder that only its owner may enter")
            return folder
        else:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix="grange-", dir=short_place()))
            try:
                folder.symlink_to(made)
            except FileExistsError:  # another process was quicker
                made.rmdir()


def leave_socket_folder(folder: Path) -> None:
    """Remove the short folder that a folder links to, if nobody has a socket in it."""
    if folder.is_symlink():
        with contextlib.suppress(OSError):
            Path(os.readlink(folder)).rmdir()
            folder.unlink()


def short_place(longest: int = 40) -> str:
    """A folder with a path of fewer bytes than longest, in which folders of our own can be made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if 0 < len(os.fsencode(runtime)) < longest and os.access(runtime, os.W_OK):
        return runtime
    return "/tmp"  # noqa: S108 – mkdtemp makes a folder of our own in it


def _is_private(folder: Path) -> bool:
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )
