"""Asking before something is taken away, and saying why it takes so long."""

from __future__ import annotations

import sys

import click

from grange.cli.refused import Refused


def require_agreed(yes: bool, question: str) -> None:
    """Ask, unless --yes was said.

    Errors: Refused where nobody can answer; click.Abort for no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused(f"nobody is there to answer: {question}", "say --yes, or --dry-run to see what it is")
    click.confirm(question, abort=True, err=True)


def say_waiting_for_writers() -> None:
    """Say on standard error why nothing happens."""
    click.echo("waiting for a moment in which nobody stores files (Ctrl-C waits no longer)", err=True)
