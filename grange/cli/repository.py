"""`grange repository`: the files of all nodes, and what keeps them in order."""

from __future__ import annotations

import click

from grange.cli.lazy import LazyGroup

#: A command is named here, on a line of its own, once its module grange/cli/repository_<name>.py is there.
_NAMES: tuple[str, ...] = (
    "init",
    "info",
    "cache",
    "prune",
    "repack",
    "rebuild-index",
    "scrub",
    "heal",
    "fetch",
    "migrate",
    "take-over",
)


@click.group(
    "repository",
    cls=LazyGroup,
    modules={
        **{name: f"grange.cli.repository_{name.replace('-', '_')}" for name in _NAMES},
        "export": "grange.cli.repository_fetch",  # another word for it
    },
)
def command() -> None:
    """Look after the files of all nodes: count them, free space, put the index in order.

    \b
    Examples:
      grange repository info
      grange repository prune --dry-run
    """
