"""`grange computer test` against a real sshd and Slurm: each thing that can be wrong is found where it is."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster

from grange.cli.entry import run
from grange.core import allocation as allocations
from grange.core import computer as computers
from grange.core.computer_test import CONNECTING, Step
from grange.core.connection import master_folder
from grange.core.profile import Profile
from grange.farm.computer import Computer
from grange.farm.control_master import close_master

STEPS = [
    "reach", "host key", "authenticate", "shell is quiet", "files", "python", "work directory", "clocks",
    "scheduler", "our code", "hyperqueue", "one task", "spool",
]  # fmt: skip

Examine = Callable[..., dict[str, Step]]


@pytest.fixture
def examine(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Adds a computer and tests it by the command line; returns its steps by name."""

    def test(computer: Computer, *words: str, status: int = 0) -> dict[str, Step]:
        with profile.transaction() as cursor:
            computers.add(cursor, computer, user_id=profile.user_id)
        ended = run(["--home", str(profile.home), "computer", "test", computer.label, "--json", *words])
        said = capsys.readouterr()
        steps = {step["name"]: Step(**step) for step in map(json.loads, said.out.splitlines())}
        assert ended == status, steps
        return steps

    return test


def with_ssh(computer: Computer, **changes: Any) -> Computer:
    return dataclasses.replace(computer, ssh=dataclasses.replace(computer.ssh, **changes))


def check_failure(steps: dict[str, Step], name: str, detail: str, advice: str) -> None:
    """One step failed as expected, those before it did not, and those after it were skipped."""
    assert list(steps) == STEPS
    before, after = STEPS[: STEPS.index(name)], STEPS[STEPS.index(name) + 1 :]
    assert [steps[one].state for one in before] == ["ok"] * len(before), steps
    assert steps[name].state == "failed"
    assert detail in steps[name].detail
    assert advice in steps[name].advice
    assert [(steps[one].state, steps[one].detail) for one in after] == [
        ("skipped", f"because of {name}")
    ] * len(after)


# ---------------------------------------------------------------- well


def test_a_good_computer(cluster: Cluster, profile: Profile, examine: Examine) -> None:
    steps = examine(cluster.computer("good"), "--timeout", "120")
    assert list(steps) == STEPS
    skipped = set() if cluster.confined else {"hyperqueue"}
    assert {name for name, step in steps.items() if step.state == "skipped"} == skipped
    assert all(step.state != "failed" for step in steps.values())
    assert steps["shell is quiet"].detail == f"as {cluster.user}"
    assert "MiB free" in steps["work directory"].detail
    assert "ran on node" in steps["one task"].detail
    assert all(not step.advice and step.seconds >= 0 for step in steps.values())
    # Nothing is left behind.
    with profile.transaction() as cursor:
        identity = computers.computer_id(cursor, "good")
        assert allocations.open_allocations(cursor, identity) == []
        assert computers.summary(cursor, "good", user_id=profile.user_id).connected_at is not None
    assert cluster.shell(f"ls {cluster.work_dir}/good/spool") == ""
    assert "probe" not in cluster.shell(f"ls {cluster.work_dir}/good")


@pytest.mark.parametrize("scheduler", ["slurm", "direct"])
def test_without_hyperqueue(cluster: Cluster, examine: Examine, scheduler: Any) -> None:
    computer = cluster.computer(f"plain-{scheduler}", hyperqueue="none", scheduler=scheduler)
    steps = examine(computer, "--timeout", "120")
    assert steps["hyperqueue"].state == "skipped"
    assert {step.state for name, step in steps.items() if name != "hyperqueue"} == {"ok"}


def test_a_restricted_account(cluster: Cluster, examine: Examine) -> None:
    if not cluster.confined:
        pytest.skip("the wheel's server needs a cluster in a namespace")
    steps = examine(cluster.restricted_computer("robot"), "--timeout", "120")
    assert list(steps) == STEPS
    assert {name for name, step in steps.items() if step.state == "skipped"} == {"python", "hyperqueue"}
    assert "the one task tells" in steps["our code"].detail
    assert "ran on node" in steps["one task"].detail


def test_this_machine(examine: Examine, tmp_path: Path) -> None:
    computer = Computer(label="here", transport="local", scheduler="direct", work_dir=str(tmp_path / "work"))
    steps = examine(computer, "--timeout", "60")
    assert list(steps) == [name for name in STEPS if name not in (*CONNECTING, "files")]
    assert {step.state for name, step in steps.items() if name != "hyperqueue"} == {"ok"}


def test_without_a_task(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("no-task"), "--no-task")
    assert [(steps[name].state, steps[name].detail) for name in ("one task", "spool")] == [
        ("skipped", "not asked for")
    ] * 2


def test_the_steps_as_people_see_them(
    cluster: Cluster, profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    computer = cluster.computer("seen", partition="nowhere")
    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    assert run(["--home", str(profile.home), "computer", "test", "seen"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["✓", "reach", "127.0.0.1", "port", str(cluster.port)]
    assert "✗ scheduler       there is no partition nowhere" in lines
    assert lines[lines.index("✗ scheduler       there is no partition nowhere") + 1].split()[0] == "→"
    assert lines[-1] == "- spool           because of scheduler"


# ---------------------------------------------------------------- the way there


def test_a_wrong_host(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("a", hostname="no-such-host.invalid"), status=1)
    check_failure(steps, "reach", "no-such-host.invalid", "grange computer edit a --host NAME")


def test_a_wrong_port(cluster: Cluster, examine: Examine) -> None:
    steps = examine(with_ssh(cluster.computer("a"), port=1), status=1)
    check_failure(steps, "reach", "127.0.0.1 port 1", "grange computer edit a --port NUMBER")


def test_an_unknown_host_key(cluster: Cluster, examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "known").touch()
    steps = examine(with_ssh(cluster.computer("a"), known_hosts=str(tmp_path / "known")), status=1)
    check_failure(steps, "host key", "which is not known here", "grange computer test a")


def test_a_wrong_user(cluster: Cluster, examine: Examine) -> None:
    steps = examine(with_ssh(cluster.computer("a"), user="no-such-user"), status=1)
    check_failure(steps, "authenticate", "no-such-user@127.0.0.1", "grange computer edit a --user NAME")


def test_a_wrong_key(cluster: Cluster, examine: Examine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    steps = examine(with_ssh(cluster.computer("a"), key_file=str(key)), status=1)
    check_failure(steps, "authenticate", str(key), "--key-file FILE")


def test_a_paused_computer_is_tried_and_stays_paused_when_it_fails(
    cluster: Cluster, profile: Profile, examine: Examine, capsys: pytest.CaptureFixture[str]
) -> None:
    examine(with_ssh(cluster.computer("a"), port=1), status=1)
    with profile.transaction() as cursor:
        cursor.execute("UPDATE connection SET paused = true")
    assert run(["--home", str(profile.home), "computer", "test", "a"]) == 1
    with profile.transaction() as cursor:
        assert computers.summary(cursor, "a", user_id=profile.user_id).state == "paused"
        good = cluster.computer("a")
        computers.replace(cursor, good, user_id=profile.user_id)
    assert run(["--home", str(profile.home), "computer", "test", "a", "--no-task"]) == 0
    with profile.transaction() as cursor:
        assert computers.summary(cursor, "a", user_id=profile.user_id).state == "enabled"
    capsys.readouterr()


# ---------------------------------------------------------------- what is there


@pytest.fixture
def noisy(cluster: Cluster) -> Iterator[None]:
    """Lets ~/.bashrc print, but only where this cluster is logged in to: others share the home folder."""
    line = (
        f'case "$SSH_CONNECTION" in *" {cluster.port}") echo Welcome to the cluster;; esac # {cluster.port}'
    )
    cluster.shell(f"sed -i '1i {line}' ~/.bashrc")
    yield
    cluster.shell(f"sed -i '/# {cluster.port}$/d' ~/.bashrc")


@pytest.mark.usefixtures("noisy")
def test_a_noisy_login_shell(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("a"), status=1)
    check_failure(steps, "shell is quiet", "login scripts there print: Welcome to the cluster", "~/.bashrc")


def test_no_python(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("a", python="python-of-nobody"), status=1)
    check_failure(steps, "python", "python-of-nobody: ", "grange computer edit a --python PATH")


def test_an_old_python(cluster: Cluster, examine: Examine) -> None:
    old = f"{cluster.work_dir}/python-old"
    cluster.shell(f"printf '#!/bin/sh\\necho \"grange-test:[3, 6, 8]\"\\n' > {old}; chmod +x {old}")
    steps = examine(cluster.computer("a", python=old), status=1)
    check_failure(steps, "python", "is Python 3.6.8", "from 3.9 on")


def test_a_work_directory_that_is_not_ours(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("a", work_dir="/usr/grange-test"), status=1)
    check_failure(steps, "work directory", "/usr/grange-test", "grange computer edit a --work-dir FOLDER")


@pytest.mark.parametrize(
    ("changes", "detail", "advice"),
    [
        ({"partition": "nowhere"}, "there is no partition nowhere", "take one of main: "),
        ({"memory_mb_per_node": 10**8}, "sbatch: ", "--memory-per-node MB"),
        ({"cores_per_node": 1000}, "sbatch: ", "--cores-per-node N"),
        ({"directives": ("--no-such-option",)}, "no-such-option", "--directive OPTION"),
    ],
    ids=["partition", "memory", "cores", "directive"],
)
def test_what_slurm_does_not_take(
    cluster: Cluster, examine: Examine, changes: dict[str, Any], detail: str, advice: str
) -> None:
    steps = examine(cluster.computer("a", **changes), status=1)
    check_failure(steps, "scheduler", detail, advice)


def test_no_hq(cluster: Cluster, examine: Examine) -> None:
    steps = examine(cluster.computer("a", hyperqueue="hq", hq_program="hq-of-nobody"), status=1)
    check_failure(steps, "hyperqueue", "hq-of-nobody", "grange computer edit a --hq-program PATH")


def test_a_queue_that_is_long(cluster: Cluster, examine: Examine) -> None:
    """The task waits behind a job on all nodes, is given up, and leaves nothing in the queue."""
    script = "--wrap='sleep 120' --output=/dev/null --exclusive"
    job = cluster.shell(f"sbatch --parsable --nodes={cluster.nodes} {script}").strip()
    try:
        steps = examine(cluster.computer("a", hyperqueue="none"), "--timeout", "3", status=1)
        assert steps["one task"].state == "failed"
        assert steps["one task"].detail.startswith("not back after 3 s")
        assert "--timeout SECONDS waits longer" in steps["one task"].advice
        assert steps["spool"].detail == "because of one task"
    finally:
        left = cluster.shell("squeue --noheader --format=%i").split()
        cluster.shell(f"scancel {job}")
    assert [one for one in left if one != job] == []


# ---------------------------------------------------------------- a connection that a person opens


def test_connect(cluster: Cluster, profile: Profile, capsys: pytest.CaptureFixture[str]) -> None:
    computer = cluster.computer("typed", transport="openssh", hyperqueue="none")

    def said(*words: str, status: int = 0) -> str:
        assert run(["--home", str(profile.home), "computer", *words]) == status
        captured = capsys.readouterr()
        return captured.out + captured.err

    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    try:
        assert said("connect", "typed") == "typed is connected\n"
        assert said("connect", "typed") == "typed was connected already\n"
        assert "✓ scheduler" in said("test", "typed", "--no-task")
        # A person opened it: it stays.
        assert said("connect", "typed") == "typed was connected already\n"
    finally:
        close_master(computer, master_folder(profile))
    said("edit", "typed", "--transport", "ssh")
    assert "grange connects by itself" in said("connect", "typed", status=1)
