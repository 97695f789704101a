"""The executor: who runs the tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from grange.farm.result import ResultPack
from grange.farm.task import Batch


class Executor(Protocol):
    """Runs tasks, delivers result packs. One thread uses it; the engine's loop is built on poll().

    An executor lives in one spool folder. Results survive the death of whoever submitted: packs that
    nobody acknowledged are delivered by recover() of the next executor on the same spool root.
    """

    @property
    def slots(self) -> int:
        """How many single-core tasks run at once."""
        ...

    @property
    def ahead(self) -> int:
        """How many tasks are worth having at hand while nobody knows how long they take."""
        ...

    @property
    def ahead_s(self) -> float:
        """For how long there should be work at hand. Units: seconds."""
        ...

    @property
    def outstanding(self) -> int:
        """How many submitted tasks have not been delivered yet."""
        ...

    @property
    def note(self) -> str:
        """What a person who waits should know: where it runs, or why nothing goes on; "" if nothing."""
        ...

    def submit(self, batch: Batch) -> None:
        """Take tasks; returns before they run. A batch without tasks asks whether its resources can be had.

        Errors: TaskRefused for what can never run here; SpoolUnwritable, ExecutorUnavailable.
        """
        ...

    def poll(self, timeout_s: float) -> list[ResultPack]:
        """What has finished since the last poll; waits up to timeout_s for the first."""
        ...

    def acknowledge(self, packs: Sequence[ResultPack]) -> None:
        """The results are recorded: their files in the spool may go (a moved file is no error)."""
        ...

    def recover(self) -> list[ResultPack]:
        """Result packs that earlier executors on this spool root left behind when they died."""
        ...

    def under_way(self) -> dict[str, int]:
        """Tasks that earlier executors on this spool root have submitted and that go on: id → attempt.

        Asked once, after recover(); each of them is then either gone on with or ended.
        """
        ...

    def go_on(self, ids: Collection[str], *, end_others: bool = True) -> None:
        """Of what is under way, deliver these tasks as if they had been submitted here; end the others."""
        ...

    def cancel(self, task_ids: Collection[str] | None = None) -> None:
        """End these tasks (None: all); each is delivered as cancelled unless it had ended before."""
        ...

    def close(self) -> None:
        """Let go: what is undelivered stays in the spool for recover(); what runs elsewhere goes on."""
        ...


class OnThisMachine:
    """What is alike of executors whose tasks end with them."""

    note = ""
    #: Enough to bury a transaction, little enough that the record stays close behind the results.
    ahead_s = 3.0

    @property
    def slots(self) -> int:
        """How many single-core tasks run at once."""
        raise NotImplementedError

    @property
    def ahead(self) -> int:
        """A few for each slot."""
        return 16 * self.slots

    def under_way(self) -> dict[str, int]:
        """Nothing."""
        return {}

    def go_on(self, ids: Collection[str], *, end_others: bool = True) -> None:
        """There is nothing to go on with."""
