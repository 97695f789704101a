"""Trees of processes for tests, as rows that the engine would have made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grange as gr
from grange.core import database
from grange.core import process as rows
from grange.core.process import End, NewProcess
from grange.core.profile import Profile
from grange.core.transition import State


class Tree:
    """Processes of a test by name, made as the engine makes them: a parent, then its calls."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.ids: dict[str, int] = {}
        self.queue_id = gr.Campaign("a queue", profile).id

    def add(self, calls: Mapping[str, Sequence[str]], **more: Any) -> None:
        """calls: what each workflow calls, parents first; names in small letters are calculations."""
        called_by = {name: parent for parent, names in calls.items() for name in names}
        names = [*dict.fromkeys([name for parent, some in calls.items() for name in (parent, *some)])]
        new = [name for name in names if name not in self.ids]
        with self.profile.transaction() as cursor:
            ids = list(database.reserve_ids(cursor, len(new)))
            cursor.execute(
                "INSERT INTO node (id, uuid, kind, user_id, node_type) SELECT id, gen_random_uuid(),"
                " kind::node_kind, %s, 'process.' FROM unnest(%s::bigint[], %s::text[]) AS given (id, kind)",
                (self.profile.user_id, ids, ["workflow" if n.isupper() else "calculation" for n in new]),
            )
            self.ids.update(zip(new, ids, strict=True))
            sequences = {name: number for names in calls.values() for number, name in enumerate(names, 1)}
            rows.insert(
                cursor,
                [
                    NewProcess(
                        self.ids[name], name, None, None, None, State.CREATED, 0, None,
                        workflow=name.isupper(),
                        queue_id=None if name.isupper() else self.queue_id,
                        parent_id=self.ids[called_by[name]] if name in called_by else None,
                        sequence=sequences.get(name),
                        **more,
                    )
                    for name in new
                ],
            )  # fmt: skip
            cursor.execute(
                "UPDATE process p SET open_children ="
                " (SELECT count(*) FROM process c WHERE c.parent_id = p.node_id)"
                " WHERE workflow AND node_id = ANY (%s)",
                (list(self.ids.values()),),
            )

    def set(self, names: str, change: str) -> None:
        with self.profile.transaction() as cursor:
            cursor.execute(f"UPDATE process SET {change} WHERE node_id = ANY (%s)", (self.of(names),))

    def of(self, names: str) -> list[int]:
        return [self.ids[name] for name in names.split()]

    def where(self, condition: str) -> str:
        """The names of the processes for which a condition is true."""
        with self.profile.transaction() as cursor:
            cursor.execute(f"SELECT label FROM process WHERE {condition} ORDER BY node_id")
            return " ".join(row[0] for row in cursor.fetchall())

    def end(self, *names: str) -> None:
        with self.profile.transaction() as cursor:
            cursor.execute(
                "SELECT node_id, attempt, parent_id FROM process WHERE label = ANY (%s)", (list(names),)
            )
            ends = [
                End(id_, attempt, State.FINISHED, 0, None, None, None, None, None, None, parent)
                for id_, attempt, parent in cursor.fetchall()
            ]
            rows.end(cursor, ends)


def tree_of(profile: Profile) -> Tree:
    """R calls A and b; A calls c and D; D calls e. S is another one and calls f."""
    tree = Tree(profile)
    tree.add({"R": ["A", "b"], "A": ["c", "D"], "D": ["e"], "S": ["f"]})
    return tree


class Listener:
    """What is told on the channel while a test runs."""

    def __init__(self, profile: Profile) -> None:
        self.connection = profile.connect()
        self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute("LISTEN grange")

    def news(self) -> set[str]:
        self.connection.poll()
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT")
        news = {notice.payload for notice in self.connection.notifies}
        self.connection.notifies.clear()
        return news

    def close(self) -> None:
        self.connection.close()
