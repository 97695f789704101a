"""Shell jobs: a program run from a template, without writing a class."""

from __future__ import annotations

import contextlib
import copy
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

from grange.core.calcjob import CalcJob
from grange.core.command import Command, checked
from grange.core.data.code import InstalledCode
from grange.core.data.singlefile import FileValue, SingleFile
from grange.core.errors import InputInvalid
from grange.core.fingerprint import fingerprint
from grange.core.job_recipe import RETRIEVED, JobRecipe
from grange.core.node import Data
from grange.core.output_files import OutputFiles
from grange.core.port import Ports, checked_name

SHELL_ATTRIBUTE = "shell"
#: The input that is the program.
CODE = "code"
_FORMATTER = string.Formatter()
#: Standard output up to this size becomes the output "stdout" too; it is in "retrieved" in any case.
STDOUT_LIMIT_BYTES = 64 * 1024


class ShellJob(CalcJob):
    """A program run from a template: files in, files out.

        gr.ShellJob("grep -c {pattern} poem.txt", files={"poem.txt": "…"}, outputs={"log": "run.log"})

    command: one line, split as a shell would but run without one, or a list of arguments. Fields in
    braces are ports, filled per call: numbers and texts are written as they are, a file (gr.SingleFile,
    or a pathlib.Path) is put into the directory and its name is written. Literal braces are doubled.
    files: path → content to be there; fields are filled in texts, bytes are taken as they are.
    stdin: which of the files is the standard input, or the port of one, in braces.
    retrieve: patterns of further files to keep.
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
        argv = _split(command)
        if isinstance(retrieve, str):
            raise InputInvalid("ShellJob: retrieve", retrieve, "a list of glob patterns")
        self.argv = argv
        self.files = dict(files or {})
        self.stdin = stdin
        self.retrieve = tuple(retrieve)
        self.outputs = dict(outputs or {})
        self.environment = dict(environment or {})
        self.label = label or argv[0].rsplit("/", 1)[-1]
        texts = [content for content in self.files.values() if isinstance(content, str)]
        self.fields = _fields([*argv, *texts, *([stdin] if isinstance(stdin, str) else [])])
        for name in self.outputs:
            checked_name(name, "ShellJob: outputs")
            if name in (RETRIEVED, "stdout"):
                raise InputInvalid("ShellJob: outputs", name, "another name: every shell job has this output")
        # What is wrong whatever the inputs are is said here, where it was written.
        known_stdin = None if isinstance(stdin, str) and _fields([stdin]) else stdin
        checked(self._command(argv, self.files, known_stdin), "ShellJob")
        self.inputs = SimpleNamespace()

    def prepare(self, inputs: Any) -> Command:
        files: dict[str, str | bytes] = {}
        words: dict[str, object] = {}
        for name, value in vars(inputs).items():
            if isinstance(value, FileValue):
                if value.name in self.files or files.get(value.name, value.content) != value.content:
                    raise InputInvalid(
                        f"{self.label}: {name}", value.name, "a file with a name that no other file has"
                    )
                files[value.name] = value.content
                words[name] = value.name
            elif name != CODE:
                words[name] = _writable(value, f"{self.label}: {name}")
        for path, content in self.files.items():
            files[path] = content.format_map(words) if isinstance(content, str) else content
        argv = [word.format_map(words) for word in self.argv]
        stdin = None if self.stdin is None else self.stdin.format_map(words)
        return self._command(argv, files, stdin)

    def _command(self, argv: Sequence[str], files: Mapping[str, str | bytes], stdin: str | None) -> Command:
        return Command(
            argv=argv,
            files=files,
            environment=self.environment,
            stdin=stdin,
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
        self.ports = Ports.of_names([*job.fields, CODE])
        self.promised = Ports.anything()
        record = job.record()
        self.fingerprint = fingerprint(repr(sorted(record.items())))
        self.attributes = {"process_label": job.label, SHELL_ATTRIBUTE: record}
        self.files = {}

    def implied(self) -> dict[str, Data]:
        """The program, as a code node that every call has as an input."""
        return {CODE: InstalledCode(filepath_executable=self._job.argv[0], label=self._job.argv[0])}

    def new_job(self, values: Mapping[str, object]) -> ShellJob:
        job = copy.copy(self._job)
        job.inputs = SimpleNamespace(**values)
        return job

    # Neither of these keeps anything in the job or looks at its inputs: all calls may share one.

    def prepared(self, values: Mapping[str, object]) -> Command:
        return self._job.prepare(SimpleNamespace(**values))

    def parsed(self, values: Mapping[str, object], files: OutputFiles) -> object:
        return self._job.parse(files)


def _split(command: object) -> list[str]:
    """The program and its arguments, as templates."""
    if isinstance(command, str):
        try:
            argv = shlex.split(command)
        except ValueError as error:
            raise InputInvalid(
                "ShellJob: command", command, f"a line with its quotes closed ({error})"
            ) from None
    elif isinstance(command, list | tuple):
        argv = list(command)
    else:
        argv = []
    if not argv or not all(isinstance(word, str) for word in argv):
        raise InputInvalid("ShellJob: command", command, "a program and its arguments, as texts")
    return argv


def _fields(texts: Iterable[str]) -> list[str]:
    """The names in braces, in the order in which they come."""
    found: dict[str, None] = {}
    for text in texts:
        for name in _names(text, text):
            found[checked_name(name, "ShellJob")] = None
    if CODE in found:
        raise InputInvalid("ShellJob", "{code}", "another name: 'code' is the program itself")
    return list(found)


def _names(template: str, text: str) -> Iterator[str]:
    """The names in a template, those in its format specifications too."""
    try:
        parsed = list(_FORMATTER.parse(template))
    except ValueError as error:
        raise InputInvalid("ShellJob", text, f"a template with doubled literal braces ({error})") from None
    for _, field, specification, _ in parsed:
        if field is None:
            continue
        name = field.split(".")[0].split("[")[0]
        if not name.isidentifier():
            raise InputInvalid(
                "ShellJob", text, "names in braces, as in {charge}; literal braces are doubled"
            )
        yield name
        yield from _names(specification or "", text)


def _writable(value: object, where: str) -> object:
    """A value that a template can write as text.

    Errors: InputInvalid for arrays, structures and what else has no text of its own.
    """
    if isinstance(value, bool | int | float | str | Enum):
        return value
    if isinstance(value, list | dict) and not any(isinstance(item, bytes) for item in _items(value)):
        return value
    raise InputInvalid(where, value, "a number, a text or a file: a template cannot write this")


def _items(value: list[object] | dict[object, object]) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value
