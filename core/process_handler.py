"""Process handlers: methods of a restart workflow that know what to do about one kind of failure."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode

#: Takes the WorkChain and the process that has ended.
Handler = Callable[[Any, Any], "ProcessHandlerReport | None"]


@dataclass(frozen=True, slots=True)
class ProcessHandlerReport:
    """What a handler returns where it knew what to do: the process is run again.

    do_break: no further handler is asked. exit_code: the WorkChain ends with it, nothing is run again.
    """

    do_break: bool = False
    exit_code: ExitCode | None = None

    def __post_init__(self) -> None:
        if self.exit_code is not None and not isinstance(self.exit_code, ExitCode):
            raise InputInvalid("ProcessHandlerReport: exit_code", self.exit_code, "a gr.ExitCode, or None")


@dataclass(frozen=True, slots=True)
class HandlerRule:
    """When a handler is asked. statuses: None for every process that has finished."""

    name: str
    priority: int
    statuses: frozenset[int] | None
    enabled: bool


@overload
def process_handler(wrapped: Handler, /) -> Handler: ...
@overload
def process_handler(
    *,
    priority: int = 0,
    exit_codes: ExitCode | int | Sequence[ExitCode | int] | None = None,
    enabled: bool = True,
) -> Callable[[Handler], Handler]: ...
def process_handler(
    wrapped: Handler | None = None,
    /,
    *,
    priority: int = 0,
    exit_codes: ExitCode | int | Sequence[ExitCode | int] | None = None,
    enabled: bool = True,
) -> Handler | Callable[[Handler], Handler]:
    """Make a method of a BaseRestartWorkChain one that is asked what to do when a process has ended.

        @gr.process_handler(priority=100, exit_codes=Energy.NO_CONVERGENCE)
        def more_steps(self, process):
            self.ctx.inputs.steps = gr.Int(2 * self.ctx.inputs.steps.value)
            return gr.ProcessHandlerReport()

    Handlers are asked from the highest priority down, those of the same one by name. exit_codes: only for
    processes that have finished with one of these. enabled: may be changed by the input handler_overrides.
    A handler that has nothing to do with it returns None.
    Errors: InputInvalid.
    """
    if wrapped is None:
        return functools.partial(_handler, priority=priority, exit_codes=exit_codes, enabled=enabled)
    return _handler(wrapped, priority=0, exit_codes=None, enabled=True)


def _handler(
    wrapped: Handler,
    *,
    priority: int,
    exit_codes: ExitCode | int | Sequence[ExitCode | int] | None,
    enabled: bool,
) -> Handler:
    where = f"process_handler {getattr(wrapped, '__name__', '')}".rstrip()
    if not inspect.isfunction(wrapped) or len(inspect.signature(wrapped).parameters) != 2:
        raise InputInvalid(where, wrapped, "a method (self, process)")
    if type(priority) is not int:
        raise InputInvalid(f"{where}: priority", priority, "an int")
    if not isinstance(enabled, bool):
        raise InputInvalid(f"{where}: enabled", enabled, "True or False")
    statuses = None if exit_codes is None else _statuses(exit_codes, where)

    @functools.wraps(wrapped)
    def asked(self: Any, process: Any) -> ProcessHandlerReport | None:
        if statuses is not None and process.exit_status not in statuses:
            return None
        report: ProcessHandlerReport | None = wrapped(self, process)
        return report

    asked.rule = HandlerRule(wrapped.__name__, priority, statuses, enabled)  # type: ignore[attr-defined]
    return asked


def _statuses(exit_codes: ExitCode | int | Sequence[ExitCode | int], where: str) -> frozenset[int]:
    statuses = set()
    for code in [exit_codes] if isinstance(exit_codes, ExitCode | int) else exit_codes:
        if not isinstance(code, ExitCode) and type(code) is not int:
            raise InputInvalid(f"{where}: exit_codes", code, "exit codes or their statuses")
        statuses.add(code.status if isinstance(code, ExitCode) else code)
    return frozenset(statuses)


def rule_of(method: object) -> HandlerRule | None:
    """The rule of a handler; None for what is none."""
    rule = getattr(method, "rule", None)
    return rule if isinstance(rule, HandlerRule) else None
