"""`grange status`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli import outcome, words
from grange.cli.opened import home_of, is_set_up, opened
from grange.cli.table import Cell, Column, print_fields, print_table

if TYPE_CHECKING:
    from grange.core.daemon_client import DaemonStatus
    from grange.core.overview import CampaignSummary, Totals


@dataclass(frozen=True, slots=True)
class Status:
    """What `grange status --json` says; computers by label, with their states, allocations likewise, with how
    many are in the queue or run; daemons of all hosts; locked: by whom and why. Units: bytes."""

    home: str
    set_up: bool
    database: str | None = None
    was_running: bool | None = None
    store: str | None = None
    spool_leftovers: int = 0
    totals: Totals | None = None
    campaigns_under_way: tuple[CampaignSummary, ...] = ()
    computers: dict[str, str] = field(default_factory=dict)
    allocations: dict[str, int] = field(default_factory=dict)
    daemons: tuple[DaemonStatus, ...] = ()
    locked: str | None = None


@click.command("status")
@click.option("--exact", is_flag=True, help="Count everything, also where that takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, exact: bool, as_json: bool) -> None:
    """Show where everything is, how much there is, and what is under way.

    A sleeping database is started for the question and goes back to sleep by itself. Where nothing was
    ever computed, nothing is made.

    \b
    Example:
      grange status
    """
    status = _look(ctx, home_of(ctx), exact)
    if as_json:
        from grange.cli.machine import emit

        emit(status)
    else:
        _show(status)


def _look(ctx: click.Context, home: Path, exact: bool) -> Status:
    if not is_set_up(home):
        return Status(str(home), set_up=False)
    from grange.core import overview, profile_lock
    from grange.core.computer import list_computers
    from grange.core.daemon_client import DaemonClient
    from grange.core.file_store import store_place
    from grange.core.profile import embedded_status

    before = embedded_status(home)
    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            totals = overview.totals(cursor, exact)
            under_way = overview.campaigns_under_way(cursor)
            computers = list_computers(cursor, user_id=profile.user_id)
            locked = profile_lock.find(cursor)
        return Status(
            str(home),
            set_up=True,
            database=profile.config.database,
            was_running=None if profile.server is None else before is not None and before.running,
            store=store_place(home, profile.config),
            spool_leftovers=_entries(home / "spool"),
            totals=totals,
            campaigns_under_way=tuple(under_way),
            computers={line.label: line.state for line in computers},
            allocations={line.label: line.open_allocations for line in computers if line.open_allocations},
            daemons=tuple(DaemonClient(profile).get_statuses()),
            locked=None if locked is None else str(locked),
        )


def _show(status: Status) -> None:
    if status.totals is None:
        print_fields([("profile", status.home), ("state", "not set up: nothing has been computed here yet")])
        click.echo("\nThe first campaign, or `gr.open()` in Python, sets it up by itself.")
        return
    totals = status.totals
    about = "" if totals.exact else "about "
    left = status.spool_leftovers
    spool = f"{words.plural(left, 'folder')} of campaigns that run or were interrupted" if left else "empty"
    print_fields(
        [
            ("profile", status.home),
            ("database", f"{_database(status)}, {words.size(totals.database_bytes)}"),
            ("store", f"{status.store}: {_store(totals, about)}"),
            ("spool", spool),
            ("nodes", f"{about}{totals.nodes:,}"),
            ("processes", f"{about}{totals.processes:,}" + _outcomes(totals)),
            ("computers", _computers(status)),
            ("daemon", "; ".join(map(_daemon, status.daemons)) or "none"),
            ("lock", Cell(status.locked or "", "yellow")),
        ]
    )
    if status.campaigns_under_way:
        click.echo()
        columns = [
            Column("campaign under way", flexible=True),
            Column("done", right=True),
            Column("", optional=True),
            Column("what is left or failed", flexible=True),
            Column("on"),
            Column("run by", optional=True),
        ]
        print_table(columns, [_campaign_row(campaign) for campaign in status.campaigns_under_way])


def _database(status: Status) -> str:
    assert status.totals is not None
    version = f"PostgreSQL {status.totals.server_version.split()[0]}"
    if status.was_running is None:
        return f"{version} at {status.database}"
    return (
        f"embedded {version}, {'running' if status.was_running else 'was asleep, started for this question'}"
    )


def _store(totals: Totals, about: str) -> str:
    contents = f"{words.plural(totals.packs, 'object')}, {about}{words.plural(totals.blobs, 'content')}"
    if totals.stored_bytes is None or not totals.blobs:
        return contents
    return f"{contents}, {words.size(totals.stored_bytes)} ({words.size(totals.content_bytes)} unpacked)"


def _outcomes(totals: Totals) -> str:
    line = outcome.outcomes_line(totals.outcomes)
    return f": {line}" if line else ""


def _computers(status: Status) -> str:
    """All of them; of those that are not simply there to be used the reason, and how many allocations."""
    said = []
    for label, state in status.computers.items():
        count = status.allocations.get(label, 0)
        notes = [state] if state != "enabled" else []
        notes += [words.plural(count, "allocation")] if count else []
        said.append(f"{label} ({', '.join(notes)})" if notes else label)
    return ", ".join(said)


def _daemon(one: DaemonStatus) -> str:
    there, wanted = len(one.workers), one.daemon.workers_wanted
    workers = words.plural(wanted, "worker") if there == wanted else f"{there} of {wanted} workers"
    dispatchers = f", {words.plural(len(one.dispatchers), 'dispatcher')}" if one.dispatchers else ""
    return f"{workers}{dispatchers} on {one.daemon.host}"


def _campaign_row(campaign: CampaignSummary) -> list[str]:
    done = campaign.total - campaign.unfinished
    left = {name: count for name, count in campaign.outcomes.items() if name != "ok"}
    share = outcome.plain_bar(campaign.outcomes, 20)
    return [
        campaign.name,
        f"{done:,} of {campaign.total:,}",
        share,
        outcome.plain_line(left),
        campaign.computer or "this machine",
        campaign.run_by or "nobody",
    ]


def _entries(folder: Path) -> int:
    """How many folders with something in them the spool holds; none where there is no spool."""
    try:
        return sum(1 for entry in folder.iterdir() if entry.is_dir() and any(entry.iterdir()))
    except FileNotFoundError:
        return 0
