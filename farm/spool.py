"""The spool: the folder through which chunks go out and result packs come back.

SPOOL/run-<time>-<random>/       one executor's life; 0700
    lock                         flocked by the executor and, inherited, by its runners
    runners                      the process ids of its runners
    log                          what the runners had to say that belongs to no task
    <chunk>/                     see farm.runner
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grange.farm import runner
from grange.farm.errors import SpoolUnwritable

#: How long the runners of an executor that died may take to end before they are killed.
PATIENCE_S = 5.0
#: HyperQueue's runners do not hold the lock; they end with their worker, within this time.
STRAYS_PATIENCE_S = 1.5


@contextmanager
def spool_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a folder that cannot be written into SpoolUnwritable, which names it."""
    try:
        yield
    except runner.SpoolFailed as problem:
        raise SpoolUnwritable(f"the spool folder {folder} cannot be written: {problem}") from problem
    except OSError as problem:
        if problem.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
            errno.ENOTDIR,
        ):
            raise
        hint = {
            errno.ENOSPC: "; free space there, or choose another folder",
            errno.EDQUOT: "; free space there, or choose another folder",
        }.get(problem.errno, "; choose a folder that you may write")
        raise SpoolUnwritable(
            f"the spool folder {folder} cannot be written: {problem.strerror}{hint}"
        ) from problem


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since the boot; None if there is none. With the pid, it names
    one process for ever."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Run:
    """One executor's folder in the spool, locked as long as it or one of its runners lives."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.lock_fd = lock_fd
        self._chunks = 0

    @classmethod
    def create(cls, root: Path) -> Run:
        """A new run below the root, which is made if it is missing. Errors: SpoolUnwritable."""
        with spool_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Locked before it has its name: nobody takes it for the folder of a dead executor.
            name = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(4)}"
            hidden = root / f"new-{name}"
            hidden.mkdir(mode=0o700)
            lock_fd = cls._lock(hidden)
            assert lock_fd is not None
            path = root / f"run-{name}"
            hidden.rename(path)
            return cls(path, lock_fd)

    @classmethod
    def dead(cls, root: Path) -> list[Run]:
        """The runs below the root whose executor has died, locked by us; their runners have ended."""
        if not root.is_dir():
            return []
        with spool_errors(root):
            runs = (
                cls._claim(path) for path in sorted(root.iterdir()) if path.name.startswith(("run-", "new-"))
            )
            return [run for run in runs if run is not None]

    @classmethod
    def _claim(cls, path: Path) -> Run | None:
        until = time.monotonic() + PATIENCE_S
        killed = False
        while True:
            try:
                lock_fd = cls._lock(path)
            except FileNotFoundError:
                return None
            if lock_fd is not None:
                runner.kill_strays(str(path), STRAYS_PATIENCE_S)
                return cls(path, lock_fd)
            if cls._owner_lives(path):
                return None
            if time.monotonic() > until:
                if killed:
                    # Some child of the dead executor, none of ours, holds it: the run waits for another time.
                    return None
                cls._kill_runners(path)
                runner.kill_strays(str(path))
                until, killed = until + PATIENCE_S, True
            time.sleep(0.02)

    @staticmethod
    def _lock(path: Path) -> int | None:
        """Lock a run's folder; None if somebody holds it."""
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        owner = {"host": runner.HOST, "pid": os.getpid(), "start": start_time(os.getpid())}
        os.pwrite(fd, json.dumps(owner).encode().ljust(200), 0)
        return fd

    @staticmethod
    def _owner_lives(path: Path) -> bool:
        try:
            owner = json.loads((path / "lock").read_bytes())
        except (OSError, ValueError):
            return True
        if owner["host"] != runner.HOST:
            return True
        return owner["start"] is not None and start_time(owner["pid"]) == owner["start"]

    @staticmethod
    def _kill_runners(path: Path) -> None:
        try:
            lines = (path / "runners").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            pid, start = map(int, line.split())
            if start_time(pid) == start:
                os.kill(pid, signal.SIGKILL)

    def note_runner(self, pid: int) -> None:
        """Remember a runner, so that a later executor can end it if it will not end by itself."""
        with spool_errors(self.path), open(self.path / "runners", "a") as file:
            file.write(f"{pid} {start_time(pid) or 0}\n")

    @property
    def scratch_name(self) -> str:
        """The name of the folder in node-local scratch where the tasks of this run work."""
        return f"grange-{self.path.name}"

    def new_chunk(self) -> Path:
        """The folder of a new chunk."""
        self._chunks += 1
        path = self.path / f"chunk-{self._chunks:06d}"
        with spool_errors(self.path):
            path.mkdir(mode=0o700)
        return path

    def skip_chunk(self, folder: Path) -> None:
        """A chunk of an earlier life keeps its name: new ones come after it."""
        self._chunks = max(self._chunks, int(folder.name[6:]))

    def packs(self) -> list[Path]:
        """All result packs of a dead run, after finishing what its runners had begun to write."""
        found = []
        with spool_errors(self.path):
            for folder in sorted(self.path.iterdir()):
                if folder.name.startswith("chunk-") and folder.is_dir():
                    runner.settle_parts(str(folder))
                    found += sorted(folder.glob("result-*.zip"), key=lambda pack: int(pack.stem[7:]))
        return found

    def remove(self) -> None:
        """Remove the folder and the scratch of this host; ends the lock."""
        scratch = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()) / self.scratch_name
        if scratch.is_dir() and not scratch.is_symlink():
            runner.remove_tree(str(scratch))
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Give up the lock; the folder stays for whoever recovers it."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1
