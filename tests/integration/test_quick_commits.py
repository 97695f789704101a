"""Steps of workflows are committed without waiting for the disk; ends are not, and a crash loses nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import workflow_site as site

import grange as gr
from grange.core.hub import Hub
from grange.core.postgres import server_status, stop_server
from grange.core.profile import Profile, open_profile
from grange.core.submit import submit

# The server of the tests need not be careful; here it has to be.
_SPY = """
SET synchronous_commit = on;
CREATE TABLE spied (what text, label text, quick boolean);
CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO spied VALUES (TG_OP, NEW.label, current_setting('synchronous_commit') = 'off');
    RETURN NULL;
END $$;
CREATE TRIGGER spy AFTER INSERT OR UPDATE ON process FOR EACH ROW EXECUTE FUNCTION spy();
"""


def spied(profile: Profile) -> dict[tuple[str, str], set[bool]]:
    found: dict[tuple[str, str], set[bool]] = {}
    with profile.transaction() as cursor:
        cursor.execute("SELECT what, label, quick FROM spied")
        for what, label, quick in cursor.fetchall():
            found.setdefault((what, label), set()).add(quick)
    return found


def test_only_steps_behind_which_code_goes_on_are_quick(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute(_SPY)
    site.run(profile, site.collatz, start=6)
    assert spied(profile) == {
        ("INSERT", "collatz"): {False},
        ("INSERT", "halve"): {True},
        ("INSERT", "multiply"): {True},
        ("INSERT", "add"): {True},
        ("UPDATE", "collatz"): {False},  # its end
    }


def test_what_others_have_to_run_is_on_disk_first(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute(_SPY)
    site.run(profile, site.tree, depth=1, width=2)
    assert spied(profile)["INSERT", "tree"] == {False}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Profile]:
    home = tmp_path / "home"
    try:
        with open_profile(home) as profile:
            yield profile
    finally:
        stop_server(home / "postgres", force=True)


def crash(profile: Profile) -> None:
    pid = server_status(profile.home / "postgres").pid
    assert pid is not None
    os.kill(pid, signal.SIGQUIT)  # at once: nothing more is written


def test_when_the_server_crashes_the_workflow_goes_on_from_what_is_there(own_server: Profile) -> None:
    profile = own_server
    process_id = submit(site.collatz, start=27, most=200, profile=profile).id
    hub = Hub(profile)
    crashes = [40, 70]  # of 111 steps and more calls

    def stopping() -> bool:
        if crashes and hub.recorded >= crashes[0]:
            crashes.pop(0)
            crash(profile)
        return hub.recorded >= 100 and site.ended(profile, [process_id])

    hub.run(stopping)
    assert not crashes
    crashed = site.shape(profile, process_id)
    undisturbed = site.shape(profile, site.run(profile, site.collatz, start=27, most=200).id)
    assert crashed == undisturbed


def test_a_script_that_waits_for_a_calculation_waits_for_a_server_that_crashed(
    own_server: Profile, tmp_path: Path
) -> None:
    def wait_for(folder: str) -> int:
        place = Path(folder)
        with (place / "begun").open("a") as file:
            file.write(".")
        until = time.monotonic() + 60
        while not (place / "go").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return 3

    def disturb() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        crash(own_server)
        begun = (tmp_path / "begun").stat().st_size
        while (tmp_path / "begun").stat().st_size == begun:  # who ran it has lost its lock: it is run again
            time.sleep(0.01)
        (tmp_path / "go").touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    assert gr.run(wait_for, folder=str(tmp_path), profile=own_server, progress=False).value == 3
    thread.join()
