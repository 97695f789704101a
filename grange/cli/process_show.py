"""`grange process show`."""

from __future__ import annotations

import click

from grange.cli.opened import opened
from grange.cli.refused import Refused


@click.command("show")
@click.argument("process", metavar="PROCESS")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with all links.")
@click.pass_context
def command(ctx: click.Context, process: str, as_json: bool) -> None:
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
