"""Repair: what nobody owns or what waits for nothing is found, and set right; what is well stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import workflow_site as site
from process_site import Listener, Tree, tree_of

import grange as gr
from grange.core import database, process_control, repair, workflow_rows
from grange.core.profile import Profile, open_profile

#: No worker has this id.
GONE = 999_999


@pytest.fixture
def tree(profile: Profile) -> Tree:
    """R calls A and b; A calls c and D; D calls e. S calls f. Workflows wait for what they called."""
    tree = tree_of(profile)
    tree.set("R A D S", "state = 'waiting'")
    return tree


@pytest.fixture
def listener(profile: Profile) -> Iterator[Listener]:
    listener = Listener(profile)
    yield listener
    listener.close()


def faults(profile: Profile) -> dict[str, list[int]]:
    with profile.transaction() as cursor:
        return {fault.what: list(fault.ids) for fault in repair.find_faults(cursor)}


def mended(profile: Profile) -> dict[str, list[int]]:
    done = {fault.what: list(fault.ids) for fault in repair.repair(profile)}
    assert faults(profile) == {}
    assert repair.repair(profile) == []
    return done


def test_what_is_well_is_left_alone(profile: Profile, tree: Tree) -> None:
    worker_id = profile.worker_id
    tree.set("A D", f"worker_id = {worker_id}, state = 'running'")
    tree.set("c", f"worker_id = {worker_id}, state = 'waiting', attempt = 1")
    process_control.pause(profile, tree.of("S f"))
    tree.end("e")
    before = tree.where("ready"), tree.where("worker_id IS NOT NULL"), tree.where("paused")
    assert before == ("D", "A c D", "S f")
    assert faults(profile) == {}
    assert repair.repair(profile) == []
    assert (tree.where("ready"), tree.where("worker_id IS NOT NULL"), tree.where("paused")) == before


def test_what_dead_workers_had_is_free(profile: Profile, tree: Tree, listener: Listener) -> None:
    tree.set("A", f"worker_id = {GONE}, state = 'running', attempt = 1")
    tree.set("c e", f"worker_id = {GONE}, state = 'waiting', attempt = 1")
    tree.set("f", f"worker_id = {profile.worker_id}, state = 'waiting', attempt = 1")
    what = "belong to a worker that is gone"
    assert faults(profile) == {what: tree.of("A c e")}
    assert tree.where("worker_id IS NOT NULL") == "A c e f"  # looking changes nothing
    assert mended(profile) == {what: tree.of("A c e")}
    assert tree.where("worker_id IS NOT NULL") == "f"
    assert listener.news() == {"ready", f"queue:{tree.queue_id}"}
    with profile.transaction() as cursor:
        assert workflow_rows.find_ready(cursor, 10) == tree.of("A")


def test_open_calls_are_counted_again(profile: Profile, tree: Tree, listener: Listener) -> None:
    tree.end("b")
    tree.set("R", "open_children = 2")  # as if that end had not been told
    tree.set("A", "open_children = 0")  # as if it had been told too often
    what = "workflows with a wrong count of open calls"
    assert mended(profile)[what] == tree.of("R A")
    assert tree.where("open_children = 1") == "R D S"
    assert tree.where("open_children = 2") == "A"
    assert tree.where("ready") == "R A"
    assert listener.news() == {"ready"}


def test_a_workflow_that_waits_for_nothing_is_looked_at(profile: Profile, tree: Tree) -> None:
    what = "workflows that wait for nothing"
    tree.end("e", "f", "b")
    tree.set("D", "ready = false")  # nothing is open
    tree.set("R", f"ready = false, awaits = {tree.ids['b']}")  # what it waits for has ended
    tree.set("S", "ready = false, paused = true")
    assert faults(profile) == {what: tree.of("R D")}
    assert mended(profile) == {what: tree.of("R D")}
    assert tree.where("ready") == "R D"
    process_control.play(profile, tree.of("S"))
    assert mended(profile) == {what: tree.of("S")}


def test_a_workflow_that_waits_for_one_call_among_others_is_well(profile: Profile, tree: Tree) -> None:
    """It was ready when another one ended, a worker saw that it waits on, and it is so no more."""
    tree.end("c")
    tree.set("A", f"ready = false, wake_at = 1, awaits = {tree.ids['D']}")
    assert faults(profile) == {}


def test_calls_of_killed_workflows_end(profile: Profile, tree: Tree) -> None:
    tree.set("A", "state = 'killed', finished_at = now()")
    tree.set("c", f"worker_id = {profile.worker_id}, attempt = 1, state = 'waiting'")
    tree.set("R", "open_children = 1")
    what = "calls of workflows that were killed"
    assert faults(profile) == {what: tree.of("c D")}
    done = repair.repair(profile)
    assert [(fault.what, list(fault.ids)) for fault in done] == [(what, tree.of("c D"))]
    assert tree.where("state = 'killed'") == "A D e"
    assert tree.where("to_kill AND state = 'waiting'") == "c"  # who has it ends it


def test_what_was_to_be_killed_and_has_no_owner_ends(profile: Profile, tree: Tree) -> None:
    tree.set("D", "to_kill = true")
    tree.set("e", f"worker_id = {profile.worker_id}, attempt = 1, state = 'waiting', to_kill = true")
    what = "were to be killed, and nobody has them"
    assert mended(profile) == {what: tree.of("D")}
    assert tree.where("state = 'killed'") == "D"
    assert tree.where("open_children = 1") == "A D S"  # A does not wait for D any more


def test_what_follows_nothing_is_run(profile: Profile, tree: Tree) -> None:
    tree.set("c", f"cached_from = {GONE}")
    tree.set("e", f"cached_from = {tree.ids['b']}")
    what = "wait for an equal process that is not there"
    assert mended(profile) == {what: tree.of("c")}
    assert tree.where("cached_from IS NOT NULL") == "e"


def test_a_calculation_in_no_queue_is_paused_and_says_why(profile: Profile, tree: Tree) -> None:
    tree.set("c", "queue_id = NULL")
    tree.set("e", f"queue_id = NULL, campaign_id = {tree.queue_id}")
    what = "calculations that wait in no queue"
    assert mended(profile) == {what: tree.of("c e")}
    assert tree.where("paused AND exit_message LIKE 'nobody can run it%'") == "c"
    assert tree.where("NOT paused AND queue_id IS NOT NULL") == "b e f"


def test_what_others_have_set_right_meanwhile_is_left_alone(profile: Profile, tree: Tree) -> None:
    """Repair sees a fault, waits for the row, and looks again."""
    tree.set("A", "open_children = 5")
    connection = profile.connect()
    done: list[repair.Fault] = []
    with database.transaction(connection) as cursor:
        cursor.execute("UPDATE process SET open_children = 2 WHERE node_id = %s", (tree.ids["A"],))
        with open_profile(profile.home) as own:
            mending = threading.Thread(target=lambda: done.extend(repair.repair(own)))
            mending.start()
            try:
                while not _somebody_waits(profile):
                    assert mending.is_alive()
            finally:
                connection.commit()
            mending.join()
    connection.close()
    assert done == []
    assert "A" not in tree.where("ready").split()


def _somebody_waits(profile: Profile) -> bool:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return (cursor.fetchone() or (0,))[0] > 0


def test_thousands_in_slices(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "SLICE", 7)
    tree = Tree(profile)
    tree.add({"R": [f"c{number}" for number in range(40)]})
    tree.set(" ".join(tree.ids), f"worker_id = {GONE}")
    (fault,) = repair.repair(profile)
    assert list(fault.ids) == list(tree.ids.values())
    assert tree.where("worker_id IS NOT NULL") == ""


def test_what_repair_has_set_right_goes_on_to_its_end(profile: Profile) -> None:
    process_id = gr.submit(site.tree, depth=2, width=2, profile=profile).id
    with site.another(profile) as own:
        hub = site.Hub(own)
        hub.step(0.0)
        hub.step(0.0)
        hub.let_go()
        with profile.transaction() as cursor:
            cursor.execute("UPDATE process SET ready = false, open_children = 77, wake_at = 0 WHERE workflow")
    assert [fault.what for fault in repair.repair(profile)] == ["workflows with a wrong count of open calls"]
    site.work(profile, [process_id])
    assert len(site.shape(profile, process_id)) > 5
    assert faults(profile) == {}


def test_while_workers_work_nothing_is_wrong_at_any_moment(profile: Profile) -> None:
    """Two workers with little room, so that workflows are let go of and claimed all the time."""
    ids = [
        gr.submit(site.tree, depth=3, width=3, profile=profile).id,
        gr.submit(site.first_of, count=6, profile=profile).id,
    ]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with open_profile(profile.home) as own:
                site.work(own, ids, live=4)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    looks = 0
    while any(worker.is_alive() for worker in workers):
        assert faults(profile) == {}
        looks += 1
    assert failed == []
    assert looks > 0
    assert faults(profile) == {}
