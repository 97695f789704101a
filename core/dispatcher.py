"""Dispatchers: whoever holds a queue or campaign and runs what is in it, whoever has put it there."""

from __future__ import annotations

from collections.abc import Callable

from grange.core.engine import Engine, Progress
from grange.core.errors import CampaignBusy, NotFound
from grange.core.executors import open_executor
from grange.core.profile import Profile
from grange.core.queue_hold import hold
from grange.core.queue_run import QueueRun
from grange.core.queues import Queue, load_queue, unmark_submitted

#: Seconds without anything to do after which a dispatcher of a daemon ends. That of a queue keeps its runners
#: warm; a campaign is soon left to who wants to run it.
QUEUE_IDLE_S = 60.0
CAMPAIGN_IDLE_S = 1.0


def _nobody(_: Progress) -> None:
    """Nobody is told."""


def dispatch(
    profile: Profile,
    queue_id: int,
    *,
    stopping: Callable[[], bool],
    let_go: Callable[[], bool] = lambda: False,
    listener: Callable[[Progress], None] = _nobody,
    ends_when_idle: bool = False,
    imports_anew: bool = False,
) -> Progress:
    """Hold a queue or campaign and run what is in it and what comes, until it is to end.

    stopping: whether it is to end; asked often, and in other threads too. let_go: the same, asked about each
    second outside of transactions. ends_when_idle: it ends by itself when there was nothing to do for long.
    imports_anew: this process does nothing else, so modules that have changed may be imported anew.
    What it leaves is free for the next holder. profile: of this dispatcher alone.

    Errors: CampaignBusy at once where somebody else holds it; NotFound; those of its executor and computer;
    DatabaseUnavailable, StoreUnavailable.
    """
    queue = _load(profile, queue_id)
    with hold(profile, queue_id, _name(queue), wait_s=0.0):
        queue = _load(profile, queue_id)  # who held it may have said that it is run elsewhere
        with open_executor(profile, queue_id, queue.executor) as opened:
            idle_s = CAMPAIGN_IDLE_S if queue.is_campaign else QUEUE_IDLE_S
            run = QueueRun(
                profile,
                queue,
                opened.executor,
                listener,
                computer_id=opened.computer_id,
                idle_s=idle_s if ends_when_idle else None,
                stopping=stopping,
                let_go=let_go,
                imports_anew=imports_anew,
            )
            done = run.run()
        if queue.is_campaign:
            with profile.transaction() as cursor:
                unmark_submitted(cursor, queue_id, only_if_done=True)
    return done


def end_killed(profile: Profile, queue_id: int, listener: Callable[[Progress], None] = _nobody) -> int:
    """End what was marked as to be killed in a campaign or queue, unless somebody else holds it and does so.

    Returns how many were ended here. Errors: those of reaching the computer that it runs on.
    """
    queue = _load(profile, queue_id)
    try:
        with (
            hold(profile, queue_id, _name(queue)),
            open_executor(profile, queue_id, queue.executor) as opened,
        ):
            return Engine(profile, queue_id, opened.executor, listener, computer_id=opened.computer_id).kill()
    except CampaignBusy:
        return 0


def _load(profile: Profile, queue_id: int) -> Queue:
    with profile.transaction() as cursor:
        queue = load_queue(cursor, queue_id)
    if queue is None:
        raise NotFound(f"no campaign or queue has the id {queue_id}")
    return queue


def _name(queue: Queue) -> str:
    return f"{queue.type_string} {queue.label}"
