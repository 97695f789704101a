"""Bulk rows, ids, the index of blobs, and the driver's errors in grange's words."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator

import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core import database
from grange.core.blob_index import PostgresIndex
from grange.core.errors import DatabaseUnavailable
from grange.core.profile import Profile
from grange.repository.index import BlobLocation
from grange.repository.key import Key, key_of

VALUES = [
    None,
    True,
    False,
    3,
    1.5,
    "",
    "a",
    "tab\t",
    "line\n",
    "cr\r",
    "back\\slash",
    "\\N",
    "\\.",
    "ä€𝄞",
    "'\"",
]


def test_what_is_copied_in_comes_out(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute("CREATE TEMP TABLE t (at int, b bytea, v text)")
        lines = [database.copy_line((at, bytes([0, at, 92, 255]), value)) for at, value in enumerate(VALUES)]
        assert database.copy_rows(cursor, "t", ("at", "b", "v"), lines) == len(VALUES)
        assert database.copy_rows(cursor, "t", ("at", "b", "v"), [line.encode() for line in lines]) == len(
            VALUES
        )
        assert database.copy_rows(cursor, "t", ("at", "b", "v"), ()) == 0
        cursor.execute("SELECT b, v FROM t ORDER BY at")
        shown = [
            None if v is None else {True: "t", False: "f"}.get(v, str(v)) if isinstance(v, bool) else str(v)
            for v in VALUES
        ]
        expected = [(bytes([0, at, 92, 255]), v) for at, v in enumerate(shown) for _ in range(2)]
        assert [(bytes(b), v) for b, v in cursor.fetchall()] == expected


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0")))
def test_bytes_are_escaped_as_text_is(value: str) -> None:
    assert database.escape(value.encode()) == database.escape(value).encode()
    assert not set(database.escape(value)) & set("\t\n\r")


def test_many_lines_are_pulled_as_they_are_sent(profile: Profile) -> None:
    pulled = 0

    def lines() -> Iterator[str]:
        nonlocal pulled
        for number in range(50_000):
            pulled += 1
            yield f"{number}\n"

    with profile.transaction() as cursor:
        cursor.execute("CREATE TEMP TABLE t (a int)")
        assert database.copy_rows(cursor, "t", ("a",), lines()) == pulled == 50_000
        cursor.execute("SELECT sum(a) FROM t")
        assert cursor.fetchone() == (sum(range(50_000)),)


def test_what_the_lines_raise_comes_out_and_nothing_is_stored(profile: Profile) -> None:
    def lines() -> Iterator[str]:
        yield "a\n"
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"), profile.transaction() as cursor:
        database.copy_rows(cursor, "user", ("email",), lines())
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM \"user\" WHERE email = 'a'")
        assert cursor.fetchone() == (0,)


def test_ids_grow_and_are_nobody_elses(profile: Profile) -> None:
    taken: list[int] = []
    further = profile.connect()
    for _ in range(5):
        for connection in (profile.connection, further):
            with database.transaction(connection) as cursor:
                ids = list(database.reserve_ids(cursor, 1000))
                assert len(ids) == 1000
                assert ids == sorted(ids)
                taken += ids
                assert list(database.reserve_ids(cursor, 0)) == []
    assert len(set(taken)) == 10_000
    further.close()


def test_ids_when_others_take_some_in_between(profile: Profile) -> None:
    """Another session draws ids all the time, so that a block is seldom whole."""
    further = profile.connect()
    stop = threading.Event()
    others: list[int] = []

    def draw() -> None:
        while not stop.is_set():
            with database.transaction(further) as cursor:
                others.extend(database.reserve_ids(cursor, 3))

    thread = threading.Thread(target=draw)
    thread.start()
    taken: list[int] = []
    broken = 0
    while broken < 3 and len(taken) < 3_000_000:
        with profile.transaction() as cursor:
            ids = database.reserve_ids(cursor, 20_000)
        assert len(ids) == 20_000
        broken += not isinstance(ids, range)
        assert all(a < b for a, b in itertools.pairwise(ids))
        taken += ids
    stop.set()
    thread.join()
    further.close()
    assert broken == 3
    assert not set(taken) & set(others)


def test_uuids_are_of_version_7_and_grow() -> None:
    made = database.uuid7s(20_000, at_s=1_700_000_000.123)
    assert made == sorted(made)
    assert len(set(made)) == 20_000
    for text in made[:100]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 7, uuid.RFC_4122)
        assert parsed.int >> 80 == 1_700_000_000_123
    assert database.uuid7s(0) == []
    assert database.uuid7s(1)[0] > made[0]
    with pytest.raises(ValueError, match="at most"):
        database.uuid7s(1 << 26)


# ---------------------------------------------------------------- index


def location(pack: str, number: int) -> BlobLocation:
    return BlobLocation(pack, number * 100, 10, "deflate" if number % 2 else "stored", 20)


def test_index_of_many_blobs_in_many_packs(profile: Profile) -> None:
    rows = {key_of(b"%d" % number): location(f"packs/{number % 3}.zip", number) for number in range(3000)}
    with profile.transaction() as cursor:
        index = profile.index(cursor)
        assert index.find(rows) == {}
        index.add(rows)
        index.add({})
        assert index.find(()) == {}
        assert index.find([*rows, key_of(b"unknown")]) == rows
        cursor.execute("SELECT count(*) FROM pack")
        assert cursor.fetchone() == (3,)


def test_a_known_key_keeps_its_place(profile: Profile) -> None:
    key = key_of(b"a")
    with profile.transaction() as cursor:
        PostgresIndex(cursor).add({key: location("one", 1)})
    with profile.transaction() as cursor:
        index = PostgresIndex(cursor)
        index.add({key: location("two", 2), key_of(b"b"): location("one", 3)})
        assert index.find([key, key_of(b"b")]) == {key: location("one", 1), key_of(b"b"): location("one", 3)}


def test_two_transactions_that_add_the_same(profile: Profile) -> None:
    """The second waits for the first; both blobs and packs are there once, and nothing is lost."""
    further = profile.connect()
    shared: dict[Key, BlobLocation] = {
        key_of(b"%d" % number): location("pack", number) for number in range(100)
    }
    mine = {**shared, key_of(b"mine"): location("pack", 1)}
    errors: list[Exception] = []

    def add() -> None:
        try:
            with database.transaction(further) as cursor:
                PostgresIndex(cursor).add(mine)
        except Exception as error:
            errors.append(error)

    with profile.transaction() as cursor:
        PostgresIndex(cursor).add(shared)
        thread = threading.Thread(target=add)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "it did not wait"
    thread.join()
    assert errors == []
    with profile.transaction() as cursor:
        assert PostgresIndex(cursor).find(mine) == mine
    further.close()


def test_what_the_database_refuses_in_our_words(profile: Profile) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not let this user write"):
        with profile.transaction() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY; DELETE FROM node")


def test_a_server_that_is_gone_in_the_middle_of_an_answer_is_away() -> None:
    """What psycopg2 raises then is neither an OperationalError nor an InterfaceError."""
    known = database.translate(psycopg2.DatabaseError("server closed the connection unexpectedly"))
    assert isinstance(known, DatabaseUnavailable)
    bug = psycopg2.ProgrammingError("can't adapt type")
    assert database.translate(bug) is bug
