"""`grange caching invalidate`: processes that are not to answer equal ones any more."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.refused import Refused


@click.command("invalidate")
@click.argument("nodes", metavar="[ID|UUID|CAMPAIGN/CALL]...", nargs=-1)
@click.option("-C", "--campaign", metavar="NAME", help="All processes of this campaign.")
@click.pass_context
def command(ctx: click.Context, nodes: tuple[str, ...], campaign: str | None) -> None:
    """Let processes answer equal ones no more, as when a library they used was wrong.

    They stay as they are, and so does what they have answered: invalidate that too, where it is wrong. Equal
    calculations are computed from now on; `grange caching validate` takes it back.

    \b
    Examples:
      grange caching invalidate 1234 1235
      grange caching invalidate --campaign with-the-wrong-library
    """
    count = change(ctx, nodes, campaign, answers=False)
    click.echo(f"{words.plural(count, 'process', 'processes')} will answer no other any more")


def change(ctx: click.Context, nodes: tuple[str, ...], campaign: str | None, *, answers: bool) -> int:
    """Say it of these processes, or of those of a campaign; returns for how many it is new."""
    from grange.core import likeness
    from grange.core.overview import campaign_id
    from grange.core.reference import node_ids

    if bool(nodes) == (campaign is not None):
        raise Refused("it is not said which processes are meant", "name some, or a campaign with --campaign")
    with opened(ctx) as profile, profile.transaction() as cursor:
        if campaign is None:
            ids = node_ids(cursor, list(nodes))
        else:
            cursor.execute(
                "SELECT node_id FROM process WHERE campaign_id = %s", (campaign_id(cursor, campaign),)
            )
            ids = [row[0] for row in cursor.fetchall()]
        return len(likeness.set_answering(cursor, ids, answers))
