"""The local pool: runner processes on this machine, bounded by its cores and memory; no server, no port."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grange.farm import machine, runner
from grange.farm.chunk import Sizing, chunk_size
from grange.farm.chunk_folder import Fetch
from grange.farm.errors import ExecutorUnavailable, TaskRefused
from grange.farm.estimates import Estimates
from grange.farm.executor import OnThisMachine
from grange.farm.executor_spool import ExecutorSpool, SpooledChunk
from grange.farm.node_count import require_one_machine
from grange.farm.queue import Group, Queue
from grange.farm.result import ResultPack
from grange.farm.runner_command import runner_command
from grange.farm.task import Batch, Task
from grange.farm.task_script import MPIRUN

#: How long runners get to end by themselves when the pool closes.
CLOSE_PATIENCE_S = 1.5


@dataclass(slots=True)
class Assigned:
    """A chunk in the hands of a runner."""

    chunk: SpooledChunk
    group: Group
    deaths: int = 0
    cancel_until: float = 0.0


@dataclass(slots=True, eq=False)
class Runner:
    """One runner process and the chunks that it was given: the first runs, another may wait behind it."""

    process: subprocess.Popen[bytes]
    kind: str
    cpus: int
    work: deque[Assigned] = field(default_factory=deque)
    heard: bytes = b""

    def send(self, work: Assigned, death: int | None = None) -> None:
        assert self.process.stdin is not None
        line = json.dumps({"chunk": str(work.chunk.folder), "death": death}) + "\n"
        # A runner that has died is noticed by the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()


class LocalPool(OnThisMachine):
    """An Executor that runs tasks in processes of this machine.

    Commands run under lean runners, functions under warm interpreters; each slot keeps its processes from
    chunk to chunk. All of them end when this process ends, in whatever way, and when the thread
    that started them ends.

    spool_root: the folder for chunks and results. slots: how many cores to use (None: all that we may
    use). fetch: reads input files that are given by key. python: the interpreter of the runners.
    memory_mb: the memory, in mebibytes, that tasks which declare theirs may take together (None: all).
    mpirun: how commands that want it are run under MPI.
    Errors: SpoolUnwritable.
    """

    def __init__(
        self,
        spool_root: Path,
        *,
        slots: int | None = None,
        fetch: Fetch | None = None,
        python: str = sys.executable,
        memory_mb: int | None = None,
        sizing: Sizing | None = None,
        flush_s: float = 0.5,
        mpirun: str = MPIRUN,
    ) -> None:
        self._slots = slots or machine.cores()
        self._memory_mb = memory_mb or machine.memory_mb()
        self._python = python
        self._sizing = sizing or Sizing()
        self._spool = ExecutorSpool(Path(spool_root), fetch, flush_s, mpirun)
        self._queue = Queue()
        self._estimates = Estimates()
        self._runners: list[Runner] = []
        self._selector = selectors.DefaultSelector()
        self._ready: list[ResultPack] = []
        self._outstanding = 0
        self._closed = False
        self._log = self._spool.open_log()

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def slots(self) -> int:
        """How many single-core tasks run at once."""
        return self._slots

    @property
    def outstanding(self) -> int:
        """How many submitted tasks have not been delivered yet."""
        return self._outstanding

    def submit(self, batch: Batch) -> None:
        """Take tasks; returns before they run.

        Whoever submits is not polling meanwhile: runners that have become idle get work here too.

        Errors: TaskRefused, ExecutorUnavailable, SpoolUnwritable.
        """
        if self._closed:
            raise ExecutorUnavailable("this local pool is closed")
        need = batch.resources
        require_one_machine(need, "the local pool")
        if need.cpus < 1:
            raise TaskRefused(f"cpus: expected 1 or more, got {need.cpus}")
        if need.cpus > self._slots:
            raise TaskRefused(f"a task asks for {need.cpus} cpus; the local pool has {self._slots}")
        if need.memory_mb is not None and need.memory_mb > self._memory_mb:
            raise TaskRefused(
                f"a task asks for {need.memory_mb} MiB of memory; the local pool has {self._memory_mb} MiB"
            )
        self._queue.add(batch)
        self._outstanding += len(batch.tasks)
        if self._runners:
            self._listen(0.0)
        self._feed()

    def poll(self, timeout_s: float) -> list[ResultPack]:
        """What has finished since the last poll; waits up to timeout_s for the first.

        Errors: SpoolUnwritable, ExecutorUnavailable.
        """
        until = time.monotonic() + timeout_s
        self._listen(0.0)
        self._feed()
        while not self._ready:
            left = until - time.monotonic()
            if left <= 0:
                break
            self._listen(min(left, 1.0))
            self._end_stubborn_calls()
            self._feed()
        packs, self._ready = self._ready, []
        self._outstanding -= sum(len(pack.results) for pack in packs)
        return packs

    def acknowledge(self, packs: Sequence[ResultPack]) -> None:
        """The results are recorded: their files in the spool may go (a moved file is no error)."""
        self._spool.acknowledge(packs)

    def recover(self) -> list[ResultPack]:
        """Result packs that earlier executors on this spool root left behind when they died."""
        return self._spool.recover()

    def cancel(self, task_ids: Collection[str] | None = None) -> None:
        """End these tasks (None: all); each is delivered as cancelled unless it had ended before."""
        wanted = None if task_ids is None else set(task_ids)
        waiting = self._queue.take_out(wanted)
        if waiting:
            results = [
                runner.result_of(
                    {"id": task.id, "attempt": task.attempt}, "cancelled", "cancelled before it began"
                )
                for task in waiting
            ]
            self._ready.append(self._spool.own_pack(results))
        for one in self._runners:
            for work in one.work:
                if work.chunk.cancel(wanted):
                    work.cancel_until = time.monotonic() + runner.CANCEL_PATIENCE_S
            if one.work and one.work[0].cancel_until:
                one.process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """End the runners; what is undelivered stays in the spool for recover()."""
        if self._closed:
            return
        self._closed = True
        try:
            for one in self._runners:
                self._dismiss(one)
            self._reap(self._runners)
        except BaseException:  # somebody has lost patience; a runner that lives would write on
            for one in self._runners:
                one.process.kill()
                one.process.wait()
            raise
        finally:
            self._runners.clear()
            self._selector.close()
            os.close(self._log)
            self._spool.close(undelivered=bool(self._ready))

    # Runners: start, listen, bury.

    def _start(self, kind: str, cpus: int) -> Runner:
        environment = dict(os.environ)
        for name in runner.THREADS:
            environment.setdefault(name, str(cpus))
        try:
            process = subprocess.Popen(
                [*runner_command(self._python, commands=kind == "command"), "serve", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=self._spool.folder,
                env=environment,
                pass_fds=(self._spool.lock_fd,),
                start_new_session=True,
            )
        except OSError as problem:
            raise ExecutorUnavailable(
                f"a runner cannot be started with {self._python}: {problem}"
            ) from problem
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        one = Runner(process, kind, cpus)
        self._runners.append(one)
        self._selector.register(process.stdout, selectors.EVENT_READ, one)
        self._spool.note_runner(process.pid)
        return one

    def _listen(self, timeout_s: float) -> None:
        """Take in what runners report; returns after the first that had something to say."""
        if not self._runners:
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            one: Runner = key.data
            assert one.process.stdout is not None
            data = os.read(one.process.stdout.fileno(), 1 << 16)
            lines = (one.heard + data).split(b"\n")
            one.heard = lines.pop()
            for line in lines:
                self._heard(one, json.loads(line))
            if not data:
                self._died(one)

    def _heard(self, one: Runner, report: dict[str, object]) -> None:
        work = one.work[0]
        if "pack" in report:
            work.deaths = 0
            self._deliver(work, work.chunk.new_packs([int(str(report["pack"]))]))
            return
        one.work.popleft()
        self._estimates.note(work.group.kind, work.chunk.count, float(str(report["wall_s"])))
        work.chunk.finish()
        if one.work and one.work[0].cancel_until:
            one.process.send_signal(signal.SIGUSR1)

    def _deliver(self, work: Assigned, packs: Iterable[ResultPack]) -> None:
        for pack in packs:
            self._ready.append(pack)
            if work.group.kind not in self._estimates and pack.results:
                wall_s = sum(result.wall_s for result in pack.results)
                self._estimates.note(work.group.kind, len(pack.results), wall_s)

    def _died(self, one: Runner) -> None:
        """A runner has ended: replace it and go on with its chunks."""
        code = one.process.wait()
        self._forget(one)
        if code == runner.EXIT_UNWRITABLE:
            raise self._spool.unwritable()
        if self._closed or not one.work:
            return
        first = one.work[0]
        runner.kill_strays(str(first.chunk.folder))
        self._deliver(first, first.chunk.sweep())
        first.deaths += 1
        if first.deaths > runner.DEATHS:
            self._ready.append(self._spool.give_up(first.chunk, f"the runner died {first.deaths} times"))
            one.work.popleft()
        if one.work:
            heir = self._start(one.kind, one.cpus)
            heir.work = one.work
            for work in heir.work:
                heir.send(work, code if work is first else None)

    def _forget(self, one: Runner) -> None:
        assert one.process.stdout is not None
        assert one.process.stdin is not None
        self._selector.unregister(one.process.stdout)
        one.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            one.process.stdin.close()
        self._runners.remove(one)

    def _dismiss(self, one: Runner) -> None:
        assert one.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            one.process.stdin.close()
        one.process.send_signal(signal.SIGTERM)

    def _reap(self, ending: Sequence[Runner]) -> None:
        until = time.monotonic() + CLOSE_PATIENCE_S
        for one in ending:
            try:
                one.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
                for work in one.work:
                    runner.kill_strays(str(work.chunk.folder))
            assert one.process.stdout is not None
            one.process.stdout.close()

    def _end_stubborn_calls(self) -> None:
        """Kill interpreters whose running call was cancelled and does not let itself be interrupted."""
        now = time.monotonic()
        for one in self._runners:
            if one.kind != "function" or not one.work or not 0 < one.work[0].cancel_until < now:
                continue
            if one.work[0].chunk.running_is_cancelled():
                one.work[0].cancel_until = now + runner.CANCEL_PATIENCE_S
                one.process.kill()

    # Chunks: who gets the next.

    def _feed(self) -> None:
        """Give work to whoever can take it: idle cores first, then one chunk ahead for those at work."""
        while (group := self._queue.first()) is not None:
            one = self._seat(group) or self._ahead(group)
            if one is None:
                return
            self._assign(one, group)

    def _seat(self, group: Group) -> Runner | None:
        """A runner for which there are cores and memory now, started if need be."""
        need = group.resources
        busy = [one.work[0].group.resources for one in self._runners if one.work]
        if sum(other.cpus for other in busy) + need.cpus > self._slots:
            return None
        if sum(other.memory_mb or 0 for other in busy) + (need.memory_mb or 0) > self._memory_mb:
            return None
        kind = "command" if group.commands else "function"
        idle = [one for one in self._runners if not one.work]
        for one in idle:
            if one.kind == kind and one.cpus == need.cpus:
                return one
        # A warm interpreter is worth keeping, a dozen idle ones are not.
        if len(idle) >= 2 * self._slots:
            self._dismiss(idle[0])
        return self._start(kind, need.cpus)

    def _ahead(self, group: Group) -> Runner | None:
        """A runner at work on the same kind of tasks that should find its next chunk waiting."""
        estimate = self._estimates.task_s(group.kind)
        if estimate is None or estimate > self._sizing.target_s:
            return None
        for one in self._runners:
            if len(one.work) == 1 and one.work[0].group.key == group.key:
                return one
        return None

    def _assign(self, one: Runner, group: Group) -> None:
        estimate = self._estimates.task_s(group.kind)
        size = chunk_size(len(group.tasks), self._slots // group.resources.cpus, estimate, self._sizing)
        tasks: list[Task] = [group.tasks[number] for number in range(size)]
        chunk, refused = self._spool.new_chunk(tasks, group.resources)
        self._queue.drop(group, size)
        if refused is not None:
            self._ready.append(refused)
        if chunk is not None:
            work = Assigned(chunk, group)
            one.work.append(work)
            one.send(work)
