"""The rules that the database itself holds: kinds and uniqueness of links, immutability, deletion."""

from __future__ import annotations

import threading
import time

import psycopg2
import pytest

from grange.core import database
from grange.core.errors import LinkInvalid, NameExists, NodeImmutable
from grange.core.profile import Profile
from grange.repository import BlobLocation, key_of

LINKS = ("source_id", "target_id", "type", "label")


@pytest.fixture
def nodes(profile: Profile) -> dict[str, int]:
    """Nodes by name; d, c, w are kinds, ids grow from left to right."""
    names = ("d1", "d2", "w1", "w2", "c1", "c2", "d3", "d4", "w3")
    kinds = {"d": "data", "c": "calculation", "w": "workflow"}
    user_id = profile.user_id
    with profile.transaction() as cursor:
        ids = database.reserve_ids(cursor, len(names))
        rows = [
            (node_id, uuid, kinds[name[0]], user_id, "data.core.int.Int.")
            for node_id, uuid, name in zip(ids, database.uuid7s(len(names)), names, strict=True)
        ]
        database.copy_rows(
            cursor, "node", ("id", "uuid", "kind", "user_id", "node_type"), map(database.copy_line, rows)
        )
    return dict(zip(names, ids, strict=True))


def add_links(profile: Profile, nodes: dict[str, int], *links: tuple[str, str, str, str]) -> None:
    """Add (source, target, type, label) in one COPY, in one transaction."""
    with profile.transaction() as cursor:
        database.copy_rows(
            cursor,
            "link",
            LINKS,
            (database.copy_line((nodes[s], nodes[t], kind, label)) for s, t, kind, label in links),
        )


def count(profile: Profile, table: str) -> int:
    with profile.transaction() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        return int((cursor.fetchone() or (0,))[0])


ENDS = {
    "input_calc": ("d1", "c1"),
    "input_work": ("d1", "w1"),
    "create": ("c1", "d3"),
    "return": ("w1", "d1"),
    "call_calc": ("w1", "c1"),
    "call_work": ("w1", "w2"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_each_kind_of_link_between_its_kinds_of_nodes(
    profile: Profile, nodes: dict[str, int], kind: str
) -> None:
    source, target = ENDS[kind]
    add_links(profile, nodes, (source, target, kind, "x"))
    assert count(profile, "link") == 1


@pytest.mark.parametrize("kind", ENDS)
def test_a_link_between_other_kinds_of_nodes_is_refused(
    profile: Profile, nodes: dict[str, int], kind: str
) -> None:
    allowed = "".join(end[0] for end in ENDS[kind])
    # every pair of kinds, the source older than the target
    for source, target in (
        *(("d1", "d3"), ("d1", "c1"), ("d1", "w1")),
        *(("c1", "d3"), ("c1", "c2"), ("c1", "w3")),
        *(("w1", "d3"), ("w1", "c1"), ("w1", "w2")),
    ):
        if source[0] + target[0] == allowed:
            continue
        with pytest.raises(LinkInvalid, match=rf'link "x" of type {kind} from node {nodes[source]} '):
            add_links(profile, nodes, (source, target, kind, "x"))
    assert count(profile, "link") == 0


def test_one_bad_link_of_many_and_nothing_is_stored(profile: Profile, nodes: dict[str, int]) -> None:
    with pytest.raises(LinkInvalid):
        add_links(profile, nodes, ("d1", "c1", "input_calc", "x"), ("d1", "c1", "create", "y"))
    assert count(profile, "link") == 0


def test_a_link_to_a_node_that_is_not_there(profile: Profile, nodes: dict[str, int]) -> None:
    with pytest.raises(LinkInvalid, match=r"node 999 \(absent\)"):
        add_links(profile, {**nodes, "none": 999}, ("d1", "none", "input_work", "x"))


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        (("d1", "c1", "input_calc", "x"), ("d2", "c1", "input_calc", "x"), "one input of each label"),
        (("d1", "w1", "input_work", "x"), ("d2", "w1", "input_work", "x"), "one input of each label"),
        (("d1", "c1", "input_calc", "x"), ("d1", "c1", "input_calc", "x"), "one input of each label"),
        (("c1", "d3", "create", "x"), ("c1", "d4", "create", "x"), "one output of each label"),
        (("c1", "d3", "create", "x"), ("c2", "d3", "create", "y"), "created by one calculation"),
        (("w1", "d3", "return", "x"), ("w1", "d4", "return", "x"), "one output of each label"),
        (("w1", "c1", "call_calc", "x"), ("w2", "c1", "call_calc", "y"), "called by one workflow"),
        (("w1", "w3", "call_work", "x"), ("w2", "w3", "call_work", "y"), "called by one workflow"),
    ],
)
def test_what_may_be_there_only_once(
    profile: Profile,
    nodes: dict[str, int],
    first: tuple[str, str, str, str],
    second: tuple[str, str, str, str],
    rule: str,
) -> None:
    add_links(profile, nodes, first)
    with pytest.raises(LinkInvalid, match=rule):
        add_links(profile, nodes, second)
    assert count(profile, "link") == 1


def test_what_may_be_there_often(profile: Profile, nodes: dict[str, int]) -> None:
    add_links(
        profile,
        nodes,
        ("d1", "c1", "input_calc", "x"),
        ("d1", "c1", "input_calc", "y"),  # the same data under two labels
        ("d1", "c2", "input_calc", "x"),  # the same label at two calculations
        ("c1", "d3", "create", "x"),
        ("c1", "d4", "create", "y"),
        ("w1", "d3", "return", "x"),
        ("w2", "d3", "return", "x"),  # many may return
        ("w1", "d3", "return", "y"),
        ("w1", "c1", "call_calc", "x"),
        ("w1", "c2", "call_calc", "x"),  # one label for many calls
    )
    assert count(profile, "link") == 10


@pytest.mark.parametrize("label", ["", "_x", "x_", "1x", "x-y", "x y", "x.y", "ä", "x\n", "_"])
def test_labels_that_are_refused(profile: Profile, nodes: dict[str, int], label: str) -> None:
    with pytest.raises(LinkInvalid, match="a label is letters, digits"):
        add_links(profile, nodes, ("d1", "c1", "input_calc", label))


@pytest.mark.parametrize("label", ["x", "X9", "x_y", "x__y", "x1_2"])
def test_labels_that_are_taken(profile: Profile, nodes: dict[str, int], label: str) -> None:
    add_links(profile, nodes, ("d1", "c1", "input_calc", label))
    assert count(profile, "link") == 1


@pytest.mark.parametrize(
    "link",
    [
        ("d3", "c1", "input_calc", "x"),
        ("c1", "d1", "create", "x"),
        ("w3", "c1", "call_calc", "x"),
        ("w3", "w1", "call_work", "x"),
        ("w1", "w1", "call_work", "x"),
    ],
)
def test_data_provenance_and_calls_go_from_older_to_newer(
    profile: Profile, nodes: dict[str, int], link: tuple[str, str, str, str]
) -> None:
    with pytest.raises(LinkInvalid, match="must be stored before"):
        add_links(profile, nodes, link)


def test_a_workflow_may_return_what_it_was_given(profile: Profile, nodes: dict[str, int]) -> None:
    add_links(profile, nodes, ("d3", "w1", "input_work", "x"), ("w1", "d3", "return", "x"))
    assert count(profile, "link") == 2


@pytest.mark.parametrize(
    "change",
    [
        "attributes = '{\"value\": 2}'",
        "node_type = 'data.core.float.Float.'",
        "uuid = gen_random_uuid()",
        "kind = 'workflow'",
        "id = id + 1000",
        "user_id = user_id + 1",
        "computer_id = 1",
        "ctime = ctime + interval '1 s'",
        "process_type = 'x'",
        "repository_metadata = '{\"o\": {}}'",
        "hash = '\\x00'",
    ],
)
def test_a_stored_node_does_not_change(profile: Profile, nodes: dict[str, int], change: str) -> None:
    with pytest.raises(NodeImmutable, match=f"node {nodes['c1']} is stored"):
        with profile.transaction() as cursor:
            cursor.execute(f"UPDATE node SET {change} WHERE id = %s", (nodes["c1"],))


def test_what_may_change_of_a_stored_node(profile: Profile, nodes: dict[str, int]) -> None:
    with profile.transaction() as cursor:
        cursor.execute(
            "UPDATE node SET label = 'a', description = 'b', extras = '{\"c\": 1}', mtime = now()"
            " WHERE id = %s",
            (nodes["d1"],),
        )
        assert cursor.rowcount == 1


def test_links_do_not_change(profile: Profile, nodes: dict[str, int]) -> None:
    add_links(profile, nodes, ("d1", "c1", "input_calc", "x"))
    with pytest.raises(NodeImmutable, match="links are never changed"):
        with profile.transaction() as cursor:
            cursor.execute("UPDATE link SET label = 'y'")


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("end", [0, 1])
def test_a_linked_node_is_not_deleted(profile: Profile, nodes: dict[str, int], kind: str, end: int) -> None:
    ends = ENDS[kind]
    add_links(profile, nodes, (*ends, kind, "x"))
    with pytest.raises(LinkInvalid, match=f"a link from node {nodes[ends[0]]} to node {nodes[ends[1]]}"):
        with profile.transaction() as cursor:
            cursor.execute("DELETE FROM node WHERE id = %s", (nodes[ends[end]],))
    assert count(profile, "node") == len(nodes)


def test_nodes_are_deleted_after_their_links(profile: Profile, nodes: dict[str, int]) -> None:
    add_links(profile, nodes, ("d1", "c1", "input_calc", "x"), ("c1", "d3", "create", "y"))
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM link")
        cursor.execute("DELETE FROM node WHERE id = ANY(%s)", ([nodes["c1"], nodes["d3"]],))
    assert count(profile, "node") == len(nodes) - 2


def wait_until_blocked(profile: Profile, pid: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with profile.transaction() as cursor:
            cursor.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", (pid,))
            if cursor.fetchone() == ("Lock",):
                return
        time.sleep(0.01)
    raise AssertionError("it was not held up")


def in_background(
    connection: database.Connection, statement: str, values: tuple[object, ...]
) -> tuple[threading.Thread, list[Exception]]:
    errors: list[Exception] = []

    def run() -> None:
        try:
            with database.transaction(connection) as cursor:
                cursor.execute(statement, values)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


INSERT = "INSERT INTO link (source_id, target_id, type, label) VALUES (%s, %s, 'input_calc', 'x')"


def test_a_link_that_comes_while_its_node_goes(profile: Profile, nodes: dict[str, int]) -> None:
    """The delete came first and has not committed: the link waits for it, and is refused."""
    deleting, linking = profile.connect(), profile.connect()
    with deleting.cursor() as cursor:
        cursor.execute("DELETE FROM node WHERE id = %s", (nodes["d1"],))
    thread, errors = in_background(linking, INSERT, (nodes["d1"], nodes["c1"]))
    wait_until_blocked(profile, linking.info.backend_pid)
    deleting.commit()
    thread.join()
    assert [type(error) for error in errors] == [LinkInvalid]
    assert count(profile, "link") == 0
    deleting.close()
    linking.close()


def test_a_node_that_goes_while_its_link_comes(profile: Profile, nodes: dict[str, int]) -> None:
    """The link came first and has not committed: the delete waits for it, and is refused."""
    deleting, linking = profile.connect(), profile.connect()
    with linking.cursor() as cursor:
        cursor.execute(INSERT, (nodes["d1"], nodes["c1"]))
    thread, errors = in_background(deleting, "DELETE FROM node WHERE id = %s", (nodes["d1"],))
    wait_until_blocked(profile, deleting.info.backend_pid)
    linking.commit()
    thread.join()
    assert [type(error) for error in errors] == [LinkInvalid]
    assert count(profile, "node") == len(nodes)
    deleting.close()
    linking.close()


def test_users_and_computers_with_nodes_stay(profile: Profile, nodes: dict[str, int]) -> None:
    with pytest.raises(psycopg2.errors.ForeignKeyViolation, match="user 1 still has nodes"):
        with profile.transaction() as cursor:
            cursor.execute('DELETE FROM "user" WHERE id = 1')
    with profile.transaction() as cursor:
        cursor.execute("INSERT INTO \"user\" (email) VALUES ('other@host')")
        cursor.execute("DELETE FROM \"user\" WHERE email = 'other@host'")
        assert cursor.rowcount == 1


def test_names_are_taken_once(profile: Profile) -> None:
    for statement, words in (
        (
            "INSERT INTO \"group\" (label, type_string, user_id) VALUES ('a', 'campaign', 1)",
            "group or campaign",
        ),
        ("INSERT INTO \"user\" (email) VALUES ('a@b')", "user of that email"),
        (
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type)"
            " VALUES ('a', 'b', 'c', 'd')",
            "computer of that label",
        ),
    ):
        with profile.transaction() as cursor:
            cursor.execute(statement)
        with pytest.raises(NameExists, match=words):
            with profile.transaction() as cursor:
                cursor.execute(statement)


def test_a_call_is_recorded_once_in_a_campaign(profile: Profile, nodes: dict[str, int]) -> None:
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO \"group\" (label, type_string, user_id) VALUES ('a', 'campaign', 1) RETURNING id"
        )
        (campaign_id,) = cursor.fetchone() or (0,)
        insert = (
            "INSERT INTO process (node_id, campaign_id, key, label) VALUES (%s, %s, %s, 'f')"
            " ON CONFLICT DO NOTHING"
        )
        cursor.execute(insert, (nodes["c1"], campaign_id, b"k"))
        assert cursor.rowcount == 1
        cursor.execute(insert, (nodes["c2"], campaign_id, b"k"))
        assert cursor.rowcount == 0
        cursor.execute(insert, (nodes["w1"], None, b"k"))
        assert cursor.rowcount == 1


def test_a_process_has_a_node_of_its_kind_and_goes_with_it(profile: Profile, nodes: dict[str, int]) -> None:
    insert = "INSERT INTO process (node_id, label) VALUES (%s, 'f')"
    for node_id in (nodes["d1"], 10**9):
        with pytest.raises(psycopg2.errors.ForeignKeyViolation, match="has no node"):
            with profile.transaction() as cursor:
                cursor.execute(insert, (node_id,))
    with profile.transaction() as cursor:
        cursor.execute(insert, (nodes["c1"],))
        cursor.execute(insert, (nodes["w1"],))
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM node WHERE id = %s", (nodes["c1"],))
        cursor.execute("SELECT node_id FROM process")
        assert cursor.fetchall() == [(nodes["w1"],)]


def test_a_pack_with_blobs_is_not_deleted(profile: Profile) -> None:
    place = BlobLocation("packs/aa/a.zip", 0, 1, "stored", 1)
    with profile.transaction() as cursor:
        profile.index(cursor).add({key_of(b"a"): place})
    with pytest.raises(psycopg2.IntegrityError, match="still has blobs"), profile.transaction() as cursor:
        cursor.execute("DELETE FROM pack")
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob")
        cursor.execute("DELETE FROM pack")
        assert cursor.rowcount == 1


def test_a_pack_that_gets_a_blob_meanwhile_is_not_deleted(profile: Profile) -> None:
    place = BlobLocation("packs/aa/a.zip", 0, 1, "stored", 1)
    with profile.transaction() as cursor:
        profile.index(cursor).add({key_of(b"a"): place})
        cursor.execute("DELETE FROM blob")
    refused: list[BaseException] = []
    other = profile.connect()

    def delete() -> None:
        try:
            with database.transaction(other) as cursor:
                cursor.execute("DELETE FROM pack")
        except psycopg2.IntegrityError as error:
            refused.append(error)

    deleter = threading.Thread(target=delete)
    with profile.transaction() as cursor:
        profile.index(cursor).add({key_of(b"b"): place})
        deleter.start()
        time.sleep(0.3)
        assert deleter.is_alive(), "it should wait for who adds a blob"
    deleter.join(10)
    other.close()
    assert len(refused) == 1
    with profile.transaction() as cursor:
        assert profile.index(cursor).find([key_of(b"b")]) == {key_of(b"b"): place}


@pytest.mark.parametrize("first", [3, 100])
def test_new_links_are_checked_by_index_whatever_came_before(first: int, profile: Profile) -> None:
    """What is checked first makes the plan of the connection: a few links, or many, among few nodes."""

    def add(calculations: int) -> int:
        with profile.transaction() as cursor:
            ids = database.reserve_ids(cursor, 2 * calculations)
            kinds = ["data", "calculation"] * calculations
            rows = zip(ids, database.uuid7s(len(ids)), kinds, [profile.user_id] * len(ids), strict=True)
            database.copy_rows(
                cursor,
                "node",
                ("id", "uuid", "kind", "user_id", "node_type"),
                (database.copy_line((*row, "a.kind.")) for row in rows),
            )
            database.copy_rows(
                cursor,
                "link",
                LINKS,
                (
                    database.copy_line((ids[place], ids[place + 1], "input_calc", "x"))
                    for place in range(0, len(ids), 2)
                ),
            )
            database.copy_rows(
                cursor,
                "process",
                ("node_id", "label"),
                (database.copy_line((node_id, "p")) for node_id in ids[1::2]),
            )
            cursor.execute("SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relname = 'node'")
            return int((cursor.fetchone() or (0,))[0])

    assert profile.user_id
    assert [add(first), add(1)] == [0, 0]
