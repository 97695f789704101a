"""Storing and loading nodes and links, in a real database."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grange.core import graph, group
from grange.core.data import (
    Array,
    Bool,
    ContainerizedCode,
    Dict,
    Enum,
    Float,
    Folder,
    InstalledCode,
    Int,
    List,
    Null,
    PortableCode,
    RemoteFolder,
    SingleFile,
    Str,
    Structure,
)
from grange.core.data.convert import plain, to_data
from grange.core.errors import InputInvalid, LinkInvalid, NameExists, NodeImmutable, NotFound
from grange.core.link import Link, LinkType
from grange.core.node import (
    CalcFunctionNode,
    CalcJobNode,
    CalculationNode,
    Data,
    Kind,
    Node,
    NodeRef,
    WorkChainNode,
    WorkflowNode,
    WorkFunctionNode,
)
from grange.core.profile import Profile
from grange.repository import BlobMissing, Key, key_of


class Colour(enum.Enum):
    RED = "r"


Reader = Callable[[Sequence[Key]], list[bytes]]


@pytest.fixture
def reader(profile: Profile) -> Reader:
    def read(keys: Sequence[Key]) -> list[bytes]:
        with profile.transaction() as cursor:
            return profile.repository.read(keys, profile.index(cursor))

    return read


def store(profile: Profile, nodes: Sequence[Node], links: Sequence[Link] = (), **more: Any) -> None:
    user_id = profile.user_id
    with graph.forgotten_on_error(nodes), profile.transaction() as cursor:
        graph.store(
            cursor,
            nodes,
            links,
            user_id=user_id,
            repository=profile.repository,
            index=profile.index(cursor),
            **more,
        )


def load(profile: Profile, nodes: Sequence[Node], reader: Reader | None = None) -> list[Any]:
    with profile.transaction() as cursor:
        return graph.load(cursor, [node.id for node in nodes if node.id is not None], reader)


def counts(profile: Profile) -> tuple[int, int, int]:
    """How many nodes, links and blobs there are."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM link), (SELECT count(*) FROM blob)"
        )
        return cursor.fetchone()  # type: ignore[return-value]


def one_of_each(tmp_path: Path) -> list[Data]:
    (tmp_path / "large").write_bytes(b"0123456789" * 30_000)
    return [
        Int(-(2**100)),
        Float(1e300),
        Float(-math.inf),
        Str("tab\t nl\n cr\r \\N \\. \\ é 𝄞 '\" \x7f\x01"),
        Bool(False),
        Null(),
        List([1, 1.0, 1e16, 1e22, -1e22, 1e-300, -0.0, 2**70, None, True, "\\", {"e5": [[]]}]),
        Dict({"a\tb\\": {"\n": "\r"}, "": 0}, label="l\t\\", description="d\n\\."),
        Enum(Colour.RED),
        Array({"a": np.eye(3), "b": np.arange(3)}),
        Array(np.zeros((0, 2))),
        SingleFile(b"abc", "a\tb\\c"),
        SingleFile(tmp_path / "large"),
        Folder({"a/b": b"1", "a/c/d": b"abc", "e": tmp_path / "large"}),
        Structure(ase.build.molecule("CH3")),
        InstalledCode("/bin/true"),
        PortableCode("run", {"run": b"#!/bin/sh"}),
        ContainerizedCode("ch-run {image_name} --", "/images/qe", "pw.x"),
        RemoteFolder("/scratch"),
        RemoteFolder("/scratch", computer_id=7),
    ]


def test_every_type_comes_back_as_it_was(profile: Profile, reader: Reader, tmp_path: Path) -> None:
    nodes = one_of_each(tmp_path)
    nodes[0].extras["note\\"] = [1, "\t"]
    hashes = [node.content_hash() for node in nodes]
    store(profile, nodes)
    loaded = load(profile, nodes, reader)
    for before, after, content_hash in zip(nodes, loaded, hashes, strict=True):
        assert type(after) is type(before)
        assert after.node_type == before.node_type
        assert (after.id, after.uuid, after.ctime, after.user_id) == (
            before.id,
            before.uuid,
            before.ctime,
            profile.user_id,
        )
        assert after.ctime is not None
        assert after.attributes == before.attributes
        assert (after.label, after.description, after.extras) == (
            before.label,
            before.description,
            before.extras,
        )
        assert after.files == before.files
        assert after.read_files() == before.read_files()
        assert after.content_hash() == content_hash  # as it is in the row
        again = type(after).from_attributes(after.attributes, after.files)
        again.computer_id = after.computer_id
        assert again.content_hash() == content_hash  # computed from what came back
    np.testing.assert_equal([plain(node) for node in loaded], [plain(node) for node in nodes])
    assert [type(item) for item in loaded[6].value] == [type(item) for item in nodes[6].value]


def test_processes_come_back(profile: Profile, reader: Reader) -> None:
    processes = [
        cls({"process_label": "f", "version": {"core": "1"}}, process_type="a\\b", label="x")
        for cls in (
            CalcFunctionNode,
            CalcJobNode,
            WorkFunctionNode,
            WorkChainNode,
            CalculationNode,
            WorkflowNode,
        )
    ]
    processes.append(CalcFunctionNode(files={"source_file": b"def f(): pass", "a/b": b""}))
    store(profile, processes)
    for before, after in zip(processes, load(profile, processes, reader), strict=True):
        assert type(after) is type(before)
        assert after.attributes == before.attributes
        assert (after.process_type, after.kind, after.label) == (
            before.process_type,
            before.kind,
            before.label,
        )
        assert after.read_files() == before.read_files()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a\\\t\n"é'), inner),
    max_leaves=15,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(JSON | st.floats(), min_size=1, max_size=10),
    st.text(st.characters(exclude_characters="\0", codec="utf-8")),
)
def test_any_value_comes_back(profile: Profile, values: list[Any], label: str) -> None:
    nodes = [to_data(value, "x") for value in values]
    nodes[0].label = label
    store(profile, nodes)
    loaded = load(profile, nodes)
    for value, before, after in zip(values, nodes, loaded, strict=True):
        found = plain(after)
        assert found == value or (math.isnan(found) and math.isnan(value))
        assert type(found) is type(value)
        assert after.attributes == before.attributes
        assert repr(after.attributes).count(".") == repr(before.attributes).count(
            "."
        )  # no float became an integer
    assert loaded[0].label == label


def test_data_of_a_type_that_is_not_known_keeps_it(profile: Profile) -> None:
    attributes = {"alat": 1.0, "nested": {"a": [1, None]}}
    rows = [
        ("data", "data.quantumespresso.force_constants.ForceConstantsData.", Data),
        ("calculation", "process.calculation.special.SpecialNode.", CalculationNode),
        ("workflow", "process.workflow.special.SpecialNode.", WorkflowNode),
    ]
    user_id = profile.user_id
    with profile.transaction() as cursor:
        for kind, node_type, _ in rows:
            cursor.execute(
                "INSERT INTO node (uuid, kind, user_id, node_type, attributes)"
                " VALUES (gen_random_uuid(), %s, %s, %s, %s)",
                (kind, user_id, node_type, '{"alat": 1.0, "nested": {"a": [1, null]}}'),
            )
        loaded = graph.load(cursor, [1, 2, 3])
    for node, (kind, node_type, base) in zip(loaded, rows, strict=True):
        assert isinstance(node, base)
        assert (node.kind, node.node_type, node.attributes) == (kind, node_type, attributes)
    assert loaded[0].value == attributes  # type: ignore[attr-defined]
    copy = type(loaded[0]).from_attributes(attributes)  # type: ignore[attr-defined]
    store(profile, [copy])
    assert load(profile, [copy])[0].node_type == rows[0][1]


@pytest.fixture
def calculation(profile: Profile) -> tuple[list[Data], CalcFunctionNode, list[Data]]:
    """A stored calculation with two inputs and two outputs."""
    inputs: list[Data] = [Int(1), Structure(ase.build.bulk("Cu"))]
    process = CalcFunctionNode({"process_label": "f"})
    outputs: list[Data] = [Float(2.5, label="energy"), Folder({"out/log": b"fine"})]
    links = [Link(node, process, LinkType.INPUT_CALC, f"x{place}") for place, node in enumerate(inputs)]
    links += [Link(process, node, LinkType.CREATE, f"y{place}") for place, node in enumerate(outputs)]
    store(profile, [*inputs, process, *outputs], links)
    return inputs, process, outputs


def test_ids_grow_in_the_order_given_and_links_are_there(
    profile: Profile, calculation: tuple[list[Data], Node, list[Data]]
) -> None:
    inputs, process, outputs = calculation
    nodes = [*inputs, process, *outputs]
    ids = [node.id for node in nodes]
    assert ids == sorted(ids)  # type: ignore[type-var]
    assert [node.uuid for node in nodes] == sorted(str(node.uuid) for node in nodes)
    with profile.transaction() as cursor:
        cursor.execute("SELECT source_id, target_id, type::text, label FROM link ORDER BY label")
        assert cursor.fetchall() == [
            (inputs[0].id, process.id, "input_calc", "x0"),
            (inputs[1].id, process.id, "input_calc", "x1"),
            (process.id, outputs[0].id, "create", "y0"),
            (process.id, outputs[1].id, "create", "y1"),
        ]


def test_links_may_end_at_stored_nodes_however_these_are_named(
    profile: Profile, calculation: tuple[list[Data], Node, list[Data]]
) -> None:
    inputs, process, _ = calculation
    assert process.id is not None
    assert inputs[0].id is not None
    new, out = Int(3), Int(4)
    later = CalcFunctionNode()
    links = [
        Link(inputs[0], later, LinkType.INPUT_CALC, "a"),
        Link(NodeRef.data(inputs[0].id), later, LinkType.INPUT_CALC, "b"),
        Link(inputs[0].id, later, LinkType.INPUT_CALC, "c"),
        Link(new, later, LinkType.INPUT_CALC, "d"),
        Link(NodeRef.calculation(process.id), out, LinkType.CREATE, "late"),
    ]
    store(profile, [inputs[0], new, new, later, out], links)  # what is stored, or given twice, is stored once
    assert counts(profile)[:2] == (8, 9)


WRONG: list[tuple[str, Callable[[Node, Node, Node], list[Link]], str]] = [
    ("kinds", lambda d, c, w: [Link(c, c, LinkType.INPUT_CALC, "x")], "goes from data to calculation"),
    ("label", lambda d, c, w: [Link(d, c, LinkType.INPUT_CALC, "x\ty")], "a label"),
    ("twice", lambda d, c, w: [Link(d, c, LinkType.INPUT_CALC, "x")] * 2, "one input of each label"),
    ("unknown end", lambda d, c, w: [Link(Int(1), c, LinkType.INPUT_CALC, "x")], "store both ends before"),
    ("against order", lambda d, c, w: [Link(c, d, LinkType.CREATE, "x")], "in that order"),
    ("no such id", lambda d, c, w: [Link(0, c, LinkType.INPUT_CALC, "x")], "absent"),
    ("kind of an id", lambda d, c, w: [Link(1, w, LinkType.INPUT_WORK, "x")], "breaks the rules"),
    ("false kind", lambda d, c, w: [Link(NodeRef.data(1), w, LinkType.INPUT_WORK, "x")], "breaks the rules"),
]


@pytest.mark.parametrize(("wrong", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_broken_rule_leaves_nothing_stored(
    profile: Profile, wrong: Callable[[Node, Node, Node], list[Link]], message: str
) -> None:
    store(profile, [CalcFunctionNode()])  # id 1
    before = counts(profile)
    data, process, workflow = SingleFile(b"abc", "x"), CalcFunctionNode(), WorkFunctionNode()
    nodes: list[Node] = [data, process, workflow]
    with pytest.raises(LinkInvalid, match=message):
        store(
            profile,
            nodes,
            [*wrong(data, process, workflow), Link(data, workflow, LinkType.INPUT_WORK, "fine")],
        )
    assert counts(profile) == before
    assert not any(node.is_stored or node.uuid for node in nodes)
    assert data.files == {"x": b"abc"}
    store(profile, nodes, [Link(data, process, LinkType.INPUT_CALC, "x")])  # they are as good as new
    assert load(profile, nodes)[0].files == {"x": key_of(b"abc")}


def test_a_second_creator_and_caller_are_refused_by_the_database(
    profile: Profile, calculation: tuple[list[Data], Node, list[Data]]
) -> None:
    inputs, process, outputs = calculation
    for link, message in (
        (Link(inputs[1], process, LinkType.INPUT_CALC, "x0"), "one input of each label"),
        (Link(process, Int(1), LinkType.CREATE, "y0"), "one output of each label"),
    ):
        with pytest.raises(LinkInvalid, match=message):
            store(profile, [link.target] if isinstance(link.target, Data) else [], [link])
    early = CalcFunctionNode()
    with pytest.raises(LinkInvalid, match="in that order"):
        store(profile, [early], [Link(early, outputs[0], LinkType.CREATE, "z")])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda node: setattr(node, "label", "a\0b"),
        lambda node: setattr(node, "description", "\ud800"),
        lambda node: node.extras.update(x=math.nan),
        lambda node: node.extras.update(x=object()),
    ],
)
def test_what_postgresql_cannot_keep_is_refused_before_anything_is_stored(
    profile: Profile, spoil: Callable[[Node], None]
) -> None:
    nodes = [Int(1), Int(2), SingleFile(b"x", "x")]
    spoil(nodes[1])
    with pytest.raises(InputInvalid, match=r"Int\(not stored\)"):
        store(profile, nodes)
    assert counts(profile) == (0, 0, 0)
    assert not any(node.is_stored for node in nodes)


def test_a_file_that_vanished_leaves_nothing_stored(profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 300_000)
    nodes = [Int(1), SingleFile(path)]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        store(profile, nodes)
    assert counts(profile) == (0, 0, 0)
    assert not nodes[0].is_stored


def test_what_a_rolled_back_transaction_stored_is_forgotten(profile: Profile) -> None:
    user_id = profile.user_id
    nodes = [SingleFile(b"abc", "x"), Int(1)]

    def store_and_fail() -> None:
        with graph.forgotten_on_error(nodes), profile.transaction() as cursor:
            index = profile.index(cursor)
            graph.store(cursor, nodes, user_id=user_id, repository=profile.repository, index=index)
            assert all(node.is_stored for node in nodes)
            raise RuntimeError("later")

    with pytest.raises(RuntimeError, match="later"):
        store_and_fail()
    assert not any(node.is_stored for node in nodes)
    store(profile, nodes)
    assert counts(profile) == (2, 0, 1)


def test_one_content_is_one_blob(profile: Profile) -> None:
    source = b"def f(): pass"
    nodes: list[Node] = [CalcFunctionNode(files={"source_file": source}) for _ in range(20)]
    nodes += [SingleFile(bytes(bytearray(source)), f"f{number}") for number in range(3)]
    store(profile, nodes)
    assert counts(profile) == (23, 0, 1)
    store(profile, [SingleFile(source, "again")])
    assert counts(profile) == (24, 0, 1)


def test_nothing_to_store(profile: Profile) -> None:
    store(profile, [])
    assert counts(profile) == (0, 0, 0)


class TestImmutability:
    def test_stored_nodes_refuse_changes(self, profile: Profile) -> None:
        for node in (Int(1), CalcFunctionNode({"a": 1}), SingleFile(b"", "x")):
            node.attributes = dict(node.attributes)  # not stored yet
            store(profile, [node])
            for what, value in (
                ("attributes", {}),
                ("files", {}),
                ("computer_id", 1),
                ("process_type", "x"),
            ):
                with pytest.raises(NodeImmutable, match=f"is stored: its {what} cannot change"):
                    setattr(node, what, value)
            node.attributes["more"] = 1
            assert "more" not in node.attributes
            with pytest.raises(TypeError):
                node.files["y"] = b""  # type: ignore[index]

    def test_the_value_of_stored_data(self, profile: Profile) -> None:
        node = Dict({"a": [1]})
        store(profile, [node])
        with pytest.raises(NodeImmutable, match="is stored: its value cannot change"):
            node.value = {}  # type: ignore[misc]

    def test_label_description_and_extras_may_change(self, profile: Profile) -> None:
        nodes = [Int(1), Int(2)]
        store(profile, nodes)
        nodes[0].label, nodes[0].description = "new\t\\", "more"
        nodes[1].extras["x"] = {"y": [1e22, None]}
        with profile.transaction() as cursor:
            graph.update(cursor, nodes)
        first, second = load(profile, nodes)
        assert (first.label, first.description, first.extras) == ("new\t\\", "more", {})
        assert (second.label, second.extras) == ("", {"x": {"y": [1e22, None]}})
        assert first.mtime > first.ctime
        assert first.mtime == nodes[0].mtime
        nodes[0].extras["x"] = math.inf
        with profile.transaction() as cursor, pytest.raises(InputInvalid, match="extras"):
            graph.update(cursor, nodes)
        with profile.transaction() as cursor, pytest.raises(NotFound, match="not stored"):
            graph.update(cursor, [Int(1)])


class TestLoading:
    def test_in_order_and_repeated(self, profile: Profile) -> None:
        nodes = [Int(number) for number in range(5)]
        store(profile, nodes)
        ids = [node.id for node in (nodes[3], nodes[0], nodes[3])]
        with profile.transaction() as cursor:
            assert [node.value for node in graph.load(cursor, ids)] == [3, 0, 3]  # type: ignore[arg-type, attr-defined]
            assert graph.load(cursor, []) == []

    def test_missing_ids_are_listed(self, profile: Profile) -> None:
        store(profile, [Int(1)])
        with profile.transaction() as cursor:
            with pytest.raises(NotFound, match=r"no node has the id 7, 9$"):
                graph.load(cursor, [7, 1, 9, 7])
            with pytest.raises(NotFound, match="and 90 more"):
                graph.load(cursor, range(100, 200))

    def test_by_uuid_and_its_beginning(self, profile: Profile) -> None:
        nodes = [Int(number) for number in range(3)]
        store(profile, nodes)
        uuids = [str(node.uuid) for node in nodes]
        with profile.transaction() as cursor:
            loaded = graph.load_by_uuid(cursor, [uuids[2], uuids[0][:-1], uuids[1].replace("-", "").upper()])
            assert [node.id for node in loaded] == [nodes[2].id, nodes[0].id, nodes[1].id]
            assert graph.load_by_uuid(cursor, []) == []
            with pytest.raises(InputInvalid, match="several nodes begin so"):
                graph.load_by_uuid(cursor, [uuids[0], uuids[0][:10]])
            with pytest.raises(NotFound, match="ffff, 0000"):
                graph.load_by_uuid(cursor, ["ffff", uuids[0], "0000"])
            for wrong in ("", "xyz", "%", "0" * 33, "'; --"):
                with pytest.raises(InputInvalid, match="a uuid, or how one begins"):
                    graph.load_by_uuid(cursor, [wrong])

    def test_files_are_read_when_asked_for_or_all_at_once(self, profile: Profile) -> None:
        nodes = [Array(np.full(3, number)) for number in range(10)]
        nodes.append(Array(np.full(3, 0)))
        store(profile, nodes)
        calls: list[int] = []

        def read(keys: Sequence[Key]) -> list[bytes]:
            calls.append(len(keys))
            with profile.transaction() as cursor:
                return profile.repository.read(keys, profile.index(cursor))

        loaded = load(profile, nodes, read)
        assert calls == []
        assert (loaded[0].value == np.full(3, 0)).all()
        assert (loaded[0].value == np.full(3, 0)).all()
        assert calls == [1]
        graph.prefetch([*loaded, Int(1)])
        assert calls == [1, 10]  # what is there already is not read again; one key is read once
        for number, node in enumerate(loaded[:10]):
            assert (node.value == np.full(3, number)).all()
        assert calls == [1, 10]
        graph.prefetch(loaded)
        assert calls == [1, 10]

    def test_a_blob_that_is_gone(self, profile: Profile, reader: Reader) -> None:
        node = SingleFile(b"abc", "x")
        store(profile, [node])
        with profile.transaction() as cursor:
            cursor.execute("DELETE FROM blob")
        with pytest.raises(BlobMissing):
            _ = load(profile, [node], reader)[0].value

    def test_a_large_file_after_storing(self, profile: Profile, reader: Reader, tmp_path: Path) -> None:
        path = tmp_path / "large"
        content = b"x" * 300_000
        for place, more in (("there", {}), ("changed", {"reader": reader})):
            path.write_bytes(content)
            node = SingleFile(path)
            store(profile, [node], **more)
            if place == "changed":
                path.write_bytes(b"y" * 300_000)
            assert node.content == content
        path.write_bytes(content)
        node = SingleFile(path)
        store(profile, [node])
        path.write_bytes(b"z")
        with pytest.raises(FileNotFoundError, match="no access to the repository"):
            _ = node.content  # never what is there now


def test_clones_of_outputs(
    profile: Profile, reader: Reader, calculation: tuple[list[Data], Node, list[Data]]
) -> None:
    inputs, process, outputs = calculation
    clones = [CalcFunctionNode(), CalcFunctionNode()]
    links = [Link(inputs[0], clone, LinkType.INPUT_CALC, "x0") for clone in clones]
    store(profile, clones, links)
    user_id = profile.user_id
    with profile.transaction() as cursor:
        graph.clone_outputs(cursor, [(process.id, clone.id) for clone in clones], user_id=user_id)  # type: ignore[misc]
        graph.clone_outputs(cursor, [], user_id=user_id)
        for clone in clones:
            cursor.execute(
                "SELECT label, target_id FROM link WHERE source_id = %s AND type = 'create' ORDER BY label",
                (clone.id,),
            )
            labels, ids = zip(*cursor.fetchall(), strict=True)
            assert labels == ("y0", "y1")
            copies = graph.load(cursor, ids, reader)
            assert [node.id for node in copies] != [node.id for node in outputs]
            assert [node.content_hash() for node in copies] == [node.content_hash() for node in outputs]  # type: ignore[attr-defined]
            assert copies[0].label == "energy"
            found = copies[1]
    assert found.read_files() == {"out/log": b"fine"}


def test_structures_and_files_of_a_campaign_are_found_by_content(profile: Profile) -> None:
    inputs = [SingleFile(b"text", "a.txt"), InstalledCode("/bin/true"), Int(3)]
    process = CalcFunctionNode()
    output = SingleFile(b"other", "b.txt")
    links = [Link(node, process, LinkType.INPUT_CALC, f"x{place}") for place, node in enumerate(inputs)]
    store(profile, [*inputs, process, output], [*links, Link(process, output, LinkType.CREATE, "y")])
    user_id = profile.user_id
    with profile.transaction() as cursor:
        campaign = group.create(cursor, "mine", user_id=user_id, type_string="campaign")
        cursor.execute(
            "INSERT INTO process (node_id, campaign_id, label) VALUES (%s, %s, 'f')",
            (process.id, campaign.id),
        )
        wanted = {node.content_hash(): node.id for node in [*inputs, output]}
        found = graph.find_inputs(cursor, campaign.id, wanted.keys())
        assert {content: node.id for content, node in found.items()} == {
            node.content_hash(): node.id for node in inputs[:2]
        }
        assert graph.find_inputs(cursor, campaign.id + 1, wanted.keys()) == {}
        assert graph.find_inputs(cursor, campaign.id, []) == {}


class TestGroups:
    @pytest.fixture
    def nodes(self, profile: Profile) -> list[Node]:
        nodes: list[Node] = [Int(number) for number in range(4)]
        store(profile, nodes)
        return nodes

    @pytest.fixture
    def cursor(self, profile: Profile, nodes: list[Node]) -> Iterator[Any]:
        with profile.transaction() as cursor:
            yield cursor

    def test_create_load_list(self, cursor: Any, profile: Profile) -> None:
        made = group.create(cursor, "a", user_id=1, description="d")
        group.create(cursor, "b", user_id=1)
        group.create(cursor, "a", user_id=1, type_string="campaign")
        assert group.load(cursor, "a") == made
        assert (made.label, made.type_string, made.description, made.count) == ("a", "core", "d", 0)
        assert [(one.label, one.type_string) for one in group.list_groups(cursor)] == [
            ("a", "campaign"),
            ("a", "core"),
            ("b", "core"),
        ]
        assert [one.label for one in group.list_groups(cursor, "campaign")] == ["a"]

    def test_a_name_that_exists_is_refused_and_the_transaction_goes_on(self, cursor: Any) -> None:
        group.create(cursor, "a", user_id=1)
        with pytest.raises(NameExists, match="'a' of the type 'core' exists"):
            group.create(cursor, "a", user_id=1)
        assert group.load(cursor, "a").label == "a"

    @pytest.mark.parametrize("label", ["", "a\0b", 3])
    def test_labels(self, cursor: Any, label: Any) -> None:
        with pytest.raises(InputInvalid, match="group label"):
            group.create(cursor, label, user_id=1)

    def test_nodes_in_and_out(self, cursor: Any, nodes: list[Node]) -> None:
        made = group.create(cursor, "a", user_id=1)
        assert group.add_nodes(cursor, made, nodes[:3]) == 3
        assert group.add_nodes(cursor, made, [nodes[0], nodes[3].id]) == 1  # type: ignore[list-item]
        assert group.node_ids(cursor, made) == [node.id for node in nodes]
        assert group.load(cursor, "a").count == 4
        assert group.remove_nodes(cursor, made, [nodes[1], nodes[1], 999]) == 1
        assert group.node_ids(cursor, made) == [nodes[0].id, nodes[2].id, nodes[3].id]
        with pytest.raises(NotFound, match="the id 998, 999"):
            group.add_nodes(cursor, made, [999, nodes[1], 998])
        with pytest.raises(NotFound, match="has to be stored"):
            group.add_nodes(cursor, made, [Int(1)])
        assert group.load(cursor, "a").count == 3

    def test_delete(self, cursor: Any, nodes: list[Node]) -> None:
        made = [group.create(cursor, label, user_id=1) for label in "ab"]
        group.add_nodes(cursor, made[0], nodes)
        group.delete(cursor, made)
        assert group.list_groups(cursor) == []
        assert len(graph.load(cursor, [node.id for node in nodes])) == 4  # type: ignore[misc]
        with pytest.raises(NotFound, match="no group a, b any more"):
            group.delete(cursor, made)
        with pytest.raises(NotFound, match="no group 'a'"):
            group.load(cursor, "a")


def test_kinds_are_those_of_the_database(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute("SELECT unnest(enum_range(NULL::node_kind))::text, 0")
        assert {row[0] for row in cursor.fetchall()} == set(Kind)
        cursor.execute("SELECT unnest(enum_range(NULL::link_type))::text")
        assert {row[0] for row in cursor.fetchall()} == set(LinkType)
