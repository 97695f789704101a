"""A daemon with a database of its own, under workflows, and the ways in which its parts are killed.

Everything is real: `grange daemon start`, an embedded PostgreSQL whose folder is a file system of its own, so
that its disk can be full. Processes are found by what they run and for which home, never by name alone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import workflow_faults_site as site

from grange.core.daemon_client import DaemonClient
from grange.core.database import transaction
from grange.core.errors import DatabaseUnavailable
from grange.core.postgres import stop_server
from grange.core.profile import Profile, open_profile
from grange.core.repair import find_faults
from grange.core.worker import free_dead

TESTS = str(Path(__file__).parent)
WORKERS = 2
#: Seconds that anything may take that is waited for.
PATIENCE_S = 90.0
#: Bytes of the file system of PostgreSQL; it takes from memory what is in use.
ROOM = 3 << 30
#: Seconds in which a part that chance has chosen has to be found at work.
MOMENT_S = 0.5
#: Seconds after which there is more to do for a part that has to be hit at work.
MORE_S = 3.0
#: The kinds of faults that chance chooses from, once each has been done.
OFTEN = ("worker", "worker", "dispatcher", "runner", "client", "connections", "supervisor", "postgres")


class FullDisk:
    """The disk of PostgreSQL, which can be full.

    Its folder is a file system in memory, where we may mount one; it is full when it is made as small as what
    it holds. Where we may not, the database itself refuses to record processes with the error of a full disk.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "tmpfs", folder]
        self._mounted = (
            os.environ.get("GRANGE_TEST_DISK") != "simulated"
            and os.geteuid() == 0
            and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )

    @property
    def is_real(self) -> bool:
        """Whether the data lie on it: root without namespaces has them elsewhere."""
        return self._mounted and not (self._folder / "data").is_symlink()

    def fill(self, profile: Profile) -> None:
        if self.is_real:
            used = shutil.disk_usage(self._folder).used
            self._resize(used + 65536)
            return
        site.ask(
            profile,
            """
            CREATE OR REPLACE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'could not extend file: No space left' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON process
            FOR EACH STATEMENT EXECUTE FUNCTION disk_is_full();
            SELECT 1
            """,
        )

    def free(self, profile: Profile) -> None:
        if self.is_real:
            self._resize(ROOM)
            return
        site.ask(profile, "DROP TRIGGER full_disk ON process; SELECT 1")

    def _resize(self, size: int) -> None:
        # What is written meanwhile makes it larger than what it is to be: again, until it is in time.
        for _ in range(50):
            command = ["mount", "-o", f"remount,size={size}", self._folder]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return
            size = max(size, shutil.disk_usage(self._folder).used + 65536)
        raise AssertionError("the file system cannot be resized")

    def close(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "-l", self._folder], check=True)


class FaultyEngine:
    """One home with a daemon, a client that submits `count` roots, and everything that happens to them."""

    def __init__(self, home: Path, count: int, seed: int, *, hyperqueue: bool, at_once: int = 60) -> None:
        self.home = home
        self.count = count
        self.luck = random.Random(seed)
        self.hyperqueue = hyperqueue
        #: how many roots scripts have run beside those of the client
        self.scripts = 0
        self.done: Counter[str] = Counter()
        self.diary: list[str] = []
        self._at_once = at_once
        self._began = time.monotonic()
        self._client: subprocess.Popen[bytes] | None = None
        self._released = 0
        home.mkdir()
        self.disk = FullDisk(home / "postgres")
        (home / "profile.toml").write_text("idle_s = 60\n[daemon]\ngrace_s = 10\n")
        self._profile: Profile | None = None

    def begin(self) -> None:
        """Make the database, start the daemon, and have the client wait for what is released."""
        self._profile = open_profile(self.home)
        self.start_daemon()
        self.release(0)
        self.see_to_client()

    @property
    def profile(self) -> Profile:
        """The profile, by a connection of the test's own."""
        assert self._profile is not None
        return self._profile

    # -- its parts

    def start_daemon(self) -> None:
        """Start the daemon by its command; one that was killed may need a moment until its lock is free."""
        deadline = time.monotonic() + PATIENCE_S
        command = [sys.executable, "-m", "grange", "--home", str(self.home), "daemon", "start", str(WORKERS)]
        while True:
            told = subprocess.run([*command, "--no-wait"], capture_output=True, text=True, check=False)
            if told.returncode == 0:
                return
            assert time.monotonic() < deadline, told.stderr
            time.sleep(0.1)

    def pids(self, part: str) -> list[int]:
        """The processes of this home that are a part: supervisor, worker, dispatcher, runner, hyperqueue."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _part_of(entry, str(self.home)) == part:
                found.append(int(entry.name))
        return sorted(found)

    def see_to_client(self) -> None:
        """Submit again, where the client is gone and has not submitted everything."""
        if self._client is None or self._client.poll() not in (None, 0):
            self._client = self._start(
                "submit_all", str(self.home), self.count, self._at_once, self.hyperqueue
            )

    def _start(self, function: str, *given: object) -> subprocess.Popen[bytes]:
        """A process with a function of workflow_faults_site.py."""
        environment = {**os.environ, "GRANGE_HOME": str(self.home)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
        with open(self.home / "client.log", "ab") as log:
            arguments = [sys.executable, *site.arguments(function, *given)]
            return subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)

    def release(self, number: int) -> None:
        """Let the client submit so many roots, of all."""
        self._released = max(self._released, min(number, self.count))
        place = self.home / site.RELEASED
        new = place.with_suffix(".new")
        new.write_text(str(self._released))
        new.rename(place)

    # -- how far it is

    def ask(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        return site.ask(self.profile, statement, *values, patience_s=PATIENCE_S)

    def until(self, happened: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        more_s = time.monotonic() + MORE_S
        while not happened():
            self.see_to_client()
            if time.monotonic() > more_s:
                more_s += MORE_S
                if not self.count_of("workflow AND state IN ('created', 'waiting', 'running')"):
                    self.release(self._released + 8)  # what there was is done, and nobody was hit
            assert time.monotonic() < deadline, f"{what}: {self.told()}"
            time.sleep(0.01)

    def count_of(self, condition: str) -> int:
        return int(str(self.ask(f"SELECT count(*) FROM process WHERE {condition}")[0][0]))

    def owner(self, role: str) -> int | None:
        """The process of a worker or dispatcher that has something under way now."""
        rows = self.ask(
            """
            SELECT w.pid FROM worker w WHERE w.role = %s AND w.ended_at IS NULL AND EXISTS (
                SELECT FROM process p WHERE p.worker_id = w.id AND p.workflow = (w.role = 'worker')
                AND p.state IN ('created', 'waiting', 'running'))
            """,
            role,
        )
        alive = set(self.pids(role))
        return next((int(str(pid)) for (pid,) in rows if pid in alive), None)

    def told(self) -> str:
        """What there is to know about one that does not do as it should."""
        states = self.ask("SELECT state::text, workflow, paused, count(*) FROM process GROUP BY 1, 2, 3")
        open_ = self.ask(
            "SELECT node_id, label, state::text, attempt, worker_id, ready, paused, open_children, wake_at,"
            " awaits, cached_from, queue_id, exit_message FROM process"
            " WHERE state IN ('created', 'waiting', 'running') ORDER BY node_id LIMIT 12"
        )
        logs = [path for path in (self.home / "daemon").rglob("*") if path.is_file()]
        logs += [self.home / "client.log"]
        tails = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs if path.exists()]
        running = {part: self.pids(part) for part in _PARTS}
        return "\n".join([*self.diary, f"{states}\n{running}", *map(str, open_), *tails])

    def told_of_work(self) -> str:
        """How much was done, and how much of it again."""
        ((workflows, calculations, again, owners),) = self.ask(
            "SELECT count(*) FILTER (WHERE workflow), count(*) FILTER (WHERE NOT workflow),"
            " sum(greatest(attempt - 1, 0)) FILTER (WHERE queue_id IS NOT NULL),"
            " (SELECT count(*) FROM worker) FROM process"
        )
        disk = "a real disk" if self.disk.is_real else "a simulated disk"
        return (
            f"{workflows} workflows, {calculations} calculations, {again} begun again;"
            f" {owners} workers and dispatchers one after the other; {disk}"
        )

    # -- faults

    def strike(self, kind: str, *, certain: bool = False) -> None:
        """Do one kind of fault; certain: release work for it, and wait until it hits somebody at work."""
        if certain:
            self.release(self._released + max(8, self.count // 16))
        if getattr(self, f"_strike_{kind}")(certain):
            self.done[kind] += 1
            self.diary.append(f"{time.monotonic() - self._began:6.1f} s: {kind}")

    def _kill(self, pid: int | None) -> bool:
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def _kill_when(self, find: Callable[[], int | None], certain: bool, what: str) -> bool:
        if not certain:
            until = time.monotonic() + MOMENT_S
            while not (struck := self._kill(find())) and time.monotonic() < until:
                time.sleep(0.005)
            return struck
        self.until(lambda: self._kill(find()), f"{what} is never at work")
        return True

    def _strike_worker(self, certain: bool) -> bool:
        return self._kill_when(lambda: self.owner("worker"), certain, "a worker")

    def _strike_dispatcher(self, certain: bool) -> bool:
        return self._kill_when(lambda: self.owner("dispatcher"), certain, "a dispatcher")

    def _strike_runner(self, certain: bool) -> bool:
        def find() -> int | None:
            # Of a Python function that is killed nobody knows whether it was the cause: it fails. A command
            # that has lost its runner is begun again.
            pids = [pid for pid in self.pids("runner") if _is_lean(pid) and _children(pid)]
            return self.luck.choice(pids) if pids else None

        return self._kill_when(find, certain, "a runner")

    def _strike_hyperqueue(self, certain: bool) -> bool:
        def find() -> int | None:
            pids = self.pids("hyperqueue")
            waiting = pids and self.ask(
                'SELECT FROM process p JOIN "group" g ON g.id = p.queue_id'
                " WHERE g.label LIKE 'hyperqueue@%' AND p.state = 'waiting' LIMIT 1"
            )
            return pids[0] if waiting else None

        if certain:
            self.release(self._released + 4 * site.HYPERQUEUE_EACH)
        return self._kill_when(find, certain, "HyperQueue")

    def _strike_supervisor(self, certain: bool) -> bool:
        def find() -> int | None:
            pids = self.pids("supervisor") if self.owner("worker") else []
            return pids[0] if pids else None

        struck = self._kill_when(find, certain, "the supervisor")
        if struck:
            self.start_daemon()
        return struck

    def _strike_client(self, certain: bool) -> bool:
        def find() -> int | None:
            if self._client is None or self._client.poll() is not None:
                return None
            recorded = self.count_of("workflow AND parent_id IS NULL")
            return self._client.pid if before < recorded < self._released else None

        before = self.count_of("workflow AND parent_id IS NULL")
        if not certain:
            before = -1
        if not self._kill_when(find, certain, "the client"):
            return False
        assert self._client is not None
        self._client.wait()
        self.see_to_client()
        return True

    def _strike_script(self, certain: bool) -> bool:
        """A script runs a root of its own, and is killed in the midst of that; the daemon goes on."""
        at_work = """
            SELECT FROM process p JOIN worker w ON w.id = p.worker_id
            WHERE w.pid = %s AND p.parent_id IS NOT NULL AND p.state IN ('created', 'waiting', 'running')
            """
        struck = False
        while not struck:
            label = f"root-{self.count + self.scripts}"
            script = self._start("run_here_and_now", str(self.home), self.count + self.scripts)
            try:
                self.until(
                    lambda s=script: s.poll() is not None or self.ask(at_work, s.pid), "it never works"
                )
                struck = script.poll() is None
            finally:
                script.kill()
                script.wait()
            self.scripts += bool(self.ask("SELECT FROM node WHERE label = %s", label))
            assert struck or not certain or self.scripts < 20, "scripts are never at work"
        return True

    def _strike_connections(self, certain: bool) -> bool:
        if certain:
            self.until(lambda: self.owner("worker") and self.owner("dispatcher"), "nobody is at work")
        self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return True

    def _strike_postgres(self, certain: bool) -> bool:
        if certain:
            self.until(lambda: self.owner("worker") and self.owner("dispatcher"), "nobody is at work")
        with suppress(OSError, ValueError):
            pid = int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
            return self._kill(pid)
        return False

    def _strike_disk(self, certain: bool) -> bool:
        """The disk is full until nothing goes on any more; then there is room again."""
        self.until(lambda: self.owner("worker") and self.owner("dispatcher"), "nobody is at work")
        self.disk.fill(self.profile)
        try:
            self.until(self._nothing_goes_on, "it goes on with a full disk")
        finally:
            self.disk.free(self.profile)
        return True

    def _nothing_goes_on(self) -> bool:
        """Whether the database cannot take anything more in, and nothing has been recorded for a while."""
        try:
            before = self._newest_event()
            time.sleep(0.4)
            if self._newest_event() != before:
                return False
            with transaction(self.profile.connection) as cursor:
                cursor.execute(
                    "INSERT INTO log (node_id, loggername, levelname, message)"
                    " SELECT (SELECT min(id) FROM node), 'disk', 'INFO', string_agg(md5(random()::text), '')"
                    " FROM generate_series(1, 10000)"
                )
                cursor.execute("UPDATE process SET label = label WHERE node_id = (SELECT min(id) FROM node)")
                cursor.connection.rollback()
        except DatabaseUnavailable:
            return True
        return False

    def _newest_event(self) -> int:
        with self.profile.transaction() as cursor:
            cursor.execute("SELECT coalesce(max(id), 0) FROM event")
            return int((cursor.fetchone() or (0,))[0])

    # -- the end

    def run_out(self, pause_s: tuple[float, float], most: int) -> None:
        """Let chance strike until everything has been submitted and has ended."""
        self.release(self.count)
        struck = 0
        next_s = time.monotonic() + self.luck.uniform(*pause_s)
        kinds = [*OFTEN, *(["hyperqueue"] if self.hyperqueue else [])]
        stalled_s = time.monotonic() + PATIENCE_S
        newest = 0
        while not self._is_over():
            self.see_to_client()
            if struck < most and time.monotonic() >= next_s:
                self.strike(self.luck.choice(kinds))
                struck += 1
                next_s = time.monotonic() + self.luck.uniform(*pause_s)
            with suppress(DatabaseUnavailable):
                if (now := self._newest_event()) != newest:
                    newest, stalled_s = now, time.monotonic() + PATIENCE_S
            assert time.monotonic() < stalled_s, f"nothing goes on any more: {self.told()}"
            time.sleep(0.1)

    def _is_over(self) -> bool:
        assert self._client is not None
        return self._client.poll() == 0 and self.count_of("state IN ('created', 'waiting', 'running')") == 0

    def check_left_overs(self) -> None:
        """Stop the daemon: no process, no lock, no session, no worker or daemon that is thought to live."""
        DaemonClient(self.profile).stop_daemon(timeout=PATIENCE_S)
        self.until(lambda: not any(self.pids(part) for part in _PARTS), "processes are left")
        free_dead(self.profile)
        assert self.ask("SELECT id, role, pid FROM worker WHERE ended_at IS NULL") == []
        assert self.ask("SELECT id, pid FROM daemon WHERE stopped_at IS NULL") == []
        self.until(lambda: self.ask(_OTHERS) == [], "sessions are left")
        locks = "SELECT locktype, classid, objid, pid FROM pg_locks WHERE locktype = 'advisory' AND pid <> %s"
        assert self.ask(locks, self.profile.connection.info.backend_pid) == []
        with self.profile.transaction() as cursor:
            assert find_faults(cursor) == []
        assert "deadlock" not in (self.home / "postgres" / "server.log").read_text(errors="replace")
        spooled = [path for path in self.profile.spool.rglob("*") if path.is_file()]
        assert spooled == []

    def close(self) -> None:
        """End whatever there is of it."""
        if self._client is not None and self._client.poll() is None:
            self._client.kill()
            self._client.wait()
        for part in ("supervisor", *_PARTS):
            for pid in self.pids(part):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._profile is not None:
            self._profile.close()
        stop_server(self.home / "postgres", force=True)
        self.disk.close()


_OTHERS = (
    "SELECT pid, state, query FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_PARTS = ("supervisor", "worker", "dispatcher", "runner", "hyperqueue")
_MODULES = {
    "grange.core.daemon": "supervisor",
    "grange.core.work": "worker",
    "grange.core.dispatch": "dispatcher",
}


def _is_lean(pid: int) -> bool:
    """Whether a runner is one for commands."""
    try:
        return b"-I" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _part_of(entry: Path, home: str) -> str:
    """What a process is of the daemon of a home; "" if it is nothing of that."""
    try:
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if home in words:
            return next((_MODULES[word] for word in words if word in _MODULES), "")
        if any("hyperqueue_host" in word for word in words):
            return "hyperqueue" if any(word.startswith(home) for word in words) else ""
        if "serve" in words or any("runner" in word for word in words):
            return "runner" if str((entry / "cwd").readlink()).startswith(home) else ""
    except OSError:
        pass
    return ""
