"""Count what is created below a folder, also what is gone again at once; by inotify, standard library only.

    watch_files.py FOLDER

Says "ready", waits until its input ends, and prints {"files": …, "folders": …, "renamed": …, "removed": …}.
A folder is watched from a moment after it was made: what came into it before is found by looking. So what is
made and removed again within that moment (less than a millisecond) is the one thing that may be missed.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import struct
import sys

CREATE, DELETE, MOVED_FROM, MOVED_TO = 0x100, 0x200, 0x40, 0x80
IS_FOLDER, OVERFLOW, IGNORED = 0x40000000, 0x4000, 0x8000
EVENT = struct.Struct("iIII")


class Watch:
    """Watches a tree. known: the names that are in each folder, by the folder's watch number."""

    def __init__(self, root: str) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._paths: dict[int, str] = {}
        self._known: dict[int, set[str]] = {}
        self.counts = {"files": 0, "folders": 0, "renamed": 0, "removed": 0}
        self._add(root, count=False)

    def _add(self, path: str, *, count: bool) -> None:
        number = self._libc.inotify_add_watch(
            self.fd, os.fsencode(path), CREATE | DELETE | MOVED_FROM | MOVED_TO
        )
        if number < 0:
            if ctypes.get_errno() == 2:  # gone again
                return
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
        self._paths[number] = path
        known = self._known[number] = set()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    folder = entry.is_dir(follow_symlinks=False)
                    self._found(known, entry.name, folder=folder, count=count)
                    if folder:
                        self._add(entry.path, count=count)
        except FileNotFoundError:
            return

    def _found(self, known: set[str], name: str, *, folder: bool, count: bool = True) -> bool:
        if name in known:
            return False
        known.add(name)
        self.counts["folders" if folder else "files"] += count
        return True

    def take(self) -> None:
        """Take in what has happened."""
        try:
            data = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return
        position = 0
        while position < len(data):
            number, mask, _, length = EVENT.unpack_from(data, position)
            position += EVENT.size
            name = os.fsdecode(data[position : position + length].rstrip(b"\0"))
            position += length
            if mask & OVERFLOW:
                raise SystemExit("more happened than inotify keeps: the counts would be wrong")
            if mask & IGNORED:
                self._paths.pop(number, None)
                self._known.pop(number, None)
                continue
            known, folder = self._known.get(number), bool(mask & IS_FOLDER)
            if known is None:
                continue
            if mask & CREATE:
                if self._found(known, name, folder=folder) and folder:
                    self._add(os.path.join(self._paths[number], name), count=True)
            elif mask & MOVED_TO:
                # It has been counted when it was made, under its other name.
                known.add(name)
                self.counts["renamed"] += 1
            elif mask & MOVED_FROM:
                self._found(known, name, folder=folder)
                known.discard(name)
            elif mask & DELETE:
                self._found(known, name, folder=folder)
                known.discard(name)
                self.counts["removed"] += 1


def main() -> None:
    watch = Watch(os.path.abspath(sys.argv[1]))
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([watch.fd, sys.stdin], [], [])
        if watch.fd in ready:
            watch.take()
        elif sys.stdin in ready:
            break
    print(json.dumps(watch.counts))


if __name__ == "__main__":
    main()
