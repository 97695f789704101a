"""Live frames: the code of a workflow while a worker runs it, a greenlet that stops where it has to wait."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from greenlet import GreenletExit, getcurrent, greenlet

from grange.core.caching import Caching, enter_recorded, recorded_blocks
from grange.core.calcfunction import CalcFunction, Ran
from grange.core.calls import Calls
from grange.core.current_frame import calculating, enter_frame
from grange.core.errors import DatabaseUnavailable, GrangeError
from grange.core.exit_status import CALL_FAILED
from grange.core.future import Future, ProcessFailed
from grange.core.node import CalcFunctionNode
from grange.core.pending_call import (
    FarmCall,
    PendingCall,
    WorkflowCall,
    hash_of_arguments,
    hash_of_given,
    nodes_of,
)
from grange.core.process import storable
from grange.core.raised import is_interrupt, place_of, said_by
from grange.core.runnable import calls_of, givens_of, workflow_recipe_of
from grange.core.transition import ENDED, State
from grange.core.workflow_recipe import Given, WorkflowEnd, WorkflowRecipe
from grange.core.workflow_rows import RecordedCall
from grange.farm.task import Resources
from grange.repository import StoreUnavailable

if TYPE_CHECKING:
    from grange.core.hub import Hub
    from grange.core.node import Data, ProcessNode
    from grange.core.profile import Profile

#: The attribute of a workflow's node that says where its calls are run, unless they say otherwise.
EXECUTOR_ATTRIBUTE = "executor"


#: So often code may catch what is to end it; then it is left where it is.
MOST_CAUGHT = 20
# The code that was left so: nobody goes on with it, and to let go of it would be to end it once more.
_LEFT: list[greenlet] = []


class RecordDiffers(BaseException):
    """The code makes another call than the record has; no `except Exception` of the code catches it."""


# -- what a frame may be stopped at


@dataclass(slots=True)
class AtFlush:
    """Until what it has done is committed."""


@dataclass(slots=True)
class AtWait:
    """Until calls have ended; any: one of them is enough.

    waiting: the ids of those that are open, once all of them are recorded.
    """

    futures: Sequence[CallFuture]
    any: bool
    waiting: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Whether what it waits for has happened."""
        if self.any:
            return any(future.end is not None for future in self.futures)
        return not self.waiting


@dataclass(slots=True)
class AtPage:
    """Until the next page of its record is read."""


@dataclass(slots=True)
class AtOutputs:
    """Until the outputs of calls that have ended are read."""

    futures: Sequence[Future]


@dataclass(slots=True)
class AtPause:
    """Until somebody plays it; whatever comes then comes from the record."""

    reason: str


@dataclass(slots=True)
class AtCache:
    """Until it is known whether an equal process has finished. found: whether one has."""

    key: bytes
    found: bool = False


Stop = AtFlush | AtWait | AtPage | AtOutputs | AtPause | AtCache


class CallFuture(Future):
    """A call of a workflow. sequence: its number there. end: how it has ended, once the worker knows.

    The code sees the end when it has waited for it, and no sooner: so it sees the same, whenever that became
    known, when it goes on from the record.
    """

    __slots__ = ("end", "sequence")

    def __init__(
        self, frame: LiveFrame, process_label: str, sequence: int, node_class: type[ProcessNode]
    ) -> None:
        super().__init__(frame, process_label, node_class=node_class)
        self.sequence = sequence
        self.end: tuple[State, int | None, str | None] | None = None

    def show_end(self) -> None:
        """Let the code see that it has ended."""
        if self.end is not None:
            self.settle(*self.end)


@dataclass(slots=True)
class Outcome:
    """How a frame ended."""

    state: State
    exit_status: int | None
    message: str | None
    outputs: Mapping[str, Data] = field(default_factory=dict)
    details: str = ""


class LiveFrame:
    """One workflow under way in this worker: grange.core.current_frame.Frame, and the Waiter of its calls.

    Its methods below "what the code may do" are called by the code, in the greenlet; everything else by the
    hub. `pending`, `reports` and `decisions` are what is to be written next.
    """

    def __init__(
        self,
        hub: Hub,
        process_id: int,
        attempt: int,
        parent_id: int | None,
        recipe: WorkflowRecipe,
        inputs: Mapping[str, Data],
        attributes: Mapping[str, Any],
    ) -> None:
        self.hub = hub
        self.process_id = process_id
        self.attempt = attempt
        self.parent_id = parent_id
        self.recipe = recipe
        self.executor: str | None = attributes.get(EXECUTOR_ATTRIBUTE)
        self._inputs = inputs
        self._attributes = attributes
        self._greenlet = greenlet(self._main)
        #: the record: how many calls it has, and the page of it that is read
        self.recorded_calls = 0
        self.page: dict[int, RecordedCall] = {}
        self.page_outputs: dict[int, Mapping[str, Data]] = {}
        #: of its calls, the nodes that they were given: by link label id and uuid
        self.page_inputs: dict[int, dict[str, tuple[int, str]]] = {}
        self.page_end = 0
        self.recorded_reports = 0
        self.recorded_decisions: Sequence[Any] = ()
        self._sequence = 0
        self._reported = 0
        self._decided = 0
        #: what is to be written
        self.pending: list[PendingCall] = []
        self.reports: list[tuple[int, str, str]] = []
        self.decisions: list[tuple[int, Any]] = []
        #: calls that are known to be open, by id
        self.open: dict[int, CallFuture] = {}
        self.stop: Stop | None = None
        self.outcome: Outcome | None = None
        self.differs: str | None = None
        #: what its code has asked the store or the database for, and was away: it has to begin again
        self.away = ""
        #: for the hub: whether it is about to be resumed, and whether its worker lets go of it
        self.queued = False
        self.let_go = False
        #: for the hub: how many of those that it waits for are looked at; more where none of them has ended
        self.looks_at = 0
        self._gone = False
        # how often its code was told to end, and whether it is left where it is
        self._told = 0
        self._left = False

    @property
    def profile(self) -> Profile:
        """The profile that it is recorded in."""
        return self.hub.profile

    # -- by the hub

    @property
    def next_report(self) -> int:
        """The number of a report that comes behind all that its code has made."""
        return max(self._reported, self.recorded_reports) + 1

    def resume(self) -> None:
        """Run the code until it stops again or ends."""
        self.stop = None
        self._greenlet.switch()

    def drop(self) -> None:
        """End the code here, because another worker goes on with it, or nobody does."""
        self._gone = True
        if self._greenlet and not self._greenlet.dead and not self._left:
            self._greenlet.throw(GreenletExit)

    def settle(self, process_id: int, state: State, exit_status: int | None, message: str | None) -> None:
        """A call of it has ended."""
        future = self.open.pop(process_id, None)
        if future is None:
            return
        future.end = (state, exit_status, message)
        if isinstance(self.stop, AtWait):
            self.stop.waiting.discard(process_id)

    def own_calls(self, closed: Collection[int]) -> None:
        """What it has made is committed; closed: the ids of calls that were recorded as ended."""
        for one in self.pending:
            future, row = one.future, one.row
            assert row is not None
            assert isinstance(future, CallFuture)
            if row.node_id in closed:
                future.end = (row.state, row.exit_status, row.exit_message)
                if isinstance(one.what, Ran):
                    future.give(one.what.outputs)
            else:
                self.open[row.node_id] = future
        self.pending = []
        self.reports = []
        self.decisions = []

    def _main(self) -> None:
        enter_frame(self)
        enter_recorded(self._attributes)
        try:
            end = self.recipe.body(self, self._inputs, self._attributes)
            if self._sequence < self.recorded_calls:
                self._differ(self._left_over())
            outcome = _outcome_of(end)
        except RecordDiffers:
            return
        except ProcessFailed as error:
            outcome = Outcome(State.FINISHED, CALL_FAILED.status, str(error))
        except BaseException as error:  # whatever code of users raises ends this process alone
            if is_interrupt(error):
                raise
            if self._gone:
                return
            if isinstance(error, StoreUnavailable | DatabaseUnavailable):
                self.away = str(error)
                return
            outcome = _excepted(error)
        if not self._gone and self.differs is None:  # else it has caught what was to end it
            self.outcome = outcome

    def _stop(self, stop: Stop) -> None:
        self._go_no_further()
        if getcurrent() is not self._greenlet:
            raise GrangeError(
                f"{self.recipe.label}: a call of a workflow comes from another thread; "
                "make calls and wait for them where the workflow's own code runs"
            )
        self.stop = stop
        self.hub.greenlet.switch()
        self._go_no_further()

    def _go_no_further(self) -> None:
        """End the code here, if it is to end, however often it catches that."""
        if not self._gone and self.differs is None:
            return
        self._told += 1
        if self._told > MOST_CAUGHT and getcurrent() is self._greenlet:
            self._left = True
            _LEFT.append(self._greenlet)
            while True:
                self.hub.greenlet.switch()
        raise GreenletExit if self._gone else RecordDiffers(self.differs)

    def _differ(self, reason: str) -> NoReturn:
        self.differs = reason
        raise RecordDiffers(reason)

    # -- the record

    def _recorded(
        self, call_hash: bytes, label: str, require: Callable[[], object] = lambda: None
    ) -> tuple[int, RecordedCall | None]:
        """The number of the next call, and what the record has of it.

        require: raises what such a call is refused with; where it was, that left nothing in the record.
        """
        self._go_no_further()
        self._sequence += 1
        number = self._sequence
        if number > self.recorded_calls:
            return number, None
        while number > self.page_end:
            self._stop(AtPage())
        recorded = self.page.get(number)
        if recorded is None:
            self._differ(f"call {number} ({label}) is missing from the record")
        if recorded.call_hash != call_hash:
            with self._numbered(number):
                require()
            said = (
                "with other inputs" if recorded.label == label else f"and the code calls {label} in its place"
            )
            self._differ(
                f"call {number} differs from the record: that was {recorded.label} "
                f"(process {recorded.node_id}), {said}"
            )
        del self.page[number]
        return number, recorded

    @contextmanager
    def _numbered(self, number: int) -> Iterator[None]:
        """Around what may be refused of a call that has a number: one that is not made has none."""
        try:
            yield
        except BaseException:
            self._sequence = number - 1
            raise

    def _bind(self, recorded: RecordedCall, nodes: Mapping[str, Data]) -> None:
        """Data that the code has made and given to a recorded call is the node that was stored then."""
        stored = self.page_inputs.pop(recorded.node_id, {})
        for label, node in nodes.items():
            if node.id is None and label in stored:
                node.id, node.uuid = stored[label]

    def _left_over(self) -> str:
        number = self._sequence + 1
        while number > self.page_end:
            self._stop(AtPage())
        recorded = self.page[number]
        return (
            f"call {number} differs from the record: that was {recorded.label} (process {recorded.node_id}), "
            "and the code ends without it"
        )

    def _answered(
        self, label: str, number: int, recorded: RecordedCall, node_class: type[ProcessNode]
    ) -> CallFuture:
        future = CallFuture(self, label, number, node_class)
        future.named(recorded.node_id)
        if recorded.state in ENDED:
            future.end = (recorded.state, recorded.exit_status, recorded.exit_message)
            outputs = self.page_outputs.pop(recorded.node_id, None)
            if outputs is not None:
                future.give(outputs)
        else:
            self.open[recorded.node_id] = future
        return future

    def _decide(self, make: Callable[[], Any]) -> Any:
        """What the code sees that is no result of a call: recorded, and seen again in a replay."""
        self._go_no_further()
        self._decided += 1
        if self._decided <= len(self.recorded_decisions):
            return self.recorded_decisions[self._decided - 1]
        value = make()
        self.decisions.append((self._decided, value))
        return value

    # -- what the code may do

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
        """Frame.call"""
        recipe = workflow_recipe_of(runnable)
        if recipe is not None:
            return self._call_workflow(recipe, recipe.given(inputs), label, link_label, executor)
        calls = calls_of(
            self.profile,
            runnable,
            inputs,
            one=True,
            resources=resources or Resources(),
            cache=cache,
            recipe=self.hub.known_recipes.of(runnable),
        )
        return self._call_farm(calls, executor, [label], link_label)[0]

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
        """Frame.call_many"""
        recipe = workflow_recipe_of(runnable)
        if recipe is not None:
            given = list(givens_of(recipe, columns, product=product))
            names = labels or [""] * len(given)
            return [
                self._call_workflow(recipe, one, name, "CALL", executor)
                for one, name in zip(given, names, strict=True)
            ]
        calls = calls_of(
            self.profile,
            runnable,
            columns,
            product=product,
            resources=resources or Resources(),
            cache=cache,
            recipe=self.hub.known_recipes.of(runnable),
        )
        calls.set_labels(labels)
        return self._call_farm(calls, executor, labels or [""] * len(calls), "CALL")

    def _call_workflow(
        self,
        recipe: WorkflowRecipe,
        given: Given,
        label: str,
        link_label: str,
        executor: str | None,
    ) -> Future:
        call_hash = hash_of_given(recipe.process_type, given)
        number, recorded = self._recorded(call_hash, recipe.label)
        if recorded is not None:
            self._bind(recorded, given.nodes)
            return self._answered(recipe.label, number, recorded, recipe.node_class)
        where = executor or self.executor
        more = {EXECUTOR_ATTRIBUTE: where} if where else {}
        what = WorkflowCall(recipe, given, {**more, **recorded_blocks()})
        return self._make(what, recipe.label, label, call_hash, number, link_label)

    def _call_farm(
        self, calls: Calls, executor: str | None, labels: Sequence[str], link_label: str
    ) -> list[Future]:
        futures: list[Future] = []
        recipe = calls.recipe
        for call, label in zip(calls.slice(0, len(calls)), labels, strict=True):
            call_hash = hash_of_arguments(recipe.process_type, call.arguments)
            number, recorded = self._recorded(
                call_hash,
                recipe.label,
                lambda call=call: self.hub.queues.of(executor or self.executor, call.values()),  # type: ignore[misc]
            )
            if recorded is not None:
                self._bind(recorded, nodes_of(call.arguments))
                futures.append(self._answered(recipe.label, number, recorded, recipe.node_class))
                continue
            with self._numbered(number):
                queue_id = self.hub.queues.of(executor or self.executor, call.values())
                what = FarmCall(calls, call, queue_id, self.hub.queues.computer_of(queue_id))
            futures.append(self._make(what, recipe.label, label, call_hash, number, link_label))
        return futures

    def _make(
        self,
        what: WorkflowCall | FarmCall | Ran,
        process_label: str,
        label: str,
        call_hash: bytes,
        number: int,
        link_label: str,
    ) -> CallFuture:
        match what:
            case WorkflowCall():
                node_class: type[ProcessNode] = what.recipe.node_class
            case FarmCall():
                node_class = what.calls.recipe.node_class
            case _:
                node_class = CalcFunctionNode
        future = CallFuture(self, process_label, number, node_class)
        self.pending.append(PendingCall(what, future, label, call_hash, self.process_id, number, link_label))
        return future

    def run_here(self, function: CalcFunction, inputs: Mapping[str, object]) -> Any:
        """Frame.run_here"""
        arguments = function.arguments(inputs)
        call_hash = hash_of_arguments(function.process_type, arguments)
        number, recorded = self._recorded(call_hash, function.label)
        if recorded is not None:
            self._bind(recorded, nodes_of(arguments))
            future = self._answered(function.label, number, recorded, CalcFunctionNode)
            return future.result()
        what: FarmCall | Ran
        with self._numbered(number):
            caching = function.caching_of_call(self.profile.config.caching)
            if caching is Caching.SHARED and self._has_equal(function.key(arguments)):
                # Recorded as a call that the equal one answers; should that be gone then, the farm runs it.
                calls = function.calls(inputs)
                (call,) = calls.slice(0, 1)
                queue_id = self.hub.queues.of(self.executor, call.values())
                what = FarmCall(calls, call, queue_id, self.hub.queues.computer_of(queue_id))
            else:
                with calculating():
                    what = function.ran(arguments, caching)
        future = self._make(what, function.label, "", call_hash, number, "CALL")
        self._stop(AtFlush())
        return future.result()

    def _has_equal(self, key: bytes) -> bool:
        stop = AtCache(key)
        self._stop(stop)
        return stop.found

    def wait(self, futures: Sequence[Future], *, any_of_them: bool = False) -> list[Future]:
        """Frame.wait"""
        own = chosen = [self._own(future) for future in futures]
        if not any_of_them:
            self._wait(own, any_of_them=False)
        elif self._decided < len(self.recorded_decisions):
            ended = set(self._decide(list))
            chosen = [future for future in own if future.sequence in ended]
            self._wait(chosen, any_of_them=False)
        else:
            self._wait(own, any_of_them=True)
            chosen = [future for future in own if future.end is not None]
            self._decide(lambda: [future.sequence for future in chosen])
        for future in chosen:
            future.show_end()
        return list(chosen)

    def _own(self, future: Future) -> CallFuture:
        if not isinstance(future, CallFuture) or future._waiter is not self:
            raise GrangeError(f"{self.recipe.label}: waits for {future!r}, which is no call of this workflow")
        return future

    def _wait(self, futures: Sequence[CallFuture], *, any_of_them: bool) -> None:
        open_ = [future for future in futures if future.end is None]
        if open_ and not (any_of_them and len(open_) < len(futures)):
            self._stop(AtWait(open_, any_of_them))

    def report(self, message: str, level: str = "REPORT") -> None:
        """Frame.report"""
        self._go_no_further()
        self._reported += 1
        if self._reported > self.recorded_reports:
            self.reports.append((self._reported, level, str(message)))

    def let_others(self) -> None:
        """Frame.let_others"""
        self._stop(AtFlush())

    def pause(self, reason: str) -> None:
        """Frame.pause"""
        reason = storable(str(reason)) or "paused by its code"
        before = len(self.decisions)
        self._decide(lambda: reason)
        if len(self.decisions) > before:
            self._stop(AtPause(reason))

    # -- as the waiter of its calls

    def wait_for(self, futures: Sequence[Future], timeout_s: float | None, any_of_them: bool) -> bool:
        """Waiter.wait_for; in a workflow without time-outs."""
        if timeout_s is not None:
            raise GrangeError(
                f"{self.recipe.label}: a workflow waits without a time-out, because what the clock decides "
                "could not be repeated; use gr.wait([…], any_of_them=True) to go on with what ends first"
            )
        self.wait(futures, any_of_them=any_of_them)
        return True

    def name(self, futures: Sequence[Future]) -> None:
        """Waiter.name"""
        self._stop(AtFlush())

    def load_outputs(self, futures: Sequence[Future]) -> None:
        """Waiter.load_outputs: with those of other calls that have ended, because they will be asked for."""
        self._stop(AtOutputs(futures))

    def kill(self, futures: Sequence[Future]) -> None:
        """Waiter.kill"""
        from grange.core.process_control import kill

        kill(self.profile, [future.id for future in futures])


def _outcome_of(end: WorkflowEnd) -> Outcome:
    if end.exit_code is None:
        return Outcome(State.FINISHED, 0, None, dict(end.outputs))
    message = storable(end.exit_code.message)
    return Outcome(State.FINISHED, end.exit_code.status, message, dict(end.outputs))


def _excepted(error: BaseException) -> Outcome:
    """How a process ends whose code raised: the message for a line, the traceback for the log."""
    said = str(error) if isinstance(error, GrangeError) else said_by(error) + place_of(error)
    return Outcome(State.EXCEPTED, None, storable(said), details="".join(traceback.format_exception(error)))
