"""When a process that works until it is told to end has to end."""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType


class Stopping:
    """Whether this process is to end: by SIGTERM, SIGINT or SIGHUP, or since whoever started it is gone.

        stopping = Stopping(lifeline)
        while not stopping():
            ...
            stopping.wait(1.0)

    Made in the main thread, once. What was begun is brought to an end; a second SIGINT or SIGTERM ends the
    process at once.

    lifeline: a descriptor of which the other end closes when the process that started this one dies, in
    whatever way; None where nobody looks after this one.
    """

    def __init__(self, lifeline: int | None = None) -> None:
        self._lifeline = lifeline
        self._asked = False
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if lifeline is not None:
            os.set_inheritable(lifeline, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Whether it is to end."""
        return self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is to end, or timeout_s seconds have gone by; returns whether it is."""
        if self._asked:
            return True
        poll = select.poll()
        for descriptor in self.descriptors:
            poll.register(descriptor, select.POLLIN)
        # The other end of a lifeline that has gone is POLLHUP, which need not be asked for.
        if poll.poll(timeout_s * 1000):
            self._asked = True
        return self._asked

    @property
    def descriptors(self) -> list[int]:
        """What is ready to be read from once it is to end: for whoever waits for something else, too."""
        return [self._reading] if self._lifeline is None else [self._reading, self._lifeline]

    def ask(self) -> None:
        """End it: what a signal does."""
        self._asked = True
        os.write(self._writing, b"!")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and threading.current_thread() is threading.main_thread():
            # In earnest now: whoever asks twice does not want to wait.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.ask()
