"""`grange computer`: the machines that tasks run on."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.computer_options import PRIVATE_WHEEL, Values, ask, computer_options, merged
from grange.cli.opened import home_of, opened
from grange.cli.refused import Refused
from grange.cli.table import Cell, Column, print_fields, print_table

if TYPE_CHECKING:
    from grange.core.computer import ComputerSummary, StoredComputer
    from grange.core.computer_test import Step
    from grange.core.profile import Profile
    from grange.farm.computer import Computer

_SIGNS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", None)}
#: As wide as the longest name of a step.
_STEP_WIDTH = 14


@dataclass(frozen=True, slots=True)
class ComputerReport:
    """The document of `grange computer show --json`."""

    computer: Computer
    summary: ComputerSummary


@click.group("computer")
def command() -> None:
    """Say which machines there are, how they are reached, and whether they are ready.

    \b
    Examples:
      grange computer add lumi --host lumi.csc.fi --user ada --partition small
      grange computer add --config https://example.org/lumi.yaml
      grange computer test lumi
    """


@command.command()
@click.argument("label", required=False)
@computer_options
@click.option("--non-interactive", is_flag=True, help="Ask nothing, also on a terminal.")
@click.pass_context
def add(
    ctx: click.Context, label: str | None, config: str | None, given: Values, non_interactive: bool
) -> None:
    """Add a computer: from options, from a file or a URL, and from questions for what is missing.

    Options come before what the file says. Where there is no profile yet, one is made. Nothing is connected
    to: `grange computer test` does that.

    \b
    Examples:
      grange computer add                                # asks
      grange computer add lumi --host lumi.csc.fi --user ada --hq-binary ~/bin/hq
      grange computer add bigmem --host bigmem --scheduler direct --slots 12
      grange computer add --config lumi.toml --partition small
    """
    from grange.core import computer as computers
    from grange.core.computer_file import computer_of, read
    from grange.core.profile import open_profile

    found = read(config) if config else {}
    if label is not None:
        given["label"] = label
    _refuse_private_wheel_from_web(config, found, given)
    values = merged(found, given)
    if not non_interactive and sys.stdin.isatty():
        values = ask(values, only=("label", "hostname") if config else None)
    computer = computer_of(values)
    with open_profile(home_of(ctx)) as profile, profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)
    click.echo(
        f"computer {computer.label} added; see whether all is well: grange computer test {computer.label}"
    )
    if config:
        _say_shell_lines(computer)
    _warn(computer)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List computers and how they stand.

    \b
    Example:
      grange computer list
    """
    from grange.core import computer as computers

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = computers.list_computers(cursor, user_id=profile.user_id)
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
        return
    if not found:
        click.echo("no computer yet: `grange computer add` makes one")
        return
    columns = [
        Column("computer"), Column("host", flexible=True), Column("transport", optional=True),
        Column("scheduler", optional=True), Column("hyperqueue", optional=True),
        Column("state", flexible=True), Column("connected", optional=True),
        Column("allocations", right=True),
    ]  # fmt: skip
    print_table(columns, [_row(line) for line in found])


@command.command()
@click.argument("label")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, label: str, as_json: bool) -> None:
    """Show what is known of a computer; nothing is connected to.

    \b
    Example:
      grange computer show lumi
    """
    from grange.core import computer as computers

    with opened(ctx) as profile, profile.transaction() as cursor:
        line = computers.summary(cursor, label, user_id=profile.user_id)
        computer = computers.load(cursor, label, user_id=profile.user_id).computer
    if as_json:
        from grange.cli.machine import emit

        emit(ComputerReport(computer, line))
        return
    _show(computer, line)
    _warn(computer)


@command.command()
@click.argument("label")
@computer_options
@click.pass_context
def edit(ctx: click.Context, label: str, config: str | None, given: Values) -> None:
    """Change a computer: by options, by a file or a URL, else in your editor ($EDITOR).

    What options and file do not say stays as it is. Campaigns that run keep what they began with.

    \b
    Examples:
      grange computer edit lumi --partition standard --max-queued-jobs 50
      grange computer edit lumi
    """
    from grange.core import computer as computers
    from grange.core.computer_file import computer_of, read

    with opened(ctx) as profile:
        before = _load(profile, label).computer
        if config or given:
            found = read(config) if config else {}
            _refuse_private_wheel_from_web(config, found, given)
            values = merged(found, given)
            values["label"] = label
            after = computer_of(values, before)
        else:
            edited = _edited(before)
            if edited is None:
                click.echo("nothing changed")
                return
            after = edited
        with profile.transaction() as cursor:
            computers.replace(cursor, after, user_id=profile.user_id)
    click.echo(f"computer {label} changed" if after != before else "nothing changed")
    if config:
        _say_shell_lines(after)
    _warn(after)


@command.command()
@click.argument("labels", nargs=-1, required=True, metavar="LABEL...")
@click.pass_context
def enable(ctx: click.Context, labels: tuple[str, ...]) -> None:
    """Let grange use computers again.

    \b
    Example:
      grange computer enable lumi
    """
    _enable(ctx, labels, enabled=True)


@command.command()
@click.argument("labels", nargs=-1, required=True, metavar="LABEL...")
@click.pass_context
def disable(ctx: click.Context, labels: tuple[str, ...]) -> None:
    """Let grange connect to computers no more, until they are enabled.

    What runs there goes on; its results are fetched when the computer is enabled again.

    \b
    Example:
      grange computer disable lumi
    """
    _enable(ctx, labels, enabled=False)


@command.command()
@click.argument("label")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and whether it can be.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, label: str, dry_run: bool, yes: bool) -> None:
    """Delete a computer with its settings, where no node names it.

    Nothing is deleted on the computer itself. One that nodes name can be disabled instead.

    \b
    Examples:
      grange computer delete lumi --dry-run
      grange computer delete lumi --yes
    """
    from grange.core import computer as computers

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            line = computers.summary(cursor, label, user_id=profile.user_id)
            reasons = computers.uses(cursor, label)
        if reasons:
            raise Refused(
                f"the computer {label!r} cannot be deleted: {' and '.join(reasons)}",
                f"`grange computer disable {label}` lets grange use it no more",
            )
        what = f"computer {label} ({line.hostname}), its settings, its connection and ended allocations"
        if dry_run:
            click.echo(f"would delete {what}")
            return
        if not yes:
            if not sys.stdin.isatty():
                raise Refused(f"not deleted: {what}", "say --yes where nobody can be asked")
            click.confirm(f"Delete {what}?", abort=True)
        with profile.transaction() as cursor:
            computers.delete(cursor, label)
    click.echo(f"computer {label} deleted")


@command.command()
@click.argument("label")
@click.argument("new_label")
@computer_options
@click.pass_context
def duplicate(ctx: click.Context, label: str, new_label: str, config: str | None, given: Values) -> None:
    """Add a computer like another one, with what options and file say in its place.

    \b
    Example:
      grange computer duplicate lumi lumi-gpu --partition gpu --gpus-per-node 8
    """
    from grange.core import computer as computers
    from grange.core.computer_file import computer_of, read

    found = read(config) if config else {}
    _refuse_private_wheel_from_web(config, found, given)
    with opened(ctx) as profile:
        values = {**merged(found, given), "label": new_label}
        computer = computer_of(values, _load(profile, label).computer)
        with profile.transaction() as cursor:
            computers.add(cursor, computer, user_id=profile.user_id)
    click.echo(f"computer {new_label} added; see whether all is well: grange computer test {new_label}")
    _warn(computer)


@command.command()
@click.argument("label")
@click.option(
    "--format", "form", type=click.Choice(("toml", "yaml")), default="toml", show_default=True,
    help="How it is written.",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Instead of standard output.")
@click.pass_context
def export(ctx: click.Context, label: str, form: str, output: str | None) -> None:
    """Write a computer as the file that `grange computer add --config` reads. It holds no secret.

    \b
    Examples:
      grange computer export lumi -o lumi.toml
      grange computer export lumi --format yaml
    """
    from pathlib import Path

    from grange.core.computer_file import write

    with opened(ctx) as profile:
        computer = _load(profile, label).computer
    text = write(computer, "yaml" if form == "yaml" else "toml")
    if output is None:
        click.echo(text, nl=False)
    else:
        Path(output).write_text(text, "utf-8")


@command.command()
@click.argument("label")
@click.option("--dry-run", is_flag=True, help="Only say how many calls would be ended.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def kill(ctx: click.Context, label: str, dry_run: bool, yes: bool) -> None:
    """End all that has not ended of campaigns that are run on a computer.

    Allocations are another matter: `grange allocation stop --all` ends those.

    \b
    Example:
      grange computer kill lumi
    """
    from grange.core import computer as computers
    from grange.core import kill as killing
    from grange.core import process as rows

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            computers.computer_id(cursor, label)
            count = rows.count_backlog(cursor, label)
        calls = words.plural(count, "call")
        if dry_run or not count:
            click.echo(f"{calls} on {label} would be ended" if count else f"nothing runs on {label}")
            return
        if not yes:
            click.confirm(f"End {calls} on {label}?", abort=True)
        ended = killing.kill(profile, computer=label, progress=True)
    click.echo(f"{words.plural(ended, 'call')} on {label} ended or about to end")


@command.command()
@click.argument("label")
@click.pass_context
def resume(ctx: click.Context, label: str) -> None:
    """Connect again to a computer that was paused because too many connections had failed.

    \b
    Example:
      grange computer resume lumi
    """
    from grange.core import computer as computers
    from grange.core import connection

    with opened(ctx) as profile, profile.transaction() as cursor:
        was_paused = connection.resume(cursor, computers.computer_id(cursor, label))
    click.echo(f"{label} is tried again" if was_paused else f"{label} was not paused")


@command.command()
@click.argument("label")
@click.option("--no-task", is_flag=True, help="Send no task: it has to wait in the queue.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=600.0, show_default=True,
    help="Seconds for the task, its waiting in the queue included.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line, as the steps come.")
@click.pass_context
def test(ctx: click.Context, label: str, no_task: bool, timeout: float, as_json: bool) -> None:
    """Go through all that a campaign needs of a computer, one step after the other.

    At the first thing that is wrong it says what to do, and ends with the status 1. A small task goes through
    the queue, in an allocation of one core where HyperQueue's workers need one.

    \b
    Examples:
      grange computer test lumi
      grange computer test lumi --no-task
    """
    from grange.core import connection
    from grange.core.computer_test import CONNECTING, examine, workers_of
    from grange.core.delivery import trial

    failed = ""
    with opened(ctx) as profile:
        stored = _load(profile, label)
        with profile.transaction() as cursor:
            # Somebody who tests wants to know how it is now.
            was_paused = connection.resume(cursor, stored.id)
        transport = connection.open_connection(
            profile, stored.computer, stored.id, patience_s=0.0, ask=_ask()
        )
        wanted = stored.computer.delivery == "store" and not no_task
        with closing(transport), trial(profile) if wanted else nullcontext() as tried:
            for step in examine(
                stored.computer,
                transport,
                spool=profile.spool / f"test@{label}",
                workers=workers_of(profile, stored),
                trial=tried,
                with_task=not no_task,
                timeout_s=timeout,
                waiting=functools.partial(_say_waiting, timeout),
            ):
                failed = step.name if step.state == "failed" else failed
                if as_json:
                    from grange.cli.machine import emit_lines

                    emit_lines([step])
                else:
                    _say_step(step)
        if was_paused and failed in CONNECTING:
            with profile.transaction() as cursor:
                connection.pause(cursor, stored.id)
    if failed:
        ctx.exit(1)
    if not stored.enabled:
        click.echo(f"{label} is disabled: grange computer enable {label}", err=True)


@command.command()
@click.argument("label")
@click.pass_context
def connect(ctx: click.Context, label: str) -> None:
    """Open the connection to a computer that asks for a password or a second factor: you type it once, here.

    For computers with --transport openssh. The connection stays when this command ends, and grange goes
    through it, until it is lost or the computer ends it.

    \b
    Example:
      grange computer connect lumi
    """
    from grange.core.connection import master_folder
    from grange.farm.control_master import open_master

    with opened(ctx) as profile:
        computer = _load(profile, label).computer
        folder = master_folder(profile)
    if computer.transport != "openssh":
        raise Refused(
            f"{label} has the transport {computer.transport}: grange connects by itself",
            f"where it asks for a second factor: grange computer edit {label} --transport openssh",
        )
    was_made = open_master(computer, folder)
    click.echo(f"{label} is connected" if was_made else f"{label} was connected already")


# ---------------------------------------------------------------- what they share


def _ask() -> Callable[[str], str] | None:
    """Asks whoever sits at the terminal for a passphrase, and keeps nothing."""
    if not sys.stdin.isatty():
        return None
    return lambda question: str(
        click.prompt(question.rstrip(": "), hide_input=True, default="", show_default=False, err=True)
    )


def _say_waiting(timeout_s: float, seconds: float) -> None:
    """On a terminal, for how long the task has been waited for: a queue may be long."""
    if sys.stderr.isatty() and seconds >= 2:
        waited = f"waiting for it, {words.duration(seconds)} of at most {words.duration(timeout_s)}"
        click.echo(f"\r… {'one task'.ljust(_STEP_WIDTH)}  {waited}\033[K", nl=False, err=True)


def _say_step(step: Step) -> None:
    if step.name == "one task" and sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    sign, color = _SIGNS[step.state]
    took = f" ({words.duration(step.seconds)})" if step.seconds >= 1 else ""
    line = f"{click.style(sign, fg=color)} {step.name.ljust(_STEP_WIDTH)}"
    click.echo(f"{line}  {click.style(step.detail, dim=step.state == 'skipped')}{took}")
    if step.advice:
        click.echo(f"  {' ' * _STEP_WIDTH}  → {step.advice}")
    sys.stdout.flush()


def _load(profile: Profile, label: str) -> StoredComputer:
    from grange.core import computer as computers

    with profile.transaction() as cursor:
        return computers.load(cursor, label, user_id=profile.user_id)


def _enable(ctx: click.Context, labels: tuple[str, ...], *, enabled: bool) -> None:
    from grange.core import computer as computers

    with opened(ctx) as profile, profile.transaction() as cursor:
        computers.enable(cursor, labels, user_id=profile.user_id, enabled=enabled)
    click.echo(f"{'enabled' if enabled else 'disabled'}: {', '.join(labels)}")


def _edited(computer: Computer) -> Computer | None:
    """The computer as somebody left it in an editor; None where nothing was changed."""
    from grange.core.computer_file import computer_of, parse, write
    from grange.core.errors import InputInvalid

    text = (
        f"# {computer.label}: save to keep what you change, or leave without saving.\n"
        "# cores_per_node and memory_mb_per_node may be left out where they are not known.\n\n"
        + write(computer)
    )
    while True:
        edited = click.edit(text, extension=".toml")
        if edited is None or edited == text:
            return None
        try:
            after = computer_of(parse(edited, "toml", "what you wrote"))
            if after.label != computer.label:
                raise InputInvalid("label", after.label, f"{computer.label}: a computer keeps its name")
            return after
        except InputInvalid as error:
            if not sys.stdin.isatty():
                raise
            click.echo(f"{error}", err=True)
            if not click.confirm("Edit it again?", default=True):
                return None
            text = edited


def _refuse_private_wheel_from_web(config: str | None, found: Values, given: Values) -> None:
    """A server without authentication is asked for by whoever runs it, not by a page somewhere."""
    far = config is not None and "://" in config
    if far and found.get("hyperqueue") == "private-wheel" and "hyperqueue" not in given:
        raise Refused(
            f"{config} asks for hyperqueue = private-wheel, a server without authentication",
            "where that is what you want, say it yourself: --hyperqueue private-wheel (or hq, or none)",
        )


def _say_shell_lines(computer: Computer) -> None:
    """What a file brought that will run as you."""
    for name, text in (("prepend_text", computer.prepend_text), ("append_text", computer.append_text)):
        if text.strip():
            click.echo(f"{name}, which every job will run:")
            for line in text.splitlines():
                click.echo(f"  {line}")


def _warn(computer: Computer) -> None:
    if computer.hyperqueue == "private-wheel":
        click.secho(f"warning: {PRIVATE_WHEEL}", fg="red", bold=True, err=True)


def _state_cell(line: ComputerSummary) -> Cell:
    state = line.state
    if state == "paused":
        return Cell(f"paused after {words.plural(line.failures, 'failure')}: {line.last_error or '?'}", "red")
    if state == "unusable":
        return Cell("only AiiDA can use it", "yellow")
    if state == "enabled" and line.failures:
        return Cell(
            f"not reached, {words.plural(line.failures, 'time')} in a row: {line.last_error}", "yellow"
        )
    return Cell(state, None if state == "enabled" else "yellow")


def _row(line: ComputerSummary) -> list[str | Cell]:
    from grange.core.computer import SCHEDULER_TYPES, TRANSPORT_TYPES

    return [
        line.label,
        line.hostname,
        TRANSPORT_TYPES.get(line.transport_type, line.transport_type),
        SCHEDULER_TYPES.get(line.scheduler_type, line.scheduler_type),
        Cell(line.hyperqueue, "red" if line.hyperqueue == "private-wheel" else None),
        _state_cell(line),
        words.moment(line.connected_at),
        str(line.open_allocations or ""),
    ]


def _show(computer: Computer, line: ComputerSummary) -> None:
    from grange.core.computer_file import document_of

    document = document_of(computer)
    settings = document.pop("ssh")
    click.secho(document.pop("label"), bold=True)
    fields: list[tuple[str, str | Cell]] = [
        ("uuid", line.uuid),
        ("state", _state_cell(line)),
        ("connected", words.moment(line.connected_at)),
        ("last error", "" if line.paused or line.failures else line.last_error or ""),
        ("allocations", f"{line.open_allocations} in the queue or running" if line.open_allocations else ""),
    ]
    fields += [(name, _text(value)) for name, value in document.items()]
    if computer.transport != "local":
        fields += [(f"ssh.{name}", _text(value)) for name, value in settings.items()]
    print_fields(fields, indent="  ")


def _text(value: Any) -> str:
    """A value as it is shown; nothing for what has none."""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list):
        return "\n".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).rstrip("\n")
