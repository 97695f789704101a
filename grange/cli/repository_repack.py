"""`grange repository repack`: packs of which little is needed become fewer and full ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.repository.repack_plan import RepackPlan
    from grange.repository.repacking import Repacked


@click.command("repack")
@click.option("--dry-run", is_flag=True, help="Only show what would be written anew.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--dead-share", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True,
    help="Write packs anew of which at least this share is not needed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, dry_run: bool, yes: bool, dead_share: float, as_json: bool) -> None:
    """Write packs anew that are mostly dead, without what is dead; put many small packs together.

    It is safe while others read and store. Every content is checked on the way. The old packs go with the
    next pruning after the grace period. Prune first: what is not off the index yet is written anew too.

    \b
    Examples:
      grange repository repack --dry-run
      grange repository repack --dead-share 0.2 --yes
    """
    from grange.cli.agreed import require_agreed
    from grange.cli.count_bar import count_bar
    from grange.cli.machine import emit
    from grange.core.upkeep import upkeep
    from grange.repository.repack_plan import plan_repack
    from grange.repository.repacking import repack

    with opened(ctx) as profile, upkeep(profile, alone=not dry_run) as index:
        repository = profile.repository
        plan = plan_repack(index.uses(), repository.store.list("packs/"), dead_share=dead_share)
        if not as_json:
            _show(plan, dead_share)
        elif dry_run or not plan.packs:
            emit(_document(plan, None))
        if dry_run or not plan.packs:
            return
        require_agreed(yes, f"Write {words.size(plan.needed_bytes)} anew?")
        repository.begin_writing()
        with count_bar("repacking", words.size) as show:
            done = repack(repository, index, plan, lambda count, total: show(count, total, ""))
    if as_json:
        emit(_document(plan, done))
        return
    click.echo(
        f"{words.plural(done.blobs, 'content')} of {words.plural(done.packs, 'pack')} "
        f"({words.size(done.size)}) now lie in {words.plural(done.new_packs, 'pack')} "
        f"({words.size(done.new_size)})"
    )
    for name, why in done.damaged.items():
        click.echo(f"{name} stays as it is: {why}", err=True)
    if done.damaged:
        click.echo("`grange repository scrub` says what is damaged", err=True)
    if done.packs:
        click.echo(
            f"{words.size(max(0, done.size - done.new_size))} are freed when the old packs go: "
            "`grange repository prune`, after its grace period"
        )


def _show(plan: RepackPlan, dead_share: float) -> None:
    """The plan as a table."""
    from grange.cli.table import Column, print_table

    if not plan.packs:
        click.echo(f"nothing to do: no pack is dead by {dead_share:.0%} or more, and few are small")
        return
    print_table(
        [Column("what"), Column("packs", right=True), Column("size", right=True)],
        [
            ("mostly dead", words.number(plan.mostly_dead), ""),
            ("small", words.number(plan.small), ""),
            ("written anew", words.number(plan.packs), words.size(plan.needed_bytes)),
            ("left behind", "", words.size(plan.dead_bytes)),
        ],
    )


def _document(plan: RepackPlan, done: Repacked | None) -> dict[str, object]:
    """The plan, and what was done, for machines. Units: bytes."""
    document: dict[str, object] = {
        "packs": plan.packs,
        "mostly_dead": plan.mostly_dead,
        "small": plan.small,
        "blobs": plan.blobs,
        "needed_bytes": plan.needed_bytes,
        "dead_bytes": plan.dead_bytes,
    }
    if done is not None:
        document |= {
            "emptied_packs": done.packs,
            "emptied_bytes": done.size,
            "moved_blobs": done.blobs,
            "new_packs": done.new_packs,
            "new_bytes": done.new_size,
            "damaged": done.damaged,
        }
    return document
