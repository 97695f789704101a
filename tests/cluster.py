"""The test cluster (deploy/test-cluster), as tests use it: a real sshd, munge and Slurm on this host."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grange.farm.computer import Computer, SshSettings

PROGRAM = Path(__file__).resolve().parent.parent / "deploy" / "test-cluster" / "cluster.py"
#: The system's own, as the programs beside cluster.py take it.
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
#: cluster.py's exit statuses.
PROGRAMS_MISSING, NAMESPACE_REFUSED = 3, 4


class ClusterFailed(Exception):
    """cluster.py has failed; what it said. status: its exit status."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True, slots=True)
class Cluster:
    """One that runs. All paths hold inside and outside alike.

    work_dir and allowed_dir are the account's; home is its home folder, which the host's clusters share.
    Restricted logins have a port and a key of their own. confined: it has a network namespace of its own, so
    that the HyperQueue wheel's server may run in it.
    """

    folder: Path
    host: str
    port: int
    user: str
    home: str
    key_file: str
    known_hosts: str
    ssh_config: str
    work_dir: str
    restricted_port: int
    restricted_key: str
    allowed_dir: str
    nodes: int
    cpus: int
    memory_mb: int
    confined: bool

    @staticmethod
    def start(folder: Path, *options: str) -> Cluster:
        """Start one, as `deploy/test-cluster/up FOLDER OPTIONS` does. Errors: ClusterFailed."""
        invoke("up", str(folder), *options)
        return Cluster.attach(folder)

    @staticmethod
    def attach(folder: Path) -> Cluster:
        """The cluster that was started in a folder."""
        content = json.loads((folder / "cluster.json").read_text())
        content["folder"] = folder
        content = {"restricted_key": "", "allowed_dir": "", **content}
        return Cluster(**{field.name: content[field.name] for field in dataclasses.fields(Cluster)})

    def stop(self, *, remove: bool = True) -> None:
        """End all that runs in it."""
        invoke("down", str(self.folder), *(["--rm"] if remove else []))

    def computer(self, label: str, **changes: Any) -> Computer:
        """The cluster as a computer, with a work directory of that label; changes: fields of Computer."""
        ssh = SshSettings(
            user=self.user,
            port=self.port,
            key_file=self.key_file,
            known_hosts=self.known_hosts,
            config_file="none",
        )
        return self._computer(label, ssh, f"{self.work_dir}/{label}", changes)

    def restricted_computer(self, label: str, **changes: Any) -> Computer:
        """The same by the restricted login: one work directory, the one that its forced command allows."""
        ssh = SshSettings(
            user=self.user,
            port=self.restricted_port,
            key_file=self.restricted_key,
            known_hosts=self.known_hosts,
            config_file="none",
            restricted=True,
        )
        return self._computer(label, ssh, self.allowed_dir, changes)

    def _computer(self, label: str, ssh: SshSettings, work_dir: str, changes: dict[str, Any]) -> Computer:
        computer = Computer(
            label=label,
            hostname=self.host,
            transport="ssh",
            scheduler="slurm",
            hyperqueue="private-wheel" if self.confined else "none",
            work_dir=work_dir,
            ssh=ssh,
            cores_per_node=self.cpus,
            memory_mb_per_node=self.memory_mb,
            connection_interval_s=0.0,
        )
        return dataclasses.replace(computer, **changes)

    def shell(self, command: str, *, timeout_s: float = 60.0) -> str:
        """What a shell command prints inside, run as the account, without SSH. Errors: CalledProcessError."""
        return subprocess.run(
            [PYTHON, "-sEB", str(PROGRAM), "run", str(self.folder), command],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout_s,
        ).stdout

    def sshd_stop(self) -> None:
        """The port refuses, and all sessions are gone."""
        invoke("stop", str(self.folder), "sshd")

    def sshd_start(self) -> None:
        """It listens again, on the same port with the same keys."""
        invoke("start", str(self.folder), "sshd")

    def slurmd_kill(self, node: str) -> None:
        """kill -9 of a node's slurmd: "node1" and so on. Its jobs run on, as slurmstepd keeps them."""
        invoke("kill", str(self.folder), node)

    def slurmd_start(self, node: str) -> None:
        invoke("start", str(self.folder), node)

    def slurmctld_stop(self) -> None:
        """In order: one that is killed may not have written down yet which jobs have begun."""
        invoke("stop", str(self.folder), "slurmctld")

    def slurmctld_start(self) -> None:
        invoke("start", str(self.folder), "slurmctld")

    def status(self) -> dict[str, Any]:
        """parts: the process of each daemon that runs; listening: whether sshd does; sessions: how many."""
        found: dict[str, Any] = json.loads(invoke("status", str(self.folder), "--json"))
        return found

    def cancel_all(self, *, timeout_s: float = 30.0) -> None:
        """Cancel all jobs, and wait until they are gone and all nodes take jobs again."""
        until = time.monotonic() + timeout_s
        while self.shell("scancel -u $USER; squeue -h; sinfo -h -t alloc,mix,comp -o %D").strip():
            assert time.monotonic() < until, self.shell("squeue; sinfo")
            time.sleep(0.1)


def invoke(*arguments: str) -> str:
    """What cluster.py prints. Errors: ClusterFailed."""
    done = subprocess.run(
        [PYTHON, "-sEB", str(PROGRAM), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise ClusterFailed(done.stderr.strip(), done.returncode)
    return done.stdout


def start_for_tests() -> Cluster:
    """A cluster in a folder of its own; without a network namespace only where one is refused."""
    # Not below pytest's folders: those of root are closed to the account.
    folder = Path(tempfile.mkdtemp(prefix="grange-cluster-"))
    # However the tests end, it does.
    options = ("--restricted", f"--end-with={os.getpid()}")
    try:
        return Cluster.start(folder, *options)
    except ClusterFailed as failed:
        if failed.status == PROGRAMS_MISSING:
            raise AssertionError(f"{failed}\n`make test` installs them.") from None
        if failed.status != NAMESPACE_REFUSED:
            raise
    return Cluster.start(folder, *options, "--no-namespace")
