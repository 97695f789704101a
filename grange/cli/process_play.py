"""`grange process play`."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.refused import Refused


@click.command("play")
@click.argument("processes", metavar="PROCESS…", nargs=-1)
@click.option("-C", "--campaign", metavar="NAME", help="All calls of this campaign.")
@click.option("-t", "--tree", is_flag=True, help="With all that they have called.")
@click.option("-a", "--all", "everything", is_flag=True, help="All that are paused.")
@click.option("--dry-run", is_flag=True, help="Only say how many would go on.")
@click.pass_context
def command(
    ctx: click.Context,
    processes: tuple[str, ...],
    campaign: str | None,
    tree: bool,
    everything: bool,
    dry_run: bool,
) -> None:
    """Let paused processes go on. `grange process list --paused` shows them, and why they are.

    \b
    Examples:
      grange process play 1234
      grange process play fcc-eos/17 --tree
    """
    from grange.core import process_control
    from grange.core.overview import campaign_id
    from grange.core.reference import node_ids

    if [bool(processes), campaign is not None, everything].count(True) != 1:
        raise Refused(
            "which processes are to go on?",
            "name some, or a campaign by --campaign NAME, or say --all; "
            "`grange process list --paused` shows them",
        )
    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            ids = node_ids(cursor, list(processes)) if processes else None
            if campaign is not None:
                ids = process_control.find_open(cursor, None, campaign_id=campaign_id(cursor, campaign))
            found = process_control.find_open(cursor, ids, tree=tree, paused=True)
        count = len(found) if dry_run else process_control.play(profile, found)
    done = "would go on" if dry_run else "played"
    click.echo(
        f"{words.plural(count, 'process', 'processes')} {done}" if count else "nothing is paused there"
    )
