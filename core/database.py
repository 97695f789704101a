"""The way to PostgreSQL: connections, transactions, bulk rows, ids, and errors in grange's own words.

Functions take a cursor and never commit; whoever opened the transaction owns it.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar, cast

import psycopg2
from psycopg2 import extensions

from grange.core.errors import DatabaseUnavailable, LinkInvalid, NameExists, NodeImmutable

Cursor = extensions.cursor

Text = TypeVar("Text", str, bytes)

#: Bytes handed to libpq at once by copy_rows: larger brings nothing more (bench/graph_write).
_COPY_BLOCK = 1 << 17

_LINK_RULES = {
    "link_label": "a label is letters, digits and underscores, a letter first, no underscore last",
    "link_acyclic": "inputs of calculations, creators and callers must be stored before what comes of them",
    "link_input": "a process has one input of each label",
    "link_output": "a process has one output of each label",
    "link_creator": "a data node is created by one calculation",
    "link_caller": "a process is called by one workflow",
    "link_ends": "",
}
_NAMES = {
    "user_email_key": "a user of that email exists",
    "computer_label_key": "a computer of that label exists",
    "group_label_type_string_key": "a group or campaign of that label exists",
}


class Connection(extensions.connection):
    """A connection that several threads may use: each has its turn for a whole transaction."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.turn = threading.RLock()


def connect(dsn: str) -> Connection:
    """A connection with grange's defaults: UTC, our name on it, a dead peer noticed within two minutes.

    dsn: a postgresql:// URL or libpq's keywords.
    Errors: DatabaseUnavailable.
    """
    with translated():
        return psycopg2.connect(
            dsn,
            connection_factory=Connection,
            application_name="grange",
            connect_timeout=10,
            client_encoding="UTF8",
            keepalives=1,
            keepalives_idle=60,
            keepalives_interval=10,
            keepalives_count=6,
            # The server, too, must notice a client whose host vanished: it holds that worker's locks.
            options="-c timezone=UTC -c tcp_keepalives_idle=60 -c tcp_keepalives_interval=10"
            " -c tcp_keepalives_count=6",
        )


def is_lost(connection: Connection) -> bool:
    """Whether the session has ended without us: the server of an idle one has nothing else to say."""
    if connection.closed:
        return True
    with connection.turn:
        if connection.closed:  # another thread has seen it meanwhile
            return True
        if connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT")
            connection.rollback()
        except psycopg2.Error:
            return True
    return False


@contextmanager
def transaction(connection: Connection) -> Iterator[Cursor]:
    """A cursor in a transaction of its own: committed at the end, rolled back by an exception. Not nested.

    While another thread is in one, this waits.
    Errors: those of translated(); RuntimeError when this thread is in a transaction already.
    """
    with connection.turn:
        if connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE and not connection.closed:
            raise RuntimeError("transactions are not nested: this connection is in one already")
        with translated():
            with connection.cursor() as cursor:
                try:
                    yield cursor
                except BaseException:
                    if not connection.closed:
                        connection.rollback()
                    raise
                connection.commit()


def commit_quickly(cursor: Cursor) -> None:
    """Let the commit of this transaction return before it is on disk: within a second it will be.

    Everybody sees at once what was committed. When the server crashes before, it is as if the transaction
    had not been, and nothing that was committed behind it has been either. So it is for those who, when the
    connection is lost, go on from what is there, and have told nobody but the database.
    """
    cursor.execute("SET LOCAL synchronous_commit = off")


@contextmanager
def translated() -> Iterator[None]:
    """Let errors of the driver out as errors of grange; what only a bug can cause stays as it is."""
    try:
        yield
    except psycopg2.Error as error:
        known = translate(error)
        if known is error:
            raise
        raise known from error


def translate(error: psycopg2.Error) -> Exception:
    """The error of grange that a driver's error means, or the error itself.

    DatabaseUnavailable: not reached, connection lost, disk full, no right, lost a race with another
    transaction. LinkInvalid, NodeImmutable, NameExists: by the constraint that refused.
    """
    diagnostics = error.diag
    constraint = diagnostics.constraint_name
    message = diagnostics.message_primary or str(error).strip()
    if constraint in ("node_immutable", "link_immutable"):
        return NodeImmutable(message)
    if constraint in _LINK_RULES:
        rule = _LINK_RULES[constraint]
        facts = diagnostics.message_detail
        return LinkInvalid(": ".join(part for part in (rule or message, facts) if part))
    if constraint in _NAMES:
        return NameExists(
            ": ".join(part for part in (_NAMES[constraint], diagnostics.message_detail) if part)
        )
    state = error.pgcode or ""
    if state[:2] == "40":
        return DatabaseUnavailable(f"another transaction was in the way, do it again: {message}")
    if state in ("53100", "58030"):
        return DatabaseUnavailable(f"the disk of the database is full or failing: {message}")
    if state in ("25006", "42501"):
        return DatabaseUnavailable(f"the database does not let this user write: {message}")
    if state[:2] == "54":  # a value beyond what PostgreSQL's indexes or documents take
        return error
    # Where the server is gone in the middle of an answer, the driver says no more than DatabaseError.
    lost = (
        isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        or type(error) is psycopg2.DatabaseError
    )
    if lost and state != "57014":  # a statement that was cancelled on purpose
        return DatabaseUnavailable(f"the database cannot be reached: {message}")
    return error


def is_passing(error: DatabaseUnavailable) -> bool:
    """Whether the session is as it was and doing the same again may succeed: a lost race, a full disk."""
    cause = error.__cause__
    state = (cause.pgcode or "") if isinstance(cause, psycopg2.Error) else ""
    return state[:2] == "40" or state in ("53100", "58030")


# ---------------------------------------------------------------- many rows


def copy_rows(cursor: Cursor, table: str, columns: Sequence[str], lines: Iterable[Text]) -> int:
    """COPY rows into a table; returns how many.

    lines: rows of COPY's text format, each ended by a newline (one or more rows an item), all str or all
    bytes; escape() and copy_line() make them. They are pulled while the server takes in what came before,
    so that a generator builds rows while the server inserts them.
    Errors: what the iterator raises comes out as it is; those of translate() otherwise.
    """
    reader = _LineReader(lines)
    names = ", ".join(f'"{column}"' for column in columns)
    try:
        cursor.copy_expert(f'COPY "{table}" ({names}) FROM STDIN', cast(Any, reader), _COPY_BLOCK)
    except psycopg2.Error as error:
        if reader.error is not None:
            raise reader.error from None
        known = translate(error)
        if known is error:
            raise
        raise known from error
    return int(cursor.rowcount)


class _LineReader:
    """What copy_expert reads from: a file in the eyes of the driver."""

    def __init__(self, lines: Iterable[str] | Iterable[bytes]) -> None:
        self._lines: Iterator[Any] = iter(lines)
        self.error: BaseException | None = None

    def read(self, size: int = _COPY_BLOCK) -> bytes:
        block: list[Any] = []
        length = 0
        try:
            for line in self._lines:
                block.append(line)
                length += len(line)
                if length >= size:
                    break
            if not block:
                return b""
            return b"".join(block) if isinstance(block[0], bytes) else "".join(block).encode()
        except BaseException as error:
            self.error = error
            raise


def escape(value: Text) -> Text:
    """A text as a field of COPY's text format. For JSON, too: give it the whole document."""
    if isinstance(value, bytes):
        if b"\\" in value:
            value = value.replace(b"\\", b"\\\\")
        return value.replace(b"\n", b"\\n").replace(b"\r", b"\\r").replace(b"\t", b"\\t")
    if "\\" in value:
        value = value.replace("\\", "\\\\")
    return value.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def copy_line(values: Iterable[object]) -> str:
    """One row of COPY's text format: None, bool, int, float, str, bytes (bytea), or what str() renders."""
    return "\t".join(map(_field, values)) + "\n"


def _field(value: object) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\\\x" + value.hex()
    return escape(str(value))


# ---------------------------------------------------------------- ids


def reserve_ids(cursor: Cursor, count: int) -> Sequence[int]:
    """Ids for new nodes, in growing order, in one statement (two when others take ids at the same moment)."""
    if count <= 0:
        return range(0)
    return _reserved(cursor, count)[0]


def reserve_ids_and_time(cursor: Cursor, count: int) -> tuple[Sequence[int], datetime]:
    """The same, and when the transaction began: the ctime and mtime that its nodes get."""
    return _reserved(cursor, count)


def _reserved(cursor: Cursor, count: int) -> tuple[Sequence[int], datetime]:
    cursor.execute(
        "SELECT min(id), max(id), now()"
        " FROM (SELECT nextval('node_id') AS id FROM generate_series(1, %s)) AS taken",
        (count,),
    )
    first, last, now = cursor.fetchone() or (0, 0, None)
    if last - first + 1 == count:
        return range(first, last + 1), now
    # Others took ids in between. Gaps cost nothing, so these are let go.
    cursor.execute("SELECT array_agg(nextval('node_id')) FROM generate_series(1, %s)", (count,))
    (ids,) = cursor.fetchone() or ([],)
    return list(ids), now


def uuid7s(count: int, *, at_s: float | None = None) -> list[str]:
    """Time-ordered UUIDs (RFC 9562, version 7), growing within the call, from one draw of randomness.

    48 bits of milliseconds, a counter of 26 bits that begins at random in its lower half, 48 random bits
    each: neighbours in time are neighbours in an index.
    Shapes: count in, at most 2²⁵.
    """
    if count <= 0:
        return []
    if count > 1 << 25:
        raise ValueError(f"at most {1 << 25} UUIDs at once, not {count}")
    milliseconds = f"{int((time.time() if at_s is None else at_s) * 1000):012x}"
    head = f"{milliseconds[:8]}-{milliseconds[8:]}-7"
    noise = os.urandom(6 * count + 4).hex()
    first = int(noise[-8:], 16) & 0x1FFFFFF
    return [
        f"{head}{counter >> 14:03x}-{0x8000 | counter & 0x3FFF:04x}-{noise[at : at + 12]}"
        for counter, at in zip(range(first, first + count), range(0, 12 * count, 12), strict=True)
    ]
