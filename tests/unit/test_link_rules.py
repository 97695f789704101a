"""The rules of links, as far as they are known without the database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import Int
from grange.core.errors import LinkInvalid
from grange.core.link import KINDS, Link, LinkType, check, is_label
from grange.core.node import CalcFunctionNode, Kind, Node, NodeRef, WorkFunctionNode


def new(kind: Kind) -> Node:
    classes = {Kind.DATA: lambda: Int(1), Kind.CALCULATION: CalcFunctionNode, Kind.WORKFLOW: WorkFunctionNode}
    return classes[kind]()


@pytest.mark.parametrize("link_type", LinkType)
@pytest.mark.parametrize("source", Kind)
@pytest.mark.parametrize("target", Kind)
def test_a_link_goes_between_the_kinds_of_its_type_only(
    link_type: LinkType, source: Kind, target: Kind
) -> None:
    link = Link(new(source), new(target), link_type, "x")
    referring = Link(NodeRef(1, source), NodeRef(2, target), link_type, "x")
    if (source, target) == KINDS[link_type]:
        check([link])
        check([referring])
    else:
        for wrong in (link, referring):
            with pytest.raises(LinkInvalid, match=f"{link_type} goes from {KINDS[link_type][0]} to"):
                check([wrong])


def test_an_end_of_which_only_the_id_is_known_is_left_to_the_database() -> None:
    check([Link(1, CalcFunctionNode(), LinkType.INPUT_CALC, "x"), Link(2, 3, LinkType.RETURN, "y")])
    with pytest.raises(LinkInvalid, match="input_calc goes from data to calculation"):
        check([Link(1, Int(1), LinkType.INPUT_CALC, "x")])


def test_the_wrong_one_of_many_is_named() -> None:
    calculation, data = CalcFunctionNode(), Int(1)
    wrong = Link(CalcFunctionNode(), calculation, LinkType.INPUT_CALC, "odd_one")
    good = [Link(data, calculation, LinkType.INPUT_CALC, f"x{number}") for number in range(50)]
    with pytest.raises(LinkInvalid, match="odd_one"):
        check([*good[:25], wrong, *good[25:]])


def test_no_type_of_link() -> None:
    with pytest.raises(LinkInvalid, match="there are input_calc, input_work"):
        check([Link(Int(1), CalcFunctionNode(), "inputs", "x")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "label", ["", "_x", "x_", "1x", "x-y", "x y", "x.y", "é", "x\n", "x\0", "x\tINPUT", "__", "x'; DROP"]
)
def test_a_label_that_is_no_name_is_refused(label: str) -> None:
    assert not is_label(label)
    with pytest.raises(LinkInvalid, match="a label is made of"):
        check([Link(Int(1), CalcFunctionNode(), LinkType.INPUT_CALC, label)])


@pytest.mark.parametrize("label", ["x", "X1", "a_b", "a__0", "result"])
def test_labels(label: str) -> None:
    assert is_label(label)


def test_a_process_has_one_input_of_each_label() -> None:
    calculation, workflow = CalcFunctionNode(), WorkFunctionNode()
    for target, link_type in ((calculation, LinkType.INPUT_CALC), (workflow, LinkType.INPUT_WORK)):
        with pytest.raises(LinkInvalid, match="one input of each label"):
            check([Link(Int(number), target, link_type, "x") for number in range(2)])


def test_one_data_node_may_be_several_inputs_of_many_processes() -> None:
    data = Int(1)
    processes = [CalcFunctionNode(), CalcFunctionNode()]
    check([Link(data, process, LinkType.INPUT_CALC, label) for process in processes for label in "xy"])


def test_a_process_has_one_output_of_each_label() -> None:
    for source, link_type in ((CalcFunctionNode(), LinkType.CREATE), (WorkFunctionNode(), LinkType.RETURN)):
        with pytest.raises(LinkInvalid, match="one output of each label"):
            check([Link(source, Int(number), link_type, "x") for number in range(2)])


def test_data_is_created_once_and_returned_often() -> None:
    data = Int(1)
    check([Link(WorkFunctionNode(), data, LinkType.RETURN, "x") for _ in range(2)])
    with pytest.raises(LinkInvalid, match="created by one calculation"):
        check([Link(CalcFunctionNode(), data, LinkType.CREATE, "x") for _ in range(2)])


def test_a_process_is_called_once() -> None:
    called = CalcFunctionNode()
    with pytest.raises(LinkInvalid, match="called by one workflow"):
        check([Link(WorkFunctionNode(), called, LinkType.CALL_CALC, "x") for _ in range(2)])


@given(
    st.lists(
        st.tuples(st.sampled_from(range(4)), st.sampled_from(range(4)), st.sampled_from("ab")), max_size=12
    )
)
def test_what_passes_breaks_no_rule(triples: list[tuple[int, int, str]]) -> None:
    calculations = [CalcFunctionNode() for _ in range(4)]
    data = [Int(number) for number in range(4)]
    links = [Link(calculations[c], data[d], LinkType.CREATE, label) for c, d, label in triples]
    allowed = len({(c, label) for c, _, label in triples}) == len(triples) == len({d for _, d, _ in triples})
    if allowed:
        check(links)
    else:
        with pytest.raises(LinkInvalid):
            check(links)
