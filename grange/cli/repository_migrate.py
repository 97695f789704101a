"""`grange repository migrate`: the files of the profile to another store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.bucket_options import bucket_options, settings_of
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.core.store_move import Moved
    from grange.repository.s3_settings import S3Settings


@click.command("migrate")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="To a folder.")
@bucket_options
@click.option("--copy-only", is_flag=True, help="Go on using the store of now: the copy is a backup.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--despite-deliveries", is_flag=True,
    help="Also while runners may deliver results to the old store; what comes too late is computed again.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    folder: Path | None,
    given: dict[str, Any],
    copy_only: bool,
    dry_run: bool,
    yes: bool,
    despite_deliveries: bool,
    as_json: bool,
) -> None:
    """Copy all files to another store, and use that one from then on: from a folder to a bucket, or back.

    Everything is compared with what came there. Others may compute and store meanwhile; only for the last
    step nobody may have files open. Until then the profile uses the old store, in which nothing is removed.
    Stopped or killed, it is called again and goes on. A bucket has to be there: `grange repository init`
    makes one.

    \b
    Examples:
      grange repository migrate --endpoint https://s3.example.org --bucket ada-files --dry-run
      grange repository migrate --endpoint https://s3.example.org --bucket ada-files
      grange repository migrate --to /data/grange-store
      grange repository migrate --to /backup/store --copy-only
    """
    from grange.cli.agreed import require_agreed
    from grange.cli.count_bar import count_bar
    from grange.core.store_move import folder_setting, move, plan_move

    with opened(ctx) as profile:
        target: str | S3Settings
        if folder is not None:
            if given:
                raise click.UsageError("Name a folder or a bucket, not both.")
            target = folder_setting(profile.home, folder)
        elif given:
            target = settings_of(given).below(Path.cwd())
        else:
            raise click.UsageError("Name a folder (--to) or a bucket (--endpoint, --bucket).")
        if dry_run or not (yes or copy_only):
            planned = plan_move(profile, target)
            if not as_json or not dry_run:
                _show(planned, copy_only)
            if dry_run:
                if as_json:
                    _emit(planned)
                return
            require_agreed(yes, f"Copy everything, and use {planned.new} from then on?")
        with count_bar("migrating", words.size) as show:
            moved = move(
                profile, target, copy_only=copy_only, despite_deliveries=despite_deliveries, show=show
            )
    if as_json:
        _emit(moved)
    else:
        _tell(moved)


def _show(planned: Moved, copy_only: bool) -> None:
    from grange.cli.table import print_fields

    plan = planned.plan
    print_fields(
        [
            ("from", planned.old),
            ("to", planned.new),
            ("to copy", f"{words.plural(len(plan.todo), 'object')}, {words.size(plan.todo_bytes)}"),
            ("there already", f"{words.plural(plan.done, 'object')}, {words.size(plan.done_bytes)}"
             if plan.done else ""),
            ("to compare", f"{words.plural(len(plan.compare), 'object')} that are there, "
             f"{words.size(plan.compare_bytes)}" if plan.compare else ""),
            ("differ", f"{words.plural(len(plan.differ), 'object')}, as {plan.differ[0]}: mend that first"
             if plan.differ else ""),
        ]
    )  # fmt: skip
    if not copy_only:
        click.echo(f"{planned.old} is used until everything is there, and stays as it is.")


def _tell(moved: Moved) -> None:
    done = moved.copied
    compared = f", {words.plural(done.compared, 'object')} compared that were there" if done.compared else ""
    click.echo(f"copied {words.plural(done.objects, 'object')}, {words.size(done.size)}{compared}")
    if done.damaged:
        click.echo(
            f"{words.plural(len(done.damaged), 'object')} damaged in {moved.old}, and copied as they are: "
            "`grange repository scrub`"
        )
    if moved.lost:
        click.echo(
            f"{words.plural(len(moved.lost), 'object')} of the index are in neither: "
            "`grange repository scrub` tells whose they are"
        )
    if moved.switched:
        click.echo(f"{moved.new} is used from now on")
        click.echo(
            f"{moved.old} is as it was: remove it when you are sure (`grange repository scrub` hashes all)"
        )


def _emit(moved: Moved) -> None:
    """Everything, for machines. Units: bytes."""
    from grange.cli.machine import emit

    plan, done = moved.plan, moved.copied
    emit(
        {
            "from": moved.old,
            "to": moved.new,
            "switched": moved.switched,
            "todo": len(plan.todo),
            "todo_bytes": plan.todo_bytes,
            "compare": len(plan.compare),
            "compare_bytes": plan.compare_bytes,
            "there_already": plan.done,
            "there_already_bytes": plan.done_bytes,
            "differ": plan.differ,
            "copied": done.objects,
            "copied_bytes": done.size,
            "compared": done.compared,
            "damaged": done.damaged,
            "lost": moved.lost,
        }
    )
