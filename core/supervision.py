"""What a supervisor does next: pure functions of what runs, what is wanted, and what happened so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["worker", "dispatcher"]

#: What ran for so long has not failed at its start: its end is mended at once. Seconds.
STEADY_S = 5.0
#: The wait after a second failure in a row, and the longest. Seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Part:
    """A process that is wanted: the worker of a number, or the dispatcher of a group."""

    role: Role
    number: int


@dataclass(frozen=True, slots=True)
class Start:
    """Start it."""

    part: Part


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask it to end: SIGTERM."""

    part: Part


@dataclass(frozen=True, slots=True)
class Kill:
    """End it: SIGKILL."""

    part: Part


Command = Start | Ask | Kill


@dataclass(slots=True)
class Running:
    """A process that runs. Units: seconds of a clock that only goes on."""

    started_s: float
    asked_s: float | None = None
    killed: bool = False


@dataclass(slots=True)
class Supervision:
    """What a supervisor knows of its processes.

    failures: how often in a row a part has ended just after its start. not_before_s: when it may start again.
    """

    running: dict[Part, Running] = field(default_factory=dict)
    failures: dict[Part, int] = field(default_factory=dict)
    not_before_s: dict[Part, float] = field(default_factory=dict)


def decide(
    now: Supervision,
    now_s: float,
    *,
    workers: int,
    queues: Collection[int],
    stopping: bool,
    grace_s: float,
    may_start: bool = True,
) -> list[Command]:
    """What to do next; nothing of it is done twice once note() was told of it.

    workers: how many are wanted. queues: groups that need a dispatcher; whether one is to end, it decides
    itself. grace_s: seconds that a process has to end after it was asked. may_start: False while there is
    no database that it could work for.
    """
    commands: list[Command] = []
    wanted = [] if stopping else [Part("worker", number) for number in range(1, workers + 1)]
    if not stopping:
        wanted += [Part("dispatcher", group_id) for group_id in sorted(queues)]
    if may_start:
        commands += [
            Start(part)
            for part in wanted
            if part not in now.running and now.not_before_s.get(part, now_s) <= now_s
        ]
    for part, running in now.running.items():
        surplus = stopping or (part.role == "worker" and part.number > workers)
        if running.asked_s is None:
            if surplus:
                commands.append(Ask(part))
        elif now_s - running.asked_s >= grace_s and not running.killed:
            commands.append(Kill(part))
    return commands


def note(now: Supervision, now_s: float, commands: Sequence[Command]) -> None:
    """Remember what was done."""
    for command in commands:
        match command:
            case Start(part):
                now.running[part] = Running(now_s)
                now.not_before_s.pop(part, None)
            case Ask(part):
                now.running[part].asked_s = now_s
            case Kill(part):
                now.running[part].killed = True


def note_end(now: Supervision, now_s: float, part: Part, *, well: bool) -> float:
    """Remember that a process has ended; returns how long to wait until it may start again, in seconds.

    well: it had nothing left to do, or what it needs was away for a while.
    """
    running = now.running.pop(part)
    steady = running.asked_s is not None or now_s - running.started_s >= STEADY_S
    if well or steady:
        now.failures.pop(part, None)
        wait_s = 0.0 if steady else FIRST_PAUSE_S
    else:
        now.failures[part] = now.failures.get(part, 0) + 1
        wait_s = pause_s(now.failures[part])
    if wait_s:
        now.not_before_s[part] = now_s + wait_s
    return wait_s


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row: the first is mended at once."""
    if failures < 2:
        return 0.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 2, 30))
