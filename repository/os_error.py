"""What the operating system refuses, said in the words of the repository."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from grange.repository.errors import StoreError, StoreFull, StoreReadOnly, StoreUnavailable

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_PASSING = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOENT,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


@contextmanager
def translated(action: Literal["read", "write", "delete"], path: Path) -> Iterator[None]:
    """Raise errors of the operating system as errors of the store."""
    try:
        yield
    except OSError as error:
        raise store_error(error, action, path) from error


def store_error(error: OSError, action: Literal["read", "write", "delete"], path: Path) -> StoreError:
    """The error of the store for an error of the operating system, met at a path."""
    what = f"cannot {action} {path}: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreFull(f"{what}; free some space, then do the same again")
    if error.errno in _FORBIDDEN:
        if action == "read":
            return StoreError(f"{what}; give this user the right to read it")
        return StoreReadOnly(f"{what}; give this user the right to write there, or mount it for writing")
    if error.errno in _PASSING:
        return StoreUnavailable(f"{what}; if it lasts, see whether the folder is still there and mounted")
    return StoreError(what)
