"""grange daemon, and grange profile lock, as people use them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from grange.cli.entry import run
from grange.core import daemon_log, profile_lock
from grange.core.daemon_client import DaemonClient
from grange.core.errors import DaemonNotRunningException
from grange.core.profile import Profile, open_profile
from grange.core.profile_lock import working

PATIENCE_S = 60.0


@pytest.fixture
def say(
    profile: Profile, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command: exit status, standard output, standard error. What daemon it leaves is ended."""

    def run_it(*words: object) -> tuple[int, str, str]:
        status = run(["--home", str(profile.home), *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    yield run_it
    with suppress(DaemonNotRunningException):
        DaemonClient(profile).stop_daemon()


Say = Callable[..., tuple[int, str, str]]


def test_a_day_of_a_daemon(profile: Profile, say: Say) -> None:
    status, text, _ = say("daemon", "status")
    assert status == 3
    assert "no daemon runs for" in text
    assert "grange daemon start" in text
    status, text, error = say("daemon", "start", 2)
    assert status == 0, error
    pid = DaemonClient(profile).get_daemon_pid()
    assert text.startswith(f"the daemon runs as process {pid}, with 2 workers; it logs to ")
    status, _, error = say("daemon", "start")
    assert status == 1
    assert f"runs already, as process {pid}" in error
    status, text, _ = say("daemon", "status")
    assert status == 0
    head, process, columns, *workers = text.splitlines()
    assert head.startswith(f"daemon of {profile.home} on ")
    assert process.startswith(f"  process {pid} since ")
    assert process.endswith(": 2 workers, 0 dispatchers")
    assert columns.split() == ["process", "what", "since", "memory", "at"]
    assert [line.split()[1] for line in workers] == ["worker", "worker"]
    assert all("MB" in line and line.endswith("0 workflows") for line in workers)
    assert say("daemon", "incr")[1] == "3 workers from now on\n"
    assert say("daemon", "decr", 9)[1] == "0 workers from now on\n"
    assert say("daemon", "restart", 1)[0] == 0
    found = json.loads(say("daemon", "status", "--json")[1])
    assert found["running"] is True
    assert found["locked"] is None
    (one,) = found["daemons"]
    assert one["daemon"]["pid"] == pid
    assert len(one["workers"]) == one["daemon"]["workers_wanted"] == 1
    assert "1 worker on" in say("status")[1]
    assert say("daemon", "stop")[1].startswith("the daemon on ")
    status, _, error = say("daemon", "stop")
    assert status == 1
    assert "`grange daemon start` starts it" in error


def test_logs_are_shown_and_followed(profile: Profile, say: Say) -> None:
    status, _, error = say("daemon", "logs")
    assert status == 1
    assert "no daemon has said anything here" in error
    assert say("daemon", "start", 1)[0] == 0
    _, text, _ = say("daemon", "logs")
    names = {line.split()[0] for line in text.splitlines()}
    assert names == {"daemon", "worker-1"}
    assert "worker 1 runs as process" in text
    assert len(say("daemon", "logs", "daemon", "-n", 1)[1].splitlines()) == 1
    status, _, error = say("daemon", "logs", "worker-9")
    assert status == 1
    assert "there are daemon, worker-1" in error
    command = [sys.executable, "-m", "grange", "--home", str(profile.home), "daemon", "logs"]
    with subprocess.Popen(
        [*command, "--follow", "--lines", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("daemon ")  # it looks from here on
        log = daemon_log.open_log(profile.home, "worker-77")
        with open(log, "w") as file:
            file.write("something new\n")
        while "something new" not in (line := process.stdout.readline()):
            assert line
        assert line.split()[0] == "worker-77"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_all_daemons_of_a_database_are_stopped(
    profile: Profile, say: Say, tmp_path: Path, database_url: str
) -> None:
    home = tmp_path / "another"
    home.mkdir()
    (home / "profile.toml").write_text(f'database = "{database_url}"\n')
    with open_profile(home) as opened:
        DaemonClient(opened).start_daemon(0)
    assert say("daemon", "start", 0)[0] == 0
    _, text, _ = say("daemon", "status")
    assert text.count("daemon of ") == 2
    status, text, _ = say("daemon", "stop", "--all")
    assert status == 0
    assert len(text.splitlines()) == 2
    assert DaemonClient(profile).get_statuses() == []


def test_asking_for_a_daemon_makes_no_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--home", str(tmp_path / "new"), "daemon", "status"]) == 3
    assert not (tmp_path / "new").exists()
    assert "no daemon runs" in capsys.readouterr().out


def test_locking_and_unlocking(profile: Profile, say: Say) -> None:
    assert say("profile", "unlock") == (0, "the profile was not locked\n", "")
    assert say("profile", "lock", "a new disk") == (0, "the profile is locked, and nobody works\n", "")
    status, _, error = say("profile", "lock")
    assert status == 1
    assert "a new disk" in error
    assert "grange profile unlock" in error
    status, _, error = say("daemon", "start")
    assert status == 1
    assert "a new disk" in error
    for words in (("profile", "show"), ("status",), ("daemon", "status")):
        assert "a new disk" in say(*words)[1], words
    found = json.loads(say("profile", "show", "--json")[1])
    assert found["locked"]["reason"] == "a new disk"
    status, text, _ = say("profile", "unlock")
    assert status == 0
    assert text.startswith("unlocked; it was locked by ")
    assert "a new disk" not in say("status")[1]


def test_locking_waits_for_who_works(profile: Profile, say: Say) -> None:
    with open_profile(profile.home) as other:
        other.worker_id  # noqa: B018 - is known as somebody
        with working(other):
            status, text, _ = say("profile", "lock", "first")
            assert status == 0
            assert text.startswith("the profile is locked; still at work: process ")
            say("profile", "unlock")
            status, text, error = say("profile", "lock", "second", "--wait", "--timeout", "1s")
            assert status == 1
            assert "still at work: process " in text
            assert "waiting for process " in error
            with profile.transaction() as cursor:
                assert profile_lock.find(cursor) is not None  # it stays
            say("profile", "unlock")
        ends = threading.Event()

        def work() -> None:
            with working(other):
                begun.set()
                ends.wait(PATIENCE_S)

        begun = threading.Event()
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait(PATIENCE_S)
        threading.Timer(0.2, ends.set).start()
        status, text, error = say("profile", "lock", "third", "--wait")
        assert status == 0
        assert text == "the profile is locked, and nobody works\n"
        assert "waiting for process " in error
        thread.join()


def test_help_loads_nothing_of_the_daemon() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "grange", "daemon", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "grange daemon start 2" in done.stdout
    assert "psycopg2" not in done.stderr
