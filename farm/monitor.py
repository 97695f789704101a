"""Monitors: what looks at a running task, and may want it to be stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grange.farm.task import ShippedFunction

#: Gets the tail of the file as text; returns None for "go on", True or a text for "stop it, because …".
Look = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Monitor:
    """Looks at the tail of a file while a program runs, and stops the program.

        gr.Monitor("pw.out", r"convergence NOT achieved", every_s=60)
        gr.Monitor("log.lammps", diverged)     # diverged(text) -> None, or why to stop

    file: a path in the program's directory, such as "stdout.txt"; until it is there, nothing is looked at.
    look: a regular expression (^ and $ match at lines), or a function of the text that returns None, or why
    to stop. It gets what was written since the last look, and in any case the last tail_bytes bytes.
    every_s: how often. message: the exit message ("": the line that matched, or what the function said).
    stop_file: a file that tells the program to end, which is written with stop_text; "" where SIGTERM does.
    grace_s: how long the program then gets before it is ended as at its walltime; 0: it is killed at once.
    timeout_s: a look that takes longer is the last one of this monitor.

    A program that is stopped leaves its files as any other, and ends with exit status 150. A monitor that
    raises, hangs or dies ends nothing: the file monitors.txt among what is kept says so.
    """

    file: str
    look: str | Look | ShippedFunction
    every_s: float = 30.0
    message: str = ""
    tail_bytes: int = 65536
    stop_file: str = ""
    stop_text: str = ""
    grace_s: float = 2.0
    timeout_s: float = 60.0
