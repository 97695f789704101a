"""Following a campaign that a dispatcher runs: how far it is, until it is done or nobody runs it any more."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

from grange.core import process as rows
from grange.core.engine import Progress
from grange.core.profile import Profile
from grange.core.queue_hold import find_holder
from grange.core.transition import State

#: Seconds between looks, at least, and as a multiple of what a look takes.
LOOK_S, REST = 0.25, 10.0
#: Ids in one question.
ASKED = 10_000


class Follower:
    """Follows a campaign; used by one thread.

    progress: total is what is mapped, else what was unfinished when it began. places: for each map, the
    process that answers each of its calls.
    """

    def __init__(
        self, profile: Profile, campaign_id: int, progress: Progress, places: Sequence[array[int]]
    ) -> None:
        self._profile = profile
        self._campaign_id = campaign_id
        self._places = places
        self._failed_before = 0 if places else self._count_failed()
        self.progress = progress
        if not places:
            with profile.transaction() as cursor:
                progress.total = rows.count_unfinished(cursor, campaign_id)

    def follow(self, show: Callable[[Progress], None], stopping: Callable[[], bool]) -> bool:
        """Until nothing is left to run, nobody runs it any more, or it is to stop.

        Returns whether nothing is left; then failures are counted, too.
        """
        progress = self.progress
        while not stopping():
            began = time.monotonic()
            with self._profile.transaction() as cursor:
                # who holds it first: what it has ended before it went is seen then
                holder = find_holder(cursor, self._campaign_id)
                unfinished = rows.count_unfinished(cursor, self._campaign_id)
            if not unfinished:
                self.conclude()
                show(progress)
                return True
            if holder is None:
                return False
            progress.done = max(progress.total - unfinished, progress.reused)
            progress.note = f"run by a dispatcher, {holder}"
            show(progress)
            _pause(max(LOOK_S, REST * (time.monotonic() - began)), stopping)
        return False

    def conclude(self) -> None:
        """All has ended: count what has failed, and what is set aside and not part of the total."""
        progress = self.progress
        if not self._places:
            progress.done = progress.total
            progress.failed = self._count_failed() - self._failed_before
            return
        times = Counter(process_id for places in self._places for process_id in places)
        ids = list(times)
        failed = paused = 0
        for start in range(0, len(ids), ASKED):
            with self._profile.transaction() as cursor:
                cursor.execute(
                    """
                    SELECT node_id, state IN ('created', 'waiting', 'running') FROM process
                    WHERE node_id = ANY (%s) AND NOT (state = 'finished' AND exit_status = 0)
                    """,
                    (ids[start : start + ASKED],),
                )
                for process_id, is_open in cursor.fetchall():
                    if is_open:
                        paused += times[process_id]
                    else:
                        failed += times[process_id]
        progress.failed, progress.paused = failed, paused
        progress.total -= paused
        progress.done = progress.total

    def _count_failed(self) -> int:
        with self._profile.transaction() as cursor:
            counts = rows.count_states(cursor, self._campaign_id)
        return sum(
            count
            for (state, is_failed), count in counts.items()
            if is_failed or state in (State.EXCEPTED, State.KILLED)
        )


def _pause(seconds: float, stopping: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.05))
