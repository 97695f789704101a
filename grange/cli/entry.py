"""Between the shell and the commands: exit statuses, and errors said in two lines.

0 well, 1 an error of grange, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from grange.cli.interrupt import kept_interrupts
from grange.cli.root import root

INTERRUPTED = 130


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    try:
        with kept_interrupts():
            status = root.main(list(arguments), prog_name="grange", standalone_mode=False)
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        # a campaign says what was done until it was interrupted; click hides that in the cause
        said = str(error) or str(error.__cause__ or "")
        print(said or "interrupted", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return 1
    except Exception as error:
        from grange.cli.advice import is_ours

        if not is_ours(error):
            raise
        _say(error)
        return 1


def _say(error: Exception) -> None:
    sys.stdout.flush()
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True, color=_color())
    from grange.cli.advice import advice_on

    advice = advice_on(error)
    if advice:
        click.echo(advice, err=True)


def _color() -> bool | None:
    return False if os.environ.get("NO_COLOR") else None


def _forget_stdout() -> None:
    """Whoever read our output has gone: let the interpreter's last flush go nowhere, quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
