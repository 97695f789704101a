"""Deadlocks: whoever changes many rows of processes locks them in the order of their ids (on real locks)."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable

from process_site import Tree

from grange.core import database, process_control
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


def test_two_changes_of_the_same_rows_never_wait_for_each_other(profile: Profile) -> None:
    chance = random.Random(5)
    connections = profile.connect(), profile.connect()
    for one, other in itertools.combinations_with_replacement(CHANGES, 2):
        tree, ids = _new_rows(profile, chance)
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
                    CHANGES[name](cursor, tree, order)
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


def _new_rows(profile: Profile, chance: random.Random) -> tuple[Tree, list[int]]:
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
            "UPDATE process SET campaign_id = %s, worker_id = 7, attempt = 1, state = 'waiting'"
            " WHERE node_id = ANY (%s)",
            (tree.queue_id, ids),
        )
    return tree, ids
