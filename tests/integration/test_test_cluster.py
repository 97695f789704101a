"""The test cluster itself: what the other tests stand on."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cluster import NAMESPACE_REFUSED, PROGRAM, PROGRAMS_MISSING, Cluster, ClusterFailed, invoke

SOURCE = PROGRAM.parent
LISTENS = "0A"


def load(name: str) -> ModuleType:
    """A module of deploy/test-cluster, which is no package."""
    spec = importlib.util.spec_from_file_location(f"test_cluster_{name}", SOURCE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


processes = load("processes")
forced_command = load("forced_command")


def ssh(cluster: Cluster, *arguments: str, host: str = "test-cluster") -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", cluster.ssh_config, "-o", "BatchMode=yes", host, *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
    )


def eventually(condition: str, cluster: Cluster, *, within_s: float = 30.0) -> None:
    """Wait until a shell condition holds inside."""
    until = time.monotonic() + within_s
    while cluster.shell(f"if {condition}; then echo yes; fi") != "yes\n":
        assert time.monotonic() < until, cluster.shell(f"{condition}; squeue; sinfo")
        time.sleep(0.1)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can enter: pytest's are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="grange-cluster-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_ssh_and_a_job_on_every_node(cluster: Cluster) -> None:
    said = ssh(
        cluster, "whoami; command -v grange hq; sinfo --noheader --Format=nodes,statecompact,cpus,memory"
    )
    assert said.stderr == ""
    assert said.stdout.split() == [cluster.user, "4", "idle", "4", "4000"]

    folder = f"{cluster.work_dir}/jobs"
    script = f"mkdir -p {folder}; cd {folder}; "
    script += (
        "for node in 1 2 3 4; do sbatch -w node$node -o node$node.txt --wrap 'echo $SLURMD_NODENAME'; done"
    )
    said = ssh(cluster, script)
    assert said.stdout.count("Submitted batch job") == 4
    eventually('test -z "$(squeue --noheader)"', cluster)
    for node in ("node1", "node2", "node3", "node4"):
        assert Path(folder, f"{node}.txt").read_text() == f"{node}\n"


def test_a_job_of_several_nodes(cluster: Cluster) -> None:
    said = ssh(cluster, "srun -N 4 --ntasks-per-node=1 sh -c 'echo $SLURMD_NODENAME'")
    assert sorted(said.stdout.split()) == ["node1", "node2", "node3", "node4"]


def test_login_shells_find_slurm_too_and_nothing_of_root(cluster: Cluster) -> None:
    said = ssh(cluster, "bash -l -c 'squeue --version; command -v python3; echo $PATH'")
    version, python, path = said.stdout.splitlines()
    assert version.startswith("slurm")
    assert python == "/usr/bin/python3"
    assert "/root" not in path


def test_memory_is_given_out(cluster: Cluster) -> None:
    said = ssh(cluster, "sbatch --mem=5000 --wrap true")
    assert "Memory specification can not be satisfied" in said.stderr
    ssh(cluster, "for n in 1 2; do sbatch -w node1 --mem=3000 -o /dev/null --wrap 'sleep 60'; done")
    eventually("test \"$(squeue --noheader --format=%t | sort | tr '\\n' ' ')\" = 'PD R '", cluster)
    cluster.cancel_all()


def test_only_sshd_is_reached_from_outside(cluster: Cluster) -> None:
    ports = {cluster.port, cluster.restricted_port}
    if not cluster.confined:
        # slurmctld and the nodes
        ports |= {
            int(port)
            for port in cluster.shell("scontrol show config | grep -o 'SlurmctldPort.*'").split()[2:]
        }
        ports |= {min(ports - {cluster.port, cluster.restricted_port}) + node for node in range(1, 5)}
    inodes = set()
    for process in everything(cluster):
        for file in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(file))
            except FileNotFoundError:
                continue
    outside = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                outside[int(port, 16)] = address
    assert set(outside) == ports
    assert outside[cluster.port] == outside[cluster.restricted_port] == "0100007F"
    if cluster.confined:
        devices = ssh(cluster, "cat /proc/net/dev").stdout
        assert devices.count(":") == 1
        assert "lo:" in devices


def keeper(cluster: Cluster) -> int:
    return int(json.loads((cluster.folder / "keeper.json").read_text())["pid"])


def everything(cluster: Cluster) -> list[Any]:
    """The keeper and all that descends from it."""
    return [processes.look_up(keeper(cluster)), *processes.descendants(keeper(cluster))]


def test_a_login_is_the_way_to_another(cluster: Cluster) -> None:
    said = ssh(cluster, "whoami", host="test-cluster-by-itself")
    assert said.stdout == f"{cluster.user}\n"


def test_many_connections_at_once(cluster: Cluster) -> None:
    argv = ["ssh", "-F", cluster.ssh_config, "test-cluster", "echo here"]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(25)]
    assert [one.communicate(timeout=60)[0] for one in running] == ["here\n"] * 25
    assert cluster.status()["sessions"] <= 1  # the last may still be ending


def test_sshd_stops_and_starts(cluster: Cluster) -> None:
    mark = f"{cluster.work_dir}/detached"
    session = subprocess.Popen(
        ["ssh", "-F", cluster.ssh_config, "test-cluster", f"setsid sh -c 'sleep 1; echo > {mark}' & sleep 60"]
    )
    until = time.monotonic() + 10
    while cluster.status()["sessions"] == 0 or "sleep 60" not in cluster.shell("ps -o args= -u $USER"):
        assert time.monotonic() < until
        time.sleep(0.05)
    cluster.sshd_stop()
    assert session.wait(timeout=5) == 255
    for port in (cluster.port, cluster.restricted_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((cluster.host, port), timeout=5)
    cluster.sshd_start()
    assert ssh(cluster, "echo back").stdout == "back\n"
    # As after a lost connection: what was started goes on.
    eventually(f"test -e {mark}", cluster)
    Path(mark).unlink()


def test_a_killed_slurmd_comes_back_to_its_job(cluster: Cluster) -> None:
    out = f"{cluster.work_dir}/kept"
    said = ssh(cluster, f"sbatch -w node2 -o {out} --wrap 'sleep 2; echo done'")
    assert said.stderr == ""
    eventually("squeue --noheader --format=%t | grep -q R", cluster)
    cluster.slurmd_kill("node2")
    assert "node2" not in cluster.status()["parts"]
    cluster.slurmd_start("node2")
    eventually('test -z "$(squeue --noheader)"', cluster)
    assert Path(out).read_text() == "done\n"
    eventually("sinfo --noheader -t idle -o %D | grep -q 4", cluster)


def test_a_part_that_there_is_not(cluster: Cluster) -> None:
    with pytest.raises(ClusterFailed, match=r"no part node5; there are sshd, munged, slurmctld, node1"):
        cluster.slurmd_start("node5")
    with pytest.raises(ClusterFailed, match="node1 runs already"):
        cluster.slurmd_start("node1")


# The forced command

ALLOWED, HOME, QUOTE = "/data/allowed", "/home/me", """'"'"'"""
PASSES = [
    "/usr/libexec/openssh/sftp-server",
    "bash -l -c 'cd /data/allowed && ( sbatch job.sh )'",
    "bash -l -c 'cd /data/allowed/a/b && ( sbatch --parsable job.sh )'",
    "bash -l -c 'cd \"/data/allowed/a\" && ( sbatch job.sh )'",
    f"bash -l -c 'cd {QUOTE}/data/allowed/a{QUOTE} && ( sbatch {QUOTE}job.sh{QUOTE} )'",
    "bash -l -c 'cd /data/allowed && ( rm -rf a /data/allowed/b )'",
    "bash -l -c 'cd /data/allowed && ( rmdir a )'",
    f"bash -l -c 'cd /home/me && ( SLURM_TIME_FORMAT={QUOTE}standard{QUOTE} squeue --me )'",
    f"bash -l -c 'cd {QUOTE}/home/me{QUOTE} && ( SLURM_TIME_FORMAT={QUOTE}standard{QUOTE} squeue -h )'",
    "bash -l -c 'cd /home/me && ( sacct -j 1 )'",
    "bash -l -c 'cd \"/home/me\" && ( whoami )'",
    "bash -l -c 'cd /home/me && ( echo -n )'",
]
REFUSED = [
    "",
    "whoami",
    "/usr/lib/openssh/sftp-server",
    "bash -c 'cd /data/allowed && ( sbatch job.sh )'",
    "bash -l -c 'cd /data/allowed && (sbatch job.sh)'",
    "bash -l -c 'cd /data/allowed && sbatch job.sh'",
    "bash -l -c 'cd /data/allowedly && ( sbatch job.sh )'",
    "bash -l -c 'cd /data && ( sbatch job.sh )'",
    "bash -l -c 'cd /home/me && ( sbatch job.sh )'",
    "bash -l -c 'cd /home/me/below && ( whoami )'",
    "bash -l -c 'cd /data/allowed && ( whoami )'",
    "bash -l -c 'cd ~ && ( whoami )'",
    "bash -l -c 'cd \"/home/me && ( whoami )'",
    "bash -l -c 'cd /home/me && ( squeue --me )'",
    "bash -l -c 'cd /home/me && ( SLURM_TIME_FORMAT=standard squeue --me )'",
    f"bash -l -c 'cd /home/me && ( SLURM_TIME_FORMAT={QUOTE}relative{QUOTE} squeue )'",
    "bash -l -c 'cd /home/me && ( sacct )'",
    "bash -l -c 'cd /home/me && ( whoami --help )'",
    "bash -l -c 'cd /home/me && ( echo -n text )'",
    "bash -l -c 'cd /home/me && ( scancel 1 )'",
    "bash -l -c 'cd /data/allowed && ( mkdir a )'",
    "bash -l -c 'cd /data/allowed && ( cp a b )'",
    "bash -l -c 'cd /data/allowed && ( tar x )'",
    "bash -l -c 'cd /data/allowed && ( hq job list )'",
    "bash -l -c 'cd /data/allowed/../other && ( sbatch job.sh )'",
    "bash -l -c 'cd /data/allowed && ( sbatch ../job.sh )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh; whoami )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh | cat )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh && whoami )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh & )'",
    "bash -l -c 'cd /data/allowed && ( sbatch $(whoami) )'",
    "bash -l -c 'cd /data/allowed && ( sbatch `whoami` )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh > /tmp/a )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a' whoami 'b )'",
    "bash -l -c 'cd /data/allowed && ( rm /home/me/a )'",
    "bash -l -c 'cd /data/allowed && ( rm ~/a )'",
    "bash -l -c 'cd /data/allowed && ( sbatch a.sh )' whoami",
]


@pytest.mark.parametrize("request_", PASSES)
def test_forced_command_lets_through(request_: str) -> None:
    assert forced_command.accepted(request_, ALLOWED, HOME) == request_


@pytest.mark.parametrize("request_", REFUSED)
def test_forced_command_refuses(request_: str) -> None:
    assert forced_command.accepted(request_, ALLOWED, HOME) is None


def test_forced_command_squeezes_blanks_inside_quotes_too() -> None:
    request = "bash  -l -c 'cd /data/allowed && ( sbatch --comment=\"a   b\"  job.sh )'"
    squeezed = "bash -l -c 'cd /data/allowed && ( sbatch --comment=\"a b\" job.sh )'"
    assert forced_command.accepted(request, ALLOWED, HOME) == squeezed


def restricted(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ssh(cluster, *arguments, host="test-cluster-restricted")


def test_restricted_login_runs_what_passes(cluster: Cluster) -> None:
    before = set(Path(cluster.allowed_dir).iterdir())
    script = Path(cluster.allowed_dir, "job.sh")
    script.write_text("#!/bin/sh\necho from the job\n")
    said = restricted(cluster, f"bash -l -c 'cd {cluster.allowed_dir} && ( sbatch -o job.txt job.sh )'")
    assert said.stderr == ""
    assert said.stdout.startswith("Submitted batch job ")
    squeue = f"SLURM_TIME_FORMAT={QUOTE}standard{QUOTE} squeue --noheader"
    until = time.monotonic() + 30
    while restricted(cluster, f"bash -l -c 'cd {cluster.home} && ( {squeue} )'").stdout:
        assert time.monotonic() < until
    assert Path(cluster.allowed_dir, "job.txt").read_text() == "from the job\n"
    said = restricted(cluster, f"bash -l -c 'cd {cluster.allowed_dir} && ( rm job.txt job.sh )'")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    assert set(Path(cluster.allowed_dir).iterdir()) == before
    assert restricted(cluster, f"bash -l -c 'cd {cluster.home} && ( whoami )'").stdout == f"{cluster.user}\n"


def test_restricted_login_refuses_with_status_0(cluster: Cluster) -> None:
    for arguments in (("whoami",), (f"bash -l -c 'cd {cluster.home} && ( scancel 1 )'",), ()):
        said = restricted(cluster, *arguments)
        assert said.returncode == 0
        assert said.stdout.startswith("Command rejected by ")


def test_restricted_login_has_sftp_and_no_forwarding(cluster: Cluster) -> None:
    said = subprocess.run(
        ["sftp", "-q", "-b", "-", "-F", cluster.ssh_config, "test-cluster-restricted"],
        input=f"pwd\nmkdir {cluster.allowed_dir}/made\nrmdir {cluster.allowed_dir}/made\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"Remote working directory: {cluster.home}\n" in said.stdout
    argv = ["ssh", "-F", cluster.ssh_config, "-W", f"127.0.0.1:{cluster.port}", "test-cluster-restricted"]
    said = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    assert said.returncode == 255
    assert "administratively prohibited" in said.stderr


# Up and down


def test_down_leaves_nothing_and_up_goes_on_where_it_was(cluster: Cluster, open_folder: Path) -> None:
    options = ("--no-namespace",) * (not cluster.confined)
    folder = open_folder / "cluster"
    own = Cluster.start(folder, "--nodes", "2", "--cpus", "2", *options)
    assert not own.restricted_key
    ssh(own, "sbatch -o /dev/null --wrap 'sleep 500'; setsid sleep 501 > /dev/null 2>&1 & sleep 0.5")
    eventually("squeue --noheader --format=%t | grep -q R", own)
    known = everything(own)
    assert {"slurmctld", "slurmd", "munged", "sleep"} <= {process.name for process in known}
    own.stop(remove=False)
    assert not [process for process in known if processes.lives(process.pid, process.start)]
    with pytest.raises(ClusterFailed, match="does not run"):
        own.status()

    again = Cluster.start(folder, *options)
    assert again == own
    said = ssh(again, "sbatch -o /dev/null --wrap true")
    assert said.stdout == "Submitted batch job 2\n"
    with pytest.raises(ClusterFailed, match="runs already"):
        Cluster.start(folder)
    again.stop()
    assert not folder.exists()


def test_down_after_the_keeper_was_killed(cluster: Cluster, open_folder: Path) -> None:
    own = Cluster.start(
        open_folder / "cluster", "--nodes", "1", *("--no-namespace",) * (not cluster.confined)
    )
    ssh(own, "sbatch -o /dev/null --wrap 'sleep 500'")
    eventually("squeue --noheader --format=%t | grep -q R", own)
    known = processes.descendants(keeper(own))
    os.kill(keeper(own), 9)
    own.stop()
    assert not [process for process in known if processes.lives(process.pid, process.start)]


def test_it_ends_with_the_process_that_it_is_for(cluster: Cluster, open_folder: Path) -> None:
    options = ["--nodes=1", *["--no-namespace"] * (not cluster.confined)]
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        own = Cluster.start(open_folder / "cluster", *options, f"--end-with={sleeper.pid}")
        known = everything(own)
        sleeper.kill()
    until = time.monotonic() + 20
    while [process for process in known if processes.lives(process.pid, process.start)]:
        assert time.monotonic() < until
        time.sleep(0.05)
    own.stop()


def ordinary_user(cluster: Cluster) -> list[str]:
    """What a command is to begin with to run as an ordinary user."""
    if os.getuid() != 0:
        return []
    return ["setpriv", f"--reuid={cluster.user}", f"--regid={cluster.user}", "--init-groups", "--"]


@pytest.fixture
def their_copy(cluster: Cluster, open_folder: Path) -> Path:
    """deploy/test-cluster where an ordinary user can read it, in a folder of his."""
    who = pwd.getpwnam(cluster.user)
    shutil.copytree(SOURCE, open_folder / "source")
    os.chown(open_folder, who.pw_uid, who.pw_gid)
    return open_folder / "source"


def test_an_ordinary_user_starts_one(cluster: Cluster, their_copy: Path) -> None:
    start = ordinary_user(cluster)
    folder = their_copy.parent / "cluster"
    options = ["--restricted", *["--no-namespace"] * (not cluster.confined)]
    subprocess.run(
        [*start, their_copy / "up", folder, *options], check=True, capture_output=True, timeout=120
    )
    own = Cluster.attach(folder)
    try:
        argv = [*start, "ssh", "-F", own.ssh_config, "test-cluster", "whoami; srun -N 4 echo here"]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        assert said.stdout.split() == [cluster.user, *["here"] * 4]
    finally:
        subprocess.run([*start, their_copy / "down", folder, "--rm"], check=True, timeout=60)
    assert not folder.exists()


def test_refused_namespaces_are_named_with_what_to_do(cluster: Cluster, their_copy: Path) -> None:
    if not cluster.confined:
        pytest.skip("network namespaces are refused here, as the fixture has found")
    who = pwd.getpwnam(cluster.user)
    inner = ["unshare", "--user", f"--map-user={who.pw_uid}", f"--map-group={who.pw_gid}", "--keep-caps"]
    forbid = ["sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
    up = [their_copy / "up", their_copy.parent / "cluster"]
    said = subprocess.run(
        [*ordinary_user(cluster), *inner, *forbid, *up],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == NAMESPACE_REFUSED, said.stderr
    assert "A network namespace is refused here" in said.stderr
    assert "--no-namespace" in said.stderr


def test_bad_folders_are_refused(open_folder: Path) -> None:
    (open_folder / "mine").touch()
    for folder, words in (
        (open_folder, "not empty and not a cluster's"),
        (open_folder / "with blank", "characters that Slurm's"),
        (open_folder / ("long" * 20), "too long"),
    ):
        with pytest.raises(ClusterFailed, match=words):
            Cluster.start(folder)
    with pytest.raises(ClusterFailed, match="not the folder of a cluster"):
        invoke("down", str(open_folder), "--rm")
    assert (open_folder / "mine").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root starts it as another account")
def test_a_folder_closed_to_the_account_is_refused() -> None:
    # short: its sockets lie there
    with tempfile.TemporaryDirectory(prefix="closed-") as closed:
        with pytest.raises(ClusterFailed, match="cannot enter"):
            Cluster.start(Path(closed) / "cluster")


def test_missing_programs_are_named_with_their_packages() -> None:
    script = "import cluster; cluster.PATH = '/nowhere'; import sys; sys.exit(cluster.main())"
    said = subprocess.run(
        [sys.executable, "-c", script, "up", "/tmp/grange-cluster-never"],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == PROGRAMS_MISSING
    assert (
        "apt-get install --no-install-recommends openssh-server openssh-client munge slurm-wlm" in said.stderr
    )
