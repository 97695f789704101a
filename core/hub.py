"""The hub: runs workflows by the thousand, each in a frame of its own, and commits what they do together.

    take what is ready → run every frame until it stops → write all they did in one transaction → again

A frame goes on only when what it has done is committed. So whatever is killed between two lines, the next
worker goes on from a record that has everything which any code has seen.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import psycopg2
import psycopg2.errors
from greenlet import getcurrent

from grange.core import process as rows
from grange.core import workflow_rows
from grange.core.calcfunction import Ran
from grange.core.database import commit_quickly, is_lost
from grange.core.equal_rows import find_failed_before, find_reusable
from grange.core.errors import DatabaseUnavailable, InputInvalid, LinkInvalid
from grange.core.future import Future
from grange.core.graph import forget, load, store
from grange.core.known_recipes import KnownRecipes
from grange.core.link import Link, LinkType
from grange.core.live_frame import (
    AtCache,
    AtFlush,
    AtOutputs,
    AtPage,
    AtPause,
    AtWait,
    LiveFrame,
    Outcome,
)
from grange.core.node import Data, Node, NodeRef
from grange.core.pending_call import PendingCall, WorkflowCall, prepare, record
from grange.core.process import End
from grange.core.process_control import kill_processes
from grange.core.process_tree import tree_ids
from grange.core.profile import Profile
from grange.core.queues import Queues
from grange.core.recorded import RecordedRecipes
from grange.core.transition import ENDED, State
from grange.core.wakeups import Wakeups
from grange.core.worker import free_dead
from grange.core.workflow_rows import ClaimedWorkflow, Wait
from grange.repository import BlobCorrupt, BlobMissing, StoreFull, StoreUnavailable

#: So many workflows are kept live; those that have waited longest are let go beyond it.
LIVE = 1000
#: Of how many it lets go at once, as a share of the live ones.
LET_GO = 0.2
CLAIM = 200
#: Of how many of those that it has let go of it asks at once which are ready, when it is alone.
AMONG = 20_000
#: Calls in a page of a record.
PAGE = 1000
#: Of so many open calls it is asked at once whether they have ended.
LOOKED_AT = 500
#: Seconds of running code after which what was done is committed.
COMMIT_AFTER_S = 0.2
#: Calls that are committed at once, at most.
COMMIT_AFTER = 2000
#: Seconds between looks at what nobody told of.
LOOK_S = 1.0
SWEEP_S = 2.0
#: Seconds between looks for what others have left of what it was given, and as a multiple of what one takes.
REGAIN_S, REST = 5.0, 20
RETRY_S = 0.25
KILLED_MESSAGE = "killed"

#: What storing raises when what one workflow gave is to blame.
_OF_DATA = (
    InputInvalid,
    LinkInvalid,
    BlobMissing,
    BlobCorrupt,
    psycopg2.DataError,
    psycopg2.errors.ProgramLimitExceeded,
)


class Hub:
    """Runs workflows in this thread.

    alone: only those that it is given, and what they call (gr.run); else all of the profile that are ready.
    note: what a person should know; told: is called when something has happened; on_queues: with the queues
    that calculations were put into. wakes: descriptors that end its waiting when they can be read from.
    at: is told of the process whose code is run from now on, 0 for none.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        alone: bool = False,
        live: int = LIVE,
        told: Callable[[], None] = lambda: None,
        on_queues: Callable[[set[int]], None] = lambda _: None,
        wakes: Sequence[int] = (),
        at: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.profile = profile
        self.greenlet = getcurrent()
        self.queues = Queues(profile, own=alone)
        self.known_recipes = KnownRecipes()
        self.note = ""
        #: How many processes it has recorded; of these and of what it was given: how many have ended, and how
        #: many of those not well.
        self.recorded = self.ended = self.failed = 0
        self._alone = alone
        self._live = live
        self._told = told
        self._on_queues = on_queues
        self._at = at
        self._wakeups = Wakeups(profile, wakes)
        self._recipes = RecordedRecipes(profile, imports_anew=not alone)
        self._frames: dict[int, LiveFrame] = {}
        self._runnable: deque[LiveFrame] = deque()
        # alone: workflows of ours that have no frame, for want of room or because they wait
        self._away: dict[int, None] = {}
        # frames that have something to be written, and of those that wait the ones that must look again
        self._dirty: dict[int, LiveFrame] = {}
        self._look: dict[int, LiveFrame] = {}
        #: alone: what it was given and has not ended, the ids of all that it was given, and whether they have
        #: to be claimed again
        self.roots: dict[int, Future] = {}
        self.given: set[int] = set()
        self._regain = False
        self._ready = True
        self._claim_more = True
        self._controlled = True
        self._looked_at = self._swept_at = self._regain_at = 0.0
        self._worker_id = 0
        # whether there may be rows of this worker that no frame is for (one before it in this process may not
        # have been able to give them back), and which of its own frames those are of
        self._dropped = not alone
        self._left: set[int] = set()

    # -- the loop

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until stopping() is true; then let everything go.

        What the database or the store refuses for a while is tried again. Errors: whatever only a bug can
        cause.
        """
        try:
            while not stopping():
                try:
                    self.step(LOOK_S if not self._alone else RETRY_S)
                except DatabaseUnavailable as error:
                    self._lost(str(error))
                    self._pause_unless(stopping, RETRY_S)
        finally:
            self.let_go()

    def _pause_unless(self, stopping: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stopping():
            time.sleep(0.02)

    def step(self, timeout_s: float) -> None:
        """One turn: take, run, write; waits up to timeout_s if there was nothing.

        Errors: DatabaseUnavailable.
        """
        self._be_worker()
        if self._dropped:
            self._free()
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._ready = self._claim_more = self._controlled = True
            self._look_at_roots()
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            self._sweep(now)
        if self._controlled:
            self._control()
        if self._regain:
            self._regain_roots()
        if self._ready or self._look:
            self._wake()
        if self._claim_more:
            try:
                self._claim()
            except StoreUnavailable as error:  # which has the code of workflows
                self.note = f"waiting for the store: {error}"
                self._claim_more = False
        self._run_frames()
        wrote = bool(self._dirty)
        if self._dirty:
            self._commit()
            self._told()
        if not self._runnable and not self._look:
            quick = wrote or self._claim_more
            self._hear(self._wakeups.wait(0.0 if quick else timeout_s))

    def _be_worker(self) -> None:
        """Be the worker that holds its lock on the connection there is; what another one had is dropped."""
        worker_id = self.profile.worker_id
        if self._worker_id not in (0, worker_id):
            self._lost("the connection was lost")
        self._worker_id = worker_id

    def _hear(self, news: set[str] | None) -> None:
        if news is None:
            self._ready = self._claim_more = self._controlled = True
            return
        if rows.READY_NEWS in news:
            self._ready = self._claim_more = True
        if rows.CONTROL_NEWS in news:
            self._controlled = True

    # -- what is there to do

    def adopt(self, pending: Sequence[PendingCall], *, roots: bool = False) -> None:
        """Run workflows that were recorded as owned by this worker."""
        for one in pending:
            if not isinstance(one.what, WorkflowCall) or one.row is None or one.node is None:
                continue
            if one.row.worker_id is None:
                self._away[one.row.node_id] = None
                self._claim_more = True
                continue
            frame = LiveFrame(
                self,
                one.row.node_id,
                one.row.attempt,
                one.parent_id,
                one.what.recipe,
                one.what.given.nodes,
                one.node._attributes,
            )
            self._worker_id = one.row.worker_id
            self._frames[frame.process_id] = frame
            self._go_on(frame)
            if roots:
                self.roots[frame.process_id] = one.future
                self.given.add(frame.process_id)

    def _claim(self) -> None:
        """Claim what is ready and what there is room for; where there is none, let go of some that wait."""
        if self._alone and not self._away:
            self._claim_more = False
            return
        room = min(CLAIM, self._live - len(self._frames))
        if room <= 0:
            self._evict()
            return
        with self.profile.transaction_as(self._worker_id) as cursor:
            among = list(islice(self._away, AMONG)) if self._alone else None
            found = workflow_rows.find_ready(cursor, room, among)
            claimed = workflow_rows.claim(cursor, found, self._worker_id)
            self._claim_more = len(found) == room
            if claimed:
                self._open(cursor, claimed)
        if among is not None:  # those that were not ready now are looked at again behind the others
            taken = {one.node_id for one in claimed}
            for id_ in among:
                del self._away[id_]
            self._away.update((id_, None) for id_ in among if id_ not in taken)

    def _open(self, cursor: Any, claimed: Sequence[ClaimedWorkflow]) -> None:
        """Make frames of claimed workflows; those whose code cannot be had are paused."""
        ids = [one.node_id for one in claimed]
        recipes = self._recipes.of_workflows(cursor, claimed)
        inputs = self._data_by_label(cursor, workflow_rows.read_inputs(cursor, ids))
        decisions = workflow_rows.read_decisions(cursor, [one.node_id for one in claimed if one.decisions])
        for one in claimed:
            recipe = recipes.get(one.node_id)
            if recipe is None:
                continue
            frame = LiveFrame(
                self,
                one.node_id,
                one.attempt,
                one.parent_id,
                recipe,
                inputs.get(one.node_id, {}),
                one.attributes,
            )
            frame.recorded_calls = one.calls
            frame.recorded_reports = one.reports
            frame.recorded_decisions = decisions.get(one.node_id, ())
            self._frames[one.node_id] = frame
            self._go_on(frame)

    def _data_by_label(
        self, cursor: Any, links: Sequence[tuple[int, str, int]]
    ) -> dict[int, dict[str, Data]]:
        """Data of links (process, label, node), by process and label; each node is loaded once."""
        nodes = {
            node.id: node
            for node in load(cursor, list({node_id for _, _, node_id in links}), self.profile.read_files)
        }
        found: dict[int, dict[str, Data]] = {}
        for process_id, label, node_id in links:
            node = nodes[node_id]
            if isinstance(node, Data):
                found.setdefault(process_id, {})[label] = node
        return found

    def regain(self, futures: Sequence[Future]) -> None:
        """Go on with these workflows, and with what they have called."""
        self.roots.update((future.id, future) for future in futures)
        self.given.update(self.roots)
        self._regain = True

    def _regain_roots(self) -> None:
        """Look for all that is open of what this was given: the connection was lost, and with it all that was
        ours; or somebody else was at some of it, and is gone. It is claimed, unless others have it.
        """
        self._regain = False
        began = time.monotonic()
        free_dead(self.profile)
        with self.profile.transaction() as cursor:
            cursor.execute(
                """
                SELECT node_id, workflow, queue.id FROM process LEFT JOIN "group" queue ON queue.id = queue_id
                  AND coalesce(queue.extras ->> 'host', %s) = %s
                WHERE node_id = ANY (%s) AND state IN ('created', 'waiting', 'running') ORDER BY node_id
                """,
                (*[socket.gethostname()] * 2, tree_ids(cursor, list(self.roots))),
            )
            found = cursor.fetchall()
            ends = workflow_rows.read_ends(cursor, list(self._away))
        for id_, *_ in ends:
            del self._away[id_]
        self._away.update((id_, None) for id_, workflow, _ in found if workflow and id_ not in self._frames)
        self._on_queues({queue for _, workflow, queue in found if not workflow and queue is not None})
        self._claim_more = True
        now = time.monotonic()
        self._regain_at = now + max(REGAIN_S, REST * (now - began))

    def _sweep(self, now: float) -> None:
        """Free what dead workers had; alone: where somebody else may be at what this was given."""
        if not self._alone:
            free_dead(self.profile)
        elif self._away or any(id_ not in self._frames for id_ in self.roots):
            self._regain |= bool(free_dead(self.profile)) or now >= self._regain_at

    def _look_at_roots(self) -> None:
        """See what became of roots that others go on with: they were let go of, and a daemon was quicker."""
        away = [id_ for id_ in self.roots if id_ not in self._frames]
        if not away:
            return
        with self.profile.transaction() as cursor:
            ends = workflow_rows.read_ends(cursor, away)
        for process_id, state, status, message in ends:
            self.roots.pop(process_id).settle(state, status, message)

    def _control(self) -> None:
        """See to workflows of ours that somebody wants to be paused or killed."""
        self._controlled = False
        if not self._frames:
            return
        with self.profile.transaction_as(self._worker_id) as cursor:
            wanted = workflow_rows.find_interrupted(cursor, self._worker_id)
        for process_id, _, to_kill in wanted:
            frame = self._frames.get(process_id)
            if frame is None:
                continue
            frame.drop()
            frame.pending = []
            if to_kill:
                frame.outcome = Outcome(State.KILLED, None, None)
            else:
                frame.stop = AtPause("")
            self._dirty[process_id] = frame
        killed = [process_id for process_id, _, to_kill in wanted if to_kill and process_id in self._frames]
        if killed:  # their code is stopped: what they have called by now is all that they will have called
            with self.profile.transaction_as(self._worker_id) as cursor:
                kill_processes(cursor, killed, KILLED_MESSAGE)

    def _wake(self) -> None:
        """See which calls have ended of workflows of ours that are ready."""
        self._ready = False
        if not self._frames:
            self._look = {}
            return
        with self.profile.transaction_as(self._worker_id) as cursor:
            looked = dict(self._look)
            among = list(self._frames) if self._alone else None  # another hub may be on the same profile
            for process_id in workflow_rows.take_ready(cursor, self._worker_id, among):
                if process_id in self._frames:
                    looked[process_id] = self._frames[process_id]
            asked = {frame.process_id: _asked_after(frame) for frame in looked.values()}
            ids = [id_ for some in asked.values() for id_ in some]
            ends = {end[0]: end for end in workflow_rows.read_ends(cursor, ids)}
            good = [id_ for id_, state, _, _ in ends.values() if state is State.FINISHED]
            outputs = self._data_by_label(cursor, workflow_rows.read_outputs(cursor, good))
        self._look = {}
        for frame in looked.values():
            if self._frames.get(frame.process_id) is not frame:
                continue
            found = [id_ for id_ in asked[frame.process_id] if id_ in ends]
            frame.looks_at = LOOKED_AT if found else min(4 * max(frame.looks_at, LOOKED_AT), len(frame.open))
            for id_ in found:
                future = frame.open[id_]
                frame.settle(*ends[id_])
                _, state, status, _ = ends[id_]
                self._count(state is State.FINISHED and not status)
                future.give(outputs.get(id_, {}))
            if isinstance(frame.stop, AtWait):
                if frame.stop.over:
                    self._go_on(frame)
                else:
                    self._dirty[frame.process_id] = frame

    def _go_on(self, frame: LiveFrame) -> None:
        if not frame.queued:
            frame.queued = True
            self._runnable.append(frame)

    # -- running

    def _run_frames(self) -> None:
        """Run what can be run until everything has stopped, or there is enough to commit."""
        until = time.monotonic() + COMMIT_AFTER_S
        pending = 0
        readers: list[LiveFrame] = []
        while self._runnable or readers:
            if not self._runnable:
                self._read(readers)
                readers = []
                continue
            frame = self._runnable.popleft()
            frame.queued = False
            if self._frames.get(frame.process_id) is not frame or frame.process_id in self._dirty:
                continue
            self._at(frame.process_id)
            frame.resume()
            if frame.away:  # its code begins again from the record, and makes the same calls
                frame.pending, frame.decisions, frame.reports = [], [], []
                frame.stop = AtPause("")
            self._at(0)
            if isinstance(frame.stop, AtPage | AtOutputs | AtCache):
                readers.append(frame)
                continue
            self._dirty[frame.process_id] = frame
            pending += len(frame.pending) + 1
            if pending >= COMMIT_AFTER or time.monotonic() >= until:
                break
        if readers:
            self._read(readers)

    def _read(self, frames: Sequence[LiveFrame]) -> None:
        """Read what frames have stopped for: pages of records, outputs, equal processes; they go on then."""
        pages = [frame for frame in frames if isinstance(frame.stop, AtPage)]
        wanted: dict[int, Future] = {}
        for frame in frames:
            if isinstance(frame.stop, AtOutputs):
                wanted.update((future.id, future) for future in frame.stop.futures)
        equal = [(frame.process_id, frame.stop) for frame in frames if isinstance(frame.stop, AtCache)]
        with self.profile.transaction_as(self._worker_id) as cursor:
            calls = (
                workflow_rows.read_calls(cursor, [(one.process_id, one.page_end) for one in pages], PAGE)
                if pages
                else []
            )
            ended = [call.node_id for call in calls if call.state is State.FINISHED]
            outputs = self._data_by_label(
                cursor, workflow_rows.read_outputs(cursor, [*ended, *wanted.keys()])
            )
            given = workflow_rows.read_given(cursor, [call.node_id for call in calls])
            reusable = find_reusable(cursor, {stop.key for _, stop in equal})
            again = find_failed_before(cursor, reusable, [(id_, stop.key) for id_, stop in equal])
        for id_, stop in equal:
            stop.found = stop.key in reusable and (id_, stop.key) not in again
        by_frame = {frame.process_id: frame for frame in pages}
        parents: dict[int, LiveFrame] = {}
        for frame in pages:
            frame.page, frame.page_inputs = {}, {}
            frame.page_end = min(frame.page_end + PAGE, frame.recorded_calls)
        for call in calls:
            by_frame[call.parent_id].page[call.sequence] = call
            parents[call.node_id] = by_frame[call.parent_id]
            if call.state in ENDED:
                by_frame[call.parent_id].page_outputs[call.node_id] = outputs.get(call.node_id, {})
        for process_id, label, node_id, uuid in given:
            parents[process_id].page_inputs.setdefault(process_id, {})[label] = (node_id, uuid)
        for process_id, future in wanted.items():
            future.give(outputs.get(process_id, {}))
        for frame in frames:
            self._go_on(frame)

    # -- writing

    def _commit(self) -> None:
        """Write what frames have done, all together; where one of them is to blame, one by one."""
        frames = list(self._dirty.values())
        self._dirty = {}
        for frame in frames:
            prepare(frame.pending)
        try:
            self._write(frames)
        except _OF_DATA:
            for frame in frames:
                try:
                    self._write([frame])
                except _OF_DATA as error:
                    self._refuse(frame, error)
        except (StoreUnavailable, StoreFull) as error:
            self.note = f"waiting for the store: {error}"
            self._dirty = {frame.process_id: frame for frame in frames} | self._dirty
            time.sleep(RETRY_S)
            return
        self.note = next((f"waiting: {frame.away}" for frame in frames if frame.away), "")

    def _refuse(self, frame: LiveFrame, error: Exception) -> None:
        """What a workflow gave cannot be stored: it ends so."""
        frame.drop()
        frame.pending, frame.decisions = [], []
        frame.outcome = Outcome(State.EXCEPTED, None, str(error))
        self._write([frame])

    def _write(self, frames: Sequence[LiveFrame]) -> None:
        for frame in frames:
            if frame.let_go and isinstance(frame.stop, AtWait) and frame.stop.over:
                frame.let_go = False  # what it has waited for has ended since
        pending = [one for frame in frames for one in frame.pending]
        ended = [frame for frame in frames if frame.outcome is not None]
        paused = [
            (frame.process_id, frame.differs)
            for frame in frames
            if frame.differs is not None and frame.outcome is None
        ]
        stopped = [frame for frame in frames if frame.outcome is None and isinstance(frame.stop, AtPause)]
        let_go = {frame.process_id for frame in frames if frame.let_go}
        returned = [
            Link(NodeRef.workflow(frame.process_id), node, LinkType.RETURN, label)
            for frame in ended
            if frame.outcome is not None
            for label, node in frame.outcome.outputs.items()
        ]
        new: list[Node] = []
        try:
            with self.profile.transaction_as(self._worker_id) as cursor:
                touched = {frame.process_id for frame in frames if not _only_adds(frame)}
                touched |= {frame.parent_id for frame in ended if frame.parent_id is not None}
                if touched:
                    rows.lock(cursor, touched)
                else:
                    commit_quickly(cursor)
                news: set[str] = set()
                closed: set[int] = set()
                if pending:
                    owner = self._worker_id if self._alone and len(self._frames) < self._live else None
                    writing = record(self.profile, cursor, pending, owner=owner, links=returned)
                    new = writing.nodes
                    news |= writing.news
                    for one in pending:
                        assert one.row is not None
                        one.future.named(one.row.node_id)
                        if not one.is_open:
                            closed.add(one.row.node_id)
                elif returned:
                    store(
                        cursor,
                        (),
                        returned,
                        user_id=self.profile.user_id,
                        repository=self.profile.repository,
                        index=self.profile.index(cursor),
                    )
                self._write_words(cursor, frames)
                gone = rows.end(cursor, [_end_of(frame) for frame in ended])
                workflow_rows.pause(
                    cursor,
                    [*((id_, str(reason)) for id_, reason in paused), *_reasons(stopped)],
                )
                waits = self._waits(frames, closed)
                again = set(workflow_rows.wait(cursor, waits))
                rows.tell(cursor, news)
        except BaseException:
            forget(new)
            for one in pending:
                one.future.unnamed()
            raise
        self._after(frames, pending, closed, gone, again, let_go)

    def _write_words(self, cursor: Any, frames: Sequence[LiveFrame]) -> None:
        workflow_rows.write_decisions(
            cursor,
            [
                (frame.process_id, number, _json(value))
                for frame in frames
                for number, value in frame.decisions
            ],
        )
        reports = [
            (frame.process_id, number, frame.recipe.label, level, rows.storable(message, rows.LONGEST_LOG))
            for frame in frames
            for number, level, message in frame.reports
        ]
        for frame in frames:
            if frame.outcome is not None and frame.outcome.details:
                said = rows.storable(frame.outcome.details, rows.LONGEST_LOG)
                reports.append((frame.process_id, frame.next_report, frame.recipe.label, "ERROR", said))
        workflow_rows.write_reports(cursor, reports)

    def _waits(self, frames: Iterable[LiveFrame], closed: set[int]) -> list[Wait]:
        """What to write about those that have not ended: calls that were added, and what they wait for."""
        waits = []
        for frame in frames:
            if frame.outcome is not None or frame.differs is not None:
                continue
            added = sum(1 for one in frame.pending if one.is_open)
            stop = frame.stop
            if isinstance(stop, AtWait):
                stop.waiting = {future.id for future in stop.futures if future.end is None} - closed
                elsewhere = [id_ for id_ in stop.waiting if id_ not in self._frames]
                if self._alone:  # workflows among them are ours from now on
                    own = {
                        one.row.node_id
                        for one in frame.pending
                        if one.row is not None and one.row.worker_id is not None
                    }
                    elsewhere = [id_ for id_ in elsewhere if id_ not in own]
                if stop.waiting and (elsewhere or frame.let_go):
                    everything = not stop.any and len(stop.waiting) == len(frame.open) + added
                    calls = [] if everything else sorted(stop.waiting)
                    waits.append(Wait(frame.process_id, added, calls, stop.any, let_go=frame.let_go))
                    continue
            if added:
                waits.append(Wait(frame.process_id, added, waiting=False))
        return waits

    def _after(
        self,
        frames: Sequence[LiveFrame],
        pending: Sequence[PendingCall],
        closed: set[int],
        gone: set[int],
        again: set[int],
        let_go: set[int],
    ) -> None:
        """It is committed: frames go on, calls of workflows begin, those who wait for the ended are told."""
        self.recorded += len(pending)
        for one in pending:
            if one.row is not None and not one.is_open:
                self._count(not one.row.exit_status and one.row.exit_message is None)
        for frame in frames:
            frame.own_calls(closed)
        if self._alone:
            self.adopt(pending)
        queues = {one.row.queue_id for one in pending if one.row is not None and one.is_open}
        if queues:
            self._on_queues({queue for queue in queues if queue is not None})
        leaving: list[LiveFrame] = []
        for frame in frames:
            process_id = frame.process_id
            if frame.outcome is not None:
                self._frames.pop(process_id, None)
                if process_id in gone:
                    self._count(frame.outcome.state is State.FINISHED and not frame.outcome.exit_status)
                self._tell_of_end(frame)
            elif frame.differs is not None or isinstance(frame.stop, AtPause) or process_id in let_go:
                self._frames.pop(process_id, None)
                frame.drop()
                if self._alone:
                    self._away[process_id] = None
                leaving.append(frame)
            elif isinstance(frame.stop, AtWait):
                if frame.stop.over:
                    self._go_on(frame)
                elif process_id in again:
                    self._look[process_id] = frame
            else:
                self._go_on(frame)
        for frame in leaving:  # others may go on with it: its caller, which is here, is to be told by its row
            caller = self._frames.get(frame.parent_id or 0)
            if caller is not None and isinstance(caller.stop, AtWait) and not caller.stop.over:
                self._dirty[caller.process_id] = caller

    def _count(self, well: bool) -> None:
        self.ended += 1
        self.failed += not well

    def _tell_of_end(self, frame: LiveFrame) -> None:
        outcome = frame.outcome
        assert outcome is not None
        ended = (frame.process_id, outcome.state, outcome.exit_status, outcome.message)
        root = self.roots.pop(frame.process_id, None)
        if root is not None:
            root.settle(*ended[1:])
            root.give(outcome.outputs)
        parent = self._frames.get(frame.parent_id or 0)
        future = parent.open.get(frame.process_id) if parent is not None else None
        if parent is None or future is None:
            return
        parent.settle(*ended)
        future.give(outcome.outputs)
        if isinstance(parent.stop, AtWait) and parent.stop.over and parent.process_id not in self._dirty:
            self._go_on(parent)

    # -- letting go

    def _evict(self) -> None:
        """Let go of the workflows that have waited longest: whoever claims them goes on from the record."""
        self._claim_more = False
        waiting = (
            frame
            for frame in self._frames.values()
            if isinstance(frame.stop, AtWait) and not frame.stop.over and frame.process_id not in self._dirty
        )
        for frame in islice(waiting, max(1, int(self._live * LET_GO))):
            frame.let_go = True
            self._dirty[frame.process_id] = frame
            self._claim_more = True

    def _drop_all(self) -> None:
        self._left.update(self._frames)
        for frame in list(self._frames.values()):
            frame.drop()
        self._frames = {}
        self._runnable.clear()
        self._dirty = {}
        self._look = {}

    def _lost(self, why: str) -> None:
        """The database was not there: what was not committed did not happen, and is done again."""
        self.note = f"waiting for the database: {why}"
        self._drop_all()
        self._ready = self._claim_more = self._controlled = True
        self._regain = self._alone
        self._dropped = True
        with suppress(DatabaseUnavailable):
            if not is_lost(self.profile.connection):
                self._free()

    def _free(self) -> None:
        if self._worker_id:
            with self.profile.transaction() as cursor:
                among = list(self._left) if self._alone else None
                if workflow_rows.give_back(cursor, [self._worker_id], among):
                    rows.tell(cursor, [rows.READY_NEWS])
        self._left.clear()
        self._dropped = False

    def let_go(self) -> None:
        """Give everything back, so that others go on with it at once."""
        self._drop_all()
        with suppress(DatabaseUnavailable):
            self._free()


def _asked_after(frame: LiveFrame) -> list[int]:
    """The open calls of a frame to look at: those that it waits for, and some that it will ask for next."""
    stop = frame.stop
    if isinstance(stop, AtWait):
        if not stop.any and len(stop.waiting) == len(frame.open):
            return list(frame.open)
        ids = dict.fromkeys(islice(stop.waiting, max(LOOKED_AT, frame.looks_at)))
        ids.update(dict.fromkeys(islice(frame.open, LOOKED_AT)))
        return list(ids)
    return list(islice(frame.open, LOOKED_AT))


def _only_adds(frame: LiveFrame) -> bool:
    """Whether its code goes on at once, and made but calls that have ended: its own row stays as it is."""
    return (
        frame.outcome is None
        and frame.differs is None
        and not frame.let_go
        and isinstance(frame.stop, AtFlush)
        and all(isinstance(one.what, Ran) for one in frame.pending)
    )


def _end_of(frame: LiveFrame) -> End:
    outcome = frame.outcome
    assert outcome is not None
    return End(
        frame.process_id,
        frame.attempt,
        outcome.state,
        outcome.exit_status,
        outcome.message,
        None,
        None,
        None,
        None,
        None,
        frame.parent_id,
    )


def _reasons(frames: Iterable[LiveFrame]) -> list[tuple[int, str]]:
    return [(frame.process_id, frame.stop.reason) for frame in frames if isinstance(frame.stop, AtPause)]


def _json(value: Any) -> str:
    from grange.core.json_value import checked, encoded, for_database

    return for_database(encoded(checked(value, "decision"))).decode()
