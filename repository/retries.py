"""Retries: what did not answer is asked again, a little later each time, and not for ever."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from grange.repository.errors import StoreUnavailable
from grange.repository.halt import pause as wait

Outcome = TypeVar("Outcome")
OnRetry = Callable[[StoreUnavailable, float], object]


class Retries:
    """How often and how long a call is made again after StoreUnavailable; and how often that was needed.

    Before try n + 1 it waits a random time between 0 and first_pause_s * 2^(n-1), at most longest_pause_s:
    callers that failed together do not come back together. It gives up after so many tries, or where the next
    try would begin later than patience_s after the first failure. Shared by threads.

    Units: all times in seconds. retried: calls that were made again; given_up: those that failed for good.
    on_retry: told of each error that is about to be tried again, and of the pause in seconds; in
    whichever thread it happens.
    """

    def __init__(
        self,
        tries: int = 30,
        patience_s: float = 60.0,
        first_pause_s: float = 0.1,
        longest_pause_s: float = 5.0,
        on_retry: OnRetry | None = None,
    ) -> None:
        self.tries = tries
        self.patience_s = patience_s
        self.retried = 0
        self.given_up = 0
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self.on_retry = on_retry
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Retries(tries={self.tries}, patience_s={self.patience_s:g})"

    def run(self, call: Callable[[], Outcome]) -> Outcome:
        """Make a call until it succeeds.

        Errors: what the call raises; StoreUnavailable when it has failed too often or for too long.
        """
        effort = self.begin()
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                effort.failed(error)

    def begin(self) -> Effort:
        """What keeps count for one call."""
        return Effort(self)

    def _pause(self, failures: int) -> float:
        longest = min(self._longest_pause_s, self._first_pause_s * 2.0 ** min(failures - 1, 60))
        return random.uniform(0, longest)  # noqa: S311 - no secret

    def _count(self, error: StoreUnavailable, pause_s: float | None) -> None:
        with self._lock:
            if pause_s is None:
                self.given_up += 1
            else:
                self.retried += 1
        if pause_s is not None and (on_retry := self.on_retry) is not None:
            on_retry(error, pause_s)


class Effort:
    """One call and its failures so far."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failures = 0
        self._first = 0.0

    def failed(self, error: StoreUnavailable) -> None:
        """Wait for the next try.

        Errors: StoreUnavailable when there is none: the last one with what was tried, as a cause; the last
        one itself where a Halt ends the waiting.
        """
        if error.tries > 1:  # by somebody further in, who has given up
            raise error
        now = time.monotonic()
        if not self._failures:
            self._first = now
        self._failures += 1
        retries = self._retries
        pause = retries._pause(self._failures)
        waited = now - self._first
        if self._failures >= retries.tries or waited + pause > retries.patience_s:
            retries._count(error, None)
            if self._failures == 1:
                raise error
            message = f"{error}; tried {self._failures} times in {waited:.1f} s"
            raise StoreUnavailable(message, tries=self._failures) from error
        retries._count(error, pause)
        if not wait(pause):
            raise error

    def progressed(self) -> None:
        """Something has come: the next failure is the first one again."""
        self._failures = 0
