"""`grange process pause`."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.refused import Refused


@click.command("pause")
@click.argument("processes", metavar="PROCESS…", nargs=-1)
@click.option("-C", "--campaign", metavar="NAME", help="All calls of this campaign.")
@click.option("-t", "--tree", is_flag=True, help="With all that they have called.")
@click.option("-r", "--reason", default="", metavar="TEXT", help="Shown in lists until they are played.")
@click.option("--dry-run", is_flag=True, help="Only say how many would be paused.")
@click.pass_context
def command(
    ctx: click.Context,
    processes: tuple[str, ...],
    campaign: str | None,
    tree: bool,
    reason: str,
    dry_run: bool,
) -> None:
    """Set processes aside until `grange process play`.

    A workflow makes no further step; a calculation that nobody has begun does not begin. One that is with
    the farm already goes on to its end.

    \b
    Examples:
      grange process pause 1234 --reason "wrong pseudopotential?"
      grange process pause fcc-eos/17 --tree
      grange process pause --campaign fcc-eos
    """
    from grange.core import process_control
    from grange.core.overview import campaign_id
    from grange.core.reference import node_ids

    if (campaign is None) == (not processes):
        raise Refused("which processes are to be paused?", "name some, or a campaign by --campaign NAME")
    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            ids = (
                node_ids(cursor, list(processes))
                if campaign is None
                else process_control.find_open(cursor, None, campaign_id=campaign_id(cursor, campaign))
            )
            found = process_control.find_open(cursor, ids, tree=tree, paused=False)
        count = len(found) if dry_run else process_control.pause(profile, found, reason)
    done = "would be paused" if dry_run else "paused"
    click.echo(
        f"{words.plural(count, 'process', 'processes')} {done}" if count else "nothing is left to pause"
    )
