"""A frame in memory for the tests of WorkChains: what is submitted is run when somebody waits for it.

It keeps what frames promise (core/current_frame.py): calls are numbered and recorded, a second frame on the
same record answers from there, reports are not repeated. Calls of Python functions are run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from grange.core.data.convert import plain
from grange.core.exit_code import ExitCode
from grange.core.function_recipe import outputs_of_return
from grange.core.future import Future
from grange.core.node import Data
from grange.core.port import ports_of_function, unflatten, validate
from grange.core.process_spec import name_of_process
from grange.core.runnable import workflow_recipe_of
from grange.core.transition import State
from grange.core.workflow_recipe import WorkflowEnd

_ids = count(1)


class Killed(Exception):
    """A function of a test raises it: its process was killed."""


def stored(*nodes: Data) -> None:
    """Let data have ids, as if it were stored."""
    for node in nodes:
        if node.id is None:
            node.id = next(_ids)


@dataclass
class Call:
    """A recorded call and what came of it."""

    process: Any
    label: str
    link_label: str
    inputs: Mapping[str, Data]
    options: Mapping[str, Any]
    state: State = State.CREATED
    exit_status: int | None = None
    exit_message: str | None = None
    outputs: Mapping[str, Data] = field(default_factory=dict)


@dataclass
class Record:
    """What outlives a frame."""

    calls: list[Call] = field(default_factory=list)
    reports: list[tuple[str, str]] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)


class MemoryFrame:
    """See above. waits: how many futures were waited for, each time."""

    profile: Any = None

    def __init__(self, record: Record | None = None) -> None:
        self.process_id = next(_ids)
        self.record = record or Record()
        self.waits: list[int] = []
        self.ran = 0
        self._next_call = self._next_report = self._next_pause = 0
        self._call_of: dict[int, Call] = {}

    def call(self, runnable: Any, inputs: Mapping[str, object], **options: Any) -> Future:
        label, link_label = options.pop("label", ""), options.pop("link_label", "CALL")
        nodes = _checked(runnable, inputs)
        if self._next_call == len(self.record.calls):
            stored(*nodes.values())
            self.record.calls.append(Call(runnable, label, link_label, nodes, options))
        call = self.record.calls[self._next_call]
        self._next_call += 1
        assert call.process is runnable
        future = Future(self, name_of_process(runnable), 10_000 + self._next_call)
        self._call_of[id(future)] = call
        return future

    def call_many(
        self, runnable: Any, columns: Mapping[str, Any], *, product: bool = False, **options: Any
    ) -> list[Future]:
        assert not product
        length = max(len(column) for column in columns.values())
        options.pop("labels", None)
        return [
            self.call(runnable, {name: column[place] for name, column in columns.items()}, **options)
            for place in range(length)
        ]

    def run_here(self, function: Any, inputs: Mapping[str, object]) -> Any:
        raise NotImplementedError

    def wait(self, futures: Sequence[Future], *, any_of_them: bool = False) -> list[Future]:
        self.waits.append(len(futures))
        for future in futures:
            call = self._call_of[id(future)]
            if call.state is State.CREATED:
                self.ran += 1
                _run(call)
            future.settle(call.state, call.exit_status, call.exit_message)
            future.give(call.outputs)
        return list(futures)

    def wait_for(self, futures: Sequence[Future], timeout_s: float | None, any_of_them: bool) -> bool:
        return bool(self.wait(futures))

    def name(self, futures: Sequence[Future]) -> None:
        raise NotImplementedError

    def load_outputs(self, futures: Sequence[Future]) -> None:
        raise NotImplementedError

    def kill(self, futures: Sequence[Future]) -> None:
        raise NotImplementedError

    def report(self, message: str, level: str = "REPORT") -> None:
        if self._next_report == len(self.record.reports):
            self.record.reports.append((level, message))
        self._next_report += 1

    def let_others(self) -> None:
        self.waits.append(0)

    def pause(self, reason: str) -> None:
        if self._next_pause == len(self.record.pauses):
            self.record.pauses.append(reason)
        self._next_pause += 1


def run(
    chain: Any, inputs: Mapping[str, object] | None = None, frame: MemoryFrame | None = None, **named: object
) -> WorkflowEnd:
    """Run a WorkChain class in a frame of its own."""
    recipe = workflow_recipe_of(chain)
    assert recipe is not None
    given = recipe.given({**(inputs or {}), **named})
    stored(*given.nodes.values())
    return recipe.body(frame or MemoryFrame(), given.nodes, given.attributes)


def _checked(runnable: Any, inputs: Mapping[str, object]) -> Mapping[str, Data]:
    recipe = workflow_recipe_of(runnable)
    if recipe is not None:
        return recipe.given(inputs).nodes
    return validate(ports_of_function(runnable), inputs, name_of_process(runnable))


def _run(call: Call) -> None:
    recipe = workflow_recipe_of(call.process)
    try:
        if recipe is not None:
            end = recipe.body(MemoryFrame(), call.inputs, {})
            call.outputs, code = end.outputs, end.exit_code
        else:
            function: Callable[..., object] = call.process
            values = unflatten({label: plain(node) for label, node in call.inputs.items()})
            made = outputs_of_return(function(**values), call.label)
            code = made if isinstance(made, ExitCode) else None
            call.outputs = {} if isinstance(made, ExitCode) else made
            stored(*call.outputs.values())
        call.state = State.FINISHED
        call.exit_status, call.exit_message = (code.status, code.message) if code else (0, None)
    except Killed:
        call.state = State.KILLED
    except Exception as error:
        call.state, call.exit_message = State.EXCEPTED, f"{type(error).__name__}: {error}"
