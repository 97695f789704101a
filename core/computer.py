"""Computers as the database has them: what is known of each, and how a user reaches it.

AiiDA's tables, and AiiDA's names within them where it has the thing, so that archives go in and out:
`computer` says what it is, `authinfo` how one user gets there. What only grange knows lies under the key
"grange" of the same documents; what only AiiDA knows is left as it is. Never a secret.

Functions take a cursor and never commit.
"""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from psycopg2 import errors as driver
from psycopg2.extras import Json

from grange.core.computer_check import checked, checked_field, joined
from grange.core.database import Cursor, translated
from grange.core.errors import InputInvalid, InUse, NameExists, NotFound
from grange.farm.computer import Computer, SchedulerKind, SshSettings, TransportKind

#: AiiDA's entry points, and ours. What AiiDA has of the program ssh is written, both are read.
SCHEDULER_TYPES: dict[str, SchedulerKind] = {"core.slurm": "slurm", "core.direct": "direct"}
TRANSPORT_TYPES: dict[str, TransportKind] = {
    "core.local": "local", "core.ssh": "ssh", "core.ssh_async": "openssh", "core.openssh": "openssh",
}  # fmt: skip

#: States of allocations that have or may have a job in the queue.
OPEN_ALLOCATION_STATES = ("submitting", "queued", "running")

# Where AiiDA keeps a field of ours: in the metadata of the computer, in the settings of the user.
_METADATA_NAMES = {
    "workdir": "work_dir", "shebang": "shebang", "default_mpiprocs_per_machine": "cores_per_node",
    "prepend_text": "prepend_text", "append_text": "append_text",
}  # fmt: skip
_AUTH_NAMES = {
    "username": "user", "port": "port", "key_filename": "key_file", "proxy_jump": "proxy_jump",
    "timeout": "connect_timeout_s",
}  # fmt: skip
# Fields that have columns, or AiiDA's names in another unit or shape.
_ELSEWHERE = {
    "label", "hostname", "description", "transport", "scheduler", "ssh", "mpirun", "memory_mb_per_node",
    "connection_interval_s",
}  # fmt: skip
_OUR_METADATA = [
    field.name
    for field in dataclasses.fields(Computer)
    if field.name not in _ELSEWHERE and field.name not in _METADATA_NAMES.values()
]
_OUR_AUTH = [
    field.name for field in dataclasses.fields(SshSettings) if field.name not in _AUTH_NAMES.values()
]
_OURS = "grange"

# What AiiDA calls the fields of the template of mpirun; the others have no counterpart.
_MPIRUN_FIELDS = {"{num_machines}": "{nodes}", "{num_mpiprocs_per_machine}": "{procs_per_node}"}

_Kind = TypeVar("_Kind")


@dataclass(frozen=True, slots=True)
class StoredComputer:
    """A computer with its row. enabled: whether the user of whom it was asked may use it."""

    id: int
    uuid: str
    computer: Computer
    enabled: bool


@dataclass(frozen=True, slots=True)
class ComputerSummary:
    """One line in a list of computers, also of those that grange cannot use (scheduler_type says why).

    configured: whether this user has settings for it. paused: too many connections failed.
    state: enabled, disabled, paused, or unusable (only AiiDA knows its scheduler or transport).
    """

    id: int
    uuid: str
    label: str
    hostname: str
    description: str
    scheduler_type: str
    transport_type: str
    hyperqueue: str
    configured: bool
    enabled: bool
    paused: bool
    last_error: str | None
    failures: int
    connected_at: datetime | None
    open_allocations: int
    state: str


# One computer as one user has it.
_FIND = """
SELECT c.id, c.uuid::text, c.label, c.hostname, c.description, c.scheduler_type, c.transport_type, c.metadata,
       coalesce(a.auth_params, '{}'), coalesce(a.enabled, true)
FROM computer c LEFT JOIN authinfo a ON a.computer_id = c.id AND a.user_id = %(user)s
WHERE c.label = %(label)s
"""

# All computers in a line each, with their connection and their jobs in the queue.
_SUMMARIES = """
SELECT c.id, c.uuid::text, c.label, c.hostname, c.description, c.scheduler_type, c.transport_type,
       coalesce(c.metadata -> 'grange' ->> 'hyperqueue', 'none'), a.id IS NOT NULL, coalesce(a.enabled, true),
       coalesce(n.paused, false), n.last_error, coalesce(n.failures, 0), n.connected_at,
       (SELECT count(*) FROM allocation
        WHERE computer_id = c.id AND state IN ('submitting', 'queued', 'running'))
FROM computer c LEFT JOIN authinfo a ON a.computer_id = c.id AND a.user_id = %(user)s
     LEFT JOIN connection n ON n.computer_id = c.id
WHERE %(label)s::text IS NULL OR c.label = %(label)s
ORDER BY c.label
"""

# A new computer; nothing comes back where the label is taken.
_ADD = """
INSERT INTO computer (label, hostname, description, scheduler_type, transport_type, metadata)
VALUES (%(label)s, %(hostname)s, %(description)s, %(scheduler_type)s, %(transport_type)s, %(metadata)s)
ON CONFLICT (label) DO NOTHING RETURNING id, uuid::text
"""

# What is new of a computer that is there.
_REPLACE = """
UPDATE computer SET hostname = %(hostname)s, description = %(description)s,
       scheduler_type = %(scheduler_type)s, transport_type = %(transport_type)s, metadata = %(metadata)s
WHERE id = %(id)s
"""

# How a user reaches a computer, whether or not it was known before.
_AUTHORIZE = """
INSERT INTO authinfo (user_id, computer_id, auth_params) VALUES (%s, %s, %s)
ON CONFLICT (user_id, computer_id) DO UPDATE SET auth_params = EXCLUDED.auth_params
"""

# Whether a user may use a computer.
_ENABLE = """
INSERT INTO authinfo (user_id, computer_id, enabled) VALUES (%s, %s, %s)
ON CONFLICT (user_id, computer_id) DO UPDATE SET enabled = EXCLUDED.enabled
"""


def add(cursor: Cursor, computer: Computer, *, user_id: int) -> StoredComputer:
    """Record a computer, and how this user reaches it.

    Errors: InputInvalid; NameExists.
    """
    computer = checked(computer)
    with translated():
        cursor.execute(_ADD, {**_columns(computer), "metadata": Json(_metadata(computer, {}))})
        row = cursor.fetchone()
        if row is None:
            raise NameExists(
                f"a computer {computer.label!r} exists: take another label, or `grange computer edit` it"
            )
        cursor.execute(_AUTHORIZE, (user_id, row[0], Json(_auth_params(computer, {}))))
    return StoredComputer(row[0], row[1], computer, enabled=True)


def load(cursor: Cursor, label: str, *, user_id: int) -> StoredComputer:
    """The computer of a label as this user has it; what its row does not say is as Computer has it.

    Errors: NotFound, with the labels that are most like it; InputInvalid for one that grange cannot use (of a
    scheduler that only AiiDA knows, say).
    """
    with translated():
        cursor.execute(_FIND, {"user": user_id, "label": label})
        row = cursor.fetchone()
    if row is None:
        raise _not_found(cursor, label)
    identity, uuid, *facts, enabled = row
    return StoredComputer(identity, uuid, _computer(*facts), enabled)


def list_computers(cursor: Cursor, *, user_id: int, label: str | None = None) -> list[ComputerSummary]:
    """All computers by label, or the one of a label, in a line each."""
    with translated():
        cursor.execute(_SUMMARIES, {"user": user_id, "label": label})
        return [ComputerSummary(*(*row, _state(*row[5:7], *row[9:11]))) for row in cursor.fetchall()]


def _state(scheduler_type: str, transport_type: str, enabled: bool, paused: bool) -> str:
    if scheduler_type not in SCHEDULER_TYPES or transport_type not in TRANSPORT_TYPES:
        return "unusable"
    if not enabled:
        return "disabled"
    return "paused" if paused else "enabled"


def summary(cursor: Cursor, label: str, *, user_id: int) -> ComputerSummary:
    """One line of list_computers. Errors: NotFound."""
    found = list_computers(cursor, user_id=user_id, label=label)
    if not found:
        raise _not_found(cursor, label)
    return found[0]


def replace(cursor: Cursor, computer: Computer, *, user_id: int) -> StoredComputer:
    """Record what a computer is now, found by its label; the nodes that name it stay with it.

    Errors: InputInvalid; NotFound.
    """
    computer = checked(computer)
    identity, metadata, auth_params = _documents(cursor, computer.label, user_id)
    with translated():
        values = {**_columns(computer), "metadata": Json(_metadata(computer, metadata)), "id": identity}
        cursor.execute(_REPLACE, values)
        cursor.execute(_AUTHORIZE, (user_id, identity, Json(_auth_params(computer, auth_params))))
    return load(cursor, computer.label, user_id=user_id)


def duplicate(cursor: Cursor, label: str, new_label: str, *, user_id: int) -> StoredComputer:
    """Record a computer like another one. Errors: NotFound; InputInvalid; NameExists."""
    original = load(cursor, label, user_id=user_id)
    return add(cursor, dataclasses.replace(original.computer, label=new_label), user_id=user_id)


def enable(cursor: Cursor, labels: Sequence[str], *, user_id: int, enabled: bool = True) -> None:
    """Let grange use computers for this user, or no more. Errors: NotFound."""
    for label in labels:
        identity = computer_id(cursor, label)
        with translated():
            cursor.execute(_ENABLE, (user_id, identity, enabled))


def uses(cursor: Cursor, label: str) -> list[str]:
    """Why a computer cannot be deleted, in words; empty where nothing stands in the way. Errors: NotFound."""
    identity = computer_id(cursor, label)
    with translated():
        cursor.execute("SELECT count(*) FROM node WHERE computer_id = %s", (identity,))
        (nodes,) = cursor.fetchone() or (0,)
        cursor.execute(
            "SELECT count(*) FROM allocation WHERE computer_id = %s AND state::text = ANY (%s)",
            (identity, list(OPEN_ALLOCATION_STATES)),
        )
        (allocations,) = cursor.fetchone() or (0,)
    reasons = []
    if nodes:
        reasons.append(f"{nodes:,} {'node names' if nodes == 1 else 'nodes name'} it")
    if allocations:
        jobs = "allocation of it is" if allocations == 1 else "allocations of it are"
        reasons.append(f"{allocations:,} {jobs} in the queue or runs")
    return reasons


def delete(cursor: Cursor, label: str) -> None:
    """Delete a computer with all settings, unless something needs it.

    Errors: NotFound; InUse while nodes name it, or jobs of ours may be in its queue.
    """
    reasons = uses(cursor, label)
    if reasons:
        raise InUse(f"the computer {label!r} cannot be deleted: {' and '.join(reasons)}")
    try:
        cursor.execute("DELETE FROM computer WHERE label = %s", (label,))
    except driver.ForeignKeyViolation as error:  # a node that somebody has just stored
        raise InUse(f"the computer {label!r} cannot be deleted: {error.diag.message_primary}") from error


def computer_id(cursor: Cursor, label: str) -> int:
    """The id of a computer. Errors: NotFound."""
    with translated():
        cursor.execute("SELECT id FROM computer WHERE label = %s", (label,))
        row = cursor.fetchone()
    if row is None:
        raise _not_found(cursor, label)
    return int(row[0])


def of_aiida_mpirun(template: str) -> str:
    """A template of AiiDA with the names that its fields have here."""
    for theirs, ours in _MPIRUN_FIELDS.items():
        template = template.replace(theirs, ours)
    return template


def to_aiida_mpirun(template: str) -> str:
    """The inverse."""
    for theirs, ours in _MPIRUN_FIELDS.items():
        template = template.replace(ours, theirs)
    return template


# ---------------------------------------------------------------- rows


def _computer(
    label: str,
    hostname: str,
    description: str,
    scheduler_type: str,
    transport_type: str,
    metadata: object,
    auth_params: object,
) -> Computer:
    """A computer from its rows. Errors: InputInvalid, which names the computer."""
    settings = auth_params if isinstance(auth_params, dict) else {}
    try:
        transport = _kind("transport_type", transport_type, TRANSPORT_TYPES)
        if transport == "openssh":
            hostname = settings.get("host") or hostname
        computer = Computer(
            label=label,
            hostname=hostname,
            description=description,
            scheduler=_kind("scheduler_type", scheduler_type, SCHEDULER_TYPES),
            transport=transport,
            **_of_metadata(metadata if isinstance(metadata, dict) else {}),
            **_of_auth_params(settings),
        )
        # Also of a row that an archive brought: its host name becomes a word of a command line. Only the
        # label may be one that grange would not give.
        values = {
            field.name: checked_field(field.name, getattr(computer, field.name))
            for field in dataclasses.fields(Computer)
            if field.name != "label"
        }
    except InputInvalid as error:
        raise InputInvalid(f"computer {label}: {error.port}", error.value, error.expected) from None
    return dataclasses.replace(computer, **values)


def _documents(cursor: Cursor, label: str, user_id: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """What the rows of a computer hold now, under a lock."""
    with translated():
        cursor.execute("SELECT id, metadata FROM computer WHERE label = %s FOR UPDATE", (label,))
        row = cursor.fetchone()
        if row is None:
            raise _not_found(cursor, label)
        cursor.execute(
            "SELECT auth_params FROM authinfo WHERE computer_id = %s AND user_id = %s", (row[0], user_id)
        )
        settings = cursor.fetchone()
    return row[0], dict(row[1]), dict(settings[0]) if settings else {}


def _kind(where: str, found: str, known: Mapping[str, _Kind]) -> _Kind:
    if found not in known:
        raise InputInvalid(where, found, f"one that grange can use: {', '.join(known)}")
    return known[found]


def _columns(computer: Computer) -> dict[str, str]:
    return {
        "label": computer.label,
        "hostname": computer.hostname,
        "description": computer.description,
        "scheduler_type": next(name for name, kind in SCHEDULER_TYPES.items() if kind == computer.scheduler),
        "transport_type": next(name for name, kind in TRANSPORT_TYPES.items() if kind == computer.transport),
    }


def _metadata(computer: Computer, before: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a computer; what is not ours stays as it was."""
    known = {name: getattr(computer, field) for name, field in _METADATA_NAMES.items()}
    known["mpirun_command"] = shlex.split(to_aiida_mpirun(computer.mpirun))
    memory_mb = computer.memory_mb_per_node
    known["default_memory_per_machine"] = None if memory_mb is None else memory_mb * 1024
    ours = {name: getattr(computer, name) for name in _OUR_METADATA}
    return {**before, **known, _OURS: {**ours, "directives": list(computer.directives)}}


def _of_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, as far as the document says something."""
    values = {
        field: metadata[name] for name, field in _METADATA_NAMES.items() if metadata.get(name) is not None
    }
    command = metadata.get("mpirun_command")
    if isinstance(command, list):
        values["mpirun"] = of_aiida_mpirun(joined([str(word) for word in command]))
    memory_kb = metadata.get("default_memory_per_machine")
    if isinstance(memory_kb, int | float) and memory_kb >= 1024:
        values["memory_mb_per_node"] = int(memory_kb // 1024)
    ours = metadata.get(_OURS)
    if isinstance(ours, dict):
        values.update({name: ours[name] for name in _OUR_METADATA if name in ours})
    return values


def _auth_params(computer: Computer, before: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a user; those that ~/.ssh/config decides are left out, as AiiDA leaves them."""
    ssh = computer.ssh
    after = {name: value for name, value in before.items() if name not in _AUTH_NAMES and name != "host"}
    for name, field in _AUTH_NAMES.items():
        if getattr(ssh, field):
            after[name] = getattr(ssh, field)
    if computer.transport == "openssh":
        after["host"] = computer.hostname
    after["safe_interval"] = computer.connection_interval_s
    after[_OURS] = {name: getattr(ssh, name) for name in _OUR_AUTH}
    return after


def _of_auth_params(auth_params: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, as far as the document says something."""
    settings = {field: auth_params[name] for name, field in _AUTH_NAMES.items() if auth_params.get(name)}
    ours = auth_params.get(_OURS)
    if isinstance(ours, dict):
        settings.update({name: ours[name] for name in _OUR_AUTH if name in ours})
    values: dict[str, Any] = {"ssh": SshSettings(**settings)}
    if auth_params.get("safe_interval") is not None:
        values["connection_interval_s"] = auth_params["safe_interval"]
    return values


def _not_found(cursor: Cursor, label: str) -> NotFound:
    with translated():
        cursor.execute("SELECT label FROM computer ORDER BY label LIMIT 1000")
        labels = [row[0] for row in cursor.fetchall()]
    near = difflib.get_close_matches(label, labels, n=3)
    if near:
        return NotFound(f"there is no computer {label!r}; did you mean {' or '.join(map(repr, near))}?")
    known = f"there are {', '.join(labels[:20])}" if labels else "`grange computer add` makes the first"
    return NotFound(f"there is no computer {label!r}; {known}")
