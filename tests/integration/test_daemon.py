"""The daemon: real supervisors, workers and PostgreSQL, stopped, killed and revived."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from grange.core import daemon_log, daemon_rows, profile_lock
from grange.core.daemon_client import DaemonClient
from grange.core.errors import (
    DaemonException,
    DaemonNotRunningException,
    DaemonTimeoutException,
    DatabaseUnavailable,
    ProfileLocked,
)
from grange.core.postgres import stop_server
from grange.core.profile import Profile, open_profile

#: Seconds after which something will not come any more.
PATIENCE_S = 60.0


def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"waited in vain until {what}"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def end(client: DaemonClient) -> None:
    """End a daemon and its processes in whatever state they are, by their ids."""
    pids = []
    with suppress(DaemonNotRunningException):
        status = client.get_status()
        pids = [part.pid for part in (*status.workers, *status.dispatchers)]
        with suppress(DaemonTimeoutException):
            client.stop_daemon(timeout=20)
        pids.append(status.daemon.pid)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def client(profile: Profile) -> Iterator[DaemonClient]:
    """The daemon of a profile of its own, not started; what does not end is killed after half a second."""
    with (profile.home / "profile.toml").open("a") as file:
        file.write("[daemon]\ngrace_s = 0.5\n")
    with open_profile(profile.home) as opened:
        client = DaemonClient(opened)
        yield client
        end(client)


def worker_pids(client: DaemonClient) -> list[int]:
    return [part.pid for part in client.get_status().workers]


def said(client: DaemonClient, text: str) -> bool:
    """Whether the supervisor has said something."""
    return any(text in line for line in daemon_log.tail(client.profile.home, "daemon", 50))


def locks(profile: Profile) -> int:
    """How many advisory locks other sessions of the database hold."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        (count,) = cursor.fetchone() or (0,)
    return int(count)


# ---------------------------------------------------------------- in order


def test_it_starts_changes_and_stops(client: DaemonClient, profile: Profile) -> None:
    assert not client.is_daemon_running
    assert client.get_daemon_pid() is None
    client.start_daemon(2)
    assert client.is_daemon_running
    status = client.get_status()
    pid = client.get_daemon_pid()
    assert pid is not None
    assert pid == status.daemon.pid
    assert lives(pid)
    assert os.getsid(pid) != os.getsid(0)  # a terminal that is closed does not end it
    assert [part.role for part in status.workers] == ["worker", "worker"]
    first = worker_pids(client)
    assert all(map(lives, first))
    assert client.increase_workers(1, wait=True) == 3
    assert len(worker_pids(client)) == 3
    assert client.decrease_workers(2, wait=True) == 1
    (left,) = worker_pids(client)
    assert left in first  # those that came last go first
    client.stop_daemon()
    assert not client.is_daemon_running
    until(lambda: not any(map(lives, [pid, *first])), "all processes have ended")
    with profile.transaction() as cursor:
        assert daemon_rows.find_alive(cursor) == []
        cursor.execute("SELECT count(*) FROM daemon WHERE stopped_at IS NULL")
        assert cursor.fetchone() == (0,)
    until(lambda: locks(profile) == 0, "no lock is left")
    client.start_daemon(0)  # again, without anybody
    assert client.get_status().workers == ()


def test_there_is_one_of_a_home_and_only_while_it_runs(client: DaemonClient) -> None:
    for call in (client.stop_daemon, client.restart, client.increase_workers, client.get_status):
        with pytest.raises(DaemonNotRunningException, match="no daemon runs for"):
            call()
    client.start_daemon(0)
    pid = client.get_daemon_pid()
    with pytest.raises(DaemonException, match=f"runs already, as process {pid}"):
        client.start_daemon(1)
    assert client.get_daemon_pid() == pid


def test_of_several_that_start_at_once_one_becomes_the_daemon(client: DaemonClient) -> None:
    command = [sys.executable, "-m", "grange", "--home", str(client.profile.home), "daemon", "start", "0"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    ended = [(process.communicate(timeout=PATIENCE_S), process.returncode) for process in processes]
    assert sorted(status for _, status in ended) == [0, 1, 1, 1]
    assert all("runs already" in stderr for (_, stderr), status in ended if status)
    with client.profile.transaction() as cursor:
        assert len(daemon_rows.find_alive(cursor)) == 1


def test_becoming_the_daemon_is_for_one(profile: Profile) -> None:
    """Two sessions that try it at the same moment, again and again: one of them it is, never both or none."""
    begin, done = threading.Barrier(2, timeout=PATIENCE_S), threading.Barrier(2, timeout=PATIENCE_S)
    became: list[list[int]] = [[], []]

    def try_it(number: int) -> None:
        with open_profile(profile.home) as own:
            for _ in range(40):
                begin.wait()
                id_ = 0
                with suppress(DaemonException):
                    id_ = daemon_rows.register(own.connection, "/a/home", 0)
                became[number].append(id_)
                done.wait()
                if id_:
                    with own.transaction() as cursor:
                        daemon_rows.note_stopped(cursor, id_)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bool(one) + bool(other) for one, other in zip(*became, strict=True)] == [1] * 40


def test_it_begins_anew_in_the_same_process(client: DaemonClient) -> None:
    client.start_daemon(1)
    before = client.get_status()
    client.restart_daemon()
    after = client.get_status()
    assert after.daemon.pid == before.daemon.pid
    assert after.daemon.id != before.daemon.id
    assert after.daemon.workers_wanted == 1
    assert {part.pid for part in after.workers}.isdisjoint(part.pid for part in before.workers)
    client.restart(2)
    assert len(worker_pids(client)) == 2


def test_who_wishes_for_its_end_while_it_begins_anew_is_heard(client: DaemonClient) -> None:
    """Whatever it is at when the wish comes: the worker cannot end yet, so that it surely still runs."""
    client.start_daemon(1)
    (stuck,) = worker_pids(client)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(stuck, signal.SIGSTOP)
    client.restart_daemon(wait=False)
    until(lambda: said(client, "asked to restart"), "it has heard the first wish")
    client.stop_daemon()
    until(lambda: not lives(pid), "it has ended")
    assert not client.is_daemon_running


def test_a_signal_while_it_begins_anew_ends_it(client: DaemonClient) -> None:
    client.start_daemon(1)
    (stuck,) = worker_pids(client)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(stuck, signal.SIGSTOP)
    client.restart_daemon(wait=False)
    until(lambda: said(client, "asked to restart"), "it has heard the first wish")
    os.kill(pid, signal.SIGTERM)
    until(lambda: not lives(pid), "it has ended")
    assert not client.is_daemon_running


def test_there_are_not_more_workers_than_the_database_has_room_for(client: DaemonClient) -> None:
    with pytest.raises(DaemonException, match=r"51 workers: expected 0 to 50.*max_connections"):
        client.start_daemon(51)
    with pytest.raises(DaemonException, match="-1 workers: expected 0 to 50"):
        client.start_daemon(-1)
    client.start_daemon(0)
    with pytest.raises(DaemonException, match="51 workers"):
        client.increase_workers(51)
    with pytest.raises(DaemonException, match="51 workers"):
        client.restart_daemon(51)
    assert client.get_status().daemon.workers_wanted == 0
    assert client.decrease_workers(3) == 0


def test_why_it_cannot_begin_is_told(client: DaemonClient) -> None:
    folder = daemon_log.log_folder(client.profile.home)
    folder.parent.mkdir()
    folder.write_text("a file in the place of a folder")
    with pytest.raises(OSError, match="exists"):
        client.start_daemon(1)
    folder.unlink()
    (client.profile.home / "profile.toml").write_text("nonsense")
    with pytest.raises(DaemonException, match=r"could not begin: .*profile.toml is not TOML"):
        client.start_daemon(1)
    assert not client.is_daemon_running


def test_two_homes_have_a_daemon_each_and_see_each_other(
    client: DaemonClient, tmp_path: Path, database_url: str
) -> None:
    home = tmp_path / "another"
    home.mkdir()
    (home / "profile.toml").write_text(f'database = "{database_url}"\n')
    with open_profile(home) as opened:
        other = DaemonClient(opened)
        try:
            client.start_daemon(1)
            other.start_daemon(2)
            statuses = client.get_statuses()
            assert [len(one.workers) for one in statuses] == [1, 2]
            assert [one.daemon.home for one in statuses] == [client.home, other.home]
            client.stop_daemon()
            assert other.is_daemon_running
            assert all(map(lives, worker_pids(other)))
            # as from another host
            DaemonClient(client.profile, home=other.home).stop_daemon()
            assert not other.is_daemon_running
        finally:
            end(other)


# ---------------------------------------------------------------- when something dies


def test_a_worker_that_was_killed_is_revived(client: DaemonClient) -> None:
    client.start_daemon(2)
    victim, spared = worker_pids(client)
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in worker_pids(client) and client.get_status().is_whole, "there are two again")
    assert spared in worker_pids(client)

    def is_noted() -> bool:
        with client.profile.transaction() as cursor:
            cursor.execute("SELECT count(*) FROM worker WHERE pid = %s AND ended_at IS NOT NULL", (victim,))
            return cursor.fetchone() == (1,)

    until(is_noted, "its end is noted")
    assert said(client, "was ended by SIGKILL")


def test_when_the_supervisor_is_killed_its_workers_end_and_another_may_begin(client: DaemonClient) -> None:
    client.start_daemon(2)
    workers = worker_pids(client)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: not client.is_daemon_running, "the lock is free")
    with pytest.raises(DaemonNotRunningException, match=f"the last one, process {pid}, was killed"):
        client.get_status()
    until(lambda: not any(map(lives, workers)), "its workers have ended by themselves")
    client.start_daemon(1)
    with client.profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM daemon WHERE stopped_at IS NULL")
        assert cursor.fetchone() == (1,)


def test_another_may_begin_at_once_after_a_kill(client: DaemonClient) -> None:
    """Nobody has to wait until the operating system and PostgreSQL are through with the last one."""
    for _ in range(5):
        client.start_daemon(0)
        pid = client.get_daemon_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    client.start_daemon(0)


def test_what_does_not_end_is_killed(client: DaemonClient) -> None:
    client.start_daemon(1)
    (stuck,) = worker_pids(client)
    os.kill(stuck, signal.SIGSTOP)
    client.stop_daemon()
    assert not lives(stuck)
    assert said(client, "worker 1 does not end by itself: killed")


def test_what_a_dead_supervisor_has_left_is_ended_by_the_next(client: DaemonClient) -> None:
    client.start_daemon(1)
    (stuck,) = worker_pids(client)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(stuck, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not client.is_daemon_running, "the lock is free")
    assert lives(stuck)
    client.start_daemon(1)
    until(lambda: not lives(stuck), "what was left is killed")
    assert client.get_status().is_whole


def test_it_ends_when_its_home_is_removed(client: DaemonClient) -> None:
    client.start_daemon(1)
    pid, workers = client.get_daemon_pid(), worker_pids(client)
    assert pid is not None
    client.profile.home.rename(client.profile.home.with_name("elsewhere"))
    until(lambda: not any(map(lives, [pid, *workers])), "nobody is left")
    assert not client.profile.home.exists()


def test_waiting_too_long_says_so(client: DaemonClient) -> None:
    client.start_daemon(1)
    pid = client.get_daemon_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(
            DaemonTimeoutException, match=rf"waited too long for .* \(process {pid}\).*daemon\.log"
        ):
            client.stop_daemon(timeout=0.1)
        client.stop_daemon(wait=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: not client.is_daemon_running, "it stops, late as it is")


def test_it_outlives_its_session(client: DaemonClient) -> None:
    """All sessions but ours are ended, as by a network that is away for a moment."""
    client.start_daemon(1)
    before = client.get_status()
    with client.profile.transaction() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert client.is_daemon_running  # it is given the time to come back
    until(lambda: client.get_status().is_whole, "its worker is back, too")
    after = client.get_status()
    assert after.daemon.id == before.daemon.id
    assert after.daemon.pid == before.daemon.pid


def test_it_outlives_a_crash_of_postgresql(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with open_profile(home) as profile:
        client = DaemonClient(profile)
        try:
            client.start_daemon(1)
            pid = client.get_daemon_pid()
            assert profile.server is not None
            status = int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
            os.kill(status, signal.SIGKILL)

            def is_back() -> bool:
                try:
                    return client.get_status().is_whole
                except (DatabaseUnavailable, DaemonNotRunningException):
                    return False

            until(lambda: not lives(status), "the server is gone")
            until(is_back, "server, supervisor and worker are back")
            assert client.get_daemon_pid() == pid
            client.stop_daemon()
        finally:
            end(client)
    assert stop_server(home / "postgres", force=True)


# ---------------------------------------------------------------- the lock of the profile


def test_a_locked_profile_has_nobody_at_work_until_it_is_unlocked(client: DaemonClient) -> None:
    profile = client.profile

    def at_work() -> int:
        with profile.transaction() as cursor:
            return len(profile_lock.at_work(cursor))

    client.start_daemon(2)
    until(lambda: at_work() == 2, "both are at work")
    with profile.transaction() as cursor:
        profile_lock.lock(cursor, "a new disk", "ada")
    assert profile_lock.wait_until_idle(profile, PATIENCE_S) == []
    until(lambda: client.get_status().is_whole, "they stand by")
    client.restart_daemon()  # also those that come now
    with profile.transaction() as cursor:
        assert profile_lock.at_work(cursor) == []
        profile_lock.unlock(cursor)
    until(lambda: at_work() == 2, "they go on by themselves")


def test_a_locked_profile_is_given_no_daemon(client: DaemonClient) -> None:
    with client.profile.transaction() as cursor:
        profile_lock.lock(cursor, "a new disk", "ada")
    with pytest.raises(ProfileLocked, match=r"by ada since .* a new disk"):
        client.start_daemon(1)
    assert not client.is_daemon_running


# ---------------------------------------------------------------- in the foreground


def test_in_the_foreground_it_tells_systemd_and_ends_by_a_signal(
    client: DaemonClient, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE_S)
        systemd.bind(str(tmp_path / "notify"))
        command = [sys.executable, "-m", "grange", "--home", str(client.profile.home)]
        with subprocess.Popen(
            [*command, "daemon", "start", "--foreground", "1"],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert systemd.recv(100) == b"READY=1"
            assert client.get_daemon_pid() == process.pid
            until(lambda: client.get_status().is_whole, "the worker is there")
            (worker,) = worker_pids(client)
            client.restart_daemon()
            assert systemd.recv(100).startswith(b"RELOADING=1")
            assert systemd.recv(100) == b"READY=1"
            assert client.get_daemon_pid() == process.pid
            assert not lives(worker)
            process.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"
            _, text = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0
    assert "worker 1 runs as process" in text
    assert "begins" in text  # the worker's own
    assert not client.is_daemon_running


def test_in_the_foreground_it_waits_for_its_database(
    tmp_path: Path, new_database: Callable[..., str]
) -> None:
    url = new_database()
    home = tmp_path / "home"
    home.mkdir()
    nowhere = tmp_path / "nowhere"
    (home / "profile.toml").write_text(f'database = "postgresql://grange@/x?host={nowhere}"\n')
    command = [sys.executable, "-m", "grange", "--home", str(home), "daemon", "start"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert refused.returncode == 1
    assert "the database cannot be reached" in refused.stderr
    with subprocess.Popen([*command, "--foreground", "1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "waiting for the database" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    assert url
