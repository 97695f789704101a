"""What the parts of a testbed use: CPU and memory, as /proc shows them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed import Testbed

_TICKS = os.sysconf("SC_CLK_TCK")
#: What is found in a command line → the part that it is.
_PARTS = {
    "wheel-server": "HyperQueue server",
    "wheel-worker": "HyperQueue workers",
    "agent.py worker": "agents of workers",
    "import runner": "tasks",
    "slurm": "Slurm",
    "munged": "Slurm",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What the parts have used since they began, and hold now.

    "tasks" are runners with what they run; "commands" is what came by SSH, our agent above all, and sshd
    itself; "engine" is this process.
    Units: seconds of CPU; mebibytes, what is shared counted in shares.
    """

    cpu_s: dict[str, float]
    memory_mb: dict[str, float]

    def __sub__(self, earlier: Usage) -> Usage:
        """What was used since then, and the memory now."""
        cpu_s = {part: used - earlier.cpu_s.get(part, 0.0) for part, used in self.cpu_s.items()}
        return Usage(cpu_s, self.memory_mb)


@dataclass(frozen=True, slots=True)
class _Process:
    """buried_s: what children have used that are dead and waited for, and theirs."""

    pid: int
    parent: int
    own_s: float
    buried_s: float


def usage(bed: Testbed) -> Usage:
    """Look at all processes of the testbed. What dead ones have used counts with who has buried them."""
    everyone = list(_everyone())
    keeper = json.loads((bed.cluster.folder / "keeper.json").read_text())["pid"]
    server = int((bed.home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    own = os.times()
    cpu_s, memory_mb = {"engine": own.user + own.system}, {"engine": _memory_mb(os.getpid())}

    def add(part: str, seconds: float) -> None:
        cpu_s[part] = cpu_s.get(part, 0.0) + seconds

    for root in (keeper, server):
        for process in _with_descendants(root, everyone):
            part = "PostgreSQL" if root == server else _part(process.pid)
            add(part, process.own_s)
            add("tasks" if part == "HyperQueue workers" else part, process.buried_s)
            memory_mb[part] = memory_mb.get(part, 0.0) + _memory_mb(process.pid)
    return Usage(cpu_s, memory_mb)


def _part(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        line = ""
    return next((part for words, part in _PARTS.items() if words in line), "commands")


def _everyone() -> Iterator[_Process]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used, system, buried, buried_system = (int(field) / _TICKS for field in fields[11:15])
        yield _Process(int(name), int(fields[1]), used + system, buried + buried_system)


def _with_descendants(root: int, everyone: list[_Process]) -> list[_Process]:
    below: dict[int, list[_Process]] = {}
    for process in everyone:
        below.setdefault(process.parent, []).append(process)
    found = [process for process in everyone if process.pid == root]
    for process in found:  # it grows
        found += below.get(process.pid, [])
    return found


def _memory_mb(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0
