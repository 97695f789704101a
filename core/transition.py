"""The states of a process and what leads from one to another: plain functions, no clock, no database.

    created ──Submitted──▶ waiting ──Started──▶ running
       ▲                      │                    │
       └───────Requeued───────┴────────────────────┤
                                                   ├── Finished ──▶ finished (exit status)
                                                   ├── Excepted ──▶ excepted
                                                   └── Killed   ──▶ killed

A process may end from any state that is not an end. Results carry the number of the attempt that made
them: one of an earlier attempt, or for a process that has ended, changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from grange.core.errors import TransitionInvalid


class State(StrEnum):
    """The state of a process; the values are the database's."""

    CREATED = "created"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    EXCEPTED = "excepted"
    KILLED = "killed"


ENDED = frozenset({State.FINISHED, State.EXCEPTED, State.KILLED})
OPEN = frozenset(State) - ENDED


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """What moves of a process. exit_status is set if, and only if, the process is finished."""

    state: State = State.CREATED
    attempt: int = 0
    exit_status: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The farm has taken the task of a new attempt."""


@dataclass(frozen=True, slots=True)
class Started:
    """A runner has begun this attempt."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Requeued:
    """Whoever ran this attempt is gone; it has to be submitted again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """This attempt ended, well (0) or with a known way to fail."""

    attempt: int
    exit_status: int
    message: str = ""


@dataclass(frozen=True, slots=True)
class Excepted:
    """This attempt ended in an exception of the code that was to be run."""

    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class Killed:
    """Somebody ended the process."""

    message: str = ""


Event = Submitted | Started | Requeued | Finished | Excepted | Killed


def step(status: ProcessStatus, event: Event) -> ProcessStatus:
    """What a process is after an event.

    Errors: TransitionInvalid for an event that cannot happen in that state. Late news, of an earlier
    attempt or for a process that has ended, is no error and changes nothing.
    """
    if isinstance(event, Submitted):
        if status.state is not State.CREATED:
            raise TransitionInvalid(f"a process that is {status.state} cannot be submitted")
        return ProcessStatus(State.WAITING, status.attempt + 1, status.exit_status, status.message)
    if status.state in ENDED:
        return status
    if isinstance(event, Killed):
        return replace(status, state=State.KILLED, message=event.message)
    if event.attempt > status.attempt or status.state is State.CREATED:
        if event.attempt <= status.attempt:
            return status  # news of an attempt that was given up
        raise TransitionInvalid(
            f"news of attempt {event.attempt} of a process that is {status.state} in attempt {status.attempt}"
        )
    if event.attempt < status.attempt:
        return status
    if isinstance(event, Started):
        return replace(status, state=State.RUNNING)
    if isinstance(event, Requeued):
        return replace(status, state=State.CREATED)
    if isinstance(event, Finished):
        return ProcessStatus(State.FINISHED, status.attempt, event.exit_status, event.message)
    return replace(status, state=State.EXCEPTED, message=event.message)
