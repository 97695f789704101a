"""The profile that a command looks into. Looking never makes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli.patience import Patience
from grange.cli.refused import Refused

if TYPE_CHECKING:
    from grange.core.profile import Profile


def home_of(ctx: click.Context) -> Path:
    """The folder of the profile that is meant, whether or not it is there."""
    from grange.core.profile import home_folder

    return home_folder(ctx.find_root().obj)


def is_set_up(home: Path) -> bool:
    """Whether a folder holds a profile."""
    return (home / "profile.toml").exists() or (home / "postgres" / "data").exists()


def set_up_home(ctx: click.Context) -> Path:
    """The folder of the profile that is meant.

    Errors: Refused where nothing was ever set up.
    """
    home = home_of(ctx)
    if not is_set_up(home):
        raise Refused(
            f"there is no profile in {home}: nothing has been computed there yet",
            "the first campaign, or `gr.open()` in Python, makes one; GRANGE_HOME or --home name others",
        )
    return home


@contextmanager
def opened(ctx: click.Context) -> Iterator[Profile]:
    """The profile, open; its server is started where it sleeps.

    Errors: Refused where nothing was ever set up.
    """
    from grange.core.profile import open_profile

    with open_profile(set_up_home(ctx)) as profile:
        profile.retries.on_retry = Patience()
        yield profile
