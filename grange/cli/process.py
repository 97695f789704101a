"""`grange process`: what ran, runs, or will run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.listing import limit_options, pages, say_more
from grange.cli.opened import opened
from grange.cli.outcome import outcome
from grange.cli.refused import Refused
from grange.cli.table import Cell, Column, print_table

if TYPE_CHECKING:
    from grange.core.overview import ProcessRow

_STATES = ("ok", "failed", "finished", "excepted", "killed", "running", "waiting", "created")

_COLUMNS = (
    Column("id", right=True),
    Column("process", flexible=True),
    Column("state"),
    Column("campaign", flexible=True),
    Column("call", right=True, optional=True),
    Column("created", optional=True),
    Column("took", right=True, optional=True),
    Column("message", flexible=True),
)


@click.group("process")
def command() -> None:
    """Look at calculations and workflows.

    \b
    Examples:
      grange process list --failed
      grange process show 1234
      grange process kill 1234
    """


@command.command("list")
@click.option(
    "-S",
    "--state",
    "states",
    type=click.Choice(_STATES),
    multiple=True,
    help="Only in this state; repeatable.",
)
@click.option("-C", "--campaign", metavar="NAME", help="Only of this campaign.")
@click.option("--failed", is_flag=True, help="Only what failed and was not tried again.")
@limit_options
@click.pass_context
def list_(
    ctx: click.Context,
    states: tuple[str, ...],
    campaign: str | None,
    failed: bool,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """List processes, the newest first.

    \b
    Examples:
      grange process list -S running -S waiting
      grange process list --campaign fcc-eos --failed --all --json
    """
    from grange.core import overview

    with opened(ctx) as profile, profile.transaction() as cursor:
        campaign_id = None if campaign is None else overview.campaign_id(cursor, campaign)
        which = overview.ProcessFilter(states or None, campaign_id, failed)
        found = pages(
            lambda count, before: overview.processes(cursor, which, count, before),
            None if everything else limit,
        )
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(found)
            return
        rows = list(found)
        if not rows:
            click.echo(_nothing(campaign, states, failed))
            return
        print_table(_COLUMNS, [_row(row) for row in rows])
        if not everything:
            say_more(overview.processes_older(cursor, which, rows[-1].id), "process", "processes")


def _nothing(campaign: str | None, states: tuple[str, ...], failed: bool) -> str:
    where = f" in {campaign}" if campaign else ""
    if failed and not states:
        return f"nothing has failed{where}"
    return f"no process{where} is {' or '.join(states)}" if states else f"no process{where} yet"


@command.command()
@click.argument("process", metavar="ID|UUID|CAMPAIGN/CALL")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with all links.")
@click.pass_context
def show(ctx: click.Context, process: str, as_json: bool) -> None:
    """Show how a process ran, its inputs, outputs and files.

    PROCESS is an id, a uuid or its first digits, or a campaign and the number of a call.

    \b
    Examples:
      grange process show 1234
      grange process show fcc-eos/17
    """
    from grange.cli import portrait
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        node_id = node_ids(cursor, [process])[0]
        found = portrait.portrait(cursor, node_id, None if as_json else portrait.SHOWN_LINKS)
    if found.node.kind == "data":
        raise Refused(f"node {node_id} is data, not a process", f"`grange node show {node_id}` shows it")
    if as_json:
        from grange.cli.machine import emit

        emit(found)
    else:
        portrait.show(found, attributes=False)


@command.command()
@click.argument("processes", metavar="ID|UUID|CAMPAIGN/CALL…", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Only say how many would be ended.")
@click.pass_context
def kill(ctx: click.Context, processes: tuple[str, ...], dry_run: bool) -> None:
    """End processes that have not ended, here or on their computer.

    What waits never starts; what runs gets SIGTERM and then SIGKILL, and what it left is kept.

    \b
    Examples:
      grange process kill 1234
      grange process kill fcc-eos/17 fcc-eos/18
    """
    from grange.core import kill as killing
    from grange.core import process as rows
    from grange.core.reference import node_ids

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            found = rows.find_open(cursor, node_ids(cursor, list(processes)))
        ids = [process.node_id for process in found]
        if dry_run or not ids:
            click.echo(
                f"{words.plural(len(ids), 'process', 'processes')} would be ended"
                if ids
                else "nothing is left to end"
            )
            return
        count = killing.kill(profile, ids=ids, progress=True)
    click.echo(f"{words.plural(count, 'process', 'processes')} ended or about to end")


def _row(row: ProcessRow) -> list[str | Cell]:
    state = outcome(row.state, row.exit_status)
    notes = [
        f"reused from {row.cached_from}" if row.cached_from is not None else "",
        f"tried again as {row.superseded_by}" if row.superseded_by is not None else "",
        row.exit_message or "",
    ]
    return [
        str(row.id),
        row.process_label,
        state,
        row.campaign or "",
        "" if row.ordinal is None else str(row.ordinal),
        words.moment(row.ctime),
        words.duration(row.wall_s),
        "; ".join(note for note in notes if note),
    ]
