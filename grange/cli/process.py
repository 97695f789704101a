"""`grange process`: what ran, runs, or will run."""

from __future__ import annotations

import click

from grange.cli.lazy import LazyGroup

#: Each in a module of its own: grange/cli/process_<name>.py.
_NAMES = ("list", "show", "status", "report", "watch", "events", "run", "pause", "play", "kill", "repair")


@click.group("process", cls=LazyGroup, modules={name: f"grange.cli.process_{name}" for name in _NAMES})
def command() -> None:
    """Look at calculations and workflows; pause, play and kill them.

    PROCESS is an id, a uuid or its first digits, or a campaign and the number of a call.

    \b
    Examples:
      grange process list --failed
      grange process status 1234
      grange process kill 1234
    """
