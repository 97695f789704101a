"""A node in full, for people: what it is, how it ran, what it is linked with, its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import click

from grange.cli import words
from grange.cli.outcome import outcome, standing
from grange.cli.table import Cell, Column, print_fields, print_table
from grange.core import detail
from grange.core.database import Cursor
from grange.core.overview import UNFINISHED
from grange.summary import short_value, type_name

#: Links shown on each side by each index; --json has them all.
SHOWN_LINKS = 20

#: Lines of the log shown.
_LOG_LINES = 10


@dataclass(frozen=True, slots=True)
class Portrait:
    """All that is shown of a node; the document of `show --json`."""

    node: detail.NodeDetail
    process: detail.ProcessDetail | None
    arriving: detail.Neighbours
    leaving: detail.Neighbours
    files: list[detail.NodeFile]
    log: list[detail.LogLine]


def portrait(cursor: Cursor, node_id: int, limit: int | None) -> Portrait:
    """Look a node up, with at most so many links on each side."""
    node = detail.node_detail(cursor, node_id)
    return Portrait(
        node,
        detail.process_detail(cursor, node_id),
        detail.arriving(cursor, node_id, limit),
        detail.leaving(cursor, node_id, limit),
        detail.files(cursor, node.repository_metadata),
        detail.last_log_lines(cursor, node_id, _LOG_LINES),
    )


def show(found: Portrait, attributes: bool) -> None:
    """Print a portrait; attributes: with the attributes and extras in full."""
    node = found.node
    name = found.process.label if found.process else type_name(node.node_type)
    state = _standing(found.process) if found.process else Cell("")
    click.echo(
        f"{click.style(name, bold=True)} ({node.id})  {click.style(state.text, fg=state.color)}".rstrip()
    )
    print_fields(
        [*_node_fields(found), *(_process_fields(found.process) if found.process else ())], indent="  "
    )
    if attributes:
        _show_json("attributes", node.attributes)
        _show_json("extras", node.extras)
    if node.kind == "data":
        _show_links("created or returned by", found.arriving, ("create", "return"))
        _show_links("used by", found.leaving, ("input_calc", "input_work"))
    else:
        _show_links("called by", found.arriving, ("call_calc", "call_work"))
        _show_links("inputs", found.arriving, ("input_calc", "input_work"))
        _show_links("outputs", found.leaving, ("create", "return"))
        _show_links("calls", found.leaving, ("call_calc", "call_work"))
    show_files(found.files)
    if found.log:
        _heading("log")
        for line in found.log:
            click.echo(f"  {words.moment(line.time)}  {line.level.lower()}  {line.message}")


def show_files(files: list[detail.NodeFile]) -> None:
    """Print the paths and sizes of files."""
    if files:
        _heading("files")
        print_table(
            [Column("path", flexible=True), Column("size", right=True)],
            [(file.path, words.size(file.size)) for file in files],
            indent="  ",
        )


def _node_fields(found: Portrait) -> list[tuple[str, str]]:
    node = found.node
    return [
        ("label", node.label if not found.process or node.label != found.process.label else ""),
        ("description", node.description),
        ("value", short_value(node.node_type, node.attributes, 200) if node.kind == "data" else ""),
        ("uuid", str(node.uuid)),
        ("type", node.node_type),
        ("code", node.process_type or ""),
        ("created", words.moment(node.ctime) + (f" by {node.user}" if node.user else "")),
        ("computer", node.computer or ""),
        ("groups", ", ".join(node.groups)),
    ]


def _process_fields(process: detail.ProcessDetail) -> list[tuple[str, str | Cell]]:
    failed = bool(process.exit_status) or process.state in ("excepted", "killed")
    used = [
        f"{words.duration(process.cpu_s)} of CPU" if process.cpu_s is not None else "",
        f"{process.peak_memory_mb:,.0f} MiB of memory at most" if process.peak_memory_mb else "",
        f"on {process.host}" if process.host else "",
    ]
    call = f", call {process.ordinal}" if process.ordinal is not None else ""
    return [
        ("exit status", "" if process.exit_status is None else str(process.exit_status)),
        ("message", Cell(process.exit_message or "", "red" if failed else None)),
        ("campaign", f"{process.campaign}{call}" if process.campaign else ""),
        ("attempt", str(process.attempt) if process.attempt > 1 else ""),
        ("queue", process.queue or ""),
        ("has it" if process.state in UNFINISHED else "had it", process.worker or ""),
        ("waits for", words.plural(process.open_calls, "call") if process.open_calls else ""),
        ("reused from", "" if process.cached_from is None else str(process.cached_from)),
        ("tried again as", "" if process.superseded_by is None else str(process.superseded_by)),
        ("started", words.moment(process.started_at)),
        ("ended", words.moment(process.finished_at)),
        ("took", words.duration(process.wall_s)),
        ("used", ", ".join(part for part in used if part)),
    ]


def _standing(process: detail.ProcessDetail) -> Cell:
    return standing(
        process.state,
        process.exit_status,
        paused=process.paused,
        to_kill=process.to_kill,
        follows=process.cached_from is not None,
    )


def _show_links(heading: str, neighbours: detail.Neighbours, types: tuple[str, ...]) -> None:
    shown = [one for one in neighbours.shown if one.type in types]
    if not shown:
        return
    _heading(heading)
    columns = [
        Column("link", flexible=True), Column("id", right=True), Column("what"),
        Column("value or state", flexible=True), Column("label", flexible=True, optional=True),
    ]  # fmt: skip
    print_table(columns, [_link_row(one) for one in shown], indent="  ")
    more = sum(neighbours.totals.get(name, 0) for name in types) - len(shown)
    if more > 0:
        click.echo(f"  … {more:,} more; --json lists all")


def _link_row(one: detail.Neighbour) -> list[str | Cell]:
    if one.kind == "data":
        value: str | Cell = short_value(one.node_type, one.attributes, 120)
    else:
        value = outcome(one.state, one.exit_status) if one.state else ""
    label = one.label if one.label != one.process_label else ""
    return [one.link_label, str(one.id), one.process_label or type_name(one.node_type), value, label]


def _show_json(heading: str, value: dict[str, Any]) -> None:
    if value:
        _heading(heading)
        text = json.dumps(value, indent=2, ensure_ascii=False)
        click.echo("  " + text.replace("\n", "\n  "))


def _heading(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)
