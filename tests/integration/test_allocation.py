"""Allocations on a real Slurm over a real sshd."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from grange.core import allocation as rows
from grange.core import allocation_launcher as launcher
from grange.core import allocation_policy as policies
from grange.core import computer as computers
from grange.core.allocation import Allocation
from grange.core.errors import InputInvalid
from grange.core.profile import Profile, open_profile
from grange.core.site import Site, reached
from grange.farm.allocation import AllocationRequest, request_on
from grange.farm.allocation_policy import Policy
from grange.farm.computer import Computer
from grange.farm.errors import SchedulerRefused, TransportUnavailable
from grange.farm.remote import Remote
from grange.farm.ssh_transport import SshTransport
from grange.farm.transport import Completed


def site_of(profile: Profile, computer: Computer) -> Site:
    """A computer, recorded and reached."""
    with profile.transaction() as cursor:
        stored = computers.add(cursor, computer, user_id=profile.user_id)
    return Site(stored.id, Remote(SshTransport(stored.computer), stored.computer))


@pytest.fixture
def make_site(
    profile: Profile, cluster: Cluster, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Site]]:
    """Makes computers of the cluster: make_site(**changes); no jobs are there before or afterwards."""
    cluster.cancel_all()
    made: list[Site] = []
    label = f"alloc{os.getpid()}-{time.monotonic_ns()}"

    def make(**changes: Any) -> Site:
        made.append(site_of(profile, cluster.computer(f"{label}-{len(made)}", **changes)))
        return made[-1]

    yield make
    cluster.cancel_all()
    for site in made:
        site.remote.transport.close()


def requests(site: Site, count: int = 1, **wishes: int) -> list[AllocationRequest]:
    return [request_on(site.computer, **wishes) for _ in range(count)]


def look(profile: Profile, site: Site, ids: Sequence[int], *, lost_after_s: float = 60.0) -> list[Allocation]:
    launcher.refresh(profile, site, lost_after_s=lost_after_s)
    with profile.transaction() as cursor:
        return rows.find(cursor, ids)


def wait_for(
    profile: Profile, site: Site, ids: Sequence[int], *states: str, timeout_s: float = 60.0
) -> list[Allocation]:
    """The allocations, as soon as all are in one of these states."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look(profile, site, ids)
        if all(one.state in states for one in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def wait_for_workers(site: Site, one: Allocation, count: int = 1) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 30
    while True:
        found = launcher.workers(site, [one])[one.id]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, launcher.logs(site, one)
        time.sleep(0.2)


def test_from_start_to_stop(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site()
    started = launcher.start(profile, site, requests(site, 2, walltime_s=3600))
    assert started.refused is None
    ids = [one.id for one in started.allocations]
    for one in started.allocations:
        assert (one.state, one.nodes, one.cores, one.submitter_lives) == ("queued", 1, 4, False)
        assert one.job_id
        assert one.job_id.isdigit()
    running = wait_for(profile, site, ids, "running")
    assert all(one.started_at and 3500 < (one.left_s or 0) <= 3600 for one in running)
    assert [worker["cores"] for worker in wait_for_workers(site, running[0])] == [4]

    launcher.stop(profile, site, ids[:1])
    assert launcher.wait_for_end(profile, site, ids[:1]) == []
    stopped, other = look(profile, site, ids)
    assert (stopped.state, stopped.reason) == ("cancelled", "stopped")
    assert stopped.ended_at
    assert other.state == "running"
    (worker,) = launcher.workers(site, [stopped])[stopped.id]
    assert (worker["state"], worker["reason"]) == ("ended", "stopped")

    launcher.stop(profile, site, ids, now=True)
    assert launcher.wait_for_end(profile, site, ids) == []
    assert launcher.refresh(profile, site) == []


def test_a_worker_on_each_of_several_nodes(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site()
    (one,) = launcher.start(profile, site, requests(site, nodes=3)).allocations
    wait_for(profile, site, [one.id], "running")
    assert len({worker["node"] for worker in wait_for_workers(site, one, 3)}) == 3
    launcher.stop(profile, site, [one.id])
    assert launcher.wait_for_end(profile, site, [one.id]) == []
    assert {worker["reason"] for worker in launcher.workers(site, [one])[one.id]} == {"stopped"}
    (one,) = look(profile, site, [one.id])
    assert (one.state, one.reason) == ("cancelled", "stopped")


@pytest.mark.slow
def test_workers_end_in_order_before_the_walltime(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site()
    (one,) = launcher.start(profile, site, requests(site, walltime_s=60)).allocations
    (one,) = wait_for(profile, site, [one.id], "ended", timeout_s=90)
    assert one.state == "ended"
    assert one.reason in ("stopped", "its time was over")
    assert one.elapsed_s is not None
    assert one.elapsed_s < 60
    (worker,) = launcher.workers(site, [one])[one.id]
    assert worker["state"] == "ended"


def test_one_that_waits_is_cancelled_before_it_begins(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site(directives=("--begin=now+1hour",))
    (one,) = launcher.start(profile, site, requests(site)).allocations
    (one,) = wait_for(profile, site, [one.id], "queued")
    deadline = time.monotonic() + 20
    while one.reason != "BeginTime":
        assert time.monotonic() < deadline, one
        (one,) = look(profile, site, [one.id])
    assert (one.started_at, one.left_s) == (None, 3600)
    launcher.stop(profile, site, [one.id])
    assert launcher.wait_for_end(profile, site, [one.id]) == []
    (one,) = look(profile, site, [one.id])
    assert (one.state, one.reason, one.started_at) == ("cancelled", "stopped", None)


def test_a_wrong_partition_fails_with_its_reason_and_is_counted(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site(partition="nowhere")
    with profile.transaction() as cursor:
        policies.write(cursor, site.id, site.computer, Policy(max_allocations=2))
    started = launcher.start(profile, site, requests(site, 3))
    assert started.refused is not None
    assert not started.refused.retryable
    assert "nvalid partition" in str(started.refused)
    assert [one.state for one in started.allocations] == ["failed", "cancelled", "cancelled"]
    assert "nvalid partition" in started.allocations[0].reason
    with profile.transaction() as cursor:
        stored = policies.find(cursor, site.id, site.computer)
    assert stored is not None
    assert stored.policy.failures == 1
    assert 50 < stored.policy.held_until_s - time.time() <= 60
    assert "nvalid partition" in stored.held_reason


def test_an_allocation_that_fails_is_counted_and_one_that_does_well_forgives(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site(append_text="exit 3")
    with profile.transaction() as cursor:
        policies.write(cursor, site.id, site.computer, Policy(max_allocations=2))
    (one,) = launcher.start(profile, site, requests(site)).allocations
    wait_for(profile, site, [one.id], "running")
    wait_for_workers(site, one)
    # from its own side, not by us
    folder = site.paths.folder(one.token)
    site.remote.transport.put([(b"", f"{folder}/stop")])
    (one,) = wait_for(profile, site, [one.id], "failed")
    assert one.reason == "FAILED: NonZeroExitCode"
    with profile.transaction() as cursor:
        stored = policies.find(cursor, site.id, site.computer)
        assert stored is not None
        assert (stored.policy.failures, stored.held_reason) == (1, "FAILED: NonZeroExitCode")

    well = Site(site.id, Remote(site.remote.transport, Computer(**{
        **{name: getattr(site.computer, name) for name in Computer.__dataclass_fields__}, "append_text": "",
    })))  # fmt: skip
    (two,) = launcher.start(profile, well, requests(site, idle_s=1)).allocations
    wait_for(profile, well, [two.id], "running")
    wait_for_workers(well, two)
    site.remote.transport.put([(b"", f"{site.paths.folder(two.token)}/stop")])
    wait_for(profile, well, [two.id], "ended")
    with profile.transaction() as cursor:
        stored = policies.find(cursor, site.id, site.computer)
    assert stored is not None
    assert (stored.policy.failures, stored.policy.held_until_s, stored.held_reason) == (0, 0.0, "")


def test_somebody_cancels_it(profile: Profile, make_site: Callable[..., Site], cluster: Cluster) -> None:
    site = make_site()
    (one,) = launcher.start(profile, site, requests(site)).allocations
    wait_for(profile, site, [one.id], "running")
    cluster.shell(f"scancel {one.job_id}")
    (one,) = wait_for(profile, site, [one.id], "cancelled", "ended")
    assert one.reason != "stopped"


def test_what_allocations_cannot_be_on(profile: Profile, make_site: Callable[..., Site]) -> None:
    for changes, message in (
        ({"hyperqueue": "none"}, "a computer with HyperQueue"),
        ({"scheduler": "direct"}, "the scheduler slurm"),
    ):
        site = make_site(**changes)
        with pytest.raises(InputInvalid, match=message):
            launcher.start(profile, site, requests(site))


def test_an_account_that_may_not_cancel_leaves_a_mark(
    profile: Profile, cluster: Cluster, make_site: Callable[..., Site]
) -> None:
    computer = cluster.restricted_computer(f"restricted{os.getpid()}", directives=("--begin=now+8",))
    with profile.transaction() as cursor:
        stored = computers.add(cursor, computer, user_id=profile.user_id)
    with reached(profile, stored.computer.label) as site:
        one, two = launcher.start(profile, site, requests(site, 2)).allocations
        launcher.stop(profile, site, [two.id])
        # nobody can take it out of the queue; when its turn comes, it ends at once
        (left,) = launcher.wait_for_end(profile, site, [two.id], grace_s=0.5)
        assert left.is_stopping
        (two,) = wait_for(profile, site, [two.id], "cancelled")
        assert two.reason == "stopped"
        assert launcher.workers(site, [two])[two.id] == []

        wait_for(profile, site, [one.id], "running")
        wait_for_workers(site, one)
        launcher.stop(profile, site, [one.id])
        assert launcher.wait_for_end(profile, site, [one.id]) == []
        (one,) = look(profile, site, [one.id])
        assert (one.state, one.reason) == ("cancelled", "stopped")
        assert {worker["reason"] for worker in launcher.workers(site, [one])[one.id]} == {"stopped"}


# ---------------------------------------------------------------- bounds


def test_the_bounds_hold(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site(max_allocations=3, max_queued_jobs=2, directives=("--begin=now+1hour",))
    with pytest.raises(SchedulerRefused, match=r"beyond max_queued_jobs \(2\)"):
        launcher.start(profile, site, requests(site, 3))
    assert len(launcher.start(profile, site, requests(site, 2)).allocations) == 2
    with pytest.raises(SchedulerRefused, match="2 allocations are open there, and 1 more") as caught:
        launcher.start(profile, site, requests(site, 1))
    assert caught.value.retryable


def test_the_bounds_hold_over_all_processes_together(
    profile: Profile, make_site: Callable[..., Site]
) -> None:
    site = make_site(max_allocations=5, max_queued_jobs=5)
    refused = []

    def reserve() -> None:
        with open_profile(profile.home) as mine:
            for _ in range(3):
                try:
                    with mine.transaction() as cursor:
                        rows.reserve(cursor, site.id, site.computer, requests(site))
                except SchedulerRefused as error:
                    refused.append(error)

    threads = [threading.Thread(target=reserve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    with profile.transaction() as cursor:
        assert len(rows.open_allocations(cursor, site.id)) == 5


# ---------------------------------------------------------------- interruptions


def _reserve_and_die(home: Path, computer_id: int, computer: Computer, wish: AllocationRequest) -> None:
    with open_profile(home) as profile:
        with profile.transaction() as cursor:
            rows.reserve(cursor, computer_id, computer, [wish])
        os.kill(os.getpid(), signal.SIGKILL)


def _submit_and_die(home: Path, computer_id: int, computer: Computer, wish: AllocationRequest) -> None:
    class Dying:
        """A transport that dies when the job is in the queue and nobody knows its number."""

        def __init__(self, inner: SshTransport) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def run(self, argv: Sequence[str], **more: Any) -> Completed:
            done = self._inner.run(argv, **more)
            if argv[0] == "sbatch":
                assert done.status == 0
                os.kill(os.getpid(), signal.SIGKILL)
            return done

    with open_profile(home) as profile:
        transport: Any = Dying(SshTransport(computer))
        launcher.start(profile, Site(computer_id, Remote(transport, computer)), [wish])


def _killed(target: Callable[..., None], *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_killed_between_the_row_and_sbatch(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site(max_allocations=1)
    (wish,) = requests(site)
    _killed(_reserve_and_die, profile.home, site.id, site.computer, wish)
    with profile.transaction() as cursor:
        (one,) = rows.open_allocations(cursor, site.id)
    assert (one.state, one.token, one.submitter_lives) == ("submitting", wish.token, False)
    # it counts until it is known that it never was
    with pytest.raises(SchedulerRefused):
        launcher.start(profile, site, requests(site))
    assert launcher.refresh(profile, site) == []
    (change,) = launcher.refresh(profile, site, lost_after_s=0.0)
    assert (change.after.state, change.after.reason) == ("cancelled", rows.NEVER_SUBMITTED)
    assert launcher.start(profile, site, requests(site)).refused is None


def test_killed_between_sbatch_and_the_row(
    profile: Profile, make_site: Callable[..., Site], cluster: Cluster
) -> None:
    site = make_site()
    site.remote.prepare()
    (wish,) = requests(site)
    _killed(_submit_and_die, profile.home, site.id, site.computer, wish)
    with profile.transaction() as cursor:
        (one,) = rows.open_allocations(cursor, site.id)
    assert (one.state, one.job_id) == ("submitting", None)
    (one,) = wait_for(profile, site, [one.id], "running")
    assert one.job_id == cluster.shell(f"squeue -h --name={wish.name} -o %i").strip()


def test_a_job_that_turns_up_after_it_was_given_up(profile: Profile, make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.remote.prepare()
    (wish,) = requests(site)
    with profile.transaction() as cursor:
        ids = rows.reserve(cursor, site.id, site.computer, [wish])
        rows.release(cursor, ids)
    (one,) = look(profile, site, ids, lost_after_s=0.0)
    assert one.state == "cancelled"
    folder = site.paths.folder(wish.token)
    launcher._send(site, [wish])
    assert site.remote.transport.run(["sbatch", "--parsable", "job.sh"], cwd=folder).status == 0
    (one,) = wait_for(profile, site, ids, "running")
    assert (one.reason, one.ended_at) == ("", None)


def test_sbatch_is_run_twice(profile: Profile, make_site: Callable[..., Site], cluster: Cluster) -> None:
    """A connection that is made again repeats what it was asked: one of the two jobs is the allocation."""
    site = make_site(directives=("--begin=now+3",))
    (one,) = launcher.start(profile, site, requests(site)).allocations
    folder = site.paths.folder(one.token)
    assert site.remote.transport.run(["sbatch", "--parsable", "job.sh"], cwd=folder).status == 0
    names = f"squeue -h -t PENDING,RUNNING --name={one.name} -o %i"
    assert len(cluster.shell(names).split()) == 2
    look(profile, site, [one.id])
    assert cluster.shell(names).split() == [one.job_id]
    # and where nobody may cancel it
    assert site.remote.transport.run(["sbatch", "--parsable", "job.sh"], cwd=folder).status == 0
    deadline = time.monotonic() + 30
    while len(cluster.shell(f"squeue -h -t all --name={one.name} -o %T").splitlines()) < 3 or "PENDING" in (
        cluster.shell(f"squeue -h -t all --name={one.name} -o %T")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    time.sleep(1.0)
    assert len(cluster.shell(names).split()) == 1
    (one,) = look(profile, site, [one.id])
    assert one.state == "running"
    assert cluster.shell(names).split() == [one.job_id]


def test_the_answer_of_sbatch_is_lost(
    profile: Profile, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    site.remote.prepare()
    run = site.remote.transport.run

    def lossy(argv: Sequence[str], **more: Any) -> Completed:
        done = run(argv, **more)
        if argv[0] == "sbatch":
            raise TransportUnavailable(site.computer.label, "the connection was lost")
        return done

    monkeypatch.setattr(site.remote.transport, "run", lossy)
    with pytest.raises(TransportUnavailable):
        launcher.start(profile, site, requests(site, 2))
    with profile.transaction() as cursor:
        newest = rows.list_allocations(cursor, site.id, ended=True, limit=9, before=2**31 - 1)
    assert [(one.state, one.reason) for one in newest] == [("cancelled", "not submitted"), ("submitting", "")]
    (one,) = wait_for(profile, site, [newest[1].id], "running")
    assert one.job_id


def test_slurm_that_does_not_answer_ends_nothing(
    profile: Profile, make_site: Callable[..., Site], cluster: Cluster
) -> None:
    site = make_site()
    (one,) = launcher.start(profile, site, requests(site)).allocations
    wait_for(profile, site, [one.id], "running")
    cluster.slurmctld_stop()
    try:
        with pytest.raises(SchedulerRefused) as caught:
            launcher.refresh(profile, site, lost_after_s=0.0)
        assert caught.value.retryable
        with profile.transaction() as cursor:
            assert rows.find(cursor, [one.id])[0].state == "running"
    finally:
        cluster.slurmctld_start()
    assert look(profile, site, [one.id])[0].state == "running"
