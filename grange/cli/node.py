"""`grange node`: data, calculations and workflows as records, and their files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from grange.cli import node_hash, words
from grange.cli.listing import limit_options, pages, say_more
from grange.cli.opened import opened
from grange.cli.outcome import outcome
from grange.cli.refused import Refused
from grange.cli.table import Cell, Column, print_table

if TYPE_CHECKING:
    from grange.core.database import Cursor
    from grange.core.detail import NodeFile
    from grange.core.overview import NodeRow

_COLUMNS = (
    Column("id", right=True),
    Column("what", flexible=True),
    Column("value or state", flexible=True),
    Column("label", flexible=True),
    Column("created", optional=True),
    Column("uuid", optional=True),
)


#: Outputs that are looked into for files.
_OUTPUTS = 50


@click.group("node")
def command() -> None:
    """Look at nodes of the provenance graph and at their files.

    \b
    Examples:
      grange node list --type StructureData
      grange node cat 1234 aiida.out
    """


command.add_command(node_hash.command)


@command.command("list")
@click.option(
    "-t", "--type", "node_type", metavar="T", help="Only data, calculation, workflow, or of a type as Float."
)
@limit_options
@click.pass_context
def list_(ctx: click.Context, node_type: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """List nodes, the newest first.

    \b
    Examples:
      grange node list --type data --limit 5
      grange node list --type float --all --json
    """
    from grange.core import overview

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = pages(
            lambda count, before: overview.nodes(cursor, node_type, count, before),
            None if everything else limit,
        )
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(found)
            return
        rows = list(found)
        if not rows:
            click.echo("no such node" if node_type else "no node yet")
            return
        print_table(_COLUMNS, [_row(row) for row in rows])
        if not everything:
            say_more(overview.nodes_older(cursor, node_type, rows[-1].id), "node", "nodes")


@command.command()
@click.argument("node", metavar="ID|UUID|CAMPAIGN/CALL")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with all links.")
@click.pass_context
def show(ctx: click.Context, node: str, as_json: bool) -> None:
    """Show a node: attributes, extras, links, files.

    \b
    Example:
      grange node show 1234
    """
    from grange.cli import portrait
    from grange.core.reference import node_ids

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = portrait.portrait(
            cursor, node_ids(cursor, [node])[0], None if as_json else portrait.SHOWN_LINKS
        )
    if as_json:
        from grange.cli.machine import emit

        emit(found)
    else:
        portrait.show(found, attributes=True)


@command.command()
@click.argument("node", metavar="ID|UUID|CAMPAIGN/CALL")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def files(ctx: click.Context, node: str, as_json: bool) -> None:
    """List the files of a node.

    \b
    Example:
      grange node files 1234
    """
    with opened(ctx) as profile, profile.transaction() as cursor:
        node_id, found = _files(cursor, node)
        results = [] if as_json else _files_of_outputs(cursor, node_id)
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
    elif found:
        print_table(
            [
                Column("path", flexible=True),
                Column("size", right=True),
                Column("key", flexible=True, optional=True),
            ],
            [(file.path, words.size(file.size), file.key) for file in found],
        )
    else:
        click.echo(f"node {node_id} has no files")
    for output in results:
        click.echo(f"its output {output.link_label} ({output.node_id}) has {_names(output.files)}")


@command.command()
@click.argument("node", metavar="ID|UUID|CAMPAIGN/CALL")
@click.argument("path", required=False)
@click.option("--binary", is_flag=True, help="Also to a terminal.")
@click.pass_context
def cat(ctx: click.Context, node: str, path: str | None, binary: bool) -> None:
    """Write a file of a node, or of a calculation's outputs, to standard output.

    PATH may be left out where the node has one file.

    \b
    Examples:
      grange node cat 1234 stdout
      grange node cat 1234 wavefunction.bin > wavefunction.bin
    """
    with opened(ctx) as profile, profile.transaction() as cursor:
        file = _chosen(cursor, *_files(cursor, node), path)
        content = iter(profile.repository.stream(file.key, profile.index(cursor)))
        first = next(content, b"")
        if not binary and sys.stdout.isatty() and not _is_text(first):
            raise Refused(
                f"{file.path} ({words.size(file.size)}) is not text",
                f"write it to a file: grange node cat {node} {file.path} > FILE; or say --binary",
            )
        _write(first, content)


def _write(first: bytes, rest: Iterator[bytes]) -> None:
    out = sys.stdout.buffer
    out.write(first)
    for block in rest:
        out.write(block)
    out.flush()


def _files(cursor: Cursor, node: str) -> tuple[int, list[NodeFile]]:
    from grange.core import detail
    from grange.core.reference import node_ids

    node_id = node_ids(cursor, [node])[0]
    return node_id, detail.files(cursor, detail.node_detail(cursor, node_id).repository_metadata)


@dataclass(frozen=True, slots=True)
class _Output:
    """An output of a calculation that has files."""

    link_label: str
    node_id: int
    files: list[NodeFile]


def _files_of_outputs(cursor: Cursor, node_id: int) -> list[_Output]:
    """What a calculation created that has files: what its program wrote is there, not at itself."""
    from grange.core import detail

    created = [one for one in detail.leaving(cursor, node_id, _OUTPUTS).shown if one.type == "create"]
    found = (
        _Output(
            one.link_label,
            one.id,
            detail.files(cursor, detail.node_detail(cursor, one.id).repository_metadata),
        )
        for one in created
    )
    return [output for output in found if output.files]


def _chosen(cursor: Cursor, node_id: int, files: list[NodeFile], path: str | None) -> NodeFile:
    if path is None and len(files) == 1:
        return files[0]
    outputs = [] if any(file.path == path for file in files) else _files_of_outputs(cursor, node_id)
    chosen = [
        file for file in (*files, *(file for one in outputs for file in one.files)) if file.path == path
    ]
    if len(chosen) == 1:
        return chosen[0]
    if not files and not outputs:
        raise Refused(f"node {node_id} has no files", f"`grange node show {node_id}` shows what it has")
    what = (
        f"has no file {path!r}" if path else "has several files: say which" if files else "has no file itself"
    )
    shown = [f"its files: {_names(files)}"] if files else []
    shown += [f"of its output {one.link_label} ({one.node_id}): {_names(one.files)}" for one in outputs]
    raise Refused(f"node {node_id} {what}", "; ".join(shown))


def _names(files: list[NodeFile]) -> str:
    return ", ".join(file.path for file in files[:10]) + (", …" if len(files) > 10 else "")


def _is_text(content: bytes) -> bool:
    """Whether a terminal can show it: UTF-8 (cut anywhere) without control characters that move things."""
    if b"\0" in content or b"\x1b" in content:
        return False
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(content) - 3
    return True


def _row(row: NodeRow) -> list[Any]:
    from grange.summary import short_value, type_name

    if row.kind == "data":
        what, value = type_name(row.node_type), Cell(short_value(row.node_type, row.attributes, 120))
    else:
        what = row.process_label or type_name(row.node_type)
        value = outcome(row.state, row.exit_status) if row.state else Cell("")
    label = row.label if row.label != row.process_label else ""
    return [str(row.id), what, value, label, words.moment(row.ctime), str(row.uuid)]
