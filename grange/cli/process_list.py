"""`grange process list`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.listing import limit_options, pages, say_more
from grange.cli.opened import opened
from grange.cli.outcome import standing
from grange.cli.table import Cell, Column, print_table
from grange.core.process_list import STATES, ProcessFilter

if TYPE_CHECKING:
    from grange.core.process_list import ProcessRow

_COLUMNS = (
    Column("id", right=True),
    Column("process", flexible=True),
    Column("state"),
    Column("campaign", flexible=True),
    Column("call", right=True, optional=True),
    Column("called by", right=True, optional=True),
    Column("created", optional=True),
    Column("took", right=True, optional=True),
    Column("message", flexible=True),
)


@click.command("list")
@click.option(
    "-S", "--state", "states", type=click.Choice(STATES), multiple=True,
    help="Only in this state; repeatable.",
)  # fmt: skip
@click.option("-C", "--campaign", metavar="NAME", help="Only of this campaign.")
@click.option("-L", "--process-label", metavar="NAME", help="Only of this function or class.")
@click.option("--called-by", metavar="PROCESS", help="Only what this workflow called.")
@click.option("--roots", is_flag=True, help="Only what no workflow called.")
@click.option("--failed", is_flag=True, help="Only what failed and was not tried again.")
@click.option("--paused", is_flag=True, help="Only what waits for `grange process play`.")
@limit_options
@click.pass_context
def command(
    ctx: click.Context,
    states: tuple[str, ...],
    campaign: str | None,
    process_label: str | None,
    called_by: str | None,
    roots: bool,
    failed: bool,
    paused: bool,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """List processes, the newest first.

    \b
    Examples:
      grange process list -S running -S waiting
      grange process list --roots
      grange process list --campaign fcc-eos --failed --all --json
    """
    from grange.core.overview import campaign_id
    from grange.core.process_list import processes, processes_older
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        which = ProcessFilter(
            states=states or None,
            campaign_id=None if campaign is None else campaign_id(cursor, campaign),
            failed=failed,
            paused=paused,
            roots=roots,
            called_by=None if called_by is None else node_ids(cursor, [called_by])[0],
            process_label=process_label,
        )
        found = pages(
            lambda count, before: processes(cursor, which, count, before), None if everything else limit
        )
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(found)
            return
        rows = list(found)
        if not rows:
            click.echo(_nothing(campaign, which))
            return
        print_table(_COLUMNS, [_row(row) for row in rows])
        if not everything:
            say_more(processes_older(cursor, which, rows[-1].id), "process", "processes")


def _nothing(campaign: str | None, which: ProcessFilter) -> str:
    where = f" in {campaign}" if campaign else ""
    if which.called_by is not None or which.process_label is not None or which.roots:
        return f"no process{where} is so"
    if which.failed and not which.states:
        return f"nothing has failed{where}"
    if which.paused:
        return f"nothing is paused{where}"
    return f"no process{where} is {' or '.join(which.states)}" if which.states else f"no process{where} yet"


def _row(row: ProcessRow) -> list[str | Cell]:
    is_open = row.finished_at is None
    follows = row.cached_from is not None
    notes = [
        f"{'equal to' if is_open else 'reused from'} {row.cached_from}" if follows else "",
        f"tried again as {row.superseded_by}" if row.superseded_by is not None else "",
        words.plural(row.open_calls, "open call") if is_open and row.open_calls else "",
        row.exit_message or "",
    ]
    return [
        str(row.id),
        row.process_label,
        standing(row.state, row.exit_status, paused=row.paused, to_kill=row.to_kill, follows=follows),
        row.campaign or "",
        "" if row.ordinal is None else str(row.ordinal),
        "" if row.parent_id is None else str(row.parent_id),
        words.moment(row.ctime),
        words.duration(row.wall_s),
        "; ".join(note for note in notes if note),
    ]
