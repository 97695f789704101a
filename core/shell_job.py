"""Shell jobs: a program run from a template, without writing a class."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import SimpleNamespace
from typing import Any

from grange.core.caching import declared_caching
from grange.core.calcjob import CalcJob
from grange.core.command import Command, checked
from grange.core.data.code import Code, InstalledCode
from grange.core.data.code_value import CodeValue
from grange.core.data.singlefile import FileValue, SingleFile
from grange.core.errors import InputInvalid
from grange.core.fingerprint import fingerprint
from grange.core.job_recipe import RETRIEVED, STASHED, JobRecipe
from grange.core.monitor import checked_monitors, described, from_record, recorded
from grange.core.node import Data
from grange.core.output_files import OutputFiles
from grange.core.port import Port, Ports, checked_name
from grange.core.stash import attribute_of, checked_stash, from_attribute
from grange.farm.monitor import Monitor
from grange.farm.stash import Stash

SHELL_ATTRIBUTE = "shell"
#: The input that is the program.
CODE = "code"
#: The first word of a command whose program is that input.
_CODE_FIELD = f"{{{CODE}}}"
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
    code: the program as a code, which brings along its modules, files, MPI, container. The command then
    begins with {code}, or with the label of the code, or with the name of its program. Without it {code} is
    an input like others, and a first word like pw@lumi is the code of that name in the profile.
    with_mpi: run it under MPI, as the computer does that; None for what the code says.
    monitors: what may stop it while it runs. stash: files that stay on the computer.
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
        code: Code | None = None,
        with_mpi: bool | None = None,
        monitors: Sequence[Monitor] = (),
        stash: Stash | None = None,
    ) -> None:
        argv = _split(command)
        self.code = code
        if code is not None:
            _check_code(argv[0], code)
            label = label or code.label or code.executable.rsplit("/", 1)[-1]
            argv[0] = _CODE_FIELD
        if isinstance(retrieve, str):
            raise InputInvalid("ShellJob: retrieve", retrieve, "a list of glob patterns")
        self.argv = argv
        self.files = dict(files or {})
        self.stdin = stdin
        self.retrieve = tuple(retrieve)
        self.outputs = dict(outputs or {})
        self.environment = dict(environment or {})
        self.with_mpi = with_mpi
        self.stash = checked_stash(stash, "ShellJob: stash")
        #: ready to travel, and as they were given
        self.own_monitors = checked_monitors(monitors, "ShellJob: monitors")
        self.given_monitors = tuple(monitors)
        self.label = label or (CODE if argv[0] == _CODE_FIELD else argv[0].rsplit("/", 1)[-1])
        texts = [content for content in self.files.values() if isinstance(content, str)]
        program = [] if argv[0] == _CODE_FIELD else argv[:1]
        self.fields = _fields([*program, *argv[1:], *texts, *([stdin] if isinstance(stdin, str) else [])])
        for name in self.outputs:
            checked_name(name, "ShellJob: outputs")
            if name in (RETRIEVED, STASHED, "stdout"):
                raise InputInvalid("ShellJob: outputs", name, "another name: every shell job has this output")
        # What is wrong whatever the inputs are is said here, where it was written.
        known_stdin = None if isinstance(stdin, str) and _fields([stdin]) else stdin
        checked(self._command(argv, self.files, known_stdin), "ShellJob")
        self.inputs = SimpleNamespace()

    def prepare(self, inputs: Any) -> Command:
        files: dict[str, str | bytes] = {}
        words: dict[str, object] = {}
        given = vars(inputs)
        for name, value in given.items():
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
        code = given.get(CODE)
        program = self.argv[0]
        if isinstance(code, CodeValue) and (code != program or not code.is_plain):
            # the code, where it is another one or more than what the command names
            argv = [code, *(word.format_map(words) for word in self.argv[1:])]
        elif program == _CODE_FIELD:
            raise InputInvalid(f"{self.label}: {CODE}", code, "a code, as profile.load_code() gives it")
        else:
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
            with_mpi=self.with_mpi,
            monitors=self.own_monitors,
            stash=self.stash,
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
        """What the process node keeps, enough for from_record(); the code is an input."""
        record: dict[str, Any] = {
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
        if self.with_mpi is not None:
            record["with_mpi"] = self.with_mpi
        if self.own_monitors:
            record["monitors"] = [recorded(monitor) for monitor in self.own_monitors]
        if self.stash is not None:
            record["stash"] = attribute_of(self.stash)
        return record

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
            with_mpi=record.get("with_mpi"),
            monitors=[from_record(monitor) for monitor in record.get("monitors", ())],
            stash=from_attribute(record["stash"]) if "stash" in record else None,
        )


class ShellRecipe(JobRecipe):
    """How the calls of a shell job are run."""

    def __init__(self, job: ShellJob) -> None:
        self._job = job
        self.job_class = ShellJob
        self._monitors = ()  # its commands have its own
        self.label = job.label
        self.caching = declared_caching(job)
        self.process_type = "grange.core.shell_job.ShellJob"
        self.ports = Ports([*Ports.of_names(job.fields).values(), Port(CODE, Code)])
        self.promised = Ports.anything()
        record = job.record()
        self.fingerprint = _fingerprint(record, job)
        self.attributes = {"process_label": job.label, SHELL_ATTRIBUTE: record}
        self.files = {}

    def implied(self) -> dict[str, Data]:
        """The program, as a code that every call has as an input; nothing where the caller has to name it."""
        if self._job.code is not None:
            return {CODE: self._job.code}
        if self._job.argv[0] == _CODE_FIELD:
            return {}
        code = InstalledCode(filepath_executable=self._job.argv[0])
        code.label = ""  # nobody has named it
        return {CODE: code}

    @property
    def code_name(self) -> str:
        """The name of a code of the profile that is the program, as pw@lumi; "" where it is none."""
        program = self._job.argv[0]
        return program if "@" in program and "/" not in program and self._job.code is None else ""

    def new_job(self, values: Mapping[str, object]) -> ShellJob:
        job = copy.copy(self._job)
        job.inputs = SimpleNamespace(**values)
        return job

    # Neither of these keeps anything in the job or looks at its inputs: all calls may share one.

    def prepared(self, values: Mapping[str, object]) -> Command:
        return self._job.prepare(SimpleNamespace(**values))

    def parsed(self, values: Mapping[str, object], files: OutputFiles) -> object:
        return self._job.parse(files)


def _fingerprint(record: Mapping[str, Any], job: ShellJob) -> bytes:
    """Of the template; functions of monitors count as functions do, not as they happen to be pickled."""
    made = fingerprint(repr(sorted(item for item in record.items() if item[0] != "monitors")))
    if not job.own_monitors:
        return made
    looks = [fingerprint(monitor.look) for monitor in job.given_monitors]
    rest = [repr(described(monitor)).encode() for monitor in job.own_monitors]
    return hashlib.sha256(b"".join((made, *looks, *rest))).digest()


def _check_code(program: str, code: object) -> None:
    if not isinstance(code, Code):
        raise InputInvalid("ShellJob: code", code, "a code, as profile.load_code() gives it")
    names = (_CODE_FIELD, code.label, code.executable, code.executable.rsplit("/", 1)[-1])
    if program not in names and program.partition("@")[0] != code.label:
        raise InputInvalid(
            "ShellJob: command",
            program,
            f"a command that begins with the code: {' or '.join(dict.fromkeys(names))}",
        )


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
