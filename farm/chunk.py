"""How many tasks go into a chunk: pure functions of what was measured.

A chunk is to last long enough to bury its start-up cost and short enough to balance; towards the end of
the queue chunks shrink, so that all slots end together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a chunk is held to.

    target_s: how long a chunk should take. start_s: what starting one costs; a chunk is never
    made shorter than ten times that for balance's sake. first: the size while nothing is known.
    least: a chunk that takes less than least_s has at least so many tasks, because each of them is
    some files on a file system that many share.
    Units: seconds; first, most and least in tasks.
    """

    target_s: float = 0.75
    start_s: float = 0.004
    first: int = 8
    most: int = 4000
    least: int = 1
    least_s: float = 0.0


#: For nodes of a cluster: a chunk is an interpreter, a task of a server, and four files or more.
CLUSTER = Sizing(target_s=180.0, start_s=0.1, first=8, most=20000, least=200, least_s=5.0)
#: So many chunks are no burden for a file system, whatever is in them.
FEW = 4
#: No task is reckoned to take less. Units: seconds.
_INSTANT_S = 1e-6
#: So many results are worth a file on a file system that many share, and a command by SSH.
TOGETHER = 50
#: The first results of a kind tell what such a task takes. Units: seconds.
FIRST_FLUSH_S = 0.5
#: No result is kept longer for the sake of files; and with short tasks none comes sooner for nothing.
LONGEST_FLUSH_S, SHORTEST_FLUSH_S = 60.0, 8.0


def chunk_size(queued: int, slots: int, task_s: float | None, sizing: Sizing) -> int:
    """How many of the queued tasks the next chunk should hold.

    task_s: the expected duration of one task in seconds, None while none has been measured. The share
    of a slot is halved (guided self-scheduling), so that an estimate that was too low is mended later.
    """
    return _size(queued, math.ceil(queued / (2 * max(1, slots))), task_s, sizing)


def _size(queued: int, share: int, task_s: float | None, sizing: Sizing) -> int:
    if queued <= 0:
        return 0
    if task_s is None:
        return min(queued, sizing.first, share)
    wanted = min(max(1, round(sizing.target_s / max(task_s, _INSTANT_S))), max(share, worth(task_s, sizing)))
    return max(1, min(queued, wanted, sizing.most))


def worth(task_s: float, sizing: Sizing) -> int:
    """How many tasks are worth a chunk of their own."""
    least = min(sizing.least, math.ceil(sizing.least_s / max(task_s, _INSTANT_S)))
    return max(_start_worth(task_s, sizing), least)


def _start_worth(task_s: float, sizing: Sizing) -> int:
    """How many tasks bury the cost of starting a chunk."""
    return max(1, math.ceil(10 * sizing.start_s / max(task_s, _INSTANT_S)))


def chunk_sizes(
    queued: int, slots: int, task_s: float | None, sizing: Sizing, under_way: int = 0, more: int = 0
) -> list[int]:
    """The sizes of all chunks of a batch that is handed over at once.

    While nothing is known, the first chunks are small, so that something is soon, and the others take half
    of a slot's share of what is left.

    under_way: tasks that were handed over and have not ended; half of them are reckoned to be still to come.
    more: tasks that will be queued later. With all of them in mind chunks are larger, but what is here has to
    be two chunks for each slot.
    """
    sizes: list[int] = []
    two_each = math.ceil((queued + under_way) / (2 * max(1, slots)))
    while queued > 0:
        share = min(two_each, math.ceil((queued + under_way / 2 + more) / (2 * max(1, slots))))
        size = _size(queued, share, task_s, sizing)
        if task_s is not None and size < 2 * worth(task_s, sizing) and 2 * under_way + more < queued:
            # Soon chunks would not be worth starting: equal ones, in whole rounds of all slots where they are
            # more than those, so that all slots end together.
            chunks = max(
                queued // worth(task_s, sizing), min(slots, FEW, queued // _start_worth(task_s, sizing)), 1
            )
            if queued > chunks > slots > 0:
                chunks = slots * round(chunks / slots)
            size = min(sizing.most, math.ceil(queued / chunks))
            return sizes + [min(size, queued - start) for start in range(0, queued, size)]
        if task_s is None and len(sizes) >= slots:
            share = math.ceil(queued / (2 * max(1, slots)))
            size = min(queued, max(sizing.first, share), sizing.most)
        sizes.append(size)
        queued -= size
    return sizes


def can_wait(queued: int, under_way: int, slots: int, task_s: float, sizing: Sizing) -> bool:
    """Whether queued tasks may wait for more of their kind, so that chunks are large.

    under_way: tasks that runners have or will find. They last for a while, and are many more.
    """
    return 4 * queued < under_way and under_way * task_s > 4 * sizing.least_s * slots


def flush_interval_s(task_s: float | None) -> float:
    """How long a runner may keep results back. task_s: what a task takes, None while nobody knows."""
    if task_s is None:
        return FIRST_FLUSH_S
    return min(LONGEST_FLUSH_S, max(SHORTEST_FLUSH_S, TOGETHER * task_s))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one task of a kind takes, learned from chunks. Units: seconds."""

    task_s: float | None = None

    def after(self, tasks: int, wall_s: float) -> Estimate:
        """The estimate after one more chunk; later chunks count more, because kinds drift."""
        if tasks <= 0:
            return self
        measured = wall_s / tasks
        if self.task_s is None:
            return Estimate(measured)
        return Estimate(0.5 * self.task_s + 0.5 * measured)
