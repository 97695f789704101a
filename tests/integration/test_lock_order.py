"""Deadlocks: whoever changes many rows of processes locks them in the order of their ids (on real locks)."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable

import pytest
from process_site import Tree

from grange.core import database, process_control, workflow_rows
from grange.core import process as rows
from grange.core.process import End
from grange.core.profile import Profile
from grange.core.transition import State

#: So many that two transactions are in the middle of them at the same time.
ROWS = 240

Change = Callable[[database.Cursor, Tree, list[int]], object]


def _end(cursor: database.Cursor, tree: Tree, ids: list[int]) -> object:
    parent = tree.ids["R"]
    ends = [End(id_, 1, State.FINISHED, 0, None, None, None, None, None, None) for id_ in ids]
    for end in ends[::2]:
        end.parent_id = parent
    return rows.end(cursor, ends)


#: What the engine, workers and people do to many rows at once, in whatever order they have them.
CHANGES: dict[str, Change] = {
    "end": _end,
    "kill": lambda cursor, tree, ids: process_control.kill_processes(cursor, ids, "no"),
    "kill a tree": lambda cursor, tree, ids: process_control.kill_processes(cursor, tree.of("R"), "no"),
    "pause": lambda cursor, tree, ids: process_control.pause_processes(cursor, ids, "so"),
    "mark as to be killed": lambda cursor, tree, ids: rows.ask_to_kill(cursor, ids=ids),
    "mark a campaign": lambda cursor, tree, ids: rows.ask_to_kill(cursor, campaign_id=tree.queue_id),
    "claim": lambda cursor, tree, ids: rows.claim(cursor, ids, 8),
    "take over": lambda cursor, tree, ids: rows.take_over(cursor, dict.fromkeys(ids, 1), 8),
    "set aside": lambda cursor, tree, ids: rows.pause(cursor, ids, "other code"),
    "release": lambda cursor, tree, ids: rows.release(cursor, 7, tree.queue_id),
}

#: The same for rows of workflows that a worker has.
OF_WORKFLOWS: dict[str, Change] = {
    "end": _end,
    "lock": lambda cursor, tree, ids: rows.lock(cursor, ids),
    "kill": CHANGES["kill"],
    "pause": CHANGES["pause"],
    "give back": lambda cursor, tree, ids: workflow_rows.give_back(cursor, [7]),
    "take what is ready": lambda cursor, tree, ids: workflow_rows.take_ready(cursor, 7),
}


@pytest.mark.parametrize("changes", [CHANGES, OF_WORKFLOWS], ids=["calculations", "workflows"])
def test_two_changes_of_the_same_rows_never_wait_for_each_other(
    changes: dict[str, Change], profile: Profile
) -> None:
    chance = random.Random(5)
    connections = profile.connect(), profile.connect()
    for one, other in itertools.combinations_with_replacement(changes, 2):
        tree, ids = _new_rows(profile, chance, workflows=changes is OF_WORKFLOWS)
        failed: list[BaseException] = []
        begin = threading.Barrier(2)

        def work(
            connection: database.Connection,
            name: str,
            order: list[int],
            tree: Tree = tree,
            failed: list[BaseException] = failed,
            begin: threading.Barrier = begin,
        ) -> None:
            try:
                begin.wait(30)
                with database.transaction(connection) as cursor:
                    changes[name](cursor, tree, order)
            except BaseException as error:
                failed.append(error)

        threads = [
            threading.Thread(target=work, args=(connections[0], one, ids[::-1])),
            threading.Thread(target=work, args=(connections[1], other, chance.sample(ids, len(ids)))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == [], f"{one} and {other}"
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("changes", [CHANGES, OF_WORKFLOWS], ids=["calculations", "workflows"])
def test_rows_are_locked_in_the_order_of_their_ids(changes: dict[str, Change], profile: Profile) -> None:
    """Each change waits at a row that somebody has: it has those before, and none behind."""
    chance = random.Random(6)
    holding, changing = profile.connect(), profile.connect()
    for name, change in changes.items():
        tree, ids = _new_rows(profile, chance, workflows=changes is OF_WORKFLOWS)
        middle = ids[len(ids) // 2]

        def work(change: Change = change, tree: Tree = tree, ids: list[int] = ids) -> None:
            with database.transaction(changing) as cursor:
                change(cursor, tree, chance.sample(ids, len(ids)))

        with database.transaction(holding) as cursor:
            cursor.execute("SELECT FROM process WHERE node_id = %s FOR UPDATE", (middle,))
            thread = threading.Thread(target=work)
            thread.start()
            _wait_until_it_waits(profile, changing)
            with profile.transaction() as looking:
                looking.execute(
                    "SELECT node_id FROM process WHERE node_id = ANY (%s) FOR UPDATE SKIP LOCKED", (ids,)
                )
                free = {row[0] for row in looking.fetchall()}
        thread.join()
        assert free == {id_ for id_ in ids if id_ > middle}, name
    holding.close()
    changing.close()


def _wait_until_it_waits(profile: Profile, connection: database.Connection) -> None:
    deadline = time.monotonic() + 30
    while True:
        with profile.transaction() as cursor:
            cursor.execute(
                "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
                (connection.info.backend_pid,),
            )
            if cursor.fetchone() is not None:
                return
        assert time.monotonic() < deadline, "it waits for nothing"
        time.sleep(0.002)


def _new_rows(profile: Profile, chance: random.Random, *, workflows: bool) -> tuple[Tree, list[int]]:
    """A workflow R and its calls, which lie on the disk in another order than that of their ids."""
    tree = Tree(profile)
    names = [f"c{number}" for number in range(ROWS)]
    tree.add({"R": names})
    ids = tree.of(" ".join(names))
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT node_id FROM process WHERE node_id = ANY (%s) ORDER BY node_id FOR UPDATE", (ids,)
        )
        for _ in range(8):
            some = chance.sample(ids, ROWS // 8)
            cursor.execute("UPDATE process SET host = 'h' WHERE node_id = ANY (%s)", (some,))
        cursor.execute(
            "UPDATE process SET campaign_id = %s, workflow = %s, worker_id = 7, attempt = 1,"
            " state = 'waiting', ready = true WHERE node_id = ANY (%s)",
            (tree.queue_id, workflows, ids),
        )
    return tree, ids
