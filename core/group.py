"""Groups: named sets of nodes. Campaigns are groups of the type "campaign"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from grange.core.data.str import text
from grange.core.database import translated
from grange.core.errors import InputInvalid, NameExists, NotFound
from grange.core.node import Node

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: What AiiDA calls a group that a person made.
CORE = "core"

#: Labels are indexed, and read by people.
LONGEST_LABEL = 255

# A new group; nothing comes back where the name is taken.
_CREATE = """
INSERT INTO "group" (label, type_string, description, user_id) VALUES (%s, %s, %s, %s)
ON CONFLICT (label, type_string) DO NOTHING
RETURNING id, uuid::text, label, type_string, description, user_id, time, 0
"""

# Groups by label and type, with how many nodes each has.
_FIND = """
SELECT id, uuid::text, label, type_string, description, user_id, time,
       (SELECT count(*) FROM group_node WHERE group_id = "group".id)
FROM "group" WHERE (%(label)s IS NULL OR label = %(label)s) AND (%(type)s IS NULL OR type_string = %(type)s)
ORDER BY label, type_string
"""

# Nodes into a group; those that are in it stay.
_ADD = """
INSERT INTO group_node (group_id, node_id) SELECT %s, id FROM unnest(%s::bigint[]) AS given (id)
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of nodes. count: how many there were when the group was loaded."""

    id: int
    uuid: str
    label: str
    type_string: str
    description: str
    user_id: int
    time: datetime
    count: int


def create(
    cursor: Cursor, label: str, *, user_id: int, description: str = "", type_string: str = CORE
) -> Group:
    """Make a group without nodes.

    Errors: NameExists; InputInvalid for an empty label.
    """
    if not 0 < len(text(label, "group label")) <= LONGEST_LABEL:
        raise InputInvalid("group label", label, f"a name of at most {LONGEST_LABEL} characters")
    with translated():
        cursor.execute(_CREATE, (label, type_string, text(description, "group description"), user_id))
        row = cursor.fetchone()
    if row is None:
        raise NameExists(
            f"a group {label!r} of the type {type_string!r} exists: load it, or take another label"
        )
    return Group(*row)


def load(cursor: Cursor, label: str, type_string: str = CORE) -> Group:
    """The group of a label.

    Errors: NotFound.
    """
    with translated():
        cursor.execute(_FIND, {"label": text(label, "group label"), "type": type_string})
        row = cursor.fetchone()
    if row is None:
        raise NotFound(f"no group {label!r} of the type {type_string!r}")
    return Group(*row)


def list_groups(cursor: Cursor, type_string: str | None = None) -> list[Group]:
    """All groups, or those of one type, by label."""
    with translated():
        cursor.execute(_FIND, {"label": None, "type": type_string})
        return [Group(*row) for row in cursor.fetchall()]


def add_nodes(cursor: Cursor, group: Group, nodes: Iterable[Node | int]) -> int:
    """Put stored nodes into a group, in one statement; returns how many were not in it.

    Errors: NotFound for a node that is not stored.
    """
    ids = _ids(nodes)
    with translated():
        cursor.execute("SELECT id FROM node WHERE id = ANY (%s::bigint[])", (ids,))
        missing = sorted(set(ids) - {row[0] for row in cursor.fetchall()})
        if missing:
            raise NotFound(f"no node has the id {', '.join(map(str, missing[:10]))}")
        cursor.execute(_ADD, (group.id, ids))
    return int(cursor.rowcount)


def remove_nodes(cursor: Cursor, group: Group, nodes: Iterable[Node | int]) -> int:
    """Take nodes out of a group, in one statement; the nodes stay. Returns how many were in it."""
    with translated():
        cursor.execute(
            "DELETE FROM group_node WHERE group_id = %s AND node_id = ANY (%s::bigint[])",
            (group.id, _ids(nodes)),
        )
    return int(cursor.rowcount)


def node_ids(cursor: Cursor, group: Group) -> list[int]:
    """The ids of a group's nodes, growing."""
    with translated():
        cursor.execute("SELECT node_id FROM group_node WHERE group_id = %s ORDER BY node_id", (group.id,))
        return [row[0] for row in cursor.fetchall()]


def labels_of(cursor: Cursor, ids: Iterable[int], type_string: str) -> list[str]:
    """The labels of groups of one type, in alphabetical order."""
    cursor.execute(
        'SELECT label FROM "group" WHERE id = ANY(%s) AND type_string = %s ORDER BY label',
        (list(ids), type_string),
    )
    return [label for (label,) in cursor.fetchall()]


def note(cursor: Cursor, group_id: int, name: str) -> object:
    """One extra of a group; None where it has none of that name."""
    cursor.execute('SELECT extras->%s FROM "group" WHERE id = %s', (name, group_id))
    row = cursor.fetchone()
    return row[0] if row else None


def set_note(cursor: Cursor, group_id: int, name: str, value: str | None) -> None:
    """Note something at a group; None takes the note away."""
    cursor.execute(
        'UPDATE "group" SET extras = CASE WHEN %(value)s::text IS NULL THEN extras - %(name)s'
        " ELSE extras || jsonb_build_object(%(name)s, %(value)s::text) END WHERE id = %(id)s",
        {"id": group_id, "name": name, "value": value},
    )


def delete(cursor: Cursor, groups: Sequence[Group]) -> None:
    """Delete groups; their nodes stay.

    Errors: NotFound for a group that is there no more.
    """
    with translated():
        cursor.execute(
            'DELETE FROM "group" WHERE id = ANY (%s) RETURNING id', ([group.id for group in groups],)
        )
        gone = {row[0] for row in cursor.fetchall()}
    missing = [group.label for group in groups if group.id not in gone]
    if missing:
        raise NotFound(f"no group {', '.join(missing)} any more")


def _ids(nodes: Iterable[Node | int]) -> list[int]:
    """Errors: NotFound for a node that is not stored."""
    ids = []
    for node in nodes:
        node_id = node if isinstance(node, int) else node.id
        if node_id is None:
            raise NotFound(f"{node!r} has to be stored before it can be in a group")
        ids.append(node_id)
    return ids
