"""`grange repository prune`: take away what no node needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened
from grange.cli.span import Span

if TYPE_CHECKING:
    from grange.repository.prune_plan import Doomed, PrunePlan
    from grange.repository.pruning import Pruned

_WHY = {
    "dying": "objects in which nothing is needed",
    "dead": "objects that are dead already",
    "orphan": "objects whose writers were killed",
}


class _Grace(Span):
    """A duration, or 0."""

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value in (0, "0") else super().convert(value, param, ctx)


@click.command("prune")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--grace", "grace_s", type=_Grace(), default="1d", show_default=True,
    help="What nobody needs any more stays so long, for backups that are being made; 0: not at all.",
)  # fmt: skip
@click.option(
    "--unknown-too", is_flag=True,
    help="Also remove objects that the index does not know while files of nodes are missing from it.",
)  # fmt: skip
@click.option(
    "--take-over",
    is_flag=True,
    help="As `grange repository take-over` before: the store is this database's now.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    dry_run: bool,
    yes: bool,
    grace_s: int,
    unknown_too: bool,
    take_over: bool,
    as_json: bool,
) -> None:
    """Remove the contents that no node names, and what killed writers have left.

    It is safe while others compute and store. What calculations under way may rely on stays. Killed in
    between, it is simply called again.

    \b
    Examples:
      grange repository prune --dry-run
      grange repository prune --grace 7d --yes
    """
    import time

    from grange.cli.agreed import require_agreed, say_waiting_for_writers
    from grange.cli.count_bar import count_bar
    from grange.cli.machine import emit
    from grange.core.scrub import missing_in_quarantine
    from grange.core.store_owner import require_owner
    from grange.core.upkeep import upkeep
    from grange.repository.holdings import objects_of
    from grange.repository.prune_plan import plan_prune
    from grange.repository.pruning import prune

    with opened(ctx) as profile, upkeep(profile, alone=not dry_run) as index:
        store = profile.repository.store
        index.on_wait = say_waiting_for_writers
        missing = index.mark(settle=not dry_run)
        if missing:  # what is in quarantine is not looked for among objects that the index does not know
            missing -= missing_in_quarantine(profile.connection, store)
        plan = plan_prune(
            index.uses(),
            objects_of(store),
            now_s=time.time(),
            grace_s=grace_s,
            missing=0 if unknown_too else missing,
            orphans_stay=not unknown_too and not index.has_files(),
        )
        if dry_run:
            if as_json:
                emit(_document(plan, missing, None))
            else:
                _show(plan, missing)
            return
        if not as_json:
            _show(plan, missing)
        if plan.rows or plan.now:
            rows = words.plural(plan.rows, "content")
            objects = f"{words.plural(len(plan.now), 'object')} of {words.size(plan.now_bytes)}"
            require_agreed(yes, f"Take {rows} off the index, and remove {objects}?")
        with profile.transaction() as cursor:
            require_owner(cursor, store, take_over=take_over)
        with count_bar("pruning") as show:
            done = prune(store, index, plan, lambda count, total: show(count, total, ""))
    if as_json:
        emit(_document(plan, missing, done))
    else:
        _tell(plan, done)


def _show(plan: PrunePlan, missing: int) -> None:
    """The plan as a table."""
    from datetime import datetime

    from grange.cli.table import Column, print_table

    rows = []
    if plan.rows:
        rows.append(
            (
                "contents that no node names",
                words.number(plan.rows),
                words.size(plan.row_bytes),
                "from the index",
            )
        )
    for when, doomed in (("now", plan.now), ("later", plan.later)):
        for reason, what in _WHY.items():
            ours = [one for one in doomed if one.reason == reason]
            if ours:
                last = words.moment(datetime.fromtimestamp(_last(ours)).astimezone())
                rows.append((what, *_sum(ours), when if when == "now" else f"from {last} on"))
    if plan.forgotten:
        rows.append(("objects that are gone already", words.number(len(plan.forgotten)), "", "now"))
    if plan.inside_bytes:
        rows.append(
            ("inside packs that stay", "", words.size(plan.inside_bytes), "`grange repository repack`")
        )
    if plan.held_for:
        held = f"when {', '.join(plan.held_for)} has ended"
        rows.append(("what calculations under way may need", "", words.size(plan.held_bytes), held))
    if plan.kept_orphans:
        size = words.size(sum(found.size for found in plan.kept_orphans))
        rows.append(
            ("objects that the index does not know", words.number(len(plan.kept_orphans)), size, "stay")
        )
    if rows:
        print_table(
            [
                Column("what", flexible=True),
                Column("count", right=True),
                Column("size", right=True),
                Column("goes"),
            ],
            rows,
        )
        click.echo()
    of = f"of {words.size(plan.object_bytes)} in {words.plural(plan.objects, 'object')}"
    click.echo(f"{words.size(plan.now_bytes)} can be freed now, {words.size(plan.later_bytes)} later, {of}.")
    if missing:
        files = words.plural(missing, "content")
        click.echo(
            f"{files} of nodes {'is' if missing == 1 else 'are'} not in the index: "
            "`grange repository rebuild-index` looks for them in the store"
        )
    elif plan.kept_orphans:
        click.echo(
            "No node in this database has files. Is it the right one? Restore it first; after that, "
            "`grange repository rebuild-index`. Or say --unknown-too"
        )


def _tell(plan: PrunePlan, done: Pruned) -> None:
    """What was done, and what to do next."""
    rows = words.plural(done.rows, "content")
    click.echo(
        f"freed {words.size(done.size)}: {words.plural(done.objects, 'object')} removed, {rows} off the index"
    )
    if done.leftovers:
        click.echo(f"{words.plural(done.leftovers, 'unfinished file')} of killed writers removed")
    if kept := len(plan.now) - done.objects:
        click.echo(f"{words.plural(kept, 'object')} stay: needed again meanwhile")
    if plan.later:
        grace = words.duration(plan.grace_s)
        click.echo(
            f"{words.size(plan.later_bytes)} more go when they have been dead for {grace}: prune again then"
        )
    if plan.inside_bytes:
        click.echo(
            f"{words.size(plan.inside_bytes)} lie inside packs that stay: `grange repository repack` "
            "frees them where that pays"
        )


def _sum(doomed: list[Doomed]) -> tuple[str, str]:
    return words.number(len(doomed)), words.size(sum(one.size for one in doomed))


def _last(doomed: list[Doomed]) -> float:
    return max(one.due_s for one in doomed)


def _document(plan: PrunePlan, missing: int, done: Pruned | None) -> dict[str, object]:
    """The plan, and what was done, for machines. Units: bytes, seconds."""
    document: dict[str, object] = {
        "grace_s": plan.grace_s,
        "objects": plan.objects,
        "object_bytes": plan.object_bytes,
        "dead_blobs": plan.rows,
        "dead_blob_bytes": plan.row_bytes,
        "now": len(plan.now),
        "now_bytes": plan.now_bytes,
        "later": len(plan.later),
        "later_bytes": plan.later_bytes,
        "inside_bytes": plan.inside_bytes,
        "held_bytes": plan.held_bytes,
        "held_for": list(plan.held_for),
        "unknown_kept": len(plan.kept_orphans),
        "missing": missing,
    }
    if done is not None:
        document |= {
            "freed_bytes": done.size,
            "removed_objects": done.objects,
            "removed_blobs": done.rows,
            "leftovers": done.leftovers,
        }
    return document
