"""Ends an object store when nobody has a shared lock on a folder any more: watcher.py FOLDER PLACE [--rm]

So it ends with the last of those who use it, however these end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from pathlib import Path

import layout
import object_store


def main() -> int:
    folder, place, remove = Path(sys.argv[1]), sys.argv[2], "--rm" in sys.argv
    lock = os.open(place, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    store = layout.read(folder)
    if store is not None:
        with object_store.locked(folder):
            object_store.end(store, remove=remove)
    # Who has waited for the lock gets that of a folder that is gone, and sees so.
    with contextlib.suppress(OSError):
        os.rmdir(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
