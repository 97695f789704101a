"""The workflow whose code is being run right now, in this thread of execution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from grange.core.calcfunction import CalcFunction
    from grange.core.future import Future
    from grange.core.profile import Profile
    from grange.farm.task import Resources


class Frame(Protocol):
    """What the code of a workflow can do: every call goes through it and is recorded with a number.

    While a workflow goes on from its record, recorded calls are answered from there, and reports that were
    made are not repeated.
    """

    process_id: int

    @property
    def profile(self) -> Profile:
        """The profile that it is recorded in."""
        ...

    def call(
        self,
        runnable: Any,
        inputs: Mapping[str, object],
        *,
        label: str = "",
        link_label: str = "CALL",
        resources: Resources | None = None,
        executor: str | None = None,
        cache: bool | None = None,
    ) -> Future:
        """Submit a process as a call of this workflow; returns at once.

        runnable: a workflow function, a WorkChain class, a CalcJob class, a ShellJob, a calcfunction or
        another Python function (run by the farm). executor: a computer's label, "local" …; None: that of the
        workflow. Errors: InputInvalid.
        """
        ...

    def call_many(
        self,
        runnable: Any,
        columns: Mapping[str, object],
        *,
        product: bool = False,
        labels: Sequence[str] | None = None,
        resources: Resources | None = None,
        executor: str | None = None,
        cache: bool | None = None,
    ) -> list[Future]:
        """Many calls at once, as Campaign.map takes them: lists are gone through in step."""
        ...

    def run_here(self, function: CalcFunction, inputs: Mapping[str, object]) -> Any:
        """Call a calcfunction in this worker; returns what CalcFunction.run does. Errors: ProcessFailed."""
        ...

    def wait(self, futures: Sequence[Future], *, any_of_them: bool = False) -> list[Future]:
        """Until all of these have ended, well or not (or one of them has); returns those that have.

        Of any_of_them it is recorded which had ended, so that a replay sees the same.
        """
        ...

    def report(self, message: str, level: str = "REPORT") -> None:
        """Write a line into the log of the process."""
        ...

    def let_others(self) -> None:
        """Let other workflows go on for a while, and whoever wants this one to be paused or killed."""
        ...

    def pause(self, reason: str) -> None:
        """Pause the process here: it goes on behind this line when somebody plays it."""
        ...


_current: ContextVar[Frame | None] = ContextVar("grange_frame", default=None)


_calculating: ContextVar[bool] = ContextVar("grange_calculating", default=False)


def current_frame() -> Frame | None:
    """The frame of the workflow that calls this; None outside of workflows."""
    return None if _calculating.get() else _current.get()


@contextmanager
def calculating() -> Iterator[None]:
    """Around a calculation that a workflow runs here: what it calls is no call of the workflow."""
    token = _calculating.set(True)
    try:
        yield
    finally:
        _calculating.reset(token)


def is_calculating() -> bool:
    """Whether this is called by a calculation that a workflow runs here."""
    return _calculating.get()


def enter_frame(frame: Frame) -> None:
    """Make a frame the current one, until the greenlet that calls this ends."""
    _current.set(frame)
