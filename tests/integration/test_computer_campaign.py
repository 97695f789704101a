"""Campaigns on a computer: the test cluster, by SSH, Slurm and HyperQueue, as a user would run them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster

import grange as gr
from grange.cli.entry import run
from grange.core import computer as computers
from grange.core.engine import Progress
from grange.core.profile import Profile

LABEL = "campaigns"


@pytest.fixture
def there(profile: Profile, cluster: Cluster) -> Iterator[Profile]:
    """A profile that knows the cluster, with workers on two nodes."""
    computer = cluster.computer(LABEL)
    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    arguments = ["--home", str(profile.home), "allocation", "start", LABEL, "--nodes", "2", "--time", "20m"]
    if computer.hyperqueue != "none":
        assert run(arguments) == 0
    yield profile
    cluster.cancel_all()


def states(profile: Profile, campaign: str) -> dict[tuple[str, int | None], int]:
    with profile.transaction() as cursor:
        cursor.execute(
            'SELECT state, exit_status, count(*) FROM process JOIN "group" g ON g.id = campaign_id '
            "WHERE g.label = %s GROUP BY 1, 2",
            (campaign,),
        )
        return {(state, status): count for state, status, count in cursor.fetchall()}


def double(x: int) -> int:
    return 2 * x


def test_programs_and_functions(there: Profile) -> None:
    campaign = gr.Campaign("mixed", there)
    campaign.map(gr.ShellJob("sh -c 'echo $(( {n} * 3 )); hostname >&2'"), n=range(300))
    campaign.map(double, x=range(200))
    done = campaign.run(progress=False, executor=LABEL)
    assert (done.done, done.failed) == (500, 0)
    frame = campaign.results()
    assert [int(text) for text in frame["stdout"][:300]] == [3 * n for n in range(300)]
    assert list(frame["result"][300:]) == [2 * x for x in range(200)]
    with there.transaction() as cursor:
        cursor.execute(
            "SELECT DISTINCT c.label, p.host FROM process p JOIN node n ON n.id = p.node_id "
            "LEFT JOIN computer c ON c.id = n.computer_id"
        )
        places = cursor.fetchall()
    assert {label for label, _ in places} == {LABEL}
    assert {host for _, host in places} <= {"node1", "node2", "node3", "node4"}
    # the next run goes where the last one went, and has nothing to do
    assert campaign.run(progress=False).computed == 0


def test_a_computer_that_is_not_there(profile: Profile) -> None:
    campaign = gr.Campaign("nowhere", profile)
    campaign.map(double, x=[1])
    with pytest.raises(gr.GrangeError, match=r"lumi.*no executor is called so"):
        campaign.run(progress=False, executor="lumi")


RUN = """
import sys
import grange as gr
profile = gr.open(sys.argv[1])
campaign = gr.Campaign("slow", profile)
campaign.map(gr.ShellJob("sh -c 'printf x >> {tally}/{{n}}; sleep 0.2; echo {{n}}'"), n=range(200))
campaign.run(progress=False, executor="{label}")
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_going_on_with_what_runs_there(
    there: Profile, cluster: Cluster, tmp_path: Path, how: signal.Signals
) -> None:
    tally = Path(cluster.work_dir) / f"tally-{how.name}"
    cluster.shell(f"mkdir {tally}")
    script = tmp_path / "slow.py"
    script.write_text(RUN.format(tally=tally, label=LABEL))
    command = [sys.executable, str(script), str(there.home)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while len(list(tally.iterdir())) < 40:
        assert time.monotonic() < until
        time.sleep(0.1)
    first.send_signal(how)
    said = first.communicate()[1]
    if how == signal.SIGINT:
        assert f"go on on {LABEL}" in said
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert states(there, "slow") == {("finished", 0): 200}
    assert {path.read_text() for path in tally.iterdir()} == {"x"}
    with there.transaction() as cursor:
        cursor.execute("SELECT max(attempt) FROM process")
        assert cursor.fetchone() == (1,)


def test_kill_by_the_command_line(
    there: Profile, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = gr.Campaign("endless", there)
    campaign.map(gr.ShellJob("sh -c 'echo begun {n}; sleep 600'"), n=range(30))
    script = "import sys, grange as gr; gr.Campaign('endless', gr.open(sys.argv[1])).run(progress=False)"
    campaign.submit(executor=LABEL)
    runner = subprocess.Popen([sys.executable, "-c", script, str(there.home)])
    home = ["--home", str(there.home)]
    until = time.monotonic() + 60
    while "sleep 600" not in cluster.shell("ps -ef"):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert run([*home, "process", "kill", "endless/0"]) == 0
    while ("killed", None) not in states(there, "endless"):
        assert time.monotonic() < until
        time.sleep(0.2)
    os.kill(runner.pid, signal.SIGKILL)
    runner.wait()
    # nobody runs it any more: whoever kills sees to it
    assert run([*home, "computer", "kill", LABEL, "--dry-run"]) == 0
    assert "29 calls on campaigns would be ended" in capsys.readouterr().out
    assert run([*home, "campaign", "kill", "endless", "--yes"]) == 0
    assert states(there, "endless") == {("killed", None): 30}
    until = time.monotonic() + 20
    while "sleep 600" in cluster.shell("ps -ef"):
        assert time.monotonic() < until
        time.sleep(0.2)
    # what was written until then is kept
    with there.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM link WHERE type = 'create' AND label = 'retrieved'")
        (kept,) = cursor.fetchone() or (0,)
    assert 1 <= kept <= 30


def test_a_campaign_gets_what_its_computers_policy_allows(profile: Profile, cluster: Cluster) -> None:
    if not cluster.confined:
        pytest.skip("network namespaces are refused here: no HyperQueue, so no allocations")
    with profile.transaction() as cursor:
        computers.add(cursor, cluster.computer(LABEL), user_id=profile.user_id)
    home = ["--home", str(profile.home)]
    scale = ["allocation", "scale", LABEL, "--max", "1", "--nodes", "2", "--time", "10m", "--idle", "1m"]
    assert run([*home, *scale]) == 0
    campaign = gr.Campaign("by-policy", profile)
    campaign.map(gr.ShellJob("echo {n}"), n=range(100))
    assert campaign.run(progress=False, executor=LABEL).done == 100
    with profile.transaction() as cursor:
        cursor.execute("SELECT nodes, by_policy FROM allocation")
        assert cursor.fetchall() == [(2, True)]
    assert run([*home, "allocation", "stop", "--all", "--now"]) == 0


def test_a_policy_that_cannot_be_followed_is_told(profile: Profile, cluster: Cluster) -> None:
    if not cluster.confined:
        pytest.skip("network namespaces are refused here: no HyperQueue, so no allocations")
    with profile.transaction() as cursor:
        computers.add(cursor, cluster.computer(LABEL, partition="nowhere"), user_id=profile.user_id)
    assert run(["--home", str(profile.home), "allocation", "scale", LABEL, "--max", "1"]) == 0
    campaign = gr.Campaign("held", profile)
    campaign.map(double, x=[1])
    notes: set[str] = set()

    def show(progress: Progress) -> None:
        notes.add(progress.note)
        if any("partition" in note for note in notes) or time.monotonic() > until:
            raise KeyboardInterrupt

    until = time.monotonic() + 60
    with pytest.raises(KeyboardInterrupt):
        campaign.run(progress=show, executor=LABEL)
    assert any("partition" in note for note in notes), notes


@pytest.mark.parametrize("mpirun", ["mpirun -np {tot_num_mpiprocs}", "srun -n {tot_num_mpiprocs} -N {nodes}"])
@pytest.mark.parametrize("hyperqueue", ["private-wheel", "none"])
def test_mpi_starts_on_the_nodes_of_the_task(
    profile: Profile, cluster: Cluster, mpirun: str, hyperqueue: str
) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun here: the package openmpi-bin is needed")
    if not cluster.confined and hyperqueue != "none":
        pytest.skip("the wheel's server needs a cluster in a namespace")
    computer = cluster.computer("parallel", mpirun=mpirun, hyperqueue=hyperqueue)
    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    start = ["--home", str(profile.home), "allocation", "start", "parallel", "--nodes", "3", "--time", "20m"]
    assert hyperqueue == "none" or run(start) == 0
    code = gr.InstalledCode("/bin/sh", with_mpi=True)
    program = ["-c", "echo ${{OMPI_COMM_WORLD_RANK:-$SLURM_PROCID}} $SLURMD_NODENAME"]
    campaign = gr.Campaign("ranks", profile)
    for cpus, count in ((2, 6), (6, 1)):
        job = gr.ShellJob(["{code}", *program, "{n}"], code=code)
        campaign.map(job, n=[cpus * 10 + n for n in range(count)], resources=gr.Resources(cpus=cpus))
    done = campaign.run(progress=False, executor="parallel")
    cluster.cancel_all()
    assert done.failed == 0, campaign.failures().to_dict("records")
    for said, ranks, nodes in zip(campaign.results()["stdout"], [2] * 6 + [6], [1] * 6 + [2], strict=True):
        lines = [line.split() for line in said.splitlines()]
        assert sorted(int(rank) for rank, _ in lines) == list(range(ranks))
        assert len({node for _, node in lines}) == nodes


class Notes:
    """What is said below the bar while a campaign runs, which is stopped when something was said."""

    def __init__(self, *wanted: str) -> None:
        self.wanted = wanted
        self.said: list[str] = []
        self._until = time.monotonic() + 90

    def __call__(self, progress: Progress) -> None:
        if progress.note and progress.note not in self.said:
            self.said.append(progress.note)
        if all(any(text in note for note in self.said) for text in self.wanted):
            raise KeyboardInterrupt
        assert time.monotonic() < self._until, self.said


def wait_for_notes(profile: Profile, name: str, *wanted: str) -> list[str]:
    campaign = gr.Campaign(name, profile)
    campaign.map(gr.ShellJob("sleep {n}"), n=[600 + n for n in range(20)])
    notes = Notes(*wanted)
    with pytest.raises(KeyboardInterrupt):
        campaign.run(progress=notes, executor="slow")
    campaign.kill()
    return notes.said


def test_why_nothing_goes_on_is_said(profile: Profile, cluster: Cluster) -> None:
    if not cluster.confined:
        pytest.skip("the wheel's server needs a cluster in a namespace")
    with profile.transaction() as cursor:
        computers.add(cursor, cluster.computer("slow"), user_id=profile.user_id)
    try:
        wait_for_notes(profile, "none", "slow: no worker is there: grange allocation start slow")
        cluster.shell(f"sbatch --nodes={cluster.nodes} --exclusive --output=/dev/null --wrap='sleep 600'")
        start = ["--home", str(profile.home), "allocation", "start", "slow", "--nodes", "1", "--time", "10m"]
        assert run(start) == 0
        wait_for_notes(profile, "queued", "slow: allocation 1 waits in the queue of Slurm (")
        cluster.cancel_all()
        assert run(start) == 0
        wait_for_notes(profile, "running", "slow: 4 cores, 20 calls there")
    finally:
        cluster.cancel_all()


def test_a_computer_that_is_lost_is_named_with_the_reason(profile: Profile, cluster: Cluster) -> None:
    with profile.transaction() as cursor:
        computers.add(cursor, cluster.computer("slow", hyperqueue="none"), user_id=profile.user_id)
    campaign = gr.Campaign("lost", profile)
    campaign.map(gr.ShellJob("sleep {n}"), n=[600])
    cluster.sshd_stop()
    try:
        notes = Notes("slow: no connection to ")
        with pytest.raises(KeyboardInterrupt):
            campaign.run(progress=notes, executor="slow")
    finally:
        cluster.sshd_start()
    assert "not tried again before" in notes.said[-1]
    campaign.kill()
