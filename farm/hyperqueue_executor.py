"""Chunks as tasks of a HyperQueue server that the PyPI wheel makes: one job a batch, one task a chunk."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grange.farm import hyperqueue_host, machine, runner
from grange.farm.chunk import Sizing, chunk_sizes
from grange.farm.chunk_folder import Fetch
from grange.farm.errors import ExecutorUnavailable, TaskRefused
from grange.farm.estimates import Estimates
from grange.farm.executor import OnThisMachine
from grange.farm.executor_spool import ExecutorSpool, SpooledChunk
from grange.farm.node_count import require_one_machine
from grange.farm.queue import Group, Queue
from grange.farm.result import ResultPack
from grange.farm.runner_command import runner_command
from grange.farm.task import Batch, Resources, Task
from grange.farm.task_script import MPIRUN

#: HyperQueue starts an interpreter for each chunk: chunks are larger than those of the local pool.
SIZING = Sizing(target_s=5.0, start_s=0.1, first=8, most=20000)
#: How often the folder of marks is looked at; a look costs some microseconds.
LOOK_EVERY_S = 0.01
START_PATIENCE_S = 20.0
CLOSE_PATIENCE_S = 1.5


class OpenServerWarning(UserWarning):
    """A HyperQueue server without authentication runs: whoever reaches its port runs commands as you."""


@dataclass(slots=True)
class Handed:
    """A chunk that HyperQueue has."""

    chunk: SpooledChunk
    group: Group
    losses: int = 0


class HyperQueueExecutor(OnThisMachine):
    """An Executor that runs chunks under a HyperQueue server and worker on this machine.

    The server of the PyPI wheel has no authentication. It is therefore confined to a network namespace of
    its own, together with worker and tasks: nothing outside reaches it, and **tasks have no network**.
    Where the kernel allows no such namespace, it is refused. With allow_open_server it is not confined:
    whoever reaches its port, on any network of this machine, runs commands as you; an OpenServerWarning
    says so.

    spool_root: the folder for chunks, results, and the server's own files. slots: the worker's cores (None:
    all that we may use). fetch: reads input files that are given by key. memory_mb: the memory, in
    mebibytes, that tasks which declare theirs may take together (None: all); the wheel knows only
    cpus, so such tasks take the cpus that their share of the memory is worth. mpirun: how commands that want
    it are run under MPI.
    Errors: SpoolUnwritable, ExecutorUnavailable.
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
        allow_open_server: bool = False,
    ) -> None:
        self._slots = slots or machine.cores()
        self._memory_mb = memory_mb or machine.memory_mb()
        self._python = python
        self._sizing = sizing or SIZING
        self._allow_open = allow_open_server
        self._spool = ExecutorSpool(Path(spool_root), fetch, flush_s, mpirun)
        self._log = self._spool.open_log()
        self._done = self._spool.folder / "done"
        self._done.mkdir(mode=0o700)
        self._handed: dict[str, Handed] = {}
        self._estimates = Estimates()
        self._ready: list[ResultPack] = []
        self._outstanding = 0
        self._servers = 0
        self._heard = b""
        self._host: subprocess.Popen[bytes] | None = None
        try:
            self._host = self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> HyperQueueExecutor:
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
        """Take tasks as one HyperQueue job. Errors: TaskRefused, SpoolUnwritable, ExecutorUnavailable."""
        if self._host is None:
            raise ExecutorUnavailable("this HyperQueue executor is closed")
        cpus = self._cpus(batch.resources)
        queue = Queue()
        queue.add(batch)
        self._outstanding += len(batch.tasks)
        handed: list[Handed] = []
        while (group := queue.first()) is not None:
            tasks = list(group.tasks)
            queue.drop(group, len(tasks))
            handed += self._chunks(group, tasks, cpus)
        if handed:
            self._send(handed, cpus)

    def poll(self, timeout_s: float) -> list[ResultPack]:
        """What has finished since the last poll; waits up to timeout_s for the first.

        Errors: SpoolUnwritable, ExecutorUnavailable.
        """
        until = time.monotonic() + timeout_s
        self._look()
        while not self._ready and (left := until - time.monotonic()) > 0:
            self._listen(min(left, LOOK_EVERY_S))
            self._look()
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
        """End these tasks (None: all). Those that wait are delivered as cancelled when their turn comes."""
        wanted = None if task_ids is None else set(task_ids)
        for handed in self._handed.values():
            handed.chunk.cancel(wanted)

    def close(self) -> None:
        """End server, worker and runners; what is undelivered stays in the spool for recover()."""
        if self._log < 0:
            return
        if self._host is not None:
            self._end(self._host)
            self._host = None
        self._end_runners()
        os.close(self._log)
        self._log = -1
        self._spool.close(undelivered=bool(self._ready))

    # The server.

    def _start(self) -> subprocess.Popen[bytes]:
        """Start server and worker. Errors: ExecutorUnavailable."""
        if self._allow_open:
            warnings.warn(
                "a HyperQueue server without authentication listens on all networks of this machine:"
                " whoever reaches its port runs commands as you",
                OpenServerWarning,
                stacklevel=3,
            )
        host, reason = self._start_host("open" if self._allow_open else "confined")
        if host is not None:
            return host
        if reason.startswith("no namespace"):
            raise ExecutorUnavailable(
                "HyperQueue's server from the PyPI wheel has no authentication, and cannot be confined to a"
                f" network namespace here ({reason}). Use the local pool; or, on a machine that nobody"
                " else can reach, allow_open_server=True."
            )
        raise ExecutorUnavailable(f"HyperQueue could not be started: {reason}")

    def _start_host(self, mode: str) -> tuple[subprocess.Popen[bytes] | None, str]:
        """Start a host; it, or None and the reason."""
        self._servers += 1
        folder = self._spool.folder / f"server-{self._servers}"
        folder.mkdir(mode=0o700)
        script = hyperqueue_host.__file__
        host = subprocess.Popen(
            [sys.executable, script, str(os.getpid()), str(folder), str(self._slots), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._spool.folder,
            env={**os.environ, "RUST_BACKTRACE": "0"},
            pass_fds=(self._spool.lock_fd,),
            start_new_session=True,
        )
        assert host.stdout is not None
        self._spool.note_runner(host.pid)
        answer: dict[str, Any] = {"refused": "it does not answer"}
        if select.select([host.stdout], [], [], START_PATIENCE_S)[0]:
            line = host.stdout.readline()
            answer = json.loads(line) if line else {"refused": self._spool.last_words()}
        if "refused" in answer:
            self._end(host)
            return None, str(answer["refused"])
        os.set_blocking(host.stdout.fileno(), False)
        return host, ""

    def _end(self, host: subprocess.Popen[bytes]) -> None:
        assert host.stdin is not None
        assert host.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            host.stdin.close()
        try:
            host.wait(CLOSE_PATIENCE_S)
        except subprocess.TimeoutExpired:
            host.kill()
            host.wait()
        host.stdout.close()

    def _end_runners(self) -> None:
        """Runners end with the worker by themselves, after ending their tasks; at last they are killed."""
        runner.kill_strays(str(self._spool.folder), CLOSE_PATIENCE_S)

    def _listen(self, timeout_s: float) -> None:
        """Hear what the host has to say: failures of runners, or its own end."""
        assert self._host is not None
        assert self._host.stdout is not None
        if not select.select([self._host.stdout], [], [], timeout_s)[0]:
            return
        data = os.read(self._host.stdout.fileno(), 1 << 16)
        if not data:
            self._lost()
            return
        lines = (self._heard + data).split(b"\n")
        self._heard = lines.pop()
        for line in lines:
            for folder, reason in json.loads(line)["failed"].items():
                self._failed(Path(folder).name, reason)

    def _lost(self) -> None:
        """The server has ended: start another and hand it what is not done."""
        assert self._host is not None
        self._end(self._host)
        self._host = None
        self._end_runners()
        self._look()
        self._heard = b""
        again: dict[int, list[Handed]] = {}
        for name, handed in list(self._handed.items()):
            handed.losses += 1
            self._deliver(handed, handed.chunk.sweep())
            if handed.losses > runner.DEATHS:
                self._give_up(name, f"HyperQueue was lost {handed.losses} times while this task was with it")
            else:
                again.setdefault(self._cpus(handed.group.resources), []).append(handed)
        self._host = self._start()
        for cpus, chunks in again.items():
            self._send(chunks, cpus)

    # Chunks.

    def _cpus(self, need: Resources) -> int:
        """How many cpus a task takes. Errors: TaskRefused."""
        require_one_machine(need, "HyperQueue on this machine")
        if need.cpus < 1:
            raise TaskRefused(f"cpus: expected 1 or more, got {need.cpus}")
        if need.cpus > self._slots:
            raise TaskRefused(f"a task asks for {need.cpus} cpus; the HyperQueue worker has {self._slots}")
        memory = need.memory_mb or 0
        if memory > self._memory_mb:
            raise TaskRefused(
                f"a task asks for {memory} MiB of memory; the HyperQueue worker has {self._memory_mb} MiB"
            )
        return min(self._slots, max(need.cpus, math.ceil(memory * self._slots / self._memory_mb)))

    def _chunks(self, group: Group, tasks: list[Task], cpus: int) -> list[Handed]:
        """Write the chunks of one group."""
        estimate = self._estimates.task_s(group.kind)
        handed: list[Handed] = []
        start = 0
        for size in chunk_sizes(len(tasks), self._slots // cpus, estimate, self._sizing):
            chunk, refused = self._spool.new_chunk(tasks[start : start + size], group.resources)
            start += size
            if refused is not None:
                self._ready.append(refused)
            if chunk is not None:
                handed.append(Handed(chunk, group))
                self._handed[chunk.folder.name] = handed[-1]
        return handed

    def _send(self, chunks: Sequence[Handed], cpus: int) -> None:
        """Hand chunks of one batch to HyperQueue as one job."""
        assert self._host is not None
        assert self._host.stdin is not None
        request = {
            "chunks": [str(handed.chunk.folder) for handed in chunks],
            "kinds": ["command" if handed.group.commands else "function" for handed in chunks],
            "start": {
                "command": [*runner_command(self._python, commands=True), "run"],
                "function": [*runner_command(self._python, commands=False), "run"],
            },
            "environment": {name: os.environ.get(name, str(cpus)) for name in runner.THREADS},
            "cpus": cpus,
        }
        self._tell(request)

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._host is not None
        assert self._host.stdin is not None
        # A host that has died is noticed by the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self._host.stdin.write(json.dumps(message).encode() + b"\n")
            self._host.stdin.flush()

    def _look(self) -> None:
        """Look for the marks that runners leave: a pack is there, a chunk is done."""
        names = os.listdir(self._done)
        over: list[str] = []
        for name in sorted(names):
            chunk, _, what = name.rpartition(".")
            handed = self._handed.get(chunk)
            if handed is not None and what == "end":
                self._deliver(handed, handed.chunk.sweep())
                self._finished(chunk)
                over.append(str(handed.chunk.folder))
            elif handed is not None:
                handed.losses = 0
                self._deliver(handed, handed.chunk.new_packs([int(what)]))
            os.unlink(self._done / name)
        if over and self._host is not None:
            self._tell({"done": over})

    def _deliver(self, handed: Handed, packs: Sequence[ResultPack]) -> None:
        kind = handed.group.kind
        for pack in packs:
            self._ready.append(pack)
            self._estimates.note(kind, len(pack.results), sum(result.wall_s for result in pack.results))

    def _finished(self, name: str) -> None:
        self._handed.pop(name).chunk.finish()

    def _failed(self, name: str, reason: str) -> None:
        """A runner ended badly: go on with its chunk if it was killed, else say crashed of what is left."""
        self._look()
        handed = self._handed.get(name)
        if handed is None:
            return
        if f"exit code {runner.EXIT_UNWRITABLE}" in reason:
            raise self._spool.unwritable()
        runner.kill_strays(str(handed.chunk.folder), CLOSE_PATIENCE_S)
        self._deliver(handed, handed.chunk.sweep())
        handed.losses += 1
        if "signal" in reason and handed.losses <= runner.DEATHS:
            self._send([handed], self._cpus(handed.group.resources))
        else:
            self._give_up(name, f"the runner failed: {reason}")

    def _give_up(self, name: str, reason: str) -> None:
        handed = self._handed.pop(name)
        if handed.chunk.undone():
            self._ready.append(self._spool.give_up(handed.chunk, reason))
        else:
            handed.chunk.finish()
