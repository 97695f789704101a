"""`grange process status`: the tree of calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.outcome import outcomes_line, standing

if TYPE_CHECKING:
    from grange.core.process_tree import Branch

#: When so many lines are shown, no further level is looked at.
_LINES = 2000


@click.command("status")
@click.argument("processes", metavar="PROCESS…", nargs=-1, required=True)
@click.option("-m", "--max-depth", type=click.IntRange(min=0), metavar="N", help="So many levels of calls.")
@click.option(
    "-w", "--width", type=click.IntRange(min=1), default=20, show_default=True, metavar="N",
    help="So many calls of one workflow: those under way or failed first; the others are counted.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document for each process.")
@click.pass_context
def command(
    ctx: click.Context, processes: tuple[str, ...], max_depth: int | None, width: int, as_json: bool
) -> None:
    """Show how processes stand, and the tree of what they have called.

    \b
    Examples:
      grange process status 1234
      grange process status fcc-eos/17 --max-depth 1 --width 100
    """
    from grange.core.process_tree import as_document, call_trees
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        ids = list(dict.fromkeys(node_ids(cursor, list(processes))))
        trees = call_trees(cursor, ids, depth=max_depth, width=width, lines=_LINES)
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(as_document(tree) for tree in trees)
        return
    for tree in trees:
        for line in _lines(tree, "", ""):
            click.echo(line)


def _lines(branch: Branch, head: str, indent: str) -> Iterator[str]:
    """A branch and what lies below it. head: what stands before it; indent: before what lies below."""
    yield head + _said(branch)
    last = len(branch.shown) - 1 if not branch.more else len(branch.shown)
    for number, call in enumerate(branch.shown):
        end = number == last
        yield from _lines(call, indent + ("└── " if end else "├── "), indent + ("    " if end else "│   "))
    if branch.more:
        count = sum(branch.more.values())
        dots = f"… {count:,} more" if branch.shown else words.plural(count, "call")
        yield f"{indent}└── {dots}: {outcomes_line(branch.more)}"


def _said(branch: Branch) -> str:
    """A branch in a line."""
    is_open = branch.finished_at is None
    state = standing(
        branch.state, branch.exit_status,
        paused=branch.paused, to_kill=branch.to_kill, follows=branch.cached_from is not None,
    )  # fmt: skip
    parts = [
        f"{click.style(branch.process_label, bold=True)} ({branch.id})",
        branch.label if branch.label != branch.process_label else "",
        click.style(state.text, fg=state.color),
        words.duration(branch.wall_s),
        f"{branch.open_children:,} of {words.plural(branch.calls, 'call')} open"
        if is_open and branch.open_children
        else "",
        "" if branch.cached_from is None else f"{'equal to' if is_open else 'from'} {branch.cached_from}",
        "" if branch.superseded_by is None else f"tried again as {branch.superseded_by}",
        (branch.exit_message or "").partition("\n")[0],
    ]
    return "  ".join(part for part in parts if part)
