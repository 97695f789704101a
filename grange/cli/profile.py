"""`grange profile`: where everything of one installation is."""

from __future__ import annotations

from dataclasses import asdict

import click

from grange.cli.opened import home_of, set_up_home
from grange.cli.table import print_fields


@click.group("profile")
def command() -> None:
    """Say where the profile is and what its settings are.

    \b
    Example:
      grange profile show
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

        emit({"home": str(home), **settings})
        return
    lines = [("home", str(home))]
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += [(f"{name}.{key}", str(part)) for key, part in value.items() if part not in ("", False)]
        else:
            lines.append((name, str(value)))
    print_fields(lines)
    click.echo(f"\nThey are explained in {file}, and changed there.")
