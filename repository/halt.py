"""Halt: what ends the waiting for a store early, when nobody wants any more what is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: How soon whoever waits sees that it was called.
_LOOK_EVERY_S = 0.05

_here = threading.local()


class Halt:
    """Ends the pauses between tries in the threads that it reaches.

    A signal handler or another thread calls it. What is under way goes on; what fails is not tried again.
    Whoever halts the thread that made it halts those that it reaches, too.
    """

    def __init__(self) -> None:
        self._called = False
        self._above: Halt | None = getattr(_here, "halt", None)

    @property
    def called(self) -> bool:
        return self._called or (self._above is not None and self._above.called)

    def call(self) -> None:
        self._called = True

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """What this thread waits for in the block ends when this is called."""
        before = getattr(_here, "halt", None)
        _here.halt = self
        try:
            yield
        finally:
            _here.halt = before


def pause(duration_s: float) -> bool:
    """Wait; False as soon as this thread's halt is called. Units: duration_s in seconds."""
    halt: Halt | None = getattr(_here, "halt", None)
    if halt is None:
        time.sleep(duration_s)
        return True
    until = time.monotonic() + duration_s
    while not halt.called:
        left = until - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, _LOOK_EVERY_S))
    return False
