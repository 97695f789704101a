"""`grange node hash`, and `grange caching why`: what makes nodes equal, and who was answered by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.outcome import outcome
from grange.cli.table import Cell, Column, print_fields, print_table

if TYPE_CHECKING:
    from grange.core.likeness import Difference, Likeness

#: Of a hash as people compare it.
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class Explanation:
    """The document of --json."""

    process: Likeness
    compared_with: Likeness | None
    differences: list[Difference]
    said: str


@click.command("hash")
@click.argument("node", metavar="ID|UUID|CAMPAIGN/CALL")
@click.argument("other", metavar="[OTHER]", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, node: str, other: str | None, as_json: bool) -> None:
    """Show what a node is compared by, and why a process was, or was not, answered by an equal one.

    Two processes are equal when their code and the contents of all their inputs are. With OTHER, a second
    process, it is shown what differs; without it, and where nothing is equal, the most alike is looked for.

    \b
    Examples:
      grange node hash 1234
      grange caching why fcc-eos/3
      grange caching why fcc-eos/3 fcc-eos-again/3
    """
    from grange.core import likeness
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        ids = node_ids(cursor, [node] if other is None else [node, other])
        data = likeness.data_hash(cursor, ids[0]) if other is None else None
        if data is not None:
            if as_json:
                from grange.cli.machine import emit

                emit(data)
            else:
                click.echo(data.hash or f"node {data.id} was stored without a hash")
            return
        process = likeness.likeness(cursor, ids[0])
        if other is not None:
            compared: Likeness | None = likeness.likeness(cursor, ids[1])
            assert compared is not None
            differences = likeness.differences(process, compared)
        else:
            found = None if process.equal or process.cached_from else likeness.most_alike(cursor, process)
            compared, differences = found if found is not None else (None, [])
    explanation = Explanation(process, compared, differences, _said(process, compared, differences))
    if as_json:
        from grange.cli.machine import emit

        emit(explanation)
    else:
        _show(explanation)


def _said(process: Likeness, compared: Likeness | None, differences: list[Difference]) -> str:
    """The verdict, in a sentence or two."""
    if process.cached_from is not None:
        is_open = process.state in ("created", "waiting", "running")
        how = "waits for the equal process" if is_open else "was answered by the equal process"
        return f"it {how} {process.cached_from}"
    said = []
    if process.key is None:
        said.append("it is compared with no other")
    elif not process.uses_cache:
        said.append(
            "no other was to answer it: caching was off for it, it was made again by a retry, or an equal "
            "one that it had waited for failed"
        )
    elif process.equal:
        said.append(
            "it was computed, because none of the equal ones could answer it when it began"
            if process.state != "created"
            else "it has not begun"
        )
    else:
        said.append("no other process has the same key")
    if compared is not None and not differences:
        said.append(f"process {compared.id} has the same code and inputs")
    elif compared is not None:
        what = ", ".join(difference.what for difference in differences)
        said.append(f"process {compared.id} differs in {what}")
    if not process.answers:
        said.append("it answers no other: it failed in a way that says nothing of others, or was invalidated")
    return "; ".join(said)


def _show(found: Explanation) -> None:
    process = found.process
    state = outcome(process.state, process.exit_status)
    name = click.style(process.label, bold=True)
    click.echo(f"{name} ({process.id})  {click.style(state.text, fg=state.color)}")
    print_fields(
        [
            ("key", process.key or "none"),
            ("code", f"{process.process_type}, {process.fingerprint or 'without a fingerprint'}"),
            *((f"input {one.label}", f"{one.hash[:_SHOWN]}  node {one.node_id}") for one in process.inputs),
        ],
        indent="  ",
    )
    if process.equal:
        click.echo(f"  equal: {words.plural(len(process.equal), 'process', 'processes')}")
        print_table(
            (Column("id", right=True), Column("state"), Column("note", flexible=True)),
            [
                (
                    str(one.id),
                    outcome(one.state, one.exit_status),
                    f"answered by {one.cached_from}"
                    if one.cached_from
                    else ""
                    if one.valid
                    else "answers no other",
                )
                for one in process.equal
            ],
            indent="    ",
        )
    if found.differences:
        assert found.compared_with is not None
        print_table(
            (Column("what differs"), Column(f"of {process.id}"), Column(f"of {found.compared_with.id}")),
            [(one.what, Cell(_short(one.one)), Cell(_short(one.other))) for one in found.differences],
            indent="  ",
        )
    click.echo(f"  {found.said}")


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:_SHOWN] if len(value) == 64 else value
