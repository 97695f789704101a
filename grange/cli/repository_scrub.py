"""`grange repository scrub`: hash every stored content again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.core.scrub import Damage, Scrubbed
    from grange.repository import Key

#: Of what is damaged, and of the nodes that are hit, so many are shown; --json has them all.
_SHOWN = 20
#: And so many of the contents of one object.
_KEYS_SHOWN = 3


@click.command("scrub")
@click.option(
    "--sample", metavar="PERCENT", type=click.FloatRange(0, 100, min_open=True),
    help="Stop after so much of all, and go on there the next time.",
)  # fmt: skip
@click.option("--quarantine", is_flag=True, help="Take what is damaged out of the index; its bytes are kept.")
@click.option("--known", "known_only", is_flag=True, help="Look only at what was found damaged before.")
@click.option("--restart", is_flag=True, help="Begin with the first object again.")
@click.option("--take-over", is_flag=True,
    help="With --quarantine, as `grange repository take-over` before: the store is this database's now.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context,
    sample: float | None,
    quarantine: bool,
    known_only: bool,
    restart: bool,
    take_over: bool,
    as_json: bool,
) -> None:
    """Hash every stored content again, and tell what is damaged or missing and which nodes have it.

    Stopped or killed, it goes on where it was when it is called again. With --sample 5 it checks a twentieth
    of everything each time: called every night, all of it in three weeks. Exit status 1 if something is
    damaged.

    What is in quarantine is unknown to the index: reading it says so, and storing the same content again
    heals it. Its bytes are kept in the store below quarantine/.

    \b
    Examples:
      grange repository scrub
      grange repository scrub --sample 5
      grange repository scrub --known --quarantine
    """
    from grange.cli.count_bar import count_bar
    from grange.core.scrub import scrub

    with opened(ctx) as profile:
        with count_bar("scrubbing", words.size) as show:
            done = scrub(
                profile,
                share=1.0 if sample is None else sample / 100,
                restart=restart,
                known_only=known_only,
                quarantine=quarantine,
                take_over=take_over,
                show=show,
            )
    if as_json:
        from grange.cli.machine import emit

        emit(_document(done))
    else:
        _tell(done, known_only)
    if done.found or done.unknown or done.state.malformed:
        ctx.exit(1)


def _tell(done: Scrubbed, known_only: bool) -> None:
    if not known_only:
        of = f" of {words.size(done.total_bytes)}" if done.total_bytes > done.stored_bytes else ""
        click.echo(
            f"checked {words.plural(done.blobs, 'content')} in {words.plural(done.objects, 'object')}, "
            f"{words.size(done.stored_bytes)}{of}"
            + (", going on where the last call stopped" if done.went_on else "")
        )
        if not done.state.complete:
            click.echo("the next call goes on from here")
    if done.well:
        click.echo(
            f"{words.plural(done.well, 'content')} that had been damaged: well again, or not known any more"
        )
    if done.found:
        _show_damage(done)
    if done.unknown:
        _show_unknown(done)
    if done.found or done.unknown:
        _show_hits(done)
        _advise(done)
    elif not done.state.malformed:
        click.echo("all of it is well")
    for name, reason in sorted(done.state.malformed.items())[:_SHOWN]:
        click.echo(
            f"{name}: its contents are read by the index, but not without it: {reason}. "
            "`grange repository scrub --known --quarantine` writes its contents anew"
        )


def _show_damage(done: Scrubbed) -> None:
    """A line for each object and what is wrong in it, whole: an object is what a backup gives back."""
    together: dict[tuple[str, str], list[Damage]] = {}
    for one in done.found:
        together.setdefault((one.name, one.reason), []).append(one)
    click.echo("\ndamaged:")
    for (name, reason), found in list(together.items())[:_SHOWN]:
        count = f"{words.plural(len(found), 'content')}, {words.size(sum(one.size for one in found))}"
        click.echo(f"  {click.style(name, fg='red')}: {count}: {reason}")
        for one in found[:_KEYS_SHOWN]:
            click.echo(f"    {one.key}")
        if len(found) > _KEYS_SHOWN:
            click.echo(f"    and {len(found) - _KEYS_SHOWN:,} more; --json has all")
    _more(len(together))


def _show_unknown(done: Scrubbed) -> None:
    from grange.cli.table import Cell, Column, print_table

    def why(key: Key) -> str:
        note = done.quarantined.get(key)
        return f"in quarantine: {note.reasons[key]}" if note else "not known to the index"

    click.echo()
    print_table(
        [Column("missing content", flexible=True), Column("why", flexible=True)],
        [(Cell(key, "red"), why(key)) for key in done.unknown[:_SHOWN]],
    )
    _more(len(done.unknown))


def _show_hits(done: Scrubbed) -> None:
    from grange.cli.table import Column, print_table

    if not done.hits:
        return
    click.echo()
    print_table(
        [Column("node", right=True), Column("type", flexible=True), Column("label", flexible=True),
         Column("file", flexible=True)],
        [(str(hit.id), hit.node_type, hit.label,
          hit.path + (f" and {hit.count - 1} more" if hit.count > 1 else ""))
         for hit in done.hits[:_SHOWN]],
    )  # fmt: skip
    _more(done.hit_count)


def _advise(done: Scrubbed) -> None:
    """What it comes to, and what to do."""
    click.echo()
    said = [f"{words.plural(len(done.found), 'content')} damaged"] if done.found else []
    said += [f"{words.plural(len(done.unknown), 'content')} missing"] if done.unknown else []
    hit = f"{words.plural(done.hit_count, 'node')} hit" if done.hit_count else "no node has them"
    click.echo(f"{', '.join(said)}, {hit}.")
    if done.taken_out:
        click.echo(
            "They are in quarantine: storing the same content again heals them. What there was is kept in "
            "the store below quarantine/."
        )
    for name, reason in list(done.left.items())[:_SHOWN]:
        click.echo(
            f"{name} cannot be copied to quarantine, and stays: {reason}. Mend the disk, or remove the "
            "object by hand, then do the same again"
        )
    if done.found and not done.taken_out and not done.left:
        click.echo(
            "`grange repository scrub --known --quarantine` takes them out of the index, so that storing the "
            "same content again heals them."
        )
    if len(done.unknown) > len(done.quarantined):
        click.echo("`grange repository rebuild-index` looks in the store for what the index does not know.")
    if done.hit_count:
        click.echo(
            "`grange repository heal --from BACKUP` brings back what a backup has; else store the files "
            "again, or run the calculations again in another campaign with cache=False."
        )


def _more(count: int) -> None:
    if count > _SHOWN:
        click.echo(f"{count - _SHOWN:,} more; --json has all")


def _document(done: Scrubbed) -> dict[str, object]:
    """Everything, for machines. Units: bytes; seconds since the epoch."""
    return {
        "complete": done.state.complete,
        "went_on": done.went_on,
        "began_at_s": done.state.began_at_s,
        "objects": done.objects,
        "blobs": done.blobs,
        "stored_bytes": done.stored_bytes,
        "total_bytes": done.total_bytes,
        "damaged": [
            {"key": one.key, "object": one.name, "reason": one.reason, "size": one.size,
             "missing": one.missing}
            for one in done.found
        ],
        "missing": [
            {"key": key, "quarantined": done.quarantined[key].evidence if key in done.quarantined else None}
            for key in done.unknown
        ],
        "malformed_packs": done.state.malformed,
        "nodes": [
            {"id": hit.id, "uuid": hit.uuid, "node_type": hit.node_type, "label": hit.label, "file": hit.path,
             "files": hit.count}
            for hit in done.hits
        ],
        "node_count": done.hit_count,
        "well_again": done.well,
        "left": done.left,
        "quarantined": [
            {"object": note.name, "evidence": note.evidence, "keys": list(note.reasons)}
            for note in done.taken_out
        ],
    }  # fmt: skip
