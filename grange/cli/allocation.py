"""`grange allocation`: jobs on clusters with workers in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from grange.cli import allocation_view as view
from grange.cli import words
from grange.cli.listing import DEFAULT_LIMIT, pages, say_more
from grange.cli.opened import opened
from grange.cli.refused import Refused
from grange.cli.span import SPAN
from grange.cli.waiting import say_waiting

if TYPE_CHECKING:
    from grange.core.allocation import Allocation
    from grange.core.profile import Profile
    from grange.farm.allocation_policy import Policy

#: Seconds between two looks of --follow.
_FOLLOW_S = 2.0


@click.group("allocation")
def command() -> None:
    """Start jobs on clusters that hold workers, look after them, stop them.

    \b
    Examples:
      grange allocation start lumi --nodes 4 --time 2h
      grange allocation scale lumi --max 8 --nodes 4 --time 2h && grange allocation watch lumi
      grange allocation list
    """


@command.command()
@click.argument("computer")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes of each; else those of the policy, else 1.")
@click.option("--time", "walltime_s", type=SPAN, help="How long each may run, like 2h; else 1h.")
@click.option("--idle", "idle_s", type=SPAN, help="End after so long without work, like 5m; else 5m.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many to start.")
@click.option(
    "--max-nodes",
    type=click.IntRange(min=1),
    help="Let there be more and less, as much as there is to do: at most so many nodes together. "
    "`grange allocation watch` sees to it.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def start(
    ctx: click.Context,
    computer: str,
    nodes: int | None,
    walltime_s: int | None,
    idle_s: int | None,
    count: int,
    max_nodes: int | None,
    as_json: bool,
) -> None:
    """Start allocations on a computer.

    \b
    Examples:
      grange allocation start lumi --nodes 4 --time 2h
      grange allocation start lumi --nodes 4 --time 2h --max-nodes 32 && grange allocation watch lumi
    """
    from dataclasses import replace

    from grange.core import allocation_launcher as launcher
    from grange.core import allocation_policy as policies
    from grange.core.site import reached
    from grange.farm.allocation import request_on
    from grange.farm.allocation_policy import Policy

    with opened(ctx) as profile, reached(profile, computer, say_waiting) as site:
        launcher.checked_computer(site.computer)
        with profile.transaction() as cursor:
            stored = policies.find(cursor, site.id, site.computer)
        policy = _changed(
            stored.policy if stored else Policy(), nodes=nodes, walltime_s=walltime_s, idle_s=idle_s
        )
        if max_nodes is not None:
            if max_nodes < policy.nodes * count:
                raise click.UsageError(
                    f"--max-nodes {max_nodes}: expected at least {policy.nodes * count}, "
                    "the nodes that are to be started now"
                )
            policy = replace(policy, max_allocations=max_nodes // policy.nodes, min_allocations=0)
            with profile.transaction() as cursor:
                policies.write(cursor, site.id, site.computer, policy)
        policies.checked(replace(policy, min_allocations=0, max_allocations=0), site.computer)
        wishes = [
            request_on(site.computer, nodes=policy.nodes, walltime_s=policy.walltime_s, idle_s=policy.idle_s)
            for _ in range(count)
        ]
        started = launcher.start(profile, site, wishes)
        taken = [one for one in started.allocations if one.is_open]
        if as_json:
            from grange.cli.machine import emit_lines

            emit_lines(view.report(one, None) for one in started.allocations)
        for one in taken if not as_json else ():
            size = f"{words.plural(one.nodes, 'node')}, {words.duration(one.walltime_s)}"
            click.echo(f"allocation {one.id} is job {one.job_id or '?'} of {computer}: {size}")
        if started.refused is not None:
            raise started.refused
    if max_nodes is not None and not as_json:
        click.echo(f"`grange allocation watch {computer}` starts more when they are needed")


@command.command("list")
@click.argument("computer", required=False)
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True,
    help="Show so many, the newest.",
)  # fmt: skip
@click.option("--no-refresh", is_flag=True, help="Connect to nothing: show what was known last.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def list_(
    ctx: click.Context, computer: str | None, everything: bool, limit: int, no_refresh: bool, as_json: bool
) -> None:
    """List allocations, the newest first, as Slurm has them now.

    \b
    Examples:
      grange allocation list
      grange allocation list lumi --all
    """
    from grange.core import allocation as rows
    from grange.core import computer as computers

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            computer_id = computers.computer_id(cursor, computer) if computer else None
        workers = {} if no_refresh else _look(profile, computer_id)

        def fetch(limit: int, before: int) -> list[Allocation]:
            with profile.transaction() as cursor:
                return rows.list_allocations(
                    cursor, computer_id, ended=everything, limit=limit, before=min(before, 2**31 - 1)
                )

        found = list(pages(fetch, limit))
        more = len(fetch(1000, found[-1].id)) if found else 0
    if as_json:
        from grange.cli.machine import emit_lines

        emit_lines(view.report(one, workers.get(one.id)) for one in found)
        return
    if not found:
        where = f" on {computer}" if computer else ""
        click.echo(f"no {'allocation' if everything else 'open allocation'}{where}")
        return
    view.print_allocations(found, workers)
    say_more(more, "allocation", "allocations")


@command.command()
@click.argument("allocation", type=int)
@click.option("--no-refresh", is_flag=True, help="Connect to nothing: show what was known last.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, allocation: int, no_refresh: bool, as_json: bool) -> None:
    """Show one allocation and its workers.

    \b
    Example:
      grange allocation show 12
    """
    from grange.core import allocation as rows
    from grange.core import allocation_launcher as launcher
    from grange.core.site import reached

    workers = None
    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            (one,) = rows.find(cursor, [allocation])
        if not no_refresh:
            with reached(profile, one.computer, say_waiting) as site:
                launcher.refresh(profile, site)
                workers = launcher.workers(site, [one])[one.id]
            with profile.transaction() as cursor:
                (one,) = rows.find(cursor, [allocation])
    if as_json:
        from grange.cli.machine import emit

        emit(view.report(one, workers))
        return
    view.show(one, workers or [])


@command.command()
@click.argument("allocations", nargs=-1, type=int, metavar="ID...")
@click.option("--all", "everything", is_flag=True, help="All that are open.")
@click.option("--computer", help="With --all: only those on this computer.")
@click.option("--now", is_flag=True, help="Do not let workers end in order; what they ran is run again.")
@click.option("--dry-run", is_flag=True, help="Only say what would be stopped.")
@click.pass_context
def stop(
    ctx: click.Context,
    allocations: tuple[int, ...],
    everything: bool,
    computer: str | None,
    now: bool,
    dry_run: bool,
) -> None:
    """Stop allocations: queued ones are cancelled, workers hand over what is finished and end.

    \b
    Examples:
      grange allocation stop 12 13
      grange allocation stop --all --computer lumi --dry-run
    """
    from grange.core import allocation as rows
    from grange.core import computer as computers

    if bool(allocations) == everything:
        raise click.UsageError("expected IDs of allocations, or --all")
    if computer and not everything:
        raise click.UsageError("--computer goes with --all: an id is of one computer anyway")
    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            if everything:
                computer_id = computers.computer_id(cursor, computer) if computer else None
                found = rows.list_allocations(cursor, computer_id, limit=10_000, before=2**31 - 1)
            else:
                found = rows.find(cursor, list(dict.fromkeys(allocations)))
        open_ = [one for one in found if one.is_open]
        for one in found:
            if not one.is_open:
                click.echo(f"allocation {one.id} has ended already")
        if not open_ and everything:
            click.echo("no open allocation")
        if dry_run:
            for one in open_:
                click.echo(f"would stop allocation {one.id}: {one.state}, job {one.job_id} of {one.computer}")
            return
        left = [
            one
            for label in sorted({one.computer for one in open_})
            for one in _stop(profile, label, [one.id for one in open_ if one.computer == label], now)
        ]
    if left:
        ids = ", ".join(str(one.id) for one in left)
        raise Refused(
            f"still in the queue: {ids}; they were told to stop, and end at once where they begin",
            "an account that may not cancel jobs has to wait; else see `grange allocation show`",
        )


@command.command()
@click.argument("computer")
@click.option("--min", "least", type=click.IntRange(min=0), help="Keep so many, also without work.")
@click.option("--max", "most", type=click.IntRange(min=0), help="Never have more.")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes of each.")
@click.option("--time", "walltime_s", type=SPAN, help="How long each may run, like 2h.")
@click.option("--idle", "idle_s", type=SPAN, help="End after so long without work, like 5m.")
@click.option(
    "--backlog", type=click.IntRange(min=1),
    help="Start another when so many tasks wait beyond what the open ones will take.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def scale(
    ctx: click.Context,
    computer: str,
    least: int | None,
    most: int | None,
    nodes: int | None,
    walltime_s: int | None,
    idle_s: int | None,
    backlog: int | None,
    as_json: bool,
) -> None:
    """Say how many allocations a computer should have, or show what was said.

    `grange allocation watch` follows it. What is not said stays as it is. A policy that is held after
    failures is tried again when it is said anew.

    \b
    Examples:
      grange allocation scale lumi --max 8 --nodes 4 --time 2h --idle 5m
      grange allocation scale lumi
      grange allocation scale lumi --max 0
    """
    from grange.core import allocation_policy as policies
    from grange.core import computer as computers
    from grange.core.allocation_launcher import checked_computer
    from grange.farm.allocation_policy import Policy

    said = {
        "min_allocations": least, "max_allocations": most, "nodes": nodes, "walltime_s": walltime_s,
        "idle_s": idle_s, "backlog": backlog,
    }  # fmt: skip
    with opened(ctx) as profile, profile.transaction() as cursor:
        site = computers.load(cursor, computer, user_id=profile.user_id)
        stored = policies.find(cursor, site.id, site.computer)
        if any(value is not None for value in said.values()):
            checked_computer(site.computer)
            policy = _changed(stored.policy if stored else Policy(), **said)
            if most is None and least is not None and least > policy.max_allocations:
                policy = _changed(policy, max_allocations=least)
            if least is None and most is not None and most < policy.min_allocations:
                policy = _changed(policy, min_allocations=most)
            policies.write(cursor, site.id, site.computer, policy)
            stored = policies.find(cursor, site.id, site.computer)
        waiting = policies.backlog(cursor, site.id, site.computer)
    if stored is None:
        raise Refused(
            f"nothing was said yet about the allocations of {computer}",
            f"grange allocation scale {computer} --max 4 --nodes 1 --time 1h says it",
        )
    report = view.PolicyReport(computer, stored.policy, view.held(stored), waiting.tasks, waiting.task_s)
    if as_json:
        from grange.cli.machine import emit

        emit(report)
        return
    view.show_policy(report)


@command.command()
@click.argument("allocation", type=int)
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended, or Ctrl-C.")
@click.pass_context
def log(ctx: click.Context, allocation: int, follow: bool) -> None:
    """Print what an allocation's job and its workers have said.

    \b
    Examples:
      grange allocation log 12
      grange allocation log 12 --follow
    """
    from grange.core import allocation as rows
    from grange.core import allocation_launcher as launcher
    from grange.core.site import reached

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            (one,) = rows.find(cursor, [allocation])
        with reached(profile, one.computer, say_waiting) as site:
            shown: dict[str, int] = {}
            while True:
                launcher.refresh(profile, site)
                with profile.transaction() as cursor:
                    (one,) = rows.find(cursor, [allocation])
                view.print_logs(launcher.logs(site, one), shown)
                if not follow or not one.is_open:
                    break
                time.sleep(_FOLLOW_S)
    if not shown:
        why = f" ({one.reason})" if one.reason else ""
        click.echo(f"allocation {one.id} has said nothing; it is {one.state}{why}", err=True)


@command.command()
@click.argument("computers", nargs=-1, metavar="[COMPUTER]...")
@click.option("--once", is_flag=True, help="Look and act a single time; 1 is returned if there was trouble.")
@click.option("--every", "every_s", type=SPAN, default="15s", show_default=True, help="How often to look.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_context
def watch(ctx: click.Context, computers: tuple[str, ...], once: bool, every_s: int, as_json: bool) -> None:
    """Start and cancel allocations as policies say, until Ctrl-C; of all computers that have one, or of some.

    A line is printed for each thing that happens. Any number of processes may watch at the same time.

    \b
    Examples:
      grange allocation watch
      grange allocation watch lumi --once --json
    """
    from grange.core import allocation_policy as policies
    from grange.core import computer as known
    from grange.core.allocation_watch import watch as follow_policies

    with opened(ctx) as profile:
        with profile.transaction() as cursor:
            for label in computers:
                known.computer_id(cursor, label)
            wanted = list(computers) or policies.computers_with_policy(cursor)
        if not wanted and not once:
            click.echo(
                "no computer has a policy yet: `grange allocation scale COMPUTER --max N` says one", err=True
            )
        report = view.emit_event if as_json else view.say_event
        went_well = follow_policies(profile, computers, report, once=once, every_s=float(every_s))
    if not went_well:
        ctx.exit(1)


# ---------------------------------------------------------------- what they share


def _changed(policy: Policy, **said: int | None) -> Policy:
    from dataclasses import replace

    return replace(policy, **{name: value for name, value in said.items() if value is not None})


def _look(profile: Profile, computer_id: int | None) -> dict[int, list[dict[str, Any]]]:
    """Ask each computer that has open allocations about them; those that do not answer are named."""
    from grange.core import allocation as rows
    from grange.core import allocation_launcher as launcher
    from grange.core.errors import GrangeError
    from grange.core.site import reached
    from grange.farm.errors import FarmError

    with profile.transaction() as cursor:
        open_ = rows.list_allocations(cursor, computer_id, limit=10_000, before=2**31 - 1)
    found: dict[int, list[dict[str, Any]]] = {}
    for label in sorted({one.computer for one in open_}):
        try:
            with reached(profile, label, say_waiting) as site:
                launcher.refresh(profile, site)
                there = [one for one in open_ if one.computer == label and one.job_id is not None]
                found.update(launcher.workers(site, there))
        except (GrangeError, FarmError) as error:
            click.echo(f"{error}; what was known last of {label} is shown", err=True)
    return found


def _stop(profile: Profile, label: str, ids: Sequence[int], now: bool) -> list[Allocation]:
    from grange.core import allocation as rows
    from grange.core import allocation_launcher as launcher
    from grange.core.site import reached

    with reached(profile, label, say_waiting) as site:
        launcher.stop(profile, site, ids, now=now)
        left = launcher.wait_for_end(profile, site, ids)
        with profile.transaction() as cursor:
            for one in rows.find(cursor, ids):
                if not one.is_open:
                    click.echo(f"allocation {one.id} {one.state}{f': {one.reason}' if one.reason else ''}")
    return left
