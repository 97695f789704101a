"""`grange campaign`: sets of calculations that are run together."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from grange.cli import outcome, words
from grange.cli.listing import limit_options, pages, say_more
from grange.cli.opened import opened
from grange.cli.table import Cell, Column, print_fields, print_table, terminal_width

if TYPE_CHECKING:
    from pathlib import Path

    import pandas

    from grange.core.campaign import Campaign
    from grange.core.overview import CampaignSummary, FailureGroup

#: Kinds of failures shown.
_KINDS = 10


@dataclass(frozen=True, slots=True)
class CampaignReport:
    """The document of `grange campaign show --json`. Units: rate_per_s in calls a second."""

    campaign: CampaignSummary
    rate_per_s: float | None
    failures: list[FailureGroup]


@click.group("campaign")
def command() -> None:
    """Look at campaigns, go on with them, take their results out.

    \b
    Examples:
      grange campaign list
      grange campaign results fcc-eos --csv results.csv
    """


@command.command("list")
@limit_options
@click.pass_context
def list_(ctx: click.Context, limit: int, everything: bool, as_json: bool) -> None:
    """List campaigns, the newest first.

    \b
    Example:
      grange campaign list
    """
    from grange.core import overview

    with opened(ctx) as profile, profile.transaction() as cursor:
        found = overview.campaigns(cursor, None if everything else limit)
        count = overview.campaign_count(cursor)
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(found)
        return
    if not found:
        click.echo("no campaign yet")
        return
    columns = [
        Column("campaign", flexible=True), Column("calls", right=True), Column("", optional=True),
        Column("how they stand", flexible=True), Column("on", optional=True), Column("begun", optional=True),
    ]  # fmt: skip
    print_table(columns, [_row(campaign) for campaign in found])
    say_more(count - len(found), "campaign", "campaigns")


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show how far a campaign is, how fast it was, and what failed.

    \b
    Example:
      grange campaign show fcc-eos
    """
    from grange.core import overview

    with opened(ctx) as profile, profile.transaction() as cursor:
        campaign_id = overview.campaign_id(cursor, name)
        campaign = overview.campaigns(cursor, ids=[campaign_id])[0]
        kinds, kind_count = overview.failure_groups(cursor, campaign_id, _KINDS)
        sent = _sent(profile.spool, campaign)
    report = CampaignReport(campaign, _rate(campaign), kinds)
    if as_json:
        from grange.cli.machine import emit

        emit(report)
        return
    _show(report, sent)
    if kind_count > len(kinds):
        more = f"… {kind_count - len(kinds):,} more kinds"
        click.echo(f"{more}; `grange campaign failures {name}` lists every failure")


@command.command()
@click.argument("name")
@limit_options
@click.pass_context
def failures(ctx: click.Context, name: str, limit: int, everything: bool, as_json: bool) -> None:
    """List the calls of a campaign that failed and were not tried again.

    \b
    Example:
      grange campaign failures fcc-eos
    """
    from grange.core.overview import campaign_id
    from grange.core.process_list import ProcessFilter, processes, processes_older

    with opened(ctx) as profile, profile.transaction() as cursor:
        which = ProcessFilter(campaign_id=campaign_id(cursor, name), failed=True)
        found = pages(
            lambda count, before: processes(cursor, which, count, before),
            None if everything else limit,
        )
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(found)
            return
        rows = list(found)
        if not rows:
            click.echo(f"nothing has failed in {name}")
            return
        columns = [
            Column("id", right=True), Column("call", right=True), Column("state"),
            Column("message", flexible=True), Column("process", flexible=True, optional=True),
        ]  # fmt: skip
        cells = [
            (str(row.id), "" if row.ordinal is None else str(row.ordinal),
             outcome.outcome(row.state, row.exit_status), row.exit_message or "", row.process_label)
            for row in rows
        ]  # fmt: skip
        print_table(columns, cells)
        if not everything:
            say_more(processes_older(cursor, which, rows[-1].id), "failure", "failures")


@command.command()
@click.argument("name")
@click.option(
    "--csv",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write CSV; - for standard output.",
)
@click.option("--parquet", metavar="FILE", type=click.Path(dir_okay=False), help="Write Parquet.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Show so many where nothing is written.",
)
@click.pass_context
def results(
    ctx: click.Context, name: str, csv: str | None, parquet: str | None, as_json: bool, limit: int
) -> None:
    """Take out the results of a campaign: one row a call.

    \b
    Examples:
      grange campaign results fcc-eos
      grange campaign results fcc-eos --csv results.csv --parquet results.parquet
    """
    with _campaign(ctx, name) as campaign:
        frame: Any = campaign.results()
    if csv:
        frame.to_csv(sys.stdout if csv == "-" else csv, index=False)
    if parquet:
        frame.to_parquet(parquet, index=False)
    written = [path for path in (csv, parquet) if path and path != "-"]
    if written:
        click.echo(f"{words.plural(len(frame), 'row')} written to {', '.join(written)}", err=True)
    if as_json:
        frame.to_json(sys.stdout, orient="records", lines=True, date_format="iso")
    elif not (csv or parquet):
        _show_frame(frame, limit)


@command.command()
@click.argument("name")
@click.option(
    "--executor",
    metavar="NAME",
    help="The label of a computer; local; hyperqueue (its tasks have no network), or hyperqueue-open-server."
    " Else where it was last run.",
)
@click.pass_context
def run(ctx: click.Context, name: str, executor: str | None) -> None:
    """Go on with a campaign: run what is recorded and not done.

    Ctrl-C ends it in order; what was done stays done, and running it again goes on from there.

    \b
    Examples:
      grange campaign run fcc-eos
      grange campaign run fcc-eos --executor lumi
    """
    with _campaign(ctx, name) as campaign:
        done = campaign.run(progress=True, executor=executor)
        summary = _summary(campaign)
        paused = campaign.paused()
    nothing = "" if done.total else " (nothing was left to run)"
    click.echo(f"{name}: {outcome.outcomes_line(summary.outcomes) or 'no calls'}{nothing}")
    for reason, count in paused.items():
        click.echo(f"{words.plural(count, 'call')} paused: {reason}", err=True)


@command.command()
@click.argument("name")
@click.option(
    "--executor",
    metavar="NAME",
    help="The label of a computer; local; hyperqueue (its tasks have no network), or hyperqueue-open-server."
    " Else where it was last run.",
)
@click.pass_context
def submit(ctx: click.Context, name: str, executor: str | None) -> None:
    """Leave a campaign to the daemon: it runs what is recorded and not done.

    `grange campaign run` follows it then; its Ctrl-C ends the following only.

    \b
    Examples:
      grange campaign submit fcc-eos
      grange campaign retry fcc-eos && grange campaign submit fcc-eos
    """
    with _campaign(ctx, name) as campaign:
        count = campaign.submit(executor=executor)
    click.echo(
        f"{words.plural(count, 'call')} of {name} left to the daemon (grange daemon status)"
        if count
        else f"nothing is left to run in {name}"
    )


@command.command()
@click.argument("name")
@click.option(
    "--exit-status",
    "exit_statuses",
    type=int,
    multiple=True,
    metavar="N",
    help="Only what ended so; repeatable.",
)
@click.pass_context
def retry(ctx: click.Context, name: str, exit_statuses: tuple[int, ...]) -> None:
    """Record the failed calls of a campaign again, to be run.

    The failed ones keep their record and say as what they were tried again.

    \b
    Example:
      grange campaign retry fcc-eos --exit-status 120 && grange campaign run fcc-eos
    """
    with _campaign(ctx, name) as campaign:
        count = campaign.retry(exit_statuses or None)
    click.echo(
        f"{words.plural(count, 'call')} will be tried again: grange campaign run {name}"
        if count
        else f"nothing to try again in {name}"
    )


@command.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only say how many calls would be ended.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def kill(ctx: click.Context, name: str, dry_run: bool, yes: bool) -> None:
    """End the calls of a campaign that have not ended, here or on its computer.

    Those that wait never start; those that run get SIGTERM and then SIGKILL, and what they left is kept.
    `grange campaign retry` makes them again.

    \b
    Example:
      grange campaign kill fcc-eos
    """
    from grange.core import process

    with _campaign(ctx, name) as campaign:
        with campaign.profile.transaction() as cursor:
            count = process.count_unfinished(cursor, campaign.id)
        calls = words.plural(count, "call")
        if dry_run or not count:
            click.echo(f"{calls} of {name} would be ended" if count else f"nothing is left to end in {name}")
            return
        if not yes:
            click.confirm(f"End {calls} of {name}?", abort=True)
        ended = campaign.kill(progress=True)
        click.echo(f"{words.plural(ended, 'call')} of {name} ended or about to end")


@contextmanager
def _campaign(ctx: click.Context, name: str) -> Iterator[Campaign]:
    """A campaign that is there: looking at one never makes it."""
    from grange.core import overview

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            overview.campaign_id(cursor, name)
        from grange.core.campaign import Campaign

        yield Campaign(name, profile)


def _summary(campaign: Campaign) -> CampaignSummary:
    from grange.core import overview

    with campaign.profile.transaction() as cursor:
        return overview.campaigns(cursor, ids=[campaign.id])[0]


def _row(campaign: CampaignSummary) -> list[str | Cell]:
    return [
        campaign.name,
        f"{campaign.total:,}",
        outcome.plain_bar(campaign.outcomes, 16),
        outcome.plain_line(campaign.outcomes) or "nothing recorded",
        campaign.computer or "",
        words.moment(campaign.time),
    ]


def _sent(spool: Path, campaign: CampaignSummary) -> bool:
    """Whether something was sent to the campaign's computer that is not back yet, as far as is known here."""
    if campaign.computer is None or not campaign.unfinished:
        return False
    return any(spool.glob(f"campaign-{campaign.id}@{campaign.computer}/run-*/chunk-*/sent"))


def _run_by(campaign: CampaignSummary, sent: bool) -> str:
    if campaign.run_by or not campaign.unfinished:
        return campaign.run_by or ""
    if campaign.submitted:
        goes_on = "nobody now; it was submitted, so a daemon goes on with it: grange daemon status"
    else:
        goes_on = f"nobody now; grange campaign run {campaign.name} goes on with it"
    return f"{goes_on}, and what was sent to {campaign.computer} goes on there" if sent else goes_on


def _show(report: CampaignReport, sent: bool) -> None:
    campaign = report.campaign
    bar = outcome.bar(campaign.outcomes, min((terminal_width() or 80) - 4, 60))
    click.secho(campaign.name, bold=True)
    if bar:
        click.echo(f"  {bar}")
    rate = f" ({words.rate(report.rate_per_s)})" if report.rate_per_s else ""
    span = (
        words.duration((campaign.ended_at - campaign.started_at).total_seconds()) + rate
        if campaign.started_at and campaign.ended_at
        else ""
    )
    fields = [
        ("description", campaign.description),
        ("calls", f"{campaign.total:,}"),
        ("state", outcome.outcomes_line(campaign.outcomes)),
        ("runs on", campaign.computer or ""),
        ("run by", _run_by(campaign, sent)),
        ("reused", words.plural(campaign.cached, "result") + " of equal calls" if campaign.cached else ""),
        ("recorded", words.moment(campaign.time)),
        ("first start", words.moment(campaign.started_at)),
        ("last end", words.moment(campaign.ended_at)),
        ("from first to last", span),
    ]
    print_fields(fields, indent="  ")
    if report.failures:
        click.secho("\nfailures", bold=True)
        columns = [
            Column("count", right=True), Column("state"), Column("message", flexible=True),
            Column("for example", right=True),
        ]  # fmt: skip
        rows = [
            (
                f"{kind.count:,}",
                outcome.outcome(kind.state, kind.exit_status),
                kind.message,
                str(kind.example_id),
            )
            for kind in report.failures
        ]
        print_table(columns, rows, indent="  ")


def _rate(campaign: CampaignSummary) -> float | None:
    """Calls computed a second between the first start and the last end, pauses between runs included."""
    if campaign.started_at is None or campaign.ended_at is None:
        return None
    seconds = (campaign.ended_at - campaign.started_at).total_seconds()
    killed = campaign.outcomes.get("killed", 0)  # most of them never ran
    computed = campaign.total - campaign.unfinished - campaign.cached - killed
    return computed / seconds if seconds > 0 and computed > 0 else None


def _show_frame(frame: pandas.DataFrame, limit: int) -> None:
    if frame.empty:
        click.echo("no results yet")
        return
    shown = frame.head(limit)
    numeric = [shown[name].dtype.kind in "iuf" for name in shown.columns]
    columns = [
        Column(str(name), right=is_number, flexible=not is_number)
        for name, is_number in zip(shown.columns, numeric, strict=True)
    ]
    print_table(columns, [[_cell_text(value) for value in row] for row in shown.itertuples(index=False)])
    if len(frame) > limit:
        more = f"{len(frame) - limit:,} more rows"
        click.echo(f"{more}; --limit N shows more, --csv FILE writes all", err=True)


def _cell_text(value: Any) -> str:
    """A value of a data frame in a few words; nothing for what is missing."""
    from grange.summary import plain

    if isinstance(value, str):
        return value
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or str(value) in ("nan", "<NA>", "NaT"):
        return ""
    return plain(value)
