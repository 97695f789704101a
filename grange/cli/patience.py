"""What is said while a command waits for an object store that does not answer."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from grange.repository.errors import StoreUnavailable

#: Units: seconds. What passes sooner is not worth a word; a trouble is a new one after a time without any.
_SILENT_S = 3.0
_EVERY_S = 20.0
_OVER_AFTER_S = 15.0


class Patience:
    """Told of each try that failed; a line on standard error now and then. Called by several threads."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._last_s = -_OVER_AFTER_S
        self._says_at_s = 0.0

    def __call__(self, error: StoreUnavailable, _pause_s: float) -> None:
        now = time.monotonic()
        with self._turn:
            if now - self._last_s >= _OVER_AFTER_S:
                self._says_at_s = now + _SILENT_S
            self._last_s = now
            if now < self._says_at_s:
                return
            self._says_at_s = now + _EVERY_S
        click.echo(f"waiting for the store: {error}", err=True)
