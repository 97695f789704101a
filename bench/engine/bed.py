"""What the bench of the engine runs on: one PostgreSQL; for each measure a database, a home, workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from psycopg2.extensions import parse_dsn

from grange.core import database
from grange.core.postgres import Server, server_status, stop_server
from grange.core.profile import Profile, open_profile
from grange.core.queues import Queues

_TICKS = os.sysconf("SC_CLK_TCK")
#: Seconds for workers to begin.
BEGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Place:
    """A database of its own with its home, open here as `profile`."""

    profile: Profile
    log: Path

    @property
    def home(self) -> Path:
        return self.profile.home

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a query gives."""
        with self.profile.transaction() as cursor:
            cursor.execute(statement, values)
            return list(cursor.fetchall())

    def server_cpu_s(self) -> float:
        """Seconds of CPU that the server has used, with all its processes."""
        root = server_status(self.log.parent).pid or 0
        children = [int(name) for name in os.listdir("/proc") if name.isdigit() and _of(int(name))[0] == root]
        return cpu_s([root, *children]) + _of(root)[2]

    def count_processes(self) -> int:
        """How many processes are recorded."""
        return int(self.rows("SELECT count(*) FROM process")[0][0])

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[list[int]]:
        """So many workers, each a process as a daemon starts them; their pids, once all are there."""
        with self._running("grange.core.work", count, "worker") as pids:
            yield pids

    @contextlib.contextmanager
    def dispatcher(self) -> Iterator[list[int]]:
        """A dispatcher of the queue of this machine, as a daemon starts it."""
        queue = str(Queues(self.profile).id_of("local"))
        with self._running("grange.core.dispatch", 1, "dispatcher", queue) as pids:
            yield pids

    @contextlib.contextmanager
    def _running(self, module: str, count: int, role: str, *arguments: str) -> Iterator[list[int]]:
        reading, writing = os.pipe()
        command = [sys.executable, "-P", "-m", module, str(self.home), *arguments, "--lifeline", str(reading)]
        with (self.home / f"{role}.log").open("a") as log:
            started = [
                subprocess.Popen(command, pass_fds=(reading,), stdout=log, stderr=log) for _ in range(count)
            ]
        os.close(reading)
        try:
            self._wait_until_there([one.pid for one in started])
            yield [one.pid for one in started]
            if wrong := [one.returncode for one in started if one.poll() not in (None, 0)]:
                raise SystemExit(f"{module} ended with status {wrong[0]}:\n{self._said(role)}")
        finally:
            os.close(writing)
            for one in started:
                one.wait()

    def _wait_until_there(self, pids: list[int]) -> None:
        until = time.monotonic() + BEGIN_S
        while self.rows("SELECT count(*) FROM worker WHERE pid = ANY(%s) AND ended_at IS NULL", pids) != [
            (len(pids),)
        ]:
            if time.monotonic() > until:
                raise SystemExit(f"workers did not begin within {BEGIN_S:g} s")
            time.sleep(0.02)
        time.sleep(0.3)  # they are registered; now they look around

    def _said(self, role: str) -> str:
        return (self.home / f"{role}.log").read_text()[-3000:]

    def count_statements(self, since: int) -> int:
        """Statements that all connections have sent since the log had this size; the place is `counted`.

        Everything counts: BEGIN and COMMIT, what workers ask while they have nothing to do, and each
        statement of several in one message.
        """
        with self.log.open("rb") as log:
            log.seek(since)
            said = log.read().decode(errors="replace")
        messages = said.split("LOG:  statement: ")[1:]
        return sum(1 + message.split("LOG:  ")[0].rstrip("; \n").count(";\n") for message in messages)


class Bed:
    """One server for all measures; each has a database that is a copy of an empty one."""

    def __init__(self, home: Path, server: Server) -> None:
        self._home = home
        self._server = server
        self._made = 0

    @contextlib.contextmanager
    def place(self, *, counted: bool = False) -> Iterator[Place]:
        """A fresh database. counted: every statement is written to the server's log."""
        self._made += 1
        name = f"bench_{self._made}"
        home = self._home / name
        home.mkdir(mode=0o700)
        administrator = database.connect(self._server.dsn("template1"))
        administrator.autocommit = True
        try:
            with administrator.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name} TEMPLATE grange STRATEGY file_copy")
                if counted:
                    cursor.execute(f"ALTER DATABASE {name} SET log_statement = 'all'")
                cursor.execute("CHECKPOINT")
                (home / "profile.toml").write_text(f'database = "{_url(self._server.dsn(name))}"\n')
                try:
                    with open_profile(home) as profile:
                        yield Place(profile, server_status(self._home / "postgres").log)
                finally:
                    cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
                    shutil.rmtree(home, ignore_errors=True)
        finally:
            administrator.close()


@contextlib.contextmanager
def open_bed() -> Iterator[Bed]:
    """The server, until the bench ends in whatever way."""
    home = Path(tempfile.mkdtemp(prefix="grange-engine-"))
    try:
        open_profile(home).close()
        with Server(home / "postgres") as server:
            yield Bed(home, server)
    finally:
        stop_server(home / "postgres", force=True)
        shutil.rmtree(home, ignore_errors=True)


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU that these processes have used, without their children."""
    return sum(_of(pid)[1] for pid in pids)


def _of(pid: int) -> tuple[int, float, float]:
    """Parent; seconds of CPU, own and of children that are gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0.0, 0.0
    own, system, gone, gone_system = (int(field) / _TICKS for field in fields[11:15])
    return int(fields[1]), own + system, gone + gone_system


def _url(dsn: str) -> str:
    parts = parse_dsn(dsn)
    where = {name: parts[name] for name in ("host", "port", "passfile")}
    return f"postgresql://{parts['user']}@/{parts['dbname']}?{urlencode(where)}"


def memory_mb(pid: int) -> float:
    """What a process holds. Units: mebibytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
