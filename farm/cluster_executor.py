"""Chunks on another computer: sent in few large files, handed over there by our agent, fetched as packs."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grange.farm import runner
from grange.farm.chunk import (
    CLUSTER,
    TOGETHER,
    Sizing,
    can_wait,
    chunk_sizes,
    flush_interval_s,
)
from grange.farm.chunk_folder import Fetch
from grange.farm.cluster_spool import ClusterChunk, ClusterRun
from grange.farm.computer import Computer
from grange.farm.delivery import Delivery
from grange.farm.errors import (
    ExecutorUnavailable,
    FarmError,
    RemoteFull,
    RemoteMissing,
    ResultMalformed,
    TaskRefused,
    TransportUnavailable,
)
from grange.farm.estimates import Estimates
from grange.farm.function import by_value
from grange.farm.node_count import node_count
from grange.farm.offer import Offer
from grange.farm.queue import Group, Queue
from grange.farm.remote import Remote
from grange.farm.result import ResultPack
from grange.farm.result_pack import read_result_pack
from grange.farm.spool import spool_errors
from grange.farm.spool_by_files import FileSpool
from grange.farm.spool_there import AgentSpool, SpoolThere
from grange.farm.task import Batch, FunctionTask, Resources, ShippedFunction, Task
from grange.farm.transport import Transport
from grange.repository.errors import StoreUnavailable

#: How long a poll waits there for news. Short enough that a connection that died unseen is noticed.
WAIT_S = 15.0
#: What comes within this time is fetched together: while nothing is known of how long tasks take, at the
#: least, and where they take long. Units: seconds.
FIRST_GATHER_S, GATHER_S, LONGEST_GATHER_S = 0.05, 0.2, 8.0
#: So many commands may be spent on a few results each.
FREE_LOOKS = 5.0
#: How long tasks of a kind of which nothing is known are held back behind the first of them. Units: seconds.
HOLD_S = 3.0
#: So many tasks that fail at once cast doubt on the node, not on the tasks.
SUSPECT_AFTER = 10
#: A runner waits so long, twice, for another one that is at its chunk and does not get on. Units: seconds.
TWIN_S = 15.0
#: How often what the agent refuses is tried again, and after what time.
REFUSALS = 4
REFUSAL_PAUSE_S = 5.0
#: How often it is asked whether a chunk is still there; how soon again when something of it is missing, which
#: a shared file system may show late; and after what time of that it is sent again, at most so often.
#: Units: seconds.
LOOK_S, LOOK_AGAIN_S, LOST_S = 60.0, 5.0, 60.0
LIVES = 4
CANCELLED_MESSAGE = "cancelled before it began"
#: How many cores are reckoned with while none is known.
CORES_GUESSED = 16
#: So many tasks are wanted at hand in any case.
AHEAD = 4000
#: A shipment holds at most so many bytes, or one chunk.
SHIPMENT_BYTES = 256 << 20


class ClusterExecutor:
    """An Executor that has chunks run on another computer.

    What was sent goes on there when this process ends, in whatever way: under_way() of the next executor on
    the same spool root tells what it goes on with. One thread sends, one fetches; a computer that cannot be
    reached for a while holds both back and loses nothing.

    spool_root: a folder of this campaign and computer alone. transport: shared, closed by whoever made it.
    fetch: reads input files that are given by key. delivery: the store, if it signs URLs; nodes use
    them where the computer says so. offer: what allocations come to, for how much
    is kept submitted. flush_s: how long results may be kept back there (None: by how long tasks take).
    Errors: SpoolUnwritable.
    """

    #: What was sent goes on while nobody is connected: let it be much.
    ahead_s = 600.0

    def __init__(
        self,
        spool_root: Path,
        computer: Computer,
        transport: Transport,
        *,
        fetch: Fetch | None = None,
        delivery: Delivery | None = None,
        offer: Offer | None = None,
        sizing: Sizing = CLUSTER,
        flush_s: float | None = None,
    ) -> None:
        self.computer = computer
        self.remote = Remote(transport, computer)
        self._there: SpoolThere = AgentSpool(self.remote)
        if self.remote.restricted:
            if computer.hyperqueue == "none":
                raise ExecutorUnavailable(
                    f"{computer.label}: a restricted account needs HyperQueue, which runs inside its "
                    f"allocations: grange computer edit {computer.label} --hyperqueue hq"
                )
            self._there = FileSpool(self.remote, lambda: self._closing)
        self._root = Path(spool_root)
        self._fetch = fetch
        # What was delivered earlier is looked for in the store whatever the computer says now.
        self._store = delivery
        self._delivery = delivery if computer.delivery == "store" else None
        self._offer = offer or Offer()
        self._sizing = sizing
        self._flush_s = flush_s
        self._changed = threading.Condition()
        self._queue = Queue()
        self._first_at: dict[object, float] = {}
        self._estimates = Estimates()
        self._runs: dict[str, ClusterRun] = {}
        self._ready: list[ResultPack] = []
        self._left: list[ResultPack] | None = None
        self._unsent: list[ClusterChunk] = []
        self._to_end: set[str] = set()
        self._awaited: set[str] = set()
        self._cores = 0
        self._asked = False
        self._looks = FREE_LOOKS
        self._closing = False
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        #: What a person should know: why nothing goes on.
        self.notes: tuple[str, ...] = ()
        #: What whoever starts allocations has to say.
        self.said = ""
        #: Why the computer cannot be reached now.
        self.lost = ""
        for run in ClusterRun.left_behind(self._root, computer.label):
            self._runs[run.name] = run
        self._own = ClusterRun.create(self._root, computer.label)
        self._runs[self._own.name] = self._own

    def __enter__(self) -> ClusterExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """How many single-core tasks may run at once, when all allocations that are wanted are there."""
        return max(self._cores, self._offer.cores, CORES_GUESSED)

    @property
    def ahead(self) -> int:
        """A round trip takes half a second, in which a small cluster runs a thousand short tasks."""
        return max(AHEAD, 16 * self.slots)

    @property
    def cores(self) -> int:
        """How many cores are at work for us now."""
        return self._cores

    @property
    def outstanding(self) -> int:
        """How many submitted tasks have not been delivered yet."""
        return len(self._awaited)

    @property
    def unsent(self) -> int:
        """How many submitted tasks are still here."""
        with self._changed:
            chunks = (chunk for run in self._runs.values() for chunk in run.chunks.values())
            return len(self._queue) + sum(len(chunk.open_ids) for chunk in chunks if not chunk.sent)

    @property
    def note(self) -> str:
        """Where it runs, or why nothing goes on."""
        label, computer = self.computer.label, self.computer
        told = self.lost or (self.notes[0] if self.notes else "")
        if computer.hyperqueue != "none" and not self._cores and not told:
            told = self.said
            if self._asked and not told:
                return f"no worker is there yet: grange allocation start {label}"
        if told:
            return told if told.startswith(f"{label}: ") else f"{label}: {told}"
        there = self.outstanding - self.unsent
        calls = f"{there:,} {'call' if there == 1 else 'calls'} there" if there else ""
        if computer.scheduler == "slurm" and computer.hyperqueue == "none":
            cores = f"at most {computer.max_queued_jobs} jobs of Slurm at once"
        else:
            cores = f"{self._cores:,} {'core' if self._cores == 1 else 'cores'}" if self._cores else ""
        said = ", ".join(filter(None, (cores, calls)))
        return f"{label}: {said}" if said else label

    def submit(self, batch: Batch) -> None:
        """Take tasks; returns before they are sent.

        Errors: TaskRefused, SpoolUnwritable, and what the other side said that cannot be mended by waiting.
        """
        self._check()
        self._need(batch.resources)
        if not batch.tasks:
            return
        tasks = tuple(self._travelling(batch.tasks))
        with self._changed:
            self._queue.add(Batch(tasks, batch.resources, batch.more))
            self._awaited.update(task.id for task in tasks)
            self._changed.notify_all()
        self._start()

    def poll(self, timeout_s: float) -> list[ResultPack]:
        """What has come back since the last poll; waits up to timeout_s for the first.

        Errors: SpoolUnwritable, ExecutorUnavailable, AuthenticationRefused, HostKeyRefused, ComputerPaused.
        """
        self._check()
        self._start()
        with self._changed:
            if not self._ready:
                self._changed.wait_for(lambda: self._ready or self._error is not None, timeout_s)
            packs, self._ready = self._ready, []
            for pack in packs:
                self._awaited.difference_update(result.id for result in pack.results)
        if not packs:
            self._check()
        return packs

    def acknowledge(self, packs: Sequence[ResultPack]) -> None:
        """The results are recorded: their files here may go (a moved file is no error)."""
        with self._changed:
            for pack in packs:
                run = self._runs.get(pack.path.parent.parent.name)
                if run is not None:
                    run.acknowledged(pack.path)

    def recover(self) -> list[ResultPack]:
        """Result packs that earlier executors had fetched and did not live to record."""
        if self._left is None:
            with self._changed:
                self._left = [pack for run in self._runs.values() for pack in run.packs(self._store)]
                return self._left
        return []

    def under_way(self) -> dict[str, int]:
        """Tasks that earlier executors have sent and that go on there: id → attempt."""
        with self._changed:
            return {
                task_id: chunk.attempts[task_id]
                for run in self._runs.values()
                for chunk in run.chunks.values()
                if not chunk.ended
                for task_id in chunk.open_ids
            }

    def go_on(self, ids: Collection[str], *, end_others: bool = True) -> None:
        """Of what is under way, wait for these tasks; the others are ended there, where nobody wants them."""
        wanted = set(ids)
        with self._changed:
            self._awaited |= wanted
            if end_others:
                for chunk in self._open_there():
                    chunk.unwanted |= chunk.open_ids - wanted
                    chunk.open_ids &= wanted
                    self._to_end |= chunk.unwanted
                    # What was written and not sent is sent now.
                    if not chunk.sent and chunk.open_ids:
                        self._unsent.append(chunk)
        self._start()

    def cancel(self, task_ids: Collection[str] | None = None) -> None:
        """End these tasks (None: all); each is delivered as cancelled unless it had ended before."""
        wanted = None if task_ids is None else set(task_ids)
        with self._changed:
            waiting = self._queue.take_out(wanted)
            if waiting:
                results = [
                    runner.result_of({"id": task.id, "attempt": task.attempt}, "cancelled", CANCELLED_MESSAGE)
                    for task in waiting
                ]
                self._ready.append(self._own.pack_of(results, len(results)))
            for chunk in self._open_there():
                self._to_end |= chunk.open_ids if wanted is None else chunk.open_ids & wanted
            self._changed.notify_all()
        self._start()

    def close(self) -> None:
        """Leave what is under way to go on there, and to be fetched by whoever comes next."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(2.0)
        with self._changed:
            idle = [run for run in self._runs.values() if not run.chunks and run.tried]
            swept = not idle
            if idle and not self._error:
                with contextlib.suppress(FarmError):
                    self._there.sweep([run.name for run in idle])
                    swept = True
            for run in self._runs.values():
                # One that could not be removed there is removed by whoever comes next.
                run.close(swept=swept or not run.tried)
            self._runs.clear()

    # -- what tasks need -------------------------------------------------------------------------

    def _need(self, resources: Resources) -> dict[str, Any]:
        """What a task needs, as the agent takes it. Errors: TaskRefused for what can never be had there."""
        computer = self.computer
        label = computer.label
        if resources.cpus < 1:
            raise TaskRefused(f"cpus: expected 1 or more, got {resources.cpus}")
        if computer.scheduler == "direct":
            memory_mb = computer.memory_mb_per_node
            if memory_mb and (resources.memory_mb or 0) > memory_mb:
                raise TaskRefused(
                    f"a task asks for {resources.memory_mb} MiB of memory; {label} has {memory_mb} MiB"
                )
            cores = computer.slots or computer.cores_per_node
            if cores and resources.cpus > cores:
                raise TaskRefused(f"a task asks for {resources.cpus} cpus; {label} has {cores}")
        nodes = node_count(
            resources, computer.cores_per_node, computer.memory_mb_per_node, computer.gpus_per_node
        )
        if resources.gpus > computer.gpus_per_node * nodes:
            raise TaskRefused(
                f"a task asks for {resources.gpus} GPUs; a node of {label} has {computer.gpus_per_node}"
            )
        if computer.scheduler == "direct" and nodes > 1:
            raise TaskRefused(f"a task asks for {nodes} nodes; {label} is one machine")
        self._refuse_beyond_offer(resources, nodes)
        return {
            "cpus": self._cpus(resources, nodes),
            "memory_mb": resources.memory_mb,
            "gpus": resources.gpus,
            "nodes": nodes,
            "walltime_s": resources.walltime_s,
        }

    def _refuse_beyond_offer(self, resources: Resources, nodes: int) -> None:
        """Refuse what no allocation can hold. Errors: TaskRefused."""
        label, offer = self.computer.label, self._offer
        if offer.nodes is not None and nodes > offer.nodes:
            raise TaskRefused(
                f"a task asks for {nodes} nodes; the allocations of {label} have {offer.nodes}: "
                f"grange allocation scale {label} --nodes {nodes}"
            )
        if offer.walltime_s is not None and (resources.walltime_s or 0) > offer.walltime_s:
            raise TaskRefused(
                f"a task asks for a walltime of {resources.walltime_s:g} s; the allocations of {label} run "
                f"{offer.walltime_s:g} s: grange allocation scale {label} --time …"
            )

    def _cpus(self, resources: Resources, nodes: int) -> int:
        """How many cpus a task takes: the wheel knows nothing else, so memory is counted in cpus there."""
        computer = self.computer
        if computer.hyperqueue != "private-wheel" or nodes > 1 or not resources.memory_mb:
            return resources.cpus
        if not computer.cores_per_node or not computer.memory_mb_per_node:
            return resources.cpus
        share = -(-resources.memory_mb * computer.cores_per_node // computer.memory_mb_per_node)
        return max(resources.cpus, min(computer.cores_per_node, share))

    def _travelling(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """The tasks as they can travel to another computer: what is imported here from a folder of the user's
        own is not there, so such functions, also those of monitors, go by value.

        Errors: FunctionNotShippable.
        """
        made: dict[int, ShippedFunction] = {}

        def travelling(function: ShippedFunction) -> ShippedFunction:
            found = made.get(id(function))
            if found is None:
                found = made[id(function)] = by_value(function)
            return found

        found: list[Task] = []
        for task in tasks:
            if isinstance(task, FunctionTask):
                found.append(FunctionTask(task.id, travelling(task.function), task.kwargs, task.attempt))
            elif task.monitors:
                monitors = tuple(
                    replace(monitor, look=travelling(monitor.look))
                    if isinstance(monitor.look, ShippedFunction)
                    else monitor
                    for monitor in task.monitors
                )
                found.append(replace(task, monitors=monitors))
            else:
                found.append(task)
        return found

    # -- threads ---------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._threads or self._closing:
            return
        for name, work in (("send", self._send_all), ("fetch", self._fetch_all)):
            thread = threading.Thread(
                target=self._until_closed, args=(work,), name=f"{name} {self.computer.label}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise ExecutorUnavailable(f"the executor of {self.computer.label} is closed")

    def _until_closed(self, work: Any) -> None:
        """Do one step of work again and again. What passes is waited for; what does not ends the run."""
        refusals = 0
        while not self._closing:
            try:
                work()
                refusals = 0
            except (TransportUnavailable, RemoteFull, StoreUnavailable) as error:
                self._note(str(error))
                self._pause(REFUSAL_PAUSE_S)
            except ExecutorUnavailable as error:
                refusals += 1
                self._note(str(error))
                if refusals >= REFUSALS:
                    self._fail(error)
                    return
                self._pause(REFUSAL_PAUSE_S)
            except BaseException as error:
                self._fail(error)
                return

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if not self._closing:
                self._error = self._error or error
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing, seconds)

    def _note(self, *notes: str) -> None:
        self.notes = notes

    # -- out -------------------------------------------------------------------------------------

    def _send_all(self) -> None:
        """End what is to end, and send what can be sent now; waits a little where there is nothing."""
        self._end_there()
        self._ask_for_cores()
        chunks = self._next_chunks()
        if not chunks:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closing or self._to_end, 0.05 if len(self._queue) else 0.2
                )
            return
        try:
            self._ship(chunks)
        except BaseException:
            with self._changed:
                self._unsent = [
                    chunk for chunk in chunks if not chunk.sent and not chunk.ended
                ] + self._unsent
            raise

    def _ask_for_cores(self) -> None:
        """Without HyperQueue nobody tells how many cores there are: ask, or take the limit of the queue."""
        if self._cores or self.computer.hyperqueue != "none":
            return
        if self.computer.scheduler == "direct":
            self._cores = self.computer.slots or int(self.remote.prepare()["cores"])
        else:
            self._cores = self.computer.max_queued_jobs

    def _next_chunks(self) -> list[ClusterChunk]:
        """Write the chunks that are to be sent now."""
        with self._changed:
            if self._unsent:
                # some may have been there all the same, and be done by now
                found = [chunk for chunk in self._unsent if not chunk.sent and not chunk.ended]
                self._unsent = []
                return found
            found = []
            for group in self._queue.groups():
                need = self._need(group.resources)
                flush_s = self._flush_s or flush_interval_s(self._task_s(group.kind))
                for size in self._sizes(group, max(1, int(need["cpus"]))):
                    tasks = [group.tasks[number] for number in range(size)]
                    chunk, refused = self._own.new_chunk(
                        tasks,
                        group.kind,
                        replace(group.resources, nodes=int(need["nodes"])),
                        need,
                        fetch=self._fetch,
                        flush_s=flush_s,
                        mpirun=self.computer.mpirun,
                        delivery=self._delivery,
                        more={
                            "need": need,
                            "twin_s": TWIN_S,
                            **({"suspect_after": SUSPECT_AFTER} if group.commands else {}),
                        },
                    )
                    self._queue.drop(group, size)
                    if refused is not None:
                        self._ready.append(refused)
                        self._changed.notify_all()
                    if chunk is not None:
                        found.append(chunk)
            return found

    def _task_s(self, kind: object) -> float | None:
        """What a task of a kind takes, as far as is known."""
        return self._estimates.task_s(kind)

    def _open_there(self) -> list[ClusterChunk]:
        """What was sent, or will be, and has not ended."""
        return [chunk for run in self._runs.values() for chunk in run.chunks.values() if not chunk.ended]

    def _sizes(self, group: Group, cpus: int) -> list[int]:
        """The sizes of the chunks of a group that are to be sent now."""
        waiting = len(group.tasks)
        slots = max(1, (self._cores or self.slots) // cpus)
        estimate = self._task_s(group.kind)
        if estimate is not None:
            under_way = sum(len(chunk.open_ids) for chunk in self._open_there() if chunk.kind == group.kind)
            if can_wait(waiting, under_way, slots, estimate, self._sizing):
                return []
            return chunk_sizes(waiting, slots, estimate, self._sizing, under_way, group.more)
        now = time.monotonic()
        first_at = self._first_at.get(group.kind)
        if first_at is None:
            # One tells what such a task takes, and what follows is cut by that. Two, should its node be
            # broken; and each by itself: they may take hours.
            self._first_at[group.kind] = now
            return [1] * min(waiting, 2)
        if now - first_at < HOLD_S:
            return []
        # Nothing has come back: keep all slots busy, and the rest until it is known how to cut it. If
        # somebody is at work, a task takes longer than that.
        size = 1 if self._cores else min(self._sizing.first, -(-waiting // (2 * slots)))
        room = 2 * slots - sum(1 for chunk in self._open_there() if chunk.kind == group.kind)
        return [size] * min(room, waiting // size)

    def _ship(self, chunks: Sequence[ClusterChunk]) -> None:
        """Send chunks: one file for all that need the same, and a word to the agent of whose they are."""
        self.remote.prepare()
        groups: dict[tuple[str, bool, str], list[ClusterChunk]] = {}
        for chunk in chunks:
            groups.setdefault((chunk.folder.parent.name, chunk.commands, json.dumps(chunk.need)), []).append(
                chunk
            )
        for (name, commands, _), several in groups.items():
            run = self._runs[name]
            for chunk in several:
                chunk.whole = chunk.whole or self._delivery is None
                run.complete(chunk, self._fetch)
            for part in _parts(several):
                urls = {}
                if self._delivery is not None:
                    urls = {chunk.name: run.urls(chunk, self._delivery) for chunk in part}
                with self._changed:
                    part = [chunk for chunk in part if not chunk.ended]
                    if not part:
                        continue
                    shipment, path = run.shipment(part, urls)
                    run.tried = True
                    for chunk in part:
                        chunk.tried = True
                told = {
                    "chunks": [chunk.name for chunk in part],
                    "need": part[0].need,
                    "kind": "command" if commands else "function",
                    "settings": self.remote.settings,
                }
                there = f"{self.remote.spool_dir(name)}/jobs/{shipment}"
                try:
                    self.remote.transport.put([(path, f"{there}.zip")])
                    self.remote.transport.put([(json.dumps(told).encode(), f"{there}.json")])
                finally:
                    path.unlink(missing_ok=True)
                with self._changed:
                    run.mark_sent(part)
                    for chunk in part:
                        chunk.look_at = time.monotonic() + LOOK_S
                    self._changed.notify_all()

    # -- back ------------------------------------------------------------------------------------

    def _fetch_all(self) -> None:
        """One poll and what it brings."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._has_business(), 1.0)
            if self._closing or not self._has_business():
                return
            runs = {name: run for name, run in self._runs.items() if not run.is_idle}
            seen = {name: sorted(run.seen) for name, run in runs.items() if run.seen}
            dropped = {name: sorted(run.dropped) for name, run in runs.items() if run.dropped}
            busy = any(
                chunk.sent and not chunk.ended for run in runs.values() for chunk in run.chunks.values()
            )
            gather_s = self._gather_s()
            expected = self._expected(runs)
        self.remote.prepare()
        news = self._there.poll(
            runs.keys(),
            seen=seen,
            dropped=dropped,
            expected=expected,
            wait_s=WAIT_S if busy else 0.0,
            gather_s=gather_s,
        )
        with self._changed:
            if self._closing:
                return  # somebody else may go on with the runs by now
            for name, run in runs.items():
                run.seen.difference_update(seen.get(name, ()))
                run.dropped.difference_update(dropped.get(name, ()))
            self._asked = True
            if self.computer.hyperqueue != "none":
                self._cores = news.cores
        broken = [f"the node {name} is broken and gets nothing more" for name in news.broken]
        self._note(*news.problems, *broken)
        if news.marks:
            self._looks = max(-1.0, self._looks - 1.0)
        for name, marks in news.marks.items():
            self._take(runs[name], marks)
        with self._changed:
            for name, chunks in expected.items():
                ended = {mark.rpartition(".")[0].partition("+")[0] for mark in news.marks.get(name, ())}
                for chunk in [runs[name].chunks[chunk] for chunk in chunks if chunk in runs[name].chunks]:
                    if chunk.name in news.missing.get(name, ()):
                        self._lacks(chunk)
                    elif chunk.name not in ended:
                        chunk.lost_since = None

    def _expected(self, runs: Mapping[str, ClusterRun]) -> dict[str, list[str]]:
        """Run → chunks that it is time to ask for: somebody may have removed them, or half of them."""
        now = time.monotonic()
        found: dict[str, list[str]] = {}
        for name, run in runs.items():
            for chunk in run.chunks.values():
                if chunk.sent and not chunk.ended and chunk.look_at <= now:
                    chunk.look_at = now + LOOK_S
                    found.setdefault(name, []).append(chunk.name)
        return found

    def _lacks(self, chunk: ClusterChunk) -> None:
        """Something of a chunk is not there that should be: look again soon, and send it again at last."""
        if chunk.ended:
            return
        if not chunk.open_ids:
            self._runs[chunk.folder.parent.name].end(chunk.name)
            return
        now = time.monotonic()
        chunk.look_at = now + LOOK_AGAIN_S
        chunk.lost_since = now if chunk.lost_since is None else chunk.lost_since
        if now - chunk.lost_since < LOST_S and not chunk.whole:
            return
        if chunk.lives >= LIVES:
            raise ExecutorUnavailable(
                f"{self.computer.label}: the results of a chunk were lost {LIVES} times: see whether "
                f"somebody removes files from {self.remote.work_dir}, and whether its disk is sound"
            )
        self._unsent.append(self._own.copy_of(chunk))
        chunk.open_ids.clear()
        self._runs[chunk.folder.parent.name].end(chunk.name)

    def _gather_s(self) -> float:
        """For how long results are waited for once there are some: until they are worth a command.

        The first few need not be.
        """
        tasks, core_s = 0, 0.0
        for chunk in self._open_there():
            task_s = self._task_s(chunk.kind)
            if chunk.kind is not None and task_s is None:
                return FIRST_GATHER_S
            tasks += len(chunk.open_ids)
            core_s += len(chunk.open_ids) * (task_s or 0.0) * max(1, int(chunk.need.get("cpus") or 1))
        if self._looks > 0.0:
            return GATHER_S
        each_s = core_s / max(1, tasks) / max(1, self._cores)
        return min(LONGEST_GATHER_S, max(GATHER_S, min(tasks, 2 * TOGETHER) * each_s))

    def _has_business(self) -> bool:
        return any(
            run.seen or run.dropped or any(chunk.sent and not chunk.ended for chunk in run.chunks.values())
            for run in self._runs.values()
        )

    def _take(self, run: ClusterRun, marks: Mapping[str, Sequence[tuple[str, int]]]) -> None:
        """Fetch the packs that marks tell of, and deliver them."""
        wanted: dict[str, Path] = {}
        for packs in marks.values():
            for pack, size in packs:
                path = run.local_path(pack)
                if path is not None and size >= 0:
                    wanted[pack] = path
        there = self.remote.spool_dir(run.name)
        self._get([(f"{there}/{pack}", path) for pack, path in wanted.items()])
        for path in wanted.values():
            self._refuse_untrue(run, path)
        with self._changed:
            if self._closing:
                return
            for path in dict.fromkeys(wanted.values()):
                if path.exists() and path.parent.name in run.chunks:
                    self._deliver(run, path)
            for mark in marks:
                name, _, what = mark.rpartition(".")
                run.seen.add(mark)
                if what == "end":
                    name = name.partition("+")[0]
                    chunk = run.chunks.get(name)
                    if chunk is not None and chunk.open_ids:
                        self._lacks(chunk)
                    else:
                        run.end(name)
            self._changed.notify_all()

    def _get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files; one that is gone there was fetched before."""
        if not files:
            return
        with spool_errors(self._root):
            try:
                self.remote.transport.get(files)
            except RemoteMissing:
                for file in files:
                    with contextlib.suppress(RemoteMissing):
                        self.remote.transport.get([file])

    def _refuse_untrue(self, run: ClusterRun, path: Path) -> None:
        """Remove a receipt of a pack that is not in the store: its tasks are done again.

        Errors: StoreUnavailable.
        """
        try:
            pack = read_result_pack(path)
        except (ResultMalformed, FileNotFoundError):
            return  # that is seen by whoever delivers it
        if not run.is_sound(pack, self._store):
            path.unlink(missing_ok=True)

    def _deliver(self, run: ClusterRun, path: Path) -> None:
        chunk = run.chunks[path.parent.name]
        try:
            pack = run.fetched(path)
        except ResultMalformed:
            # As good as none: its tasks are done again.
            path.unlink(missing_ok=True)
            return
        if pack is None:
            return
        self._ready.append(pack)
        self._looks = min(FREE_LOOKS, self._looks + len(pack.results) / (2 * TOGETHER))
        if chunk.kind is not None:
            wall_s = sum(result.wall_s for result in pack.results)
            self._estimates.note(chunk.kind, len(pack.results), wall_s)

    def _end_there(self) -> None:
        """End the tasks that are to end, where they are."""
        with self._changed:
            if not self._to_end:
                return
            ids, self._to_end = self._to_end, set()
            asked: dict[str, dict[str, list[str]]] = {}
            for chunk in self._open_there():
                all_ids = chunk.open_ids | chunk.unwanted
                meant = all_ids & ids
                whole = meant == all_ids
                if not meant:
                    continue
                if chunk.tried:
                    asked.setdefault(chunk.folder.parent.name, {})[chunk.name] = (
                        [] if whole else sorted(meant)
                    )
                elif whole:
                    self._withdraw(chunk, meant)
                else:
                    self._to_end |= meant  # once it is there
        if not asked:
            return
        try:
            self.remote.prepare()
            missing = self._there.cancel(asked)
        except BaseException:
            with self._changed:
                self._to_end |= ids
            raise
        with self._changed:
            for name, chunks in asked.items():
                for chunk_name in chunks:
                    known = self._runs[name].chunks.get(chunk_name)
                    if known is None:
                        continue
                    if chunk_name in missing.get(name, ()):
                        self._withdraw(known, ids)
                    elif not known.sent:
                        self._runs[name].mark_sent([known])  # it had come there all the same
            self._changed.notify_all()

    def _withdraw(self, chunk: ClusterChunk, ids: Collection[str]) -> None:
        """Deliver tasks of a chunk as cancelled that nobody has begun."""
        results = [
            runner.result_of(
                {"id": task_id, "attempt": chunk.attempts[task_id]}, "cancelled", CANCELLED_MESSAGE
            )
            for task_id in sorted(chunk.open_ids.intersection(ids))
        ]
        if results:
            self._ready.append(self._own.pack_of(results, len(results)))
        chunk.open_ids.difference_update(ids)
        chunk.unwanted.difference_update(ids)
        if not chunk.open_ids and not chunk.unwanted:
            self._runs[chunk.folder.parent.name].end(chunk.name)


def _parts(chunks: Sequence[ClusterChunk]) -> list[list[ClusterChunk]]:
    """Chunks in portions that make a file of bounded size."""
    parts: list[list[ClusterChunk]] = []
    size = 0
    for chunk in chunks:
        bytes_ = (chunk.folder / "chunk.zip").stat().st_size
        if not parts or size + bytes_ > SHIPMENT_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(chunk)
        size += bytes_
    return parts
