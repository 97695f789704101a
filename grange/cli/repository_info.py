"""`grange repository info`: how much there is, and how much of it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.core.upkeep import Files
    from grange.repository import ObjectInfo
    from grange.repository.holdings import Holdings


@click.command("info")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Count the files of all nodes, what they take, and what is not needed any more.

    \b
    Example:
      grange repository info
    """
    from grange.core.file_store import store_place
    from grange.core.upkeep import upkeep
    from grange.repository.holdings import holdings_of, objects_of
    from grange.repository.quarantine import evidence_of

    with opened(ctx) as profile, upkeep(profile, alone=False) as index:
        store = profile.repository.store
        place = store_place(profile.home, profile.config)
        index.mark(settle=False)
        files = index.files()
        held = holdings_of(index.uses(), objects_of(store))
        evidence = evidence_of(store)
    if as_json:
        from grange.cli.machine import emit

        emit(_document(files, held, place, evidence))
        return
    _show(files, held, place, evidence)


def _show(files: Files, held: Holdings, store: str, evidence: list[ObjectInfo]) -> None:
    from grange.cli.table import print_fields

    number, size = words.number, words.size
    print_fields(
        [
            ("store", store),
            ("objects", f"{words.plural(held.packs, 'pack')}, {words.plural(held.alone, 'large file')}; "
             f"{size(held.size)}"),
            ("files of nodes", f"{number(files.files)}, {size(files.file_bytes)}"),
            ("different ones", f"{number(files.contents - files.missing)}, {size(files.content_bytes)}"
             f"{_times(files.file_bytes, files.content_bytes)}"),
            ("as stored", f"{size(files.stored_bytes)}{_times(files.content_bytes, files.stored_bytes)}"),
            ("not needed", f"{size(held.dead_bytes)}, {held.dead_share:.1%}"),
            ("", f"{size(held.inside_bytes)} inside packs that are needed" if held.inside_bytes else ""),
            ("", f"{words.plural(held.unneeded, 'whole object')}, {size(held.unneeded_bytes)}"
             if held.unneeded else ""),
            ("", f"{words.plural(held.unknown, 'object')} that the index does not know, "
             f"{size(held.unknown_bytes)}" if held.unknown else ""),
            ("missing", number(files.missing) if files.missing else ""),
            ("in quarantine", f"{words.plural(len(evidence), 'damaged object')}, "
             f"{size(sum(found.size for found in evidence))}" if evidence else ""),
        ]
    )  # fmt: skip
    if held.gone or files.missing:
        click.echo()
        if files.missing:
            click.echo(f"contents of nodes that are not in the index: {number(files.missing)}")
        if held.gone:
            click.echo(f"objects of the index that are not in the store: {number(held.gone)}")
        click.echo("`grange repository scrub` and `grange repository rebuild-index --dry-run` say more")
    elif held.unneeded or held.unknown:
        click.echo("\n`grange repository prune --dry-run` says what can be freed")
    elif held.dead_share > 0.2:
        click.echo("\n`grange repository repack --dry-run` says what can be freed")


def _times(more: int, less: int) -> str:
    """The ratio of two sizes."""
    return f" (1 : {more / less:.1f})" if less else ""


def _document(files: Files, held: Holdings, store: str, evidence: list[ObjectInfo]) -> dict[str, object]:
    """Everything, for machines. Units: bytes."""
    return {
        "store": store,
        "packs": held.packs,
        "large_blobs": held.alone,
        "object_bytes": held.size,
        "blobs": held.blobs,
        "files": files.files,
        "file_bytes": files.file_bytes,
        "contents": files.contents,
        "content_bytes": files.content_bytes,
        "stored_bytes": files.stored_bytes,
        "deduplication": files.file_bytes / files.content_bytes if files.content_bytes else 1.0,
        "compression": files.content_bytes / files.stored_bytes if files.stored_bytes else 1.0,
        "dead_bytes": held.dead_bytes,
        "dead_share": held.dead_share,
        "inside_bytes": held.inside_bytes,
        "unneeded_objects": held.unneeded,
        "unneeded_bytes": held.unneeded_bytes,
        "unknown_objects": held.unknown,
        "unknown_bytes": held.unknown_bytes,
        "missing_contents": files.missing,
        "quarantined_objects": len(evidence),
        "quarantined_bytes": sum(found.size for found in evidence),
        "gone_objects": held.gone,
    }
