"""`grange process watch`: what happens to processes, as it happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli.opened import opened
from grange.cli.process_events import COLORS

if TYPE_CHECKING:
    from grange.core.event import Event

#: Seconds between looks, where no news come.
_LOOK_S = 0.5


@click.command("watch")
@click.argument("processes", metavar="PROCESS…", nargs=-1, required=True)
@click.option("--alone", is_flag=True, help="Without what they have called.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def command(ctx: click.Context, processes: tuple[str, ...], alone: bool, as_json: bool) -> None:
    """Show what happens to processes and all that they call, a line each, until they have ended.

    It begins with what has happened so far. Ctrl-C ends the watching, not the processes.

    \b
    Examples:
      grange process watch 1234
      grange process watch fcc-eos/17 --json | jq .kind
    """
    from grange.cli.machine import emit_lines
    from grange.core.event import events_since
    from grange.core.process_control import find_open
    from grange.core.process_tree import tree_ids
    from grange.core.reference import node_ids
    from grange.core.wakeups import Wakeups

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            roots = node_ids(cursor, list(processes))
        wakeups = Wakeups(profile)
        last: dict[int, int] = {}
        while True:
            with profile.transaction() as cursor:
                # first whether they have ended: what happens after that is seen by the next statement
                going = find_open(cursor, roots)
                ids = roots if alone else tree_ids(cursor, roots)
                found = events_since(cursor, {id_: last.get(id_, 0) for id_ in ids})
            if as_json:
                emit_lines(found)
            else:
                for one in found:
                    click.echo(_line(one))
            last.update((one.process_id, one.id) for one in found)
            if not going:
                return
            wakeups.wait(_LOOK_S)


def _line(one: Event) -> str:
    attempt = f" (attempt {one.attempt})" if one.attempt > 1 else ""
    kind = click.style(one.kind.replace("_", " "), fg=COLORS.get(one.kind))
    detail = f": {one.detail}" if one.detail else ""
    return (
        f"{one.time.astimezone():%H:%M:%S}  {one.process_label} ({one.process_id})  {kind}{attempt}{detail}"
    )
