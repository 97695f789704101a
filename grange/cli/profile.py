"""`grange profile`: where everything of one installation is, and whether anybody may work on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli.opened import home_of, opened, set_up_home
from grange.cli.span import SPAN
from grange.cli.table import print_fields

if TYPE_CHECKING:
    from grange.core.profile_lock import AtWork, ProfileLock


@click.group("profile")
def command() -> None:
    """Say where the profile is and what its settings are; lock it for maintenance.

    \b
    Examples:
      grange profile show
      grange profile lock --wait "a new disk"
    """


@command.command()
@click.pass_context
def path(ctx: click.Context) -> None:
    """Print the folder of the profile, whether or not it is there.

    \b
    Example:
      cd "$(grange profile path)"
    """
    click.echo(str(home_of(ctx)))


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show the settings of profile.toml, defaults included; the database is left asleep.

    \b
    Example:
      grange profile show
    """
    from grange.core.profile_file import read_profile_file

    home = set_up_home(ctx)
    file = home / "profile.toml"
    settings = asdict(read_profile_file(file))
    if as_json:
        from grange.cli.machine import emit

        emit({"home": str(home), **settings, "locked": _lock_of(home)})
        return
    lines = [("home", str(home))]
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += [(f"{name}.{key}", str(part)) for key, part in value.items() if part not in ("", False)]
        else:
            lines.append((name, str(value)))
    locked = _lock_of(home)
    if locked is not None:
        lines.append(("lock", str(locked)))
    print_fields(lines)
    click.echo(f"\nThey are explained in {file}, and changed there.")


def _lock_of(home: Path) -> ProfileLock | None:
    """The lock of the profile; None also where its database sleeps, or cannot be asked."""
    from grange.core.errors import GrangeError
    from grange.core.profile import embedded_status, open_profile
    from grange.core.profile_lock import find

    embedded = embedded_status(home)
    if embedded is not None and not embedded.running:
        return None
    try:
        with open_profile(home) as profile, profile.transaction() as cursor:
            return find(cursor)
    except GrangeError:
        return None


# ---------------------------------------------------------------- the lock


@command.command()
@click.argument("reason", default="maintenance")
@click.option("--wait", is_flag=True, help="Until nobody works any more, on any host.")
@click.option("--timeout", "timeout_s", type=SPAN, help="With --wait: how long; else for ever.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def lock(ctx: click.Context, reason: str, wait: bool, timeout_s: int | None, as_json: bool) -> None:
    """Let nobody work on the profile until it is unlocked, on whatever host, and say why.

    Workers and dispatchers of daemons stop at a good moment and go on by themselves when it is unlocked. A
    script that runs something is waited for, and none begins. Everybody may look at everything. The lock
    stays when --timeout is over or Ctrl-C ends the waiting; the exit status is then not 0.

    \b
    Examples:
      grange profile lock "PostgreSQL is moved"
      grange profile lock --wait --timeout 10m && pg_dump ... ; grange profile unlock
    """
    import socket

    from grange.core import profile_lock

    with opened(ctx) as profile:
        by_whom, host = profile.config.email, socket.gethostname()
        if not by_whom.endswith(f"@{host}"):
            by_whom += f" on {host}"
        with profile.transaction() as cursor:
            profile_lock.lock(cursor, reason, by_whom)
        with profile.transaction() as cursor:
            left = profile_lock.at_work(cursor)
        if wait and left:
            left = profile_lock.wait_until_idle(profile, timeout_s, _say_who)
    if as_json:
        from grange.cli.machine import emit

        emit({"reason": reason, "by_whom": by_whom, "at_work": left})
    elif left:
        click.echo(f"the profile is locked; still at work: {', '.join(map(str, left))}")
    else:
        click.echo("the profile is locked, and nobody works")
    if wait and left:
        ctx.exit(1)


def _say_who(who: Sequence[AtWork]) -> None:
    click.echo(f"waiting for {', '.join(map(str, who))} (Ctrl-C waits no longer)", err=True)


@command.command()
@click.pass_context
def unlock(ctx: click.Context) -> None:
    """Let everybody work again; whoever stood by goes on.

    \b
    Example:
      grange profile unlock
    """
    from grange.core import profile_lock

    with opened(ctx) as profile, profile.transaction() as cursor:
        was = profile_lock.unlock(cursor)
    click.echo("the profile was not locked" if was is None else f"unlocked; it was {was}")
