"""Starting, stopping and asking the daemon of a profile, under the names that AiiDA gives it."""

from __future__ import annotations

import os
import select
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grange.core import daemon_log, daemon_rows, profile_lock
from grange.core.daemon_child import is_supervisor
from grange.core.daemon_rows import DaemonRow, PartRow
from grange.core.errors import (
    DaemonException,
    DaemonNotRunningException,
    DaemonTimeoutException,
    ProfileLocked,
)
from grange.core.profile import Profile

_LOG = "daemon"
#: Seconds in which a supervisor whose session was lost has another, or PostgreSQL notices that it is gone.
RETURNS_S = 5.0


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """How a daemon stands. workers, dispatchers: those of its processes that have come up and live."""

    daemon: DaemonRow
    workers: tuple[PartRow, ...]
    dispatchers: tuple[PartRow, ...]

    @property
    def is_whole(self) -> bool:
        """Whether as many workers are there as are wanted."""
        return len(self.workers) == self.daemon.workers_wanted


class DaemonClient:
    """The daemon of an open profile on this host.

        client = gr.DaemonClient(profile)
        client.start_daemon(2)
        client.get_status().workers
        client.stop_daemon(wait=True)

    host, home: of another daemon of the same database; None: this host, and the home of the profile.
    Only starting it, and its logs, are bound to its host: wishes are written into the database. A timeout is
    in seconds; None: `timeout` of [daemon] in profile.toml.
    """

    def __init__(self, profile: Profile, *, host: str | None = None, home: str | None = None) -> None:
        self.profile = profile
        self.host = host or socket.gethostname()
        self.home = home or os.path.realpath(profile.home)

    def __repr__(self) -> str:
        return f"DaemonClient({self.profile!r}, host={self.host!r})"

    # ------------------------------------------------------------ asking

    @property
    def is_daemon_running(self) -> bool:
        """Whether it runs: whether a living session holds its lock."""
        return self._found() is not None

    def get_daemon_pid(self) -> int | None:
        """The id of the supervisor's process; None where none runs."""
        found = self._found()
        return None if found is None else found.pid

    def get_status(self) -> DaemonStatus:
        """How it stands, with its processes. Errors: DaemonNotRunningException."""
        found = self._running()
        with self.profile.transaction() as cursor:
            parts = daemon_rows.find_parts(cursor, [found.id])
        return _status(found, parts)

    def get_statuses(self) -> list[DaemonStatus]:
        """How all daemons of the database stand, of whatever host and home; oldest first."""
        with self.profile.transaction() as cursor:
            found = daemon_rows.find_alive(cursor)
            parts = daemon_rows.find_parts(cursor, [row.id for row in found])
        return [_status(row, parts) for row in found]

    def get_worker_info(self) -> dict[int, PartRow]:
        """The workers, by process id. Errors: DaemonNotRunningException."""
        return {part.pid: part for part in self.get_status().workers}

    @property
    def daemon_log_file(self) -> Path:
        """What the supervisor has to say; what its processes say lies beside it."""
        return daemon_log.log_path(self.profile.home, _LOG)

    # ------------------------------------------------------------ starting and stopping

    def start_daemon(
        self,
        number_workers: int | None = None,
        *,
        foreground: bool = False,
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Start it, with so many workers (None: default_workers of [daemon] in profile.toml).

        foreground: be the daemon until it ends, in this process and its main thread; for systemd and
        containers. wait: until all workers have come up.

        Errors: DaemonException where it runs already or cannot begin; ProfileLocked; DaemonTimeoutException.
        """
        deadline_s = self._deadline_s(timeout)
        if self.host != socket.gethostname():
            raise DaemonException(
                f"a daemon is started on its own host: `grange daemon start` on {self.host}"
            )
        self._refuse_crowd(number_workers)
        if foreground:
            from grange.core.daemon import supervise

            supervise(self.profile.home, number_workers, foreground=True)
            return
        with self.profile.transaction() as cursor:
            locked = profile_lock.find(cursor)
        if locked is not None:
            raise ProfileLocked(f"the profile is {locked}")
        until_s = time.monotonic() + RETURNS_S
        while (running := self._found()) is not None:
            # That of one that was killed: PostgreSQL notices in a moment.
            if is_supervisor(running.pid) or time.monotonic() >= until_s:
                raise DaemonException(f"the daemon runs already, as process {running.pid}")
            time.sleep(0.05)
        self._spawn(number_workers, deadline_s)
        if wait:
            self._wait_until(lambda: self.get_status().is_whole, deadline_s, "its workers to come up")

    def stop_daemon(self, wait: bool = True, timeout: float | None = None) -> None:
        """Let its processes bring to an end what they are at, then end; what is left is gone on with later.

        Errors: DaemonNotRunningException; DaemonTimeoutException, where it takes longer.
        """
        deadline_s = self._deadline_s(timeout)
        found = self._running()
        with self.profile.transaction() as cursor:
            daemon_rows.ask_to_stop(cursor, [found.id])
        if wait:
            self._wait_until(
                lambda: self._is_gone(found.id), deadline_s, f"the daemon to stop (process {found.pid})"
            )

    def restart_daemon(
        self, number_workers: int | None = None, *, wait: bool = True, timeout: float | None = None
    ) -> None:
        """Stop and start it, with new code, in the same process: systemd or a container need not know.

        number_workers: None: as many as before.
        Errors: DaemonNotRunningException; DaemonTimeoutException, also where it does not come back.
        """
        deadline_s = self._deadline_s(timeout)
        self._refuse_crowd(number_workers)
        found = self._running()
        with self.profile.transaction() as cursor:
            daemon_rows.ask_to_restart(cursor, [found.id], number_workers)
        if not wait:
            return
        self._wait_until(lambda: self._is_gone(found.id), deadline_s, "the daemon to stop")

        def is_there() -> bool:
            try:
                status = self.get_status()
            except DaemonNotRunningException:
                return False
            return status.daemon.id != found.id and status.is_whole

        self._wait_until(is_there, deadline_s, "the daemon to begin anew")

    restart = restart_daemon

    def increase_workers(self, number: int = 1, *, wait: bool = False, timeout: float | None = None) -> int:
        """So many more workers; returns how many there are to be.

        Errors: DaemonNotRunningException; DaemonTimeoutException.
        """
        deadline_s = self._deadline_s(timeout)
        found = self._running()
        self._refuse_crowd(found.workers_wanted + max(0, number))
        with self.profile.transaction() as cursor:
            wanted = daemon_rows.add_workers(cursor, found.id, number)
        if wait:
            self._wait_until(lambda: self.get_status().is_whole, deadline_s, "the workers")
        return wanted

    def decrease_workers(self, number: int = 1, *, wait: bool = False, timeout: float | None = None) -> int:
        """So many fewer workers, at most all; those that end give back what they hold. Returns how many stay.

        Errors: as increase_workers.
        """
        return self.increase_workers(-number, wait=wait, timeout=timeout)

    # ------------------------------------------------------------ within

    def _refuse_crowd(self, workers: int | None) -> None:
        """Errors: DaemonException for less than none, and for more than PostgreSQL has connections for."""
        if workers is None:
            return
        with self.profile.transaction() as cursor:
            most = daemon_rows.most_workers(cursor)
        if not 0 <= workers <= most:
            raise DaemonException(
                f"{workers} workers: expected 0 to {most}, half of what PostgreSQL takes in connections "
                "(its setting max_connections)"
            )

    def _found(self) -> DaemonRow | None:
        """The daemon; one that has just lost its session is given the time to take its lock again."""
        until_s = time.monotonic() + RETURNS_S
        while True:
            with self.profile.transaction() as cursor:
                found = daemon_rows.find_alive(cursor, self.host, self.home)
                last = None if found else daemon_rows.find_last(cursor, self.host, self.home)
            if found:
                return found[0]
            if last is None or last.stopped_at is not None or time.monotonic() >= until_s:
                return None
            if last.host != socket.gethostname() or not is_supervisor(last.pid):
                return None
            time.sleep(0.05)

    def _running(self) -> DaemonRow:
        found = self._found()
        if found is None:
            raise self._none()
        return found

    def _none(self) -> DaemonNotRunningException:
        with self.profile.transaction() as cursor:
            last = daemon_rows.find_last(cursor, self.host, self.home)
        said = f"no daemon runs for {self.profile.home} on {self.host}"
        if last is not None and last.stopped_at is None:
            said += f"; the last one, process {last.pid}, was killed"
        return DaemonNotRunningException(said)

    def _is_gone(self, daemon_id: int) -> bool:
        with self.profile.transaction() as cursor:
            return all(row.id != daemon_id for row in daemon_rows.find_alive(cursor, self.host, self.home))

    def _spawn(self, workers: int | None, deadline_s: float) -> None:
        """Start the supervisor, which belongs to nobody and outlives us; wait until it has begun."""
        log = daemon_log.open_log(self.profile.home, _LOG)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        argv = [
            sys.executable,
            "-P",
            "-m",
            "grange.core.daemon",
            str(self.profile.home),
            "--tell",
            str(writing),
        ]
        if workers is not None:
            argv += ["--workers", str(workers)]
        try:
            try:
                # By way of a shell that ends at once: the daemon is nobody's child and leaves no zombie.
                subprocess.run(
                    ("/bin/sh", "-c", f"{shlex.join(argv)} &"),
                    cwd=self.profile.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writing,),
                    start_new_session=True,
                    umask=0o077,
                    check=True,
                )
            finally:
                os.close(writing)
                os.close(log)
            said = _heard(reading, deadline_s)
        finally:
            os.close(reading)
        if said is None:
            raise DaemonTimeoutException(f"the daemon has not begun in time: {self.daemon_log_file}")
        if said != "ready":
            lines = daemon_log.tail(self.profile.home, _LOG, 3)
            raise DaemonException(f"the daemon could not begin: {said or ' / '.join(lines)}")

    def _deadline_s(self, timeout: float | None) -> float:
        return time.monotonic() + (self.profile.config.daemon.timeout if timeout is None else timeout)

    def _wait_until(self, is_so: Callable[[], bool], deadline_s: float, what: str) -> None:
        pause_s = 0.02
        while not is_so():
            if time.monotonic() >= deadline_s:
                raise DaemonTimeoutException(
                    f"waited too long for {what}; it may come yet, {self.daemon_log_file} says how far it is"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.25)


def _heard(descriptor: int, deadline_s: float) -> str | None:
    """What was written, to the end of it; None where nothing has come in time."""
    said = b""
    while (left_s := deadline_s - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left_s)[0]:
            break
        block = os.read(descriptor, 4096)
        if not block:
            return said.decode("utf-8", "replace")
        said += block
    return None


def _status(row: DaemonRow, parts: list[PartRow]) -> DaemonStatus:
    own = [part for part in parts if part.daemon_id == row.id]
    return DaemonStatus(
        row,
        tuple(part for part in own if part.role == "worker"),
        tuple(part for part in own if part.role == "dispatcher"),
    )
