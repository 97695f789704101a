"""Is a code ready? Its files are complete, its program is there and may be run, with all that starts it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from grange.core.data.code import Code, ContainerizedCode, PortableCode
from grange.core.errors import GrangeError
from grange.farm.computer import Computer
from grange.farm.errors import CommandRefused
from grange.farm.task_script import BASH, FIND_MODULE, uses_module
from grange.farm.transport import Transport
from grange.repository.errors import RepositoryError

State = Literal["ok", "failed", "skipped"]

_MARK = "grange-test: "
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# For each program: where it is; "" and no, not executable, or a folder. Whatever the lines before print.
_LOOK = f"""
for grange_word in "${{grange_argv[@]}}"; do
  case "$grange_word" in
    */*) grange_path=$grange_word ;;
    *) grange_path=$(type -P -- "$grange_word") ;;
  esac
  if [ -z "$grange_path" ] || [ ! -e "$grange_path" ]; then grange_found=missing
  elif [ -d "$grange_path" ]; then grange_found="folder $grange_path"
  elif [ ! -x "$grange_path" ]; then grange_found="closed $grange_path"
  else grange_found="ok $grange_path"; fi
  printf '\\n{_MARK}%s\\n' "$grange_found"
done
exit 0
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one look. detail: what was found; advice: what to do, where it failed."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(code: Code, transport: Transport, computer: Computer | None) -> Iterator[Finding]:
    """Look at a code where it would be run, one thing after the other.

    computer: None for this machine.
    Errors: those of the transport, where the computer is not reached.
    """
    where = computer.label if computer else "this machine"
    if isinstance(code, PortableCode):
        yield _files(code)
        programs = _interpreter(code)
    elif isinstance(code, ContainerizedCode):
        programs = [("container engine", _engine(code.engine_command))]
    else:
        programs = [("program", code.executable)]
    if code.with_mpi and computer is not None:
        programs.append(("mpirun", _engine(computer.mpirun)))
    if programs:
        yield from _programs(code, transport, computer, where, programs)
    if isinstance(code, ContainerizedCode):
        yield from _image(code, transport, where)


def _files(code: PortableCode) -> Finding:
    """The files of a portable code, read back from the repository."""
    try:
        contents = code.read_files()
    except (RepositoryError, GrangeError, OSError) as error:
        return Finding("files", "failed", str(error), "add the code again, under another label")
    if code.executable not in contents:
        return Finding("files", "failed", f"{code.executable} is none of them", "add the code again")
    start = contents[code.executable][:4]
    if not start.startswith((b"#!", b"\x7fELF", b"\xcf\xfa\xed\xfe")):
        return Finding(
            "files",
            "failed",
            f"{code.executable} is no program: it begins with {start!r}",
            "a script needs a first line that begins with #!",
        )
    size = sum(map(len, contents.values()))
    return Finding("files", "ok", f"{len(contents)}, {size:,} bytes in all")


def _interpreter(code: PortableCode) -> list[tuple[str, str]]:
    """What the first line of a script names."""
    try:
        first = code.read_file(code.executable)[:256].partition(b"\n")[0]
    except (RepositoryError, GrangeError, OSError):
        return []
    words = first[2:].decode("utf-8", "replace").split() if first.startswith(b"#!") else []
    return [("interpreter", word) for word in words[:1]]


def _engine(command: str) -> str:
    """The program that a command line starts, behind env and what it sets."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    rest = [word for word in words if word != "env" and not _ASSIGNMENT.match(word)]
    return (rest or words or [""])[0]


def _programs(
    code: Code,
    transport: Transport,
    computer: Computer | None,
    where: str,
    programs: Sequence[tuple[str, str]],
) -> Iterator[Finding]:
    before = "\n".join(filter(None, [computer.prepend_text if computer else "", code.prepend_text]))
    script = 'grange_argv=("$@")\nset --\n'
    script += f"{FIND_MODULE if uses_module(before) else ''}{before}\n{_LOOK}"
    try:
        done = transport.run([BASH, "-c", script, "grange", *[program for _, program in programs]])
    except CommandRefused:
        yield from _listed(transport, where, programs)
        return
    said = done.stdout.decode("utf-8", "replace").splitlines()
    found = [line.removeprefix(_MARK) for line in said if line.startswith(_MARK)]
    if len(found) != len(programs):
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        yield Finding(
            programs[0][0],
            "failed",
            f"the lines before the program end the shell on {where}: {''.join(last) or done.status}",
            "see prepend_text of the code, and of the computer",
        )
        return
    for (name, program), line in zip(programs, found, strict=True):
        state, _, path = line.partition(" ")
        if state == "ok":
            yield Finding(name, "ok", f"{path} on {where}")
        elif state == "missing":
            advice = "a path, or a name that is on PATH behind prepend_text" if "/" not in program else ""
            yield Finding(name, "failed", f"{program} is not on {where}", advice or "see the path")
        elif state == "folder":
            yield Finding(name, "failed", f"{path} on {where} is a folder", "see the path")
        else:
            yield Finding(name, "failed", f"{path} on {where} may not be run", f"chmod +x {path} there")


def _listed(transport: Transport, where: str, programs: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """What can be seen where no command may be run."""
    for name, program in programs:
        if not program.startswith("/"):
            yield Finding(name, "skipped", f"{where} lets no command through that could look for {program}")
            continue
        (entries,) = transport.list([program.rpartition("/")[0] or "/"])
        entry = next((one for one in entries or () if one.name == program.rpartition("/")[2]), None)
        if entry is None or entry.is_folder:
            yield Finding(name, "failed", f"{program} is not on {where}", "see the path")
        else:
            yield Finding(name, "ok", f"{program} is on {where}; whether it may be run cannot be seen")


def _image(code: ContainerizedCode, transport: Transport, where: str) -> Iterator[Finding]:
    """An image that is a file or folder; others are the engine's to find."""
    image = code.image_name
    if not image.startswith("/"):
        yield Finding("image", "skipped", f"{image}: the engine knows where it is")
        return
    (entries,) = transport.list([image.rstrip("/").rpartition("/")[0] or "/"])
    if any(entry.name == image.rstrip("/").rpartition("/")[2] for entry in entries or ()):
        yield Finding("image", "ok", f"{image} on {where}")
    else:
        yield Finding("image", "failed", f"{image} is not on {where}", "see the path of the image")
