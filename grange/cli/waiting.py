"""What is said while a command waits for a computer that cannot be reached."""

from __future__ import annotations

import click


def say_waiting(why: str) -> None:
    """Say on standard error why nothing happens; nothing where it goes on."""
    if why:
        click.echo(f"{why} (Ctrl-C waits no longer)", err=True)
