"""`grange repository heal`: what is missing comes back from a backup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.bucket_options import bucket_options, settings_of
from grange.cli.opened import opened

if TYPE_CHECKING:
    from grange.core.heal import Healed
    from grange.core.profile import Profile


@click.command("heal")
@click.option(
    "--from", "folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder that is a copy of the store.",
)  # fmt: skip
@bucket_options
@click.option("--clear", is_flag=True, help="Remove from quarantine what is healed: its damaged bytes.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, before --clear.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(
    ctx: click.Context, folder: Path | None, given: dict[str, Any], clear: bool, yes: bool, as_json: bool
) -> None:
    """Bring back from a backup of the store what nodes have and the store has not, or has in quarantine.

    Each content is compared with its key before it counts. What is damaged has to be in quarantine first.
    Exit status 1 if anything is missing still.

    \b
    Examples:
      grange repository scrub --quarantine
      grange repository heal --from /backup/store
      grange repository heal --clear
    """
    from grange.cli.count_bar import count_bar
    from grange.core.heal import Healed, heal
    from grange.core.store_move import open_bare

    if folder is not None and given:
        raise click.UsageError("Name a folder or a bucket, not both.")
    if folder is None and not given and not clear:
        raise click.UsageError("Name the copy: a folder (--from), or a bucket (--endpoint, --bucket).")
    done = Healed()
    cleared = 0
    with opened(ctx) as profile:
        if folder is not None or given:
            copy = open_bare(Path.cwd(), str(folder) if folder else settings_of(given))
            with count_bar("healing") as show:
                done = heal(profile, copy, show)
        if clear:
            cleared = _clear(profile, yes)
    if as_json:
        from grange.cli.machine import emit

        emit({"healed": done.healed, "missing": done.missing, "bytes": done.size, "cleared": cleared})
    else:
        _tell(done, cleared)
    if done.missing:
        ctx.exit(1)


def _clear(profile: Profile, yes: bool) -> int:
    """Remove what is not needed any more; says how many objects had been damaged."""
    from grange.cli.agreed import require_agreed
    from grange.core.heal import clear, healed_notes

    found = healed_notes(profile)
    if found:
        objects = words.plural(len(found), "damaged object")
        require_agreed(yes, f"Remove the copies of {objects} whose contents are all healed?")
        clear(profile, found)
    return len(found)


def _tell(done: Healed, cleared: int) -> None:
    if done.healed:
        click.echo(f"healed {words.plural(len(done.healed), 'content')}, {words.size(done.size)}")
    if done.missing:
        click.echo(f"not in the copy, or damaged there, too: {words.plural(len(done.missing), 'content')}")
    if cleared:
        click.echo(f"removed from quarantine: {words.plural(cleared, 'damaged object')}")
    if not (done.healed or done.missing or cleared):
        click.echo("nothing is missing, and nothing to be removed")
