"""Nodes and groups as a person at a prompt stores, loads and collects them."""

from __future__ import annotations

import pytest

import grange as gr
from grange.core.errors import InputInvalid, LinkInvalid, NameExists, NodeImmutable, NotFound
from grange.core.link import Link, LinkType
from grange.core.node import CalcFunctionNode, Node
from grange.core.profile import Profile


def count(profile: Profile) -> int:
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        return int((cursor.fetchone() or (0,))[0])


def test_nodes_are_stored_and_loaded_by_whatever_names_them(profile: Profile) -> None:
    number, file = gr.Int(7, label="seven"), gr.SingleFile(b"content", "a.txt")
    profile.store(number, file)
    assert number.id is not None
    assert number.uuid is not None
    again, by_uuid = profile.load(number.id, str(file.uuid)[:23])
    assert (again.value, again.label) == (7, "seven")  # type: ignore[attr-defined]
    assert by_uuid.read_file("a.txt") == b"content"
    with pytest.raises(NotFound):
        profile.load(10**9)
    with pytest.raises(NodeImmutable):
        again.attributes = {"value": 8}
    again.label = "VII"
    profile.update(again)
    assert profile.load(number.id)[0].label == "VII"


def test_links_that_break_a_rule_store_nothing(profile: Profile) -> None:
    data, process, other = gr.Int(1), CalcFunctionNode(), gr.Int(2)
    with pytest.raises(LinkInvalid, match="calculation"):
        profile.store(data, process, links=[Link(process, data, LinkType.INPUT_CALC, "x")])
    second = CalcFunctionNode()
    with pytest.raises(LinkInvalid, match="created by one"):
        profile.store(
            process,
            second,
            other,
            links=[Link(process, other, LinkType.CREATE, "y"), Link(second, other, LinkType.CREATE, "y")],
        )
    assert count(profile) == 0
    assert [node.id for node in (data, process, other)] == [None, None, None]
    profile.store(data, process, links=[Link(data, process, LinkType.INPUT_CALC, "x")])
    assert count(profile) == 2


def test_groups_collect_nodes(profile: Profile) -> None:
    nodes: list[Node] = [gr.Int(number) for number in range(5)]
    profile.store(*nodes)
    made = profile.create_group("favourites", nodes[:2], description="the best")
    assert (made.count, made.description) == (2, "the best")
    with pytest.raises(NameExists, match="favourites"):
        profile.create_group("favourites")
    with pytest.raises(InputInvalid):
        profile.create_group("")
    assert profile.add_to_group("favourites", nodes) == 3
    assert profile.add_to_group("favourites", nodes) == 0
    assert profile.remove_from_group("favourites", nodes[4:]) == 1
    assert [node.value for node in profile.group_nodes("favourites")] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert [group.label for group in profile.groups()] == ["favourites"]
    profile.delete_group("favourites")
    assert profile.groups() == []
    assert count(profile) == 5
    with pytest.raises(NotFound, match="favourites"):
        profile.group_nodes("favourites")


@pytest.mark.parametrize("label", ["", "a\x00b", "x" * 256, None])
def test_labels_of_groups_are_names(profile: Profile, label: str) -> None:
    with pytest.raises(InputInvalid, match="group label"):
        profile.create_group(label)
    with pytest.raises((InputInvalid, NotFound)):
        profile.group_nodes(label)


def test_a_function_that_is_not_where_it_runs_says_so(profile: Profile) -> None:
    import importlib
    import sys
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "grange_test_fleeting.py"
        module.write_text("def f(x):\n    return x\n")
        sys.path.insert(0, folder)
        try:
            function = importlib.import_module("grange_test_fleeting").f
            campaign = gr.Campaign("fleeting", profile)
            campaign.map(function, x=[1])
            module.unlink()
            assert campaign.run(progress=False).failed == 1
        finally:
            sys.path.remove(folder)
            del sys.modules["grange_test_fleeting"]
    row = campaign.results().iloc[0]
    assert row["exit_status"] == 180
    assert row["exit_message"].startswith("the function cannot be had where it was to run")
