"""The processes of a daemon, as its supervisor has them: what each logs to, and what each worker is at."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from grange.core.daemon_child import Child
from grange.core.daemon_log import open_log
from grange.core.supervision import Part
from grange.core.whereabouts import Watched

WORK = "grange.core.work"
DISPATCH = "grange.core.dispatch"


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended. at: the process whose code a worker ran then, 0 for none."""

    part: Part
    pid: int
    status: int
    at: int


class Children:
    """All processes that a supervisor has started and not yet reaped."""

    def __init__(self, home: Path, *, foreground: bool) -> None:
        self._home = home
        self._foreground = foreground
        self._children: dict[Part, Child] = {}
        self._log_names: dict[Part, str] = {}
        self._watched: dict[Part, Watched] = {}

    def start(self, part: Part, daemon_id: int) -> Child:
        """Start one. Errors: OSError."""
        name = self._free_log_name(part)
        with ExitStack() as always, ExitStack() as if_refused:
            log = watched = shared = None
            if not self._foreground:
                log = open_log(self._home, name)
                always.callback(os.close, log)
            module, arguments = DISPATCH, [str(part.number)]
            if part.role == "worker":
                watched = Watched()
                if_refused.callback(watched.close)
                shared = watched.descriptor
                module, arguments = WORK, ["--at", str(shared)]
            child = Child(module, self._home, arguments, daemon_id, log, shared)
            if_refused.pop_all()
        if watched is not None:
            self._watched[part] = watched
        self._children[part] = child
        self._log_names[part] = name
        return child

    def ask(self, part: Part) -> None:
        """Ask one to bring to an end what it is at."""
        self._children[part].ask()

    def kill(self, part: Part) -> None:
        """End one."""
        self._children[part].kill()

    def log_name(self, part: Part) -> str:
        """What its log is called."""
        return self._log_names[part]

    def reap(self) -> list[Ended]:
        """Those that have ended since the last call."""
        found = []
        for part, child in list(self._children.items()):
            status = child.ended()
            if status is None:
                continue
            watched = self._watched.pop(part, None)
            found.append(Ended(part, child.pid, status, 0 if watched is None else watched.process_id))
            if watched is not None:
                watched.close()
            del self._children[part], self._log_names[part]
        return found

    def kept(self, now_s: float) -> list[tuple[Part, int]]:
        """Workers that the code of one process keeps from all others, and that process; told once."""
        found = [(part, watched.kept_by(now_s)) for part, watched in self._watched.items()]
        return [(part, process_id) for part, process_id in found if process_id]

    def at_for(self, now_s: float, seconds: float) -> dict[Part, int]:
        """Workers that have been at the code of one process for so many seconds, and that process."""
        found = {part: watched.at_for(now_s, seconds) for part, watched in self._watched.items()}
        return {part: process_id for part, process_id in found.items() if process_id}

    def _free_log_name(self, part: Part) -> str:
        """Workers have their number; dispatchers the first that is free, so that there are few files."""
        if part.role == "worker":
            return f"worker-{part.number}"
        taken = set(self._log_names.values())
        return next(name for n in range(1, 1_000_000) if (name := f"dispatcher-{n}") not in taken)
