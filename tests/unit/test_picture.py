from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID
from xml.etree import ElementTree

import pytest

from grange.core.provenance import GraphLink, GraphNode, Subgraph
from grange.picture import GraphvizFailed, GraphvizMissing, dot_source, draw, mermaid_source, style_of

DATA = GraphNode(
    id=1, uuid=UUID(int=1), kind="data", node_type="data.core.str.Str.", label="",
    attributes={"value": '<b>&"quoted"</b> \\ `#;'}, ctime=datetime(2026, 1, 2, tzinfo=UTC),
    state=None, exit_status=None, process_label=None,
)  # fmt: skip
CALCULATION = replace(
    DATA, id=2, kind="calculation", node_type="process.calculation.calcfunction.CalcFunctionNode.",
    attributes=None, state="finished", exit_status=0, process_label="emt_energy",
)  # fmt: skip
WORKFLOW = replace(
    CALCULATION,
    id=3,
    kind="workflow",
    node_type="process.workflow.workchain.WorkChainNode.",
    process_label="Eos",
)
LINKS = (GraphLink(1, 2, "input_calc", "text"), GraphLink(3, 2, "call_calc", "CALL"))
GRAPH = Subgraph((2,), (DATA, CALCULATION, WORKFLOW), LINKS, {(1, "down"): 2800})


def test_whatever_values_hold_the_picture_is_whole() -> None:
    tree = ElementTree.fromstring(draw(dot_source(GRAPH), "svg"))
    texts = {
        " ".join("".join(element.itertext()).split())
        for element in tree.iter()
        if element.tag.endswith("text")
    }
    assert {"Str (1)", "emt_energy (2)", "Eos (3)", "calls", "text", "… 2,800 more", "calculation"} <= texts
    assert any('<b>&"quoted"</b>' in text for text in texts)


@pytest.mark.parametrize(("file_format", "begin"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_each_format_is_drawn(file_format: str, begin: bytes) -> None:
    assert draw(dot_source(GRAPH, "state"), file_format).startswith(begin)


def test_what_dot_refuses_is_told() -> None:
    with pytest.raises(GraphvizFailed, match="syntax error"):
        draw("digraph {", "svg")


def test_without_graphviz_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(GraphvizMissing) as caught:
        draw("digraph {}", "svg")
    assert "apt-get install graphviz" in caught.value.advice


def test_mermaid() -> None:
    lines = mermaid_source(GRAPH).splitlines()
    assert lines[0] == "flowchart TD"
    assert '    n2["emt_energy (2)<br/>finished"]:::c1' in lines
    assert '    n3 -.->|"calls"| n2' in lines
    assert '    n1 -.- more_down_1["… 2,800 more"]:::more' in lines
    assert "    style n2 stroke-width:3px" in lines
    text = next(line for line in lines if line.startswith("    n1("))
    assert text == (
        '    n1(["Str (1)<br/>#34;#60;b#62;#38;#34;quoted#34;#60;/b#62; \\ #96;#35;#59;#34;"]):::c0'
    )


@pytest.mark.parametrize(
    ("state", "exit_status", "name"),
    [("finished", 0, "finished well"), ("finished", 301, "failed"), ("excepted", None, "failed"),
     ("killed", None, "failed"), ("running", None, "running"), ("waiting", None, "running"),
     ("created", None, "not started")],
)  # fmt: skip
def test_colours_by_state(state: str, exit_status: int | None, name: str) -> None:
    assert style_of(replace(CALCULATION, state=state, exit_status=exit_status), "state").name == name


def test_failures_are_red_whatever_the_colours_say() -> None:
    failed = replace(WORKFLOW, exit_status=1)
    assert style_of(failed, "type") == style_of(failed, "state")
    assert style_of(WORKFLOW, "type").name == "workflow"


def test_a_dictionary_has_a_line_for_each_of_its_first_entries() -> None:
    entries = {f"k{number}": number / 3 for number in range(6)}
    graph = Subgraph((1,), (replace(DATA, node_type="data.core.dict.Dict.", attributes=entries),), (), {})
    assert "k0: 0<br/>k1: 0.33333333<br/>k2: 0.66666667<br/>… 3 more" in mermaid_source(graph)
