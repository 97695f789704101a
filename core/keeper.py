"""Stops an embedded PostgreSQL that nobody uses any more.

Run by file path as `python -I -S keeper.py FOLDER LOCK IDLE_S STOP_ARGV…`, detached: it has to outlive
whoever started it, and must cost little, so it is one file that imports the standard library alone. LOCK
is the number of an inherited descriptor that holds FOLDER/keeper.lock: it says that a keeper is there.

Users of the server hold a shared flock on FOLDER/users.lock while they live; the kernel drops it when
they die in whatever way. The keeper asks for the exclusive lock now and then. While it holds it, a new
user waits, so the server is never stopped under somebody's hands.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time

#: A longer log is kept as server.log.1 and begun anew. Bytes.
LOG_LIMIT = 4 * 1024 * 1024


def keep(folder: str, lock: int, idle_s: float, stop: list[str]) -> None:
    """Wait until the server has been without users for idle_s seconds, then stop it."""
    try:
        users = os.open(os.path.join(folder, "users.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    pause_s = min(5.0, idle_s / 4)
    seen_busy = time.time()
    while True:
        time.sleep(pause_s)
        if not _is_at(users, folder):
            return
        _bound_log(os.path.join(folder, "data", "..", "server.log"))
        if not _try_lock(users):
            seen_busy = time.time()
            continue
        # Whoever opened and closed between two looks has touched the lock file.
        idle_since = max(seen_busy, os.fstat(users).st_mtime)
        running = os.path.exists(os.path.join(folder, "data", "postmaster.pid"))
        # A clock that was set back must not keep the server for ever.
        if running and 0 <= time.time() - idle_since < idle_s:
            fcntl.flock(users, fcntl.LOCK_UN)
            continue
        if running:
            subprocess.run(stop, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, check=False)
        # In this order: whoever gets the users' lock next must see that no keeper is left.
        os.close(lock)
        os.close(users)
        return


def _is_at(users: int, folder: str) -> bool:
    """Whether the lock is still the folder's: what was removed and made anew has a keeper of its own."""
    try:
        return os.path.samestat(os.fstat(users), os.stat(os.path.join(folder, "users.lock")))
    except OSError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bound_log(path: str) -> None:
    """Keep at most two logs' worth; the server appends, so cutting it short is safe."""
    try:
        if os.path.getsize(path) > LOG_LIMIT:
            shutil.copyfile(path, path + ".1")
            os.truncate(path, 0)
    except OSError:
        return


if __name__ == "__main__":
    keep(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
