"""The first word after `grange`."""

from __future__ import annotations

import os

import click

from grange.cli.lazy import LazyGroup
from grange.version import VERSION

_COMMANDS = {
    name: f"grange.cli.{name}"
    for name in (
        "status",
        "campaign",
        "process",
        "caching",
        "node",
        "graph",
        "computer",
        "code",
        "allocation",
        "repository",
        "profile",
        "daemon",
        "database",
    )
}


@click.group(
    cls=LazyGroup,
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog='Completion of commands by the Tab key, for bash: eval "$(_GRANGE_COMPLETE=bash_source grange)" '
    "(zsh_source, fish_source for others).",
)
@click.version_option(VERSION, "-V", "--version", prog_name="grange", message="%(prog)s %(version)s")
@click.option(
    "--home",
    metavar="FOLDER",
    type=click.Path(file_okay=False),
    help="The folder of the profile; else GRANGE_HOME, else ~/.grange.",
)
@click.pass_context
def root(ctx: click.Context, home: str | None) -> None:
    """Look at what grange has computed, and go on with it.

    \b
    Examples:
      grange status
      grange campaign show fcc-eos
      grange process list --failed
      grange graph 1234 -o origin.svg
    """
    ctx.obj = home
    if os.environ.get("NO_COLOR"):
        ctx.color = False
