"""Pausing, playing and killing processes from scripts and notebooks."""

from __future__ import annotations

from collections.abc import Iterable

from grange.core import process_control
from grange.core.call_binding import given_profile
from grange.core.errors import InputInvalid
from grange.core.future import Future
from grange.core.kill import kill
from grange.core.node import ProcessNode
from grange.core.profile import Profile
from grange.core.reference import node_ids

Which = Future | ProcessNode | int | str


def pause_processes(
    processes: Which | Iterable[Which],
    *,
    reason: str = "",
    tree: bool = False,
    profile: Profile | None = None,
) -> int:
    """Set processes aside until somebody plays them; returns how many were not paused before.

        gr.pause_processes(futures, reason="wrong cell?", profile=profile)

    A workflow makes no further step; a calculation that nobody has begun does not begin, and one that the
    farm has goes on to its end. processes: futures, process nodes, ids, uuids or "campaign/3", one or many.
    tree: with all that they have called.
    Errors: NotFound, InputInvalid.
    """
    profile = given_profile(profile, "pause_processes")
    return process_control.pause(profile, _ids(profile, processes), reason, tree=tree)


def play_processes(
    processes: Which | Iterable[Which], *, tree: bool = False, profile: Profile | None = None
) -> int:
    """Let paused processes go on; returns how many were paused. Arguments and errors: as pause_processes."""
    profile = given_profile(profile, "play_processes")
    return process_control.play(profile, _ids(profile, processes), tree=tree)


def kill_processes(processes: Which | Iterable[Which], *, profile: Profile | None = None) -> int:
    """End processes and all that they have called; returns how many had not ended.

    What waits never starts; what runs gets SIGTERM and then SIGKILL, and what it left is recorded: by whoever
    runs it, within seconds, or here where nobody does. processes: as pause_processes.
    Errors: NotFound, InputInvalid; those of reaching a computer.
    """
    profile = given_profile(profile, "kill_processes")
    return kill(profile, ids=_ids(profile, processes))


def _ids(profile: Profile, processes: Which | Iterable[Which]) -> list[int]:
    given = [processes] if isinstance(processes, Which) else list(processes)
    names = []
    for one in given:
        if isinstance(one, bool) or not isinstance(one, Which):
            raise InputInvalid("processes", one, "futures, process nodes, ids, uuids, or campaign/number")
        if isinstance(one, ProcessNode) and one.id is None:
            raise InputInvalid("processes", one, "a process that is stored")
        names.append(str(one.id if isinstance(one, Future | ProcessNode) else one))
    with profile.transaction() as cursor:
        return node_ids(cursor, names)
