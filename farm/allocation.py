"""Allocations: jobs of a scheduler with HyperQueue workers in them. Their scripts are made here, and not run.

The script runs the worker on every node of the job. SIGTERM to the script, which Slurm sends before the
walltime and we send to stop it, is turned into a mark in the allocation's folder: workers watch for it and
end in order, whatever the scheduler does with signals of its own.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from dataclasses import dataclass

from grange.farm.computer import Computer
from grange.farm.slurm import time_text

#: Seconds between the signal and the walltime: workers end their tasks and hand over what is finished.
TERM_BEFORE_S = 60
#: Names of jobs begin so; the token follows.
NAME_PREFIX = "grange-"

#: Files of an allocation's folder; BEGUN is a folder, so that one job alone makes it.
SCRIPT, SETTINGS, LOG, STOP, BEGUN = "job.sh", "allocation.json", "log", "stop", "begun"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationRequest:
    """What an allocation is to be.

    cores_per_node: None for what Slurm gives by default; then the worker counts what it got.
    memory_mb_per_node: None for Slurm's default. gpus: of each node. Units: mebibytes, seconds.
    """

    token: str
    nodes: int = 1
    cores_per_node: int | None = None
    memory_mb_per_node: int | None = None
    gpus: int = 0
    walltime_s: int = 3600
    idle_s: int = 300

    @property
    def name(self) -> str:
        """The name of its job."""
        return NAME_PREFIX + self.token

    @property
    def cores(self) -> int | None:
        """The cores of all its nodes; None where they are not known."""
        return None if self.cores_per_node is None else self.nodes * self.cores_per_node


@dataclass(frozen=True, slots=True)
class AllocationPaths:
    """Where things are on the computer; absolute. work_dir: our folder; code_dir: our code in it."""

    work_dir: str
    code_dir: str

    def folder(self, token: str) -> str:
        """The folder of an allocation."""
        return f"{self.work_dir}/allocations/{token}"

    @property
    def agent(self) -> str:
        """The program that becomes a worker."""
        return f"{self.code_dir}/agent.py"

    @property
    def server(self) -> str:
        """The folder of the HyperQueue server."""
        return f"{self.work_dir}/server"


def new_token() -> str:
    """A name for an allocation that no other has: 12 letters and digits."""
    return secrets.token_hex(6)


def request_on(
    computer: Computer, *, nodes: int = 1, walltime_s: int = 3600, idle_s: int = 300
) -> AllocationRequest:
    """An allocation of whole nodes as a computer has them, under a new token."""
    return AllocationRequest(
        token=new_token(),
        nodes=nodes,
        cores_per_node=computer.cores_per_node,
        memory_mb_per_node=computer.memory_mb_per_node,
        gpus=computer.gpus_per_node,
        walltime_s=walltime_s,
        idle_s=idle_s,
    )


def term_before_s(walltime_s: int) -> int:
    """How long before the walltime workers are told to end: less where the whole is short.

    Slurm may send the signal up to a minute earlier than asked for: a job of two would be told in its middle.
    """
    return min(TERM_BEFORE_S, max(5, walltime_s // 10))


def settings_text(computer: Computer, request: AllocationRequest, paths: AllocationPaths) -> str:
    """allocation.json: what the worker has to know. Formats: docs/design.md, "Allocations"."""
    hq_program = f"{paths.code_dir}/hq" if computer.hq_binary else computer.hq_program
    settings = {
        "format": 1,
        "hyperqueue": computer.hyperqueue,
        "hq_program": hq_program if computer.hyperqueue == "hq" else "",
        "server": paths.server,
        "wheel": f"{paths.code_dir}/wheel" if computer.hyperqueue == "private-wheel" else "",
        "cores": request.cores_per_node,
        "memory_mb": request.memory_mb_per_node,
        "gpus": request.gpus,
        "nodes": request.nodes,
        "idle_s": request.idle_s,
        "walltime_s": request.walltime_s,
        "term_before_s": term_before_s(request.walltime_s),
    }
    return json.dumps(settings, indent=1) + "\n"


def job_script(computer: Computer, request: AllocationRequest, paths: AllocationPaths) -> str:
    """The script of an allocation, for a shell that knows POSIX's words.

    It is submitted from the allocation's folder: its output goes to the file `log` there.
    Errors: ValueError for a setting that would break out of its line.
    """
    return "\n".join(
        [
            computer.shebang,
            *(f"#SBATCH {line}" for line in _directives(computer, request)),
            "",
            *([computer.prepend_text.rstrip("\n"), ""] if computer.prepend_text.strip() else []),
            _workers(computer, request, paths),
            *([computer.append_text.rstrip("\n"), ""] if computer.append_text.strip() else []),
            'exit "$grange_status"',
            "",
        ]
    )


def _directives(computer: Computer, request: AllocationRequest) -> list[str]:
    lines = [
        f"--job-name={request.name}",
        f"--output={LOG}",
        "--open-mode=append",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        f"--time={time_text(request.walltime_s)}",
        f"--signal=B:TERM@{term_before_s(request.walltime_s)}",
        "--no-requeue",
    ]
    if request.nodes > 1:
        lines.append("--no-kill")  # the others go on where one node fails
    if request.cores_per_node is not None:
        lines.append(f"--cpus-per-task={request.cores_per_node}")
    if request.memory_mb_per_node is not None:
        lines.append(f"--mem={request.memory_mb_per_node}M")
    if request.gpus:
        lines.append(f"--gres=gpu:{request.gpus}")
    for option in ("partition", "account", "qos"):
        value = getattr(computer, option)
        if value:
            lines.append(f"--{option}={_word(option, value)}")
    # last, so that they win where somebody knows better
    return [*lines, *(_line("directives", line) for line in computer.directives)]


def _workers(computer: Computer, request: AllocationRequest, paths: AllocationPaths) -> str:
    worker = f'"$grange_python" {shlex.quote(paths.agent)} worker "$grange_folder"'
    if request.nodes > 1:
        cores = "" if request.cores_per_node is None else f" --cpus-per-task={request.cores_per_node}"
        # one worker's end is not the others': each ends when it is idle
        worker = (
            f"srun --nodes={request.nodes} --ntasks={request.nodes} --ntasks-per-node=1{cores} --export=ALL"
            f" --no-kill --kill-on-bad-exit=0 --wait=0 --label --input=none {worker}"
        )
    return f"""\
grange_python={_program(computer.python)}
grange_folder={shlex.quote(paths.folder(request.token))}
# stopped before it began: by a mark where the scheduler cannot be asked to cancel
[ -e "$grange_folder/{STOP}" ] && exit 0
# submitted twice, because the first answer was lost: the first job to begin is the allocation
if ! grange_problem=$(mkdir "$grange_folder/{BEGUN}" 2>&1); then
  [ -d "$grange_folder/{BEGUN}" ] && exit 0
  echo "$grange_problem" >&2
  exit 73
fi
grange_stop() {{ : > "$grange_folder/{STOP}"; }}
trap grange_stop TERM
{_service(computer, paths)}{worker} </dev/null &
grange_workers=$!
grange_status=0
wait "$grange_workers" || grange_status=$?
# a signal ends the waiting, not the workers
while [ "$grange_status" -gt 128 ] && kill -0 "$grange_workers" 2>/dev/null; do
  grange_status=0
  wait "$grange_workers" || grange_status=$?
done
# workers that were told to end have done so
[ -e "$grange_folder/{STOP}" ] && grange_status=0
{_end_of_service(computer)}"""


def _service(computer: Computer, paths: AllocationPaths) -> str:
    """Where the account may run nothing on the login node, HyperQueue's server runs beside the workers."""
    if not computer.ssh.restricted:
        return ""
    return (
        f'"$grange_python" {shlex.quote(paths.agent)} serve "$grange_folder" </dev/null &\n'
        "grange_service=$!\n"
    )


def _end_of_service(computer: Computer) -> str:
    if not computer.ssh.restricted:
        return ""
    return 'kill -TERM "$grange_service" 2>/dev/null || :\nwait "$grange_service" || :\n'


def _program(path: str) -> str:
    """A program as a shell finds it: below the home folder where the path begins with ~."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)


def _line(what: str, value: str) -> str:
    if re.search(r"[\r\n\0]", value):
        raise ValueError(f"{what}: expected one line, got {value!r}")
    return value


def _word(what: str, value: str) -> str:
    if re.search(r"\s|\0", value):
        raise ValueError(f"{what}: expected a name without blanks, got {value!r}")
    return value
