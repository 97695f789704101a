"""Writing chunk folders: what a runner needs to work through a chunk, in one ZIP file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from grange.farm import runner
from grange.farm.delivery import Delivery
from grange.farm.monitor import Monitor
from grange.farm.task import CommandTask, FunctionTask, Resources, ShippedFunction, Task
from grange.farm.task_script import MPIRUN, needs_script, scripted
from grange.repository.errors import BlobMissing
from grange.repository.key import Key, key_of

Fetch = Callable[[Collection[Key]], dict[Key, bytes]]

#: These cost less than a reference to them.
SCALARS = frozenset({int, float, str, bool, type(None)})


def write_chunk(
    folder: Path,
    tasks: Sequence[Task],
    resources: Resources,
    *,
    scratch: str,
    fetch: Fetch | None,
    flush_s: float = 0.5,
    mpirun: str = MPIRUN,
    delivery: Delivery | None = None,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """Write chunk.zip for tasks of one kind (all commands, or all calls of one function).

    mpirun: how commands that want it are run under MPI. delivery: large contents are left out that
    nodes can fetch from its store; chunk.json lists them. more: what the runner is told besides.

    Returns the tasks that cannot be made, id → reason; they are not in the chunk. If that is all of
    them, nothing is written.
    Errors: runner.SpoolFailed.
    """
    spec: dict[str, Any] = {
        "format": runner.FORMAT,
        "cpus": resources.cpus,
        "memory_mb": resources.memory_mb,
        "walltime_s": resources.walltime_s,
        "flush_s": flush_s,
        "scratch": scratch,
        **more,
    }
    if isinstance(tasks[0], CommandTask):
        commands = [task for task in tasks if isinstance(task, CommandTask)]
        blobs, missing, away = _input_files(commands, fetch, delivery)
        if away:
            spec["away"] = sorted(away)
        spec["kind"] = "command"
        spec["tasks"] = []
        monitors: dict[Monitor, int] = {}
        for task in commands:
            if task.id in missing:
                continue
            try:
                made = scripted(task, resources, mpirun) if needs_script(task) else task
            except ValueError as problem:
                missing[task.id] = str(problem)
            else:
                spec["tasks"].append(_command(made))
                for monitor in made.monitors:
                    number = monitors.setdefault(monitor, len(monitors))
                    spec["tasks"][-1].setdefault("monitors", []).append(number)
        if monitors:
            spec["monitors"] = [_monitor(monitor, blobs) for monitor in monitors]
    else:
        calls = [task for task in tasks if isinstance(task, FunctionTask)]
        content, missing = _calls(calls)
        function = tasks[0].function
        blobs = {"calls.pickle": content}
        spec["kind"] = "function"
        spec["function"] = _function(function, blobs)
        spec["tasks"] = [{"id": task.id, "attempt": task.attempt} for task in calls if task.id not in missing]
    if spec["tasks"]:
        pack = runner.ZipWriter(str(folder / "chunk.zip"))
        for name, blob in blobs.items():
            pack.add(name, blob)
        pack.add("chunk.json", runner.dump(spec))
        # Not synced: a chunk that the machine forgets is submitted again.
        pack.close(sync=False)
    return missing


def _command(task: CommandTask) -> dict[str, Any]:
    made: dict[str, Any] = {"id": task.id, "argv": task.argv}
    if task.attempt != 1:
        made["attempt"] = task.attempt
    if task.files:
        made["files"] = {
            path: content if isinstance(content, str) else key_of(content)
            for path, content in task.files.items()
        }
    if task.environment:
        made["environment"] = dict(task.environment)
    if task.stdin is not None:
        made["stdin"] = task.stdin
    if task.stdout != "stdout.txt":
        made["stdout"] = task.stdout
    if task.stderr != "stderr.txt":
        made["stderr"] = task.stderr
    if task.retrieve:
        made["retrieve"] = task.retrieve
    if task.stash is not None:
        made["stash"] = {"paths": task.stash.paths, "to": task.stash.to, "mode": task.stash.mode}
    return made


def _monitor(monitor: Monitor, blobs: dict[str, bytes]) -> dict[str, Any]:
    """What the lookout is told of a monitor."""
    made: dict[str, Any] = {
        "file": monitor.file,
        "every_s": monitor.every_s,
        "message": monitor.message,
        "tail_bytes": monitor.tail_bytes,
        "stop_file": monitor.stop_file,
        "stop_text": monitor.stop_text,
        "grace_s": monitor.grace_s,
        "timeout_s": monitor.timeout_s,
    }
    if isinstance(monitor.look, ShippedFunction):
        made["function"] = _function(monitor.look, blobs)
    else:
        made["pattern"] = monitor.look
    return made


def _input_files(
    tasks: Sequence[CommandTask], fetch: Fetch | None, delivery: Delivery | None
) -> tuple[dict[str, bytes], dict[str, str], set[Key]]:
    """Contents by key of all input files, each once; the tasks whose contents are not to be had; and the
    contents that are left away."""
    blobs: dict[str, bytes] = {}
    wanted: dict[Key, None] = {}
    for task in tasks:
        for content in task.files.values():
            if isinstance(content, str):
                wanted[content] = None
            else:
                blobs[key_of(content)] = content
    absent = {key: None for key in wanted if key not in blobs}
    away: set[Key] = set()
    if delivery is not None:
        large = {Key(key) for key, content in blobs.items() if len(content) >= delivery.least_bytes}
        if absent or large:
            away = delivery.left_away(absent.keys() | large)
        absent = {key: None for key in absent if key not in away}
        for key in away & large:
            del blobs[key]
    if fetch is not None and absent:
        for key, fetched in _fetched(fetch, list(absent)).items():
            blobs[key] = fetched
    missing: dict[str, str] = {}
    for task in tasks:
        for path, content in task.files.items():
            if isinstance(content, str) and content not in blobs and content not in away:
                missing[task.id] = (
                    f"the content {content} of the input file {path!r} is not in the repository"
                )
    return blobs, missing, away


def add_inputs(folder: Path, task_ids: Collection[str], fetch: Fetch | None) -> None:
    """Write chunk.zip anew, for some of its tasks, with the contents that were left away.

    Errors: runner.SpoolFailed; those of fetch.
    """
    path = folder / "chunk.zip"
    old = runner.ZipReader(str(path))
    try:
        spec = json.loads(old.read("chunk.json"))
        away = spec.pop("away", [])
        spec["tasks"] = [task for task in spec["tasks"] if task["id"] in task_ids]
        part = folder / "chunk.part"
        pack = runner.ZipWriter(str(part))
        for name in old.names:
            if name != "chunk.json":
                pack.add(name, old.read(name))
        # One by one: they are large.
        for key in away:
            for found, content in (_fetched(fetch, [key]) if fetch is not None else {}).items():
                pack.add(found, content)
        pack.add("chunk.json", runner.dump(spec))
        pack.close(sync=False)
    finally:
        old.close()
    part.rename(path)


def _fetched(fetch: Fetch, keys: list[Key]) -> Mapping[Key, bytes]:
    """Those of the contents that there are."""
    while keys:
        try:
            return fetch(keys)
        except BlobMissing as problem:
            left = [key for key in keys if key not in set(problem.keys)]
            if len(left) == len(keys):
                raise
            keys = left
    return {}


def _function(function: ShippedFunction, blobs: dict[str, bytes]) -> dict[str, Any]:
    key = None
    if function.pickle is not None:
        key = key_of(function.pickle)
        blobs[key] = function.pickle
    return {
        "name": function.name,
        "module": function.module,
        "qualname": function.qualname,
        "path": function.path,
        "pickle": key,
    }


def _calls(tasks: Sequence[FunctionTask]) -> tuple[bytes, dict[str, str]]:
    """calls.pickle (runner.Calls), and the tasks whose arguments cannot be pickled, with the reason."""
    try:
        content = _pickled_calls(tasks, lambda value: pickle.dumps(value, 5))
        # What was defined in a script or notebook is found by no other interpreter: it travels by value.
        if b"__main__" not in content:
            return content, {}
    except Exception:
        content = b""
    import cloudpickle

    def dumps(value: object) -> bytes:
        made: bytes = cloudpickle.dumps(value, 5)
        return made

    missing: dict[str, str] = {}
    if not content:
        missing = {task.id: reason for task in tasks if (reason := _unpicklable(task, dumps))}
    return _pickled_calls([task for task in tasks if task.id not in missing], dumps), missing


def _unpicklable(task: FunctionTask, dumps: Callable[[object], bytes]) -> str:
    for name, value in task.kwargs.items():
        try:
            dumps(value)
        except Exception as problem:
            return f"the argument {name!r} ({type(value).__name__}) cannot be pickled: {problem}"
    return ""


def _pickled_calls(tasks: Sequence[FunctionTask], dumps: Callable[[object], bytes]) -> bytes:
    seen: set[int] = set()
    repeated: set[int] = set()
    for task in tasks:
        for value in task.kwargs.values():
            if type(value) not in SCALARS:
                (repeated if id(value) in seen else seen).add(id(value))
    numbers: dict[int, int] = {}
    shared: list[bytes] = []
    calls: list[tuple[bytes, tuple[tuple[str, int], ...]]] = []
    for task in tasks:
        own: dict[str, object] = {}
        references: list[tuple[str, int]] = []
        for name, value in task.kwargs.items():
            if id(value) not in repeated or type(value) in SCALARS:
                own[name] = value
                continue
            number = numbers.get(id(value))
            if number is None:
                number = numbers[id(value)] = len(shared)
                shared.append(dumps(value))
            references.append((name, number))
        calls.append((dumps(own), tuple(references)))
    return pickle.dumps((shared, calls), 5)
