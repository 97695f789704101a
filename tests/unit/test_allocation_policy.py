"""How many allocations there should be: single decisions by table, whole histories by simulation."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.farm.allocation_policy import (
    FAILURES_UNTIL_HELD,
    LONGEST_PAUSE_S,
    Backlog,
    Command,
    OpenAllocation,
    Policy,
    Start,
    Stop,
    after_failure,
    after_success,
    cores_taken,
    decide,
)
from grange.farm.computer import Computer
from grange.farm.task import Resources

POLICY = Policy(min_allocations=0, max_allocations=4, nodes=2, cores_per_node=8, walltime_s=3600, idle_s=300)


def allocation(number: int, state: str = "running", **more: object) -> OpenAllocation:
    facts: dict[str, object] = {"cores": 16, "left_s": 3600.0, "idle_s": 300, "walltime_s": 3600, **more}
    return OpenAllocation(id=number, state=state, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "policy", "allocations", "backlog", "room", "expected"),
    [
        ("nothing to do", POLICY, [], Backlog(), 20, []),
        ("one task", POLICY, [], Backlog(tasks=1), 20, [Start(1, 300)]),
        ("as many tasks as cores", POLICY, [], Backlog(tasks=16), 20, [Start(1, 300)]),
        ("one task more", POLICY, [], Backlog(tasks=17), 20, [Start(2, 300)]),
        ("many tasks of unknown length", POLICY, [], Backlog(tasks=9999), 20, [Start(4, 300)]),
        ("short tasks fit into one", POLICY, [], Backlog(tasks=9999, task_s=1.0), 20, [Start(1, 300)]),
        ("57,600 core-seconds fill one", POLICY, [], Backlog(tasks=57_600, task_s=1.0), 20, [Start(1, 300)]),
        ("and more need two", POLICY, [], Backlog(tasks=57_601, task_s=1.0), 20, [Start(2, 300)]),
        ("wide tasks", POLICY, [], Backlog(tasks=4, cores=8), 20, [Start(2, 300)]),
        ("a task wider than all", POLICY, [], Backlog(tasks=2, cores=64), 20, [Start(2, 300)]),
        ("a task longer than the walltime", POLICY, [], Backlog(tasks=16, task_s=1e6), 20, [Start(1, 300)]),
        ("the queue is nearly full", POLICY, [], Backlog(tasks=9999), 3, [Start(3, 300)]),
        ("the queue is full", POLICY, [], Backlog(tasks=9999), 0, []),
        ("one for any", replace(POLICY, backlog=50), [], Backlog(tasks=49), 20, [Start(1, 300)]),
        ("too little for another", replace(POLICY, backlog=50), [allocation(1)], Backlog(tasks=65), 20, []),
        ("just enough", replace(POLICY, backlog=50), [], Backlog(tasks=50), 20, [Start(4, 300)]),
        ("what runs will take it", POLICY, [allocation(1)], Backlog(tasks=16), 20, []),
        ("what is queued will take it", POLICY, [allocation(1, "queued")], Backlog(tasks=16), 20, []),
        (
            "what runs has too little time left",
            POLICY, [allocation(1, left_s=59)], Backlog(tasks=16, task_s=60.0), 20, [Start(1, 300)],
        ),
        ("all there are", POLICY, [allocation(n) for n in range(4)], Backlog(tasks=9999), 20, []),
        ("more than there should be", POLICY, [allocation(n) for n in range(9)], Backlog(tasks=9999), 20, []),
        (
            "queued ones beyond the most",
            POLICY, [*(allocation(n) for n in range(3)), allocation(3, "queued"), allocation(4, "queued")],
            Backlog(tasks=9999), 20, [Stop(4)],
        ),
        ("the backlog is gone", POLICY, [allocation(1), allocation(2, "queued")], Backlog(), 20, [Stop(2)]),
        (
            "those that run take it all twice",
            POLICY, [allocation(1), allocation(2, "queued")], Backlog(tasks=8), 20, [Stop(2)],
        ),
        (
            "those that run take it all, but only just",
            POLICY, [allocation(1), allocation(2, "queued")], Backlog(tasks=9), 20, [],
        ),
        (
            "one of two queued is enough",
            POLICY, [allocation(1, "queued"), allocation(2, "queued")], Backlog(tasks=8), 20, [Stop(2)],
        ),
        ("a person started it", POLICY, [allocation(1, "queued", by_policy=False)], Backlog(), 20, []),
        ("running ones are never stopped", POLICY, [allocation(1), allocation(2)], Backlog(), 20, []),
        ("two are kept", replace(POLICY, min_allocations=2), [], Backlog(), 20, [Start(2, 3600)]),
        (
            "kept ones stay in the queue",
            replace(POLICY, min_allocations=1),
            [allocation(1, "queued", idle_s=3600), allocation(2, "queued", idle_s=3600)],
            Backlog(), 20, [Stop(2)],
        ),
        (
            "kept ones take tasks, too",
            replace(POLICY, min_allocations=1), [], Backlog(tasks=20), 20, [Start(1, 3600), Start(1, 300)],
        ),
        ("held", replace(POLICY, held_until_s=1001.0), [], Backlog(tasks=9999), 20, []),
        ("held no more", replace(POLICY, held_until_s=1000.0), [], Backlog(tasks=9999), 20, [Start(4, 300)]),
        ("one try after a failure", replace(POLICY, failures=1), [], Backlog(tasks=999), 20, [Start(1, 300)]),
        (
            "held, but nothing to do",
            replace(POLICY, held_until_s=math.inf), [allocation(1, "queued")], Backlog(), 20, [Stop(1)],
        ),
        ("no more wanted", replace(POLICY, max_allocations=0), [], Backlog(tasks=9), 20, []),
    ],
)  # fmt: skip
def test_a_decision(
    what: str,
    policy: Policy,
    allocations: list[OpenAllocation],
    backlog: Backlog,
    room: int,
    expected: list[Command],
) -> None:
    assert decide(policy, allocations, backlog, 1000.0, room=room) == expected, what


def test_failures_in_a_row_pause_for_longer_and_longer_and_then_for_good() -> None:
    policy, pauses = POLICY, []
    for _ in range(FAILURES_UNTIL_HELD):
        policy = after_failure(policy, 0.0)
        pauses.append(policy.held_until_s)
        policy = replace(policy, held_until_s=0.0)
    assert pauses == [60, 120, 240, 480, 960, 1920, LONGEST_PAUSE_S, math.inf]
    assert after_success(replace(policy, held_until_s=math.inf)) == POLICY


NODE = Computer(label="lumi", cores_per_node=64, memory_mb_per_node=256_000, gpus_per_node=4)


@pytest.mark.parametrize(
    ("needs", "computer", "cores"),
    [
        (Resources(), NODE, 1),
        (Resources(cpus=8), NODE, 8),
        (Resources(memory_mb=128_000), NODE, 32),
        (Resources(memory_mb=128_001), NODE, 33),
        (Resources(cpus=2, gpus=1), NODE, 16),
        (Resources(cpus=128, nodes=3), NODE, 192),
        (Resources(cpus=4, nodes=1), NODE, 4),
        (Resources(cpus=3, memory_mb=999_999, gpus=9), Computer(label="unknown"), 3),
        (Resources(gpus=1), replace(NODE, gpus_per_node=0, memory_mb_per_node=None), 1),
    ],
)
def test_what_a_task_keeps_from_others(needs: Resources, computer: Computer, cores: int) -> None:
    assert cores_taken(needs, computer) == cores


# ---------------------------------------------------------------- a cluster, simulated


@dataclass
class Cluster:
    """A queue that starts jobs when it likes, or lets them fail, and workers that work and end when idle."""

    policy: Policy
    room: int
    tasks: float
    task_s: float | None
    waits_s: list[int]
    broken: bool
    now_s: float = 0.0
    jobs: dict[int, dict[str, float]] = field(default_factory=dict)
    submissions: list[float] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    step_s: float = 30.0

    def view(self) -> list[OpenAllocation]:
        return [
            OpenAllocation(
                id=number,
                state="running" if job["starts_at"] <= self.now_s else "queued",
                cores=self.policy.cores,
                left_s=min(job["starts_at"] + self.policy.walltime_s - self.now_s, self.policy.walltime_s),
                idle_s=int(job["idle_s"]),
                walltime_s=self.policy.walltime_s,
            )
            for number, job in self.jobs.items()
        ]

    def step(self) -> None:
        """Let some time pass, then decide, as the watching loop does."""
        self.now_s += self.step_s
        failed = False
        for number, job in list(self.jobs.items()):
            if job["starts_at"] > self.now_s:
                continue
            if self.broken:
                del self.jobs[number]
                failed = True
                continue
            works = min(self.tasks, self.policy.cores * self.step_s / (self.task_s or 20.0))
            self.tasks -= works
            job["idle_for"] = 0.0 if works else job["idle_for"] + self.step_s
            if job["idle_for"] >= job["idle_s"] or self.now_s >= job["starts_at"] + self.policy.walltime_s:
                del self.jobs[number]
        if failed:
            self.policy = after_failure(self.policy, self.now_s)
        backlog = Backlog(tasks=math.ceil(self.tasks), task_s=self.task_s)
        room = self.room - len(self.jobs)
        for command in decide(self.policy, self.view(), backlog, self.now_s, room=room):
            if isinstance(command, Stop):
                assert self.jobs[command.id]["starts_at"] > self.now_s, "a running allocation was stopped"
                del self.jobs[command.id]
                continue
            for _ in range(command.count):
                number = next(self.numbers)
                wait = self.waits_s[number % len(self.waits_s)]
                starts_at = self.now_s + wait
                self.jobs[number] = {"starts_at": starts_at, "idle_s": command.idle_s, "idle_for": 0.0}
                self.submissions.append(self.now_s)


clusters = st.builds(
    Cluster,
    policy=st.builds(
        lambda least, more, nodes, idle_s, walltime_s, backlog: Policy(
            min_allocations=least,
            max_allocations=least + more,
            nodes=nodes,
            cores_per_node=4,
            idle_s=idle_s,
            walltime_s=walltime_s,
            backlog=backlog,
        ),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(1, 4),
        st.integers(30, 600),
        st.integers(900, 7200),
        st.integers(1, 20),
    ),
    room=st.integers(1, 10),
    tasks=st.integers(0, 600).map(float),
    task_s=st.one_of(st.none(), st.floats(0.5, 120)),
    waits_s=st.lists(st.integers(0, 1800), min_size=1, max_size=5),
    broken=st.just(False),
)


@given(clusters)
@settings(max_examples=60, deadline=None)
def test_a_campaign_ends_and_leaves_the_least(cluster: Cluster) -> None:
    policy = cluster.policy
    for _ in range(3000):
        cluster.step()
        assert len(cluster.jobs) <= min(policy.max_allocations, cluster.room)
        if not cluster.tasks and len(cluster.jobs) == min(policy.min_allocations, cluster.room):
            break
    else:
        assert policy.max_allocations == 0, "it did not come to rest"
    if policy.max_allocations:
        # what is kept has to be made again at the walltime, and no sooner
        before, began = len(cluster.submissions), cluster.now_s
        for _ in range(200):
            cluster.step()
            assert len(cluster.jobs) <= min(policy.max_allocations, cluster.room)
        lives = math.ceil((cluster.now_s - began) / policy.walltime_s) + 1
        assert len(cluster.submissions) - before <= policy.min_allocations * lives


@given(clusters)
@settings(max_examples=60, deadline=None)
def test_a_broken_cluster_is_not_flooded(cluster: Cluster) -> None:
    cluster.broken, cluster.tasks = True, 1e6
    for _ in range(3000):  # a day
        cluster.step()
    at_once = min(cluster.policy.max_allocations, cluster.room)
    assert len(cluster.submissions) <= 2 * at_once + FAILURES_UNTIL_HELD
    assert cluster.policy.held_until_s == math.inf or not cluster.policy.max_allocations
