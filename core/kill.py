"""Ending what nobody wants any more: processes with all that they called, or all that runs on a computer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager

from grange.core import process as rows
from grange.core import process_control
from grange.core.dispatcher import end_killed
from grange.core.engine import Progress
from grange.core.process import CONTROL_NEWS
from grange.core.profile import Profile
from grange.core.progress_bar import progress_bar
from grange.core.queue_hold import find_holder
from grange.core.queues import load_queue
from grange.core.worker import free_dead


def kill(
    profile: Profile,
    *,
    ids: Collection[int] | None = None,
    computer: str | None = None,
    progress: bool = False,
) -> int:
    """End these processes with all that they have called, or all that has not ended on a computer.

    What waits never starts; what runs gets SIGTERM and then SIGKILL, and what it left is recorded. Whoever
    holds a campaign or queue sees to it within seconds; where nobody does, it is done here. Returns how many
    were to be ended. What cannot be ended now, because its computer cannot be reached, is marked, and ended
    by whoever goes on with the campaign or queue.

    Errors: those of reaching a computer.
    """
    free_dead(profile)  # what nobody has any more ends at once
    if ids is not None:
        killing = process_control.kill(profile, ids)
        count, queues = killing.asked, killing.queues
    elif computer is not None:
        with profile.transaction() as cursor:
            asked = rows.ask_to_kill(cursor, computer=computer)
            rows.tell(cursor, [CONTROL_NEWS] if asked else [])
        count, queues = sum(asked.values()), list(asked)
    else:
        raise ValueError("kill: expected ids or a computer")
    _end_here(profile, queues, progress)
    return count


def _end_here(profile: Profile, queues: Iterable[int], progress: bool) -> None:
    """End what is to be killed in those of these campaigns and queues that nobody holds."""
    for queue_id in queues:
        with profile.transaction() as cursor:
            queue = load_queue(cursor, queue_id)
            if queue is None or find_holder(cursor, queue_id) is not None:
                continue
        with _shown(queue.label, progress) as show:
            end_killed(profile, queue_id, show)


@contextmanager
def _shown(name: str, progress: bool) -> Iterator[Callable[[Progress], None]]:
    if progress:
        with progress_bar(name) as show:
            yield show
    else:
        yield lambda _: None
