"""Pausing, playing, killing: one process, many, whole trees; and who is told."""

from __future__ import annotations

import random
import threading

import pytest
import workflow_site as site
from process_site import Listener, Tree, tree_of

import grange as gr
from grange.core import database, process_control, process_tree, steering, workflow_rows
from grange.core import process as rows
from grange.core.hub import Hub
from grange.core.profile import Profile, open_profile
from grange.core.worker import free_dead


def test_a_tree_is_all_that_was_called_below(profile: Profile) -> None:
    tree = tree_of(profile)
    with profile.transaction() as cursor:
        assert process_tree.tree_ids(cursor, tree.of("A S")) == tree.of("A c D e S f")
        assert process_tree.tree_ids(cursor, tree.of("A D")) == tree.of("A c D e")


def test_pausing_one_and_a_tree(profile: Profile) -> None:
    tree = tree_of(profile)
    assert process_control.pause(profile, tree.of("A"), "let me see") == 1
    assert tree.where("paused") == "A"
    assert tree.where("exit_message = 'let me see'") == "A"
    assert process_control.pause(profile, tree.of("A"), "again", tree=True) == 3
    assert tree.where("paused") == "A c D e"
    assert process_control.play(profile, tree.of("A")) == 1
    assert tree.where("paused") == "c D e"
    assert process_control.play(profile, tree.of("R"), tree=True) == 3
    assert tree.where("paused OR exit_message IS NOT NULL") == ""


def test_what_has_ended_is_neither_paused_nor_played_nor_killed(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.end("e", "D")
    assert process_control.pause(profile, tree.of("D e")) == 0
    assert process_control.play(profile, tree.of("D e")) == 0
    assert process_control.kill(profile, tree.of("D e")).asked == 0
    assert tree.where("state = 'finished'") == "D e"


def test_a_paused_workflow_is_not_claimed_until_it_is_played(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.set("R S", "ready = true")
    process_control.pause(profile, tree.of("R"))
    with profile.transaction() as cursor:
        assert workflow_rows.find_ready(cursor, 10) == tree.of("S")
    process_control.play(profile, tree.of("R"))
    with profile.transaction() as cursor:
        assert workflow_rows.find_ready(cursor, 10) == tree.of("R S")


def test_a_paused_calculation_is_not_claimed_until_it_is_played(profile: Profile) -> None:
    tree = tree_of(profile)
    worker_id = profile.worker_id
    process_control.pause(profile, tree.of("b c"))
    with profile.transaction() as cursor:
        claimed = rows.claim_unfinished(cursor, tree.queue_id, worker_id, 10)
    assert [one.node_id for one in claimed] == tree.of("e f")
    process_control.play(profile, tree.of("b"))
    with profile.transaction() as cursor:
        claimed = rows.claim_unfinished(cursor, tree.queue_id, worker_id, 10)
    assert [one.node_id for one in claimed] == tree.of("b")


def test_pausing_takes_nothing_from_who_has_it(profile: Profile) -> None:
    """The farm goes on with what it has, and its result is recorded."""
    tree = tree_of(profile)
    tree.set("b", f"worker_id = {profile.worker_id}, attempt = 1, state = 'waiting'")
    process_control.pause(profile, tree.of("b"))
    assert tree.where("paused AND worker_id IS NOT NULL") == "b"
    tree.end("b")
    assert tree.where("state = 'finished'") == "b"
    assert tree.where("open_children = 1") == "R D S"  # R's other call is open


def test_killing_a_tree_that_nobody_has(profile: Profile) -> None:
    tree = tree_of(profile)
    done = process_control.kill(profile, tree.of("A"), "not wanted")
    assert (done.asked, done.ended, done.queues) == (4, tree.of("A c D e"), [])
    assert tree.where("state = 'killed' AND exit_message = 'not wanted'") == "A c D e"
    assert tree.where("open_children = 1") == "R S"  # R waits for b alone
    assert tree.where("open_children <> 0 AND state = 'killed'") == ""


def test_who_waits_for_what_is_killed_is_told(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.end("b")
    tree.set("R", "state = 'waiting'")
    listener = Listener(profile)
    process_control.kill(profile, tree.of("A"))
    assert tree.where("ready").split()[0] == "R"
    assert listener.news() == {"control", "ready"}
    listener.close()
    with profile.transaction() as cursor:
        assert workflow_rows.find_ready(cursor, 10) == tree.of("R")  # and nothing that has ended


def test_killing_what_somebody_has_is_up_to_him(profile: Profile) -> None:
    tree = tree_of(profile)
    worker_id = profile.worker_id
    tree.set("A", f"worker_id = {worker_id}, state = 'running', attempt = 1")
    tree.set("c", f"worker_id = {worker_id}, state = 'waiting', attempt = 1")
    tree.set("e", "attempt = 1")  # given back: it may be under way on a computer
    listener = Listener(profile)
    done = process_control.kill(profile, tree.of("A"))
    assert (done.asked, done.ended, done.queues) == (4, tree.of("D"), [tree.queue_id])
    assert listener.news() == {"control", f"queue:{tree.queue_id}"}
    listener.close()
    assert tree.where("to_kill AND state <> 'killed'") == "A c e"
    with profile.transaction() as cursor:
        assert workflow_rows.find_interrupted(cursor, worker_id) == [(tree.ids["A"], False, True)]
        assert sorted(rows.find_to_kill(cursor, tree.queue_id)) == tree.of("c e")
        assert rows.claim_unfinished(cursor, tree.queue_id, worker_id + 1, 10)[0].node_id == tree.ids["b"]


def test_what_a_killed_workflow_called_meanwhile_is_killed_too(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.set("A", f"worker_id = {profile.worker_id}, state = 'running'")
    process_control.kill(profile, tree.of("A"))
    tree.add({"A": ["c", "D", "g"]})
    tree.end("A")
    with profile.transaction() as cursor:
        assert process_control.kill_processes(cursor, tree.of("A"), "killed").ended == tree.of("g")


def test_what_was_to_be_killed_by_a_worker_that_died_is_ended(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.set("A S", f"worker_id = {profile.worker_id}, state = 'running', attempt = 1")
    process_control.kill(profile, tree.of("A"))
    with profile.transaction() as cursor:
        assert process_control.end_abandoned_kills(cursor) == []
    tree.set("A S", "worker_id = NULL, ready = true")
    with profile.transaction() as cursor:
        assert workflow_rows.find_ready(cursor, 10) == tree.of("S")
        assert process_control.end_abandoned_kills(cursor) == tree.of("A")
    tree.set("R", "to_kill = true")  # marked alone, as by an update of many rows
    with profile.transaction() as cursor:
        assert process_control.end_abandoned_kills(cursor) == tree.of("R b")


def test_two_who_change_one_tree_at_once_wait_for_each_other_and_not_for_ever(profile: Profile) -> None:
    """Each locks the rows in the order of their ids, in whatever order it was given them."""
    tree = Tree(profile)
    tree.add({"R": [f"{letter}{number}" for letter in "ab" for number in range(150)]})
    failed: list[BaseException] = []
    begin = threading.Barrier(3)

    def work(names: list[str], what: str) -> None:
        connection = profile.connect()
        try:
            begin.wait(20)
            for _ in range(15):
                with database.transaction(connection) as cursor:
                    ids = tree.of(" ".join(names))
                    if what == "end":
                        cursor.execute("SELECT count(*) FROM process")
                        rows.lock(cursor, ids)
                        cursor.execute("UPDATE process SET host = 'h' WHERE node_id = ANY (%s)", (ids,))
                    elif what == "pause":
                        process_control.pause_processes(cursor, ids, "so")
                    else:
                        process_control.play_processes(cursor, ids, tree=True)
        except BaseException as error:
            failed.append(error)
        finally:
            connection.close()

    names = list(tree.ids)
    workers = [
        threading.Thread(target=work, args=(some, what))
        for some, what in ((names, "pause"), (names[::-1], "play"), (names[1::2] + names[::2], "end"))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []


def test_trees_of_calls(profile: Profile) -> None:
    tree = tree_of(profile)
    tree.end("e")
    with profile.transaction() as cursor:
        first, other = process_tree.call_trees(cursor, tree.of("R S"), width=10, lines=100)
    assert (first.process_label, first.calls, other.process_label) == ("R", 2, "S")
    a, b = first.shown
    assert ([c.process_label for c in a.shown], b.shown) == (["c", "D"], [])
    assert [(c.process_label, c.state) for c in a.shown[1].shown] == [("e", "finished")]
    assert process_tree.as_document(other)["shown"][0]["process_label"] == "f"


def test_a_wide_tree_shows_first_what_failed_and_counts_the_rest(profile: Profile) -> None:
    tree = Tree(profile)
    tree.add({"R": [f"c{number}" for number in range(40)]})
    tree.end(*(f"c{number}" for number in range(38)))
    tree.set("c30", "exit_status = 7")
    tree.set("c39", "state = 'running'")
    with profile.transaction() as cursor:
        (root,) = process_tree.call_trees(cursor, tree.of("R"), width=4, lines=100)
    assert [call.process_label for call in root.shown] == ["c0", "c30", "c38", "c39"]
    assert (root.calls, root.more) == (40, {"ok": 36})
    with profile.transaction() as cursor:
        (root,) = process_tree.call_trees(cursor, tree.of("R"), depth=0, width=4, lines=100)
    assert (root.shown, root.more) == ([], {"ok": 37, "failed": 1, "running": 1, "created": 1})


def test_a_worker_ends_what_a_killed_workflow_called_while_somebody_killed_it(profile: Profile) -> None:
    """Whoever kills marks what he sees: a call that was not committed by then is not among it."""
    process_id = gr.submit(site.tree, depth=2, width=2, profile=profile).id
    with site.another(profile) as own:
        hub = Hub(own)
        hub.step(0.0)
        with profile.transaction() as cursor:
            assert len(process_tree.tree_ids(cursor, [process_id])) > 1
            cursor.execute("UPDATE process SET to_kill = true WHERE node_id = %s", (process_id,))
        for _ in range(4):
            hub._controlled = True
            hub.step(0.0)
    with profile.transaction() as cursor:
        cursor.execute("SELECT DISTINCT state::text FROM process WHERE workflow")
        assert cursor.fetchall() == [("killed",)]


def test_what_was_to_be_killed_when_its_worker_died_is_ended_by_the_next(profile: Profile) -> None:
    process_id = gr.submit(site.tree, depth=1, width=2, profile=profile).id
    with site.another(profile) as own:
        Hub(own).step(0.0)
        process_control.kill(profile, [process_id])
    while not site.ended(profile, [process_id]):  # the server needs a moment to see that it is gone
        free_dead(profile)
    with profile.transaction() as cursor:
        cursor.execute("SELECT DISTINCT state::text FROM process WHERE workflow")
        assert cursor.fetchall() == [("killed",)]


def test_scripts_name_processes_as_they_like(profile: Profile) -> None:
    future = gr.submit(site.tree, depth=1, width=1, profile=profile)
    tree = tree_of(profile)
    with profile.transaction() as cursor:
        cursor.execute("SELECT uuid::text FROM node WHERE id = %s", (tree.ids["b"],))
        (uuid,) = cursor.fetchone() or ("",)
    node = profile.load(tree.ids["S"])[0]
    which = [future, tree.ids["A"], uuid, node]
    assert steering.pause_processes(which, reason="so", profile=profile) == 4
    assert tree.where("paused AND exit_message = 'so'") == "tree A b S"
    with gr.recording(profile):
        assert steering.play_processes(future) == 1
        assert steering.play_processes(tree.ids["R"], tree=True) == 2
        assert steering.kill_processes([node, future]) == 3
    assert tree.where("state = 'killed'") == "tree S f"
    with pytest.raises(gr.GrangeError, match="no node has the id"):
        steering.kill_processes(10**9, profile=profile)
    with pytest.raises(gr.GrangeError, match="futures, process nodes, ids"):
        steering.pause_processes([2.5], profile=profile)  # type: ignore[list-item]
    with pytest.raises(gr.GrangeError, match="no profile"):
        steering.kill_processes(future)


def test_pausing_and_playing_at_random_changes_nothing_in_the_graph(profile: Profile) -> None:
    """Two workers with little room are at one tree while somebody pauses and plays parts of it."""
    undisturbed = gr.submit(site.tree, depth=3, width=3, profile=profile).id
    site.work(profile, [undisturbed])
    process_id = gr.submit(site.tree, depth=3, width=3, profile=profile).id
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with open_profile(profile.home) as own:
                site.work(own, [process_id], live=5)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    chance = random.Random(7)
    paused = 0
    while any(worker.is_alive() for worker in workers):
        with profile.transaction() as cursor:
            open_ = process_control.find_open(cursor, [process_id], tree=True)
        if paused < 200 and open_:
            some = chance.sample(open_, min(3, len(open_)))
            paused += process_control.pause(profile, some, tree=chance.random() < 0.5)
        process_control.play(profile, open_)
    assert failed == []
    assert paused > 0
    assert site.shape(profile, process_id) == site.shape(profile, undisturbed)


def test_killing_at_random_leaves_nothing_open(profile: Profile) -> None:
    """Branches of trees are killed while two workers are at them: all ends, one way or another."""
    roots = [gr.submit(site.tree, depth=2, width=3, profile=profile).id for _ in range(4)]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with open_profile(profile.home) as own:
                site.work(own, roots, live=5)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    chance = random.Random(8)
    asked = 0
    while any(worker.is_alive() for worker in workers):
        with profile.transaction() as cursor:
            open_ = process_control.find_open(cursor, roots, tree=True)
        if open_:
            asked += process_control.kill(profile, [chance.choice(open_)]).asked
    assert failed == []
    assert asked > 0
    with profile.transaction() as cursor:  # calls of what ended before them
        left = process_control.find_open(cursor, None)
    site.work(profile, left)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process WHERE open_children <> 0 OR finished_at IS NULL")
        assert cursor.fetchone() == (0,)
