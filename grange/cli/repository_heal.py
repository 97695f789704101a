"""`grange repository heal`: what is missing comes back from a backup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from grange.cli import words
from grange.cli.bucket_options import bucket_options, settings_of
from grange.cli.opened import opened


@click.command("heal")
@click.option(
    "--from", "folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder that is a copy of the store.",
)  # fmt: skip
@bucket_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def command(ctx: click.Context, folder: Path | None, given: dict[str, Any], as_json: bool) -> None:
    """Bring back from a backup of the store what nodes have and the store has not, or has in quarantine.

    Each content is compared with its key before it counts. What is damaged has to be in quarantine first.
    Exit status 1 if anything is missing still.

    \b
    Examples:
      grange repository scrub --quarantine
      grange repository heal --from /backup/store
    """
    from grange.cli.count_bar import count_bar
    from grange.core.heal import heal
    from grange.core.store_move import open_bare

    if (folder is None) == (not given):
        raise click.UsageError("Name the copy: a folder (--from), or a bucket (--endpoint, --bucket).")
    with opened(ctx) as profile:
        copy = open_bare(Path.cwd(), str(folder) if folder else settings_of(given))
        with count_bar("healing") as show:
            done = heal(profile, copy, show)
    if as_json:
        from grange.cli.machine import emit

        emit({"healed": done.healed, "missing": done.missing, "bytes": done.size})
    elif not done.healed and not done.missing:
        click.echo("nothing is missing")
    else:
        click.echo(f"healed {words.plural(len(done.healed), 'content')}, {words.size(done.size)}")
        if done.missing:
            click.echo(
                f"not in the copy, or damaged there, too: {words.plural(len(done.missing), 'content')}"
            )
    if done.missing:
        ctx.exit(1)
