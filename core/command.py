"""A command: what a calculation job wants to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

from grange.core.errors import InputInvalid
from grange.core.json_value import checked_text

#: Where a job's process node keeps what is not of the job's making.
RESERVED = ".grange/"


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
    """The command, when prepare() really gave one that can be run and recorded.

    Errors: InputInvalid, naming what is wrong with it.
    """
    if _is_simple(command):
        return command
    where = f"{where}.prepare()"
    if not isinstance(command, Command):
        raise InputInvalid(where, command, "a gr.Command")
    argv = command.argv
    if isinstance(argv, str) or not argv or not all(isinstance(arg, str) for arg in argv):
        raise InputInvalid(f"{where}: argv", argv, "a list of at least one text")
    if not argv[0]:
        raise InputInvalid(f"{where}: argv", argv, "a program first")
    for place, arg in enumerate(argv):
        checked_text(arg, f"{where}: argv[{place}]")
    _check_files(command.files, f"{where}: files")
    _check_environment(command.environment, f"{where}: environment")
    if isinstance(command.retrieve, str):
        raise InputInvalid(f"{where}: retrieve", command.retrieve, "a list of glob patterns")
    for pattern in command.retrieve:
        _check_path(pattern, f"{where}: retrieve")
    if command.stdin is not None and command.stdin not in command.files:
        raise InputInvalid(f"{where}: stdin", command.stdin, "one of the files")
    _check_streams(command, where)
    return command


def _is_simple(command: object) -> TypeGuard[Command]:
    """The quick way for what most commands are: plain arguments, no files, nothing but the usual streams."""
    return (
        type(command) is Command
        and not command.files
        and not command.environment
        and not command.retrieve
        and command.stdin is None
        and command.stdout == "stdout.txt"
        and command.stderr == "stderr.txt"
        and type(command.argv) is list
        and all(type(arg) is str and arg.isascii() and "\0" not in arg for arg in command.argv)
        and command.argv[:1] not in ([], [""])
    )


def _check_path(path: object, where: str) -> None:
    if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")):
        raise InputInvalid(where, path, 'a path inside the job\'s directory, without ".", ".." and "//"')
    checked_text(path, where)


def _check_files(files: Mapping[str, str | bytes], where: str) -> None:
    for path, content in files.items():
        _check_path(path, where)
        if path.startswith(RESERVED):
            raise InputInvalid(where, path, f"paths outside of {RESERVED}, which is grange's")
        if isinstance(content, str):
            checked_unicode(content, f"{where}[{path!r}]")
        elif not isinstance(content, bytes | bytearray):
            raise InputInvalid(f"{where}[{path!r}]", content, "text or bytes")
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in files:
                raise InputInvalid(where, path, f"another path: {above!r} is a file")


def checked_unicode(content: str, where: str) -> str:
    """Text that can be written to a file as UTF-8.

    Errors: InputInvalid for a lone surrogate.
    """
    if not content.isascii():
        try:
            content.encode()
        except UnicodeEncodeError:
            raise InputInvalid(
                where, content, "text that can be written as UTF-8 (no lone surrogates)"
            ) from None
    return content


def _check_environment(environment: Mapping[str, str], where: str) -> None:
    for name, value in environment.items():
        if not isinstance(name, str) or not name or "=" in name:
            raise InputInvalid(where, name, 'a name without "="')
        if not isinstance(value, str):
            raise InputInvalid(f"{where}[{name!r}]", value, "text")
        checked_text(name, where)
        checked_text(value, f"{where}[{name!r}]")


def _check_streams(command: Command, where: str) -> None:
    for stream, path in (("stdout", command.stdout), ("stderr", command.stderr)):
        _check_path(path, f"{where}: {stream}")
        if path in command.files:
            raise InputInvalid(f"{where}: {stream}", path, "a path that none of the files has")
    if command.stdout == command.stderr:
        raise InputInvalid(f"{where}: stderr", command.stderr, "another path than that of stdout")
