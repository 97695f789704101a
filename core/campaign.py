"""Campaigns: a named set of calculations that are run together."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grange.core import group, workflow_rows
from grange.core import process as rows
from grange.core.calls import Calls
from grange.core.campaign_follow import Follower
from grange.core.campaign_run import CampaignRun
from grange.core.dispatcher import end_killed
from grange.core.dry_run import FOLDER as DRY_RUN_FOLDER
from grange.core.dry_run import DryRun, dry_runs
from grange.core.engine import Progress
from grange.core.errors import CampaignBusy, InputInvalid, NameExists, NotFound
from grange.core.executors import checked_name, computer_id_of, open_executor
from grange.core.frame import lazy_results, results
from grange.core.interruptible import interruptible
from grange.core.job_recipe import JobRecipe
from grange.core.json_value import checked_text
from grange.core.profile import Profile
from grange.core.profile_lock import working
from grange.core.progress_bar import progress_bar
from grange.core.queue_hold import Holder, find_holder, hold
from grange.core.queues import (
    CAMPAIGN_TYPE,
    EXECUTOR_EXTRA,
    lock_recording,
    mark_submitted,
    note_executor,
    unmark_submitted,
)
from grange.core.recording import record_calls
from grange.core.resources import checked_resources
from grange.core.runnable import Runnable, calls_of, workflow_recipe_of
from grange.core.transition import State
from grange.core.workflow_map import WorkflowMap
from grange.farm.executor import Executor
from grange.farm.task import Resources

if TYPE_CHECKING:
    import pandas


#: Seconds for which a dispatcher that is idle may hold a campaign that somebody wants elsewhere.
PATIENCE_S = 2.0


class CampaignInterrupted(KeyboardInterrupt):
    """The run was interrupted; what was done is recorded, and running again goes on from there."""


class Campaign:
    """A named set of calculations that are run together, and may be gone on with at any time.

        campaign = gr.Campaign("fcc-eos", profile)
        campaign.map(energy, structure=structures, strain=strains, product=True)
        campaign.run()
        frame = campaign.results()

    The name is the identity: a script that is started again under the same name goes on where it was,
    and what is recorded is not computed again.
    """

    def __init__(self, name: str, profile: Profile, *, description: str = "") -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputInvalid("Campaign: name", name, "a text that is not empty")
        checked_text(name, "Campaign: name")
        if not isinstance(profile, Profile):
            raise InputInvalid("Campaign: profile", profile, "a profile, as gr.open() gives it")
        self.name = name
        self.profile = profile
        with profile.transaction() as cursor:
            try:
                self.id = group.load(cursor, name, CAMPAIGN_TYPE).id
            except NotFound:
                self.id = _made(cursor, name, profile.user_id, description)
        self._maps: list[Calls | WorkflowMap] = []
        self._places: list[array[int]] = []

    def __repr__(self) -> str:
        return f"Campaign({self.name!r}, {sum(map(len, self._maps)):,} calls mapped)"

    # -- what is to be done ----------------------------------------------------------------------

    def map(
        self,
        runnable: Runnable,
        inputs: Mapping[str, object] | None = None,
        /,
        *,
        labels: Sequence[str] | None = None,
        product: bool = False,
        resources: Resources = Resources(),  # noqa: B008 – frozen
        cache: bool | None = None,
        **more: object,
    ) -> int:
        """Add calls of a function, a CalcJob class, a ShellJob or a workflow; nothing is stored or run yet.

        inputs: by name, as keywords or in a dict. Lists, ranges, generators, arrays and frame columns
        are gone through in step (zip), or with product=True in every combination, the last one fastest;
        anything else, and gr.fixed([...]), is one value for all calls. A list of nodes as one element is
        passed on as a list of values, and linked node by node.
        labels: a name of your own for each call, in the order of the calls; the column "label".
        cache: whether equal calls elsewhere in the profile may answer, and be answered by, these. None: as
        gr.enable_caching(), gr.disable_caching(), profile.toml and the attribute `caching` of the function
        or class say, else true.
        Returns how many calls this added.

        Errors: InputInvalid, which names port, place, value and what was expected;
        FunctionNotShippable.
        """
        offset = sum(map(len, self._maps))
        recipe = workflow_recipe_of(runnable)
        if recipe is not None:
            if resources != Resources():
                raise InputInvalid(
                    f"{recipe.label}: resources", resources, "none: what a workflow calls has its own"
                )
            return self._added(
                WorkflowMap(recipe, {**(inputs or {}), **more}, labels, offset, product=product)
            )
        calls = calls_of(
            self.profile,
            runnable,
            {**(inputs or {}), **more},
            product=product,
            resources=resources,
            cache=cache,
        )
        calls.set_labels(labels)
        calls.offset = offset
        return self._added(calls)

    def _added(self, calls: Calls | WorkflowMap) -> int:
        self._maps.append(calls)
        self._places.append(array("q", bytes(8 * len(calls))))
        return len(calls)

    def _calculations(self) -> list[Calls]:
        """The maps of what the farm runs."""
        return [calls for calls in self._maps if isinstance(calls, Calls)]

    def dry_run(
        self, count: int = 1, *, folder: str | Path = DRY_RUN_FOLDER, executor: str | None = None
    ) -> list[DryRun]:
        """Write what the first mapped calls would run into folders, and say where; see gr.dry_run().

        Nothing is stored or run. Errors: InputInvalid for a function; whatever prepare() raises.
        """
        return dry_runs(self.profile, self._calculations(), count, folder, executor)

    def submit(self, *, executor: str | None = None) -> int:
        """Record the mapped calls as processes that wait to be run, and return; a dispatcher runs them.

        The daemon (`grange daemon start`) has dispatchers; without one they are run by `grange campaign run
        NAME`, or by run() of whoever opens the campaign. Without a map: what earlier runs have left.
        executor: "local", "hyperqueue", or the label of the computer on which they are to be run; None: where
        it was last run or submitted to, else "local".
        Returns how many processes are waiting now.

        Errors: CampaignBusy when another process runs it, other than a dispatcher, or elsewhere.
        """
        noted = self._noted()
        self._refuse_if_busy(stays=executor in (None, noted))
        name = executor or noted
        computer_id = computer_id_of(self.profile, name)
        with self.profile.transaction() as cursor:
            note_executor(cursor, self.id, name, home=str(self.profile.home))
        self._record(computer_id)
        with self.profile.transaction() as cursor:
            count = rows.count_unfinished(cursor, self.id)
            if count:
                mark_submitted(cursor, self.id)
                rows.tell(cursor, [rows.queue_news(self.id)])
        return count

    def _record(self, computer_id: int | None) -> int:
        """Record the mapped calls for whoever runs the campaign; returns how many are answered already."""
        answered = 0
        for calls, places in zip(self._maps, self._places, strict=True):
            if isinstance(calls, WorkflowMap):
                found, ended = calls.record(self.profile, self.id, self._executor_of_workflows())
                places[:] = array("q", found)
                answered += ended
                continue
            for start in range(0, len(calls), 2000):
                slice_ = calls.slice(start, start + 2000, b"campaign %d" % self.id)
                recorded = record_calls(
                    self.profile, self.id, calls, slice_, submit=False, computer_id=computer_id
                )
                answered += recorded.answered
                for call, process_id in zip(slice_, recorded.places, strict=True):
                    places[call.index] = process_id
        return answered

    def run(
        self,
        *,
        progress: bool | Callable[[Progress], None] = True,
        executor: str | Executor | None = None,
        resources: Resources | None = None,
    ) -> Progress:
        """Run what is mapped and what earlier runs have left, until all of it has ended.

        progress: a bar on standard error, or a function that is told how far it is.
        executor: "local" (runner processes on this machine), "hyperqueue", the label of a computer, or an
        Executor. None: where it was last run or submitted to, else "local".
        resources: for what earlier runs have left and this script does not map, in place of those that
        were recorded with it.

        What was sent to a computer goes on there when this process ends, in whatever way; running again
        goes on with it. A campaign that a dispatcher runs is followed: what is mapped is recorded, the
        dispatcher runs it, and should that be gone, it is gone on with here.

        Errors: CampaignBusy when another process runs it; CampaignInterrupted (a KeyboardInterrupt) on
        Ctrl-C, after what was done is recorded; TaskRefused when the machine has not the resources;
        NotFound for a computer that is not there; ProfileLocked.
        """
        if resources is not None:
            checked_resources(resources, "run")
        with working(self.profile), _shown(self.name, progress) as show:
            while True:
                can_follow = resources is None and executor in (None, self._noted())
                if self._is_dispatched():
                    self._refuse_if_busy(stays=can_follow)
                if can_follow and self._is_dispatched():
                    followed = self._followed(show)
                    if followed is not None:
                        return followed
                try:
                    if self._has_workflows():
                        return self._run_workflows(show, executor, resources)
                    return self._run(show, executor, resources)
                except CampaignBusy:
                    if not (can_follow and self._is_dispatched()):
                        raise

    def _has_workflows(self) -> bool:
        """Whether workflows are mapped, or earlier runs have left some."""
        if any(isinstance(calls, WorkflowMap) for calls in self._maps):
            return True
        with self.profile.transaction() as cursor:
            return bool(workflow_rows.find_unfinished(cursor, self.id, limit=1))

    def _executor_of_workflows(self) -> str | None:
        """Where the calls of mapped workflows are run; None: on the machine of whoever runs them."""
        noted = self._noted()
        return None if noted == "local" else noted

    def _run_workflows(
        self, show: Callable[[Progress], None], executor: str | Executor | None, resources: Resources | None
    ) -> Progress:
        """Record what is mapped, and run it here, beside whoever else is at it."""
        if resources is not None or not isinstance(executor, str | None):
            raise InputInvalid(
                f"campaign {self.name}: run",
                resources if resources is not None else executor,
                "neither resources nor an Executor: the campaign has workflows, which say so for their calls",
            )
        from grange.core.local_run import run_campaign_here

        if executor is not None:
            computer_id_of(self.profile, executor)
            with self.profile.transaction() as cursor:
                note_executor(cursor, self.id, executor, home=str(self.profile.home))
        answered = self._record(computer_id_of(self.profile, self._noted()))
        seen = Progress(total=sum(map(len, self._maps)), done=answered, reused=answered)
        if not self._maps:
            with self.profile.transaction() as cursor:
                seen.total = sum(rows.count_states(cursor, self.id).values())
        stop = _Stop()
        with interruptible(stop.ask):
            ended = run_campaign_here(self.profile, self.id, seen, show, stop.is_asked)
            if ended and self._maps:
                Follower(self.profile, self.id, seen, self._places).conclude()
                show(seen)
        if not ended:
            with self.profile.transaction() as cursor:
                unmark_submitted(cursor, self.id, only_if_done=False)
            raise CampaignInterrupted(
                f"campaign {self.name}: {seen.done:,} of {seen.total:,} calls done and recorded; run it "
                "again to go on"
            )
        return seen

    def _followed(self, show: Callable[[Progress], None]) -> Progress | None:
        """Have a dispatcher run what is mapped; None where it is gone before all of it has ended."""
        answered = self._record(computer_id_of(self.profile, self._noted()))
        total = sum(map(len, self._maps))
        done = Progress(total=total, done=answered, reused=answered)
        follower = Follower(self.profile, self.id, done, self._places)
        stop = _Stop()
        with interruptible(stop.ask):
            ended = follower.follow(show, stop.is_asked)
        if stop.is_asked() and not ended:
            holder = self._holder()
            goes_on = f"{holder} goes on with it" if holder else "nobody runs it now"
            raise CampaignInterrupted(
                f"campaign {self.name}: {done.done:,} of {done.total:,} calls done and recorded; {goes_on}; "
                f"`grange campaign kill {self.name}` ends it"
            )
        return done if ended else None

    def _run(
        self, show: Callable[[Progress], None], executor: str | Executor | None, resources: Resources | None
    ) -> Progress:
        """Run it here. Errors: CampaignBusy."""
        with self._locked():
            chosen = self._chosen(executor)
            with open_executor(self.profile, self.id, chosen) as opened:
                run = CampaignRun(
                    self.profile,
                    self.id,
                    self._calculations(),
                    opened.executor,
                    resources,
                    show,
                    opened.computer_id,
                )
                with interruptible(run.stop):
                    done = run.run()
                left = opened.executor.outstanding if opened.computer_id else 0
            self._places = run.places
            if run.stopping:  # whoever ends it does not want a dispatcher to go on
                with self.profile.transaction() as cursor:
                    unmark_submitted(cursor, self.id, only_if_done=False)
        if run.stopping:
            there = f"; {left:,} go on on {chosen}" if left else ""
            kept = "; what came last is kept here until the store answers" if run.unrecorded else ""
            raise CampaignInterrupted(
                f"campaign {self.name}: {done.done:,} of {done.total:,} calls done and recorded{there}{kept}"
                "; run it again to go on"
            )
        return done

    def kill(self, *, progress: bool = False) -> int:
        """End the calls of the campaign that have not ended; returns how many were to be ended.

        Those that wait never start; those that run are ended (SIGTERM, then SIGKILL) and what they left is
        recorded. Whoever runs the campaign sees to it within seconds; if nobody does, it is done here.

        Errors: those of reaching the computer that it runs on.
        """
        with self.profile.transaction() as cursor:
            workflows = workflow_rows.find_unfinished(cursor, self.id)
        count = 0
        if workflows:  # with all that they have called, wherever that waits
            from grange.core.kill import kill

            count = kill(self.profile, ids=workflows, progress=progress)
        with self.profile.transaction() as cursor:
            count -= len(workflow_rows.find_unfinished(cursor, self.id))  # asked before
            count += sum(rows.ask_to_kill(cursor, campaign_id=self.id).values())
            rows.tell(cursor, [rows.CONTROL_NEWS])
        self.end_killed(progress=progress)
        return count

    def end_killed(self, *, progress: bool = False) -> int:
        """End what was marked as to be killed, unless another process runs the campaign and does so.

        Returns how many were ended here.
        """
        with _shown(self.name, progress) as show:
            return end_killed(self.profile, self.id, show)

    def _chosen(self, executor: str | Executor | None) -> str | Executor:
        """The executor to use; where it is a computer, it is noted for whoever goes on with the campaign."""
        noted = self._noted()
        if executor is None:
            return noted
        label = checked_name(self.profile, executor) or "local"
        if label != noted:
            with self.profile.transaction() as cursor:
                note_executor(cursor, self.id, label, home=str(self.profile.home))
        return executor

    def _noted(self) -> str:
        """Where it was last run or submitted to."""
        with self.profile.transaction() as cursor:
            noted = group.note(cursor, self.id, EXECUTOR_EXTRA)
        return noted if isinstance(noted, str) else "local"

    def _holder(self) -> Holder | None:
        """Who runs it now."""
        with self.profile.transaction() as cursor:
            return find_holder(cursor, self.id)

    def _refuse_if_busy(self, *, stays: bool) -> None:
        """Errors: CampaignBusy where who runs it takes nothing more. stays: it is to be run where it was.

        A dispatcher that has nothing to do any more is gone in a moment.
        """
        if self.id in self.profile.held:
            raise CampaignBusy(f"campaign {self.name} is being run by this process: wait for its end")
        until = time.monotonic() + PATIENCE_S
        while (holder := self._holder()) is not None and not (holder.is_dispatcher and stays):
            if not holder.is_dispatcher or time.monotonic() >= until:
                raise CampaignBusy(f"campaign {self.name} is being run by {holder}: wait for it or end it")
            time.sleep(0.05)

    def _is_dispatched(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.is_dispatcher

    def retry(self, exit_statuses: Sequence[int] | None = None) -> int:
        """Make the failed calls again, as new processes; run() runs them, or submit() has them run.

        exit_statuses: only those that ended with one of these. Returns how many.

        Errors: CampaignBusy when another process runs it, other than a dispatcher.
        """
        self._refuse_if_busy(stays=True)
        with self.profile.transaction() as cursor:
            lock_recording(cursor, self.id)
            self.profile.index(cursor).hold()  # the new processes rely on the files of the old
            new = rows.retry_failed(cursor, self.id, exit_statuses)
            rows.tell(cursor, [rows.queue_news(self.id)] if new else [])
            return len(new)

    # -- what came of it -------------------------------------------------------------------------

    def results(self, *, nodes: bool = False, lazy: bool = False) -> Any:
        """The calls and what came of them: one row a call, in the order of the maps.

        Columns: process (id), label where labels were given, the inputs by name, the outputs by name,
        state, exit_status, exit_message. A mapped call that was not run yet has no process and the
        state "created".
        Without a map in this script: every call that the campaign has, in order.
        nodes: cells of outputs hold the stored data nodes, to be mapped on with their provenance.
        lazy: a dask.dataframe whose partitions read from PostgreSQL when they are computed.
        """
        ids = self._resolved()
        if lazy:
            return lazy_results(self.profile, self.id, ids)
        promised = {
            name
            for calls in self._maps
            if isinstance(calls.recipe, JobRecipe)
            for name in calls.recipe.promised
        }
        with self.profile.transaction() as cursor:
            return results(self.profile, cursor, self.id, ids, nodes=nodes, promised=sorted(promised))

    def failures(self) -> pandas.DataFrame:
        """The calls that did not end well: their inputs, exit_status and exit_message."""
        frame = self.results()
        ended = frame["state"].isin([State.FINISHED, State.EXCEPTED, State.KILLED])
        well = (frame["state"] == State.FINISHED) & (frame["exit_status"] == 0)
        return frame[ended & ~well]  # type: ignore[no-any-return]

    def paused(self) -> Mapping[str, int]:
        """Why calls are set aside, and how many for that reason; a map of the same calls plays them."""
        with self.profile.transaction() as cursor:
            return rows.count_paused(cursor, self.id)

    def counts(self) -> Mapping[tuple[State, bool], int]:
        """How many processes of the campaign are in a state; those that failed apart."""
        with self.profile.transaction() as cursor:
            return rows.count_states(cursor, self.id)

    def _resolved(self) -> list[int] | None:
        """The process of each mapped call, looked up where this script did not run it; None without maps."""
        if not self._maps:
            return None
        for calls, places in zip(self._maps, self._places, strict=True):
            if 0 not in places:
                continue
            if isinstance(calls, WorkflowMap):
                places[:] = array("q", calls.find(self.profile, self.id))
                continue
            with self.profile.transaction() as cursor:
                for start in range(0, len(calls), 10_000):
                    slice_ = calls.slice(start, start + 10_000, b"campaign %d" % self.id)
                    found = rows.find_recorded(cursor, self.id, {call.key for call in slice_})
                    for call in slice_:
                        if call.key in found:
                            places[call.index] = found[call.key].node_id
        return [process_id for places in self._places for process_id in places]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the campaign: one process at a time records and runs its calls."""
        with hold(self.profile, self.id, f"campaign {self.name}"):
            yield


def _made(cursor: Any, name: str, user_id: int, description: str) -> int:
    try:
        made = group.create(cursor, name, user_id=user_id, description=description, type_string=CAMPAIGN_TYPE)
    except NameExists:  # a script that was started at the same moment was quicker
        made = group.load(cursor, name, CAMPAIGN_TYPE)
    return made.id


@contextmanager
def _shown(name: str, progress: bool | Callable[[Progress], None]) -> Iterator[Callable[[Progress], None]]:
    if progress is True:
        with progress_bar(name) as show:
            yield show
    elif progress is False:
        yield lambda _: None
    else:
        yield progress


class _Stop:
    """Somebody wants it to stop."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def is_asked(self) -> bool:
        return self._asked
