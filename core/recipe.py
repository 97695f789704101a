"""Recipes: how the calls of one function or class become tasks, and results become outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from grange.core.exit_code import ExitCode
from grange.core.exit_status import FIRST_OWN
from grange.core.node import Data, ProcessNode
from grange.core.output_files import OutputFiles
from grange.core.port import Ports
from grange.core.transition import Event, Excepted, Finished, Killed, State
from grange.farm.result import TaskResult
from grange.farm.task import Task


@dataclass(frozen=True, slots=True)
class Draft:
    """A call made ready: what its process node holds beside the recipe's, and what the task is made of."""

    payload: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a result means: how the process ends, and the data that it made."""

    state: State
    exit_status: int | None
    message: str
    outputs: Mapping[str, Data] = field(default_factory=dict)
    #: whether equal processes are not to be answered by this one
    invalidates_cache: bool = False

    def event(self, attempt: int) -> Event:
        """What happened to the process in this attempt."""
        if self.state is State.KILLED:
            return Killed(self.message)
        if self.state is State.EXCEPTED:
            return Excepted(attempt, self.message)
        return Finished(attempt, self.exit_status or 0, self.message)


class Recipe(Protocol):
    """How the calls of one function or class are run."""

    label: str
    process_type: str
    node_class: type[ProcessNode]
    ports: Ports
    #: SHA-256 of what determines the result beside the inputs
    fingerprint: bytes
    #: of every process node of this recipe
    attributes: Mapping[str, Any]
    files: Mapping[str, bytes]
    #: whether conclude() is likely to look into the files
    parses: bool
    #: whether its code lets equal calls answer each other
    caching: bool

    def draft(self, values: Mapping[str, object]) -> Draft:
        """Make a call ready. Errors: whatever the user's code raises."""
        ...

    def task(self, process_id: int, attempt: int, draft: Draft) -> Task:
        """The task of one attempt."""
        ...

    def conclude(self, result: TaskResult, values: Mapping[str, object], files: OutputFiles) -> Conclusion:
        """What the result of an attempt means."""
        ...


def failed(code: ExitCode, detail: str = "", outputs: Mapping[str, Data] | None = None) -> Conclusion:
    """The conclusion for a known way to fail; detail, where there is one, says it better."""
    message = f"{code.message}: {detail}" if detail else code.message
    return Conclusion(State.FINISHED, code.status, message, outputs or {}, invalidates_cache(code))


def invalidates_cache(code: ExitCode) -> bool:
    """Whether a calculation that failed so is no answer to equal ones.

    The numbers below FIRST_OWN tell of this one run (its memory, its node, its scheduler): an equal one may
    well succeed. What a class or function declares is believed, unless it says otherwise.
    """
    return code.invalidates_cache or code.status < FIRST_OWN


def succeeded(outputs: Mapping[str, Data]) -> Conclusion:
    """The conclusion for a calculation that did what it should."""
    return Conclusion(State.FINISHED, 0, "", outputs)
