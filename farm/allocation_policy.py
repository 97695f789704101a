"""How many allocations a computer should have: decided by pure functions; time comes in as an argument.

Growing: another allocation is started when what waits is more than those that are there or queued will take.
Shrinking: workers that have nothing to do end by themselves after idle_s; what is still in the queue when the
backlog is gone is cancelled. Failing: each failure in a row doubles the pause before the next try, which
is of one allocation, and after some the policy is held until a person looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from grange.farm.computer import Computer
from grange.farm.slurm import JobState
from grange.farm.task import Resources

#: Seconds of pause after the first failure in a row, and at most.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60, 3600
#: So many failures in a row hold a policy until a person looks: after 1, 2, 4, … minutes, two hours in all.
FAILURES_UNTIL_HELD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What allocations a computer should have.

    min_allocations are kept even while there is nothing to do; max_allocations are never exceeded. nodes,
    cores_per_node (None: not known), walltime_s, idle_s: of each. backlog: so many tasks have to wait beyond
    what open allocations will take before another is started; the first is started for any.
    failures: in a row. held_until_s: no start before then; math.inf until a person looks.
    Units: seconds, those of held_until_s since the epoch.
    """

    min_allocations: int = 0
    max_allocations: int = 1
    nodes: int = 1
    cores_per_node: int | None = None
    walltime_s: int = 3600
    idle_s: int = 300
    backlog: int = 1
    failures: int = 0
    held_until_s: float = 0.0

    @property
    def cores(self) -> int:
        """The cores of one allocation; one a node where they are not known."""
        return self.nodes * (self.cores_per_node or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAllocation:
    """An allocation that is queued or runs. left_s: of its walltime, all of it while it is queued.

    by_policy: a policy started it; what a person started is not stopped by one. Units: seconds.
    """

    id: int
    state: JobState
    cores: int
    left_s: float
    idle_s: int
    walltime_s: int
    by_policy: bool = True

    @property
    def is_kept(self) -> bool:
        """Whether it stays although there is nothing to do."""
        return self.idle_s >= self.walltime_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What has to be computed yet, the running included.

    cores: of one task. task_s: what one takes, in seconds; None while none has been measured.
    """

    tasks: int = 0
    cores: int = 1
    task_s: float | None = None


def cores_taken(needs: Resources, computer: Computer) -> int:
    """How many cores a task keeps from others: those that it uses, or the share of its memory or GPUs.

    A task that needs half of a node's memory takes half of its cores.
    """
    cores = computer.cores_per_node
    if cores is None:
        return needs.cpus
    shares = [
        (part or 0) / whole * cores
        for part, whole in (
            (needs.memory_mb, computer.memory_mb_per_node),
            (needs.gpus, computer.gpus_per_node),
        )
        if whole
    ]
    whole_nodes = (needs.nodes or 0) * cores if (needs.nodes or 1) > 1 else 0
    return max(needs.cpus, whole_nodes, *(math.ceil(share) for share in shares), 1)


@dataclass(frozen=True, slots=True)
class Start:
    """Start so many allocations, each to end after idle_s seconds without work."""

    count: int
    idle_s: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Cancel an allocation that is still in the queue."""

    id: int


Command = Start | Stop


def decide(
    policy: Policy, allocations: Sequence[OpenAllocation], backlog: Backlog, now_s: float, *, room: int
) -> list[Command]:
    """What to do now.

    allocations: all that are open on the computer, whoever started them. room: how many more jobs its queue
    may take.
    """
    commands: list[Command] = []
    stopped = _surplus(policy, allocations, backlog)
    commands += [Stop(one.id) for one in stopped]
    if now_s < policy.held_until_s:
        return commands
    gone = {one.id for one in stopped}
    staying = [one for one in allocations if one.id not in gone]
    # a cancelled job still counts until it has left the queue
    room = min(room, policy.max_allocations - len(allocations))
    if policy.failures:
        # one try, and no other while nobody knows what has become of it
        room = min(room, 1 - sum(one.state != "running" for one in allocations))
    kept = min(room, policy.min_allocations - sum(one.is_kept for one in staying))
    if kept > 0:
        commands.append(Start(kept, policy.walltime_s))
        room -= kept
    taken = sum(_takes(one, backlog) for one in staying) + max(kept, 0) * _new_takes(policy, backlog)
    waiting = backlog.tasks - taken
    is_first = not staying and kept <= 0
    if room > 0 and waiting >= (1 if is_first else policy.backlog):
        wanted = min(
            room, math.ceil(waiting / _new_takes(policy, backlog)) if waiting >= policy.backlog else 1
        )
        commands.append(Start(wanted, min(policy.idle_s, max(policy.walltime_s - 1, 1))))
    return commands


def _surplus(policy: Policy, allocations: Sequence[OpenAllocation], backlog: Backlog) -> list[OpenAllocation]:
    """The queued ones that are too many, or that nothing will be left for, the newest first.

    One is given up only where the others take twice what there is: a place in a queue is not bought back.
    """
    staying = list(allocations)
    surplus = []
    for one in sorted(allocations, key=lambda one: -one.id):
        if one.state != "queued" or not one.by_policy:
            continue
        others = [other for other in staying if other is not one]
        is_needed = (one.is_kept and _kept(staying) <= policy.min_allocations) or (
            sum(_takes(other, backlog) for other in others) < 2 * backlog.tasks
        )
        if len(staying) > policy.max_allocations or not is_needed:
            staying = others
            surplus.append(one)
    return surplus


def _kept(allocations: Sequence[OpenAllocation]) -> int:
    return sum(one.is_kept for one in allocations)


def _takes(one: OpenAllocation, backlog: Backlog) -> int:
    """How many tasks an allocation will take before its end; at least a round of them before it has begun."""
    rounds = 1 if backlog.task_s is None else math.floor(one.left_s / max(backlog.task_s, 1e-6))
    if one.state != "running":
        rounds = max(rounds, 1)
    return max(one.cores // max(backlog.cores, 1), 1) * rounds


def _new_takes(policy: Policy, backlog: Backlog) -> int:
    return _takes(
        OpenAllocation(
            id=0,
            state="queued",
            cores=policy.cores,
            left_s=policy.walltime_s,
            idle_s=policy.idle_s,
            walltime_s=policy.walltime_s,
        ),
        backlog,
    )


def after_failure(policy: Policy, now_s: float) -> Policy:
    """The policy after an allocation failed, or was refused: held for a while, after some for good."""
    failures = policy.failures + 1
    if failures >= FAILURES_UNTIL_HELD:
        return replace(policy, failures=failures, held_until_s=math.inf)
    pause_s = min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S)
    return replace(policy, failures=failures, held_until_s=max(policy.held_until_s, now_s + pause_s))


def after_success(policy: Policy) -> Policy:
    """The policy after an allocation did what it should."""
    return replace(policy, failures=0, held_until_s=0.0)
