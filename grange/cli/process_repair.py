"""`grange process repair`: what nobody owns and nobody would go on with."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.table import Column, print_table

#: Ids that are shown of each kind.
_SHOWN = 5


@click.command("repair")
@click.option("--dry-run", is_flag=True, help="Only show what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Find processes that no worker owns or that wait for nothing, and set them right.

    It may be run while others work, and as often as you like. A daemon does the most frequent of it by
    itself: what a dead worker had is given to others.

    \b
    Examples:
      grange process repair --dry-run
      grange process repair
    """
    from grange.core import repair

    with opened(ctx) as profile:
        if dry_run:
            with profile.transaction() as cursor:
                faults = repair.find_faults(cursor)
        else:
            faults = repair.repair(profile)
    if as_json:
        from grange.cli.machine import emit

        emit(faults)
        return
    if not faults:
        click.echo("nothing is wrong")
        return
    columns = (
        Column("count", right=True), Column("what is wrong", flexible=True),
        Column("to do" if dry_run else "done"), Column("processes", flexible=True),
    )  # fmt: skip
    print_table(
        columns,
        [
            (
                f"{len(fault.ids):,}",
                fault.what,
                fault.repair,
                ", ".join(map(str, fault.ids[:_SHOWN])) + (" …" if len(fault.ids) > _SHOWN else ""),
            )
            for fault in faults
        ],
    )
    if dry_run:
        count = sum(len(fault.ids) for fault in faults)
        click.echo(f"`grange process repair` sets {words.plural(count, 'process', 'processes')} right")
