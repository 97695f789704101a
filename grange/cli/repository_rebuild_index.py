"""`grange repository rebuild-index`: the index from the store alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.repository.rebuild_plan import RebuildPlan
    from grange.repository.rebuilding import Rebuilt


@click.command("rebuild-index")
@click.option("--dry-run", is_flag=True, help="Only show how index and store differ.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--all", "everything", is_flag=True, help="Read also the packs that the index knows.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, dry_run: bool, yes: bool, everything: bool, as_json: bool) -> None:
    """Make the index agree with the store: add what it does not know, drop what is not there.

    After a database was restored that is older than the store, or an index that was lost. Packs are their own
    index: only their directories are read.

    \b
    Examples:
      grange repository rebuild-index --dry-run
      grange repository rebuild-index --all --yes
    """
    from grange.cli.agreed import require_agreed
    from grange.cli.count_bar import count_bar
    from grange.cli.machine import emit
    from grange.core.file_store import store_place
    from grange.core.upkeep import upkeep
    from grange.repository.cached_store import truth_of
    from grange.repository.holdings import objects_of
    from grange.repository.rebuild_plan import plan_rebuild
    from grange.repository.rebuilding import rebuild

    done: Rebuilt | None = None
    with opened(ctx) as profile, upkeep(profile, alone=not dry_run) as index:
        store = truth_of(profile.repository.store)
        place = store_place(profile.home, profile.config)
        plan = plan_rebuild(index.uses(), objects_of(store), everything=everything)
        if not as_json:
            _show(plan, place)
        if not dry_run and not plan.nothing:
            if plan.gone:
                blobs = words.plural(plan.gone_blobs, "content")
                require_agreed(yes, f"Drop {blobs} from the index, because they are not in {place}?")
            with count_bar("reading packs") as show:
                done = rebuild(store, index, plan, lambda count, total: show(count, total, ""))
        missing = None if dry_run else index.files().missing
    if as_json:
        emit(_document(plan, done, missing))
        return
    if done is not None:
        click.echo(
            f"{words.plural(done.blobs, 'content')} in {words.plural(done.objects, 'object')} "
            f"{'is' if done.blobs == 1 else 'are'} in the index, {words.number(done.forgotten)} were dropped"
        )
        for name, why in done.malformed.items():
            click.echo(f"{name} is no pack: {why}", err=True)
    if missing:
        of_nodes = f"{words.plural(missing, 'content')} of nodes {'is' if missing == 1 else 'are'}"
        click.echo(f"{of_nodes} not in the store: restore the objects from a backup and call this again")
    elif missing == 0:
        click.echo("all files of all nodes are in the index; `grange repository scrub` reads them")


def _show(plan: RebuildPlan, store: str) -> None:
    """The plan as a table."""
    from grange.cli.table import Column, print_table

    if plan.nothing:
        click.echo(f"index and store agree on {words.plural(plan.known, 'object')} in {store}")
        return
    print_table(
        [
            Column("what"),
            Column("objects", right=True),
            Column("contents", right=True),
            Column("size", right=True),
        ],
        [
            ("known", words.number(plan.known), "", ""),
            ("to be read", words.number(len(plan.unread)), "", words.size(plan.unread_bytes)),
            ("not in the store", words.number(len(plan.gone)), words.number(plan.gone_blobs), ""),
        ],
    )


def _document(plan: RebuildPlan, done: Rebuilt | None, missing: int | None) -> dict[str, object]:
    """The plan, and what was done, for machines."""
    document: dict[str, object] = {
        "known": plan.known,
        "unread": len(plan.unread),
        "unread_bytes": plan.unread_bytes,
        "gone": plan.gone,
        "gone_blobs": plan.gone_blobs,
    }
    if done is not None:
        document |= {
            "objects": done.objects,
            "blobs": done.blobs,
            "dropped_blobs": done.forgotten,
            "malformed": done.malformed,
        }
    if missing is not None:
        document["missing"] = missing
    return document
