"""`grange repository take-over`: say that a store belongs to this profile's database now."""

from __future__ import annotations

import click

from grange.cli.opened import opened


@click.command("take-over")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def command(ctx: click.Context, yes: bool) -> None:
    """Make the store this profile's own: after its database was restored from a backup, say.

    A store belongs to one database, the first that stored files in it; any other may only read. What two
    databases store in one place they take for rubbish of each other's, and prune. So be sure that the other
    one is gone for good; a copy that is only tried out is better given a store of its own by `grange
    repository migrate`. With --take-over `prune` and `scrub --quarantine` do the same before they begin.

    \b
    Example:
      grange repository take-over
    """
    from grange.cli.agreed import require_agreed
    from grange.core.store_owner import identity, owners_of, require_owner

    with opened(ctx) as profile, profile.transaction() as cursor:
        store = profile.repository.store
        others = owners_of(store) - {identity(cursor)}
        if others:
            require_agreed(yes, f"Is the database that stored files in {store} gone for good?")
        require_owner(cursor, store, take_over=True)
    click.echo(f"{store} belongs to this profile's database")
