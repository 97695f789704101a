"""Runs of campaigns: calls are recorded slice by slice and run, and what earlier runs have left with them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

from grange.core.calls import Call, Calls
from grange.core.engine import LARGEST_SLICE, SMALLEST_SLICE, Engine, Progress
from grange.core.profile import Profile
from grange.core.recording import Recorded, record_calls
from grange.farm.executor import Executor
from grange.farm.task import Batch, Resources


class CampaignRun(Engine):
    """One run of a campaign by this process, which holds the campaign's lock.

    resources: for what earlier runs have left and no map goes on with; None: what was recorded with it.
    places: for each map, the process that answers each of its calls (0: not recorded yet).
    """

    def __init__(
        self,
        profile: Profile,
        campaign_id: int,
        maps: Sequence[Calls],
        executor: Executor,
        resources: Resources | None,
        listener: Callable[[Progress], None],
        computer_id: int | None = None,
    ) -> None:
        super().__init__(
            profile, campaign_id, executor, listener, resources=resources, computer_id=computer_id
        )
        self.progress.total = sum(len(calls) for calls in maps)
        self.places = [array("q", bytes(8 * len(calls))) for calls in maps]
        self._maps = maps
        # without a map of our own, what is there to do is what an earlier run has left
        self._calls_each = 0 if maps else 1
        self._slices = self._all_slices()
        # Where the store does not answer: what is to be recorded next.
        self._next: tuple[int, int, list[Call]] | None = None
        self._mapping = True
        self._slice_size = SMALLEST_SLICE

    def _run(self) -> Progress:
        for calls in self._maps:
            # nothing to run yet, but what can never run here is refused before anything is stored
            self.executor.submit(Batch((), calls.resources))
        return super()._run()

    def _count(self) -> None:
        if not self._maps:
            super()._count()

    def _take(self) -> None:
        if self._mapping and not self._claimed:
            self._record_slice()
        else:
            self._claim()

    def _all_slices(self) -> Iterator[tuple[int, int, list[Call]]]:
        salt = b"campaign %d" % self.queue_id
        for number, calls in enumerate(self._maps):
            start = 0
            while start < len(calls):
                stop = start + self._slice_size
                yield number, start, calls.slice(start, stop, salt)
                start = stop

    def _record_slice(self) -> None:
        self._next = self._next or next(self._slices, None)
        if self._next is None:
            self._mapping = False
            return
        number, start, slice_ = self._next
        calls = self._maps[number]
        with self._store_awaited():
            recorded = record_calls(self.profile, self.queue_id, calls, slice_, computer_id=self.computer_id)
            self._next = None
        if self._next is not None:
            return
        self._slice_size = min(LARGEST_SLICE, self._slice_size * 2)
        places = self.places[number]
        for call, process_id in zip(slice_, recorded.places, strict=True):
            places[call.index] = process_id
        self._count_answered(recorded)
        self._submit(calls.recipe, calls.resources, recorded.to_run, len(calls) - start - len(slice_))

    def _count_answered(self, recorded: Recorded) -> None:
        self.progress.done += recorded.answered + recorded.refused
        self.progress.reused += recorded.answered
        self.progress.failed += recorded.failed
        for process_id, extra in recorded.awaited.items():
            opened = self._open.get(str(process_id))
            if opened is not None:
                opened.calls += extra
            else:
                self._followers.more(process_id, extra)
        for process_id, count in recorded.following.items():
            self._followers.add(process_id, count)
