"""Running and submitting: the calls by which scripts, notebooks and workflows have processes run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from grange.core.caching import recorded_blocks
from grange.core.calcfunction import CalcFunction
from grange.core.call_binding import given_profile
from grange.core.call_metadata import Asked, asked
from grange.core.client_waiter import ClientWaiter, load_outputs
from grange.core.current_frame import Frame, current_frame
from grange.core.errors import InputInvalid
from grange.core.future import Future, ProcessFailed
from grange.core.live_frame import EXECUTOR_ATTRIBUTE
from grange.core.pending_call import (
    FarmCall,
    PendingCall,
    WorkflowCall,
    hash_of_arguments,
    hash_of_given,
    record_now,
)
from grange.core.profile import Profile
from grange.core.queues import Queues
from grange.core.runnable import calls_of, givens_of, workflow_recipe_of
from grange.farm.task import Resources

#: So many processes are recorded in one transaction.
SLICE = 2000


class Futures(Sequence[Future]):
    """Processes that were submitted together.

    futures = gr.submit_many(relax, structure=structures, profile=profile)
    futures.wait()           # with a progress bar
    futures.results()        # in order; ProcessFailed for the first that failed
    """

    def __init__(self, profile: Profile, futures: Sequence[Future], name: str) -> None:
        self._profile = profile
        self._futures = list(futures)
        self._name = name

    def __len__(self) -> int:
        return len(self._futures)

    def __getitem__(self, place: Any) -> Any:
        return self._futures[place]

    def __iter__(self) -> Iterator[Future]:
        return iter(self._futures)

    def __repr__(self) -> str:
        ended = sum(future.is_terminated for future in self._futures)
        return f"<{len(self._futures):,} futures of {self._name}, {ended:,} known to have ended>"

    @property
    def ids(self) -> list[int]:
        """The ids of the processes, in order."""
        return [future.id for future in self._futures]

    def wait(self, *, timeout_s: float | None = None, progress: bool = True) -> bool:
        """Until all have ended, well or not. Units: seconds. Returns whether they have."""
        return wait(
            self._futures, timeout_s=timeout_s, progress=progress, profile=self._profile, of=self._name
        )

    def results(self, *, progress: bool = True) -> list[Any]:
        """What each gave, in order. Errors: ProcessFailed for the first that did not finish well."""
        self.wait(progress=progress)
        load_outputs(self._profile, self._futures)
        return [future.result() for future in self._futures]

    def failed(self) -> list[Future]:
        """Those that have ended, and not well."""
        return [future for future in self._futures if future.is_terminated and not future.is_finished_ok]


def submit(
    runnable: Any,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    wait: bool = False,
    label: str = "",
    resources: Resources | None = None,
    executor: str | None = None,
    cache: bool | None = None,
    profile: Profile | None = None,
    **more: object,
) -> Future:
    """Record a process that is to be run, and return.

    In a workflow it is a call of that workflow. Elsewhere the workers of `grange daemon start` run it; it
    survives the script. runnable: a workflow, a WorkChain or CalcJob class, a ShellJob or a Python function.
    inputs: by name, as keywords or in a dict. executor: the label of a computer, "local", "hyperqueue"; of a
    workflow: where its calls are run. wait: return only when it has ended.

    Errors: InputInvalid, before anything is stored.
    """
    call = asked(
        runnable,
        {**(inputs or {}), **more},
        label=label,
        resources=resources,
        executor=executor,
        cache=cache,
    )
    frame = current_frame()
    if frame is not None:
        future = _called(frame, call)
    else:
        profile = given_profile(profile, "submit")
        pending = _pending_of(profile, call)
        record_now(profile, pending)
        future = pending[0].future
    if wait:
        future.wait()
    return future


def submit_many(
    runnable: Any,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    product: bool = False,
    labels: Sequence[str] | None = None,
    resources: Resources | None = None,
    executor: str | None = None,
    cache: bool | None = None,
    profile: Profile | None = None,
    **more: object,
) -> Futures:
    """Record thousands of processes that are to be run, in a few statements, and return.

    inputs: lists and other columns are gone through in step, or with product in every combination, as
    Campaign.map takes them; gr.fixed([…]) is one value. The rest as for submit().
    """
    call = asked(runnable, {**(inputs or {}), **more}, resources=resources, executor=executor, cache=cache)
    runnable, given, how = call.runnable, call.inputs, call.how
    resources, executor, cache = how.resources, how.executor, how.cache
    name = str(getattr(runnable, "__name__", runnable))
    frame = current_frame()
    if frame is not None:
        made = frame.call_many(
            runnable,
            given,
            product=product,
            labels=labels,
            resources=resources,
            executor=executor,
            cache=cache,
        )
        return Futures(frame.profile, made, name)
    profile = given_profile(profile, "submit_many")
    pending = _pending(
        profile, runnable, given, labels, executor, resources, cache, product=product, one=False
    )
    for start in range(0, len(pending), SLICE):
        record_now(profile, pending[start : start + SLICE])
    return Futures(profile, [one.future for one in pending], name)


def run(
    runnable: Any,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    label: str = "",
    resources: Resources | None = None,
    executor: str | None = None,
    cache: bool | None = None,
    profile: Profile | None = None,
    progress: bool = True,
    **more: object,
) -> Any:
    """Run a process here and now, and wait for it: a workflow's code runs in this process.

    What it hands to the farm is run by this process, too, unless somebody else is at it. Returns what
    it gave: of a function what it returned, as a node or a dict of nodes; of a WorkChain or a program a dict
    of all its outputs.

    Errors: InputInvalid before anything is stored; ProcessFailed. When it is interrupted, what was recorded
    stays: a daemon goes on with it, or `grange process run ID`.
    """
    given, future = run_get_node(
        runnable,
        {**(inputs or {}), **more},
        label=label,
        resources=resources,
        executor=executor,
        cache=cache,
        profile=profile,
        progress=progress,
    )
    if not future.is_finished_ok:
        raise ProcessFailed(future)
    return given


def run_get_node(
    runnable: Any,
    inputs: Mapping[str, object] | None = None,
    /,
    *,
    label: str = "",
    resources: Resources | None = None,
    executor: str | None = None,
    cache: bool | None = None,
    profile: Profile | None = None,
    progress: bool = True,
    **more: object,
) -> tuple[Any, Future]:
    """As run(); returns what it gave, and the process as a future that has ended.

    In contrast to run() no error is raised for a process that failed: what it gave is then a dict of the
    outputs that there are.
    """
    call = asked(
        runnable,
        {**(inputs or {}), **more},
        label=label,
        resources=resources,
        executor=executor,
        cache=cache,
    )
    frame = current_frame()
    if frame is not None:
        future = _called(frame, call)
        future.wait()
        return _given(future), future
    profile = given_profile(profile, "run")
    if isinstance(runnable, CalcFunction) and executor is None:
        return _run_calcfunction(profile, runnable, call)
    from grange.core.local_run import run_here

    pending = _pending_of(profile, call, here=True)
    run_here(profile, pending, progress=progress)
    future = pending[0].future
    if not future.has_outputs:
        load_outputs(profile, [future])
    return _given(future), future


def _run_calcfunction(profile: Profile, function: CalcFunction, call: Asked) -> tuple[Any, Future]:
    """Call a calcfunction here and record it."""
    arguments = function.arguments(call.inputs)
    ran = function.ran(arguments)
    future = Future(ClientWaiter(profile), function.label)
    call_hash = hash_of_arguments(function.process_type, arguments)
    record_now(profile, [PendingCall(ran, future, call.how.label, call_hash)])
    future.give(ran.outputs)
    return _given(future), future


def _given(future: Future) -> Any:
    if future.is_finished_ok:
        return future.result()
    return dict(future.outputs.items())


def wait(
    futures: Sequence[Future],
    *,
    any_of_them: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
    profile: Profile | None = None,
    of: str = "waiting",
) -> bool:
    """Wait until processes have ended, well or not; any_of_them: until one of them has.

    In a workflow it is the workflow that waits. Elsewhere with a progress bar. Units: seconds. Returns
    whether they have ended.
    """
    frame = current_frame()
    if frame is not None:
        if timeout_s is not None:
            raise InputInvalid("wait: timeout_s", timeout_s, "no time-out in a workflow")
        frame.wait(futures, any_of_them=any_of_them)
        return True
    if not futures:
        return True
    waiter = futures[0].waiter if profile is None else ClientWaiter(profile)
    if not isinstance(waiter, ClientWaiter):
        raise InputInvalid("wait", futures, "processes that were submitted by this script")
    if not progress:
        return waiter.wait_for(futures, timeout_s, any_of_them)
    from grange.core.engine import Progress
    from grange.core.progress_bar import progress_bar

    seen = Progress(total=len(futures))

    def told(ended: Sequence[Future]) -> None:
        seen.done = len(ended)
        seen.failed = sum(not future.is_finished_ok for future in ended)
        show(seen)

    with progress_bar(of) as show:
        waiter.told = told
        return waiter.wait_for(futures, timeout_s, any_of_them)


def _called(frame: Frame, call: Asked) -> Future:
    """A call of a workflow."""
    how = call.how
    return frame.call(
        call.runnable,
        call.inputs,
        label=how.label,
        link_label=how.link_label,
        resources=how.resources,
        executor=how.executor,
        cache=how.cache,
    )


def _pending_of(profile: Profile, call: Asked, *, here: bool = False) -> list[PendingCall]:
    """The call of what is submitted outside of workflows, checked. here: it is run by this process."""
    how = call.how
    return _pending(
        profile,
        call.runnable,
        call.inputs,
        [how.label],
        how.executor,
        how.resources,
        how.cache,
        one=True,
        here=here,
    )


def _pending(
    profile: Profile,
    runnable: Any,
    inputs: Mapping[str, object],
    labels: Sequence[str] | None,
    executor: str | None,
    resources: Resources | None,
    cache: bool | None,
    *,
    one: bool,
    product: bool = False,
    here: bool = False,
) -> list[PendingCall]:
    """The calls of what is submitted outside of workflows, checked. here: they are run by this process."""
    waiter = ClientWaiter(profile)
    queues = Queues(profile, own=here)
    recipe = workflow_recipe_of(runnable)
    if recipe is not None:
        if executor is not None:
            queues.id_of(executor)
        attributes = {**({EXECUTOR_ATTRIBUTE: executor} if executor else {}), **recorded_blocks()}
        given = [recipe.given(inputs)] if one else list(givens_of(recipe, inputs, product=product))
        calls = []
        for checked, name in zip(given, _names(recipe.label, labels, len(given)), strict=True):
            what = WorkflowCall(recipe, checked, attributes)
            call_hash = hash_of_given(recipe.process_type, checked)
            calls.append(
                PendingCall(what, Future(waiter, recipe.label, node_class=recipe.node_class), name, call_hash)
            )
        return calls
    farm = calls_of(
        profile,
        runnable,
        inputs,
        product=product,
        one=one,
        resources=resources or Resources(),
        cache=cache,
    )
    names = _names(farm.recipe.label, labels, len(farm))
    label, node_class = farm.recipe.label, farm.recipe.node_class
    calls = []
    for call, name in zip(farm.slice(0, len(farm)), names, strict=True):
        queue_id = queues.of(executor, call.values())
        farm_call = FarmCall(farm, call, queue_id, queues.computer_of(queue_id))
        call_hash = hash_of_arguments(farm.recipe.process_type, call.arguments)
        calls.append(PendingCall(farm_call, Future(waiter, label, node_class=node_class), name, call_hash))
    return calls


def _names(what: str, labels: Sequence[str] | None, count: int) -> Sequence[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count or not all(isinstance(name, str) for name in labels):
        raise InputInvalid(f"{what}: labels", labels, f"{count} texts, one for each call")
    return labels


__all__ = ["Future", "Futures", "ProcessFailed", "run", "run_get_node", "submit", "submit_many", "wait"]
