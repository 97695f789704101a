"""A computer that is reached, for the time of a command or a watch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grange.core import computer as computers
from grange.core.errors import ComputerDisabled
from grange.core.profile import Profile
from grange.farm.allocation import AllocationPaths
from grange.farm.computer import Computer
from grange.farm.remote import Remote


@dataclass(frozen=True, slots=True)
class Site:
    """A computer's row and what is there."""

    id: int
    remote: Remote

    @property
    def computer(self) -> Computer:
        """What is known of it."""
        return self.remote.computer

    @property
    def paths(self) -> AllocationPaths:
        """Where things are there. Errors: those of Transport."""
        return AllocationPaths(self.remote.work_dir, self.remote.code_dir)


@contextmanager
def reached(profile: Profile, label: str, tell: Callable[[str], None] | None = None) -> Iterator[Site]:
    """A computer; it is connected to when something is asked of it first.

    tell: is told why something takes long, where it cannot be reached (open_connection).
    Errors: NotFound; ComputerDisabled.
    """
    from grange.core.connection import open_connection

    with profile.transaction() as cursor:
        stored = computers.load(cursor, label, user_id=profile.user_id)
    if not stored.enabled:
        raise ComputerDisabled(label)
    transport = open_connection(profile, stored.computer, stored.id, tell=tell)
    try:
        yield Site(stored.id, Remote(transport, stored.computer))
    finally:
        transport.close()
