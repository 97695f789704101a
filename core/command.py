"""A command: what a calculation job wants to be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeGuard

from grange.core.data.code import Code
from grange.core.data.code_value import PLAIN, CodeValue, Launch
from grange.core.errors import InputInvalid
from grange.core.files import check_names
from grange.core.json_value import checked_text
from grange.core.monitor import checked_monitors
from grange.core.stash import checked_stash
from grange.farm.monitor import Monitor
from grange.farm.stash import Stash

#: Where a job's process node keeps what is not of the job's making.
RESERVED = ".grange/"


@dataclass(frozen=True, slots=True)
class Command:
    """One program, run in a directory of its own.

    argv: the program and its arguments; the program may be a code, which brings along its modules, files,
    MPI, container. files: path → content (text or bytes) that is written before it starts. stdin: one of
    these paths, or None for an empty standard input. retrieve: glob patterns of the files to keep besides
    stdout and stderr ("*.log", "out/**"). prepend_text, append_text: lines for bash before and after the
    program; they cost a shell. with_mpi: run it under MPI, as the computer does that; None for what the
    code says. monitors: what may stop it while it runs (gr.Monitor). stash: files that stay on the computer
    (gr.Stash).
    """

    argv: Sequence[str | Code]
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    stdout: str = "stdout.txt"
    stderr: str = "stderr.txt"
    retrieve: Sequence[str] = ()
    prepend_text: str = ""
    append_text: str = ""
    with_mpi: bool | None = None
    monitors: Sequence[Monitor] = ()
    stash: Stash | None = None

    @property
    def launch(self) -> Launch:
        """How the program is started, once the command is checked."""
        program = self.argv[0]
        return program.launch if isinstance(program, CodeValue) else PLAIN

    @property
    def mpi(self) -> bool:
        """Whether it is run under MPI: as the command says, else as its code does."""
        return bool(self.launch.with_mpi if self.with_mpi is None else self.with_mpi)

    @property
    def is_bare(self) -> bool:
        """Whether there is nothing to do but to start a program, once the command is checked."""
        return (
            type(self.argv[0]) is str
            and self.with_mpi is None
            and not self.prepend_text
            and not self.append_text
        )

    def words(self) -> list[str]:
        """The arguments as nothing but texts, once the command is checked."""
        return [str(word) for word in self.argv]

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
    command = _with_values(command)
    argv = command.argv
    if isinstance(argv, str) or not argv or not all(isinstance(arg, str) for arg in argv):
        raise InputInvalid(f"{where}: argv", argv, "a list of at least one text")
    if not argv[0]:
        raise InputInvalid(f"{where}: argv", argv, "a program first")
    for place, arg in enumerate(argv):
        checked_text(str(arg), f"{where}: argv[{place}]")
        if place and isinstance(arg, CodeValue) and (arg.launch.files or arg.launch.container):
            raise InputInvalid(
                f"{where}: argv[{place}]",
                arg,
                "such a code as the program, first: it brings files or a container",
            )
    _check_files(command.files, f"{where}: files")
    _check_environment(command.environment, f"{where}: environment")
    if isinstance(command.retrieve, str):
        raise InputInvalid(f"{where}: retrieve", command.retrieve, "a list of glob patterns")
    for pattern in command.retrieve:
        _check_path(pattern, f"{where}: retrieve")
    if command.stdin is not None and command.stdin not in command.files:
        raise InputInvalid(f"{where}: stdin", command.stdin, "one of the files")
    _check_streams(command, where)
    _check_code_files(command, where)
    for name, lines in (("prepend_text", command.prepend_text), ("append_text", command.append_text)):
        if not isinstance(lines, str):
            raise InputInvalid(f"{where}: {name}", lines, "text")
        checked_text(lines, f"{where}: {name}")
    if command.with_mpi not in (None, True, False):
        raise InputInvalid(f"{where}: with_mpi", command.with_mpi, "True, False or None")
    if command.monitors or command.stash is not None:
        monitors = checked_monitors(command.monitors, f"{where}: monitors")
        return replace(command, monitors=monitors, stash=checked_stash(command.stash, f"{where}: stash"))
    return command


def _with_values(command: Command) -> Command:
    """The command with codes that were given as nodes as what they are in a command."""
    if isinstance(command.argv, list | tuple) and any(isinstance(word, Code) for word in command.argv):
        argv = [word.value if isinstance(word, Code) else word for word in command.argv]
        return replace(command, argv=argv)
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
        and command.with_mpi is None
        and command.prepend_text == ""
        and command.append_text == ""
        and not command.monitors
        and command.stash is None
        and type(command.argv) is list
        and all(type(arg) is str and arg.isascii() and "\0" not in arg for arg in command.argv)
        and command.argv[:1] not in ([], [""])
    )


def _check_path(path: object, where: str) -> None:
    if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")):
        raise InputInvalid(where, path, 'a path inside the job\'s directory, without ".", ".." and "//"')
    checked_text(path, where)


def _check_code_files(command: Command, where: str) -> None:
    """The files of a portable code lie in the same directory as the others."""
    for path in command.launch.files:
        clash = path in command.files or path in (command.stdout, command.stderr)
        if clash or any(
            path.startswith(f"{other}/") or other.startswith(f"{path}/") for other in command.files
        ):
            raise InputInvalid(where, path, f"paths that the files of the code {command.argv[0]} leave free")


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
    check_names(tuple(files), where)


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
