"""`grange code`: the programs that calculations run."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.opened import home_of, opened
from grange.cli.refused import Refused
from grange.cli.table import Cell, Column, print_fields, print_table
from grange.cli.waiting import say_waiting

if TYPE_CHECKING:
    from grange.core.code_test import Finding
    from grange.core.codes import CodeSummary
    from grange.core.data.code import Code
    from grange.core.profile import Profile
    from grange.farm.computer import Computer
    from grange.farm.transport import Transport

_SIGNS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", None)}
#: As wide as the longest name of what is looked at.
_FINDING_WIDTH = 16

#: Option, field, help.
_TEXTS: tuple[tuple[str, str, str], ...] = (
    ("--description", "description", "What it is, in a sentence."),
    ("--computer", "computer", "Where it is installed; else wherever its calculations are run."),
    (
        "--filepath-executable", "filepath_executable",
        "The program: a path, or a name on PATH; of a portable code a path inside --files.",
    ),
    ("--files", "filepath_files", "A portable code: a folder here that goes with each calculation."),
    (
        "--engine-command", "engine_command",
        "A containerised code: what runs a command in {image_name}; $PWD is the directory of the task.",
    ),
    ("--image", "image_name", "The image, as the engine takes it."),
    ("--prepend-text", "prepend_text", "Shell lines before the program, as module load."),
    ("--append-text", "append_text", "Shell lines after it."),
    ("--plugin", "default_calc_job_plugin", "The job class that it is mostly used with, for AiiDA."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CodeReport:
    """The document of `grange code show --json`."""

    name: str
    summary: CodeSummary
    attributes: dict[str, Any]
    files: list[str]


@click.group("code")
def command() -> None:
    """Say which programs there are, where, and what has to be done around them.

    A code is called by its label, and by label@computer: profile.load_code("pw@lumi") in Python.

    \b
    Examples:
      grange code add pw --computer lumi --filepath-executable /opt/qe/bin/pw.x --with-mpi
      grange code list
      grange code test pw@lumi
    """


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each field of a code; the command gets those that were given as `given`."""

    def with_given(ctx: click.Context, label: str | None, config: str | None, **options: Any) -> Any:
        given = {name: value for name, value in options.items() if value is not None}
        if label is not None:
            given["label"] = label
        return function(ctx, config, given)

    wrapped: Callable[..., Any] = click.pass_context(functools.update_wrapper(with_given, function))
    wrapped = click.option(
        "--wrap-cmdline-params", is_flag=True, default=None,
        help="The engine takes program and arguments as one argument, as sh -c does.",
    )(wrapped)  # fmt: skip
    wrapped = click.option(
        "--use-double-quotes", is_flag=True, default=None, help="Fill in $NAME in arguments."
    )(wrapped)
    wrapped = click.option(
        "--with-mpi/--without-mpi",
        "with_mpi",
        default=None,
        help="Run it under MPI, as its computer does that.",
    )(wrapped)
    for option, name, text in reversed(_TEXTS):
        names = (option, "-x") if name == "filepath_executable" else (option,)
        wrapped = click.option(*names, name, default=None, help=text)(wrapped)
    wrapped = click.option(
        "--config",
        metavar="FILE_OR_URL",
        help="TOML or YAML, with the same keys, or as `verdi code create` reads it.",
    )(wrapped)
    return click.argument("label", required=False)(wrapped)


@command.command()
@_options
def add(ctx: click.Context, config: str | None, given: dict[str, Any]) -> None:
    """Add a code: installed, portable (--files) or containerised (--engine-command, --image).

    Options come before what the file says. Where there is no profile yet, one is made. Nothing is connected
    to: `grange code test` does that. What is added does not change; a code that is there already stays one.

    \b
    Examples:
      grange code add pw --computer lumi -x /opt/qe/bin/pw.x --prepend-text 'module load qe' --with-mpi
      grange code add fit --files ./fit-program -x bin/fit.py
      grange code add pw --computer lumi -x pw.x --image /images/qe \\
          --engine-command 'ch-run --bind "$PWD" --cd "$PWD" {image_name} --'
      grange code add --config https://example.org/codes/pw.yaml
    """
    from grange.core import codes
    from grange.core.code_file import code_of, read
    from grange.core.profile import open_profile

    values = {**(read(config) if config else {}), **given}
    label = values.get("label")
    if not label:
        raise Refused("a code needs a name", "grange code add NAME …, or label in the file")
    with open_profile(home_of(ctx)) as profile, profile.transaction() as cursor:
        computer = values.get("computer") or None
        code, new = codes.add(profile, cursor, code_of(values, _computer_id(cursor, computer)), computer)
    name = f"{code.label}@{computer}" if computer else code.label
    if not new:
        click.echo(f"code {name} is there already (id {code.id})")
        return
    click.echo(f"code {name} added (id {code.id}); see whether all is well: grange code test {name}")
    if config:
        _say_shell_lines(code)


@command.command("list")
@click.option("--computer", metavar="LABEL", help="Only those of a computer.")
@click.option("--all", "everything", is_flag=True, help="Also programs that nobody has named.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def list_(ctx: click.Context, computer: str | None, everything: bool, as_json: bool) -> None:
    """List codes and how often they were used.

    \b
    Example:
      grange code list --computer lumi
    """
    from grange.core import codes

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = codes.list_codes(cursor, computer=computer, unnamed=everything)
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
        return
    if not found:
        click.echo("no code yet: `grange code add` makes one")
        return
    columns = [
        Column("code", flexible=True), Column("id", right=True), Column("kind", optional=True),
        Column("program", flexible=True), Column("mpi", optional=True), Column("used", right=True),
        Column("description", flexible=True, optional=True),
    ]  # fmt: skip
    print_table(columns, [_row(line) for line in found])


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what is known of a code; nothing is connected to.

    \b
    Example:
      grange code show pw@lumi
    """
    from grange.core import codes

    with opened(ctx) as profile, profile.transaction() as cursor:
        code = codes.load(cursor, name)
        line = codes.summary(cursor, code)
    if as_json:
        from grange.cli.machine import emit

        emit(CodeReport(line.name, line, code.attributes, sorted(code.files)))
    else:
        _show(code, line)


@command.command()
@click.argument("name")
@click.option("--computer", metavar="LABEL", help="Look there, for a code that belongs to no computer.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def test(ctx: click.Context, name: str, computer: str | None, as_json: bool) -> None:
    """See whether a code can be run: its files, its program, its container engine, MPI.

    Looks on the computer of the code, with what is to be done before the program, and on this machine
    where it belongs to none. Ends with the status 1 where something is wrong.

    \b
    Examples:
      grange code test pw@lumi
      grange code test fit --computer lumi
    """
    from grange.core import codes
    from grange.core.code_test import examine

    well = True
    with opened(ctx) as profile:
        code = profile.load_code(name)
        with profile.transaction() as cursor:
            own = codes.summary(cursor, code).computer
        if own and computer and own != computer:
            raise Refused(f"the code {name} is on {own}, not on {computer}", f"grange code test {name}")
        transport, found = _reached(profile, own or computer)
        try:
            for finding in examine(code, transport, found):
                well = well and finding.state != "failed"
                if as_json:
                    from grange.cli.machine import emit_lines

                    emit_lines([finding])
                else:
                    _say_finding(finding)
        finally:
            transport.close()
    if not well:
        ctx.exit(1)


@command.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and whether it can be.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, name: str, dry_run: bool, yes: bool) -> None:
    """Delete a code that no calculation has used; nothing is deleted on its computer.

    \b
    Examples:
      grange code delete pw@lumi --dry-run
      grange code delete pw@lumi --yes
    """
    from grange.core import codes

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            code = codes.load(cursor, name)
            line = codes.summary(cursor, code)
            codes.require_unused(cursor, name, code)
        what = f"the code {line.name or line.filepath_executable} (id {line.id}, {line.filepath_executable})"
        if dry_run:
            click.echo(f"would delete {what}")
            return
        if not yes:
            if not sys.stdin.isatty():
                raise Refused(f"not deleted: {what}", "say --yes where nobody can be asked")
            click.confirm(f"Delete {what}?", abort=True)
        with profile.transaction() as cursor:
            codes.delete(cursor, name)
    click.echo(f"code {name} deleted")


# ---------------------------------------------------------------- what they share


def _computer_id(cursor: Any, label: str | None) -> int | None:
    from grange.core import computer as computers

    return None if label is None else computers.computer_id(cursor, label)


def _reached(profile: Profile, label: str | None) -> tuple[Transport, Computer | None]:
    """The way to where a code is, and the computer; None for this machine."""
    from grange.farm.local_transport import LocalTransport

    if label is None:
        return LocalTransport("this machine"), None
    from grange.core import computer as computers
    from grange.core.connection import open_connection

    with profile.transaction() as cursor:
        stored = computers.load(cursor, label, user_id=profile.user_id)
    if not stored.enabled:
        raise Refused(f"the computer {label} is disabled", f"grange computer enable {label}")
    return open_connection(profile, stored.computer, stored.id, tell=say_waiting), stored.computer


def _row(line: CodeSummary) -> list[str | Cell]:
    inside = f" in {line.image_name}" if line.image_name else ""
    return [
        line.name or Cell("-", "yellow"),
        str(line.id),
        line.kind,
        line.filepath_executable + inside,
        {True: "yes", False: "no", None: ""}[line.with_mpi],
        words.number(line.uses) if line.uses else "",
        line.description,
    ]


def _show(code: Code, line: CodeSummary) -> None:
    click.secho(line.name or line.filepath_executable, bold=True)
    fields: list[tuple[str, str | Cell]] = [
        ("id", str(line.id)),
        ("uuid", line.uuid),
        ("kind", line.kind),
        ("description", line.description),
        ("computer", line.computer or ""),
    ]
    for name, value in code.attributes.items():
        fields.append((name, "yes" if value is True else str(value or "")))
    fields.append(("files", ", ".join(sorted(code.files))))
    fields.append(
        ("used by", words.plural(line.uses, "process", "processes") if line.uses else "nothing yet")
    )
    print_fields(fields)


def _say_finding(finding: Finding) -> None:
    sign, color = _SIGNS[finding.state]
    line = f"{click.style(sign, fg=color)} {finding.name.ljust(_FINDING_WIDTH)}"
    click.echo(f"{line}  {click.style(finding.detail, dim=finding.state == 'skipped')}")
    if finding.advice:
        click.echo(f"  {' ' * _FINDING_WIDTH}  → {finding.advice}")


def _say_shell_lines(code: Code) -> None:
    """What a file brought that will run as you."""
    engine = code.attributes.get("engine_command", "")
    for name, text in (
        ("prepend_text", code.prepend_text), ("append_text", code.append_text), ("engine_command", engine),
    ):  # fmt: skip
        if text.strip():
            click.echo(f"{name}, which every calculation of it will run:")
            for line in text.splitlines():
                click.echo(f"  {line}")
