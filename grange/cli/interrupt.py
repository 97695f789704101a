"""A Ctrl-C that must not get lost."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

#: Whatever swallowed it has ended by then. Seconds.
_AGAIN_AFTER_S = 0.02


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """What interrupts the block comes again where Python drops it.

    A KeyboardInterrupt that is raised while an object is being finalised, a generator that is closed by the
    way say, is printed and forgotten: the command would go on, and end well. In the main thread only.
    """
    before = sys.unraisablehook
    turn = threading.Lock()
    over = threading.Event()
    lost = threading.Event()

    def again() -> None:
        if not over.wait(_AGAIN_AFTER_S):
            with turn:
                if not over.is_set():
                    lost.clear()
                    _thread.interrupt_main()

    def hook(unraisable: UnraisableHookArgs, /) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        lost.set()
        threading.Thread(target=again, name="interrupt", daemon=True).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        with turn:
            over.set()
        sys.unraisablehook = before
    if lost.is_set():
        raise KeyboardInterrupt
