"""Codes by name: found, listed, added, deleted.

A code is called by its label, and by label@computer where several computers have one. What nobody named (the
program of a shell job) has no label and is in no list.

Functions take a cursor and never commit.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg2 import errors as driver

from grange.core import graph
from grange.core.data.code import Code, ContainerizedCode, InstalledCode, PortableCode
from grange.core.database import Cursor, translated
from grange.core.errors import InputInvalid, InUse, NameExists, NotFound
from grange.core.node import Reader
from grange.core.reference import node_ids

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: What each kind is called on the command line.
KINDS = {
    InstalledCode.node_type: "installed",
    PortableCode.node_type: "portable",
    ContainerizedCode.node_type: "containerised",
}
_TYPES = tuple(KINDS)


@dataclass(frozen=True, slots=True)
class CodeSummary:
    """One line in a list of codes. uses: how many calculations and workflows have it as an input."""

    id: int
    uuid: str
    label: str
    computer: str | None
    kind: str
    filepath_executable: str
    with_mpi: bool | None
    image_name: str | None
    description: str
    uses: int

    @property
    def name(self) -> str:
        """What it is called: pw@lumi, or pw where it belongs to no computer."""
        return f"{self.label}@{self.computer}" if self.computer else self.label


# Codes that have a name (or all), in a line each; equal ones are one line, the oldest.
_SUMMARIES = f"""
SELECT one.id, one.uuid, one.label, one.computer, one.node_type, one.attributes ->> 'filepath_executable',
       (one.attributes ->> 'with_mpi')::boolean, one.attributes ->> 'image_name', one.description,
       (SELECT count(*) FROM link
        WHERE source_id = ANY (one.ids) AND type IN ('input_calc', 'input_work'))
FROM (SELECT (array_agg(n.id ORDER BY n.id))[1] AS id, (array_agg(n.uuid::text ORDER BY n.id))[1] AS uuid,
             n.label, c.label AS computer, n.node_type,
             (array_agg(n.attributes ORDER BY n.id))[1] AS attributes,
             (array_agg(n.description ORDER BY n.id))[1] AS description, array_agg(n.id) AS ids
      FROM node n LEFT JOIN computer c ON c.id = n.computer_id
      WHERE n.node_type IN {_TYPES} AND (n.label <> '' OR %(unnamed)s)
        AND (%(computer)s::text IS NULL OR c.label = %(computer)s)
      GROUP BY n.label, c.label, n.node_type, n.hash) one
ORDER BY one.label, one.computer NULLS FIRST, one.id
"""  # noqa: S608

# The codes of a label, with their computers, the oldest of those that are equal.
_NAMED = f"""
SELECT min(n.id), c.label FROM node n LEFT JOIN computer c ON c.id = n.computer_id
WHERE n.node_type IN {_TYPES} AND n.label = %(label)s
  AND (%(computer)s::text IS NULL OR c.label = %(computer)s)
GROUP BY c.label, n.hash ORDER BY min(n.id)
"""  # noqa: S608

# Labels that codes have.
_LABELS = f"""
SELECT DISTINCT n.label, c.label FROM node n LEFT JOIN computer c ON c.id = n.computer_id
WHERE n.node_type IN {_TYPES} AND n.label <> '' ORDER BY n.label LIMIT 1000
"""  # noqa: S608

# How many calculations and workflows have a code as an input.
_USES = "SELECT count(*) FROM link WHERE source_id = ANY (%s) AND type IN ('input_calc', 'input_work')"

# The nodes that are equal to one and are called like it.
_ALIKE = f"""
SELECT other.id FROM node n JOIN node other ON other.hash = n.hash AND other.label = n.label
 AND other.computer_id IS NOT DISTINCT FROM n.computer_id
WHERE n.id = %s AND other.node_type IN {_TYPES} ORDER BY other.id
"""  # noqa: S608


def load(cursor: Cursor, name: str, reader: Reader | None = None) -> Code:
    """The code of a name, an id or a uuid.

    Errors: NotFound, with the names that are most like it; InputInvalid for a name of several codes, and for
    a node that is no code.
    """
    (node,) = graph.load(cursor, [code_id(cursor, name)], reader)
    if not isinstance(node, Code):
        raise InputInvalid("code", name, f"a code; node {node.id} is of the type {node.node_type}")
    return node


def code_id(cursor: Cursor, name: str) -> int:
    """The id of the code of a name. Errors: as load(), but a node of an id may be anything."""
    label, _, computer = name.rpartition("@") if "@" in name else (name, "", None)
    found = _named(cursor, label, computer)
    if len(found) > 1:
        shown = ", ".join(f"{_name(label, where)} (id {code})" for code, where in found[:5])
        raise InputInvalid("code", name, f"the name of one code, or its id; there are {shown}")
    if found:
        return found[0][0]
    if "@" not in name:
        try:
            return node_ids(cursor, [name])[0]
        except (InputInvalid, NotFound) as error:
            if name.isdigit():
                raise error
    raise _not_found(cursor, name)


def list_codes(cursor: Cursor, *, computer: str | None = None, unnamed: bool = False) -> list[CodeSummary]:
    """All codes by label, or those of a computer, in a line each. unnamed: also those without a label."""
    with translated():
        cursor.execute(_SUMMARIES, {"computer": computer, "unnamed": unnamed})
        return [_summary(*row) for row in cursor.fetchall()]


def summary(cursor: Cursor, code: Code) -> CodeSummary:
    """The line of a list that a stored code is in, or would be if it had a label."""
    assert code.id is not None
    assert code.uuid is not None
    computer = None
    if code.computer_id is not None:
        with translated():
            cursor.execute("SELECT label FROM computer WHERE id = %s", (code.computer_id,))
            (computer,) = cursor.fetchone() or (None,)
    image = code.image_name if isinstance(code, ContainerizedCode) else None
    return CodeSummary(
        code.id,
        code.uuid,
        code.label,
        computer,
        KINDS[code.node_type],
        code.executable,
        code.with_mpi,
        image,
        code.description,
        uses(cursor, alike(cursor, code.id)),
    )


def add(profile: Profile, cursor: Cursor, code: Code, computer: str | None = None) -> tuple[Code, bool]:
    """Store a code under its label; second: whether it is new. One that is there already is given back.

    computer: the label of the code's computer, for messages.
    Errors: NameExists where another code has that name; InputInvalid.
    """
    if not code.label or "@" in code.label or code.label.isdigit():
        raise InputInvalid("label", code.label, 'a name without "@" that is no number')
    named = [node_id for node_id, where in _named(cursor, code.label, computer) if where == computer]
    for node in graph.load(cursor, named, profile.read_files):
        if isinstance(node, Code) and node.content_hash() == code.content_hash():
            return node, False
    if named:
        raise NameExists(
            f"there is another code {_name(code.label, computer)} (id {named[0]}): take another label, "
            f"or `grange code delete {named[0]}` where no calculation has used it"
        )
    graph.store(
        cursor,
        [code],
        user_id=profile.user_id,
        repository=profile.repository,
        index=profile.index(cursor),
        reader=profile.read_files,
    )
    return code, True


def uses(cursor: Cursor, ids: Sequence[int]) -> int:
    """How many calculations and workflows have one of these codes as an input."""
    with translated():
        cursor.execute(_USES, (list(ids),))
        return int((cursor.fetchone() or (0,))[0])


def alike(cursor: Cursor, node_id: int) -> list[int]:
    """The nodes that are the same code under the same name: what a list shows as one."""
    with translated():
        cursor.execute(_ALIKE, (node_id,))
        return [row[0] for row in cursor.fetchall()]


def delete(cursor: Cursor, name: str) -> list[int]:
    """Delete the code of a name, with those that are equal and called so too; gives the ids of the nodes.

    Errors: NotFound; InUse when calculations have used it; InputInvalid.
    """
    ids = require_unused(cursor, name, load(cursor, name))
    try:
        cursor.execute("DELETE FROM node WHERE id = ANY (%s)", (ids,))
    except driver.ForeignKeyViolation as error:  # a process that somebody has just stored
        raise InUse(f"the code {name} cannot be deleted: {error.diag.message_primary}") from error
    return ids


def require_unused(cursor: Cursor, name: str, code: Code) -> list[int]:
    """The nodes that are this code under this name. Errors: InUse when calculations have used it."""
    assert code.id is not None
    ids = alike(cursor, code.id)
    count = uses(cursor, ids)
    if count:
        used = "1 process has" if count == 1 else f"{count:,} processes have"
        raise InUse(f"the code {name} cannot be deleted: {used} used it, and would lose where they come from")
    return ids


def _summary(
    node_id: int, uuid: str, label: str, computer: str | None, node_type: str, path: str | None, *more: Any
) -> CodeSummary:
    # The rows of an archive may lack a path.
    return CodeSummary(node_id, uuid, label, computer, KINDS[node_type], path or "", *more)


def _named(cursor: Cursor, label: str, computer: str | None) -> list[tuple[int, str | None]]:
    with translated():
        cursor.execute(_NAMED, {"label": label, "computer": computer})
        return cursor.fetchall()


def _name(label: str, computer: str | None) -> str:
    return f"{label}@{computer}" if computer else label


def _not_found(cursor: Cursor, name: str) -> NotFound:
    cursor.execute(_LABELS)
    names = [_name(*row) for row in cursor.fetchall()]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    near = near or [known for known in names if known.partition("@")[0] == name.partition("@")[0]][:1]
    if near:
        return NotFound(f"there is no code {name!r}: did you mean {near[0]!r}?")
    shown = f"there are {', '.join(names[:10])}" if names else "there is none; `grange code add` makes one"
    return NotFound(f"there is no code {name!r}: {shown}")
