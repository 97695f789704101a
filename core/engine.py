"""The engine: one loop that records calls, has them run, and records what came of them.

    fill the window (record a slice of calls, submit it) → poll the executor → record → again

A slice is one transaction, and so is what a poll delivers; a process is recorded before its task is
submitted, and its result pack is in the store before the rows that point into it. So it may be killed
between any two lines: the next run takes in what the spool holds and claims what has no result.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

from grange.core import process as rows
from grange.core.calls import Call, Calls
from grange.core.code_place import CodePlaces
from grange.core.intake import Intake, Opened
from grange.core.profile import Profile
from grange.core.recipe import Recipe
from grange.core.recorded import RecordedRecipes, load_values
from grange.core.recording import Recorded, ToRun, draft_or_reason, record_calls
from grange.farm.executor import Executor
from grange.farm.result import ResultPack
from grange.farm.task import Batch, Resources, Task
from grange.repository import StoreUnavailable
from grange.repository.halt import Halt

#: So many calls may be under way, or four for each slot.
LARGEST_WINDOW = 20_000
SMALLEST_SLICE = 16
LARGEST_SLICE = 2000
POLL_S = 0.25
#: How often it is asked whether somebody wants processes to be killed.
KILLS_EVERY_S = 1.0
#: What is said of a process that was killed before it ran.
KILLED_MESSAGE = "killed before it ran"


@dataclass(slots=True)
class Progress:
    """How far a run is.

    reused: answered by the record or the cache, without computing. paused: left by earlier runs and set
    aside, because their code is not what was recorded; not part of the total. note: what a person should
    know of the executor or the store.
    """

    total: int = 0
    done: int = 0
    failed: int = 0
    reused: int = 0
    paused: int = 0
    note: str = ""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def computed(self) -> int:
        return self.done - self.reused

    @property
    def rate(self) -> float:
        """Computed calculations per second since the start."""
        return self.computed / max(time.monotonic() - self.started_at, 1e-9)


class CampaignRun:
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
        self.profile = profile
        self.campaign_id = campaign_id
        self.executor = executor
        self.resources = resources
        self.listener = listener
        self.computer_id = computer_id
        self.progress = Progress(total=sum(len(calls) for calls in maps))
        self.places = [array("q", bytes(8 * len(calls))) for calls in maps]
        self.stopping = False
        #: Ends the waiting for a store that does not answer.
        self.halt = Halt()
        #: Why results that have come are not recorded but stay in the spool, for the next run.
        self.unrecorded: StoreUnavailable | None = None
        self._maps = maps
        # without a map of our own, what is there to do is what an earlier run has left
        self._calls_each = 0 if maps else 1
        self._slices = self._all_slices()
        # Where the store does not answer: what is to be recorded next, and what has come and is not taken in.
        self._next: tuple[int, int, list[Call]] | None = None
        self._arrived: list[ResultPack] = []
        self._left: list[ResultPack] = []
        self._waits_for_store = ""
        self._mapping = True
        self._exhausted = False
        self._open: dict[str, Opened] = {}
        self._recipes = RecordedRecipes(profile)
        self._intake = Intake(profile, campaign_id)
        self._places = CodePlaces(profile, computer_id)
        self._slice_size = SMALLEST_SLICE
        self._recent: list[tuple[float, int]] = []
        self._kills_at = 0.0
        self._killed: set[str] = set()

    def run(self) -> Progress:
        """Run until everything has ended, or somebody sets stopping.

        Whatever it ends with, what it leaves unfinished is free for the next run.
        """
        try:
            with self.halt.reaching(), self._told_of_retries():
                return self._run()
        except BaseException:
            # The first error is what matters; a worker whose connection is lost holds nothing any more.
            with contextlib.suppress(Exception):
                self.executor.close()
                self._release()
            raise

    def _run(self) -> Progress:
        for calls in self._maps:
            # nothing to run yet, but what can never run here is refused before anything is stored
            self.executor.submit(Batch((), calls.resources))
        # A run of this same process that was interrupted while it ended has not freed what it held.
        self._release()
        while not self.stopping:
            self._waits_for_store = ""
            with self._store_awaited():
                self._recover()
                break
            self.progress.note = self._waits_for_store
            self.listener(self.progress)
            time.sleep(POLL_S)
        if not self._maps:
            with self.profile.transaction() as cursor:
                self.progress.total = rows.count_unfinished(cursor, self.campaign_id)
        self.listener(self.progress)
        while not self.stopping:
            self._waits_for_store = ""
            self._fill()
            self._kill()
            if self._open:
                self._arrived += self.executor.poll(POLL_S)
                with self._store_awaited():
                    self._record(self._arrived)
                    self._arrived = []
            elif self._exhausted:
                break
            self.progress.note = self._waits_for_store or self.executor.note
            self.listener(self.progress)
            if self._waits_for_store:
                time.sleep(POLL_S)
        if self.stopping:
            self._give_back()
        self.listener(self.progress)
        return self.progress

    @contextlib.contextmanager
    def _store_awaited(self) -> Iterator[None]:
        """What changes nothing where the store does not answer, and is tried again until it does."""
        try:
            yield
        except StoreUnavailable as error:
            self._waits_for_store = f"waiting for the store: {error}"
            self.unrecorded = error

    @contextlib.contextmanager
    def _told_of_retries(self) -> Iterator[None]:
        """The note says that it waits for the store, from the first try that failed on."""
        turn = Lock()

        def told(error: StoreUnavailable, _pause_s: float) -> None:
            with turn:
                self.progress.note = f"waiting for the store: {error}"
                self.listener(self.progress)

        retries = self.profile.retries
        before, retries.on_retry = retries.on_retry, told
        try:
            yield
        finally:
            retries.on_retry = before

    def kill(self) -> int:
        """End what somebody wants to be ended, and nothing else; for a campaign that nobody runs.

        What is under way on a computer is ended there, and its partial output is recorded. Returns how many
        processes were ended.
        """
        self._exhausted = True
        self._release()
        self._recover(only_to_kill=True)
        self._kill()
        while self._open and not self.stopping:
            self._record(self.executor.poll(POLL_S))
            self.listener(self.progress)
        self._give_back()
        if self.unrecorded is not None:
            raise self.unrecorded
        return len(self._killed)

    def _kill(self) -> None:
        """See whether somebody wants processes to end: those that run are ended, the others never start."""
        now = time.monotonic()
        if now < self._kills_at:
            return
        self._kills_at = now + KILLS_EVERY_S
        with self.profile.transaction() as cursor:
            wanted = rows.find_to_kill(cursor, self.campaign_id)
            new = {id_: attempt for id_, attempt in wanted.items() if str(id_) not in self._killed}
            if not new:
                return
            waiting = {id_: attempt for id_, attempt in new.items() if str(id_) not in self._open}
            ended = rows.end(cursor, [rows.End.killed(*item, KILLED_MESSAGE) for item in waiting.items()])
        self._killed.update(map(str, new))
        running = [str(id_) for id_ in new if id_ not in waiting]
        if running:
            self.executor.cancel(running)
        calls = self._calls_each * len(ended)
        self.progress.done += calls
        self.progress.failed += calls

    # -- what goes out ---------------------------------------------------------------------------

    def _fill(self) -> None:
        while not (self._exhausted or self.stopping or self._waits_for_store) and (
            len(self._open) < self._window()
        ):
            if self._mapping:
                self._record_slice()
            else:
                self._claim()
            if self.executor.outstanding <= len(self._open) // 2:
                break  # results are waiting: take them in before preparing more
            self.listener(self.progress)

    def _window(self) -> int:
        """How many calls may be under way: work for a while at the rate of late."""
        rate = 0.0
        if len(self._recent) > 1:
            (t0, n0), (t1, n1) = self._recent[0], self._recent[-1]
            rate = (n1 - n0) / max(t1 - t0, 1e-3)
        executor = self.executor
        return int(min(max(LARGEST_WINDOW, 4 * executor.slots), max(executor.ahead, rate * executor.ahead_s)))

    def _all_slices(self) -> Iterator[tuple[int, int, list[Call]]]:
        salt = b"campaign %d" % self.campaign_id
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
            recorded = record_calls(
                self.profile, self.campaign_id, calls, slice_, computer_id=self.computer_id
            )
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

    def _submit(self, recipe: Recipe, resources: Resources, to_run: Sequence[ToRun], more: int = 0) -> None:
        tasks: list[Task] = []
        self._places.require(one.values for one in to_run)
        for one in to_run:
            self._open[str(one.process_id)] = Opened(
                one.process_id, one.attempt, recipe, one.values, one.calls
            )
            tasks.append(recipe.task(one.process_id, one.attempt, one.draft))
        if tasks:
            self.executor.submit(Batch(tuple(tasks), resources, more))

    # -- what was left by an earlier run ---------------------------------------------------------

    def _recover(self, *, only_to_kill: bool = False) -> None:
        """Take in what an earlier run computed and did not live to record; go on with what it submitted."""
        self._left = self._left or self.executor.recover()
        if self._left:
            self._take_in(self._left)
            self._left = []
        under_way = {int(id_): attempt for id_, attempt in self.executor.under_way().items()}
        if not under_way:
            return
        with self.profile.transaction() as cursor:
            if only_to_kill:
                meant = rows.find_to_kill(cursor, self.campaign_id)
                under_way = {id_: attempt for id_, attempt in under_way.items() if id_ in meant}
            taken = rows.take_over(cursor, under_way, self.profile.worker_id)
            opened = self._recipes.open(cursor, taken)
        for process in opened.values():
            process.calls = self._calls_each
        self._open.update(opened)
        self.executor.go_on(opened.keys(), end_others=not only_to_kill)

    def _take_in(self, packs: list[ResultPack]) -> None:
        ids = [int(result.id) for pack in packs for result in pack.results]
        with self.profile.transaction() as cursor:
            unfinished = rows.find_open(cursor, ids)
            opened = self._recipes.open(cursor, unfinished)
        self._intake.record(packs, opened)
        # of a process whose code cannot be had any more the result waits in the spool until it can
        paused = {str(process.node_id) for process in unfinished} - opened.keys()
        self.executor.acknowledge(
            [pack for pack in packs if paused.isdisjoint(result.id for result in pack.results)]
        )

    def _claim(self) -> None:
        """Take over a slice of what an earlier run recorded and has no result of."""
        with self.profile.transaction() as cursor:
            claimed = rows.claim_unfinished(cursor, self.campaign_id, self.profile.worker_id, LARGEST_SLICE)
            groups = self._recipes.group(cursor, claimed)
            values = load_values(self.profile, cursor, claimed)
        if not claimed:
            self._exhausted = True
            return
        refused = []
        running = 0
        for recipe, resources, processes in groups:
            to_run = []
            for process in processes:
                given = values[process.node_id]
                draft = draft_or_reason(recipe, given)
                if isinstance(draft, str):
                    refused.append(rows.End.excepted(process.node_id, process.attempt, draft))
                else:
                    to_run.append(ToRun(process.node_id, process.attempt, draft, given, self._calls_each))
            running += len(processes)
            self._submit(recipe, self.resources or resources, to_run)
        with self.profile.transaction() as cursor:
            rows.end(cursor, refused)
        self.progress.paused += len(claimed) - running
        self.progress.total -= self._calls_each * (len(claimed) - running)
        self.progress.done += self._calls_each * len(refused)
        self.progress.failed += self._calls_each * len(refused)

    # -- what comes back -------------------------------------------------------------------------

    def _record(self, packs: list[ResultPack]) -> None:
        if not packs:
            return
        ended = self._intake.record(packs, self._open)
        self.executor.acknowledge(packs)
        for result in (result for pack in packs for result in pack.results):
            opened = self._open.get(result.id)
            if opened is None or opened.attempt != result.attempt:
                continue
            # one that somebody else has ended meanwhile is not waited for either
            del self._open[result.id]
            self.progress.done += opened.calls
            self.progress.failed += 0 if ended.get(result.id, True) else opened.calls
        self._recent.append((time.monotonic(), self.progress.computed))
        del self._recent[:-20]

    def _give_back(self) -> None:
        """Stopped: let the runners end, record what they finished, free the rest.

        Where the store does not answer, what they finished stays in the spool: the next run records it.
        """
        self.unrecorded = None
        with self._store_awaited():
            self._record(self._arrived + self.executor.poll(0.0))
        self.executor.close()
        with self._store_awaited():
            self._record(self.executor.recover())
        self._release()

    def _release(self) -> None:
        with self.profile.transaction() as cursor:
            rows.release(cursor, self.profile.worker_id, self.campaign_id)
