"""Policies that are followed, on a real Slurm over a real sshd."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from cluster import Cluster

from grange.core import allocation as rows
from grange.core import allocation_policy as policies
from grange.core import computer as computers
from grange.core.allocation import Allocation
from grange.core.allocation_watch import WatchEvent, follow, watch
from grange.core.errors import InputInvalid
from grange.core.profile import Profile
from grange.core.resources import attributes_of_resources
from grange.core.site import Site, reached
from grange.core.worker import lock_campaign, unlock_campaign
from grange.farm.allocation_policy import Backlog, Policy
from grange.farm.task import Resources


@pytest.fixture
def make_site(profile: Profile, cluster: Cluster) -> Iterator[Callable[..., Site]]:
    """Makes computers of the cluster: make_site(**changes); their jobs are gone afterwards."""
    label = f"watch{os.getpid()}-{time.monotonic_ns()}"
    with ExitStack() as stack:

        def make(**changes: Any) -> Site:
            computer = cluster.computer(f"{label}-{len(changes)}", **changes)
            with profile.transaction() as cursor:
                computers.add(cursor, computer, user_id=profile.user_id)
            return stack.enter_context(reached(profile, computer.label))

        yield make
        cluster.cancel_all()


def write(profile: Profile, site: Site, **facts: int) -> None:
    with profile.transaction() as cursor:
        policies.write(cursor, site.id, site.computer, Policy(**facts))


def allocations(profile: Profile, site: Site) -> list[Allocation]:
    with profile.transaction() as cursor:
        return rows.open_allocations(cursor, site.id)


def ended(profile: Profile, site: Site) -> list[Allocation]:
    with profile.transaction() as cursor:
        found = rows.list_allocations(cursor, site.id, ended=True, limit=99, before=2**31 - 1)
    return [one for one in found if not one.is_open]


@contextmanager
def campaign(
    profile: Profile,
    executor: str,
    tasks: int,
    *,
    done: int = 0,
    wall_s: float = 1.0,
    kind: str = "campaign",
) -> Iterator[int]:
    """A campaign, or queue, that is being run there: so many tasks wait, so many are done."""
    with profile.transaction() as cursor:
        cursor.execute(
            'INSERT INTO "group" (label, type_string, user_id, extras)'
            " VALUES (%s, %s, %s, jsonb_build_object('executor', %s::text)) RETURNING id",
            (f"c{time.monotonic_ns()}", kind, profile.user_id, executor),
        )
        (campaign_id,) = cursor.fetchone() or (0,)
        cursor.execute(
            """
            WITH made AS (
                INSERT INTO node (uuid, kind, user_id, node_type)
                SELECT gen_random_uuid(), 'calculation', %(user)s, 'process.calculation.calcjob.CalcJobNode.'
                FROM generate_series(1, %(all)s) RETURNING id
            ), placed AS (SELECT id, row_number() OVER (ORDER BY id) <= %(done)s AS done FROM made)
            INSERT INTO process
                (node_id, label, campaign_id, queue_id, state, exit_status, finished_at, wall_s)
            SELECT id, 'f', CASE WHEN %(kind)s = 'campaign' THEN %(campaign)s::int END, %(campaign)s,
                   (CASE WHEN done THEN 'finished' ELSE 'waiting' END)::process_state,
                   CASE WHEN done THEN 0 END, CASE WHEN done THEN now() END, CASE WHEN done THEN %(wall)s END
            FROM placed
            """,
            {
                "user": profile.user_id,
                "campaign": campaign_id,
                "kind": kind,
                "all": done + tasks,
                "done": done,
                "wall": wall_s,
            },
        )
    connection = profile.connect()
    lock_campaign(connection, campaign_id)
    try:
        yield campaign_id
    finally:
        unlock_campaign(connection, campaign_id)
        connection.close()


def backlog(profile: Profile, site: Site) -> Backlog:
    with profile.transaction() as cursor:
        return policies.backlog(cursor, site.id, site.computer)


def test_the_backlog_is_that_of_campaigns_which_are_run_there(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site()
    assert backlog(profile, site) == Backlog()
    with campaign(profile, site.computer.label, 30) as there:
        assert backlog(profile, site) == Backlog(tasks=30)
        with campaign(profile, site.computer.label, 10, done=500, wall_s=4.0):
            assert backlog(profile, site) == Backlog(tasks=40, task_s=4.0)
        with campaign(profile, "elsewhere", 10):
            assert backlog(profile, site) == Backlog(tasks=30)
        with campaign(profile, site.computer.label, 10, done=500, wall_s=3.0, kind="queue"):
            assert backlog(profile, site) == Backlog(tasks=40, task_s=3.0)
        with profile.transaction() as cursor:
            cursor.execute("SELECT min(node_id) FROM process WHERE campaign_id = %s", (there,))
            (first,) = cursor.fetchone() or (0,)
            attributes = attributes_of_resources(
                Resources(cpus=2, memory_mb=site.computer.memory_mb_per_node)
            )
            cursor.execute(
                "INSERT INTO node (id, uuid, kind, user_id, node_type, attributes)"
                " SELECT nextval('node_id'), gen_random_uuid(), kind, user_id, node_type, %s"
                " FROM node WHERE id = %s RETURNING id",
                (json.dumps(attributes), first),
            )
            cursor.execute(
                "INSERT INTO process (node_id, label, campaign_id, queue_id, state)"
                " VALUES (%s, 'f', %s, %s, 'waiting')",
                (*(cursor.fetchone() or (0,)), there, there),
            )
        # 30 of one core, and one that keeps all four of a node from others by its memory: more than one each
        assert backlog(profile, site) == Backlog(tasks=31, cores=2)
    assert backlog(profile, site) == Backlog()  # nobody hands it over any more


def test_allocations_come_and_go_with_the_backlog(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site(directives=("--begin=now+1hour",))
    write(profile, site, max_allocations=3, walltime_s=600, idle_s=60)
    assert follow(profile, site) == []
    with campaign(profile, site.computer.label, 9):  # nodes of four cores
        events = follow(profile, site)
        assert [event.event for event in events] == ["started"] * 3
        assert [(one.state, one.idle_s) for one in allocations(profile, site)] == [("queued", 60)] * 3
        assert follow(profile, site) == []
        assert len(allocations(profile, site)) == 3
    deadline = time.monotonic() + 30
    while allocations(profile, site):
        assert time.monotonic() < deadline
        follow(profile, site)
    assert {(one.state, one.reason) for one in ended(profile, site)} == {("cancelled", "stopped")}
    assert len(ended(profile, site)) == 3


def test_the_least_is_kept(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site()
    write(profile, site, min_allocations=1, max_allocations=2, walltime_s=600, idle_s=60)
    for _ in range(3):
        follow(profile, site)
    assert [one.idle_s for one in allocations(profile, site)] == [600]


def test_the_computers_bound_is_kept_whatever_the_policy_says(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site(max_allocations=2)
    with pytest.raises(InputInvalid, match="max: expected 0 to 2, the bound"):
        write(profile, site, max_allocations=3)
    write(profile, site, max_allocations=2)
    with profile.transaction() as cursor:
        cursor.execute("UPDATE allocation_policy SET max_allocations = 9")
    with campaign(profile, site.computer.label, 1000):
        follow(profile, site)
    assert len(allocations(profile, site)) == 2


def test_a_wrong_partition_does_not_flood_the_queue(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site(partition="nowhere")
    write(profile, site, max_allocations=3)
    with campaign(profile, site.computer.label, 1000):
        events = follow(profile, site)
        assert [event.event for event in events] == ["refused", "held"]
        assert "nvalid partition" in events[0].message
        assert "after 1 failure: " in events[1].message
        for _ in range(3):
            assert [event.event for event in follow(profile, site)] == ["held"]
        assert [one.state for one in ended(profile, site)] == ["cancelled", "cancelled", "failed"]
        # the pause is over: one is tried, and the pause is doubled
        with profile.transaction() as cursor:
            cursor.execute("UPDATE allocation_policy SET held_until = now()")
        follow(profile, site)
        assert [one.state for one in ended(profile, site)][:1] == ["failed"]
        assert len(ended(profile, site)) == 4
        with profile.transaction() as cursor:
            stored = policies.find(cursor, site.id, site.computer)
        assert stored is not None
        assert stored.policy.failures == 2
        assert 110 < stored.policy.held_until_s - time.time() <= 120
        # held for good, until somebody says the policy anew
        with profile.transaction() as cursor:
            cursor.execute("UPDATE allocation_policy SET held_until = now(), failures = 7")
        assert "until somebody looks" in follow(profile, site)[-1].message
        write(profile, site, max_allocations=3)
        assert [event.event for event in follow(profile, site)] == ["refused", "held"]


def test_trouble_with_one_computer_is_told_once_and_the_other_is_looked_after(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site, broken = make_site(), make_site(python="/nowhere/python", description="broken")
    for one in (site, broken):
        write(profile, one, min_allocations=1, max_allocations=1)
    events: list[WatchEvent] = []
    assert not watch(profile, [], events.append, once=True)
    assert sorted((event.computer, event.event) for event in events) == sorted(
        [(site.computer.label, "started"), (broken.computer.label, "trouble")]
    )
    assert len(allocations(profile, site)) == 1
    assert allocations(profile, broken) == []
    assert watch(profile, [site.computer.label], events.append, once=True)


def test_two_who_watch_start_no_more_than_one(profile: Profile, make_site: Callable[..., Site]) -> None:
    from grange.core.profile import open_profile

    site = make_site()
    site.remote.prepare()
    write(profile, site, max_allocations=2)
    trouble: list[WatchEvent] = []

    def look(event: WatchEvent) -> None:
        if event.event in ("trouble", "refused"):
            trouble.append(event)

    def one_of_them() -> None:
        with open_profile(profile.home) as mine:
            for _ in range(3):
                watch(mine, [site.computer.label], look, once=True)

    with campaign(profile, site.computer.label, 1000):
        threads = [threading.Thread(target=one_of_them) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert trouble == []
    assert len(allocations(profile, site)) == 2
    assert ended(profile, site) == []


def double(x: int) -> int:
    return 2 * x


@pytest.mark.slow
def test_a_campaign_gets_the_allocations_that_it_needs(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    from grange.core.campaign import Campaign
    from grange.core.profile import open_profile

    site = make_site()
    write(profile, site, max_allocations=2, walltime_s=600, idle_s=5)
    followed: list[WatchEvent] = []
    done = threading.Event()

    def keep_following() -> None:
        with open_profile(profile.home) as mine, reached(mine, site.computer.label) as there:
            while not done.is_set() or allocations(mine, there):
                followed.extend(follow(mine, there))
                time.sleep(0.5)

    follower = threading.Thread(target=keep_following)
    follower.start()
    try:
        doubles = Campaign("doubles", profile)
        doubles.map(double, x=list(range(500)))
        doubles.run(executor=site.computer.label, progress=False)
        assert sorted(doubles.results()["result"]) == [2 * x for x in range(500)]
    finally:
        done.set()
        follower.join(60)
    assert not follower.is_alive()
    told = [event.event for event in followed]
    assert 1 <= told.count("started") <= 2
    assert {"refused", "held", "trouble"}.isdisjoint(told)
    assert {one.state for one in ended(profile, site)} <= {"ended", "cancelled"}
    assert "it was idle for 5 s" in {one.reason for one in ended(profile, site) if one.state == "ended"}
