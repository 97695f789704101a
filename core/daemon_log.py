"""What a daemon and its processes have to say: files below HOME/daemon/HOST, a file for each process.

They are readable by their owner only, and appended to. What grows beyond a bound is kept as NAME.log.1, and
begun anew.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: A longer log is begun anew; one older is kept. Bytes.
LOG_LIMIT = 16 * 1024 * 1024
#: Seconds between two looks of who follows.
FOLLOW_S = 0.25
_SUFFIX = ".log"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line; name: of the process that has written it, like "worker-1"."""

    name: str
    text: str


def begin_logging() -> logging.Logger:
    """What this process has to say goes to standard error, which is its log; times in UTC."""
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger("grange")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return logger


def log_folder(home: Path) -> Path:
    """The folder of this host's logs; several hosts may share a home."""
    return home / "daemon" / socket.gethostname()


def open_log(home: Path, name: str) -> int:
    """A descriptor to append to a log; folder and file are made where they are not there.

    Errors: OSError.
    """
    folder = log_folder(home)
    for one in (folder.parent, folder):
        one.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(folder / (name + _SUFFIX), flags, 0o600)


def log_path(home: Path, name: str) -> Path:
    """Where a log is."""
    return log_folder(home) / (name + _SUFFIX)


def bound_logs(home: Path, limit: int = LOG_LIMIT) -> None:
    """Begin logs anew that have become too long, under the hands of who appends to them."""
    for path in _logs(home):
        with suppress(OSError):
            if path.stat().st_size > limit:
                old = path.with_name(path.name + ".1")
                with suppress(FileNotFoundError):
                    old.unlink()
                with open(os.open(old, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
                    with path.open("rb") as log:
                        shutil.copyfileobj(log, copy)
                os.truncate(path, 0)


def names(home: Path) -> list[str]:
    """The names of all logs, the daemon's own first."""
    return [path.name.removesuffix(_SUFFIX) for path in _logs(home)]


def tail(home: Path, name: str, count: int) -> list[str]:
    """The last lines of a log, without reading all of it; none where there is none."""
    try:
        with log_path(home, name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # Long lines are rare: what is not found in some KB a line is not looked for.
            file.seek(max(0, size - 4096 * (count + 1)))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    return list(deque(lines, maxlen=count))


class Followed:
    """The logs of a home from now on: read() gives what has been appended since."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._places = {path.name.removesuffix(_SUFFIX): path.stat().st_size for path in _logs(home)}
        self._rests: dict[str, bytes] = {}

    def read(self, wanted: Collection[str] = ()) -> list[LogLine]:
        """The whole lines that have come, of the logs of these names; without names of all, new ones too."""
        lines = []
        for name in wanted or names(self._home):
            try:
                with log_path(self._home, name).open("rb") as file:
                    at = self._places.get(name, 0)
                    if file.seek(0, os.SEEK_END) < at:
                        at = 0  # begun anew
                    file.seek(at)
                    block = file.read()
            except FileNotFoundError:
                continue
            self._places[name] = at + len(block)
            *whole, self._rests[name] = (self._rests.get(name, b"") + block).split(b"\n")
            lines += [LogLine(name, line.decode("utf-8", "replace")) for line in whole]
        return lines


def _logs(home: Path) -> list[Path]:
    try:
        found = [path for path in log_folder(home).iterdir() if path.name.endswith(_SUFFIX)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: (path.name != "daemon" + _SUFFIX, len(path.name), path.name))
