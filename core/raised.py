"""What somebody's code has raised, in words. Whatever the exception is like, saying it raises nothing."""

from __future__ import annotations

import os
import signal
import traceback

#: Folders of our own code: where something was raised is told by the line of the others that led there.
_OWN = tuple(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), part, "")
    for part in ("core", "farm", "repository")
)


def is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, meant for whoever runs the code, and nothing that the code itself raised."""
    return (
        isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


def said_by(error: BaseException) -> str:
    """The type and text of an exception, also where its __str__ raises."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(no text: its __str__ raised {type(broken).__name__})"
    return f"{type(error).__name__}: {text}"


def place_of(error: BaseException) -> str:
    """Where it was raised, as " (line 3 of /home/me/eos.py)": the innermost line that is not our own."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    theirs = [frame for frame in frames if not frame.filename.startswith(_OWN)]
    where = theirs[-1] if theirs else frames[-1]
    return f" (line {where.lineno} of {where.filename})"
