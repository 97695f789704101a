"""A process of a daemon, in the hands of the supervisor that has started it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

#: What a process ends with whose database went away: nothing is wrong with the process itself.
DATABASE_AWAY = 75


class Child:
    """One process: started at once, and it ends by itself when the supervisor is gone.

    It holds one end of a pipe, its lifeline, of which only the supervisor has the other. It is the leader of
    a session of its own, so that a Ctrl-C at the terminal reaches the supervisor alone.

    module: what is run, with HOME and these arguments. log: a descriptor for what it has to say, which the
    caller closes; None for where the supervisor's own goes. shared: a descriptor that it gets, too.
    """

    def __init__(
        self,
        module: str,
        home: Path,
        arguments: Sequence[str],
        daemon_id: int,
        log: int | None,
        shared: int | None = None,
    ) -> None:
        reading, self._lifeline = os.pipe2(os.O_CLOEXEC)
        # -P: the folder that it runs in is no place to import from.
        argv = [sys.executable, "-P", "-m", module, str(home), *arguments]
        argv += ["--daemon", str(daemon_id), "--lifeline", str(reading)]
        environment = {**os.environ, "GRANGE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        environment.pop("NOTIFY_SOCKET", None)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,) if shared is None else (reading, shared),
                start_new_session=True,
                cwd=home,
                env=environment,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(reading)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def ended(self) -> int | None:
        """The exit status, -N for signal N; None while it runs."""
        status = self._process.poll()
        if status is not None and self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return status

    def ask(self) -> None:
        """Ask it to bring to an end what it is at."""
        self._process.terminate()

    def kill(self) -> None:
        """End it, and what it has started in its session."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def how_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def is_supervisor(pid: int) -> bool:
    """Whether a process on this machine is the supervisor of some daemon, and not just being killed."""
    words = _command_line(pid)
    by_command = b"--foreground" in words and b"daemon" in words
    return (b"grange.core.daemon" in words or by_command) and not _is_being_killed(pid)


def _is_being_killed(pid: int) -> bool:
    """Whether a SIGKILL is on its way to a process, which on a busy machine lives on for a moment."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", status, re.MULTILINE)
    return any(int(mask, 16) & 1 << signal.SIGKILL - 1 for mask in pending)


def is_process_of(pid: int, module: str, daemon_id: int) -> bool:
    """Whether a process on this machine is one that a daemon has started, and no other of that id."""
    pairs = set(pairwise(_command_line(pid)))
    return (b"-m", module.encode()) in pairs and (b"--daemon", str(daemon_id).encode()) in pairs


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
