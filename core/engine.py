"""The engine: one loop that has calculations run, and records what came of them.

    fill the window (take a slice of calculations, submit it) → poll the executor → record → again

A slice is one transaction, and so is what a poll delivers; a process is recorded before its task is
submitted, and its result pack is in the store before the rows that point into it. So it may be killed
between any two lines: the next run takes in what the spool holds and claims what has no result.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from grange.core import process as rows
from grange.core.code_place import CodePlaces
from grange.core.database import is_passing
from grange.core.errors import DatabaseUnavailable
from grange.core.following import Followers, sort_out
from grange.core.intake import Intake, Opened
from grange.core.intake_deaths import IntakeDeaths
from grange.core.process import Claimed
from grange.core.profile import Profile
from grange.core.recipe import Recipe
from grange.core.recorded import RecordedRecipes, load_values
from grange.core.recording import ToRun, draft_or_reason
from grange.farm.executor import Executor
from grange.farm.result import ResultPack
from grange.farm.task import Batch, Resources, Task
from grange.repository import BlobCorrupt, BlobMissing, StoreUnavailable
from grange.repository.halt import Halt

Value = TypeVar("Value")

#: So many calls may be under way, or four for each slot.
LARGEST_WINDOW = 20_000
SMALLEST_SLICE = 16
LARGEST_SLICE = 2000
POLL_S = 0.25
#: How often it is asked whether somebody wants processes to be killed.
KILLS_EVERY_S = 1.0
#: What is said of a process that was killed before it ran.
KILLED_MESSAGE = "killed before it ran"
#: What is said of a calculation at which processes have died again and again.
DEADLY_MESSAGE = "parse() has ended the process that it was run by, three times"


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


class Engine:
    """Runs what is recorded in a campaign or queue, whose lock this profile holds, until all of it has ended.

    resources: in place of those that were recorded with each calculation. computer_id: the computer that the
    executor stands for. imports_anew: as of RecordedRecipes.
    """

    #: How long the executor is waited for at a time. Seconds.
    poll_s = POLL_S

    def __init__(
        self,
        profile: Profile,
        queue_id: int,
        executor: Executor,
        listener: Callable[[Progress], None],
        *,
        resources: Resources | None = None,
        computer_id: int | None = None,
        imports_anew: bool = False,
    ) -> None:
        self.profile = profile
        self.queue_id = queue_id
        self.executor = executor
        self.resources = resources
        self.listener = listener
        self.computer_id = computer_id
        self.progress = Progress()
        self.stopping = False
        #: Ends the waiting for a store that does not answer.
        self.halt = Halt()
        #: Why results that have come are not recorded but stay in the spool, for the next run.
        self.unrecorded: StoreUnavailable | None = None
        # how many calls of this run a calculation answers that was recorded by an earlier one
        self._calls_each = 1
        # Where the store does not answer: what is claimed and not made ready, and what has come and is not
        # taken in.
        self._claimed: list[Claimed] = []
        # Those that wait for equal ones; of those that have, how many calls of this run each answers.
        self._followers = Followers(profile, queue_id)
        self._calls_of_freed: dict[int, int] = {}
        self._arrived: list[ResultPack] = []
        self._left: list[ResultPack] = []
        self._waits_for_store = ""
        self._exhausted = False
        self._open: dict[str, Opened] = {}
        self._recipes = RecordedRecipes(profile, imports_anew=imports_anew)
        self._intake = Intake(profile, queue_id)
        self._deaths = IntakeDeaths(profile.spool / f"intake-{queue_id}.json")
        self._places = CodePlaces(profile, computer_id)
        self._recent: list[tuple[float, int]] = []
        self._kills_at = 0.0
        self._ending: set[str] = set()

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

    def stop(self) -> None:
        """End it in order, from a signal handler."""
        self.stopping = True
        self.halt.call()

    def _run(self) -> Progress:
        # A run of this same process that was interrupted while it ended has not freed what it held.
        self._release()
        while not self.stopping:
            self._waits_for_store = ""
            with self._store_awaited():
                self._recover()
                self._followers.recover(self._calls_each)
                break
            self.progress.note = self._waits_for_store
            self.listener(self.progress)
            time.sleep(POLL_S)
        self._count()
        self.listener(self.progress)
        while not self.stopping:
            self._waits_for_store = ""
            self._look()
            self._settle()
            self._fill()
            self._kill()
            if self._open:
                self._arrived += self.executor.poll(self.poll_s)
                with self._store_awaited():
                    self._record(self._arrived)
                    self._arrived = []
            elif self._exhausted and self._followers:
                self._pause()
            elif self._exhausted and not self._more_comes():
                break
            self.progress.note = self._waits_for_store or self.executor.note or self._followers.note
            self.listener(self.progress)
            if self._waits_for_store:
                time.sleep(POLL_S)
        if self.stopping:
            self._give_back()
        self.listener(self.progress)
        return self.progress

    # -- what kinds of runs differ in

    def _count(self) -> None:
        """Say how much there is to do."""
        with self.profile.transaction() as cursor:
            self.progress.total = rows.count_unfinished(cursor, self.queue_id)

    def _look(self) -> None:
        """See whether there is something new to take, where that may be."""

    def _pause(self) -> None:
        """Wait a moment for what others do."""
        time.sleep(POLL_S)

    def _more_comes(self) -> bool:
        """Nothing is left to do: wait a while for more; False where none is expected."""
        return False

    def _take(self) -> None:
        """Take the next slice and submit it; note where there is none."""
        self._claim()

    # --

    @contextlib.contextmanager
    def _store_awaited(self) -> Iterator[None]:
        """What changes nothing where the store does not answer, and is tried again until it does."""
        try:
            yield
        except StoreUnavailable as error:
            self._waits_for_store = f"waiting for the store: {error}"
            self.unrecorded = error

    def _patiently(self, action: Callable[[], Value]) -> Value:
        """Do what is one transaction, again where another one was in the way or the disk is full for a while.

        Errors: DatabaseUnavailable where the connection is lost, or somebody wants it to stop meanwhile.
        """
        while True:
            try:
                return action()
            except DatabaseUnavailable as error:
                if self.stopping or not is_passing(error):
                    raise
                self.progress.note = f"waiting for the database: {error}"
                self.listener(self.progress)
                time.sleep(POLL_S)

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
        ended = self._kill()
        while self._open and not self.stopping:
            self._record(self.executor.poll(POLL_S))
            self.listener(self.progress)
        self._give_back()
        if self.unrecorded is not None:
            raise self.unrecorded
        return ended

    def _kill(self) -> int:
        """See whether somebody wants processes to end: those that run are ended, the others never start.

        Returns how many are ended or about to end, those that were seen before not counted.
        """
        now = time.monotonic()
        if now < self._kills_at:
            return 0
        self._kills_at = now + KILLS_EVERY_S
        new, waiting, ended = self._patiently(self._end_waiting)
        if not new:
            return 0
        self._claimed = [one for one in self._claimed if one.node_id not in ended]
        running = [str(id_) for id_ in new if id_ not in waiting]
        if running:
            self._ending.update(running)
            self.executor.cancel(running)
        calls = sum(self._followers.pop(id_, self._calls_of(id_)) for id_ in ended)
        self.progress.done += calls
        self.progress.failed += calls
        return len(new)

    def _end_waiting(self) -> tuple[set[int], set[int], set[int]]:
        """What somebody wants to end and was not seen yet; what of it waits; what of that has ended now."""
        with self.profile.transaction() as cursor:
            wanted = rows.find_to_kill(cursor, self.queue_id)
            new = {id_ for id_ in wanted if str(id_) not in self._ending}
            waiting = {id_ for id_ in new if str(id_) not in self._open}
            parents = rows.find_parents(cursor, waiting)
            ends = [
                rows.End.killed(id_, wanted[id_], KILLED_MESSAGE, parents.get(id_)) for id_ in sorted(waiting)
            ]
            return new, waiting, rows.end(cursor, ends)

    def _calls_of(self, process_id: int) -> int:
        """How many calls of this run a process answers that was claimed from the record."""
        return self._calls_of_freed.get(process_id, self._calls_each)

    # -- what waits for equal ones

    def _follow(self, following: Iterable[int]) -> None:
        """Look after processes that were sorted out when they were claimed."""
        for process_id in following:
            self._followers.add(process_id, self._calls_of(process_id))

    def _settle(self) -> None:
        """See which followers are answered, and which are to be run after all."""
        settled = self._patiently(self._followers.settle)
        if settled is None:
            return
        for process_id, well in (settled.answered | settled.ended).items():
            calls = self._followers.pop(process_id)
            self.progress.done += calls
            self.progress.reused += calls if process_id in settled.answered else 0
            self.progress.failed += 0 if well else calls
        for process_id in settled.gone:
            self.progress.total -= self._followers.pop(process_id)
        for one in settled.to_run:
            calls = self._followers.pop(one.node_id)
            if calls != self._calls_each:
                self._calls_of_freed[one.node_id] = calls
        self._claimed += settled.to_run
        if settled.to_run or settled.gone:
            self._exhausted = False

    # -- what goes out ---------------------------------------------------------------------------

    def _fill(self) -> None:
        while not (self._exhausted or self.stopping or self._waits_for_store) and (
            len(self._open) < self._window()
        ):
            self._take()
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

    def _submit(self, recipe: Recipe, resources: Resources, to_run: Sequence[ToRun], more: int = 0) -> None:
        tasks: list[Task] = []
        self._places.require(one.values for one in to_run)
        for one in to_run:
            self._open[str(one.process_id)] = Opened(
                one.process_id, one.attempt, recipe, one.values, one.calls, one.parent_id
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

        def take_over() -> dict[str, Opened]:
            with self.profile.transaction() as cursor:
                meant = rows.find_to_kill(cursor, self.queue_id) if only_to_kill else under_way
                wanted = {id_: attempt for id_, attempt in under_way.items() if id_ in meant}
                taken = rows.take_over(cursor, wanted, self.profile.worker_id)
                return self._opened(cursor, taken)

        opened = self._patiently(take_over)
        for process in opened.values():
            process.calls = self._calls_each
        self._open.update(opened)
        self.executor.go_on(opened.keys(), end_others=not only_to_kill)

    def _take_in(self, packs: list[ResultPack]) -> None:
        ids = [int(result.id) for pack in packs for result in pack.results]

        def take_in() -> set[str]:
            with self.profile.transaction() as cursor:
                opened = self._opened(cursor, rows.find_open(cursor, ids))
                # of a process whose code cannot be had any more the result waits in the spool until it can
                paused = {str(process.node_id) for process in rows.find_open(cursor, ids)} - opened.keys()
            self._recorded(packs, opened)
            return paused

        paused = self._patiently(take_in)
        self.executor.acknowledge(
            [pack for pack in packs if paused.isdisjoint(result.id for result in pack.results)]
        )

    def _opened(self, cursor: Any, processes: Sequence[Claimed]) -> dict[str, Opened]:
        """Processes that results come for; what has lost an input ends by itself, and no other with it."""
        try:
            return self._recipes.open(cursor, processes)
        except (BlobMissing, BlobCorrupt):
            opened: dict[str, Opened] = {}
            for process in processes:
                try:
                    opened |= self._recipes.open(cursor, [process])
                except (BlobMissing, BlobCorrupt) as error:
                    rows.end(cursor, [_refused(process, str(error))])
            return opened

    def _taken(self) -> tuple[list[Claimed], Collection[int]]:
        """A slice of what was recorded, as a new attempt by this worker; what of it follows equal ones."""
        with self.profile.transaction() as cursor:
            claimed = rows.claim_unfinished(cursor, self.queue_id, self.profile.worker_id, LARGEST_SLICE)
            return claimed, sort_out(cursor, [one.node_id for one in claimed])

    def _claim(self) -> None:
        """Take over a slice of what was recorded and has no result."""
        if not self._claimed:
            claimed, following = self._patiently(self._taken)
            self._follow(following)
            self._claimed = [one for one in claimed if one.node_id not in following]
            self._exhausted = not claimed
        if not self._claimed:
            return
        ready: list[tuple[Recipe, Resources, list[ToRun]]] | None = None
        refused: list[rows.End] = []
        with self._store_awaited():
            ready, refused = self._patiently(lambda: self._made_ready(self._claimed))
        if ready is None:
            return
        known = {end.node_id for end in refused}.union(
            one.process_id for _, _, to_run in ready for one in to_run
        )
        paused = [one.node_id for one in self._claimed if one.node_id not in known]
        self._claimed = []
        self.progress.paused += len(paused)
        self.progress.total -= sum(map(self._calls_of, paused))
        self._refuse(refused)
        for recipe, resources, to_run in ready:
            self._submit(recipe, self.resources or resources, to_run)

    def _made_ready(
        self, claimed: Sequence[Claimed]
    ) -> tuple[list[tuple[Recipe, Resources, list[ToRun]]], list[rows.End]]:
        """What was claimed with its code and values, and the ends of what cannot be run.

        What has lost a file ends by itself, and no other with it. Errors: StoreUnavailable.
        """
        refused: list[rows.End] = []
        with self.profile.transaction() as cursor:
            try:
                groups = self._recipes.group(cursor, claimed)
                values = load_values(self.profile, cursor, claimed)
            except (BlobMissing, BlobCorrupt):
                groups, values = [], {}
                for process in claimed:
                    try:
                        own = load_values(self.profile, cursor, [process])
                        groups += self._recipes.group(cursor, [process])
                    except (BlobMissing, BlobCorrupt) as error:
                        refused.append(_refused(process, str(error)))
                    else:
                        values |= own
        ready = []
        for recipe, resources, processes in groups:
            to_run = []
            for process in processes:
                given = values[process.node_id]
                draft = draft_or_reason(recipe, given)
                if isinstance(draft, str):
                    refused.append(_refused(process, draft))
                else:
                    id_, attempt = process.node_id, process.attempt
                    to_run.append(ToRun(id_, attempt, draft, given, self._calls_of(id_), process.parent_id))
            ready.append((recipe, resources, to_run))
        return ready, refused

    def _refuse(self, ends: Sequence[rows.End]) -> None:
        """End what cannot be run."""
        if not ends:
            return

        def end() -> set[int]:
            with self.profile.transaction() as cursor:
                return rows.end(cursor, ends)

        calls = sum(map(self._calls_of, self._patiently(end)))
        self.progress.done += calls
        self.progress.failed += calls

    # -- what comes back -------------------------------------------------------------------------

    def _recorded(self, packs: Sequence[ResultPack], opened: Mapping[str, Opened]) -> dict[str, bool]:
        """Record results, as Intake.record; what parsers have ended processes with ends by itself.

        Errors: StoreUnavailable; DatabaseUnavailable.
        """
        deaths = self._deaths
        came = {result.id for pack in packs for result in pack.results}
        parsed = [id_ for id_ in came if id_ in opened and opened[id_].recipe.parses]
        ended: dict[str, bool] = {}
        if culprits := deaths.culprits(parsed):
            ended |= self._intake.refuse(packs, {id_: opened[id_] for id_ in culprits}, DEADLY_MESSAGE)
            deaths.forget(culprits)
        for id_ in deaths.alone(parsed):
            with deaths.at([id_], alone=True):
                ended |= self._intake.record(packs, {id_: opened[id_]})
        rest = {id_: one for id_, one in opened.items() if id_ not in ended}
        with deaths.at([id_ for id_ in parsed if id_ in rest]):
            return ended | self._intake.record(packs, rest)

    def _record(self, packs: list[ResultPack]) -> None:
        if not packs:
            return
        ended = self._patiently(lambda: self._recorded(packs, self._open))
        self.executor.acknowledge(packs)
        for result in (result for pack in packs for result in pack.results):
            opened = self._open.get(result.id)
            if opened is None or opened.attempt != result.attempt:
                continue
            # one that somebody else has ended meanwhile is not waited for either
            del self._open[result.id]
            self._ending.discard(result.id)
            self.progress.done += opened.calls
            self.progress.failed += 0 if ended.get(result.id, True) else opened.calls
        self._followers.hurry()
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
            rows.release(cursor, self.profile.worker_id, self.queue_id)


def _refused(process: Claimed, reason: str) -> rows.End:
    return rows.End.excepted(process.node_id, process.attempt, reason, process.parent_id)
