"""What makes nodes equal, and why a process was or was not answered by an equal one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from grange.core.database import Cursor
from grange.core.errors import InputInvalid, NotFound

#: So many equal nodes are named.
NAMED = 20
#: Where nothing is equal, the most alike is looked for among so many of the same name, in so many rows.
LOOKED_AT = 200
LOOKED_THROUGH = 200_000


@dataclass(frozen=True, slots=True)
class Input:
    """An input of a process: its content hash says what it is worth, whichever node it is."""

    label: str
    node_id: int
    hash: str


@dataclass(frozen=True, slots=True)
class EqualProcess:
    """A process with the same key. valid: whether it may answer others when it has finished."""

    id: int
    state: str
    exit_status: int | None
    valid: bool
    cached_from: int | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a process is compared by.

    key: SHA-256 of code and inputs; None: it is compared with nothing. fingerprint: of the code. uses_cache:
    whether equal ones may answer it. answers: whether it may answer equal ones. equal: the newest with the
    same key.
    """

    id: int
    label: str
    process_type: str
    state: str
    exit_status: int | None
    key: str | None
    fingerprint: str | None
    uses_cache: bool
    answers: bool
    cached_from: int | None
    inputs: tuple[Input, ...]
    equal: tuple[EqualProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two processes: "code", or an input by its label; None where one has none."""

    what: str
    one: str | None
    other: str | None


@dataclass(frozen=True, slots=True)
class DataHash:
    """The content hash of data: of its type, attributes and files."""

    id: int
    node_type: str
    hash: str | None


_PROCESS = """
SELECT p.node_id, p.label, coalesce(n.process_type, ''), p.state::text, p.exit_status, encode(p.key, 'hex'),
       n.attributes->>'fingerprint', n.attributes->'shell', p.use_cache, p.valid_cache, p.cached_from
FROM process p JOIN node n ON n.id = p.node_id WHERE p.node_id = ANY (%s)
"""

_INPUTS = """
SELECT l.target_id, l.label, l.source_id, encode(n.hash, 'hex') FROM link l JOIN node n ON n.id = l.source_id
WHERE l.target_id = ANY (%s) AND l.type IN ('input_calc', 'input_work') ORDER BY l.target_id, l.label
"""

# The newest processes of the same key.
_EQUAL = """
SELECT node_id, state::text, exit_status, valid_cache, cached_from FROM process
WHERE key = decode(%s, 'hex') AND node_id <> %s ORDER BY node_id DESC LIMIT %s
"""

# Finished processes of the same name that began before, the newest first.
_ALIKE = """
SELECT node_id FROM (
    SELECT node_id, label, state, exit_status FROM process WHERE node_id < %s ORDER BY node_id DESC LIMIT %s
) recent WHERE label = %s AND state = 'finished' LIMIT %s
"""


def likeness(cursor: Cursor, node_id: int) -> Likeness:
    """What a process is compared by, and what it is equal to. Errors: NotFound; InputInvalid for data."""
    found = _read(cursor, [node_id])
    if not found:
        cursor.execute("SELECT kind::text FROM node WHERE id = %s", (node_id,))
        row = cursor.fetchone()
        if row is None:
            raise NotFound(f"no node has the id {node_id}")
        raise InputInvalid("process", node_id, f"a process; node {node_id} is {row[0]}")
    process = found[0]
    if process.key is None:
        return process
    cursor.execute(_EQUAL, (process.key, node_id, NAMED))
    return replace(process, equal=tuple(EqualProcess(*row) for row in cursor.fetchall()))


def _read(cursor: Cursor, ids: Sequence[int]) -> list[Likeness]:
    cursor.execute(_PROCESS, (list(ids),))
    rows = cursor.fetchall()
    cursor.execute(_INPUTS, (list(ids),))
    inputs: dict[int, list[Input]] = {}
    for target, label, source, content in cursor.fetchall():
        inputs.setdefault(target, []).append(Input(label, source, content or ""))
    return [
        Likeness(
            id=id_,
            label=label,
            process_type=type_,
            state=state,
            exit_status=status,
            key=key,
            fingerprint=code or (None if shell is None else _of_shell(shell)),
            uses_cache=uses,
            answers=answers,
            cached_from=source,
            inputs=tuple(inputs.get(id_, ())),
        )
        for id_, label, type_, state, status, key, code, shell, uses, answers, source in rows
    ]


def _of_shell(record: object) -> str:
    from grange.core.fingerprint import fingerprint

    return fingerprint(repr(sorted(record.items()))).hex() if isinstance(record, dict) else ""


def differences(one: Likeness, other: Likeness) -> list[Difference]:
    """What keeps two processes from being equal; nothing where they are."""
    found = []
    if one.process_type != other.process_type:
        found.append(Difference("process type", one.process_type, other.process_type))
    if one.fingerprint != other.fingerprint:
        found.append(Difference("code", one.fingerprint, other.fingerprint))
    ours = {entry.label: entry.hash for entry in one.inputs}
    theirs = {entry.label: entry.hash for entry in other.inputs}
    return found + [
        Difference(label, ours.get(label), theirs.get(label))
        for label in sorted(ours.keys() | theirs.keys())
        if ours.get(label) != theirs.get(label)
    ]


def most_alike(cursor: Cursor, process: Likeness) -> tuple[Likeness, list[Difference]] | None:
    """Of finished processes of the same name that were there before, the one with the fewest differences.

    None where there is none among the latest.
    """
    cursor.execute(_ALIKE, (process.id, LOOKED_THROUGH, process.label, LOOKED_AT))
    others = _read(cursor, [row[0] for row in cursor.fetchall()])
    compared = [(other, differences(process, other)) for other in others]
    return min(compared, key=lambda pair: (len(pair[1]), -pair[0].id), default=None)


def set_answering(cursor: Cursor, ids: Sequence[int], answers: bool) -> list[int]:
    """Say whether processes may answer equal ones; returns those for which that is new.

    What they have answered already stays as it is.
    """
    cursor.execute(
        """
        UPDATE process SET valid_cache = %(answers)s
        WHERE node_id IN (SELECT node_id FROM process WHERE node_id = ANY (%(ids)s) AND NOT workflow
                          AND valid_cache <> %(answers)s ORDER BY node_id FOR NO KEY UPDATE)
        RETURNING node_id
        """,
        {"ids": list(ids), "answers": answers},
    )
    return sorted(row[0] for row in cursor.fetchall())


def data_hash(cursor: Cursor, node_id: int) -> DataHash | None:
    """The content hash of data; None for a process. Errors: NotFound."""
    cursor.execute("SELECT node_type, kind::text, encode(hash, 'hex') FROM node WHERE id = %s", (node_id,))
    row = cursor.fetchone()
    if row is None:
        raise NotFound(f"no node has the id {node_id}")
    node_type, kind, content = row
    if kind != "data":
        return None
    return DataHash(node_id, node_type, content)
