"""Shell jobs: a program run from a template, without writing a class."""

from __future__ import annotations

import contextlib
import copy
import shlex
import string
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from grange.core.calcjob import CalcJob
from grange.core.command import Command
from grange.core.data.code import InstalledCode
from grange.core.data.singlefile import FileValue, SingleFile
from grange.core.errors import InputInvalid
from grange.core.fingerprint import fingerprint
from grange.core.job_recipe import JobRecipe
from grange.core.node import Data
from grange.core.output_files import OutputFiles
from grange.core.port import Ports

SHELL_ATTRIBUTE = "shell"
#: Standard output up to this size becomes the output "stdout" too; it is in "retrieved" in any case.
STDOUT_LIMIT_BYTES = 64 * 1024


class ShellJob(CalcJob):
    """A program run from a template: files in, files out.

        gr.ShellJob("grep -c {pattern} poem.txt", files={"poem.txt": "…"}, outputs={"log": "run.log"})

    command: one line, split as a shell would but run without one, or a list of arguments. Fields in
    braces are ports, filled per call: numbers and texts are written as they are, a file (gr.SingleFile,
    or a pathlib.Path) is put into the directory and its name is written. Literal braces are doubled.
    files: path → content to be there; fields are filled in texts, bytes are taken as they are.
    stdin: which of the files is the standard input. retrieve: patterns of further files to keep.
    outputs: name → path of a file that must be there in the end; each becomes an output of its own.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        files: Mapping[str, str | bytes] | None = None,
        stdin: str | None = None,
        retrieve: Sequence[str] = (),
        outputs: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> None:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
        if not argv:
            raise InputInvalid("ShellJob: command", command, "a program and its arguments")
        if isinstance(retrieve, str):
            raise InputInvalid("ShellJob: retrieve", retrieve, "a list of glob patterns")
        self.argv = argv
        self.files = dict(files or {})
        self.stdin = stdin
        self.retrieve = tuple(retrieve)
        self.outputs = dict(outputs or {})
        self.environment = dict(environment or {})
        self.label = label or argv[0].rsplit("/", 1)[-1]
        self.fields = _fields(argv, self.files)
        self.inputs = SimpleNamespace()

    def prepare(self, inputs: Any) -> Command:
        given: dict[str, object] = {name: value for name, value in vars(inputs).items() if name != "code"}
        files: dict[str, str | bytes] = {}
        words: dict[str, object] = {}
        for name, value in given.items():
            if isinstance(value, FileValue):
                files[value.name] = value.content
                words[name] = value.name
            else:
                words[name] = value
        formatter = string.Formatter()
        for path, content in self.files.items():
            files[path] = formatter.vformat(content, (), words) if isinstance(content, str) else content
        return Command(
            argv=[formatter.vformat(word, (), words) for word in self.argv],
            files=files,
            environment=self.environment,
            stdin=self.stdin,
            retrieve=[*self.retrieve, *self.outputs.values()],
        )

    def parse(self, files: OutputFiles) -> Mapping[str, object]:
        parsed: dict[str, object] = {}
        for name, path in self.outputs.items():
            if path not in files:
                raise FileNotFoundError(f"output {name}: the program left no file {path}")
            parsed[name] = SingleFile.of_key(path.rsplit("/", 1)[-1], files.key(path))
        text = files.get("stdout.txt", b"")
        if 0 < len(text) <= STDOUT_LIMIT_BYTES and b"\0" not in text:
            with contextlib.suppress(UnicodeDecodeError):
                parsed["stdout"] = text.decode()
        return parsed

    def record(self) -> dict[str, Any]:
        """What the process node keeps, enough for from_record()."""
        return {
            "argv": self.argv,
            "files": {
                path: content if isinstance(content, str) else {"hex": content.hex()}
                for path, content in self.files.items()
            },
            "stdin": self.stdin,
            "retrieve": list(self.retrieve),
            "outputs": self.outputs,
            "environment": self.environment,
            "label": self.label,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ShellJob:
        """The job again, from what record() gave."""
        return cls(
            record["argv"],
            files={
                path: content if isinstance(content, str) else bytes.fromhex(content["hex"])
                for path, content in record["files"].items()
            },
            stdin=record["stdin"],
            retrieve=record["retrieve"],
            outputs=record["outputs"],
            environment=record["environment"],
            label=record["label"],
        )


class ShellRecipe(JobRecipe):
    """How the calls of a shell job are run."""

    def __init__(self, job: ShellJob) -> None:
        self._job = job
        self.job_class = ShellJob
        self.label = job.label
        self.process_type = "grange.core.shell_job.ShellJob"
        self.ports = Ports.of_names([*job.fields, "code"])
        self.promised = Ports.anything()
        record = job.record()
        self.fingerprint = fingerprint(repr(sorted(record.items())))
        self.attributes = {"process_label": job.label, SHELL_ATTRIBUTE: record}
        self.files = {}

    def implied(self) -> dict[str, Data]:
        """The program, as a code node that every call has as an input."""
        return {"code": InstalledCode(filepath_executable=self._job.argv[0], label=self._job.argv[0])}

    def new_job(self, values: Mapping[str, object]) -> ShellJob:
        job = copy.copy(self._job)
        job.inputs = SimpleNamespace(**values)
        return job


def _fields(argv: Sequence[str], files: Mapping[str, str | bytes]) -> list[str]:
    """The names in braces, in the order in which they come."""
    found: dict[str, None] = {}
    for text in [*argv, *(content for content in files.values() if isinstance(content, str))]:
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise InputInvalid(
                "ShellJob", text, f"a template with doubled literal braces ({error})"
            ) from None
        for _, field, _, _ in parsed:
            if field is None:
                continue
            name = field.split(".")[0].split("[")[0]
            if not name.isidentifier():
                raise InputInvalid(
                    "ShellJob", text, "names in braces, as in {charge}; literal braces are doubled"
                )
            found[name] = None
    if "code" in found:
        raise InputInvalid("ShellJob", "{code}", "another name: 'code' is the program itself")
    return list(found)
