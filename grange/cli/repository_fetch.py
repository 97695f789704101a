"""`grange repository fetch`: the files of nodes into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.core.fetch import FetchPlan
    from grange.core.profile import Profile

#: A plan shows so many files; --json shows all.
_SHOWN = 20


@click.command("fetch")
@click.argument("nodes", nargs=-1, metavar="[NODE]...")
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to; it is made if it is not there.",
)
@click.option("--group", "groups", multiple=True, metavar="LABEL", help="The nodes of a group.")
@click.option("--campaign", metavar="NAME", help="All calls of a campaign, each in a folder of its number.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only files that match, as '*.out' or 'output/retrieved/*'; may be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there with another content.")
@click.option("--rename", is_flag=True, help="Names that differ only in case: write them as NAME, NAME~2 ….")
@click.option("--skip-missing", is_flag=True, help="Leave out what is not in the repository any more.")
@click.option("--dry-run", is_flag=True, help="Only show what would be written.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    nodes: tuple[str, ...],
    folder: Path,
    groups: tuple[str, ...],
    campaign: str | None,
    only: tuple[str, ...],
    overwrite: bool,
    rename: bool,
    skip_missing: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the files of nodes to a folder.

    Of one node they lie in the folder itself, of several each in a folder of its id. A calculation has its
    own files below input/, and what it gave below output/<name>/.

    Nothing is written if anything is in the way: a file of that name with another content, a symbolic link,
    names that differ only in case. What was stopped in between is simply called again.

    \b
    Examples:
      grange repository fetch 1234 -o here
      grange repository fetch fcc-eos/3 -o call-3
      grange repository fetch --campaign fcc-eos --only '*.out' -o outputs
      grange repository export --group alloys -o alloys             # the same command
    """
    from grange.cli.count_bar import count_bar
    from grange.core.fetch import fetch, plan_fetch

    if not nodes and not groups and campaign is None:
        raise click.UsageError("Name nodes, a --group or a --campaign.")
    if campaign is not None and (nodes or groups):
        raise click.UsageError("--campaign stands alone: its calls have folders of their numbers.")
    with opened(ctx) as profile:
        places = _places(profile, nodes, groups, campaign)
        plan = plan_fetch(profile, places, only=only, rename=rename, skip_missing=skip_missing)
        there = 0
        if not dry_run:
            with count_bar("fetching", words.size) as show:
                there = fetch(profile, plan, folder, overwrite=overwrite, show=show)
    if as_json:
        from grange.cli.machine import emit

        emit(_document(plan, folder, there, dry_run))
    elif dry_run:
        _show(plan)
    else:
        _tell(plan, folder, there)


def _places(
    profile: Profile, nodes: tuple[str, ...], groups: tuple[str, ...], campaign: str | None
) -> list[tuple[str, int]]:
    from grange.core import group
    from grange.core.fetch import calls_in_folders, nodes_in_folders
    from grange.core.reference import node_ids

    with profile.transaction() as cursor:
        if campaign is not None:
            return calls_in_folders(cursor, campaign)
        ids = node_ids(cursor, list(nodes))
        for label in groups:
            ids += group.node_ids(cursor, group.load(cursor, label))
        if groups:  # however few nodes a group has, each is in a folder of its own
            return [(f"{node_id}/", node_id) for node_id in dict.fromkeys(ids)]
        return nodes_in_folders(ids)


def _show(plan: FetchPlan) -> None:
    from grange.cli.table import Column, print_table

    files = sorted(plan.files, key=lambda file: file.path)
    if files:
        print_table(
            [Column("file", flexible=True), Column("size", right=True), Column("node", right=True)],
            [(file.path, words.size(file.size), str(file.node_id)) for file in files[:_SHOWN]],
        )
    if len(files) > _SHOWN:
        click.echo(f"{len(files) - _SHOWN:,} more; --json shows all")
    click.echo(
        f"{words.plural(len(files), 'file')} of {words.plural(plan.nodes, 'node')}, {words.size(plan.size)}"
    )


def _tell(plan: FetchPlan, folder: Path, there: int) -> None:
    if not plan.files and not plan.missing:
        click.echo("there are no such files: nothing was written")
        return
    new = f", {there:,} of them were there already" if there else ""
    click.echo(f"{words.plural(len(plan.files), 'file')} in {folder}, {words.size(plan.size)}{new}")
    if plan.missing:
        first = plan.missing[0]
        more = f" and {len(plan.missing) - 1:,} more" if len(plan.missing) > 1 else ""
        click.echo(f"not in the repository any more: {first.path} of node {first.node_id}{more}")


def _document(plan: FetchPlan, folder: Path, there: int, dry_run: bool) -> dict[str, object]:
    """Everything, for machines. Units: bytes."""
    return {
        "folder": str(folder),
        "nodes": plan.nodes,
        "bytes": plan.size,
        "written": 0 if dry_run else len(plan.files) - there,
        "there_already": there,
        "files": [
            {"path": file.path, "node_id": file.node_id, "key": file.key, "size": file.size}
            for file in plan.files
        ],
        "missing": [{"path": file.path, "node_id": file.node_id, "key": file.key} for file in plan.missing],
    }
