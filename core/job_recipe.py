"""Recipes of calculation jobs: programs, run by the farm, parsed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from grange.core.calcjob import CalcJob
from grange.core.command import Command, checked
from grange.core.data.convert import to_data
from grange.core.data.folder import Folder
from grange.core.errors import GrangeError, InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.exit_status import NON_ZERO_EXIT, OF_OUTCOME, OUTPUT_INVALID, OUTPUT_NOT_PARSED
from grange.core.fingerprint import fingerprint
from grange.core.node import CalcJobNode, Data, ProcessNode
from grange.core.output_files import OutputFiles
from grange.core.port import Ports, ports_of_class
from grange.core.recipe import Conclusion, Draft, failed, succeeded
from grange.core.transition import State
from grange.farm.function import ship
from grange.farm.result import TaskResult
from grange.farm.task import CommandTask

SOURCE_FILE = "source_file"
PICKLE_FILE = "calcjob.pickle"


class JobRecipe:
    """How the calls of a CalcJob class are run."""

    node_class: type[ProcessNode] = CalcJobNode

    def __init__(self, job_class: type[CalcJob]) -> None:
        self.job_class = job_class
        self.label = job_class.__name__
        self.process_type = f"{job_class.__module__}.{job_class.__qualname__}"
        self.ports: Ports = ports_of_class(job_class.Inputs)
        self.promised: Ports = ports_of_class(job_class.Outputs)
        self.fingerprint = fingerprint(job_class)
        self.attributes: Mapping[str, Any] = {"process_label": self.label}
        files = {}
        shipped = ship(job_class)
        if shipped.source:
            files[SOURCE_FILE] = shipped.source.encode("utf-8", "replace")
        if shipped.pickle is not None:
            files[PICKLE_FILE] = shipped.pickle
        self.files: Mapping[str, bytes] = files

    def new_job(self, values: Mapping[str, object]) -> CalcJob:
        """The job of one call, with its inputs, defaults filled in."""
        job = self.job_class()
        job.inputs = SimpleNamespace(**{**self.ports.defaults(), **values})
        return job

    def draft(self, values: Mapping[str, object]) -> Draft:
        job = self.new_job(values)
        command = checked(job.prepare(job.inputs), self.label)
        attributes: dict[str, Any] = {"argv": list(command.argv)}
        if command.retrieve:
            attributes["retrieve_list"] = list(command.retrieve)
        if command.environment:
            attributes["environment_variables"] = dict(command.environment)
        return Draft(command, attributes, command.contents())

    def task(self, process_id: int, attempt: int, draft: Draft) -> CommandTask:
        command: Command = draft.payload
        return CommandTask(
            id=str(process_id),
            argv=tuple(command.argv),
            files=draft.files,
            environment=command.environment,
            stdin=command.stdin,
            stdout=command.stdout,
            stderr=command.stderr,
            retrieve=tuple(command.retrieve),
            attempt=attempt,
        )

    def conclude(self, result: TaskResult, values: Mapping[str, object], files: OutputFiles) -> Conclusion:
        kept: dict[str, Data] = {"retrieved": Folder.of_keys(result.files)} if result.files else {}
        if result.outcome == "cancelled":
            return Conclusion(State.KILLED, None, result.message, kept)
        if result.outcome != "finished":
            return failed(OF_OUTCOME[result.outcome], result.message, kept)
        job = self.new_job(values)
        if result.return_code and not job.parse_failed:
            return failed(NON_ZERO_EXIT, f"{result.return_code}{_last_words(files)}", kept)
        try:
            parsed = job.parse(files)
        except Exception as error:  # the user's parser: whatever it raises is a result, never ours
            return failed(OUTPUT_NOT_PARSED, f"parse() raised {type(error).__name__}: {error}", kept)
        if isinstance(parsed, ExitCode):
            return failed(parsed, "", kept)
        if parsed is None and result.return_code:
            return failed(NON_ZERO_EXIT, f"{result.return_code}{_last_words(files)}", kept)
        return self._with_outputs(dict(parsed or {}), kept)

    def _with_outputs(self, parsed: dict[str, object], kept: dict[str, Data]) -> Conclusion:
        try:
            if self.promised:
                self.promised.require(parsed, f"{self.label}: outputs of parse()")
            for name, value in parsed.items():
                annotation = self.promised[name].annotation if name in self.promised else None
                if self.promised and annotation is None and name not in self.promised:
                    raise InputInvalid(f"{self.label}: parse()", name, f"one of {', '.join(self.promised)}")
                if value is not None:
                    kept[name] = to_data(value, f"{self.label}: output {name}", annotation)
        except GrangeError as error:
            return failed(OUTPUT_INVALID, str(error), kept)
        return succeeded(kept)


def _last_words(files: OutputFiles) -> str:
    """What the program said last on its standard error, for the message."""
    for path in ("stderr.txt", "stdout.txt"):
        if path in files:
            lines = files.text(path).strip().splitlines()
            if lines:
                return f"; last line of {path}: {lines[-1][:200]}"
    return ""
