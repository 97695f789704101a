"""The workflow whose code is being run right now, in this thread of execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from grange.core.future import Future
    from grange.core.profile import Profile
    from grange.farm.task import Resources


class Frame(Protocol):
    """What the code of a workflow can do: every call goes through it and is recorded with a number.

    While a workflow goes on from its record, recorded calls are answered from there, and reports that were
    made are not repeated.
    """

    process_id: int
    profile: Profile

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

    def wait(self, futures: Sequence[Future], *, any_of_them: bool = False) -> None:
        """Until all of these have ended, well or not (or one of them has)."""
        ...

    def report(self, message: str, level: str = "REPORT") -> None:
        """Write a line into the log of the process."""
        ...

    def pause(self, reason: str) -> None:
        """Pause the process here: it goes on behind this line when somebody plays it."""
        ...


_current: ContextVar[Frame | None] = ContextVar("grange_frame", default=None)


def current_frame() -> Frame | None:
    """The frame of the workflow that calls this; None outside of workflows."""
    return _current.get()


def enter_frame(frame: Frame) -> None:
    """Make a frame the current one, until the greenlet that calls this ends."""
    _current.set(frame)
