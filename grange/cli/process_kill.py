"""`grange process kill`."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened


@click.command("kill")
@click.argument("processes", metavar="PROCESS…", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only say how many would be ended.")
@click.pass_context
def command(ctx: click.Context, processes: tuple[str, ...], dry_run: bool) -> None:
    """End processes that have not ended, with all that they have called, here or on their computer.

    What waits never starts; what runs gets SIGTERM and then SIGKILL, and what it left is kept. A workflow
    that called one of them goes on, and sees that it was killed.

    \b
    Examples:
      grange process kill 1234
      grange process kill fcc-eos/17 fcc-eos/18
    """
    from grange.core import kill as killing
    from grange.core.process_control import find_open
    from grange.core.reference import node_ids

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            ids = node_ids(cursor, list(processes))
            count = len(find_open(cursor, ids, tree=True))
        if dry_run or not count:
            click.echo(
                f"{words.plural(count, 'process', 'processes')} would be ended"
                if count
                else "nothing is left to end"
            )
            return
        count = killing.kill(profile, ids=ids, progress=True)
    click.echo(f"{words.plural(count, 'process', 'processes')} ended or about to end")
