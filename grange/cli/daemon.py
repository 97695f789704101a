"""`grange daemon`: the processes that run workflows and submitted calculations in the background."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import home_of, is_set_up, opened
from grange.cli.span import SPAN
from grange.cli.table import Cell, Column, print_table

if TYPE_CHECKING:
    from grange.core.daemon_client import DaemonClient, DaemonStatus
    from grange.core.daemon_rows import PartRow
    from grange.core.profile import Profile

_NOT_RUNNING = 3
_COLORS = ("cyan", "magenta", "yellow", "blue", "green")

_timeout = click.option(
    "--timeout", "timeout_s", type=SPAN, help="How long to wait; else as profile.toml says."
)
_wait = click.option("--wait/--no-wait", default=True, show_default=True, help="Until it is done.")


@click.group("daemon")
def command() -> None:
    """Run workflows, and calculations that were submitted, in the background; on one host or several.

    \b
    Examples:
      grange daemon start 2
      grange daemon status
      grange daemon logs --follow
      grange daemon stop
    """


@command.command()
@click.argument("workers", required=False, type=click.IntRange(min=0))
@click.option("--foreground", is_flag=True, help="Be the daemon until it ends: for systemd and containers.")
@_wait
@_timeout
@click.pass_context
def start(
    ctx: click.Context, workers: int | None, foreground: bool, wait: bool, timeout_s: int | None
) -> None:
    """Start the daemon of this host, with so many WORKERS; else as many as profile.toml says.

    Workers run workflows; what they call, and what was submitted, is run by dispatchers, which come and go.

    \b
    Examples:
      grange daemon start
      grange daemon start 4
      grange daemon start --foreground 2
    """
    home = home_of(ctx)
    if foreground:
        from grange.core.daemon import supervise

        supervise(home, workers, foreground=True)
        return
    from grange.core.daemon_client import DaemonClient
    from grange.core.profile import open_profile

    with open_profile(home) as profile:
        client = DaemonClient(profile)
        client.start_daemon(workers, wait=wait, timeout=timeout_s)
        status = client.get_status()
        count = words.plural(status.daemon.workers_wanted, "worker")
        place = client.daemon_log_file.parent
        click.echo(f"the daemon runs as process {status.daemon.pid}, with {count}; it logs to {place}")


@command.command()
@click.option("--all", "everywhere", is_flag=True, help="The daemons of all hosts that use the database.")
@_wait
@_timeout
@click.pass_context
def stop(ctx: click.Context, everywhere: bool, wait: bool, timeout_s: int | None) -> None:
    """Stop the daemon. What is under way is brought to a point from which it is gone on with later.

    What runs on clusters goes on there. A process that does not end is killed after grace_s of profile.toml.

    \b
    Examples:
      grange daemon stop
      grange daemon stop --all --timeout 5m
    """
    with opened(ctx) as profile:
        for client in _clients(profile, everywhere):
            client.stop_daemon(wait=wait, timeout=timeout_s)
            click.echo(f"the daemon on {client.host} {'has stopped' if wait else 'is stopping'}")


@command.command()
@click.argument("workers", required=False, type=click.IntRange(min=0))
@click.option("--all", "everywhere", is_flag=True, help="The daemons of all hosts that use the database.")
@_wait
@_timeout
@click.pass_context
def restart(
    ctx: click.Context, workers: int | None, everywhere: bool, wait: bool, timeout_s: int | None
) -> None:
    """Stop the daemon and start it again, so that it has new code; with as many workers as before, or these.

    \b
    Example:
      grange daemon restart
    """
    with opened(ctx) as profile:
        for client in _clients(profile, everywhere):
            client.restart_daemon(workers, wait=wait, timeout=timeout_s)
            click.echo(f"the daemon on {client.host} {'has begun anew' if wait else 'begins anew'}")


@command.command()
@click.argument("number", default=1, type=click.IntRange(min=1))
@click.pass_context
def incr(ctx: click.Context, number: int) -> None:
    """Have NUMBER workers more.

    \b
    Example:
      grange daemon incr 2
    """
    _change(ctx, number)


@command.command()
@click.argument("number", default=1, type=click.IntRange(min=1))
@click.pass_context
def decr(ctx: click.Context, number: int) -> None:
    """Have NUMBER workers fewer. Those that end give what they hold to the others.

    \b
    Example:
      grange daemon decr
    """
    _change(ctx, -number)


def _change(ctx: click.Context, number: int) -> None:
    from grange.core.daemon_client import DaemonClient

    with opened(ctx) as profile:
        wanted = DaemonClient(profile).increase_workers(number)
        click.echo(f"{words.plural(wanted, 'worker')} from now on")


# ---------------------------------------------------------------- looking


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show the daemons of all hosts that use the database, and what their processes are at.

    The exit status is 0 where this host has one for this profile, else 3.

    \b
    Example:
      grange daemon status
    """
    found, here, locked = _statuses(ctx)
    if as_json:
        from grange.cli.machine import emit

        emit({"running": here is not None, "locked": locked, "daemons": found})
    else:
        for one in found:
            _show(one)
        if here is None:
            click.echo(f"no daemon runs for {home_of(ctx)} on this host: `grange daemon start` starts it")
        if locked:
            click.secho(f"the profile is {locked}", fg="yellow")
    if here is None:
        ctx.exit(_NOT_RUNNING)


def _statuses(ctx: click.Context) -> tuple[list[DaemonStatus], DaemonStatus | None, str | None]:
    """All daemons, that of this host and home, and who has locked the profile.

    A database that sleeps has none, and is left asleep.
    """
    from grange.core.daemon_client import DaemonClient
    from grange.core.profile import embedded_status
    from grange.core.profile_lock import find

    home = home_of(ctx)
    asleep = embedded_status(home)
    if not is_set_up(home) or (asleep is not None and not asleep.running):
        return [], None, None
    with opened(ctx) as profile:
        client = DaemonClient(profile)
        found = client.get_statuses()
        with profile.transaction() as cursor:
            locked = find(cursor)
    own = [one for one in found if (one.daemon.host, one.daemon.home) == (client.host, client.home)]
    return found, own[0] if own else None, None if locked is None else str(locked)


def _show(one: DaemonStatus) -> None:
    import socket

    daemon = one.daemon
    there, wanted = len(one.workers), daemon.workers_wanted
    workers = words.plural(wanted, "worker") if there == wanted else f"{there} of {wanted} workers"
    doing = "stopping, " if daemon.stop_asked_at else "restarting, " if daemon.restart_asked_at else ""
    click.secho(f"daemon of {daemon.home} on {daemon.host}", bold=True)
    click.echo(
        f"  process {daemon.pid} since {words.moment(daemon.started_at)}: {doing}{workers}, "
        f"{words.plural(len(one.dispatchers), 'dispatcher')}"
    )
    if there < wanted and not doing:
        click.secho("  a worker that does not come up says why: `grange daemon logs`", fg="yellow")
    columns = [
        Column("process", right=True),
        Column("what"),
        Column("since", optional=True),
        Column("memory", right=True, optional=True),
        Column("at", flexible=True),
    ]
    if one.workers or one.dispatchers:
        here = daemon.host == socket.gethostname()
        parts = [*one.workers, *one.dispatchers]
        print_table(columns, [_row(part, here) for part in parts], indent="  ")


def _row(part: PartRow, here: bool) -> list[str | Cell]:
    at = words.plural(part.workflows, "workflow") if part.role == "worker" else part.queue or ""
    memory = words.size(_memory(part)) if here else ""
    return [str(part.pid), part.role, words.moment(part.started_at), memory, at]


def _memory(part: PartRow) -> int | None:
    """The resident memory of a process of this machine, in bytes; None where it is not to be had."""
    import os

    from grange.core.daemon_child import is_process_of

    module = "grange.core.work" if part.role == "worker" else "grange.core.dispatch"
    if not is_process_of(part.pid, module, part.daemon_id):
        return None  # that of a container has another id here
    try:
        return int(Path(f"/proc/{part.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


@command.command()
@click.argument("name", nargs=-1)
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(min=0), help="Of each log.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.pass_context
def logs(ctx: click.Context, name: tuple[str, ...], lines: int, follow: bool) -> None:
    """Show what the daemon of this host and its processes have to say: all, or those of a NAME.

    In the foreground, under systemd or in a container, they say it there instead.

    \b
    Examples:
      grange daemon logs
      grange daemon logs worker-1 --follow
    """
    from grange.cli.refused import Refused
    from grange.core import daemon_log

    home = home_of(ctx)
    known = daemon_log.names(home)
    unknown = [one for one in name if one not in known]
    if unknown or not known:
        there = (
            f"there are {', '.join(known)}" if known else f"there are none in {daemon_log.log_folder(home)}"
        )
        raise Refused(
            f"there is no log of {unknown[0]}" if unknown else "no daemon has said anything here",
            f"{there}; one in the foreground logs to where it was started",
        )
    wanted = list(name) or known
    width = max(map(len, wanted))
    # From where it is followed is noted first, so that nothing is lost in between.
    following = daemon_log.Followed(home)
    for one in wanted:
        for text in daemon_log.tail(home, one, lines):
            _say(one, text, width, known)
    while follow:
        for line in following.read(name):
            _say(line.name, line.text, width, known)
        time.sleep(daemon_log.FOLLOW_S)


def _say(name: str, text: str, width: int, known: Sequence[str]) -> None:
    color = _COLORS[known.index(name) % len(_COLORS)] if name in known else None
    click.echo(f"{click.style(name.ljust(width), fg=color)} {click.style('|', dim=True)} {text}")


def _clients(profile: Profile, everywhere: bool) -> list[DaemonClient]:
    """The clients of the daemons that are meant."""
    from grange.core.daemon_client import DaemonClient

    own = DaemonClient(profile)
    if not everywhere:
        return [own]
    return [DaemonClient(profile, host=one.daemon.host, home=one.daemon.home) for one in own.get_statuses()]
