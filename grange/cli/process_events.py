"""`grange process events`: everything that happened to processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli.opened import opened
from grange.cli.refused import Refused
from grange.cli.table import Cell, Column, print_table

if TYPE_CHECKING:
    from grange.core.event import Event

COLORS = {
    "finished": "green",
    "reused": "green",
    "excepted": "red",
    "killed": "red",
    "kill_asked": "red",
    "started": "yellow",
    "paused": "magenta",
}


@click.command("events")
@click.argument("processes", metavar="PROCESS…", nargs=-1)
@click.option("-C", "--campaign", metavar="NAME", help="Those of a campaign.")
@click.option("-t", "--tree", is_flag=True, help="With those of all that the processes have called.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=200, show_default=True, help="The last so many."
)
@click.option("--all", "everything", is_flag=True, help="No limit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.option(
    "--plot", metavar="FILE", type=click.Path(dir_okay=False),
    help="With --campaign: draw what was running and what had finished over time (PNG, SVG, PDF).",
)  # fmt: skip
@click.pass_context
def command(
    ctx: click.Context,
    processes: tuple[str, ...],
    campaign: str | None,
    tree: bool,
    limit: int,
    everything: bool,
    as_json: bool,
    plot: str | None,
) -> None:
    """Show everything that happened to processes, in order.

    started is when the runner began the calculation, which is told with its end. released: given back by
    who had it; claimed: taken over, as another attempt where the number says so.

    \b
    Examples:
      grange process events 1234 --tree
      grange process events --campaign fcc-eos --plot running.svg
    """
    from grange.core import event
    from grange.core.overview import campaign_id
    from grange.core.process_tree import tree_ids
    from grange.core.reference import node_ids

    if (campaign is None) == (not processes):
        raise Refused("whose events?", "name processes, or a campaign by --campaign NAME")
    if plot is not None:
        if campaign is None:
            raise Refused("--plot draws a campaign", "name one by --campaign NAME")
        _plot(ctx, campaign, plot)
        return
    # one more than is shown tells that there are more
    most = None if everything else limit + 1
    with opened(ctx) as profile, profile.transaction() as cursor:
        if campaign is not None:
            found = event.events_of_campaign(cursor, campaign_id(cursor, campaign), most)
        else:
            ids = node_ids(cursor, list(processes))
            found = event.events(cursor, tree_ids(cursor, ids) if tree else ids, most)
    more = most is not None and len(found) == most
    found = found[1:] if more else found
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
        return
    if not found:
        click.echo("nothing has happened since events are recorded")
        return
    columns = (
        Column("time"), Column("id", right=True), Column("process", flexible=True), Column("event"),
        Column("attempt", right=True, optional=True), Column("worker", flexible=True, optional=True),
        Column("detail", flexible=True),
    )  # fmt: skip
    print_table(columns, map(_row, found))
    if more:
        click.echo("there are earlier events; --limit N or --all shows them", err=True)


def _row(one: Event) -> list[str | Cell]:
    return [
        f"{one.time.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3],
        str(one.process_id),
        one.process_label,
        Cell(one.kind, COLORS.get(one.kind)),
        str(one.attempt) if one.attempt else "",
        one.worker or "",
        one.detail or "",
    ]


def _plot(ctx: click.Context, campaign: str, path: str) -> None:
    from grange.cli.activity_plot import draw
    from grange.core.activity import activity
    from grange.core.overview import campaign_id

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = activity(cursor, campaign_id(cursor, campaign))
    if not found.times:
        raise Refused(f"nothing has happened in {campaign} yet", f"`grange campaign run {campaign}` runs it")
    draw(found, campaign, path)
    click.echo(f"written to {path}", err=True)
