"""`grange caching validate`: processes that may answer equal ones again."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.caching_invalidate import change


@click.command("validate")
@click.argument("nodes", metavar="[ID|UUID|CAMPAIGN/CALL]...", nargs=-1)
@click.option("-C", "--campaign", metavar="NAME", help="All processes of this campaign.")
@click.pass_context
def command(ctx: click.Context, nodes: tuple[str, ...], campaign: str | None) -> None:
    """Let processes answer equal ones again; takes `grange caching invalidate` back.

    It also lets those answer that failed in a way that is not believed of others (out of memory, say): name
    the ones that are meant.

    \b
    Example:
      grange caching validate 1234 1235
    """
    count = change(ctx, nodes, campaign, answers=True)
    click.echo(f"{words.plural(count, 'process', 'processes')} may answer equal ones again")
