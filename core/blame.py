"""Of whose code workers die: what kills them again and again is set aside, so that all others go on."""

from __future__ import annotations

import signal

#: A process is set aside of whose code workers have died three times, or six times by SIGKILL.
_MOST, _BY_ITSELF, _BY_KILL = 6, 2, 1


class Blame:
    """How often workers have died while they ran the code of a process.

    SIGKILL may come from anybody, and the code that was run then is less to blame.
    """

    def __init__(self) -> None:
        self._points: dict[int, int] = {}

    def is_too_much(self, process_id: int, status: int) -> bool:
        """Note a death; returns whether the process is to be set aside. Then it begins with a clean slate.

        status: that of the worker, -N for signal N.
        """
        points = self._points.pop(process_id, 0) + (_BY_KILL if status == -signal.SIGKILL else _BY_ITSELF)
        if points >= _MOST:
            return True
        self._points[process_id] = points
        return False
