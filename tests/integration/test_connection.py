"""One connection to a computer for all processes of an installation: real processes, sshd and PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ssh_server import SshServer

from grange.core import connection as connections
from grange.core import database
from grange.core.connection import SharedConnection, connection_state, open_connection, resume
from grange.core.profile import Profile
from grange.farm import connection_client
from grange.farm.backoff import Backoff
from grange.farm.computer import Computer
from grange.farm.control_master import close_master, open_master
from grange.farm.errors import (
    AuthenticationRefused,
    CommandTimedOut,
    ComputerPaused,
    RemoteMissing,
    TransportFailed,
    TransportUnavailable,
)
from grange.farm.local_transport import LocalTransport

#: As the real one, but for people in a hurry.
QUICK = Backoff(interval_s=0.0, base_s=0.1, jitter=0.0, failures=4)

_USER = """\
import sys
from grange.core.connection import open_connection
from grange.core.profile import open_profile
from grange.farm.backoff import Backoff
from grange.farm.computer import Computer, SshSettings
from pathlib import Path
import time

computer, stop = eval(sys.argv[1]), Path(sys.argv[2])
with open_profile() as profile:
    way = open_connection(profile, computer, int(sys.argv[3]), patience_s=60)
    done = 0
    while done < 3 or not stop.exists():
        assert way.run(["echo", str(done)]).stdout == b"%d\\n" % done
        done += 1
        if done == 3:
            print("holds" if way.is_holder else "uses", flush=True)
        time.sleep(0.01)
    print(done, flush=True)
    way.close()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    server = SshServer(tmp_path / "sshd").start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def computer_id(profile: Profile) -> int:
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type)"
            " VALUES ('there', '127.0.0.1', 'core.slurm', 'core.ssh') RETURNING id"
        )
        return int((cursor.fetchone() or (0,))[0])


@contextlib.contextmanager
def users(
    count: int, profile: Profile, computer: Computer, computer_id: int, tmp_path: Path
) -> Iterator[tuple[list[subprocess.Popen[str]], Path]]:
    """Processes that use a computer until a file appears; each says first whether it holds the connection."""
    stop = tmp_path / "stop"
    command = [sys.executable, "-c", _USER, repr(computer), str(stop), str(computer_id)]
    started = [
        subprocess.Popen(
            command, env={**os.environ, "GRANGE_HOME": str(profile.home)}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    try:
        yield started, stop
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refusals(server: SshServer) -> int:
    """How many connections ended while they said who they are."""
    return len(re.findall(r"^Connection (closed|reset) by authenticating user", server.log(), re.MULTILINE))


def shared(
    profile: Profile,
    computer: Computer,
    computer_id: int,
    *,
    patience_s: float = 30.0,
    backoff: Backoff = QUICK,
) -> SharedConnection:
    way = open_connection(profile, computer, computer_id, patience_s=patience_s, backoff=backoff)
    assert isinstance(way, SharedConnection)
    return way


def state(profile: Profile, computer_id: int) -> connections.ConnectionState:
    with profile.transaction() as cursor:
        return connection_state(cursor, computer_id)


# ---------------------------------------------------------------- many processes


def test_eight_processes_use_one_connection(
    server: SshServer, profile: Profile, computer_id: int, tmp_path: Path
) -> None:
    with users(8, profile, server.computer(), computer_id, tmp_path) as (processes, stop):
        said = sorted(line(process) for process in processes)
        assert said == ["holds"] + ["uses"] * 7
        assert server.accepted() == 1
        now = state(profile, computer_id)
        assert now.pid in [process.pid for process in processes]
        (socket,) = (profile.home / "connections").iterdir()
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        stop.touch()
        assert all(int(line(process)) >= 3 for process in processes)
        assert [process.wait() for process in processes] == [0] * 8
    until(lambda: server.sessions() == [])
    assert state(profile, computer_id).host is None
    assert not os.path.lexists(profile.home / "connections")  # a link to a short folder: both are gone


def test_another_process_takes_over_when_the_holder_is_killed(
    server: SshServer, profile: Profile, computer_id: int, tmp_path: Path
) -> None:
    computer = server.computer(connection_interval_s=3.0)
    with users(4, profile, computer, computer_id, tmp_path) as (processes, stop):
        said = {process.pid: line(process) for process in processes}
        holder = state(profile, computer_id).pid
        assert holder is not None
        assert said[holder] == "holds"
        first = attempted_at(profile, computer_id)
        os.kill(holder, signal.SIGKILL)
        until(lambda: server.accepted() == 2)
        between = attempted_at(profile, computer_id) - first
        assert 3.0 <= between < 8.0
        until(lambda: state(profile, computer_id).pid not in (None, holder))
        time.sleep(0.5)  # the others go on by the new one
        assert server.accepted() == 2
        stop.touch()
        for process in processes:
            if process.pid != holder:
                assert int(line(process)) > 3
                assert process.wait() == 0


def attempted_at(profile: Profile, computer_id: int) -> float:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT coalesce(extract(epoch FROM attempted_at), 0)::float8"
            " FROM connection WHERE computer_id = %s",
            (computer_id,),
        )
        return float((cursor.fetchone() or (0.0,))[0])


def test_a_holder_that_was_stopped_is_named(
    server: SshServer,
    profile: Profile,
    computer_id: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_client, "SILENCE_S", 1.0)
    with users(1, profile, server.computer(), computer_id, tmp_path) as ((holder,), stop):
        assert line(holder) == "holds"
        way = shared(profile, server.computer(), computer_id, patience_s=0.5)
        assert way.run(["echo", "in"]).stdout == b"in\n"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(TransportUnavailable, match=f"process {holder.pid} on .*does not answer"):
            way.run(["true"])
        os.kill(holder.pid, signal.SIGCONT)
        assert way.run(["echo", "in"]).stdout == b"in\n"
        way.close()
        stop.touch()
        assert holder.wait() == 0
    assert server.accepted() == 1


def test_a_call_may_take_longer_than_a_holder_may_be_silent(
    server: SshServer,
    profile: Profile,
    computer_id: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_client, "SILENCE_S", 3.0)
    with (
        shared(profile, server.computer(), computer_id) as holder,
        shared(profile, server.computer(), computer_id, patience_s=0) as user,
    ):
        holder.home()
        assert user.run(["sh", "-c", "sleep 5; echo slept"]).stdout == b"slept\n"
        assert holder.is_holder
        assert not user.is_holder
        with pytest.raises(CommandTimedOut):
            user.run(["sleep", "20"], timeout_s=0.3)
        with pytest.raises(RemoteMissing):
            user.get([("/nowhere/at/all", profile.home / "x")])
        with pytest.raises(FileNotFoundError):
            user.put([(profile.home / "not here", "/tmp/x")])
    assert server.accepted() == 1


def test_a_holder_of_another_host_is_named(server: SshServer, profile: Profile, computer_id: int) -> None:
    session = profile.connect()
    with database.transaction(session) as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (connections.CONNECTION_LOCK, computer_id))
        cursor.execute(
            "INSERT INTO connection (computer_id, host, pid, socket) VALUES (%s, 'elsewhere', 4711, '/x')",
            (computer_id,),
        )
    with shared(profile, server.computer(), computer_id, patience_s=0.5) as way:
        began = time.monotonic()
        with pytest.raises(TransportUnavailable, match="process 4711 on elsewhere"):
            way.run(["true"])
        assert 0.3 < time.monotonic() - began < 3
        session.close()
        until(lambda: way.run(["echo", "in"]).stdout == b"in\n")


# ---------------------------------------------------------------- the lease


def terminate_holder_session(profile: Profile, computer_id: int) -> None:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND classid::bigint = %s AND objid::bigint = %s AND granted",
            (connections.CONNECTION_LOCK, computer_id),
        )
        assert cursor.fetchall() == [(True,)]


def is_leased(profile: Profile, computer_id: int) -> bool:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s"
            " AND objid::bigint = %s AND granted",
            (connections.CONNECTION_LOCK, computer_id),
        )
        return cursor.fetchone() is not None


def test_a_lease_that_was_lost_is_taken_again(server: SshServer, profile: Profile, computer_id: int) -> None:
    with shared(profile, server.computer(), computer_id) as way:
        way.home()
        terminate_holder_session(profile, computer_id)
        assert way.run(["echo", "in"]).stdout == b"in\n"
        until(lambda: is_leased(profile, computer_id))
        server.cut()
        assert way.run(["echo", "in"]).stdout == b"in\n"
    assert server.accepted() == 2
    assert not is_leased(profile, computer_id)


def test_who_lost_the_lease_to_another_gives_the_connection_up(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    other = profile.connect()
    with shared(profile, server.computer(), computer_id, patience_s=10) as way:
        way.home()
        terminate_holder_session(profile, computer_id)
        with database.transaction(other) as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (connections.CONNECTION_LOCK, computer_id))
        until(lambda: server.sessions() == [])
        assert not way.is_holder
        other.close()
        assert way.run(["echo", "in"]).stdout == b"in\n"
    assert server.accepted() == 2


def test_two_in_one_process(server: SshServer, profile: Profile, computer_id: int) -> None:
    with (
        shared(profile, server.computer(), computer_id) as one,
        shared(profile, server.computer(), computer_id) as two,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda way: way.run(["true"]), [one, two] * 8))
        assert one.is_holder != two.is_holder
        assert server.accepted() == 1
        holder, user = (one, two) if one.is_holder else (two, one)
        holder.close()
        assert user.run(["echo", "in"]).stdout == b"in\n"
        assert user.is_holder
        assert server.accepted() == 2
    until(lambda: server.sessions() == [])


def test_a_forked_child_may_not_use_it(server: SshServer, profile: Profile, computer_id: int) -> None:
    with shared(profile, server.computer(), computer_id) as way:
        way.home()
        child = os.fork()
        if child == 0:
            try:
                way.run(["true"])
            except TransportFailed as error:
                os._exit(7 if "forked" in str(error) else 8)
            finally:
                os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert way.run(["echo", "in"]).stdout == b"in\n"
    assert server.accepted() == 1
    with pytest.raises(TransportFailed, match="closed"):
        way.run(["true"])


def test_this_machine_needs_no_lease(profile: Profile, computer_id: int) -> None:
    way = open_connection(profile, Computer(label="here", transport="local"), computer_id)
    assert isinstance(way, LocalTransport)
    assert way.run(["echo", "in"]).stdout == b"in\n"
    assert not is_leased(profile, computer_id)


# ---------------------------------------------------------------- failures


def test_a_server_that_is_away_for_a_while_is_waited_for(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    backoff = Backoff(interval_s=0.2, base_s=0.5, failures=20)
    with shared(profile, server.computer(), computer_id, backoff=backoff) as way:
        way.home()
        server.stop()
        back = threading.Timer(3.0, server.start)
        back.start()
        began = time.monotonic()
        assert way.run(["echo", "in"]).stdout == b"in\n"
        assert time.monotonic() - began > 2.5
        back.join()
    now = state(profile, computer_id)
    assert (now.failures, now.last_error, now.paused) == (0, None, False)


def test_who_has_no_patience_is_told_at_once(server: SshServer, profile: Profile, computer_id: int) -> None:
    server.stop()
    backoff = Backoff(interval_s=0.0, base_s=60)
    with shared(profile, server.computer(), computer_id, patience_s=5, backoff=backoff) as way:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(TransportUnavailable, match=r"[Cc]onnection refused"):
                way.run(["true"])
            assert time.monotonic() - began < 2
    assert state(profile, computer_id).failures == 1  # one was tried


def test_a_computer_is_paused_after_some_failures(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    server.stop()
    with shared(profile, server.computer(), computer_id) as way:
        began = time.monotonic()
        with pytest.raises(ComputerPaused, match="grange computer resume there") as raised:
            way.run(["true"])
        assert 0.7 <= time.monotonic() - began < 10  # 0.1 + 0.2 + 0.4
        assert "refused" in str(raised.value)
        now = state(profile, computer_id)
        assert (now.failures, now.paused) == (QUICK.failures, True)
        assert "refused" in str(now.last_error)
        server.start()
        with shared(profile, server.computer(), computer_id) as another:
            for each in (way, another):
                with pytest.raises(ComputerPaused, match="refused"):
                    each.list(["/"])
        assert server.accepted() == 0
        with profile.transaction() as cursor:
            assert resume(cursor, computer_id)
        assert way.run(["echo", "in"]).stdout == b"in\n"
        with profile.transaction() as cursor:
            assert not resume(cursor, computer_id)
    assert state(profile, computer_id).failures == 0


def test_a_computer_that_does_not_let_us_in_is_paused_at_once(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    wrong = server.make_key("wrong")
    with shared(profile, server.computer(key_file=str(wrong)), computer_id) as way:
        with pytest.raises(AuthenticationRefused, match="wrong"):
            way.run(["true"])
        for _ in range(3):
            with pytest.raises(ComputerPaused, match="takes none of our keys"):
                way.run(["true"])
        until(lambda: refusals(server) > 0)
        assert refusals(server) == 1


def test_refusals_reach_those_who_do_not_hold_the_connection(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    server.known_hosts.write_text("")
    with shared(profile, server.computer(), computer_id) as one, ThreadPoolExecutor(2) as pool:
        with shared(profile, server.computer(), computer_id) as two:
            refused = [pool.submit(way.run, ["true"]).exception(20) for way in (one, two)]
            assert sorted(type(error).__name__ for error in refused) == ["ComputerPaused", "HostKeyRefused"]
            assert all("SHA256:" in str(error) for error in refused)


def test_the_database_is_away(server: SshServer, profile: Profile, computer_id: int) -> None:
    """What is connected goes on; what is not says why."""
    with shared(profile, server.computer(), computer_id) as way:
        way.home()
        with pytest.MonkeyPatch.context() as away:
            away.setattr(profile, "config", _elsewhere(profile))
            terminate_holder_session(profile, computer_id)
            time.sleep(2.5)  # it looks for its lease meanwhile
            assert way.run(["echo", "in"]).stdout == b"in\n"
            with shared(profile, server.computer(), computer_id, patience_s=0.1) as late:
                with pytest.raises(TransportUnavailable, match="database"):
                    late.run(["true"])
        until(lambda: is_leased(profile, computer_id))
    assert server.accepted() == 1


def _elsewhere(profile: Profile) -> object:
    import dataclasses

    return dataclasses.replace(profile.config, database="postgresql://nobody@127.0.0.1:1/none")


# ---------------------------------------------------------------- the control master


def test_a_master_that_a_person_opened_serves_one_holder_after_another(
    server: SshServer, profile: Profile, computer_id: int
) -> None:
    computer = server.computer(transport="openssh")
    folder = connections.master_folder(profile)
    assert open_master(computer, folder)
    try:
        for _ in range(2):
            with shared(profile, computer, computer_id) as one, shared(profile, computer, computer_id) as two:
                assert one.run(["echo", "in"]).stdout == two.run(["echo", "in"]).stdout == b"in\n"
                assert one.list(["/nowhere"]) == two.list(["/nowhere"]) == [None]
        assert server.accepted() == 1
        assert attempted_at(profile, computer_id) == 0.0  # nobody but the person connected
    finally:
        close_master(computer, folder)
    # Without it, keys have to do.
    with shared(profile, computer, computer_id) as one:
        assert one.run(["echo", "in"]).stdout == b"in\n"
    assert server.accepted() == 2
    assert attempted_at(profile, computer_id) > 0.0
