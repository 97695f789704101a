"""A command: what a calculation job wants to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from grange.core.errors import InputInvalid


@dataclass(frozen=True, slots=True)
class Command:
    """One program, run in a directory of its own.

    argv: the program and its arguments. files: path → content (text or bytes) that is written before
    it starts. stdin: one of these paths, or None for an empty standard input. retrieve: glob patterns
    of the files to keep besides stdout and stderr ("*.log", "out/**").
    """

    argv: Sequence[str]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    stdout: str = "stdout.txt"
    stderr: str = "stderr.txt"
    retrieve: Sequence[str] = ()

    def contents(self) -> dict[str, bytes]:
        """The files as bytes; text becomes UTF-8."""
        return {
            path: content.encode() if isinstance(content, str) else bytes(content)
            for path, content in self.files.items()
        }


def checked(command: object, where: str) -> Command:
    """The command, when prepare() really gave one that can be run.

    Errors: InputInvalid, naming what is wrong with it.
    """
    if not isinstance(command, Command):
        raise InputInvalid(f"{where}.prepare()", command, "a gr.Command")
    if isinstance(command.argv, str) or not command.argv or not all(type(arg) is str for arg in command.argv):
        raise InputInvalid(f"{where}.prepare(): argv", command.argv, "a list of at least one text")
    if isinstance(command.retrieve, str):
        raise InputInvalid(f"{where}.prepare(): retrieve", command.retrieve, "a list of glob patterns")
    for path, content in command.files.items():
        parts = path.split("/") if type(path) is str else [".."]
        if path.startswith("/") or ".." in parts or "" in parts:
            raise InputInvalid(f"{where}.prepare(): files", path, "paths inside the job's directory")
        if not isinstance(content, str | bytes | bytearray):
            raise InputInvalid(f"{where}.prepare(): files[{path!r}]", content, "text or bytes")
    if command.stdin is not None and command.stdin not in command.files:
        raise InputInvalid(f"{where}.prepare(): stdin", command.stdin, "one of the files")
    return command
