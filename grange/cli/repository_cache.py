"""`grange repository cache`: the copies on this machine of what was read from a server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli import words
from grange.cli.opened import set_up_home

if TYPE_CHECKING:
    from grange.repository.block_cache import BlockCache


@click.group("cache")
def command() -> None:
    """Look at the copies of what was read from a server, or remove them.

    They only save time: whatever is removed is fetched again when it is needed.

    \b
    Example:
      grange repository cache show
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_context
def show(ctx: click.Context, as_json: bool) -> None:
    """Show how much is kept, and what use it was to all processes of this machine.

    \b
    Example:
      grange repository cache show
    """
    folder, cache, used = _cache_of(ctx)
    info = cache.info() if cache is not None else None
    if as_json:
        from grange.cli.machine import emit

        emit({"folder": str(folder), "used": used, "info": info})
        return
    from grange.cli.table import print_fields

    if info is None:
        click.echo(f"nothing is kept in {folder}")
    else:
        asked = info.hits + info.misses
        came = info.hit_bytes + info.fetched_bytes
        print_fields(
            [
                ("folder", str(folder)),
                ("kept", f"{words.size(info.kept_bytes)} of {words.size(info.limit_bytes)} that it may be"),
                ("files", words.number(info.files)),
                ("ranges read", f"{words.number(asked)}, {info.hits / asked:.1%} from here" if asked else ""),
                ("bytes", f"{words.size(info.hit_bytes)} from here, {words.size(info.fetched_bytes)} fetched"
                 if came else ""),
                ("counted since", _moment(info.since) if asked else ""),
            ]
        )  # fmt: skip
    if not used:
        click.echo("\nIt is not used: profile.toml names a folder as the store, or cache_gb = 0.")


@command.command()
@click.pass_context
def clear(ctx: click.Context) -> None:
    """Remove all copies, and count anew; others may go on reading meanwhile.

    \b
    Example:
      grange repository cache clear
    """
    folder, cache, _ = _cache_of(ctx)
    freed = cache.clear() if cache is not None else 0
    click.echo(f"{words.size(freed)} removed from {folder}" if freed else f"nothing is kept in {folder}")


def _moment(since: float) -> str:
    return words.moment(datetime.fromtimestamp(since, UTC))


def _cache_of(ctx: click.Context) -> tuple[Path, BlockCache | None, bool]:
    """The folder, the cache in it if there is one, and whether the profile uses it."""
    from grange.core.profile_file import read_profile_file
    from grange.repository.block_cache import BlockCache

    home = set_up_home(ctx)
    config = read_profile_file(home / "profile.toml")
    folder = home / config.cache
    limit_bytes = int(config.cache_gb * 1e9)
    used = not isinstance(config.store, str) and limit_bytes > 0
    return folder, BlockCache(folder, limit_bytes) if folder.is_dir() else None, used
