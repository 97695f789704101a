"""The test cluster as the tests of faults use it: what runs there, and how it is ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster

from grange.farm import runner
from grange.farm.allocation import AllocationPaths, job_script, request_on, settings_text
from grange.farm.computer import Computer
from grange.farm.remote import Remote
from grange.farm.ssh_transport import SshTransport

#: The program hq, which is in no package registry: on PATH, or named by this variable.
HQ = os.environ.get("GRANGE_TEST_HQ") or shutil.which("hq") or ""

#: Tells a tally that it runs, where and for whom, takes a moment, and prints three times its number.
PROGRAM = """\
#!/bin/sh
echo "$1 ${GRANGE_CHUNK##*/} $SLURMD_NODENAME" >> "$2"
sleep "$3"
echo $(( $1 * 3 ))
"""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the cluster, as /proc tells of it."""

    pid: int
    command: str
    node: str

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


class FaultSite:
    """One computer of the cluster with a work directory of its own."""

    def __init__(self, cluster: Cluster, label: str, hyperqueue: str) -> None:
        more = {"hyperqueue": "hq", "hq_binary": HQ} if hyperqueue == "hq" else {}
        #: So many cores are counted on that thousands of calculations are under way at once.
        self.computer: Computer = cluster.computer(label, max_allocations=40, **more)
        self.cluster = cluster
        self.remote = Remote(SshTransport(self.computer), self.computer)
        self.remote.prepare()
        self.work = Path(self.remote.work_dir)
        self.place = self.work.parent / f"{label}-programs"
        cluster.shell(f"mkdir -p {self.place}; chmod 777 {self.place}")
        self.program = self.install("program", PROGRAM)

    def close(self) -> None:
        self.remote.transport.close()
        self.cluster.cancel_all()
        for process in self.servers():
            process.kill()

    def install(self, name: str, text: str) -> Path:
        """A program there."""
        path = self.place / name
        self.remote.transport.put([(text.encode(), str(path))], mode=0o755)
        return path

    # -- allocations -----------------------------------------------------------------------------

    def allocate(self, *, nodes: int = 4, walltime_s: int = 1800, idle_s: int = 300, node: str = "") -> str:
        """A job with workers; its number. node: the one that it is to be on."""
        request = request_on(self.computer, nodes=nodes, walltime_s=walltime_s, idle_s=idle_s)
        paths = AllocationPaths(self.remote.work_dir, self.remote.code_dir)
        folder = paths.folder(request.token)
        self.remote.transport.put(
            [
                (settings_text(self.computer, request, paths).encode(), f"{folder}/allocation.json"),
                (job_script(self.computer, request, paths).encode(), f"{folder}/job.sh"),
            ]
        )
        argv = ["sbatch", "--parsable", *([f"--nodelist={node}"] if node else []), "job.sh"]
        done = self.remote.transport.run(argv, cwd=folder)
        assert done.status == 0, done.stderr
        return done.stdout.decode().strip()

    def ensure_workers(self, nodes: int = 4) -> None:
        """Have workers on so many nodes, and no others; what earlier tests have spoiled is made anew."""
        if {process.node for process in self.supervisors()} == {f"node{n + 1}" for n in range(nodes)}:
            return
        self.cluster.cancel_all()
        wait_until(lambda: not self.supervisors())
        self.cluster.shell(f"rm -rf {self.work}/broken {self.work}/suspects {self.work}/hosts")
        self.allocate(nodes=nodes)
        wait_until(lambda: len(self.supervisors()) == nodes)

    def mend(self) -> None:
        """Start the daemons that a test has ended, and end what a failed one has left under way."""
        status = self.cluster.status()
        for number in range(self.cluster.nodes):
            if f"node{number + 1}" not in status["parts"]:
                self.cluster.slurmd_start(f"node{number + 1}")
        if not status["listening"]:
            self.cluster.sshd_start()
        if runs := self.runs():
            self.remote.ask("sweep", {"runs": runs})

    def jobs(self) -> list[str]:
        """The numbers of jobs that run or wait."""
        return self.cluster.shell("squeue -h -o %A").split()

    # -- processes -------------------------------------------------------------------------------

    def processes(self, *words: str) -> list[Process]:
        """Those of this computer whose command line has all of these words."""
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or not runner.lives(folder.name):
                continue
            try:
                command = (
                    folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if f"{self.work}/" not in command or not all(word in command for word in words):
                    continue
                environment = folder.joinpath("environ").read_bytes().split(b"\0")
            except OSError:
                continue
            named = [entry[16:].decode() for entry in environment if entry.startswith(b"SLURMD_NODENAME=")]
            found.append(Process(int(folder.name), command, named[0] if named else ""))
        return found

    def supervisors(self) -> list[Process]:
        """The agents that look after workers, one a node (and not srun, whose command names them too)."""
        return [one for one in self.processes("agent.py worker ") if not one.command.startswith("srun")]

    def workers(self) -> list[Process]:
        """HyperQueue's workers."""
        return self.processes("agent.py wheel-worker ") or self.processes("hq --server-dir", "worker start")

    def servers(self) -> list[Process]:
        """HyperQueue's server."""
        return self.processes("agent.py wheel-server ") or self.processes("hq --server-dir", "server start")

    def runners(self) -> list[Process]:
        """Runners at work: one for each chunk, without the child that it watches."""
        found = self.processes("import runner", "/spool/run-")
        pids = {process.pid for process in found}
        return [process for process in found if parent_of(process.pid) not in pids]

    def tree(self, process: Process) -> list[int]:
        """A process and all below it."""
        found, queue = [process.pid], [process.pid]
        while queue:
            children = runner.children_of(queue.pop())
            found += children
            queue += children
        return found

    # -- what lies there -------------------------------------------------------------------------

    def runs(self) -> list[str]:
        """The runs in the spool there."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.work / "spool")
        return []


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[1])
    except OSError:
        return 0


def wait_until(
    condition: Callable[[], object], limit_s: float = 60.0, what: object = "nothing came of it"
) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, what() if callable(what) else what
        time.sleep(0.05)


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes are stopped for a while, each by SIGSTOP."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
