"""Tasks: what the farm runs. One calculation's command, or one call of a Python function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grange.repository.key import Key

if TYPE_CHECKING:
    from grange.farm.monitor import Monitor
    from grange.farm.stash import Stash


@dataclass(frozen=True, slots=True)
class Resources:
    """What one task needs, on all its nodes together.

    nodes: None where cpus and memory decide (farm.node_count). mpi_procs: processes of MPI, None for as
    many as cpus; a program without MPI takes no notice of it.
    Units: memory_mb in mebibytes, resident, of the task and its children together; walltime_s in
    seconds. None means no limit.
    """

    cpus: int = 1
    memory_mb: int | None = None
    walltime_s: float | None = None
    gpus: int = 0
    nodes: int | None = None
    mpi_procs: int | None = None

    @property
    def tot_num_mpiprocs(self) -> int:
        """How many processes of MPI a program is run as."""
        return self.cpus if self.mpi_procs is None else self.mpi_procs


@dataclass(frozen=True, slots=True)
class CommandTask:
    """One program run in a directory of its own.

    files: path inside the directory → content, or the key of a blob of the repository.
    stdin: path (one of files) that is fed to the program, or None for nothing.
    stdout, stderr: paths that the streams are written to; always kept.
    retrieve: glob patterns, relative to the directory ("**" allowed), of further files to keep.
    prologue, epilogue: lines for bash before and after the program. mpi: run it under MPI, as the
    computer does that. container: the command, as text for bash, that runs what follows it in a
    container; line: it takes the program with its arguments as one argument, for a shell of its own.
    expand: $NAME and the like are filled in in the arguments. With none of these no shell is started
    (farm.task_script). monitors: what may stop it; functions of theirs are shipped already. stash: what is to
    stay on the computer.
    """

    id: str
    argv: tuple[str, ...]
    files: Mapping[str, bytes | Key] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    stdout: str = "stdout.txt"
    stderr: str = "stderr.txt"
    retrieve: tuple[str, ...] = ()
    attempt: int = 1
    prologue: str = ""
    epilogue: str = ""
    mpi: bool = False
    container: str = ""
    line: bool = False
    expand: bool = False
    monitors: tuple[Monitor, ...] = ()
    stash: Stash | None = None


@dataclass(frozen=True, slots=True)
class FunctionTask:
    """One call of a Python function, with plain Python values (ASE's Atoms, NumPy arrays …)."""

    id: str
    function: ShippedFunction
    kwargs: Mapping[str, object]
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class ShippedFunction:
    """A function made ready to travel, by farm.function.ship().

    By reference: module and qualname name it, and path is the folder to put on sys.path ("" for none).
    By value: pickle holds it (cloudpickle), for functions of a notebook, a script or a local scope.
    source: its source text ("" where there is none to be had): for the record and for caching.
    """

    name: str
    module: str
    qualname: str
    path: str
    pickle: bytes | None = field(repr=False)
    source: str = field(repr=False)


Task = CommandTask | FunctionTask


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks for one computer that need the same resources; ids are unique among what is under way.

    more: how many such tasks will follow, as far as is known.
    """

    tasks: tuple[Task, ...]
    resources: Resources = Resources()
    more: int = 0
