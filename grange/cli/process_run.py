"""`grange process run`."""

from __future__ import annotations

import click

from grange.cli.opened import opened
from grange.cli.refused import Refused


@click.command("run")
@click.argument("processes", metavar="PROCESS…", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a process.")
@click.pass_context
def command(ctx: click.Context, processes: tuple[str, ...], as_json: bool) -> None:
    """Go on with processes here, until they have ended; workflows with all that they call.

    For what a script has left that was interrupted, and where no daemon runs. What somebody else is at is
    waited for. Ctrl-C lets go of it again: nothing is lost.

    \b
    Examples:
      grange process run 1234
      grange process run 1234 1240
    """
    from grange.core.local_run import go_on_here
    from grange.core.reference import node_ids

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            ids = node_ids(cursor, list(processes))
            cursor.execute(
                "SELECT node_id, exit_message FROM process WHERE node_id = ANY(%s) AND paused"
                " AND state IN ('created', 'waiting', 'running') LIMIT 1",
                (ids,),
            )
            paused = cursor.fetchone()
        if paused is not None:
            raise Refused(
                f"process {paused[0]} is paused: {paused[1] or 'no reason is given'}",
                f"`grange process play {paused[0]}` lets it go on",
            )
        futures = go_on_here(profile, ids)
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(
                {
                    "id": future.id,
                    "process_label": future.process_label,
                    "state": future.state.value,
                    "exit_status": future.exit_status,
                    "exit_message": future.exit_message,
                }
                for future in futures
            )
        else:
            for future in futures:
                click.echo(future.said())
    if not all(future.is_finished_ok for future in futures):
        ctx.exit(1)
