"""Running processes in this very process: its hub for workflows, its dispatchers for what they hand on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from grange.core import process as rows
from grange.core.client_waiter import ClientWaiter, future_of, said_of_paused
from grange.core.dispatcher_thread import DispatcherThreads
from grange.core.engine import Progress
from grange.core.errors import DatabaseUnavailable
from grange.core.future import Future
from grange.core.hub import Hub
from grange.core.interruptible import interruptible
from grange.core.pending_call import FarmCall, PendingCall, record_now
from grange.core.profile import Profile
from grange.core.profile_lock import working
from grange.core.progress_bar import progress_bar
from grange.core.transition import ENDED, State

#: Seconds between counts of what has ended of a campaign.
COUNT_S = 0.25
#: Seconds between looks whether what is waited for is paused.
PAUSED_S = 2.0


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted; what was recorded stays, and can be gone on with."""


def run_here(profile: Profile, pending: Sequence[PendingCall], *, progress: bool = True) -> None:
    """Record calls and run them until they have ended; their futures are settled then.

    Workflows run in this thread. Calculations are run by a dispatcher in a thread, where nobody else runs
    their queue. When this ends early, what is left is given back and goes on with whoever claims it.

    Errors: RunInterrupted on Ctrl-C; what a dispatcher ends with that no waiting mends.
    """
    worker_id = profile.worker_id
    with _Running(profile) as running:
        record_now(profile, pending, owner=worker_id)
        running.hub.adopt(pending, roots=True)
        running.dispatchers.serve(
            {one.what.queue_id for one in pending if isinstance(one.what, FarmCall) and one.is_open}
        )
        running.until_ended([one.future for one in pending], progress=progress)


def go_on_here(profile: Profile, ids: Sequence[int], *, progress: bool = True) -> list[Future]:
    """Go on with processes that nobody is at, until they have ended; waits for those that somebody is at.

    Errors: as run_here; NotFound.
    """
    futures = [future_of(profile, process_id) for process_id in ids]
    left = [future for future in futures if not future.is_terminated]
    if left:
        with _Running(profile) as running:
            running.hub.regain(left)
            running.dispatchers.serve(_queues_of_trees(profile, [future.id for future in left]))
            running.until_ended(left, progress=progress)
    return futures


def run_campaign_here(
    profile: Profile,
    campaign_id: int,
    seen: Progress,
    show: Callable[[Progress], None],
    stopping: Callable[[], bool],
) -> bool:
    """Run what is unfinished of a campaign that has workflows, until it has ended, or stopping() is true.

    seen: is filled in from the database and shown. Returns whether all has ended.
    """
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT node_id, label, workflow FROM process"
            " WHERE queue_id = %s AND NOT paused AND state IN ('created', 'waiting', 'running')",
            (campaign_id,),
        )
        found = cursor.fetchall()
    waiter = ClientWaiter(profile)
    workflows = [Future(waiter, label, process_id) for process_id, label, workflow in found if workflow]
    queues = _queues_of_trees(profile, [future.id for future in workflows])
    if len(workflows) < len(found):
        queues.add(campaign_id)
    over_at = 0.0
    left = 1
    failed_before: int | None = None

    with _Running(profile) as running:

        def over() -> bool:
            nonlocal over_at, left, failed_before
            running.dispatchers.raise_errors()
            now = time.monotonic()
            if now >= over_at and (counted := _counted(profile, campaign_id)) is not None:
                left, counts = counted
                over_at = now + max(COUNT_S, 10 * (time.monotonic() - now))
                # what the campaign has beside the calls of this run has ended before it, or is counted, too
                still = sum(n for (state, _), n in counts.items() if state not in ENDED)
                seen.total = max(seen.total, still)
                seen.done = seen.total - still
                failed = sum(
                    n
                    for (state, failed), n in counts.items()
                    if state in ENDED and (failed or state is not State.FINISHED)
                )
                failed_before = failed if failed_before is None else failed_before
                seen.failed = failed - failed_before
            seen.note = running.hub.note or running.dispatchers.note
            show(seen)
            return stopping() or not left

        running.hub.regain(workflows)
        running.dispatchers.serve(queues)
        running.hub.run(over)
    return not left


def _counted(profile: Profile, campaign_id: int) -> tuple[int, dict[tuple[State, bool], int]] | None:
    """How many of a campaign are to be run, and its states; None where the database is away."""
    try:
        with profile.transaction() as cursor:
            return rows.count_unfinished(cursor, campaign_id), rows.count_states(cursor, campaign_id)
    except DatabaseUnavailable:
        return None  # the hub waits for it


class _Running:
    """A hub, and dispatchers for the queues that it hands calculations to; shares the lock of the profile."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._waiter = ClientWaiter(profile)
        self._working = working(profile)
        self.dispatchers = DispatcherThreads(profile)
        self.hub = Hub(profile, alone=True, on_queues=self.dispatchers.serve)

    def __enter__(self) -> _Running:
        self._working.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self.dispatchers.close()
        finally:
            self._working.__exit__(*error)

    def until_ended(self, futures: Sequence[Future], *, progress: bool) -> None:
        """Work until these have ended."""
        seen = Progress(total=len(futures))
        left = list(futures)
        stopped = False
        paused = ""
        look_at = time.monotonic() + PAUSED_S

        def over() -> bool:
            nonlocal left, paused, look_at
            self.dispatchers.raise_errors()
            with suppress(DatabaseUnavailable):  # the hub waits for it
                self._waiter.look([future for future in left if future.id not in self.hub.roots])
            left = [future for future in left if not future.is_terminated]
            seen.total = self.hub.recorded + len(futures)
            seen.done = self.hub.ended + sum(
                future.is_terminated and future.id not in self.hub.given for future in futures
            )
            seen.failed = self.hub.failed
            if left and time.monotonic() >= look_at:
                look_at = time.monotonic() + PAUSED_S
                with suppress(DatabaseUnavailable):
                    paused = said_of_paused(self._profile, left)
            seen.note = self.hub.note or self.dispatchers.note or paused
            show(seen)
            return stopped or not left

        def stop() -> None:
            nonlocal stopped
            stopped = True

        with _shown(futures[0].process_label, progress) as show, interruptible(stop):
            self.hub.run(over)
        if left:
            ids = " ".join(str(future.id) for future in left[:3])
            raise RunInterrupted(
                f"process {ids} and what it has called wait where they are; `grange process run {ids}` "
                "goes on with them, and so does a daemon"
            )


def _queues_of_trees(profile: Profile, ids: Sequence[int]) -> set[int]:
    """The queues in which something of these processes, or of what they have called, waits."""
    from grange.core.process_tree import tree_ids

    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT DISTINCT queue_id FROM process WHERE node_id = ANY(%s) AND NOT workflow"
            " AND queue_id IS NOT NULL AND state IN ('created', 'waiting', 'running')",
            (tree_ids(cursor, ids),),
        )
        return {row[0] for row in cursor.fetchall()}


@contextmanager
def _shown(name: str, progress: bool) -> Iterator[Callable[[Progress], None]]:
    if not progress:
        yield lambda _: None
        return
    with progress_bar(name) as show:
        yield show
