"""What a daemon does: workflows and calculations that were submitted are run, whoever is killed meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import grange as gr
from grange.core import profile_lock, store_lock
from grange.core.daemon_client import DaemonClient
from grange.core.daemon_rows import PartRow
from grange.core.profile import Profile, open_profile

PATIENCE_S = 120.0


def double(n: int) -> int:
    time.sleep(0.01)
    return 2 * n


@gr.calcfunction
def add(x: int, y: int) -> int:
    return x + y


@gr.workflow
def child(n: int) -> gr.Data:
    """A calculation on the farm, then one in the worker."""
    return add(gr.submit(double, n=n).result(), 1)


def wait_at(gate: str) -> int:
    """A calculation that ends only once there is a file."""
    while not Path(gate).exists():
        time.sleep(0.02)
    return 0


@gr.workflow
def family(n: int, count: int, gate: str) -> gr.Data:
    """Workflows in parallel, and what they give added up; done only when the gate is open."""
    waits = gr.submit(wait_at, gate=gate)
    children = [gr.submit(child, n=n.value + k) for k in range(count.value)]
    total = add(0, 0)
    for one in [*children, waits]:
        total = add(total, one.result())
    return total


def calls_of_family(count: int) -> int:
    """How many processes a family is: itself, what waits, children with two calls each, its own additions."""
    return 1 + 1 + 3 * count + (count + 2)


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.02)


def count(profile: Profile, query: str) -> int:
    with profile.transaction() as cursor:
        cursor.execute(query)
        (found,) = cursor.fetchone() or (0,)
    return int(found)


def hosts_of(profile: Profile, ids: Sequence[int]) -> set[str]:
    """On which hosts workflows have ended."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT DISTINCT worker.host FROM process JOIN worker ON worker.id = process.worker_id"
            " WHERE node_id = ANY (%s)",
            (list(ids),),
        )
        return {host for (host,) in cursor.fetchall()}


@pytest.fixture
def client(profile: Profile) -> Iterator[DaemonClient]:
    """The daemon of a profile of its own, not started, with slots for what waits beside what does not."""
    with (profile.home / "profile.toml").open("a") as file:
        file.write("slots = 5\n[daemon]\ngrace_s = 5\n")
    client = DaemonClient(profile)
    yield client
    with suppress(gr.DaemonNotRunningException):
        client.stop_daemon()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Not open yet."""
    return tmp_path / "gate"


def test_what_was_submitted_is_done_once_whoever_is_killed(
    client: DaemonClient, profile: Profile, gate: Path
) -> None:
    client.start_daemon(2)
    families, children = 3, 30
    futures = gr.submit_many(
        family, n=[100 * k for k in range(families)], count=children, gate=str(gate), profile=profile
    )
    finished = "SELECT count(*) FROM process WHERE state = 'finished' AND workflow"

    def parts(role: str) -> Sequence[PartRow]:
        status = client.get_status()
        return status.workers if role == "worker" else status.dispatchers

    def kill(role: str, after: int) -> None:
        """Kill one of them, once so many workflows have finished."""
        until(lambda: count(profile, finished) >= after and bool(parts(role)), f"{after} have finished")
        os.kill(parts(role)[0].pid, signal.SIGKILL)

    kill("worker", 5)
    kill("dispatcher", 20)
    kill("worker", 40)
    client.stop_daemon()
    owned = "SELECT count(*) FROM process WHERE workflow AND worker_id IS NOT NULL AND state <> 'finished'"
    assert count(profile, owned) == 0
    client.start_daemon(2)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not client.is_daemon_running, "the supervisor is gone")
    assert not any(future.is_terminated for future in futures)
    gate.touch()
    client.start_daemon(2)
    assert futures.wait(timeout_s=PATIENCE_S, progress=False)
    expected = [sum(2 * (100 * k + c) + 1 for c in range(children)) for k in range(families)]
    assert [node.value for node in futures.results(progress=False)] == expected
    assert count(profile, "SELECT count(*) FROM process") == families * calls_of_family(children)
    assert count(profile, "SELECT count(*) FROM process WHERE state <> 'finished' OR exit_status <> 0") == 0
    assert count(profile, "SELECT count(*) FROM link WHERE type = 'create'") == families * (
        1 + 3 * children + 2
    )
    client.stop_daemon()
    assert count(profile, "SELECT count(*) FROM worker WHERE ended_at IS NULL AND role <> 'client'") == 0


def test_a_lock_lets_workflows_rest_and_go_on(client: DaemonClient, profile: Profile, gate: Path) -> None:
    client.start_daemon(2)
    future = gr.submit(family, n=0, count=10, gate=str(gate), profile=profile)
    finished = "SELECT count(*) FROM process WHERE state = 'finished'"
    until(lambda: count(profile, finished) > 5, "it has begun")
    with profile.transaction() as cursor:
        profile_lock.lock(cursor, "a new disk", "ada")
    assert profile_lock.wait_until_idle(profile, PATIENCE_S) == []
    # nor does anybody have files open: the store could be moved now
    until(lambda: store_lock.holders(profile.connection)[0] == 0, "nobody has the store open")
    done = count(profile, finished)
    gate.touch()
    time.sleep(1.2)  # longer than anybody waits until he looks again
    assert count(profile, finished) == done
    campaign = gr.Campaign("refused", profile)
    campaign.map(double, n=[1])
    with pytest.raises(gr.ProfileLocked):
        campaign.run(progress=False)
    with profile.transaction() as cursor:
        profile_lock.unlock(cursor)
    assert future.wait(PATIENCE_S)
    assert future.result().value == sum(2 * c + 1 for c in range(10))


def test_daemons_of_two_hosts_share_the_work(client: DaemonClient, profile: Profile, tmp_path: Path) -> None:
    """The second host is this machine under another name."""
    home = tmp_path / "barn2"
    home.mkdir()
    settings = (profile.home / "profile.toml").read_text()
    (home / "profile.toml").write_text(f'store = "{profile.home / "store"}"\n{settings}')
    flags = "-u" if os.geteuid() == 0 else "-ru"
    start = [sys.executable, "-m", "grange", "--home", str(home), "daemon", "start", "--foreground", "1"]
    command = ["unshare", flags, "sh", "-c", 'hostname barn2 && exec "$@"', "sh", *start]
    client.start_daemon(1)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(client.get_statuses()) == 2, "both are there")
            assert [one.daemon.host for one in client.get_statuses()][1] == "barn2"
            other = DaemonClient(profile, host="barn2", home=str(home))
            here = client.get_status().daemon.host
            for idle, busy, host, first in ((client, other, "barn2", 0), (other, client, here, 20)):
                idle.decrease_workers(1, wait=True)
                numbers = range(first, first + 20)
                futures = gr.submit_many(child, n=numbers, profile=profile)
                assert futures.wait(timeout_s=PATIENCE_S, progress=False)
                assert [node.value for node in futures.results(progress=False)] == [
                    2 * n + 1 for n in numbers
                ]
                assert hosts_of(profile, futures.ids) == {host}
                assert idle.increase_workers(1, wait=True) == len(busy.get_status().workers) == 1
            # what a worker calls is run on the worker's host
            for one, host in ((client, here), (other, "barn2")):
                assert [part.queue for part in one.get_status().dispatchers] == [f"local@{host}"]
            # one host cannot end the other's; whoever asks by the database can
            client.stop_daemon()
            assert [one.daemon.host for one in client.get_statuses()] == ["barn2"]
            assert other.get_status().is_whole
            other.stop_daemon()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.terminate()


@gr.calcfunction
def deadly(n: int) -> int:
    """As a library does that ends the process it is called from."""
    os._exit(7)


@gr.workflow
def careless(n: int) -> gr.Data:
    return add(deadly(n), 1)


def test_a_workflow_that_ends_its_worker_ends_no_other(client: DaemonClient, profile: Profile) -> None:
    client.start_daemon(1)
    bad = gr.submit(careless, n=1, profile=profile)
    good = gr.submit_many(child, n=range(5), profile=profile)
    assert good.wait(timeout_s=PATIENCE_S, progress=False)
    assert [node.value for node in good.results(progress=False)] == [2 * n + 1 for n in range(5)]
    until(
        lambda: count(profile, f"SELECT count(*) FROM process WHERE paused AND node_id = {bad.id}") == 1,
        "paused",
    )
    with profile.transaction() as cursor:
        cursor.execute("SELECT exit_message FROM process WHERE node_id = %s", (bad.id,))
        (message,) = cursor.fetchone() or ("",)
    assert message.startswith("workers die of its code again and again; the last one ended with status 7: ")
    until(lambda: client.get_status().is_whole, "there is a worker again")
    (worker,) = client.get_status().workers
    again = gr.submit(child, n=77, profile=profile)
    assert again.wait(PATIENCE_S)
    assert [part.pid for part in client.get_status().workers] == [worker.pid]


@gr.workflow
def endless(n: int) -> None:
    while n is not None:
        pass


def test_code_that_never_comes_back_can_be_killed(client: DaemonClient, profile: Profile) -> None:
    client.start_daemon(1)
    bad = gr.submit(endless, n=1, profile=profile)
    good = gr.submit(child, n=2, profile=profile)
    until(
        lambda: count(profile, f"SELECT count(*) FROM process WHERE worker_id > 0 AND node_id = {bad.id}"),
        "run",
    )
    gr.kill_processes([bad.id], profile=profile)
    assert bad.wait(PATIENCE_S)
    assert (bad.state, bad.exit_message) == ("killed", f"killed by {profile.config.email}")
    assert good.wait(PATIENCE_S)
    assert good.is_finished_ok


def test_the_profile_of_a_worker_is_that_of_its_daemon(client: DaemonClient, profile: Profile) -> None:
    """Code of a workflow that opens a profile by itself gets the same one."""
    client.start_daemon(1)
    future = gr.submit(where_am_i, profile=profile)
    assert future.wait(PATIENCE_S)
    assert future.result().value == str(profile.home)


@gr.calcfunction
def home_of_environment() -> str:
    with open_profile() as opened:
        return str(opened.home)


@gr.workflow
def where_am_i() -> gr.Data:
    return home_of_environment()
