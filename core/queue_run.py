"""Runs of queues: what waits in a queue or campaign is run, and what comes, until it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from grange.core import process as rows
from grange.core.engine import Engine, Progress
from grange.core.errors import InputInvalid
from grange.core.process import CONTROL_NEWS, queue_news
from grange.core.profile import Profile
from grange.core.queues import Queue
from grange.core.recipe import Recipe
from grange.core.recording import ToRun
from grange.core.wakeups import Wakeups
from grange.farm.errors import TaskRefused
from grange.farm.executor import Executor
from grange.farm.task import Batch, Resources
from grange.repository.halt import Halt

#: How often it looks by itself whether there is something new.
LOOK_EVERY_S = 1.0
#: How soon it sees that it is to end.
STOPS_WITHIN_S = 0.1


class HaltWhen(Halt):
    """A halt that is called as soon as something is the case, besides."""

    def __init__(self, when: Callable[[], bool]) -> None:
        super().__init__()
        self._when = when

    @property
    def called(self) -> bool:
        return super().called or self._when()


class QueueRun(Engine):
    """One run of a queue or campaign by a dispatcher, which holds its lock.

    It goes on until stopping() or let_go() is true, or nothing has come for idle_s seconds. stopping is asked
    often, and in other threads too; let_go about each second, outside of transactions.

    What can never be run here ends by itself and no other with it: calls of a campaign are paused, since they
    may be run elsewhere; others are excepted, since somebody waits for them.
    """

    #: While tasks run, news are looked at in between.
    poll_s = 0.05

    def __init__(
        self,
        profile: Profile,
        queue: Queue,
        executor: Executor,
        listener: Callable[[Progress], None],
        *,
        computer_id: int | None = None,
        idle_s: float | None = None,
        stopping: Callable[[], bool] = lambda: False,
        let_go: Callable[[], bool] = lambda: False,
        imports_anew: bool = False,
    ) -> None:
        super().__init__(
            profile, queue.id, executor, listener, computer_id=computer_id, imports_anew=imports_anew
        )
        self.halt = HaltWhen(stopping)
        self._queue = queue
        self._idle_s = idle_s
        self._stopping_asked = stopping
        self._let_go = let_go
        self._wakeups = Wakeups(profile)
        self._looked_at = 0.0
        self._busy_at = time.monotonic()

    def _count(self) -> None:
        """How much will come is not known."""
        self._busy_at = time.monotonic()

    def _look(self) -> None:
        self._hear(self._wakeups.wait(0.0))
        if self._open:
            self._busy_at = time.monotonic()
        self.progress.total = self.progress.done + len(self._open)

    def _hear(self, news: set[str] | None) -> None:
        now = time.monotonic()
        if news is None or CONTROL_NEWS in news:
            self._kills_at = 0.0
        is_news = news is None or not news.isdisjoint((CONTROL_NEWS, queue_news(self.queue_id)))
        if is_news or now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._exhausted = False
            if self._let_go():
                self.stopping = True
        if self._stopping_asked():
            self.stopping = True

    def _pause(self) -> None:
        self._busy_at = time.monotonic()
        self._hear(self._wakeups.wait(STOPS_WITHIN_S))

    def _more_comes(self) -> bool:
        while self._exhausted and not self.stopping:
            if self._idle_s is not None and time.monotonic() - self._busy_at >= self._idle_s:
                return False
            # not for longer: whoever wants it to end waits for it
            self._hear(self._wakeups.wait(STOPS_WITHIN_S))
        return True

    def _submit(self, recipe: Recipe, resources: Resources, to_run: Sequence[ToRun], more: int = 0) -> None:
        try:
            self.executor.submit(Batch((), resources))
        except TaskRefused as error:
            self._turn_away(to_run, str(error))
            return
        fit = []
        for one in to_run:
            try:
                self._places.require([one.values])
            except InputInvalid as error:
                self._turn_away([one], str(error))
            else:
                fit.append(one)
        super()._submit(recipe, resources, fit, more)

    def _turn_away(self, to_run: Sequence[ToRun], reason: str) -> None:
        if not to_run:
            return
        if self._queue.is_campaign:
            self._patiently(lambda: self._set_aside([one.process_id for one in to_run], reason))
            self.progress.paused += len(to_run)
            return
        self._refuse(
            [rows.End.excepted(one.process_id, one.attempt, reason, one.parent_id) for one in to_run]
        )

    def _set_aside(self, ids: Sequence[int], reason: str) -> None:
        with self.profile.transaction() as cursor:
            rows.pause(cursor, ids, reason)
