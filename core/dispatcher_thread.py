"""Dispatchers in this process: what a script puts into queues is run, where nobody else runs them."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from grange.core.dispatcher import dispatch
from grange.core.engine import Progress
from grange.core.errors import CampaignBusy, DatabaseUnavailable
from grange.core.profile import Profile, open_profile
from grange.core.worker import DISPATCHER
from grange.farm.errors import ExecutorUnavailable, SpoolUnwritable, TransportUnavailable
from grange.repository import StoreUnavailable

#: Seconds between looks whether a queue that somebody else runs is free.
LOOK_S = 0.5
#: Seconds before it tries again what may be mended by itself: the first pause, and the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0

#: What is tried again.
_FOR_A_WHILE = (
    DatabaseUnavailable,
    StoreUnavailable,
    ExecutorUnavailable,
    SpoolUnwritable,
    TransportUnavailable,
)


class DispatcherThreads:
    """For each queue that is needed a thread with a profile of its own; used by one thread.

        with DispatcherThreads(profile) as dispatchers:
            dispatchers.serve([queue_id])
            ...
            dispatchers.raise_errors()

    A queue that somebody else runs is left to them, for as long as they do. When it is closed, tasks on this
    machine end, and what is unfinished is free for the next holder.
    """

    def __init__(self, profile: Profile) -> None:
        self._home = profile.home
        self._served: dict[int, _Served] = {}

    def __enter__(self) -> DispatcherThreads:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def serve(self, queue_ids: Collection[int]) -> None:
        """See to it that what is in these queues is run, from now on. May be called often."""
        for queue_id in queue_ids:
            if queue_id not in self._served:
                self._served[queue_id] = _Served(self._home, queue_id)

    def raise_errors(self) -> None:
        """Raise what has ended a dispatcher and is not mended by waiting: a computer that is disabled …"""
        for one in self._served.values():
            if one.error is not None:
                raise one.error

    @property
    def note(self) -> str:
        """What a person who waits should know; "" if nothing."""
        return next((one.note for one in self._served.values() if one.note), "")

    def close(self) -> None:
        """End all of them in order."""
        served, self._served = list(self._served.values()), {}
        for one in served:
            one.ended.set()
        for one in served:
            one.thread.join()


@dataclass(slots=True, eq=False)
class _Served:
    """A queue and the thread that sees to it. error: what it has ended with."""

    home: Path
    queue_id: int
    ended: threading.Event = field(default_factory=threading.Event)
    note: str = ""
    error: Exception | None = None
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name=f"dispatcher of {self.queue_id}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self.ended.is_set():
            try:
                with open_profile(self.home) as profile:
                    profile.role = DISPATCHER
                    while not self.ended.is_set():
                        try:
                            dispatch(
                                profile, self.queue_id, stopping=self.ended.is_set, listener=self._listen
                            )
                        except CampaignBusy:
                            self.ended.wait(LOOK_S)
                        pause_s = FIRST_PAUSE_S
            except _FOR_A_WHILE as error:
                self.note = f"{error}; tried again"
                self.ended.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except Exception as error:
                self.error = error
                return

    def _listen(self, progress: Progress) -> None:
        self.note = progress.note
