"""Things break while thousands of calculations are under way on a real Slurm, reached over a real sshd.

After each fault every calculation has ended exactly once with the right output, and nothing is left over.
HyperQueue runs by its wheel, and by the program hq where there is one (on PATH, or named by GRANGE_TEST_HQ).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_campaign import FaultCampaign
from fault_site import FaultSite, stopped, wait_until

from grange.core import allocation_policy as policies
from grange.core.allocation_watch import follow
from grange.core.profile import Profile, open_profile
from grange.core.site import reached
from grange.farm.allocation_policy import Policy

Make = Callable[..., FaultCampaign]
#: Tasks that run at once: so many may be started again when all that runs is ended.
SLOTS = 16


def test_nothing_breaks(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    assert running.end() == [running.count, 0, 0]
    running.check()
    assert running.repeated() == 0


def test_an_allocation_is_cancelled(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    site.cluster.shell("scancel " + " ".join(site.jobs()))
    site.allocate()
    running.end()
    running.check()
    assert running.repeated() <= SLOTS


def test_a_policy_starts_another_allocation_for_one_that_is_told_to_end(
    site: FaultSite, campaign: Make, profile: Profile
) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    (job,) = site.jobs()
    with profile.transaction() as cursor:
        cursor.execute("SELECT id FROM computer WHERE label = %s", (site.computer.label,))
        (computer_id,) = cursor.fetchone() or (0,)
        policies.write(
            cursor,
            computer_id,
            site.computer,
            Policy(max_allocations=1, nodes=4, walltime_s=1800, idle_s=300),
        )
    site.cluster.shell(f"scancel -b -s TERM {job}")
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(profile.home, site.computer.label, ended))
    watching.start()
    try:
        running.end()
    finally:
        ended.set()
        watching.join()
    running.check()
    assert running.repeated() <= SLOTS
    assert job not in site.jobs()


def _watch(home: Path, label: str, ended: threading.Event) -> None:
    with open_profile(home) as profile, reached(profile, label) as site:
        while not ended.wait(0.5):
            follow(profile, site)


@pytest.mark.parametrize("what", ["slurmd", "supervisor", "worker", "runner", "server"])
def test_something_there_is_killed(site: FaultSite, campaign: Make, what: str) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    if what == "slurmd":
        site.cluster.slurmd_kill("node1")
    else:
        found = {
            "supervisor": site.supervisors,
            "worker": site.workers,
            "runner": site.runners,
            "server": site.servers,
        }[what]()
        assert found
        found[0].kill()
    running.end()
    running.check()
    # what ran on one node ran again; without the server, on all
    assert running.repeated() <= SLOTS * 60


def test_our_process_is_killed(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign()
    for count in (20, 300, 900):
        running.start()
        running.wait_for(count)
        running.kill()
    running.start()
    done, failed, _ = running.end()
    assert (done, failed) == (running.count, 0)
    running.check()
    # what was sent went on there, and nothing of it was sent again
    assert running.repeated() == 0


def test_a_worker_is_stopped_until_it_is_given_up_and_wakes(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign(seconds=0.05).start()
    running.in_midst()
    pids = [
        pid for one in [*site.supervisors(), *site.workers()] if one.node == "node1" for pid in site.tree(one)
    ]
    with stopped(pids):
        # others go on with the chunks that it has, in folders beside them
        wait_until(lambda: "+" in running.tally.read_text(), 100, running.told)
    running.end()
    running.check()
    assert running.repeated() > 0


@pytest.mark.slow
def test_a_login_node_is_away_for_a_minute(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    site.cluster.sshd_stop()
    time.sleep(60.0)
    site.cluster.sshd_start()
    running.end(60)
    running.check()
    assert running.repeated() == 0


def test_the_database_ends_our_sessions(site: FaultSite, campaign: Make, profile: Profile) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert running.process is not None
    running.process.communicate(timeout=60)
    assert running.process.returncode != 0
    assert "database" in (profile.home / "errors").read_text()
    running.start()
    running.end()
    running.check()
    assert running.repeated() == 0


def test_a_login_node_is_started_again(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    site.cluster.sshd_stop()
    for one in [*site.servers(), *site.processes("agent.py poll")]:
        one.kill()
    time.sleep(3)
    site.cluster.sshd_start()
    running.end(60)
    running.check()


def test_kills_at_random_times(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    luck = random.Random(20240229)
    running = campaign(seconds=0.05).start()
    running.in_midst()
    done = []
    for _ in range(5):
        kind = luck.choice(["ours", "supervisor", "worker", "runner", "server", "agent", "job"])
        done.append(kind)
        time.sleep(luck.uniform(0.2, 2.0))
        if running.process is not None and running.process.poll() == 0:
            break
        _kill_one(site, running, kind, luck)
    running.end(60)
    running.check()


def _kill_one(site: FaultSite, running: FaultCampaign, kind: str, luck: random.Random) -> None:
    if kind == "ours":
        running.kill()
        running.start()
        return
    if kind == "job":
        site.cluster.shell("scancel " + " ".join(site.jobs()))
        site.allocate()
        return
    found = {
        "supervisor": site.supervisors,
        "worker": site.workers,
        "runner": site.runners,
        "server": site.servers,
        "agent": lambda: site.processes("agent.py poll"),
    }[kind]()
    if found:
        luck.choice(found).kill()
