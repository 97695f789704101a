"""Pause, play and kill of what is running: a script with workflows and real programs on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grange.core import process_control, repair
from grange.core.kill import kill
from grange.core.profile import Profile
from grange.core.worker import WORKER_LOCK

# Two levels of workflows; each of three programs goes on until the file "go" is there.
SCRIPT = """
import sys
import grange as gr

home, go = sys.argv[1:]
wait = gr.ShellJob("sh -c 'until test -e {go}; do sleep 0.05; done; echo {number}'")

@gr.workflow
def inner(go: str, number: int) -> gr.Data:
    job = gr.submit(wait, go=go, number=number)
    return job.outputs.stdout

@gr.workflow
def outer(go: str) -> gr.Data:
    below = [gr.submit(inner, go=go, number=number) for number in range(2)]
    alone = gr.submit(wait, go=go, number=3)
    gr.wait([*below, alone])
    return below[0].outputs.result if below[0].is_finished_ok else None

with gr.open(home) as profile:
    node = gr.run_get_node(outer, go=go, profile=profile)
    print(node)
"""


@pytest.fixture
def running(tmp_path: Path, profile: Profile) -> Iterator[subprocess.Popen[str]]:
    """The script, in a process of its own, with all three programs under way."""
    with (profile.home / "profile.toml").open("a") as settings:
        settings.write("slots = 3\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    child = subprocess.Popen(
        [sys.executable, script, profile.home, tmp_path / "go"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: len(programs(tmp_path)) == 3 or child.poll() is not None)
        assert child.poll() is None, child.communicate()[1]
        yield child
    finally:
        (tmp_path / "go").touch()
        child.kill()
        child.communicate()


def until(condition: Callable[[], Any]) -> None:
    """Wait for it, for so long as a test may take."""
    while not condition():
        time.sleep(0.05)


def programs(folder: Path) -> list[int]:
    """The shells that wait for this test's file."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sh", b"-c"] and f"{folder}/go".encode() in words[2]:
                found.append(int(entry.name))
    return found


def states(profile: Profile, label: str | None = None) -> list[str]:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT state::text FROM process WHERE %(label)s::text IS NULL OR label = %(label)s"
            " ORDER BY node_id",
            {"label": label},
        )
        return [row[0] for row in cursor.fetchall()]


def ids(profile: Profile, label: str) -> list[int]:
    with profile.transaction() as cursor:
        cursor.execute("SELECT node_id FROM process WHERE label = %s ORDER BY node_id", (label,))
        return [row[0] for row in cursor.fetchall()]


def test_a_tree_that_runs_is_killed(profile: Profile, tmp_path: Path, running: subprocess.Popen[str]) -> None:
    assert kill(profile, ids=ids(profile, "outer")) == 6
    _, errors = running.communicate()
    assert states(profile) == ["killed"] * 6, errors
    assert programs(tmp_path) == []
    assert not (tmp_path / "go").exists()
    with profile.transaction() as cursor:
        assert repair.find_faults(cursor) == []


def test_one_branch_is_killed_and_the_rest_goes_on(
    profile: Profile, tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    (first, _) = ids(profile, "inner")
    assert kill(profile, ids=[first]) == 2
    until(lambda: len(programs(tmp_path)) == 2)
    (tmp_path / "go").touch()
    _, errors = running.communicate()
    assert states(profile, "inner") == ["killed", "finished"], errors
    assert states(profile, "outer") == ["finished"]
    assert sorted(states(profile)) == ["finished"] * 4 + ["killed"] * 2


def test_a_paused_workflow_makes_no_step_until_it_is_played(
    profile: Profile, tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    (outer,) = ids(profile, "outer")
    assert process_control.pause(profile, [outer], "let me see") == 1
    until(lambda: owner(profile, outer) is None)
    (tmp_path / "go").touch()
    until(lambda: states(profile, "inner") == ["finished"] * 2)
    assert states(profile, "outer") == ["waiting"]
    with profile.transaction() as cursor:
        cursor.execute("SELECT paused, exit_message FROM process WHERE node_id = %s", (outer,))
        assert cursor.fetchone() == (True, "let me see")
    running.kill()
    running.communicate()
    assert process_control.play(profile, [outer]) == 1
    done = subprocess.run(
        [sys.executable, "-m", "grange", "--home", profile.home, "process", "run", str(outer)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(states(profile)) == ["finished"] * 6


def test_a_script_goes_on_with_what_was_paused_and_is_played(
    profile: Profile, tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    whole = [*ids(profile, "outer"), *ids(profile, "inner")]
    assert process_control.pause(profile, whole[:1], tree=True) == 6
    until(lambda: all(owner(profile, process_id) is None for process_id in whole))
    (tmp_path / "go").touch()
    assert process_control.play(profile, whole[:1], tree=True) >= 3
    _, errors = running.communicate()
    assert sorted(states(profile)) == ["finished"] * 6, errors


def owner(profile: Profile, process_id: int) -> int | None:
    with profile.transaction() as cursor:
        cursor.execute("SELECT worker_id FROM process WHERE node_id = %s", (process_id,))
        return (cursor.fetchone() or (None,))[0]


def alive(profile: Profile) -> list[int]:
    """The workers that hold their locks; the server needs a moment to see that one is gone."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (WORKER_LOCK,),
        )
        return [row[0] for row in cursor.fetchall()]


def test_what_a_killed_script_left_is_killed_where_nobody_runs_it(
    profile: Profile, tmp_path: Path, running: subprocess.Popen[str]
) -> None:
    running.kill()
    running.communicate()
    until(lambda: not alive(profile))
    assert kill(profile, ids=ids(profile, "outer")) == 6
    assert states(profile) == ["killed"] * 6
    assert programs(tmp_path) == []
