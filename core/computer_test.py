"""Is a computer ready? One thing after the other, each with what to do where it is not.

`grange computer test` prints the steps as they come. What a campaign will need is really done: files are
written, a job goes through the queue, its result comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grange.core import allocation as allocations
from grange.core import allocation_launcher as launcher
from grange.core.computer import StoredComputer
from grange.core.delivery import Trial
from grange.core.profile import Profile
from grange.core.site import Site
from grange.farm import slurm
from grange.farm.allocation import AllocationRequest, new_token
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.computer import Computer
from grange.farm.errors import (
    AuthenticationRefused,
    CommandRefused,
    CommandTimedOut,
    ComputerPaused,
    ConnectionNotYet,
    ExecutorUnavailable,
    FarmError,
    HostKeyRefused,
    RemoteFull,
    SchedulerRefused,
    TransportFailed,
    TransportUnavailable,
)
from grange.farm.remote import Remote
from grange.farm.result import ResultPack, TaskResult
from grange.farm.task import Batch, CommandTask, Resources
from grange.farm.transport import Completed, Transport
from grange.repository import key_of

StepState = Literal["ok", "failed", "skipped"]

#: The steps that are about the connection.
CONNECTING = ("reach", "host key", "authenticate")
#: Below this a campaign would end at once. Units: bytes.
LEAST_ROOM = 100 << 20
#: Who is alive is told by times of files (farm.runner.ALIVE_S, 90 s): clocks may not differ by more.
MOST_SKEW_S = 30.0
#: Between us and the computer times are only shown: what is odd here harms nobody.
ODD_SKEW_S = 300.0
#: How long the one task may run. Units: seconds.
_TASK_S = 60.0
#: How long the interval between connections is waited for; how long a login script may take. Units: seconds.
_NOT_YET_S, _SHELL_S = 90.0, 60.0
#: An allocation for it, and how long its workers may take to end. Units: seconds.
_ALLOCATION_S, _ENDING_S = 600, 20.0
#: How long the task may take to be taken back. Units: seconds.
_TAKING_BACK_S = 15.0
#: How often the queue is looked at while the task is waited for. Units: seconds.
_LOOK_S = 0.5

_PYTHON = (3, 9)
_MARK = "grange-test:"
# What our agent and runner import; some small interpreters lack one of them.
_ASK_PYTHON = (
    "import sys, json, zlib, zipfile, ctypes, fcntl, hashlib, subprocess; "
    f"print('{_MARK}' + json.dumps(list(sys.version_info[:3])))"
)
_ASK_FOLDER = (
    "import sys, os, json, time; s = os.statvfs(sys.argv[1]); "
    f"print('{_MARK}' + json.dumps({{'room': s.f_bavail * s.f_frsize, 'files': s.f_favail, "
    "'now': time.time(), 'written': os.stat(sys.argv[2]).st_mtime}))"
)


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step. detail: what was found; advice: what to do, where it failed.

    Units: seconds.
    """

    name: str
    state: StepState
    detail: str
    advice: str
    seconds: float


#: Gives the computer workers for as long as it is entered, where only allocations have them.
Workers = Callable[[Remote], AbstractContextManager[None]]


class _Failed(Exception):
    """A step found something wrong."""

    def __init__(self, detail: str, advice: str) -> None:
        self.detail = detail
        self.advice = advice
        super().__init__(detail)


class _Skipped(Exception):
    """A step cannot or need not be done here; the next ones can."""


def examine(
    computer: Computer,
    transport: Transport,
    *,
    spool: Path,
    workers: Workers | None = None,
    trial: Trial | None = None,
    with_task: bool = True,
    timeout_s: float = 600.0,
    waiting: Callable[[float], None] = lambda _: None,
) -> Iterator[Step]:
    """Do one step after the other; after one that fails, the others are skipped.

    transport: need not be connected yet; without patience, so that what is wrong is seen at once. spool: a
    folder here for the one task. workers: needed for the task where workers are in allocations. trial: of the
    profile's store, where the computer delivers there; None if it signs no URLs. timeout_s: for the one task,
    its waiting in the queue included. waiting: is told how long it has been waited for.
    """
    examination = _Examination(computer, transport, spool, workers, trial, timeout_s, waiting)
    steps = examination.steps()
    broken = ""
    for name, action in steps:
        if broken:
            yield Step(name, "skipped", f"because of {broken}", "", 0.0)
            continue
        if not with_task and name in ("one task", "spool", "store"):
            yield Step(name, "skipped", "not asked for", "", 0.0)
            continue
        begun = time.monotonic()
        state: StepState = "ok"
        detail = advice = ""
        try:
            detail = action()
        except _Skipped as reason:
            state, detail = "skipped", str(reason)
        except _Failed as failure:
            state, detail, advice = "failed", failure.detail, failure.advice
        except FarmError as error:
            state, detail, advice = "failed", _reason(error), _advice(computer, error)
        if state == "failed":
            broken = name
        yield Step(name, state, detail, advice, time.monotonic() - begun)


class _Examination:
    """The steps, and what one has to know of those before it."""

    def __init__(
        self,
        computer: Computer,
        transport: Transport,
        spool: Path,
        workers: Workers | None,
        trial: Trial | None,
        timeout_s: float,
        waiting: Callable[[float], None],
    ) -> None:
        self.computer = computer
        self.transport = transport
        self.remote = Remote(transport, computer)
        self.spool = spool
        self.workers = workers
        self.trial = trial if computer.delivery == "store" else None
        self.delivered = False
        self.undelivered = ""
        self.timeout_s = timeout_s
        self.waiting = waiting
        self.label = computer.label
        self.edit = f"grange computer edit {computer.label}"
        self.first: Completed | None = None
        self.refusal: FarmError | None = None
        self.hello: dict[str, Any] = {}
        self.clocks: tuple[float, float, float] | None = None
        self.outputs: list[bytes | None] = []

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """The steps that this computer needs."""
        ssh = [
            ("reach", self.reach),
            ("host key", self.host_key),
            ("authenticate", self.authenticate),
        ]
        return [
            *(ssh if self.computer.transport != "local" else []),
            ("shell is quiet", self.shell),
            *([("files", self.files)] if self.computer.transport != "local" else []),
            ("python", self.python),
            ("work directory", self.work_dir),
            ("clocks", self.clock),
            ("scheduler", self.scheduler),
            ("our code", self.code),
            ("hyperqueue", self.hyperqueue),
            ("one task", self.task),
            ("spool", self.spool_back),
            *([("store", self.store)] if self.computer.delivery == "store" else []),
        ]

    @property
    def restricted(self) -> bool:
        return self.computer.ssh.restricted

    # ------------------------------------------------------------ the way there

    def reach(self) -> str:
        """One connection serves this step and the next two: some sites count them."""
        ssh = self.computer.ssh
        until = time.monotonic() + _NOT_YET_S
        while self.first is None and self.refusal is None:
            try:
                self.first = self.transport.run(["whoami"], timeout_s=_SHELL_S)
            except (HostKeyRefused, AuthenticationRefused, CommandTimedOut) as error:
                self.refusal = error
            except ConnectionNotYet as error:
                if time.monotonic() + error.retry_after_s > until:
                    raise _Failed(error.reason, "wait so long, then test again") from None
                time.sleep(error.retry_after_s)
            except TransportUnavailable as error:
                raise _Failed(error.reason, self._advice_on_way(error.reason)) from None
        return f"{self.computer.hostname}" + (f" port {ssh.port}" if ssh.port else "")

    def _advice_on_way(self, reason: str) -> str:
        host = self.computer.hostname
        if re.search(r"not known|no address|resolve|nodename", reason, re.IGNORECASE):
            return f"see that the name is right: {self.edit} --host NAME; some names are known in a VPN only"
        if "refused" in reason:
            return (
                f"something answers at {host}, but no sshd at this port: {self.edit} --port NUMBER; "
                "or sshd is down there"
            )
        return (
            f"see whether `ssh {host}` gets through from here; a VPN, a firewall or a host on the way may be "
            f"needed: {self.edit} --proxy-jump HOST"
        )

    def host_key(self) -> str:
        if isinstance(self.refusal, HostKeyRefused):
            raise _Failed(self.refusal.reason, f"then again: grange computer test {self.label}")
        return "it is the one that is known here"

    def authenticate(self) -> str:
        if isinstance(self.refusal, AuthenticationRefused):
            user = "--user NAME and --key-file FILE"
            advice = f"name what it takes: {self.edit} {user}; or put the key there by ssh-copy-id"
            if self.computer.transport == "openssh":
                advice = f"open the connection yourself: grange computer connect {self.label}; or {advice}"
            raise _Failed(self.refusal.reason, advice)
        return f"as {self.computer.ssh.user or 'the user of ~/.ssh/config, or of this machine'}"

    def shell(self) -> str:
        """What login scripts print goes into every answer, and breaks SFTP."""
        if self.refusal is not None:
            raise _Failed(
                f"nothing came of `whoami` within {_SHELL_S:g} s",
                "a script of the login shell there waits for something: see ~/.bashrc and ~/.profile",
            )
        if self.first is None:
            self.first = self.transport.run(["whoami"])
        lines = self.first.stdout.decode("utf-8", "replace").splitlines()
        if len(lines) > 1:
            shown = " / ".join(line.strip() for line in lines[:-1] if line.strip())[:200]
            raise _Failed(
                f"login scripts there print: {shown or 'empty lines'}",
                "let them print only where somebody reads: begin ~/.bashrc there with "
                "`case $- in *i*) ;; *) return;; esac`, or print only `if [ -t 1 ]`",
            )
        if self.first.status != 0:
            said = (self.first.stderr.decode("utf-8", "replace").strip() or " ".join(lines))[-300:]
            raise _Failed(
                f"a command (whoami) ends there with status {self.first.status}: {said or 'it says nothing'}",
                "see whether the account has a login shell, and what its login scripts do",
            )
        return f"as {lines[0]}" if lines else "nothing but answers"

    def files(self) -> str:
        return f"by SFTP; home is {self.transport.home()}"

    # ------------------------------------------------------------ what is there

    def python(self) -> str:
        if self.restricted:
            raise _Skipped("a restricted account runs no programs; the one task tells")
        program = self.computer.python
        done = self.transport.run([program, "-c", _ASK_PYTHON])
        advice = f"name one from 3.9 on by its absolute path: {self.edit} --python PATH"
        if done.status != 0:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise _Failed(f"{program}: {said[-1] if said else f'ends with status {done.status}'}", advice)
        version = tuple(_answer(done))
        text = ".".join(map(str, version))
        if version < _PYTHON:
            raise _Failed(f"{program} is Python {text}", advice)
        return f"{program} is Python {text}"

    def work_dir(self) -> str:
        """Make it, and write, read and remove a file in it."""
        folder = self.remote.work_dir
        probe = f"{folder}/probe-{os.urandom(4).hex()}"
        advice = f"take a folder that is yours and that all nodes see: {self.edit} --work-dir FOLDER"
        try:
            self.transport.make_folders([folder])
            self.transport.put([(probe.encode(), probe)])
            sent_at = time.time()
            if self.transport.read([probe]) != [probe.encode()]:
                raise _Failed(f"{folder}: what was written there was not what was read", advice)
            try:
                room = self._room(folder, probe, sent_at)
            finally:
                self.transport.remove([probe])
        except TransportUnavailable:
            raise
        except TransportFailed as error:
            raise _Failed(error.reason, advice) from None
        if room is not None and room < LEAST_ROOM:
            raise _Failed(f"{folder}: {room >> 20} MiB are free", f"make room there, or {advice}")
        return folder + (f", {room >> 20:,} MiB free" if room is not None else "")

    def _room(self, folder: str, probe: str, sent_at: float) -> int | None:
        """The free bytes; the clocks are asked by the way."""
        if self.restricted:
            name = probe.rpartition("/")[2]
            (entries,) = self.transport.list([folder])
            written = [entry.mtime for entry in entries or () if entry.name == name]
            if written:
                self.clocks = (sent_at, written[0], written[0])
            return None
        asked_at = time.time()
        found = _answer(self.transport.run([self.computer.python, "-c", _ASK_FOLDER, folder, probe]))
        # The file was written between the first and the last moment: what lies between is no skew.
        passed = time.time() - sent_at
        self.clocks = ((asked_at + time.time()) / 2, found["now"], found["written"] + passed)
        if found["files"] == 0:
            raise _Failed(f"{folder}: no further files can be made (inodes)", "remove some there")
        return int(found["room"])

    def clock(self) -> str:
        if self.clocks is None:
            raise _Skipped("nothing there tells the time")
        ours, theirs, folder = self.clocks
        if abs(theirs - folder) > MOST_SKEW_S:
            raise _Failed(
                f"the file system of the work directory is {_apart(folder - theirs)} the login node",
                "who is alive is told by times of files: have the operators see to the clocks (NTP), or take "
                f"a folder of another file system: {self.edit} --work-dir FOLDER",
            )
        if abs(ours - theirs) > ODD_SKEW_S:
            raise _Failed(
                f"it is {_apart(theirs - ours)} this machine",
                "set the clock of the one that is wrong (timedatectl): times of the record would be wrong",
            )
        return f"{abs(theirs - ours):.1f} s apart"

    # ------------------------------------------------------------ the scheduler

    def scheduler(self) -> str:
        if self.computer.scheduler == "direct":
            return "none: chunks are processes there"
        partitions = self._partitions()
        wanted = [name for name in self.computer.partition.split(",") if name]
        for name in wanted:
            if partitions and name not in partitions:
                raise _Failed(
                    f"there is no partition {name}",
                    f"take one of {', '.join(partitions)}: {self.edit} --partition NAME",
                )
            if partitions and partitions[name] != "up":
                raise _Failed(f"the partition {name} is {partitions[name]}", "wait, or take another one")
        # Slurm says what it thinks of partition, account, quality of service and the size of a node.
        asked = ["sbatch", "--test-only", *self._options(), "--wrap=true"]
        done = self.transport.run(asked, cwd=self.remote.work_dir)
        said = " ".join((done.stderr + b" " + done.stdout).decode("utf-8", "replace").split())
        if done.status != 0:
            raise _Failed(f"sbatch: {said or f'status {done.status}'}", self._advice_on_job(said, partitions))
        names = ", ".join(wanted or partitions)
        return f"Slurm takes jobs ({names})" if names else "Slurm takes jobs"

    def _partitions(self) -> dict[str, str]:
        """The partitions and whether they are up, as far as sinfo may be asked."""
        if self.restricted:
            done = self.transport.run(slurm.queue_argv(user=self.remote.transport.home().rpartition("/")[2]))
            if done.status != 0:
                raise _Failed(f"squeue: {_said(done)}", "see whether Slurm is up there")
            return {}
        done = self.transport.run(["sinfo", "--noheader", f"--format={_MARK}%R@%a"])
        if done.status == 127:
            raise _Failed(
                "sinfo is not on PATH",
                "see that ~/.bashrc there sets PATH for shells without a terminal, too; for a machine "
                f"without Slurm: {self.edit} --scheduler direct",
            )
        if done.status != 0:
            raise _Failed(
                f"sinfo: {_said(done)}", "see whether Slurm is up there: its controller has to answer"
            )
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        found = [line.removeprefix(_MARK).rpartition("@") for line in lines if line.startswith(_MARK)]
        return {name: state for name, _, state in found}

    def _options(self) -> list[str]:
        computer = self.computer
        options = [
            f"--{name}={value}"
            for name in ("partition", "account", "qos")
            if (value := getattr(computer, name))
        ]
        options += ["--nodes=1", "--time=5"]
        if computer.cores_per_node:
            options += ["--ntasks=1", f"--cpus-per-task={computer.cores_per_node}"]
        if computer.memory_mb_per_node:
            options.append(f"--mem={computer.memory_mb_per_node}M")
        for directive in computer.directives:
            name, gap, value = directive.partition(" ")
            options += [name, value] if gap else [directive]
        return options

    def _advice_on_job(self, said: str, partitions: dict[str, str]) -> str:
        known = f" ({', '.join(partitions)})" if partitions else ""
        for pattern, advice in (
            (r"partition", f"name one that you may use{known}: {self.edit} --partition NAME"),
            (
                r"account",
                f"name one of yours (`sacctmgr show assoc user=$USER` there): {self.edit} --account NAME",
            ),
            (r"qos", f"name one that you may use: {self.edit} --qos NAME"),
            (
                r"node configuration|cpu count|memory|more processors",
                f"a node has less than that: {self.edit} --cores-per-node N --memory-per-node MB",
            ),
            (r"option|argument", f"see the further options: {self.edit} --directive OPTION"),
        ):
            if re.search(pattern, said, re.IGNORECASE):
                return advice
        return "see whether `sbatch` takes a job of yours there"

    # ------------------------------------------------------------ what we bring

    def code(self) -> str:
        try:
            self.hello = self.remote.prepare()
        except CommandRefused:
            if self.restricted:
                raise _Skipped("a restricted account runs no programs; the one task tells") from None
            raise
        except ExecutorUnavailable as error:
            # A second time it tells what it has found, HyperQueue or not.
            with contextlib.suppress(FarmError):
                self.hello = self.remote.prepare()
            if not self.hello:
                raise _Failed(
                    str(error), f"see that Python there can run programs in {self.remote.work_dir}"
                ) from None
        if not self.hello:
            return f"{self.remote.code_dir}; the one task tells whether it runs"
        return f"{self.remote.code_dir} on {self.hello['host']}, {self.hello['cores']} cores"

    def hyperqueue(self) -> str:
        kind = self.computer.hyperqueue
        if kind == "none":
            raise _Skipped(
                "not used: " + ("processes" if self.computer.scheduler == "direct" else "each chunk is a job")
            )
        if problem := self.hello.get("hq_problem"):
            if kind == "hq":
                advice = (
                    f"name it: {self.edit} --hq-program PATH; or load its module: --prepend-text "
                    "'module load …'; or send it: --hq-binary FILE"
                )
            else:
                advice = "the wheel does not run there: another Python, or another kind of processor?"
            raise _Failed(str(problem), advice)
        if not self.hello:
            raise _Skipped("the job starts it; the one task tells")
        version = self.hello.get("hq_version", "?")
        if kind == "private-wheel":
            return f"the wheel {version}; its server has NO authentication"
        return f"{self.hello.get('hq') or self.computer.hq_program} {version}"

    # ------------------------------------------------------------ one task

    def task(self) -> str:
        """A command goes there as those of a campaign do, through the queue, and its result comes back."""
        self.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        needs_workers = self.computer.hyperqueue != "none" and self.computer.scheduler == "slurm"
        if needs_workers and self.workers is None:
            raise _Skipped("workers are in allocations: grange allocation start")
        trial = self.trial
        with ClusterExecutor(
            self.spool,
            self.computer,
            self.transport,
            fetch=(lambda keys: {trial.key: trial.content}) if trial else None,
            delivery=trial.delivery if trial else None,
        ) as executor:
            executor.acknowledge(executor.recover())
            executor.go_on([])  # what an interrupted test left there
            with self.workers(self.remote) if needs_workers and self.workers else contextlib.nullcontext():
                return self._through(executor)

    def _through(self, executor: ClusterExecutor) -> str:
        task = CommandTask(
            id=f"test-{os.urandom(4).hex()}",
            argv=("/bin/sh", "-c", "echo grange-$((40 + 2))"),
            files={"from-the-store": self.trial.key} if self.trial else {},
        )
        executor.submit(Batch((task,), Resources(walltime_s=_TASK_S)))
        begun = time.monotonic()
        results: list[TaskResult] = []
        try:
            while not results and time.monotonic() < begun + self.timeout_s:
                self.waiting(time.monotonic() - begun)
                packs = executor.poll(_LOOK_S)
                self._look_at_store(executor, packs)
                results = [result for pack in packs for result in pack.results if result.id == task.id]
                # Before the pack may go: the next step looks at it.
                self.outputs += [self._output(pack, result) for pack in packs for result in pack.results]
                executor.acknowledge(packs)
        finally:
            if not results:
                self._end(executor)
        if not results:
            notes = "; ".join(executor.notes)
            raise _Failed(
                f"not back after {self.timeout_s:g} s" + (f" ({notes})" if notes else ""),
                f"the queue may be long: --timeout SECONDS waits longer, --no-task leaves it out; see "
                f"`grange allocation list {self.label}`, and `squeue --me` there",
            )
        result = results[0]
        if result.outcome != "finished" or result.return_code != 0:
            raise _Failed(
                f"it ended as {result.outcome} on {result.host}: {result.message or result.return_code}",
                "see whether /bin/sh and the temporary folder of compute nodes are as usual",
            )
        return f"ran on {result.host}"

    def _end(self, executor: ClusterExecutor) -> None:
        """Take the task back, and give the executor the time to do it: it may be in the queue."""
        with contextlib.suppress(FarmError):
            executor.cancel()
            until = time.monotonic() + _TAKING_BACK_S
            while executor.outstanding and time.monotonic() < until:
                executor.acknowledge(executor.poll(_LOOK_S))

    def _look_at_store(self, executor: ClusterExecutor, packs: Sequence[ResultPack]) -> None:
        """Whether it came by way of the store, and why not."""
        self.delivered = self.delivered or any(pack.delivered is not None for pack in packs)
        for note in executor.notes:
            if "the store" in note:
                self.undelivered = note

    def _output(self, pack: ResultPack, result: TaskResult) -> bytes | None:
        """What a task printed, as the pack has it; None where it has not."""
        key = result.files.get("stdout.txt")
        if key is None:
            return None
        if pack.delivered is not None and self.trial is not None:
            place = pack.delivered.locations().get(key)
            if place is None:
                return None
            store = self.trial.delivery.store
            [content] = store.get_ranges(place.object_name, [(place.offset, place.size)])
            return bytes(content)
        try:
            with zipfile.ZipFile(pack.path) as file:
                content = file.read(key)
        except (OSError, KeyError, zipfile.BadZipFile):
            return None
        return content if key_of(content) == key else None

    def store(self) -> str:
        """Whether nodes get through to the store of the profile."""
        if self.trial is None:
            raise _Skipped("this profile's files are in a folder: results come through this machine")
        if not self.outputs:
            raise _Skipped("no task was sent")
        where = str(self.trial.delivery.store)
        if not self.delivered:
            raise _Failed(
                self.undelivered or "the result did not go into the store",
                f"see that compute nodes reach the server of {where}: firewalls, proxies (https_proxy in "
                f"--prepend-text); or let results come through this machine: {self.edit} --delivery ssh",
            )
        return f"the result went straight into {where}"

    def spool_back(self) -> str:
        """What came back has to be what was written."""
        if not self.outputs:
            raise _Skipped("no task was sent")
        if b"grange-42\n" not in self.outputs:
            raise _Failed(
                f"the output of the task came back as {self.outputs[-1]!r}",
                f"see the file system of {self.remote.work_dir} there",
            )
        return "the output came back whole"


def workers_of(profile: Profile, stored: StoredComputer) -> Workers:
    """An allocation of one core for the time of the task, where there is none that could take it."""

    @contextmanager
    def workers(remote: Remote) -> Iterator[None]:
        site = Site(stored.id, remote)
        launcher.refresh(profile, site)
        with profile.transaction() as cursor:
            there = allocations.open_allocations(cursor, stored.id)
        if any(not one.is_stopping for one in there):
            yield
            return
        gpus = min(1, stored.computer.gpus_per_node)
        request = AllocationRequest(
            token=new_token(), cores_per_node=1, gpus=gpus, walltime_s=_ALLOCATION_S, idle_s=_ALLOCATION_S
        )
        started = launcher.start(profile, site, [request])
        if started.refused is not None:
            raise started.refused
        ids = [one.id for one in started.allocations]
        try:
            yield
        finally:
            launcher.stop(profile, site, ids)
            launcher.wait_for_end(profile, site, ids, grace_s=_ENDING_S)

    return workers


def _answer(done: Completed) -> Any:
    """What a program of ours printed. Errors: _Failed where it did not."""
    for line in reversed(done.stdout.decode("utf-8", "replace").splitlines()):
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    raise _Failed(f"no answer: {_said(done)}", "run it by hand there, and see what it says")


def _said(done: Completed) -> str:
    text = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return text[-300:] or f"status {done.status}"


def _apart(seconds: float) -> str:
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def _reason(error: FarmError) -> str:
    return error.reason if isinstance(error, TransportFailed) else str(error)


def _advice(computer: Computer, error: FarmError) -> str:
    if isinstance(error, ComputerPaused):
        return f"mend it, then: grange computer resume {computer.label}"
    if isinstance(error, RemoteFull):
        return f"make room there, or: grange computer edit {computer.label} --work-dir FOLDER"
    if isinstance(error, TransportUnavailable):
        return f"the connection was lost: again, grange computer test {computer.label}"
    if isinstance(error, SchedulerRefused):
        return (
            f"see `grange allocation list {computer.label}`, and whether `sbatch` takes a job of yours there"
        )
    if isinstance(error, CommandRefused) and computer.ssh.restricted:
        return "docs/cluster/restricted-accounts.md says what such an account has to let through"
    if isinstance(error, CommandRefused):
        return f"for an account of a few commands only: grange computer edit {computer.label} --restricted"
    return f"mend it, then again: grange computer test {computer.label}"
