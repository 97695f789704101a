"""Is this a computer that can be used? Every field of one, wherever it comes from: options, a file, a prompt.

What a program will read as a word of its command line must not look like an option of it, and nothing that
becomes a line of a script may hold a second line.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import string
from collections.abc import Callable
from math import isfinite
from typing import Any, get_args

from grange.core.errors import InputInvalid, InputMissing
from grange.core.json_value import checked_text
from grange.farm.computer import (
    Computer,
    DeliveryKind,
    HyperQueueKind,
    SchedulerKind,
    SshSettings,
    TransportKind,
)

#: Shell lines longer than this are a program, and belong in a file there.
LONGEST_TEXT = 1 << 16

#: What the template of mpirun may name.
MPIRUN_FIELDS = ("tot_num_mpiprocs", "nodes", "procs_per_node")

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
#: Executors that are no computers (grange.core.executors).
_TAKEN_LABELS = ("local", "hyperqueue", "hyperqueue-open-server")
#: A name, an address, an alias of ~/.ssh/config; never what ssh or a shell would read otherwise.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,254}\$?")
_HOP = re.compile(
    r"(ssh://)?([A-Za-z0-9_][A-Za-z0-9_.@+-]*@)?([A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
)
#: A partition, an account, a quality of service, or several with commas.
_SLURM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:+,-]*")
_DIRECTIVE = re.compile(r"#SBATCH\s+")
#: grange finds its jobs in the queue by these.
_OUR_DIRECTIVES = re.compile(r"(--job-name|--array|--wait|--parsable|--test-only)\b|-[JaW]")

_Check = Callable[[str, Any], Any]


def checked(computer: Computer) -> Computer:
    """The computer with its values as they are kept: lists as tuples, whole numbers of seconds as float.

    Errors: InputInvalid, with the field, its value, and what was expected; InputMissing.
    """
    if not isinstance(computer, Computer):
        raise InputInvalid("computer", computer, "a Computer")
    values = {name: check(name, getattr(computer, name)) for name, check in _CHECKS.items()}
    return dataclasses.replace(computer, **values)


def checked_field(name: str, value: object) -> Any:
    """One value as checked() would keep it; of the SSH settings: "ssh.user".

    Errors: InputInvalid; KeyError for what is no field.
    """
    if name.startswith("ssh."):
        return _SSH_CHECKS[name.removeprefix("ssh.")](name, value)
    return _CHECKS[name](name, value)


# ---------------------------------------------------------------- kinds of fields


def _plain(port: str, value: Any, expected: str, *, empty: bool = True) -> str:
    """One line of text."""
    if not isinstance(value, str):
        raise InputInvalid(port, value, f"{expected}, as text")
    if not value and not empty:
        raise InputMissing(port, expected)
    checked_text(value, port)
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise InputInvalid(port, value, f"{expected}, in one line and without control characters")
    return value


def _lines(port: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputInvalid(port, value, "lines of shell, as text")
    checked_text(value, port)
    if len(value) > LONGEST_TEXT:
        raise InputInvalid(
            port, value, f"at most {LONGEST_TEXT:,} characters: put the rest into a file there"
        )
    # what an editor or a web page leaves at the end of lines would go to the shell
    return value.replace("\r\n", "\n")


def _matching(pattern: re.Pattern[str], expected: str, *, empty: bool) -> _Check:
    def check(port: str, value: Any) -> str:
        text = _plain(port, value, expected, empty=empty)
        if text and not pattern.fullmatch(text):
            raise InputInvalid(port, value, expected)
        return text

    return check


def _one_of(kinds: tuple[str, ...]) -> _Check:
    def check(port: str, value: Any) -> str:
        if not isinstance(value, str) or value not in kinds:
            raise InputInvalid(port, value, f"one of {', '.join(kinds)}")
        return value

    return check


def _whole(least: int, most: int, *, none: bool = False) -> _Check:
    expected = f"a whole number from {least} to {most:,}" + (
        ", or nothing where it is not known" if none else ""
    )

    def check(port: str, value: Any) -> int | None:
        if value is None and none:
            return None
        if type(value) is not int or not least <= value <= most:
            raise InputInvalid(port, value, expected)
        return value

    return check


def _seconds(least: float, expected: str) -> _Check:
    def check(port: str, value: Any) -> float:
        if type(value) not in (int, float) or not isfinite(value) or not least <= value <= 1e6:
            raise InputInvalid(port, value, expected)
        return float(value)

    return check


def _flag(port: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InputInvalid(port, value, "true or false")
    return value


def _label(port: str, value: Any) -> str:
    expected = "letters, digits and . _ -, a letter or digit first, at most 255"
    text = _plain(port, value, expected, empty=False)
    if not _LABEL.fullmatch(text):
        raise InputInvalid(port, value, expected)
    if text in _TAKEN_LABELS:
        raise InputInvalid(port, value, "another label: that one names an executor of this machine")
    return text


def _work_dir(port: str, value: Any) -> str:
    expected = "an absolute folder there, or one that begins with ~/; {username} stands for your name there"
    text = _plain(port, value, expected, empty=False)
    _check_template(port, text, ("username",))
    parts = text.rstrip("/").split("/")
    if parts[0] not in ("", "~") or len(parts) < 2 or ".." in parts:
        raise InputInvalid(port, value, f"{expected}; not / or ~ itself, and without ..")
    return "/".join([parts[0], *(part for part in parts[1:] if part not in ("", "."))])


def _program(port: str, value: Any) -> str:
    expected = "the absolute path of a program there, or its name on PATH"
    text = _plain(port, value, expected, empty=False)
    if text.startswith("-") or ("/" in text and not text.startswith("/")) or text != text.strip():
        raise InputInvalid(port, value, expected)
    return text


def _file_here(*words: str) -> _Check:
    others = "".join(f', or "{word}"' for word in words)
    expected = f'the path of a file on this machine, absolute or from ~/, or ""{others}'

    def check(port: str, value: Any) -> str:
        text = _plain(port, value, expected)
        if text and text not in words and not text.startswith(("/", "~/")):
            raise InputInvalid(port, value, expected)
        return text

    return check


def _proxy_jump(port: str, value: Any) -> str:
    expected = 'hosts as for `ssh -J`: [user@]host[:port], with commas between them; or "", or none'
    text = _plain(port, value, expected)
    if text and not all(_HOP.fullmatch(hop) for hop in text.split(",")):
        raise InputInvalid(port, value, expected)
    return text


def _shebang(port: str, value: Any) -> str:
    expected = "the first line of a script: #! and an absolute path"
    text = _plain(port, value, expected, empty=False).rstrip()
    if not re.match(r"#! */", text):
        raise InputInvalid(port, value, expected)
    return text


def _directives(port: str, value: Any) -> tuple[str, ...]:
    expected = "options of sbatch, one each, as in --constraint=rome"
    if not isinstance(value, list | tuple):
        raise InputInvalid(port, value, f"a list of {expected}")
    found = []
    for number, directive in enumerate(value):
        where = f"{port}[{number}]"
        text = _DIRECTIVE.sub("", _plain(where, directive, expected, empty=False).strip(), count=1)
        if not re.match(r"--?[A-Za-z]", text):
            raise InputInvalid(where, directive, expected)
        if _OUR_DIRECTIVES.match(text):
            raise InputInvalid(where, directive, "another option: grange sets that one itself")
        found.append(text)
    return tuple(found)


def _mpirun(port: str, value: Any) -> str:
    expected = f"a command with {', '.join(f'{{{name}}}' for name in MPIRUN_FIELDS)} where numbers belong"
    text = _plain(port, value, expected)
    _check_template(port, text, MPIRUN_FIELDS)
    try:
        return joined(shlex.split(text))
    except ValueError as error:
        raise InputInvalid(port, value, f"{expected}; its quotes do not match: {error}") from None


def _check_template(port: str, text: str, fields: tuple[str, ...]) -> None:
    known = ", ".join(f"{{{name}}}" for name in fields)
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        raise InputInvalid(port, text, f"braces only around what is filled in: {known}") from None
    for _, name, form, conversion in parts:
        if name is not None and (name not in fields or form or conversion):
            raise InputInvalid(port, text, f"no other fields than {known}")


def joined(words: list[str]) -> str:
    """Words as one command line; braces of a template are no reason for quotes."""
    return " ".join(word if re.fullmatch(r"[\w@%+=:,./{}-]+", word) else shlex.quote(word) for word in words)


def _ssh(port: str, value: Any) -> SshSettings:
    if not isinstance(value, SshSettings):
        raise InputInvalid(port, value, "SshSettings")
    values = {name: check(f"{port}.{name}", getattr(value, name)) for name, check in _SSH_CHECKS.items()}
    return SshSettings(**values)


_SSH_CHECKS: dict[str, _Check] = {
    "user": _matching(_USER, 'a name on that host: letters, digits and . _ @ + -; or ""', empty=True),
    "port": _whole(0, 65535),
    "key_file": _file_here(),
    "proxy_jump": _proxy_jump,
    "known_hosts": _file_here(),
    "config_file": _file_here("none"),
    "restricted": _flag,
    "connect_timeout_s": _seconds(0.1, "seconds, at least 0.1"),
    "keepalive_s": _seconds(0.0, "seconds, or 0 for none"),
}

_SLURM_WORDS = "as Slurm has it: letters, digits and . _ @ : + - and commas"

_CHECKS: dict[str, _Check] = {
    "label": _label,
    "hostname": _matching(
        _HOST, "the name or address of a host: letters, digits and . _ -, no user and no port", empty=False
    ),
    "description": lambda port, value: _plain(port, value, "a sentence"),
    "transport": _one_of(get_args(TransportKind)),
    "scheduler": _one_of(get_args(SchedulerKind)),
    "hyperqueue": _one_of(get_args(HyperQueueKind)),
    "work_dir": _work_dir,
    "python": _program,
    "ssh": _ssh,
    "cores_per_node": _whole(1, 1_000_000, none=True),
    "memory_mb_per_node": _whole(1, 1_000_000_000, none=True),
    "gpus_per_node": _whole(0, 10_000),
    "partition": _matching(_SLURM_NAME, f"a partition {_SLURM_WORDS}", empty=True),
    "account": _matching(_SLURM_NAME, f"an account {_SLURM_WORDS}", empty=True),
    "qos": _matching(_SLURM_NAME, f"a quality of service {_SLURM_WORDS}", empty=True),
    "directives": _directives,
    "shebang": _shebang,
    "prepend_text": _lines,
    "append_text": _lines,
    "mpirun": _mpirun,
    "hq_program": _program,
    "hq_binary": _file_here(),
    "max_queued_jobs": _whole(1, 1_000_000),
    "max_allocations": _whole(1, 1_000_000),
    "connection_interval_s": _seconds(0.0, "seconds, or 0 for none"),
    "slots": _whole(0, 1_000_000),
    "delivery": _one_of(get_args(DeliveryKind)),
}
assert _CHECKS.keys() == {field.name for field in dataclasses.fields(Computer)}
assert _SSH_CHECKS.keys() == {field.name for field in dataclasses.fields(SshSettings)}
