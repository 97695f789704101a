"""Provenance as a picture: shapes as users of AiiDA know them, colours by what a node is.

Data are ellipses, calculations rectangles, workflows rounded rectangles. The text for
Graphviz and for Mermaid is made here; drawing is left to the program `dot`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

from grange.core.errors import GrangeError
from grange.summary import clipped, plain, short_value, type_name

if TYPE_CHECKING:
    from grange.core.provenance import GraphLink, GraphNode, Subgraph


class GraphvizMissing(GrangeError):
    """The program `dot` of Graphviz is not there."""

    advice = "apt-get install graphviz; or --format mermaid, which needs no program"

    def __init__(self) -> None:
        super().__init__("the program `dot`, which draws graphs, is not on PATH")


class GraphvizFailed(GrangeError):
    """The program `dot` did not draw the graph."""


Coloring = Literal["type", "state"]

#: What `dot` is asked for; it knows more formats, none that a person asks a provenance picture for.
DRAWN = ("svg", "png", "pdf")


@dataclass(frozen=True, slots=True)
class Style:
    """How the nodes of one class look."""

    name: str
    fill: str
    line: str
    dashed: bool = False


_NUMBER = Style("number, text", "#eaf4e4", "#6f9e5a")
_STRUCTURE = Style("structure", "#d8f0ea", "#3f9180")
_COLLECTION = Style("array, list, dict", "#f6f1d8", "#a8953f")
_FILE = Style("files", "#efe5f3", "#8d68a0")
_CODE = Style("code", "#e8e8e8", "#6b6b6b")
_OTHER_DATA = Style("data", "#f4f4f1", "#83837a")
_CALCULATION = Style("calculation", "#cfe0f5", "#356aa6")
_WORKFLOW = Style("workflow", "#fde2bf", "#c07a1c")
_FAILED = Style("failed", "#f8cdc8", "#b3261e")
_RUNNING = Style("running", "#fff3bd", "#a88900")
_TO_DO = Style("not started", "#ffffff", "#8a8a8a", dashed=True)
_OK = Style("finished well", "#cdebcf", "#3c8a44")
_PLAIN_DATA = Style("data", "#f7f7f5", "#a5a59d")

_DATA_STYLES = {
    "Int": _NUMBER, "Float": _NUMBER, "Bool": _NUMBER, "Str": _NUMBER, "EnumData": _NUMBER,
    "List": _COLLECTION, "Dict": _COLLECTION, "ArrayData": _COLLECTION,
    "XyData": _COLLECTION, "BandsData": _COLLECTION, "KpointsData": _COLLECTION,
    "TrajectoryData": _COLLECTION,
    "StructureData": _STRUCTURE, "CifData": _STRUCTURE,
    "SinglefileData": _FILE, "FolderData": _FILE, "RemoteData": _FILE, "RemoteStashFolderData": _FILE,
    "InstalledCode": _CODE, "PortableCode": _CODE, "ContainerizedCode": _CODE, "Code": _CODE,
}  # fmt: skip

_DOT_HEAD = """digraph provenance {
  graph [bgcolor="white", pad="0.3", nodesep="0.22", ranksep="0.5", splines="true", outputorder="edgesfirst",
         fontname="Helvetica,Arial,sans-serif", fontsize="10", labelloc="b", labeljust="l"];
  node [fontname="Helvetica,Arial,sans-serif", fontsize="11", fontcolor="#1c1c1c", margin="0.11,0.06",
        height="0.4"];
  edge [fontname="Helvetica,Arial,sans-serif", fontsize="9", fontcolor="#555555", color="#8a8a8a",
        arrowsize="0.7"];
"""

_EDGES = {
    "input_calc": "",
    "input_work": "",
    "create": 'color="#4a4a4a", penwidth="1.3"',
    "return": 'style="dashed", color="#c07a1c"',
    "call_calc": 'style="dotted", penwidth="1.4", color="#c07a1c"',
    "call_work": 'style="dotted", penwidth="1.4", color="#c07a1c"',
}

_SHAPES = {"data": "ellipse", "calculation": "box", "workflow": "box"}
_MERMAID_SHAPES = {"data": '(["', "calculation": '["', "workflow": '{{"'}
_MERMAID_ENDS = {"data": '"])', "calculation": '"]', "workflow": '"}}'}
_MERMAID_ARROWS = {"return": "-.->", "call_calc": "-.->", "call_work": "-.->"}


def style_of(node: GraphNode, coloring: Coloring) -> Style:
    """How a node is drawn: failures are red whatever the colours stand for."""
    if node.kind == "data":
        return (
            _PLAIN_DATA if coloring == "state" else _DATA_STYLES.get(type_name(node.node_type), _OTHER_DATA)
        )
    if node.state in ("excepted", "killed") or (node.state == "finished" and node.exit_status != 0):
        return _FAILED
    if node.state in ("running", "waiting"):
        return _RUNNING
    if node.state == "created":
        return _TO_DO
    if coloring == "state":
        return _OK
    return _CALCULATION if node.kind == "calculation" else _WORKFLOW


def dot_source(graph: Subgraph, coloring: Coloring = "type") -> str:
    """The graph in Graphviz' language."""
    styles = {node.id: style_of(node, coloring) for node in graph.nodes}
    roots = set(graph.roots)
    lines = [_DOT_HEAD]
    lines += [_dot_node(node, styles[node.id], node.id in roots) for node in graph.nodes]
    lines += [_dot_link(link) for link in graph.links]
    lines += _dot_hidden(graph)
    lines.append(_dot_legend(styles.values()) + "}\n")
    return "".join(lines)


def draw(dot: str, file_format: str) -> bytes:
    """The picture, drawn by the program `dot`; file_format is one of DRAWN.

    Errors: GraphvizMissing; GraphvizFailed with what the program said.
    """
    try:
        done = subprocess.run(
            ["dot", f"-T{file_format}"], input=dot.encode(), capture_output=True, check=False
        )
    except FileNotFoundError:
        raise GraphvizMissing from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise GraphvizFailed(f"`dot -T{file_format}` ended with {done.returncode}: {said[-500:]}")
    return done.stdout


def mermaid_source(graph: Subgraph, coloring: Coloring = "type") -> str:
    """The graph as a Mermaid flowchart: what Markdown pages draw by themselves, without any program."""
    styles = {node.id: style_of(node, coloring) for node in graph.nodes}
    names = {style: f"c{number}" for number, style in enumerate(dict.fromkeys(styles.values()))}
    lines = ["flowchart TD\n"]
    for node in graph.nodes:
        text = "<br/>".join(_mermaid_text(line) for line in _words(node))
        shape = _MERMAID_SHAPES[node.kind] + text + _MERMAID_ENDS[node.kind]
        lines.append(f"    n{node.id}{shape}:::{names[styles[node.id]]}\n")
    for link in graph.links:
        arrow = _MERMAID_ARROWS.get(link.type, "-->")
        lines.append(
            f'    n{link.source_id} {arrow}|"{_mermaid_text(_link_text(link))}"| n{link.target_id}\n'
        )
    for (node_id, side), count in sorted(graph.hidden.items()):
        more = f'more_{side}_{node_id}["… {count:,} more"]:::more'
        ends = (more, f"n{node_id}") if side == "up" else (f"n{node_id}", more)
        lines.append(f"    {ends[0]} -.- {ends[1]}\n")
    for style, name in names.items():
        dashes = ",stroke-dasharray:4 3" if style.dashed else ""
        lines.append(f"    classDef {name} fill:{style.fill},stroke:{style.line},color:#1c1c1c{dashes}\n")
    if graph.hidden:
        lines.append("    classDef more fill:none,stroke:none,color:#777777\n")
    lines += [f"    style n{root} stroke-width:3px\n" for root in graph.roots]
    return "".join(lines)


def _words(node: GraphNode) -> list[str]:
    """The lines of a node's label, the first of them its title."""
    if node.kind == "data":
        title = f"{type_name(node.node_type)} ({node.id})"
        lines = _value_lines(node)
    else:
        title = f"{clipped(node.process_label or type_name(node.node_type), 34)} ({node.id})"
        lines = [_state(node)]
    if node.label and node.label != node.process_label:
        lines.insert(0, clipped(node.label, 26))
    return [title, *(line for line in lines if line)]


def _value_lines(node: GraphNode) -> list[str]:
    """What a data node holds: the first entries of a dictionary a line each, all else on one line."""
    if type_name(node.node_type) != "Dict" or not node.attributes:
        return [short_value(node.node_type, node.attributes, 26)]
    entries = sorted(node.attributes.items())
    lines = [clipped(f"{key}: {plain(value)}", 26) for key, value in entries[:4]]
    return lines if len(entries) <= 4 else [*lines[:3], f"… {len(entries) - 3} more"]


def _state(node: GraphNode) -> str:
    if node.state == "finished":
        return "finished" if node.exit_status == 0 else f"failed, exit status {node.exit_status}"
    return node.state or ""


def _dot_node(node: GraphNode, style: Style, is_root: bool) -> str:
    title, *rest = _words(node)
    small = "".join(f'<br/><font point-size="10" color="#444444">{_xml(line)}</font>' for line in rest)
    look = "filled" + (",rounded" if node.kind == "workflow" else "") + (",dashed" if style.dashed else "")
    tooltip = _quoted(f"{node.node_type} {node.uuid}, {node.ctime:%Y-%m-%d %H:%M}")
    return (
        f'  n{node.id} [shape="{_SHAPES[node.kind]}", label=<<b>{_xml(title)}</b>{small}>, style="{look}", '
        f'fillcolor="{style.fill}", color="{style.line}", penwidth="{2.6 if is_root else 1}", '
        f"tooltip={tooltip}];\n"
    )


def _link_text(link: GraphLink) -> str:
    return "calls" if link.type.startswith("call_") else clipped(link.label, 28)


def _dot_link(link: GraphLink) -> str:
    more = _EDGES[link.type]
    tooltip = _quoted(f"{link.type}: {link.label}")
    return (
        f"  n{link.source_id} -> n{link.target_id} [label=< {_xml(_link_text(link))} >, "
        f"edgetooltip={tooltip}{', ' + more if more else ''}];\n"
    )


def _dot_hidden(graph: Subgraph) -> Iterator[str]:
    for (node_id, side), count in sorted(graph.hidden.items()):
        name = f"more_{side}_{node_id}"
        yield (
            f'  {name} [shape="plaintext", fontcolor="#777777", fontsize="10", margin="0.04,0.02", '
            f'height="0.2", label="… {count:,} more"];\n'
        )
        ends = f"{name} -> n{node_id}" if side == "up" else f"n{node_id} -> {name}"
        yield f'  {ends} [style="dashed", color="#bbbbbb", arrowhead="none"];\n'


def _dot_legend(styles: Iterable[Style]) -> str:
    """One row below the picture, of the classes that occur in it."""
    cells = "".join(
        f'<td border="1" bgcolor="{style.fill}" color="{style.line}" width="14" height="10"></td>'
        f'<td border="0">{_xml(style.name)}  </td>'
        for style in sorted(set(styles), key=lambda style: style.name)
    )
    return f'  label=<<table border="0" cellspacing="4" cellpadding="1"><tr>{cells}</tr></table>>;\n'


def _xml(text: str) -> str:
    return escape(text, quote=True)


def _quoted(text: str) -> str:
    return '"' + clipped(text, 400).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _mermaid_text(text: str) -> str:
    """Text inside quotes: what Mermaid or Markdown would read as its own becomes an entity."""
    return "".join(f"#{ord(c)};" if c in '"#<>&`;' else c for c in text)
