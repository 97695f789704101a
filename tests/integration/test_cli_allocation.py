"""`grange allocation` on a real Slurm over a real sshd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster

from grange.cli.entry import run
from grange.core import allocation as rows
from grange.core import computer as computers
from grange.core.profile import Profile

Said = tuple[int, str, str]


@pytest.fixture
def label(profile: Profile, cluster: Cluster) -> Iterator[str]:
    """A computer of the cluster whose jobs are gone afterwards."""
    computer = cluster.computer(f"cli{os.getpid()}-{time.monotonic_ns()}")
    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    yield computer.label
    cluster.cancel_all()


@pytest.fixture
def grange(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs `grange allocation …`: → exit status, standard output, standard error."""

    def grange(*arguments: str) -> Said:
        capsys.readouterr()
        status = run(["--home", str(profile.home), "allocation", *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return grange


def documents(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def wait_for(grange: Callable[..., Said], label: str, state: str, workers: int = 0) -> list[dict[str, Any]]:
    """The open allocations as soon as all are so, with so many workers each."""
    deadline = time.monotonic() + 40
    while True:
        found = documents(grange("list", label, "--json")[1])
        if all(one["state"] == state and len(one["workers"] or ()) >= workers for one in found):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def test_from_start_to_stop(grange: Callable[..., Said], label: str) -> None:
    assert grange("list", label) == (0, f"no open allocation on {label}\n", "")
    status, out, _ = grange("start", label, "--nodes", "2", "--time", "1h", "--idle", "10m")
    assert status == 0
    assert out.startswith("allocation 1 is job ")
    assert out.endswith(f" of {label}: 2 nodes, 1 h\n")
    (one,) = wait_for(grange, label, "running", workers=2)
    assert (one["nodes"], one["cores"], one["walltime_s"], one["idle_s"]) == (2, 8, 3600, 600)
    assert 3500 < one["left_s"] <= 3600

    status, out, err = grange("list")
    assert (status, err) == (0, "")
    head, line = out.splitlines()
    assert head.split() == ["id", "computer", "job", "state", "nodes", "cores", "time", "workers"]
    assert line.split()[:6] == ["1", label, one["job_id"], "running", "2", "8"]
    assert line.split()[-2:] == ["left", "2"]

    status, out, _ = grange("show", "1")
    assert status == 0
    assert f"grange-{one['name'].removeprefix('grange-')}" in out
    assert out.count("running") == 3  # it, and its two workers
    assert json.loads(grange("show", "1", "--json")[1])["workers"]

    assert grange("stop", "--all", "--computer", label, "--dry-run") == (
        0, f"would stop allocation 1: running, job {one['job_id']} of {label}\n", "",
    )  # fmt: skip
    assert grange("stop", "1") == (0, "allocation 1 cancelled: stopped\n", "")
    assert grange("stop", "1") == (0, "allocation 1 has ended already\n", "")
    assert grange("stop", "--all") == (0, "no open allocation\n", "")
    assert "cancelled" in grange("list", "--all")[1]
    status, out, _ = grange("log", "1")
    assert status == 0
    assert out.startswith("log:\n")
    assert "CANCELLED AT" in out  # Slurm's word for a signal to the script


def test_what_is_said_wrongly(grange: Callable[..., Said], label: str) -> None:
    for arguments, status, message in (
        (("start", label, "--time", "90"), 2, "expected 2h, 90m"),
        (("start", label, "--time", "30s"), 1, "time: expected 60 seconds or more"),
        (("start", label, "--nodes", "4", "--max-nodes", "2"), 2, "expected at least 4"),
        (("start", label, "--count", "17"), 1, r"beyond max_allocations (16)"),
        (("start", "nowhere"), 1, "there is no computer 'nowhere'"),
        (("stop",), 2, "expected IDs of allocations, or --all"),
        (("stop", "1", "--all"), 2, "expected IDs of allocations, or --all"),
        (("stop", "77"), 1, "there is no allocation 77"),
        (("show", "77"), 1, "there is no allocation 77"),
        (("scale", label), 1, "nothing was said yet"),
        (("scale", label, "--max", "17"), 1, "max: expected 0 to 16"),
        (("watch", "nowhere"), 1, "there is no computer 'nowhere'"),
    ):
        found, out, err = grange(*arguments)
        assert (found, out) == (status, ""), arguments
        assert message in err


def test_a_computer_that_is_disabled_is_left_alone(
    grange: Callable[..., Said], label: str, profile: Profile
) -> None:
    with profile.transaction() as cursor:
        computers.enable(cursor, [label], user_id=profile.user_id, enabled=False)
    status, _, err = grange("start", label)
    assert status == 1
    assert f"grange computer enable {label}" in err


def test_a_policy(grange: Callable[..., Said], label: str) -> None:
    status, out, _ = grange("scale", label, "--max", "3", "--nodes", "2", "--time", "2h", "--idle", "5m")
    assert status == 0
    assert "0 to 3" in out
    assert "2 nodes, 8 cores, for 2 h" in out
    assert "0 tasks" in out
    grange("scale", label, "--min", "1")
    policy = json.loads(grange("scale", label, "--json")[1])["policy"]
    assert (policy["min_allocations"], policy["max_allocations"], policy["nodes"]) == (1, 3, 2)
    grange("scale", label, "--max", "0")
    policy = json.loads(grange("scale", label, "--json")[1])["policy"]
    assert (policy["min_allocations"], policy["max_allocations"]) == (0, 0)


def test_a_refusal_of_slurm_is_an_error(
    grange: Callable[..., Said], label: str, profile: Profile, cluster: Cluster
) -> None:
    with profile.transaction() as cursor:
        computers.replace(cursor, cluster.computer(label, partition="nowhere"), user_id=profile.user_id)
    status, out, err = grange("start", label)
    assert (status, out) == (1, "")
    assert f"{label}: sbatch: invalid partition specified: nowhere" in err
    line = grange("list", "--all")[1].splitlines()[1]
    assert "failed" in line
    assert "nvalid partition" in line


def test_a_computer_that_does_not_answer_is_shown_as_it_was(
    grange: Callable[..., Said], label: str, cluster: Cluster
) -> None:
    grange("start", label)
    cluster.slurmctld_stop()
    try:
        status, out, err = grange("list")
        assert status == 0
        assert label in out
        assert f"what was known last of {label} is shown" in err
    finally:
        cluster.slurmctld_start()
    assert grange("list", "--no-refresh")[2] == ""


def test_max_nodes_writes_a_policy_which_is_watched(
    grange: Callable[..., Said], label: str, profile: Profile
) -> None:
    status, out, _ = grange("start", label, "--nodes", "1", "--max-nodes", "3", "--time", "10m")
    assert status == 0
    assert f"`grange allocation watch {label}` starts more" in out
    policy = json.loads(grange("scale", label, "--json")[1])["policy"]
    assert (policy["max_allocations"], policy["nodes"], policy["walltime_s"]) == (3, 1, 600)
    status, out, _ = grange("scale", label, "--min", "2", "--json")
    status, out, err = grange("watch", "--once", "--json")
    assert (status, err) == (0, "")
    assert [event["event"] for event in documents(out) if event["event"] != "changed"] == ["started"] * 2
    with profile.transaction() as cursor:
        computer_id = computers.computer_id(cursor, label)
        assert len(rows.open_allocations(cursor, computer_id)) == 3


def test_watching_ends_by_ctrl_c_and_leaves_what_is_there(
    grange: Callable[..., Said], label: str, profile: Profile
) -> None:
    grange("scale", label, "--min", "1", "--max", "1", "--time", "10m")
    watching = subprocess.Popen(
        [sys.executable, "-m", "grange", "--home", str(profile.home), "allocation", "watch", "--every", "1s"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout
    assert "allocation 1 submitted: 1 node for 00:10:00" in watching.stdout.readline()
    assert "running" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err.strip()) == (130, "interrupted")
    (one,) = documents(grange("list", label, "--json")[1])
    assert one["state"] == "running"
