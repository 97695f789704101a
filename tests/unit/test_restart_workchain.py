"""The restart workflow: which handlers are asked, and what follows from what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_frame import Killed, MemoryFrame, Record, run

from grange.core.data import Int
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.outline import while_
from grange.core.process_handler import ProcessHandlerReport, process_handler
from grange.core.process_spec import ProcessSpec
from grange.core.restart_workchain import BaseRestartWorkChain
from grange.core.workflow_recipe import WorkflowEnd

NOT_CONVERGED = ExitCode(410, "not converged")
NO_MEMORY = ExitCode(420, "no memory")


def converge(steps: int, needed: int, end: str = "") -> int | ExitCode:
    if end == "raise":
        raise ValueError("broken")
    if end == "kill":
        raise Killed
    if end == "memory":
        return NO_MEMORY
    return steps if steps >= needed else NOT_CONVERGED


class Restarted(BaseRestartWorkChain):
    _process_class = converge

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.expose_inputs(converge, namespace="converge")
        spec.expose_outputs(converge)
        spec.output("result", valid_type=Int, required=False)
        spec.outline(
            cls.setup, while_(cls.should_run_process)(cls.run_process, cls.inspect_process), cls.results
        )

    def setup(self) -> None:
        super().setup()
        self.ctx.inputs = self.exposed_inputs(converge, "converge")

    @process_handler(exit_codes=NOT_CONVERGED)
    def more_steps(self, process: Any) -> ProcessHandlerReport:
        self.ctx.inputs.steps = Int(2 * self.ctx.inputs.steps.value)
        return ProcessHandlerReport()


def restarted(
    frame: MemoryFrame | None = None, *, cls: Any = None, inputs: Any = None, **converge: Any
) -> WorkflowEnd:
    return run(cls or Restarted, {"converge": {"needed": 1, **converge}, **(inputs or {})}, frame)


def status(end: WorkflowEnd) -> int:
    return end.exit_code.status if end.exit_code else 0


def reports(frame: MemoryFrame) -> list[str]:
    return [message for level, message in frame.record.reports if level == "REPORT"]


def handled_by(**handlers: Callable[[Any, Any], Any]) -> type[Restarted]:
    """A class with these handlers beside more_steps."""
    return type("Handled", (Restarted,), handlers)


def handler(name: str, returned: Any, **options: Any) -> Any:
    def asked(self: Any, process: Any) -> Any:
        self.report("%s asked", name)
        return returned

    asked.__name__ = name
    return process_handler(**options)(asked)


# ---------------------------------------------------------------- what becomes of it


def test_what_is_well_at_once_is_run_once() -> None:
    frame = MemoryFrame()
    end = restarted(frame, steps=3)
    assert (status(end), end.outputs["result"].value, frame.ran) == (0, 3, 1)


def test_a_handler_changes_the_inputs_until_it_is_well() -> None:
    frame = MemoryFrame()
    end = restarted(frame, steps=1, needed=7)
    assert (status(end), end.outputs["result"].value) == (0, 8)
    calls = frame.record.calls
    assert [call.inputs["steps"].value for call in calls] == [1, 2, 4, 8]
    assert [call.link_label for call in calls] == [
        "iteration_01",
        "iteration_02",
        "iteration_03",
        "iteration_04",
    ]


def test_there_is_a_most_of_iterations() -> None:
    frame = MemoryFrame()
    end = restarted(frame, steps=1, needed=100, inputs={"max_iterations": 3})
    assert (status(end), frame.ran, end.outputs) == (401, 3, {})


def test_it_may_pause_there_and_begin_to_count_anew() -> None:
    frame = MemoryFrame()
    end = restarted(frame, steps=1, needed=16, inputs={"max_iterations": 2, "pause_on_max_iterations": True})
    assert (status(end), frame.ran) == (0, 5)
    assert len(frame.record.pauses) == 2
    assert [call.link_label for call in frame.record.calls] == [f"iteration_0{n}" for n in range(1, 6)]
    assert f"grange process play {frame.process_id}" in frame.record.pauses[0]


@pytest.mark.parametrize(("how", "expected"), [("raise", 301), ("kill", 302)])
def test_what_excepted_or_was_killed_ends_it_unasked(how: str, expected: int) -> None:
    frame = MemoryFrame()
    cls = handled_by(any_=handler("any_", ProcessHandlerReport()))
    end = restarted(frame, cls=cls, steps=1, end=how)
    assert status(end) == expected
    assert end.exit_code is not None
    assert "(process " in end.exit_code.message  # which one
    assert frame.ran == 1
    assert "any_ asked" not in reports(frame)


@pytest.mark.parametrize(
    ("action", "expected", "ran", "pauses"),
    [("abort", 402, 1, 0), ("restart_once", 402, 2, 0), ("pause", 0, 4, 3), ("restart_and_pause", 0, 4, 1)],
)
def test_failures_that_no_handler_knows(action: str, expected: int, ran: int, pauses: int) -> None:
    """Three failures, then it is well: what is done about each."""

    class Mended(Restarted):
        def run_process(self) -> Any:
            self.ctx.inputs["end"] = "memory" if len(self.ctx.children) < 3 else ""
            return super().run_process()

    frame = MemoryFrame()
    end = restarted(frame, cls=Mended, steps=3, inputs={"on_unhandled_failure": action})
    assert (status(end), frame.ran, len(frame.record.pauses)) == (expected, ran, pauses)


def test_two_failures_in_a_row_are_two_only_if_nothing_was_well_between() -> None:
    class Alternating(Restarted):
        def run_process(self) -> Any:
            number = len(self.ctx.children)
            self.ctx.inputs["end"] = "memory" if number % 2 == 0 and number < 5 else ""
            return super().run_process()

        @process_handler
        def once_more(self, process: Any) -> ProcessHandlerReport | None:
            return ProcessHandlerReport() if process.is_finished_ok and len(self.ctx.children) < 6 else None

    frame = MemoryFrame()
    inputs = {"on_unhandled_failure": "restart_once", "max_iterations": 20}
    assert status(restarted(frame, cls=Alternating, steps=3, inputs=inputs)) == 0
    assert frame.ran == 6


# ---------------------------------------------------------------- handlers


def test_handlers_are_asked_from_the_highest_priority_down() -> None:
    cls = handled_by(
        low=handler("low", None, priority=-5),
        high=handler("high", None, priority=100),
        off=handler("off", None, priority=200, enabled=False),
        middle=handler("middle", None, priority=10),
        of_memory=handler("of_memory", None, exit_codes=[NO_MEMORY, 120]),
    )
    frame = MemoryFrame()
    restarted(frame, cls=cls, steps=3)
    assert [one for one in reports(frame) if "asked" in one] == ["high asked", "middle asked", "low asked"]
    frame = MemoryFrame()
    overrides = {"high": {"enabled": False}, "off": {"enabled": True}, "low": {"priority": 500}}
    restarted(frame, cls=cls, steps=3, end="memory", inputs={"handler_overrides": overrides})
    assert [one for one in reports(frame) if "asked" in one] == [
        "low asked",
        "off asked",
        "middle asked",
        "of_memory asked",
    ]


def test_a_handler_may_end_the_asking_and_the_workflow() -> None:
    cls = handled_by(
        first=handler("first", ProcessHandlerReport(True, ExitCode(430, "hopeless")), priority=10),
        second=handler("second", ProcessHandlerReport(), priority=5),
    )
    frame = MemoryFrame()
    assert status(restarted(frame, cls=cls, steps=3)) == 430
    assert "second asked" not in reports(frame)


def test_without_break_the_last_report_counts() -> None:
    cls = handled_by(
        first=handler("first", ProcessHandlerReport(exit_code=ExitCode(430, "hopeless")), priority=10),
        second=handler("second", ProcessHandlerReport(exit_code=ExitCode(431, "worse")), priority=5),
        third=handler("third", None, priority=1),
    )
    assert status(restarted(cls=cls, steps=3)) == 431


def test_a_handler_may_find_it_well_enough() -> None:
    class Lenient(Restarted):
        @process_handler(priority=5, exit_codes=NO_MEMORY)
        def good_enough(self, process: Any) -> ProcessHandlerReport:
            self.ctx.is_finished = True
            return ProcessHandlerReport(True)

    frame = MemoryFrame()
    inputs = {"max_iterations": 1}
    assert status(restarted(frame, cls=Lenient, steps=3, end="memory", inputs=inputs)) == 0
    assert frame.ran == 1
    assert not any("again" in message for message in reports(frame))


def test_handlers_are_inherited_and_overridden() -> None:
    class Derived(Restarted):
        @process_handler(exit_codes=NOT_CONVERGED)
        def more_steps(self, process: Any) -> ProcessHandlerReport:
            self.ctx.inputs.steps = Int(100)
            return ProcessHandlerReport()

    frame = MemoryFrame()
    assert restarted(frame, cls=Derived, steps=1, needed=50).outputs["result"].value == 100
    assert list(Derived.get_process_handlers()) == ["more_steps"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"max_iterations": 0}, "at least 1"),
        ({"on_unhandled_failure": "hope"}, "abort, pause"),
        ({"handler_overrides": {"fewer_steps": {}}}, "there are: more_steps"),
        ({"handler_overrides": {"more_steps": {"enabled": 1}}}, "True or False"),
        ({"handler_overrides": {"more_steps": {"priority": "high"}}}, "an int"),
        ({"handler_overrides": {"more_steps": {"prio": 1}}}, "enabled, priority"),
        ({"handler_overrides": {"more_steps": True}}, "a dict with"),
    ],
)
def test_inputs_that_cannot_be(inputs: Any, said: str) -> None:
    with pytest.raises(InputInvalid, match=said):
        restarted(steps=1, inputs=inputs)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: process_handler(3),  # type: ignore[call-overload]
        lambda: process_handler(lambda self: None),  # type: ignore[arg-type,misc]
        lambda: process_handler(priority="high")(lambda self, process: None),  # type: ignore[call-overload]
        lambda: process_handler(exit_codes="ERROR")(lambda self, process: None),  # type: ignore[call-overload]
        lambda: process_handler(enabled=1)(lambda self, process: None),  # type: ignore[call-overload]
        lambda: ProcessHandlerReport(exit_code=3),  # type: ignore[arg-type]
    ],
)
def test_handlers_that_cannot_be(wrong: Callable[[], object]) -> None:
    with pytest.raises(InputInvalid):
        wrong()


def test_a_handler_that_returns_something_else_is_an_error() -> None:
    with pytest.raises(InputInvalid, match=r"odd.*ProcessHandlerReport"):
        restarted(cls=handled_by(odd=handler("odd", True)), steps=3)


def test_it_goes_on_from_its_record() -> None:
    whole = MemoryFrame()
    restarted(whole, steps=1, needed=7)
    for known in range(5):
        frame = MemoryFrame(Record(whole.record.calls[:known], whole.record.reports[:known]))
        assert restarted(frame, steps=1, needed=7).outputs["result"].value == 8
        assert frame.ran == 4 - known
        assert frame.record.reports == whole.record.reports
