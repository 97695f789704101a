"""Allocations and policies as documents for machines and as tables and lines for people."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.table import Cell, Column, print_fields, print_table

if TYPE_CHECKING:
    from grange.core.allocation import Allocation
    from grange.core.allocation_policy import StoredPolicy
    from grange.core.allocation_watch import WatchEvent
    from grange.farm.allocation_policy import Policy

_COLORS = {"submitting": "cyan", "queued": "cyan", "running": "green", "failed": "red", "cancelled": "yellow"}
_EVENT_COLORS = {"trouble": "red", "refused": "red", "held": "yellow", "started": "green"}


@dataclass(frozen=True, slots=True)
class AllocationReport:
    """The document of `grange allocation list --json` and `show --json`.

    workers: what workers say of themselves; None where the computer was not asked. Units: seconds.
    """

    id: int
    computer: str
    job_id: str | None
    name: str
    state: str
    reason: str
    nodes: int
    cores: int | None
    walltime_s: int
    idle_s: int
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    elapsed_s: float | None
    left_s: float | None
    workers: list[dict[str, Any]] | None


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """The document of `grange allocation scale --json`. backlog: what waits to be computed there now."""

    computer: str
    policy: Policy
    held: str
    waiting_tasks: int
    task_s: float | None


def report(one: Allocation, workers: list[dict[str, Any]] | None) -> AllocationReport:
    """The document of an allocation."""
    return AllocationReport(
        one.id, one.computer, one.job_id, one.name, one.state, one.reason, one.nodes, one.cores,
        one.walltime_s, one.idle_s, one.submitted_at, one.started_at, one.ended_at, one.elapsed_s,
        one.left_s, workers,
    )  # fmt: skip


def _state(one: Allocation) -> Cell:
    return Cell("stopping" if one.is_stopping else one.state, _COLORS.get(one.state))


def _live(workers: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    return [worker for worker in workers if worker.get("state") == "running"]


def print_allocations(found: Sequence[Allocation], workers: Mapping[int, list[dict[str, Any]]]) -> None:
    """Print allocations, one a line; workers: those that are known, by the id of their allocation."""
    columns = [
        Column("id", right=True), Column("computer"), Column("job", right=True), Column("state"),
        Column("nodes", right=True), Column("cores", right=True), Column("time", flexible=True),
        Column("workers", right=True), Column("reason", flexible=True),
    ]  # fmt: skip
    print_table(columns, [_row(one, workers.get(one.id)) for one in found])


def _row(one: Allocation, workers: list[dict[str, Any]] | None) -> list[str | Cell]:
    return [
        str(one.id),
        one.computer,
        one.job_id or "",
        _state(one),
        str(one.nodes),
        "" if one.cores is None else str(one.cores),
        _time(one),
        "" if workers is None else str(len(_live(workers))),
        "" if one.is_stopping else one.reason,
    ]


def _time(one: Allocation) -> str:
    """What is left of one that runs, what is asked for by one that waits, how long one ran that has ended."""
    if one.state == "running":
        return f"{words.duration(one.left_s)} left"
    if one.is_open:
        return f"{words.duration(one.walltime_s)} wanted"
    return f"ran {words.duration(one.elapsed_s)}" if one.elapsed_s else ""


def show(one: Allocation, workers: list[dict[str, Any]]) -> None:
    """Print one allocation and its workers."""
    state = _state(one)
    click.echo(f"{click.style(f'allocation {one.id}', bold=True)}  {click.style(state.text, fg=state.color)}")
    fields: list[tuple[str, str | Cell]] = [
        ("computer", one.computer),
        ("job", f"{one.job_id or '?'}, {one.name}"),
        ("reason", Cell(one.reason, "red" if one.state == "failed" else None)),
        ("nodes", f"{one.nodes}" + (f", {one.cores} cores" if one.cores else "")),
        ("walltime", words.duration(one.walltime_s)),
        ("left", words.duration(one.left_s) if one.state == "running" else ""),
        ("ends after", f"{words.duration(one.idle_s)} without work"),
        ("submitted", words.moment(one.submitted_at)),
        ("started", words.moment(one.started_at)),
        ("ended", words.moment(one.ended_at)),
    ]
    print_fields(fields, indent="  ")
    if workers:
        click.secho("\nworkers", bold=True)
        columns = [
            Column("node"), Column("state"), Column("cores", right=True), Column("since", optional=True),
            Column("reason", flexible=True),
        ]  # fmt: skip
        print_table(columns, [_worker(worker) for worker in workers], indent="  ")


def _worker(worker: dict[str, Any]) -> list[str | Cell]:
    began = worker.get("began")
    since = datetime.fromtimestamp(began).astimezone() if isinstance(began, int | float) else None
    return [
        str(worker.get("node", "")),
        str(worker.get("state", "")),
        str(worker.get("cores", "")),
        words.moment(since),
        str(worker.get("reason", "")),
    ]


def print_logs(logs: Mapping[str, bytes], shown: dict[str, int]) -> None:
    """Print what is new in files that grow, below their names; shown: how much of each was printed."""
    for name, content in logs.items():
        new = content[shown.get(name, 0) :]
        if new:
            click.secho(f"{name}:", bold=True)
            click.echo(new.decode(errors="replace").rstrip("\n"))
        shown[name] = len(content)


def held(stored: StoredPolicy) -> str:
    """Why nothing is started there, and until when; nothing where something is."""
    from grange.core.allocation_watch import held_text

    return held_text(stored) if stored.policy.held_until_s > time.time() else ""


def show_policy(report: PolicyReport) -> None:
    """Print how many allocations a computer should have."""
    policy = report.policy
    cores = f", {policy.cores} cores" if policy.cores_per_node else ""
    each = f", about {words.duration(report.task_s)} each" if report.task_s is not None else ""
    click.secho(report.computer, bold=True)
    print_fields(
        [
            ("allocations", f"{policy.min_allocations} to {policy.max_allocations}"),
            ("each", f"{words.plural(policy.nodes, 'node')}{cores}, for {words.duration(policy.walltime_s)}"),
            ("ends after", f"{words.duration(policy.idle_s)} without work"),
            ("another for", f"{words.plural(policy.backlog, 'task')} that would have to wait"),
            ("waiting now", f"{words.plural(report.waiting_tasks, 'task')}{each}"),
            ("held", Cell(report.held, "red")),
        ],
        indent="  ",
    )


def say_event(event: WatchEvent) -> None:
    """Print a line for a person."""
    said = click.style(event.message, fg=_EVENT_COLORS.get(event.event))
    click.echo(f"{words.moment(event.time)}  {event.computer}  {said}")


def emit_event(event: WatchEvent) -> None:
    """Print a JSON document a line."""
    from grange.cli.machine import emit_lines

    emit_lines([event])
