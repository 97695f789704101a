"""`grange caching`: which equal calculations answer each other."""

from __future__ import annotations

import click

from grange.cli.lazy import LazyGroup


@click.group(
    "caching",
    cls=LazyGroup,
    modules={
        "show": "grange.cli.caching_show",
        "why": "grange.cli.node_hash",
        "invalidate": "grange.cli.caching_invalidate",
        "validate": "grange.cli.caching_validate",
    },
)
def command() -> None:
    """Equal calculations are computed once: see what that means here, and take back what is wrong.

    \b
    Examples:
      grange caching show my_package.jobs.Energy
      grange caching why fcc-eos/3
      grange caching invalidate --campaign with-the-wrong-library
    """
