"""Recipes of calculation jobs: programs, run by the farm, parsed here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

from grange.core.caching import declared_caching
from grange.core.calcjob import CalcJob
from grange.core.command import RESERVED, Command, checked
from grange.core.data.code_value import CodeValue
from grange.core.data.convert import to_data
from grange.core.data.folder import Folder
from grange.core.data.remote_stash import RemoteStash, RemoteStashArchive, RemoteStashFolder
from grange.core.data.singlefile import FileValue
from grange.core.errors import GrangeError, InputInvalid, InputMissing
from grange.core.exit_code import ExitCode
from grange.core.exit_status import (
    NON_ZERO_EXIT,
    OUTPUT_INVALID,
    OUTPUT_MISSING,
    OUTPUT_NOT_PARSED,
    RAN,
    STOPPED_BY_MONITOR,
    exit_code_of,
)
from grange.core.fingerprint import fingerprint
from grange.core.monitor import checked_monitors, described
from grange.core.node import CalcJobNode, Data, ProcessNode
from grange.core.output_files import OutputFiles
from grange.core.port import Ports, checked_name, port_of, ports_of_class
from grange.core.raised import is_interrupt, said_by
from grange.core.recipe import Conclusion, Draft, failed, succeeded
from grange.core.stash import aiida_mode, attribute_of
from grange.core.transition import State
from grange.farm.function import ship
from grange.farm.result import TaskResult
from grange.farm.task import CommandTask

#: Of the class, at its process nodes; input files cannot have these names.
SOURCE_FILE = f"{RESERVED}source_file"
PICKLE_FILE = f"{RESERVED}calcjob.pickle"
#: The output that holds what the program left.
RETRIEVED = "retrieved"
#: The output that says where files stayed on the computer.
STASHED = "remote_stash"
#: The last line of a larger file is not looked for: all of it would be read. Bytes.
LARGEST_READ_FOR_WORDS = 4 << 20
_OWN_OUTPUTS = (RETRIEVED, STASHED)
_OTHER_NAME = (
    f"another text as the name of an output: {RETRIEVED!r} is the folder of all files, "
    f"{STASHED!r} says where others stayed"
)
#: Values of these types cannot be changed: calls may share them.
_CONSTANT = frozenset({int, float, str, bool, bytes, type(None), FileValue, CodeValue})


class JobRecipe:
    """How the calls of a CalcJob class are run."""

    node_class: type[ProcessNode] = CalcJobNode
    parses = True

    def __init__(self, job_class: type[CalcJob]) -> None:
        self.job_class = job_class
        self.label = job_class.__name__
        self.caching = declared_caching(job_class)
        if job_class.prepare is CalcJob.prepare:
            raise InputInvalid(self.label, job_class, "a class with a method prepare(self, inputs)")
        self.process_type = f"{job_class.__module__}.{job_class.__qualname__}"
        self.ports: Ports = ports_of_class(job_class.Inputs)
        self.promised: Ports = ports_of_class(job_class.Outputs)
        for name in self.promised:
            if name in _OWN_OUTPUTS:
                raise InputInvalid(f"{self.label}: Outputs", name, _OTHER_NAME)
        self._monitors = checked_monitors(job_class.monitors, f"{self.label}: monitors")
        self.fingerprint = fingerprint(job_class)
        files = {}
        shipped = ship(job_class)
        self.attributes: Mapping[str, Any] = {
            "process_label": self.label,
            "class_path": shipped.path,
            "fingerprint": self.fingerprint.hex(),
        }
        if shipped.source:
            files[SOURCE_FILE] = shipped.source.encode("utf-8", "replace")
        if shipped.pickle is not None:
            files[PICKLE_FILE] = shipped.pickle
        self.files: Mapping[str, bytes] = files

    def new_job(self, values: Mapping[str, object]) -> CalcJob:
        """The job of one call, with inputs of its own, defaults filled in."""
        job = self.job_class()
        inputs = {**self.ports.defaults(), **values}
        for name, value in inputs.items():
            if type(value) not in _CONSTANT:
                inputs[name] = copy.deepcopy(value)
        job.inputs = SimpleNamespace(**inputs)
        return job

    def prepared(self, values: Mapping[str, object]) -> Command:
        """What prepare() of one call gives."""
        job = self.new_job(values)
        return job.prepare(job.inputs)

    def parsed(self, values: Mapping[str, object], files: OutputFiles) -> object:
        """What parse() of one call gives."""
        return self.new_job(values).parse(files)

    def _monitored(self, command: Command) -> Command:
        """The command with the monitors of its class, too."""
        if not self._monitors or not isinstance(command, Command):
            return command
        return replace(command, monitors=(*command.monitors, *self._monitors))

    def draft(self, values: Mapping[str, object]) -> Draft:
        command = checked(self._monitored(self.prepared(values)), self.label)
        attributes: dict[str, Any] = {"argv": list(command.argv)}
        if command.retrieve:
            attributes["retrieve_list"] = list(command.retrieve)
        if command.environment:
            attributes["environment_variables"] = dict(command.environment)
        if not command.is_bare:
            attributes["argv"] = command.words()
            if command.prepend_text:
                attributes["prepend_text"] = command.prepend_text
            if command.append_text:
                attributes["append_text"] = command.append_text
            if command.mpi or command.with_mpi is not None:
                attributes["withmpi"] = command.mpi
        if command.monitors:
            attributes["monitors"] = [described(monitor) for monitor in command.monitors]
        if command.stash is not None:
            attributes["stash"] = attribute_of(command.stash)
        return Draft(command, attributes, command.contents())

    def task(self, process_id: int, attempt: int, draft: Draft) -> CommandTask:
        command: Command = draft.payload
        task = CommandTask(
            id=str(process_id),
            argv=tuple(command.argv),  # type: ignore[arg-type]  # texts, or made such in _launched
            files=draft.files,
            environment=command.environment,
            stdin=command.stdin,
            stdout=command.stdout,
            stderr=command.stderr,
            retrieve=tuple(command.retrieve),
            attempt=attempt,
            monitors=tuple(command.monitors),
            stash=command.stash,
        )
        return task if command.is_bare else _launched(task, command)

    def conclude(self, result: TaskResult, values: Mapping[str, object], files: OutputFiles) -> Conclusion:
        kept: dict[str, Data] = {RETRIEVED: Folder.of_keys(result.files)} if result.files else {}
        if result.stash is not None:
            kept[STASHED] = _stashed(result)
        if result.outcome == "cancelled":
            return Conclusion(State.KILLED, None, result.message, kept)
        found = None
        if result.outcome != "finished":
            files.ended_by = exit_code_of(result.outcome, bool(result.files))
            found = failed(files.ended_by, result.message, kept)
            ended_well = result.outcome == "stash_failed" and not result.return_code
            if not (ended_well or (self.job_class.parse_failed and result.outcome in RAN)):
                return found
        elif result.return_code:
            found = failed(NON_ZERO_EXIT, f"{result.return_code}{_last_words(files)}", kept)
            if not self.job_class.parse_failed:
                return found
        return self._parsed(values, files, kept, found)

    def _parsed(
        self,
        values: Mapping[str, object],
        files: OutputFiles,
        kept: Mapping[str, Data],
        found: Conclusion | None,
    ) -> Conclusion:
        """What parse() makes of it.

        found: what it comes to where parse() has nothing to say, of a program that failed. Where something
        ended the program (files.ended_by), outputs do not make it a success, and what parse() cannot do is
        no news; a monitor knows best why it stopped it.
        """
        try:
            parsed = self.parsed(values, files)
        except BaseException as error:  # the user's parser: what it raises is a result, never ours
            if is_interrupt(error):
                raise
            said = f"parse() raised {said_by(error)}"
            return _adding(found, said) if found and files.ended_by else failed(OUTPUT_NOT_PARSED, said, kept)
        if isinstance(parsed, ExitCode):
            if found is not None and files.ended_by is STOPPED_BY_MONITOR:
                return found
            return failed(parsed, "", kept)
        if parsed is None and found is not None:
            return found
        try:
            outputs = self._outputs({} if parsed is None else parsed, required=files.ended_by is None)
        except Exception as error:  # objects of users': whatever they raise when they are looked at
            said = str(error) if isinstance(error, GrangeError) else said_by(error)
            if found is not None and files.ended_by is not None:
                return _adding(found, said)
            code = OUTPUT_MISSING if isinstance(error, InputMissing) else OUTPUT_INVALID
            return failed(code, said, kept)
        if found is not None and files.ended_by is not None:
            return replace(found, outputs={**kept, **outputs})
        return succeeded({**kept, **outputs})

    def _outputs(self, parsed: object, *, required: bool) -> dict[str, Data]:
        """What parse() gave, as data by name. required: whether all has to be there that was promised.

        Errors: InputMissing; InputInvalid for what was not promised, or is no data of its own.
        """
        where = f"{self.label}: parse()"
        if not isinstance(parsed, Mapping):
            raise InputInvalid(where, parsed, "a dict of outputs by name, or an exit code")
        for name in parsed:
            if not isinstance(name, str) or name in _OWN_OUTPUTS:
                raise InputInvalid(where, name, _OTHER_NAME)
        if self.promised:
            if required:
                self.promised.require(parsed, where)
            for name in parsed:
                port_of(self.promised, name, where)
        outputs: dict[str, Data] = {}
        for name, value in parsed.items():
            if value is None:
                continue
            if name not in self.promised:
                checked_name(name, where)
            annotation = self.promised[name].annotation if name in self.promised else None
            outputs[name] = new_data(value, f"{self.label}: output {name}", annotation, outputs)
        return outputs


def _launched(task: CommandTask, command: Command) -> CommandTask:
    """The task with what its command and its code want around the program."""
    launch = command.launch
    return replace(
        task,
        argv=tuple(command.words()),
        # The files of a code are recorded with the code, not with each of its calculations.
        files={**launch.files, **task.files},
        prologue=_lines(launch.prepend_text, command.prepend_text),
        epilogue=_lines(command.append_text, launch.append_text),
        mpi=command.mpi,
        container=launch.container,
        line=launch.line,
        expand=launch.expand,
    )


def _stashed(result: TaskResult) -> RemoteStash:
    """What says where files stayed. Errors: InputInvalid for what a runner would not say."""
    stashed = result.stash
    assert stashed is not None
    made = RemoteStashFolder if stashed.mode == "copy" else RemoteStashArchive
    return made(stashed.path, stashed.patterns, aiida_mode(stashed.mode))


def _lines(first: str, then: str) -> str:
    return f"{first}\n{then}" if first and then else first or then


def new_data(
    value: object, where: str, annotation: object | None, others: Mapping[str, Data] = MappingProxyType({})
) -> Data:
    """An output as data that this calculation makes.

    Errors: InputInvalid for a value of the wrong type, and for data that has been made already.
    """
    if isinstance(value, Data) and (value.id is not None or any(value is other for other in others.values())):
        raise InputInvalid(
            where, value, "data that is made here: give its plain value, or a node that is not stored yet"
        )
    return to_data(value, where, annotation)


def _adding(found: Conclusion, said: str) -> Conclusion:
    return replace(found, message=f"{found.message}; {said}")


def _last_words(files: OutputFiles) -> str:
    """What the program said last on its standard error, for the message."""
    for path in ("stderr.txt", "stdout.txt"):
        if path in files:
            if (files.size(path) or 0) > LARGEST_READ_FOR_WORDS:
                return f"; {path} says more"
            lines = files.text(path).strip().splitlines()
            if lines:
                return f"; last line of {path}: {lines[-1][:200]}"
    return ""
