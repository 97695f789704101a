"""What the benches of the farm run on: a test cluster of their own, a fresh profile, allocations.

All of it is real (sshd, Slurm, HyperQueue by its wheel, PostgreSQL) and on this one machine; when a bench
ends, in whatever way, the cluster does.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from cluster import Cluster  # noqa: E402 – it lies among the tests

from grange.core import allocation_launcher as launcher  # noqa: E402
from grange.core import computer as computers  # noqa: E402
from grange.core.profile import Profile, open_profile  # noqa: E402
from grange.core.site import Site, reached  # noqa: E402
from grange.farm.allocation import request_on  # noqa: E402

LABEL = "bench"
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Testbed:
    """What is up. profile: of home, with the cluster as the computer LABEL."""

    cluster: Cluster
    home: Path
    profile: Profile
    site: Site
    slots: int

    @property
    def environment(self) -> dict[str, str]:
        """For processes that open the profile themselves."""
        return {**os.environ, "GRANGE_HOME": str(self.home)}

    @property
    def agent(self) -> str:
        """Our program there, for a shell; what it needs lies beside it."""
        return f"{self.site.remote.code_dir}/agent.py"

    def allocate(self, nodes_each: int | None = None) -> None:
        """Fill all nodes with allocations of so many (None: one allocation), and wait for their workers."""
        computer, remote = self.site.computer, self.site.remote
        remote.ask("server", {"settings": remote.settings, "do": "start"})
        each = nodes_each or self.cluster.nodes
        wishes = [
            request_on(computer, nodes=each, walltime_s=14400, idle_s=7200)
            for _ in range(self.cluster.nodes // each)
        ]
        started = launcher.start(self.profile, self.site, wishes)
        if started.refused is not None:
            raise started.refused
        self.wait_for_cores(self.slots)

    def inside(self, script: Path, *arguments: str, timeout_s: float = 3600.0) -> str:
        """What a Python script of ours prints that is run on the login node, by SSH."""
        argv = ["python3", "-", *arguments]
        done = self.site.remote.transport.run(argv, stdin=script.read_bytes(), timeout_s=timeout_s)
        if done.status:
            raise SystemExit(f"{script.name} failed there:\n{done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout.decode()

    def wait_for_cores(self, cores: int, timeout_s: float = 120.0) -> None:
        """Wait until workers with so many cores are there."""
        until = time.monotonic() + timeout_s
        while (there := self.site.remote.ask("advance", {"runs": []})["cores"]) < cores:
            if time.monotonic() > until:
                raise SystemExit(f"{there} of {cores} cores came within {timeout_s:g} s")
            time.sleep(0.2)


@contextlib.contextmanager
def open_testbed(nodes: int = 4, cpus: int = 4, **changes: Any) -> Iterator[Testbed]:
    """A cluster of so many nodes with nothing on it but our code; changes: fields of Computer."""
    with contextlib.ExitStack() as stack:
        # Not below a folder of ours: the account of the cluster has to come in.
        folder = Path(tempfile.mkdtemp(prefix="grange-bench-cluster-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        options = (f"--nodes={nodes}", f"--cpus={cpus}", f"--end-with={os.getpid()}")
        cluster = Cluster.start(folder, *options)
        stack.callback(cluster.stop)
        home = Path(tempfile.mkdtemp(prefix="grange-bench-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        stack.callback(_stop_database, home)
        profile = stack.enter_context(open_profile(home))
        with profile.transaction() as cursor:
            computers.add(cursor, cluster.computer(LABEL, **changes), user_id=profile.user_id)
        site = stack.enter_context(reached(profile, LABEL))
        site.remote.prepare()
        yield Testbed(cluster, home, profile, site, nodes * cpus)


def _stop_database(home: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "grange", "database", "stop"],
        env={**os.environ, "GRANGE_HOME": str(home)},
        check=False,
        capture_output=True,
    )


def machine() -> dict[str, Any]:
    """What a result was measured on, and how busy that was with other things."""
    slurm = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cores": CORES,
        "python": platform.python_version(),
        "hyperqueue": version("hyperqueue"),
        "slurm": slurm.removeprefix("slurm-wlm ").removeprefix("slurm "),
        "load_before": round(os.getloadavg()[0], 2),
    }
