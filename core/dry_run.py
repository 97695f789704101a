"""Dry runs: what would be run, written into a folder to be looked at; nothing is stored."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from grange.core.calcjob import CalcJob
from grange.core.call_binding import given_profile, known_profile
from grange.core.calls import Calls
from grange.core.code_place import CodePlaces
from grange.core.errors import InputInvalid
from grange.core.executors import NAMES, load_computer
from grange.core.job_recipe import JobRecipe
from grange.core.runnable import calls_of, workflow_recipe_of
from grange.core.shell_job import ShellJob
from grange.farm.node_count import node_count
from grange.farm.runner import THREADS
from grange.farm.task import CommandTask, Resources
from grange.farm.task_script import BASH, FIND_MODULE, MPIRUN, needs_script, scripted, uses_module

if TYPE_CHECKING:
    from grange.core.profile import Profile
    from grange.farm.computer import Computer

FOLDER = "dry-run"
#: The script in each folder; with a further underscore in front where the job has a file of this name.
SCRIPT = "_grange_run.sh"
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class DryRun:
    """What one call would run.

    folder: the program's directory as it would be, with the input files. script: what runs it there as
    grange would, in that folder. argv: the program and its arguments. retrieve: what would be kept.
    """

    label: str
    folder: Path
    script: Path
    argv: tuple[str, ...]
    retrieve: tuple[str, ...]
    resources: Resources

    def __str__(self) -> str:
        return f"{self.label}: nothing was run or stored; inputs in {self.folder}, run by bash {self.script}"


def dry_run(
    job: type[CalcJob] | ShellJob,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    folder: str | Path = FOLDER,
    resources: Resources = Resources(),  # noqa: B008 – frozen
    executor: str | None = None,
    profile: Profile | None = None,
    **more: object,
) -> DryRun:
    """Write what a call of a CalcJob class or ShellJob would run, and say where; nothing is stored or run.

    inputs: by name, as keywords or in a dict. folder: a new folder below it is made for the call. executor:
    the label of the computer on which it would be run, for its MPI and its shell lines. profile: where codes
    and computers are; needed for these alone.

    Errors: InputInvalid, NotFound; whatever prepare() raises.
    """
    if workflow_recipe_of(job) is not None:
        raise InputInvalid(
            "dry_run", job, "a CalcJob class or a ShellJob: what a workflow calls is known only as it runs"
        )
    profile = profile or known_profile()
    if executor not in (None, *NAMES):
        profile = given_profile(profile, "dry_run")
    calls = calls_of(profile, job, {**(inputs or {}), **more}, one=True, resources=resources)
    [made] = dry_runs(profile, [calls], 1, folder, executor)
    return made


def dry_runs(
    profile: Profile | None, maps: Sequence[Calls], most: int, folder: str | Path, executor: str | None
) -> list[DryRun]:
    """The same of the first so many calls."""
    computer = None
    computer_id = None
    if profile is not None and executor not in (None, *NAMES):
        stored = load_computer(profile, str(executor))
        computer, computer_id = stored.computer, stored.id
    made: list[DryRun] = []
    for calls in maps:
        recipe = calls.recipe
        if not isinstance(recipe, JobRecipe):
            expected = "a CalcJob class or a ShellJob (a function needs no files)"
            raise InputInvalid("dry_run", recipe.label, expected)
        for values in islice(_each(calls), most - len(made)):
            if profile is not None:
                CodePlaces(profile, computer_id).require([values])
            task = recipe.task(0, 1, recipe.draft(values))
            made.append(_written(recipe.label, task, calls.resources, computer, Path(folder), profile))
    return made


def _each(calls: Calls) -> Iterator[Mapping[str, object]]:
    for place in range(len(calls)):
        [call] = calls.slice(place, place + 1)
        yield call.values()


def _written(
    label: str,
    task: CommandTask,
    resources: Resources,
    computer: Computer | None,
    base: Path,
    profile: Profile | None,
) -> DryRun:
    if computer is not None:
        nodes = node_count(
            resources, computer.cores_per_node, computer.memory_mb_per_node, computer.gpus_per_node
        )
        resources = replace(resources, nodes=nodes)
    folder = _new_folder(base, label)
    for path, content in task.files.items():
        if isinstance(content, str):
            assert profile is not None  # only codes of a profile have files by key
            [content] = profile.read_files([content])
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        if task.argv[0] in (path, f"./{path}"):
            place.chmod(0o700)
    name = SCRIPT
    while name in task.files:
        name = f"_{name}"
    script = folder / name
    script.write_text(_script(label, task, resources, computer))
    script.chmod(0o700)
    keeps = (task.stdout, task.stderr, *task.retrieve)
    return DryRun(label, folder, script, task.argv, keeps, resources)


def _new_folder(base: Path, label: str) -> Path:
    """A folder that nobody else has: LABEL-00001 and so on."""
    base = base.absolute()
    base.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.+-]+", "_", label)
    taken = [name.name.rpartition("-")[2] for name in base.glob(f"{stem}-*")]
    first = max((int(number) for number in taken if number.isdecimal()), default=0) + 1
    for number in count(first):
        folder = base / f"{stem}-{number:05d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError


def _script(label: str, task: CommandTask, resources: Resources, computer: Computer | None) -> str:
    """What runs the task in the folder that it lies in, as a runner would."""
    ready = scripted(task, resources, computer.mpirun if computer else MPIRUN) if needs_script(task) else task
    lines = ["#!/bin/bash", f"# What grange would run for {label}; nothing of it was stored."]
    lines += [f"# {line}" for line in _about(task, resources, computer)]
    lines.append('cd "$(dirname "$0")" || exit')
    cpus = resources.cpus
    lines += [f'export {name}="${{{name}:-{cpus}}}"' for name in THREADS]
    if computer is not None and computer.prepend_text:
        lines += [FIND_MODULE.rstrip()] if uses_module(computer.prepend_text) else []
        lines += [f"# of the computer {computer.label}", computer.prepend_text]
    for variable, value in ready.environment.items():
        text = f"{variable}={shlex.quote(value)}"
        lines.append(f"export {text}" if _NAME.fullmatch(variable) else f"# no name for bash: {text}")
    stdin = "/dev/null" if task.stdin is None else shlex.quote(task.stdin)
    for path in (task.stdout, task.stderr):
        if "/" in path:
            lines.append(f"mkdir -p {shlex.quote(path.rpartition('/')[0])}")
    lines.append(f"exec <{stdin} >{shlex.quote(task.stdout)} 2>{shlex.quote(task.stderr)}")
    if ready is task:
        lines.append(f"exec -- {shlex.join(task.argv)}")
    else:
        bash, _, body, _, *words = ready.argv
        assert bash == BASH
        lines += [f"set -- {shlex.join(words)}", body.rstrip()]
    return "\n".join(lines) + "\n"


def _about(task: CommandTask, resources: Resources, computer: Computer | None) -> list[str]:
    """What a script cannot say."""
    needs = [f"{resources.cpus} cpus"]
    needs += [f"{resources.nodes} nodes"] if resources.nodes is not None else []
    needs += [f"{resources.gpus} GPUs"] if resources.gpus else []
    needs += [f"{resources.memory_mb} MiB"] if resources.memory_mb is not None else []
    needs += [f"{resources.walltime_s:g} s"] if resources.walltime_s is not None else []
    where = f" on {computer.label}" if computer is not None else ""
    said = [f"It needs{where}: {', '.join(needs)}."]
    said.append(f"Kept: {', '.join((task.stdout, task.stderr, *task.retrieve))}.")
    said += [f"Monitor of {monitor.file}, every {monitor.every_s:g} s." for monitor in task.monitors]
    if task.stash is not None:
        said.append(f"Stays there: {', '.join(task.stash.paths)}, in {task.stash.to}.")
    return [line.replace("\n", " ") for line in said]
