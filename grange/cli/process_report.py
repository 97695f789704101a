"""`grange process report`: what processes have to say."""

from __future__ import annotations

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.core.log import LEVELS

_COLORS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


@click.command("report")
@click.argument("processes", metavar="PROCESS…", nargs=-1, required=True)
@click.option(
    "-l", "--levelname", type=click.Choice(LEVELS, case_sensitive=False), default="REPORT",
    show_default=True, help="The lowest level.",
)  # fmt: skip
@click.option("-m", "--max-depth", type=click.IntRange(min=0), metavar="N", help="So many levels of calls.")
@click.option("-i", "--indent-size", type=click.IntRange(min=0), default=2, show_default=True, metavar="N")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="The last so many lines.",
)
@click.option("--all", "everything", is_flag=True, help="No limit.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def command(
    ctx: click.Context,
    processes: tuple[str, ...],
    levelname: str,
    max_depth: int | None,
    indent_size: int,
    limit: int,
    everything: bool,
    as_json: bool,
) -> None:
    """Show what processes and all that they have called reported, and how what failed ended.

    \b
    Examples:
      grange process report 1234
      grange process report 1234 --levelname error --all
    """
    from grange.core.log import reports
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        ids = node_ids(cursor, list(processes))
        # one more than is shown tells that there are more
        most = None if everything else limit + 1
        found = reports(cursor, ids, least=levelname.upper(), depth=max_depth, limit=most)
    more = most is not None and len(found) == most
    found = found[1:] if more else found
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
        return
    if not found:
        click.echo("nothing was reported")
    for line in found:
        indent = " " * (indent_size * line.depth)
        head = f"{indent}{words.moment(line.time)} [{line.id} {line.process_label}] "
        first, *rest = line.message.splitlines() or [""]
        level = "" if line.level == "REPORT" else f"{line.level.lower()}: "
        click.echo(head + click.style(level + first, fg=_COLORS.get(line.level)))
        for other in rest:
            click.echo(f"{indent}  {other}")
    if more:
        click.echo("there are earlier lines; --limit N or --all shows them", err=True)
