"""Tasks that need a shell: modules and other lines around the program, MPI, containers.

Such a task is turned into one that bash runs, with a script in its arguments; there is no file of ours in its
directory. Where nothing is left to do afterwards, bash becomes the program: what kills the program, or what
it answers to a signal, is then what the task did, as if there were no shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from math import ceil

from grange.farm.mpi_start import around_mpi
from grange.farm.runner import THREADS
from grange.farm.task import CommandTask, Resources

MPIRUN = "mpirun -np {tot_num_mpiprocs}"
BASH = "/bin/bash"

#: A name in braces; ${NAME} is the shell's own.
_FIELD = re.compile(r"(?<!\$)\{(\w*)\}")
_ASSIGNMENT = re.compile(r"\s*[A-Za-z_]\w*=")
_MODULE = re.compile(r"(?:^|[\s;&|(])(?:module|ml)\s", re.MULTILINE)
#: Inside double quotes: what is escaped already stays; a lone backslash or quote is meant as itself.
_IN_DOUBLE_QUOTES = re.compile(r'\\[$`\\]|[\\"]')

# A shell that is no login shell may not know `module`: its definition is looked for where it usually lies.
FIND_MODULE = """\
if ! type module >/dev/null 2>&1; then
  for grange_file in "${MODULESHOME:-/usr/share/modules}/init/bash" \\
    "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" \\
    /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh; do
    if [ -r "$grange_file" ]; then . "$grange_file"; break; fi
  done
fi
"""
# Lines that end the shell, or swallow the rest as a here-document, have not run the program: no success.
_NOT_STARTED = (
    'trap \'grange_status=$?; echo "grange: the program was not started" >&2;'
    " exit $((grange_status ? grange_status : 125))' EXIT\n"
)


def needs_script(task: CommandTask) -> bool:
    """Whether a shell has to run the task."""
    return bool(task.prologue or task.epilogue or task.mpi or task.container or task.expand)


def scripted(task: CommandTask, resources: Resources, mpirun: str = MPIRUN) -> CommandTask:
    """The task as one that bash runs; one that needs no shell as it is.

    The exit status is the program's; the epilogue runs whatever that is. A program that a signal ended is
    128 + its number where there is an epilogue, and the signal where there is none. Standard
    input is the program's alone. A program that is one of the task's files is made executable.
    mpirun: how MPI is started (filled_mpirun).

    Errors: ValueError for a template that cannot be filled in.
    """
    if not needs_script(task):
        return task
    before, prefix = "", ""
    environment = task.environment
    if task.mpi:
        before, prefix = around_mpi(filled_mpirun(mpirun, resources), resources)
        prefix += " "
        # Each process has its share of the cpus, not all of them.
        each = str(max(1, resources.cpus // resources.tot_num_mpiprocs))
        environment = {**dict.fromkeys(THREADS, each), **task.environment}
    if task.container:
        prefix += _one_line(task.container, "the command of the container engine") + " "
    script, argv = _script(task, prefix, before)
    return replace(
        task,
        argv=(BASH, "-c", script, "grange", *argv),
        environment=environment,
        prologue="",
        epilogue="",
        mpi=False,
        container="",
        line=False,
        expand=False,
    )


def filled_mpirun(template: str, resources: Resources) -> str:
    """What starts MPI, as text for bash.

    Fields: {tot_num_mpiprocs}, {nodes}, {procs_per_node}, {cpus}, and AiiDA's {num_machines},
    {num_mpiprocs_per_machine}, {num_cores_per_mpiproc}. Resources without nodes are taken for one node.

    Errors: ValueError, naming an unknown field.
    """
    procs, nodes = resources.tot_num_mpiprocs, resources.nodes or 1
    return filled(
        template,
        {
            "tot_num_mpiprocs": procs,
            "nodes": nodes,
            "procs_per_node": ceil(procs / nodes),
            "cpus": resources.cpus,
            "num_machines": nodes,
            "num_mpiprocs_per_machine": ceil(procs / nodes),
            "num_cores_per_mpiproc": max(1, resources.cpus // procs),
        },
        "mpirun",
    )


def filled(template: str, fields: Mapping[str, object], where: str) -> str:
    """A template of one line with its fields filled in; ${NAME} is left to the shell.

    Errors: ValueError, naming an unknown field.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in fields:
            known = ", ".join(f"{{{name}}}" for name in fields)
            raise ValueError(f"{where}: {found[0]} in {template!r} is not known; known are {known}")
        return str(fields[found[1]])

    return _FIELD.sub(value, _one_line(template, where))


def uses_module(lines: str) -> bool:
    """Whether lines for a shell load modules, so that it has to know how (FIND_MODULE)."""
    return _MODULE.search(lines) is not None


def _script(task: CommandTask, prefix: str, before: str) -> tuple[str, tuple[str, ...]]:
    """The script, and what it finds in its arguments. before: lines that the program alone is to notice."""
    argv = task.argv
    if task.expand:
        words = " ".join(map(_double_quoted, argv))
        run, argv = (
            (f"{prefix}{words}", ()) if not task.line else (f'{prefix}"${{grange_argv[@]}}"', (words,))
        )
    else:
        run, argv = f'{prefix}"${{grange_argv[@]}}"', (shlex.join(argv),) if task.line else argv
    if _ASSIGNMENT.match(prefix):
        run = f"env {run}"
    # Files that prologues read may look at the shell's arguments: they are put aside.
    script = 'grange_argv=("$@")\nset --\n'
    script += _make_executable(task)
    stays = bool(task.epilogue) or "trap" in task.prologue
    if task.prologue:
        script += _NOT_STARTED
        if task.stdin is not None:
            script += "exec {grange_stdin}<&0 </dev/null\n"
        if uses_module(task.prologue):
            script += FIND_MODULE
        # The empty line ends what a backslash at the end would continue.
        script += f"{task.prologue}\n\n"
        if task.stdin is not None:
            script += "exec <&$grange_stdin {grange_stdin}<&-\n"
    if not stays:
        return f"{script}{before}exec -- {run}\n", argv
    # A signal to the session reaches the program itself; the shell waits for what comes of it.
    script += f"""\
[ -n "$(trap -p TERM)" ] || trap : TERM
grange_status=0
({before}exec -- {run}) || grange_status=$?
case "$(trap -p EXIT)" in ""|*grange_status*) trap 'exit $grange_status' EXIT ;; esac
{task.epilogue}

exit $grange_status
"""
    return script, argv


def _make_executable(task: CommandTask) -> str:
    """The runner does this where the program is what it starts itself."""
    program = task.argv[0] if task.argv else ""
    for path in task.files:
        if program in (path, f"./{path}") and "/" in program:
            return f"chmod u+x -- {shlex.quote(program)}\n"
    return ""


def _double_quoted(text: str) -> str:
    """Text in double quotes: $NAME and $(…) mean what they mean to a shell, all else means itself."""
    return (
        '"' + _IN_DOUBLE_QUOTES.sub(lambda found: found[0] if found[0][1:] else "\\" + found[0], text) + '"'
    )


def _one_line(text: str, where: str) -> str:
    if "\n" in text or "\0" in text:
        raise ValueError(f"{where}: {text!r} is to be one line")
    return text.strip()
