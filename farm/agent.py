"""The agent: what we run on a cluster besides the tasks themselves.

Standard library only, Python 3.9 or newer; it travels with runner.py, which lies beside it.

    agent.py COMMAND            one request, a JSON object on standard input; the answer is the last line of
                                standard output, "grange-answer: " and a JSON object
        hello                   what there is: Python, host, user, room, scheduler, HyperQueue
        advance                 hand over what lies in the jobs folders of runs, start the server if need be
        poll                    the same, and wait for news
        cancel                  end tasks
        sweep                   remove runs
        server                  start, stop or look at the HyperQueue server
    agent.py worker FOLDER      a HyperQueue worker in an allocation, until that has ended
    agent.py serve FOLDER       server and workers inside an allocation, fed through the spool
    agent.py pool WORK SLOTS    runs chunks on this machine, without any scheduler
    agent.py wheel-server FOLDER, wheel-worker …    HyperQueue by its wheel

W, the work directory:

    W/bin/<hash>/               this file, runner.py; hq, or wheel/ and lib/
    W/server/                   HyperQueue's server: access.json, journal, log
    W/hosts/<node>@<token>      one file for each live worker, touched by it; its cores as JSON
    W/suspects/, W/broken/      marks of nodes (runner.Node)
    W/allocations/<token>/      see farm.allocation
    W/spool/<run>/              one campaign run
        chunk-000001/           see farm.runner
        done/                   marks: "<chunk>.<n>" a result pack is there, "<chunk>.end" the chunk is done
        jobs/<name>.zip         chunks that were sent together: members <chunk>, each a chunk.zip, and before
                                it <chunk>.urls, its delivery.json, if it has one
        jobs/<name>.json        who got them (Job)

A job file is written before its chunks are handed over and again after it, so whatever dies in between hands
over once more; a chunk that is handed over twice runs once, because its second runner finds it done.
"""

# zip() has no strict= before Python 3.10.
# ruff: noqa: RUF005, SIM105
from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Optional, Set, Tuple

if TYPE_CHECKING or __package__:
    from grange.farm import runner
else:
    import runner

Json = Dict[str, Any]

ANSWER = "grange-answer: "
HERE = os.path.dirname(os.path.abspath(__file__))
#: So often a scheduler has to refuse an account: one that has just been started may not know any yet.
ACCOUNT_REFUSALS = 3
#: What it says then.
ACCOUNT_WORDS = re.compile(r"invalid account|account.*(?:not valid|does not exist|invalid)", re.IGNORECASE)
#: How often what the scheduler says is looked at while waiting for news. Seconds.
CHECK_S = 2.0
#: How often the folders of marks are looked at. Seconds.
LOOK_S = 0.05
#: How often a chunk that is handed back without a fault of its own is handed over again.
PATIENCE = 200
#: After a runner could not write to the spool, its chunk is handed over again after so many seconds, after
#: twice as many the second time, and so on up to the second number.
FULL_S = (15.0, 600.0)
#: A chunk that one node after the other leaves to others is handed over again after a second, two, three, …
#: at most so many.
ELSEWHERE_S = 30.0
#: So often that is nothing worth waiting for: a node is suspect, an allocation is at its end.
ELSEWHERE_AT_ONCE = 3
#: How long a server may take to start. Seconds.
SERVER_S = 20.0
#: How often a worker that has nothing to do looks whether its server is still the same. Seconds.
SERVER_LOOK_S = 2.0
#: So long the runners of a worker that has ended may take to hand over what they have. Seconds.
LAST_WORDS_S = 4.0
#: How often a worker says that it lives. Seconds.
BEAT_S = 10.0
#: A worker whose server is gone waits so long for another one. Seconds.
SERVER_GONE_S = 600.0
#: Why a worker ended that had nobody to work for.
NO_SERVER = "no HyperQueue server was there"
#: Whoever serves says so this often; after three times that, another one may. Seconds.
SERVE_S = 5.0
#: A pool without work ends after so many seconds.
POOL_IDLE_S = 30.0

START = (
    "import sys; place = sys.argv.pop(1); sys.path[:] = [place] + [entry for entry in sys.path if entry] + "
    "[place + '/lib']; import runner; sys.path.remove(place); "
    "sys.exit(sys.modules.pop('runner').main(sys.argv[1:]))"
)


class Refused(Exception):
    """What was asked for cannot be done; the text says why."""


class AccountRefused(Refused):
    """The scheduler takes no jobs for the account."""


def runner_command(kind: str, python: str) -> List[str]:
    """How a runner is started, up to its mode."""
    lean = ["-I", "-S"] if kind == "command" else []
    return [python, *lean, "-c", START, HERE]


# ----------------------------------------------------------------------------------------------- small things


def write_json(path: str, value: object) -> None:
    """Whole or not at all, whatever becomes of us and of this machine."""
    part = os.path.join(os.path.dirname(path), ".%s.%d.part" % (os.path.basename(path), os.getpid()))
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except OSError:
        unlink(part)
        raise


def read_json(path: str) -> Any:
    """The value, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):
        return None


def names_in(folder: str) -> List[str]:
    """What lies in a folder, without what somebody is just writing; nothing if it is not there."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []


def make_folder(path: str) -> str:
    os.makedirs(path, 0o700, exist_ok=True)
    return path


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def age_s(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return float("inf")


class Locked:
    """A lock of this host on a file, as long as this process lives or leaves the block."""

    def __init__(self, path: str, wait: bool = True) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.held = True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            self.held = False

    def __enter__(self) -> Locked:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def call(argv: List[str], **more: Any) -> Tuple[int, str, str]:
    """Run a program to its end; (127, "", reason) where there is none."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=more.pop("timeout", 60),
            **more,
        )
    except subprocess.TimeoutExpired:
        return 124, "", "%s did not answer within a minute" % argv[0]
    except OSError as problem:
        return 127, "", "%s: %s" % (argv[0], problem.strerror)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def start_detached(argv: List[str], log: str, environment: Optional[Dict[str, str]] = None) -> int:
    """Start a process that outlives us and our connection."""
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    return process.pid


def last_lines(path: str, count: int = 3) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
            return "; ".join(file.read().decode("utf-8", "replace").strip().splitlines()[-count:])
    except OSError:
        return ""


# ------------------------------------------------------------------------------------------------------- jobs


class Job:
    """What was sent together, and who has it.

    need: cpus, memory_mb, gpus, nodes, walltime_s of one task. handed: one entry for each time that chunks
    were handed over: {"id", "server", "chunks", "seen"}; seen counts the failures that are dealt with.
    losses: chunk → how often it came back. later: chunk → when it may be handed over again.
    """

    def __init__(self, run: str, name: str, content: Json) -> None:
        self.run = run
        self.name = name
        self.path = os.path.join(run, "jobs", name + ".json")
        self.chunks: List[str] = content["chunks"]
        self.need: Json = content["need"]
        self.kind: str = content["kind"]
        self.settings: Json = content["settings"]
        self.handed: List[Json] = content.get("handed", [])
        self.losses: Dict[str, int] = content.get("losses", {})
        self.later: Dict[str, float] = content.get("later", {})
        self._folders: Optional[Dict[str, List[str]]] = None

    def save(self) -> None:
        write_json(
            self.path,
            {
                "chunks": self.chunks,
                "need": self.need,
                "kind": self.kind,
                "settings": self.settings,
                "handed": self.handed,
                "losses": self.losses,
                "later": self.later,
            },
        )

    def folder(self, chunk: str) -> str:
        return os.path.join(self.run, chunk)

    def twins(self, chunk: str) -> List[str]:
        """The folders of a chunk: its own, and those where others went on with it."""
        if self._folders is None:
            # Looked up once: a run may have thousands of chunks.
            self._folders = folders_of(self.run)
        return [self.folder(name) for name in self._folders.get(chunk, ())]

    def is_open(self, chunk: str) -> bool:
        """Whether something of the chunk is still to be done."""
        twins = self.twins(chunk)
        if not twins or not os.path.exists(os.path.join(self.folder(chunk), "chunk.zip")):
            return False
        return not any(runner.all_done(twin) for twin in twins)

    def waiting(self) -> List[str]:
        """The open chunks that nobody has."""
        given = {chunk for entry in self.handed for chunk in entry["chunks"]}
        return [chunk for chunk in self.chunks if chunk not in given]

    def taken_back(self, chunks: Iterable[str]) -> None:
        """These are with nobody any more."""
        gone = set(chunks)
        for entry in self.handed:
            entry["chunks"] = [None if chunk in gone else chunk for chunk in entry["chunks"]]
        self.handed = [entry for entry in self.handed if any(entry["chunks"])]


def folders_of(run: str) -> Dict[str, List[str]]:
    """Chunk → the names of its folders: its own, and those where others went on with it."""
    found: Dict[str, List[str]] = {}
    for name in names_in(run):
        if name.startswith("chunk-"):
            found.setdefault(name.partition("+")[0], []).append(name)
    return found


def unpack(run: str, name: str) -> None:
    """Make the chunk folders of what was sent; may be repeated. Errors: ValueError for what is no pack."""
    path = os.path.join(run, "jobs", name + ".zip")
    try:
        pack = runner.ZipReader(path)
    except FileNotFoundError:
        return
    for member in pack.names:
        known = re.match(r"(chunk-\d+)(\.urls)?$", member)
        if known is None:
            raise Refused("%s holds %r, which is no chunk" % (path, member))
        folder = make_folder(os.path.join(run, known.group(1)))
        part = os.path.join(folder, "chunk.part")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for piece in pack.pieces(member):
                file.write(piece)
        os.rename(part, os.path.join(folder, "delivery.json" if known.group(2) else "chunk.zip"))
    pack.close()
    unlink(path)


def open_jobs(run: str) -> List[Job]:
    """The jobs of a run, unpacked.

    What cannot be read, after a file system has lost some of it, is removed: whoever has sent it is told that
    its chunks are missing, and sends them again.
    """
    found = []
    folder = os.path.join(run, "jobs")
    make_folder(os.path.join(run, "done"))
    for name in names_in(folder):
        if not name.endswith(".json"):
            continue
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                job = Job(run, name[:-5], json.load(file))
            unpack(run, job.name)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError):
            unlink(os.path.join(folder, name))
            unlink(os.path.join(folder, name[:-5] + ".zip"))
            continue
        found.append(job)
    return found


def advance(run: str, work: str) -> List[str]:
    """Hand over what waits, see to what came back. Returns what a person should know."""
    said: List[str] = []
    lock = os.path.join(run, "lock")
    if not os.path.isdir(run):
        return said
    with Locked(lock):
        for job in open_jobs(run):
            dispatcher = dispatcher_of(job.settings, work)
            said += _advance_job(job, dispatcher)
    return said


def _advance_job(job: Job, dispatcher: Dispatcher) -> List[str]:
    said: List[str] = []
    changed = False
    if job.handed:
        for chunk, reason in dispatcher.returned(job):
            changed = True
            word = take_back(job, chunk, reason)
            if word:
                said.append(word)
    now = time.time()
    ready = [chunk for chunk in job.waiting() if job.later.get(chunk, 0.0) <= now and job.is_open(chunk)]
    if ready:
        try:
            entry = dispatcher.hand_over(job, ready)
        except AccountRefused as problem:
            entry, changed = None, True
            _refuse(job, ready, problem)
        if entry is not None:
            job.handed.append(entry)
            changed = True
    if changed:
        job.save()
        dispatcher.saved(job)
    if not any(job.is_open(chunk) for chunk in job.chunks):
        for chunk in job.chunks:
            end_mark(job, chunk)
        dispatcher.forget(job)
        unlink(job.path)
    return said


def _refuse(job: Job, chunks: List[str], problem: AccountRefused) -> None:
    """Say of chunks that their account was refused, if it was often enough. Errors: the problem, if not."""
    job.losses["account"] = job.losses.get("account", 0) + 1
    if job.losses["account"] < ACCOUNT_REFUSALS:
        job.save()
        raise problem
    for chunk in chunks:
        for twin in job.twins(chunk):
            settle(twin, "account_refused", str(problem))
        end_mark(job, chunk)


def end_mark(job: Job, chunk: str) -> None:
    """Say that a chunk is done, should whoever finished it have died before that."""
    if os.path.isdir(job.folder(chunk)):
        runner.note(os.path.join(job.run, "done"), chunk + ".end")


def take_back(job: Job, chunk: str, reason: str) -> str:
    """A chunk came back: let it be handed over again, or say of what is left of it that it crashed.

    Returns what a person should know.
    """
    job.taken_back([chunk])
    if not job.is_open(chunk):
        end_mark(job, chunk)
        return ""
    done = max((runner.done_in(twin) for twin in job.twins(chunk)), default=0)
    if done > job.losses.get(chunk + " done", 0):
        # it got on: what it dies of is not always the same task
        job.losses[chunk + " done"] = done
        job.losses[chunk] = 0
    job.losses[chunk] = losses = job.losses.get(chunk, 0) + 1
    if "exit code %d" % runner.EXIT_ELSEWHERE in reason:
        # Nobody is to blame, however often: it waits for a node that will do.
        if losses > ELSEWHERE_AT_ONCE:
            job.later[chunk] = time.time() + min(ELSEWHERE_S, losses - ELSEWHERE_AT_ONCE)
        walltime_s = job.need.get("walltime_s")
        if losses > ELSEWHERE_AT_ONCE and walltime_s:
            return "tasks that may take %g s wait for an allocation with as much time left" % walltime_s
        return ""
    if "exit code %d" % runner.EXIT_UNWRITABLE in reason:
        job.later[chunk] = time.time() + min(FULL_S[1], FULL_S[0] * losses)
        limit = PATIENCE
        word = "the spool could not be written: %s" % last_lines(os.path.join(job.run, "log"), 1)
    else:
        limit = PATIENCE if "exit code %d" % (128 + signal.SIGTERM) in reason else 3 * runner.DEATHS
        word = ""
    if losses > limit:
        # Slurm's word for a job whose memory was used up, with the runner in it.
        outcome = "memory_exceeded" if "OUT_OF_MEMORY" in reason else "crashed"
        for twin in job.twins(chunk):
            settle(twin, outcome, "its runner was lost %d times, at last: %s" % (limit, reason))
        end_mark(job, chunk)
    return word


def settle(folder: str, outcome: str, message: str, ids: Optional[Set[str]] = None) -> None:
    """runner.settle, of a folder that may be removed at the same time, or that was never finished."""
    try:
        runner.settle(folder, outcome, message, ids)
    except FileNotFoundError:
        return


# ------------------------------------------------------------------------------------------------ dispatchers


class Dispatcher:
    """Who runs chunks. Nothing here waits for the end of anything."""

    def __init__(self, settings: Json, work: str) -> None:
        self.settings = settings
        self.work = work

    def hand_over(self, job: Job, chunks: List[str]) -> Optional[Json]:
        """Give chunks away; the entry for Job.handed, None if there is no room now. Errors: Refused."""
        raise NotImplementedError

    def returned(self, job: Job) -> List[Tuple[str, str]]:
        """Chunks that were given away and that nobody has any more, with the reason."""
        raise NotImplementedError

    def saved(self, job: Job) -> None:
        """What came back is in the job's file."""

    def forget(self, job: Job) -> None:
        """All of the job is done."""

    def environment(self, job: Job) -> Dict[str, str]:
        """What runners need to know."""
        cpus = str(max(1, int(job.need.get("cpus") or 1)))
        return {"GRANGE_WORK": self.work, **dict.fromkeys(runner.THREADS, cpus)}

    def command(self, job: Job) -> List[str]:
        return [*runner_command(job.kind, self.settings.get("python") or sys.executable), "run"]


def dispatcher_of(settings: Json, work: str) -> Dispatcher:
    kind = settings["dispatcher"]
    made = {"hq": Hq, "private-wheel": Wheel, "slurm": SlurmJobs, "direct": Pool}.get(kind)
    if made is None:
        raise Refused("no way of running chunks is called %r" % kind)
    return made(settings, work)


class HyperQueue(Dispatcher):
    """What both kinds of HyperQueue have in common."""

    @property
    def server(self) -> str:
        return os.path.join(self.work, "server")

    def server_uid(self) -> Optional[str]:
        """What names the server that runs now; None if there is none."""
        raise NotImplementedError

    def start_server(self) -> None:
        raise NotImplementedError

    def ensure_server(self) -> str:
        """The server, started if need be. Errors: Refused."""
        make_folder(self.server)
        uid = self.server_uid()
        if uid is not None:
            return uid
        with Locked(os.path.join(self.server, "start.lock")):
            uid = self.server_uid()
            if uid is not None:
                return uid
            self.start_server()
            until = time.monotonic() + SERVER_S
            while uid is None and time.monotonic() < until:
                time.sleep(0.1)
                uid = self.server_uid()
        if uid is None:
            raise Refused(
                "the HyperQueue server does not start: %s" % last_lines(os.path.join(self.server, "log"))
            )
        return uid

    def failures(self, number: int, seen: int) -> Optional[Tuple[bool, Dict[int, str]]]:
        """Of a job: whether it is over, and which of its tasks failed and why (may be empty if there are no
        more
        than were seen). None if the server does not know it."""
        raise NotImplementedError

    def hand_over(self, job: Job, chunks: List[str]) -> Optional[Json]:
        uid = self.ensure_server()
        number = self.submit(job, chunks)
        return {"id": number, "server": uid, "chunks": list(chunks), "seen": 0}

    def submit(self, job: Job, chunks: List[str]) -> int:
        raise NotImplementedError

    def returned(self, job: Job) -> List[Tuple[str, str]]:
        uid = self.ensure_server()
        found: List[Tuple[str, str]] = []
        for entry in job.handed:
            chunks = entry["chunks"]
            # A number says nothing to a server by another name: it may be some other job's.
            state = self.failures(entry["id"], entry["seen"]) if entry["server"] == uid else None
            if state is None:
                lost = [chunk for chunk in chunks if chunk]
                if entry["server"] == uid and not any(job.is_open(chunk) for chunk in lost):
                    continue
                found += [
                    (chunk, "exit code %d: the server was lost" % runner.EXIT_ELSEWHERE) for chunk in lost
                ]
                continue
            over, failed = state
            entry["seen"] = len(failed) if failed else entry["seen"]
            for index, reason in failed.items():
                if index < len(chunks) and chunks[index]:
                    found.append((chunks[index], reason))
            if over:
                named = {chunk for chunk, _ in found}
                for chunk in chunks:
                    # A task that was ended together with its worker may count as finished.
                    if chunk and chunk not in named and job.is_open(chunk):
                        found.append((chunk, "exit code %d: it ended early" % runner.EXIT_ELSEWHERE))
        return found


class Hq(HyperQueue):
    """HyperQueue by the program hq: with keys, and a journal that survives the server.

    A server that is started with the journal of another one has its name (server_uid) and its jobs; without
    the journal it has a name of its own, and its numbers begin at 1.
    """

    def __init__(self, settings: Json, work: str) -> None:
        super().__init__(settings, work)
        self._jobs: Optional[Dict[int, Json]] = None

    @property
    def program(self) -> str:
        return hq_program(self.settings, self.work)

    def hq(self, *arguments: str) -> Tuple[int, str, str]:
        return call(
            [self.program, "--server-dir", self.server, "--output-mode", "json", *arguments],
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )

    def asked(self, *arguments: str) -> Any:
        """What hq answers. Errors: Refused."""
        code, out, err = self.hq(*arguments)
        if code:
            raise Refused("hq %s: %s" % (" ".join(arguments[:2]), (err or out).strip()[-500:]))
        return json.loads(out) if out.strip() else None

    def server_uid(self) -> Optional[str]:
        if not os.path.exists(os.path.join(self.server, "hq-current")):
            return None
        code, out, _ = self.hq("server", "info")
        return str(json.loads(out)["server_uid"]) if code == 0 else None

    def start_server(self) -> None:
        start_detached(
            [self.program, "--server-dir", self.server, "server", "start"]
            + ["--journal", os.path.join(self.server, "journal")],
            os.path.join(self.server, "log"),
            {**os.environ, "RUST_BACKTRACE": "0"},
        )

    def submit(self, job: Job, chunks: List[str]) -> int:
        need = job.need
        lines = "%s.lines" % job.path
        with open(lines, "w") as file:
            file.write("".join("%s\n" % job.folder(chunk) for chunk in chunks))
        arguments = ["submit", "--name", os.path.basename(job.run), "--each-line", lines]
        if (need.get("nodes") or 1) > 1:
            arguments += ["--nodes", str(need["nodes"])]
        else:
            arguments += ["--cpus", str(need.get("cpus") or 1)]
            if need.get("memory_mb"):
                arguments += ["--resource", "mem=%d" % need["memory_mb"]]
            if need.get("gpus"):
                arguments += ["--resource", "gpus=%d" % need["gpus"]]
        if need.get("walltime_s"):
            arguments += ["--time-request", "%ds" % (need["walltime_s"] + 2 * runner.LAST_S)]
        for name, value in self.environment(job).items():
            arguments += ["--env", "%s=%s" % (name, value)]
        arguments += [
            "--stdout",
            "none",
            "--stderr",
            "none",
            "--crash-limit",
            "unlimited",
            "--cwd",
            "/",
            "--",
        ]
        command = " ".join(map(shlex.quote, self.command(job)))
        answer = self.asked(
            *arguments, "/bin/sh", "-c", 'export GRANGE_CHUNK="$HQ_ENTRY"; exec %s "$HQ_ENTRY"' % command
        )
        unlink(lines)
        return int(answer["id"])

    def failures(self, number: int, seen: int) -> Optional[Tuple[bool, Dict[int, str]]]:
        if self._jobs is None:
            self._jobs = {job["id"]: job for job in self.asked("job", "list", "--all")}
        job = self._jobs.get(number)
        if job is None:
            return None
        stats = job["task_stats"]
        bad = stats["failed"] + stats["canceled"] + stats.get("aborted", 0)
        over = not (stats["running"] or stats["waiting"])
        if bad <= seen:
            return over, {}
        tasks = self.asked("task", "list", str(number))[str(number)]
        return over, {
            task["id"]: task.get("error") or "it was cancelled"
            for task in tasks
            if task["state"] in ("failed", "canceled", "aborted")
        }

    def forget(self, job: Job) -> None:
        numbers = ",".join(str(entry["id"]) for entry in job.handed)
        if numbers and self.server_uid() is not None:
            self.hq("job", "cancel", numbers)
            self.hq("job", "forget", numbers)


class Wheel(HyperQueue):
    """HyperQueue by the PyPI wheel, whose server has no authentication: only where nobody can reach it."""

    def server_uid(self) -> Optional[str]:
        known = read_json(os.path.join(self.server, "wheel.json"))
        if known is None or known["host"] != runner.HOST or start_time(known["pid"]) != known["start"]:
            return None
        return "%s-%s-%s" % (known["host"], known["pid"], known["start"])

    def start_server(self) -> None:
        unlink(os.path.join(self.server, "wheel.json"))
        start_detached(
            [sys.executable, os.path.abspath(__file__), "wheel-server", self.server],
            os.path.join(self.server, "log"),
            {**os.environ, "RUST_BACKTRACE": "0"},
        )

    def _client(self) -> Any:
        """Errors: Refused."""
        use_wheel()
        from hyperqueue.client import Client

        try:
            return Client(self.server)
        except Exception as problem:
            raise no_answer(problem) from None

    def submit(self, job: Job, chunks: List[str]) -> int:
        use_wheel()
        import datetime

        from hyperqueue.ffi.protocol import ResourceRequest
        from hyperqueue.job import Job as HqJob

        need = job.need
        made = HqJob(max_fails=None, name=os.path.basename(job.run))
        walltime_s = need.get("walltime_s")
        several = (need.get("nodes") or 1) > 1
        request = ResourceRequest(
            n_nodes=need["nodes"] if several else 0,
            cpus=0 if several else need.get("cpus") or 1,
            min_time=datetime.timedelta(seconds=walltime_s + 2 * runner.LAST_S) if walltime_s else None,
        )
        if several:
            request.resources = {}
        for chunk in chunks:
            folder = job.folder(chunk)
            made.program(
                [*self.command(job), folder],
                env={**self.environment(job), "GRANGE_CHUNK": folder},
                cwd="/",
                stdout=None,
                stderr=None,
                resources=request,
                crash_limit=10000,
            )
        client = self._client()
        try:
            return int(client.submit(made).id)
        except Exception as problem:
            raise no_answer(problem) from None

    def failures(self, number: int, seen: int) -> Optional[Tuple[bool, Dict[int, str]]]:
        client = self._client()
        stats: Dict[int, Json] = {}

        class Seen(Exception):
            pass

        def look(jobs: Any) -> None:
            stats.update(jobs)
            raise Seen

        try:
            try:
                client.connection.wait_for_jobs((number,), look)
            except Seen:
                pass
            if number not in stats:
                return None
            failed = client.connection.get_failed_tasks([number]).get(number, {})
        except Exception as problem:
            # It is there: what it has been given must not be given to anybody else.
            raise no_answer(problem) from None
        over = bool(stats[number].get("completed", True))
        if len(failed) <= seen:
            return over, {}
        return over, {index: failure.error for index, failure in failed.items()}

    def forget(self, job: Job) -> None:
        uid = self.server_uid()
        if uid is None:
            return
        try:
            client = self._client()
        except Refused:
            return  # it forgets by itself when it ends
        for entry in job.handed:
            if entry["server"] == uid:
                try:
                    client.connection.forget_job(entry["id"])
                except Exception:
                    continue  # it is not over: its tasks find their chunks done


def no_answer(problem: Exception) -> Refused:
    return Refused("the HyperQueue server does not answer: %s" % (str(problem).splitlines() or [""])[0])


class SlurmJobs(Dispatcher):
    """Chunks as elements of Slurm's job arrays, where there is no HyperQueue."""

    def __init__(self, settings: Json, work: str) -> None:
        super().__init__(settings, work)
        self._queue: Optional[Set[Tuple[str, int]]] = None

    def queue(self) -> Set[Tuple[str, int]]:
        """(job, element) of all our elements in the queue. Errors: Refused."""
        if self._queue is None:
            code, out, err = call(
                ["squeue", "--noheader", "--array", "--user", user(), "--format", "%F|%K|%j|%T"]
            )
            if code:
                raise Refused("squeue: %s" % (err or out).strip()[-500:])
            self._queue = set()
            for line in out.splitlines():
                number, element, name, state = (line.strip().split("|") + ["", "", ""])[:4]
                if name.startswith("grange") and state not in ("COMPLETED", "FAILED", "CANCELLED"):
                    self._queue.add((number, int(element) if element.isdigit() else 0))
        return self._queue

    def hand_over(self, job: Job, chunks: List[str]) -> Optional[Json]:
        with Locked(os.path.join(self.work, "queue.lock")):
            self._queue = None
            room = int(self.settings.get("max_queued_jobs") or 20) - len(self.queue())
            if room <= 0:
                return None
            chunks = chunks[:room]
            number = len(names_in(os.path.join(job.run, "jobs")))
            script = os.path.join(job.run, "jobs", "%s-%d-%d.sh" % (job.name, number, int(time.time())))
            for excluded in (self.excluded(job, chunks), set()):
                with open(os.open(script, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "w") as file:
                    file.write(self.script(job, chunks, excluded))
                code, out, err = call(["sbatch", "--parsable", script])
                # where there are no other nodes, it is the program
                if not (code and excluded):
                    break
            if code:
                said = (err or out).strip()[-500:]
                raise (AccountRefused if ACCOUNT_WORDS.search(said) else Refused)("sbatch: %s" % said)
            return {"id": out.strip().split(";")[0], "script": script, "chunks": chunks, "at": time.time()}

    def excluded(self, job: Job, chunks: List[str]) -> Set[str]:
        """The nodes that are broken, and those where one of these chunks failed."""
        found = set(workers(self.work)["broken"])
        for chunk in chunks:
            try:
                with open(os.path.join(job.folder(chunk), "suspects"), encoding="utf-8") as file:
                    found.update(file.read().split())
            except OSError:
                continue
        return found

    def script(self, job: Job, chunks: List[str], excluded: Set[str]) -> str:
        settings, need = self.settings, job.need
        walltime_s = settings.get("walltime_s") or 3600
        if need.get("walltime_s"):
            walltime_s = max(walltime_s, need["walltime_s"] + 60)
        lines = [
            settings.get("shebang") or "#!/bin/bash",
            "#SBATCH --job-name=grange-%s" % os.path.basename(job.run)[-12:],
            "#SBATCH --array=0-%d" % (len(chunks) - 1),
            "#SBATCH --output=%s" % os.path.join(job.run, "jobs", "slurm-%A-%a.log"),
            "#SBATCH --time=%d" % max(1, -(-int(walltime_s) // 60)),
            "#SBATCH --nodes=%d" % (need.get("nodes") or 1),
            "#SBATCH --ntasks=%d" % (need.get("nodes") or 1),
            "#SBATCH --cpus-per-task=%d" % max(1, -(-(need.get("cpus") or 1) // (need.get("nodes") or 1))),
            "#SBATCH --signal=B:TERM@30",
            "#SBATCH --no-requeue",
        ]
        if need.get("memory_mb"):
            lines.append("#SBATCH --mem=%d" % max(1, -(-int(need["memory_mb"]) // (need.get("nodes") or 1))))
        if need.get("gpus"):
            lines.append("#SBATCH --gres=gpu:%d" % need["gpus"])
        lines += ["#SBATCH " + line for line in settings.get("sbatch", [])]
        if excluded:
            lines.append("#SBATCH --exclude=" + ",".join(sorted(excluded)))
        exports = {
            **self.environment(job),
            "GRANGE_ENDS_AT": "$(( $(date +%%s) + %d ))" % (int(walltime_s) - 30),
        }
        lines += ['export %s="%s"' % (name, value) for name, value in exports.items()]
        lines += [settings.get("prepend_text") or ""]
        lines += ["chunks=(%s)" % " ".join(shlex.quote(job.folder(chunk)) for chunk in chunks)]
        lines += [
            'export GRANGE_CHUNK="${chunks[$SLURM_ARRAY_TASK_ID]}"',
            '%s "$GRANGE_CHUNK" &' % " ".join(map(shlex.quote, self.command(job))),
            "runner=$!",
            "trap 'kill -TERM \"$runner\"' TERM",
            'wait "$runner"; code=$?',
            # the trap ends the first wait; the second one is for the runner's own end
            'if kill -0 "$runner" 2>/dev/null; then wait "$runner"; code=$?; fi',
            settings.get("append_text") or "",
            'exit "$code"',
        ]
        return "\n".join(lines) + "\n"

    def returned(self, job: Job) -> List[Tuple[str, str]]:
        queue = self.queue()
        found = []
        for entry in job.handed:
            if time.time() - entry["at"] < 3.0:
                continue
            for index, chunk in enumerate(entry["chunks"]):
                if chunk and (entry["id"], index) not in queue and job.is_open(chunk):
                    found.append((chunk, self.reason(job, entry["id"], index)))
        return found

    @staticmethod
    def reason(job: Job, number: str, index: int) -> str:
        """Why an element of an array ended."""
        code, out, _ = call(["scontrol", "show", "job", "%s_%d" % (number, index)])
        state = re.search(r"JobState=(\S+)", out)
        exit_code = re.search(r"ExitCode=(\d+):(\d+)", out)
        log = last_lines(os.path.join(job.run, "jobs", "slurm-%s-%d.log" % (number, index)), 1)
        said = "; it said: %s" % log if log else ""
        if code or state is None:
            return "the job %s_%d is gone%s" % (number, index, said)
        if exit_code is not None and exit_code.group(1) not in ("0",):
            return "exit code %s (%s)%s" % (exit_code.group(1), state.group(1), said)
        if state.group(1) in ("TIMEOUT", "CANCELLED", "PREEMPTED", "NODE_FAIL", "COMPLETED"):
            return "exit code %d: %s" % (runner.EXIT_ELSEWHERE, state.group(1))
        return "the job %s_%d ended as %s%s" % (number, index, state.group(1), said)

    def forget(self, job: Job) -> None:
        queue = self.queue()
        left = []
        for entry in job.handed:
            numbers = ((entry["id"], index) for index in range(len(entry["chunks"])))
            left += ["%s_%d" % number for number in numbers if number in queue]
        if left:
            call(["scancel", *left])
        for entry in job.handed:
            unlink(entry["script"])


class Pool(Dispatcher):
    """Chunks as processes of this machine, which a process of ours starts: see run_pool."""

    def hand_over(self, job: Job, chunks: List[str]) -> Optional[Json]:
        self.ensure()
        # Of the time: the pool runs what it has run before only under a new number.
        return {"id": time.time_ns(), "chunks": list(chunks), "at": time.time()}

    def returned(self, job: Job) -> List[Tuple[str, str]]:
        self.ensure()
        found = []
        for entry in job.handed:
            for chunk in filter(None, entry["chunks"]):
                reason = read_json(failure_path(job, chunk, entry["id"]))
                if reason is not None:
                    found.append((chunk, reason))
        return found

    def saved(self, job: Job) -> None:
        """Failures that the job's file tells of need no files of their own any more."""
        given = {(chunk, entry["id"]) for entry in job.handed for chunk in entry["chunks"]}
        folder = os.path.join(job.run, "jobs")
        for name in names_in(folder):
            known = re.match(r"%s\.(chunk-\d+)\.(\d+)\.failed$" % re.escape(job.name), name)
            if known is not None and (known.group(1), int(known.group(2))) not in given:
                unlink(os.path.join(folder, name))

    def ensure(self) -> None:
        """Start the pool if there is none."""
        with Locked(os.path.join(self.work, "pool.lock"), wait=False) as lock:
            if not lock.held:
                return
        start_detached(
            [sys.executable, os.path.abspath(__file__), "pool", self.work]
            + [str(self.settings.get("slots") or 0)],
            os.path.join(self.work, "pool.log"),
        )


def failure_path(job: Job, chunk: str, number: int) -> str:
    """Where the pool notes how the runner of a chunk ended that was handed over under this number."""
    return os.path.join(job.run, "jobs", "%s.%s.%d.failed" % (job.name, chunk, number))


# -------------------------------------------------------------------------------------------------- the wheel


def use_wheel() -> None:
    """Let the HyperQueue wheel that lies beside us be found."""
    for name in ("wheel", "lib"):
        path = os.path.join(HERE, name)
        if path not in sys.path:
            sys.path.append(path)


def start_time(pid: int) -> Optional[int]:
    """When a process began, in clock ticks since the boot; None if there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            fields = file.read().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def threads() -> Set[str]:
    return set(os.listdir("/proc/self/task"))


def wheel_server(folder: str) -> int:
    """Be a HyperQueue server, until somebody ends us."""
    use_wheel()
    from hyperqueue.ffi.cluster import Cluster

    before = threads()
    cluster = Cluster(folder)
    own = min(threads() - before, key=int)
    ended: List[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: ended.append(number))
    write_json(
        os.path.join(folder, "wheel.json"),
        {"host": runner.HOST, "pid": os.getpid(), "start": start_time(os.getpid())},
    )
    while not ended and own in threads():
        time.sleep(0.2)
    cluster.stop()
    os._exit(0)


def wheel_worker(server: str, cores: int, private: str) -> int:
    """Be a HyperQueue worker, until SIGTERM or the server ends.

    The wheel offers workers only together with a server of their own: one is made in a private folder and
    stopped at once, and the address of the real server is put in its place.
    """
    use_wheel()
    from hyperqueue.ffi.client import ClientConnection
    from hyperqueue.ffi.cluster import Cluster

    runner.die_with_parent(signal.SIGTERM)
    os.makedirs(private, 0o700)
    before = threads()
    cluster = Cluster(private)
    own = min(threads() - before, key=int)
    ClientConnection(private).stop_server()
    while own in threads():
        time.sleep(0.002)
    access = read_json(os.path.join(server, "hq-current", "access.json"))
    if access is None:
        sys.stderr.write("there is no HyperQueue server in %s\n" % server)
        os._exit(3)
    os.unlink(os.path.join(private, "hq-current"))
    write_json(os.path.join(private, "access.json"), access)
    before = threads()
    try:
        cluster.add_worker(cores)
    except Exception as problem:
        sys.stderr.write("no HyperQueue server can be reached: %s\n" % problem)
        os._exit(3)
    own = min(threads() - before, key=int)
    while own in threads():
        time.sleep(0.1)
    os._exit(0)


# ------------------------------------------------------------------------------------------------ allocations


class Worker:
    """A HyperQueue worker of one node in an allocation, and what looks after it.

    It ends when the allocation does, when nothing was to be done for a while, when somebody left the mark
    `stop` in the allocation's folder, or when this node turns out to be broken. A server that is lost is
    waited for: another one may be started with the same journal.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.given: Json = read_json(os.path.join(folder, "allocation.json"))
        self.work = os.path.dirname(os.path.dirname(folder))
        self.token = os.path.basename(folder)
        self.name = "%s@%s" % (runner.NODE, self.token)
        self.ended: List[int] = []
        self.began = time.time()
        self.ends_at = self._ends_at()
        #: The scheduler tells the job to end so long before its time.
        self.last_s = float(self.given.get("term_before_s") or 20)
        self.idle_since = time.monotonic()
        self.beaten = 0.0
        self.number = 0
        self.reason = ""
        self.judging: Optional[subprocess.Popen[bytes]] = None
        self.access: Optional[bytes] = None
        self.scratch = ""

    def _ends_at(self) -> float:
        told = os.environ.get("SLURM_JOB_END_TIME")
        if told and told.isdigit():
            return float(told)
        return self.began + float(self.given.get("walltime_s") or 3600)

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self.ended.append(number))
        runner.adopt_orphans()
        server = self.given["server"]
        lost_at: Optional[float] = None
        while not self.over():
            process = self.start(server)
            outcome = self.watch(process)
            if outcome == "ended":
                break
            # Its server is gone, or never was there; or somebody has killed it.
            self.clear()
            now = time.monotonic()
            lost_at = lost_at if lost_at is not None and outcome == "refused" else now
            if now - lost_at > min(SERVER_GONE_S, max(60.0, float(self.given.get("idle_s") or 300))):
                self.reason = NO_SERVER
                break
            self.pause(2.0)
        self.say("ended")
        unlink(os.path.join(self.work, "hosts", self.name))
        return 1 if self.reason == NO_SERVER else 0

    def over(self) -> bool:
        """Whether it is time to end."""
        if self.ended:
            self.reason = "told to end"
        elif os.path.exists(os.path.join(self.folder, "stop")):
            self.reason = "stopped"
        elif age_s(os.path.join(self.work, "broken", runner.NODE)) < runner.BROKEN_S:
            self.reason = "this node is broken"
        elif time.time() > self.ends_at - self.last_s:
            self.reason = "its time was over"
        return bool(self.reason)

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.over():
            self.beat()
            time.sleep(0.2)

    def start(self, server: str) -> subprocess.Popen[bytes]:
        self.number += 1
        self.idle_since = time.monotonic()
        environment = {
            **os.environ,
            "RUST_BACKTRACE": "0",
            "GRANGE_WORK": self.work,
            "GRANGE_ENDS_AT": str(self.ends_at - self.last_s),
        }
        scratch = os.path.join(
            os.environ.get("TMPDIR") or "/tmp", "grange-worker-%s-%d" % (self.token, os.getpid())
        )
        scratch += "-%d" % self.number
        log = open(os.path.join(self.folder, "worker-%s.log" % runner.NODE), "ab")
        argv = self.hq_argv(scratch) if self.given["hyperqueue"] == "hq" else self.wheel_argv(scratch)
        self.access = self.look_at_access()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd="/",
            # without us nobody would end it
            preexec_fn=lambda: runner.die_with_parent(signal.SIGTERM),
        )
        log.close()
        self.scratch = scratch
        self.say("running")
        return process

    def hq_argv(self, scratch: str) -> List[str]:
        given = self.given
        program = given.get("hq_program") or hq_program(given, self.work)
        argv = [program, "--server-dir", given["server"], "worker", "start", "--manager", "none"]
        argv += ["--cpus", str(self.cores()), "--detect-resources", "none", "--work-dir", scratch]
        if given.get("memory_mb"):
            argv += ["--resource", "mem=sum(%d)" % given["memory_mb"]]
        if given.get("gpus"):
            argv += ["--resource", "gpus=range(0-%d)" % (given["gpus"] - 1)]
        left = max(30, int(self.ends_at - self.last_s - time.time()))
        argv += ["--time-limit", "%ds" % left, "--group", self.token, "--on-server-lost", "finish-running"]
        return argv

    def wheel_argv(self, scratch: str) -> List[str]:
        return [
            *(sys.executable, os.path.abspath(__file__), "wheel-worker"),
            *(self.given["server"], str(self.cores()), scratch),
        ]

    def cores(self) -> int:
        return int(self.given.get("cores") or len(os.sched_getaffinity(0)))

    def watch(self, process: subprocess.Popen[bytes]) -> str:
        """Look after a worker until it has ended: "ended" if that was for good, "lost" if its server is gone
        or somebody has killed it, "refused" if it never reached a server."""
        idle_s = float(self.given.get("idle_s") or 0)
        began = look_at = time.monotonic()
        worked = False
        while process.poll() is None:
            time.sleep(0.2)
            self.beat()
            now = time.monotonic()
            if runner.children_of(process.pid):
                self.idle_since = now
                worked = True
            elif idle_s and now - self.idle_since > idle_s and not self.reason:
                self.reason = "it was idle for %g s" % idle_s
            elif now > look_at + SERVER_LOOK_S:
                look_at = now
                if self.look_at_access() not in (None, self.access):
                    # It would try for ever to reach the server that was there when it began.
                    self.end(process)
                    return "lost"
            if self.reason or self.over():
                self.end(process)
                return "ended"
        lost = worked or process.returncode < 0 or (process.returncode == 0 and time.monotonic() - began > 5)
        return "lost" if lost else "refused"

    def look_at_access(self) -> Optional[bytes]:
        """How the server is reached, which is never the same for two; None if there is none."""
        try:
            with open(os.path.join(self.given["server"], "hq-current", "access.json"), "rb") as file:
                return file.read() or None
        except OSError:
            return None

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End a worker. Its end tells its runners to end: they need a moment to hand over what they have."""
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.clear()

    def clear(self) -> None:
        """See the end of what a worker has left."""
        known = [self.judging.pid] if self.judging is not None else []
        until = time.monotonic() + LAST_WORDS_S
        while runner.reap() and runner.descendants(known) and time.monotonic() < until:
            time.sleep(0.05)
        runner.kill_leftovers(() if self.reason else known, 3.0)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def beat(self) -> None:
        """Say that we live; judge what failed elsewhere."""
        self.judge()
        if time.monotonic() - self.beaten < BEAT_S and self.beaten:
            return
        self.beaten = time.monotonic()
        try:
            make_folder(os.path.join(self.work, "hosts"))
            write_json(
                os.path.join(self.work, "hosts", self.name),
                {"cores": self.cores(), "allocation": self.token, "ends_at": self.ends_at},
            )
        except OSError as problem:
            sys.stderr.write("%s\n" % problem)

    def judge(self) -> None:
        """Where a program failed on another node, try it here."""
        folder = os.path.join(self.work, "suspects")
        if self.judging is not None and self.judging.poll() is None:
            return
        self.judging = None
        for name in names_in(folder):
            if name == runner.NODE or age_s(os.path.join(folder, name)) > runner.SUSPICION_S:
                continue
            try:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    chunk = file.read().strip()
            except OSError:
                continue
            if not os.path.exists(os.path.join(chunk, "chunk.zip")):
                unlink(os.path.join(folder, name))  # it was cancelled, or done by somebody else
                continue
            self.judging = subprocess.Popen(
                [*runner_command("command", sys.executable), "judge", chunk],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, "GRANGE_WORK": self.work, "GRANGE_CHUNK": chunk},
            )
            return

    def say(self, state: str) -> None:
        try:
            write_json(
                os.path.join(self.folder, "worker-%s.json" % runner.NODE),
                {
                    "state": state,
                    "reason": self.reason,
                    "node": runner.NODE,
                    "host": runner.HOST,
                    "cores": self.cores(),
                    "began": self.began,
                    "ends_at": self.ends_at,
                    "time": time.time(),
                },
            )
        except OSError as problem:
            sys.stderr.write("%s\n" % problem)


class Service:
    """What the agent does on the login node elsewhere, inside the allocations of an account that may run
    nothing there: a HyperQueue server, and an eye on what is put into the spool.

    One allocation at a time serves: it says so in W/server/serve.json. When it ends, another one takes over,
    with the same journal where there is one.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.given: Json = read_json(os.path.join(folder, "allocation.json"))
        self.work = os.path.dirname(os.path.dirname(folder))
        self.token = os.path.basename(folder)
        self.path = os.path.join(make_folder(self.given["server"]), "serve.json")
        self.settings = {**self.given, "dispatcher": self.given["hyperqueue"]}
        self.ended: List[int] = []

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: self.ended.append(number))
        leads = False
        while not self.over():
            try:
                if leads or self.take():
                    leads = self.lead()
            except OSError as problem:  # the disk may be full for a while
                sys.stderr.write("%s\n" % problem)
            self.pause(1.0 if leads else SERVE_S)
        if leads:
            self.stop_server()
            unlink(self.path)
        return 0

    def over(self) -> bool:
        return bool(self.ended) or os.path.exists(os.path.join(self.folder, "stop"))

    def pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.over() and time.monotonic() < until:
            time.sleep(0.1)

    def take(self) -> bool:
        """Become the one who serves, if nobody does."""
        held = read_json(self.path)
        if held is not None and held["token"] != self.token and age_s(self.path) < 3 * SERVE_S:
            return False
        self.say()
        # Of two that saw it free, the last to write has it.
        time.sleep(1.0)
        held = read_json(self.path)
        return held is not None and bool(held["token"] == self.token)

    def say(self) -> None:
        write_json(self.path, {"token": self.token, "node": runner.NODE, "time": time.time()})

    def lead(self) -> bool:
        """One round of service; False if another one has taken it."""
        held = read_json(self.path)
        if held is None or held["token"] != self.token:
            return False
        if age_s(self.path) > SERVE_S:
            self.say()
        try:
            self.dispatcher().ensure_server()
        except (Refused, OSError) as problem:
            sys.stderr.write("%s\n" % problem)
        for name in names_in(os.path.join(self.work, "spool")):
            run = os.path.join(self.work, "spool", name)
            try:
                said = "; ".join(advance(run, self.work))
            except (Refused, OSError, ValueError, runner.SpoolFailed) as problem:
                said = str(problem)
            if not os.path.isdir(run):
                continue
            if said:
                write_json(os.path.join(run, "problem"), said)
            else:
                unlink(os.path.join(run, "problem"))
        return True

    def dispatcher(self) -> HyperQueue:
        made = dispatcher_of(self.settings, self.work)
        assert isinstance(made, HyperQueue)
        return made

    def stop_server(self) -> None:
        """It would outlive us where the scheduler does not look for what has left its session."""
        try:
            server({"work": self.work, "settings": self.settings, "do": "stop"})
        except (Refused, OSError) as problem:
            sys.stderr.write("%s\n" % problem)


# --------------------------------------------------------------------------------------------------- the pool


def run_pool(work: str, slots: int) -> int:
    """Run chunks of all runs on this machine, as many at a time as there are cores, until there are none."""
    with Locked(os.path.join(work, "pool.lock"), wait=False) as lock:
        if not lock.held:
            return 0
        runner.adopt_orphans()
        slots = slots or len(os.sched_getaffinity(0))
        running: Dict[int, Tuple[Job, str, int, int]] = {}
        untold: Dict[str, str] = {}
        taken: Set[Tuple[str, str, str, int]] = set()
        idle_since = time.monotonic()
        ended: List[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
        while not ended and time.monotonic() - idle_since < POOL_IDLE_S:
            bury(running, untold)
            free = slots - sum(cpus for _, _, _, cpus in running.values())
            for job, chunk, number in given_to_pool(work):
                identity = (job.run, job.name, chunk, number)
                cpus = min(slots, max(1, int(job.need.get("cpus") or 1)))
                if identity in taken or cpus > free or not job.is_open(chunk):
                    continue
                taken.add(identity)
                free -= cpus
                running[start_runner(job, chunk, work)] = (job, chunk, number, cpus)
            if running:
                idle_since = time.monotonic()
            time.sleep(0.1)
        for pid in running:
            runner.send([pid], signal.SIGTERM)
        until = time.monotonic() + 5
        while running and time.monotonic() < until:
            bury(running, untold)
            time.sleep(0.05)
    return 0


def given_to_pool(work: str) -> List[Tuple[Job, str, int]]:
    """The chunks that were handed to the pool, oldest first."""
    found = []
    for name in names_in(os.path.join(work, "spool")):
        folder = os.path.join(work, "spool", name, "jobs")
        for file in names_in(folder):
            content = read_json(os.path.join(folder, file)) if file.endswith(".json") else None
            if content is None or content["settings"]["dispatcher"] != "direct":
                continue
            job = Job(os.path.join(work, "spool", name), file[:-5], content)
            found += [(job, chunk, entry["id"]) for entry in job.handed for chunk in entry["chunks"] if chunk]
    return found


def start_runner(job: Job, chunk: str, work: str) -> int:
    dispatcher = dispatcher_of(job.settings, work)
    folder = job.folder(chunk)
    argv = [*dispatcher.command(job), folder]
    if job.settings.get("prepend_text"):
        argv = ["/bin/bash", "-c", '%s\nexec "$@"' % job.settings["prepend_text"], "bash", *argv]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env={**os.environ, **dispatcher.environment(job), "GRANGE_CHUNK": folder},
    )
    # Its end is for bury() to see: without this, Popen waits for it when the next one is started.
    process.returncode = 0
    return process.pid


def bury(running: Dict[int, Tuple[Job, str, int, int]], untold: Dict[str, str]) -> None:
    """Note how runners have ended. untold: what could not be written yet, because the disk is full."""
    while running:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            break
        known = running.pop(pid, None)
        if known is None or status == 0:
            continue
        job, chunk, number, _ = known
        untold[failure_path(job, chunk, number)] = (
            "signal %d" % os.WTERMSIG(status)
            if os.WIFSIGNALED(status)
            else "exit code %d" % os.WEXITSTATUS(status)
        )
    for path, reason in list(untold.items()):
        try:
            write_json(path, reason)
        except FileNotFoundError:
            pass  # nobody wants the run any more
        except OSError:
            continue
        del untold[path]


# --------------------------------------------------------------------------------------------------- commands


def user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def hq_program(settings: Json, work: str) -> str:
    """The path of hq: one that was sent, or what the computer's own shell lines find. Errors: Refused."""
    sent = os.path.join(HERE, "hq")
    if os.path.exists(sent):
        return sent
    name = settings.get("hq_program") or "hq"
    if name.startswith("/"):
        return str(name)
    prepend = settings.get("prepend_text") or ""
    known = read_json(os.path.join(work, "hq-path.json")) or {}
    if known.get("of") == [name, prepend] and os.access(known["path"], os.X_OK):
        return str(known["path"])
    code, out, _ = call(["/bin/bash", "-l", "-c", "%s\ncommand -v -- %s" % (prepend, shlex.quote(name))])
    lines = out.strip().splitlines()
    if code or not lines or not lines[-1].startswith("/"):
        raise Refused(
            "the program %s of HyperQueue is not found on %s: load its module in prepend_text, give its path "
            "as hq_program, or hand us a binary (--hq-binary)" % (name, runner.HOST)
        )
    write_json(os.path.join(work, "hq-path.json"), {"of": [name, prepend], "path": lines[-1]})
    return lines[-1]


def hello(request: Json) -> Json:
    """What there is."""
    work = request["work"]
    make_folder(work)
    room = os.statvfs(work)
    answer: Json = {
        "python": "%d.%d.%d" % sys.version_info[:3],
        "executable": sys.executable,
        "host": runner.HOST,
        "address": socket.getfqdn(),
        "user": user(),
        "home": os.path.expanduser("~"),
        "work": os.path.realpath(work),
        "time": time.time(),
        "free_bytes": room.f_bavail * room.f_frsize,
        "free_files": room.f_favail,
        "cores": len(os.sched_getaffinity(0)),
        "sbatch": shutil.which("sbatch") or "",
    }
    probe = os.path.join(work, "probe-%d" % os.getpid())
    with open(probe, "wb") as file:
        file.write(bytes(1 << 16))
    os.unlink(probe)
    settings = request.get("settings") or {}
    if settings.get("dispatcher") == "hq":
        try:
            program = hq_program(settings, work)
            code, out, err = call([program, "--version"])
            answer["hq"], answer["hq_version"] = program, out.strip().split()[-1] if not code else err.strip()
        except Refused as problem:
            answer["hq_problem"] = str(problem)
    if settings.get("dispatcher") == "private-wheel":
        use_wheel()
        try:
            import hyperqueue

            answer["hq_version"] = str(hyperqueue.get_version())
        except Exception as problem:
            answer["hq_problem"] = "%s: %s" % (type(problem).__name__, problem)
    return answer


def do_advance(request: Json) -> Json:
    work = request["work"]
    said: List[str] = []
    for name in request["runs"]:
        said += advance(run_folder(work, name), work)
    return {"problems": sorted(set(said)), **workers(work)}


def run_folder(work: str, name: str) -> str:
    if not re.match(r"run-[A-Za-z0-9_-]+$", name):
        raise Refused("no run can be called %r" % name)
    return os.path.join(work, "spool", name)


def workers(work: str) -> Json:
    """Who is at work."""
    cores = count = 0
    folder = os.path.join(work, "hosts")
    for name in names_in(folder):
        path = os.path.join(folder, name)
        if not name.endswith(".part") and age_s(path) < runner.ALIVE_S:
            cores += int((read_json(path) or {}).get("cores", 0))
            count += 1
    folder = os.path.join(work, "broken")
    broken = [name for name in names_in(folder) if age_s(os.path.join(folder, name)) < runner.BROKEN_S]
    return {"cores": cores, "workers": count, "broken": broken}


def poll(request: Json) -> Json:
    """Wait for news of runs.

    seen: run → marks that the caller has dealt with. drop: run → chunks that it needs no more. open: run →
    chunks that it counts on. Returns marks: run → mark → [path of a pack in the run's folder, its size],
    where "<chunk>.end" names all packs that there are; and missing: run → those of open that nobody has here.
    """
    work = request["work"]
    runs = {name: run_folder(work, name) for name in request["runs"]}
    for name, marks in request.get("seen", {}).items():
        for word in marks:
            word = os.path.basename(word)
            chunk, _, what = word.rpartition(".")
            if what != "end":
                unlink(os.path.join(runs[name], chunk, "result-%s.zip" % what))
            unlink(os.path.join(runs[name], "done", word))
    for name, chunks in request.get("drop", {}).items():
        drop(runs[name], chunks)
    lacking = {name: missing(runs[name], chunks) for name, chunks in request.get("open", {}).items()}
    until = time.monotonic() + float(request.get("wait_s", 0))
    gather_s = float(request.get("gather_s", 0.2))
    said: Set[str] = set()
    check_at = 0.0
    gathered: Optional[float] = None
    open_: Set[Tuple[str, str]] = set()
    sent: List[str] = []
    refused: Optional[Refused] = None
    while True:
        now = time.monotonic()
        words = {(run, word) for run in runs.values() for word in names_in(os.path.join(run, "done"))}
        if words and gathered is None:
            gathered = now + gather_s
            open_ = {(run, chunk) for run in runs.values() for chunk in folders_of(run)}
        there = [
            name
            for run in runs.values()
            for name in names_in(os.path.join(run, "jobs"))
            if name.endswith(".json")
        ]
        if now >= check_at or not set(there) <= set(sent):
            # what was sent while we wait is handed over at once
            check_at, sent = now + CHECK_S, there
            for run in runs.values():
                try:
                    said.update(advance(run, work))
                except Refused as problem:
                    # What is finished can be fetched all the same.
                    refused = problem
        if deserted():
            break
        if gathered is not None:
            # nothing is waited for that cannot come
            ended = {
                (run, word.partition("+")[0].partition(".")[0])
                for run, word in words
                if word.endswith(".end")
            }
            if now >= gathered or ended.issuperset(open_):
                break
        elif refused or any(lacking.values()) or now >= until:
            break
        time.sleep(LOOK_S)
    found = {name: marks for name, run in runs.items() if (marks := marks_of(run))}
    for run in runs.values():
        said.update(undelivered(run))
    if refused is not None:
        if not found:
            raise refused
        said.add(str(refused))
    return {"marks": found, "missing": lacking, "problems": sorted(said), **workers(work)}


def undelivered(run: str) -> List[str]:
    """Why packs that should have been put into the store were not, if that was of late."""
    path = os.path.join(run, "undelivered")
    return [last_lines(path, 1)] if age_s(path) < runner.UNDELIVERED_S else []


def deserted() -> bool:
    """Whether nobody waits for our answer any more: the connection that has asked is gone."""
    watched = select.poll()
    watched.register(1, 0)
    return os.getppid() == 1 or any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))


def missing(run: str, chunks: List[str]) -> List[str]:
    """Of chunks that the caller counts on, those that nobody here has; that others are done is said again."""
    if not os.path.isdir(run):
        return chunks
    with Locked(os.path.join(run, "lock")):
        given = {chunk for job in open_jobs(run) for chunk in job.chunks}
        folders = folders_of(run)
    found = []
    for chunk in chunks:
        if chunk in given:
            continue
        if any(runner.all_done(os.path.join(run, twin)) for twin in folders.get(chunk, ())):
            runner.note(os.path.join(run, "done"), chunk + ".end")
        else:
            found.append(chunk)
    return found


def marks_of(run: str) -> Json:
    found: Json = {}
    words = names_in(os.path.join(run, "done"))
    folders = folders_of(run) if words else {}
    for word in words:
        chunk, _, what = word.rpartition(".")
        if what == "end":
            packs = []
            for name in folders.get(chunk.partition("+")[0], ()):
                packs += [
                    os.path.join(name, pack)
                    for pack in names_in(os.path.join(run, name))
                    if pack.startswith("result-") and pack.endswith(".zip")
                ]
            found[word] = [[pack, size_of(os.path.join(run, pack))] for pack in packs]
        else:
            pack = os.path.join(chunk, "result-%s.zip" % what)
            found[word] = [[pack, size_of(os.path.join(run, pack))]]
    return found


def size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def drop(run: str, chunks: Iterable[str]) -> None:
    """Remove chunks that are done with, and the folders beside them."""
    folders = folders_of(run)
    bases = set(chunks)
    for base in bases:
        for name in folders.get(base, ()):
            shutil.rmtree(os.path.join(run, name), ignore_errors=True)
    for word in names_in(os.path.join(run, "done")):
        if word.rpartition(".")[0].partition("+")[0] in bases:
            unlink(os.path.join(run, "done", word))


def cancel(request: Json) -> Json:
    """End tasks. chunks: run → chunk → ids (empty: all of the chunk).

    Returns missing: run → those of the chunks that are not here.
    """
    work = request["work"]
    lacking: Dict[str, List[str]] = {}
    for name, chunks in request["chunks"].items():
        run = run_folder(work, name)
        lacking[name] = missing(run, sorted(chunks))
        marked: Set[str] = set()
        while True:
            folders = folders_of(run)
            twins = [
                (twin, chunk) for chunk in chunks for twin in folders.get(chunk, ()) if twin not in marked
            ]
            if not twins:
                break
            # Whoever goes on beside a chunk meanwhile has copied the mark, or is seen by the next look.
            for twin, chunk in twins:
                marked.add(twin)
                try:
                    write_json(os.path.join(run, twin, "cancel"), sorted(chunks[chunk]))
                except FileNotFoundError:
                    continue  # it was removed
        for chunk, ids in chunks.items():
            for twin in folders.get(chunk, ()):
                settle(os.path.join(run, twin), "cancelled", "cancelled before it began", set(ids) or None)
        if os.path.isdir(run):
            advance(run, work)
    return {"missing": lacking}


def sweep(request: Json) -> Json:
    """Remove runs, whatever is in them; what still runs for them is ended first."""
    work = request["work"]
    for name in request["runs"]:
        run = run_folder(work, name)
        if not os.path.isdir(run):
            continue
        with Locked(os.path.join(run, "lock")):
            open_jobs(run)  # what was sent and not unpacked is ended too
        chunks = [chunk for chunk in names_in(run) if chunk.startswith("chunk-") and "+" not in chunk]
        alive = [chunk for chunk in chunks if not runner.all_done(os.path.join(run, chunk))]
        if alive:
            cancel({"work": work, "chunks": {name: {chunk: [] for chunk in alive}}})
        shutil.rmtree(run, ignore_errors=True)
    return {}


def server(request: Json) -> Json:
    """do: "start", "stop" or "look"."""
    work = request["work"]
    made = dispatcher_of(request["settings"], work)
    if not isinstance(made, HyperQueue):
        return {"server": None}
    if request["do"] == "start":
        return {"server": made.ensure_server()}
    uid = made.server_uid() if os.path.isdir(made.server) else None
    if request["do"] == "stop" and uid is not None:
        if isinstance(made, Hq):
            made.hq("server", "stop")
        else:
            known = read_json(os.path.join(made.server, "wheel.json"))
            runner.send([known["pid"]], signal.SIGTERM)
    return {"server": uid}


COMMANDS = {
    "hello": hello,
    "advance": do_advance,
    "poll": poll,
    "cancel": cancel,
    "sweep": sweep,
    "server": server,
}


def answer(name: str) -> int:
    os.umask(0o077)
    try:
        reply: Json = {"ok": COMMANDS[name](json.load(sys.stdin))}
    except Refused as problem:
        reply = {"refused": str(problem)}
    except runner.SpoolFailed as problem:
        reply = {"refused": "the spool cannot be written: %s" % problem, "errno": errno.ENOSPC}
    except OSError as problem:
        reply = {
            "refused": "%s: %s" % (problem.filename or "a file", problem.strerror),
            "errno": problem.errno,
        }
    sys.stdout.write("\n" + ANSWER + json.dumps(reply) + "\n")
    sys.stdout.flush()
    return 0


def main(arguments: List[str]) -> int:
    if len(arguments) == 1 and arguments[0] in COMMANDS:
        return answer(arguments[0])
    os.umask(0o077)
    if len(arguments) == 2 and arguments[0] == "worker":
        return Worker(os.path.abspath(arguments[1])).run()
    if len(arguments) == 2 and arguments[0] == "serve":
        return Service(os.path.abspath(arguments[1])).run()
    if len(arguments) == 3 and arguments[0] == "pool":
        return run_pool(arguments[1], int(arguments[2]))
    if len(arguments) == 2 and arguments[0] == "wheel-server":
        return wheel_server(arguments[1])
    if len(arguments) == 4 and arguments[0] == "wheel-worker":
        return wheel_worker(arguments[1], int(arguments[2]), arguments[3])
    sys.stderr.write(
        "usage: agent.py %s | worker FOLDER | serve FOLDER | pool WORK SLOTS\n" % " | ".join(COMMANDS)
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
