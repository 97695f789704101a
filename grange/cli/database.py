"""`grange database`: the server of the embedded profile, and the version of the tables."""

from __future__ import annotations

from pathlib import Path

import click

from grange.cli import words
from grange.cli.opened import opened, set_up_home
from grange.cli.refused import Refused


@click.group("database")
def command() -> None:
    """Start, stop and bring up to date the database.

    The embedded database starts when it is needed and stops when it is not: these commands are for the
    rest, as before a backup.

    \b
    Examples:
      grange database dump /backup/grange.dump
      grange database migrate
    """


@command.command()
@click.pass_context
def start(ctx: click.Context) -> None:
    """Start the embedded database, or see that the other one answers.

    \b
    Example:
      grange database start
    """
    with opened(ctx) as profile:
        found = profile.describe_database()
    click.echo(f"PostgreSQL {found.version} runs at {found.where}, {words.size(found.size_bytes)}")


@command.command()
@click.option("--force", is_flag=True, help="Also while it is used: transactions under way are lost.")
@click.pass_context
def stop(ctx: click.Context, force: bool) -> None:
    """Stop the embedded database.

    \b
    Example:
      grange database stop
    """
    from grange.core.postgres import server_status, stop_server

    folder = _embedded(ctx)
    was_running = server_status(folder).running
    if not stop_server(folder, force=force):
        raise Refused("the database is in use", "end the campaigns that run, or say --force")
    click.echo("stopped" if was_running else "it was not running")


@command.command()
@click.pass_context
def migrate(ctx: click.Context) -> None:
    """Bring the tables to the version of this grange. Make a backup first.

    \b
    Example:
      grange database migrate
    """
    from grange.core import migrate as migration
    from grange.core.postgres import Server
    from grange.core.profile_file import EMBEDDED, read_profile_file

    home = set_up_home(ctx)
    config = read_profile_file(home / "profile.toml")
    if config.database != EMBEDDED:
        migration.migrate(config.database)
    else:
        # not by opening the profile: that refuses tables of another version
        binaries = home / config.postgres_bin if config.postgres_bin else None
        with Server(home / "postgres", idle_s=config.idle_s, binaries=binaries) as server:
            migration.migrate(server.dsn())
    click.echo(f"the tables are those of {migration.revisions()[-1]}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_context
def dump(ctx: click.Context, file: Path) -> None:
    """Write the whole database to a file: one half of a backup.

    It is one moment of it, whatever runs meanwhile. The other half are the files of the nodes, copied after
    it: docs/backup.md.

    \b
    Example:
      grange database dump /backup/grange.dump
    """
    from grange.core.database_dump import dump as write

    click.echo(f"{file}, {words.size(write(set_up_home(ctx), file))}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_context
def restore(ctx: click.Context, file: Path) -> None:
    """Fill an empty database from a dump; a profile is made where there is none.

    \b
    Example:
      GRANGE_HOME=/new/home grange database restore /backup/grange.dump
    """
    from grange.cli.opened import home_of
    from grange.core.database_dump import restore as fill

    fill(home_of(ctx), file)
    click.echo("restored")


def _embedded(ctx: click.Context) -> Path:
    from grange.core.profile_file import EMBEDDED, read_profile_file

    home = set_up_home(ctx)
    config = read_profile_file(home / "profile.toml")
    if config.database != EMBEDDED:
        raise Refused(
            f"the database is a server of its own, {config.database}", "start and stop it by its own means"
        )
    return home / "postgres"
