"""Logs of a daemon: private, bounded, shown from the end and followed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from grange.core import daemon_log
from grange.core.daemon_log import Followed, LogLine


def write(home: Path, name: str, text: str) -> None:
    log = daemon_log.open_log(home, name)
    os.write(log, text.encode())
    os.close(log)


def test_they_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(tmp_path, "daemon", "one\n")
    finally:
        os.umask(before)
    path = daemon_log.log_path(tmp_path, "daemon")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_a_link_in_the_place_of_a_log_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, "daemon", "one\n")
    target = tmp_path / "target"
    target.write_text("")
    daemon_log.log_path(tmp_path, "worker-1").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        daemon_log.open_log(tmp_path, "worker-1")


def test_the_last_lines_are_shown(tmp_path: Path) -> None:
    assert daemon_log.names(tmp_path) == []
    assert daemon_log.tail(tmp_path, "worker-1", 3) == []
    for name in ("worker-10", "worker-2", "daemon", "worker-1"):
        write(tmp_path, name, "".join(f"{name} {n}\n" for n in range(5000)))
    assert daemon_log.names(tmp_path) == ["daemon", "worker-1", "worker-2", "worker-10"]
    assert daemon_log.tail(tmp_path, "worker-2", 2) == ["worker-2 4998", "worker-2 4999"]
    assert daemon_log.tail(tmp_path, "worker-2", 0) == []


def test_what_comes_is_followed_in_whole_lines(tmp_path: Path) -> None:
    write(tmp_path, "daemon", "before\n")
    followed = Followed(tmp_path)
    assert followed.read() == []
    write(tmp_path, "daemon", "one\ntw")
    write(tmp_path, "worker-1", "ü\n")
    assert followed.read() == [LogLine("daemon", "one"), LogLine("worker-1", "ü")]
    write(tmp_path, "daemon", "o\n")
    write(tmp_path, "worker-1", "more\n")
    assert followed.read(["daemon", "gone"]) == [LogLine("daemon", "two")]


def test_a_long_log_is_begun_anew_under_the_hands_of_its_writer(tmp_path: Path) -> None:
    log = daemon_log.open_log(tmp_path, "daemon")
    os.write(log, b"x" * 100 + b"\n")
    followed = Followed(tmp_path)
    daemon_log.bound_logs(tmp_path, limit=100)
    path = daemon_log.log_path(tmp_path, "daemon")
    assert path.stat().st_size == 0
    old = path.with_name("daemon.log.1")
    assert old.read_bytes() == b"x" * 100 + b"\n"
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    os.write(log, b"y\n")
    assert path.read_text() == "y\n"  # where it ends now, not where it ended
    assert followed.read() == [LogLine("daemon", "y")]
    os.write(log, b"z" * 100)
    daemon_log.bound_logs(tmp_path, limit=100)
    assert old.read_bytes() == b"y\n" + b"z" * 100
    os.close(log)
    assert daemon_log.names(tmp_path) == ["daemon"]
