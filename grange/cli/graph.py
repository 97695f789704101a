"""`grange graph`: where a result comes from, as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from grange.cli.opened import opened
from grange.cli.refused import Refused

if TYPE_CHECKING:
    from grange.core.provenance import GraphLink, GraphNode, Subgraph

_FORMATS = ("svg", "png", "pdf", "mermaid", "dot", "json")
_ENDINGS = {
    ".svg": "svg", ".png": "png", ".pdf": "pdf", ".mmd": "mermaid", ".mermaid": "mermaid",
    ".dot": "dot", ".gv": "dot", ".json": "json",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HiddenLinks:
    """How many links of a node, on one side, lead to nodes that are not in the document."""

    node_id: int
    side: str
    count: int


@dataclass(frozen=True, slots=True)
class GraphDocument:
    """The document of `grange graph --format json`."""

    roots: tuple[int, ...]
    nodes: tuple[GraphNode, ...]
    links: tuple[GraphLink, ...]
    hidden: tuple[HiddenLinks, ...]


@click.command("graph")
@click.argument("nodes", metavar="ID|UUID|CAMPAIGN/CALL...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Where to; the ending tells the format; - for standard output.",
)
@click.option(
    "-f", "--format", "file_format", type=click.Choice(_FORMATS), help="Instead of what the ending says."
)
@click.option(
    "-d",
    "--direction",
    type=click.Choice(["both", "up", "down"]),
    default="both",
    show_default=True,
    help="Up: what it comes from; down: what became of it.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=0),
    metavar="N",
    help="So many links away at most.  [default: no limit]",
)
@click.option(
    "--links",
    "--class",
    "links",
    type=click.Choice(["all", "data", "logic"]),
    default="all",
    show_default=True,
    help="Only what computed what (data), or only who called whom (logic).",
)
@click.option(
    "--color",
    type=click.Choice(["type", "state"]),
    default="type",
    show_default=True,
    help="What the colours say; failures are red in both.",
)
@click.option(
    "--max-nodes", type=click.IntRange(min=1), default=200, show_default=True, help="Near nodes first."
)
@click.option(
    "--max-fan",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help='At each node; the rest is "… 28 more".',
)
@click.option("--open/--no-open", "open_it", default=False, help="Open the picture when it is drawn.")
@click.pass_context
def command(
    ctx: click.Context,
    nodes: tuple[str, ...],
    output: str | None,
    file_format: str | None,
    direction: str,
    depth: int | None,
    links: str,
    color: str,
    max_nodes: int,
    max_fan: int,
    open_it: bool,
) -> None:
    """Draw the provenance around one or more nodes.

    Without -o, a picture goes to grange-<id>.svg in this folder, and text (mermaid, dot, json) to
    standard output. Pictures are drawn by Graphviz; Mermaid needs nothing.

    \b
    Examples:
      grange graph 1234 -o origin.png
      grange graph fcc-eos/17 --direction up --depth 4
      grange graph 1234 --format mermaid
    """
    from grange.core.provenance import subgraph
    from grange.core.reference import node_ids

    drawn_as = file_format or _format_of(output)
    with opened(ctx) as profile, profile.transaction() as cursor:
        ids = node_ids(cursor, list(nodes))
        up, down = (0 if direction == "down" else depth), (0 if direction == "up" else depth)
        graph = subgraph(cursor, ids, up, down, max_nodes, max_fan, links)  # type: ignore[arg-type]
    content = _content(graph, drawn_as, color)
    is_text = drawn_as in ("mermaid", "dot", "json")
    if output == "-" or (output is None and is_text):
        click.echo(content, nl=False)
        return
    target = Path(output or f"grange-{ids[0]}.{drawn_as}")
    target.write_bytes(content)
    click.echo(f"{target}: {_extent(graph)}")
    if open_it:
        click.launch(str(target))


def _format_of(output: str | None) -> str:
    if output is None or output == "-":
        return "svg"
    ending = Path(output).suffix.lower()
    if ending not in _ENDINGS:
        raise Refused(
            f"{output}: the ending {ending or '(none)'} does not tell the format",
            f"end it with {', '.join(sorted(_ENDINGS))}, or say --format",
        )
    return _ENDINGS[ending]


def _content(graph: Subgraph, drawn_as: str, color: str) -> bytes:
    from grange import picture

    if drawn_as == "json":
        import msgspec

        hidden = tuple(HiddenLinks(*key, count) for key, count in sorted(graph.hidden.items()))
        document = GraphDocument(graph.roots, graph.nodes, graph.links, hidden)
        return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    coloring: picture.Coloring = "state" if color == "state" else "type"
    if drawn_as == "mermaid":
        return picture.mermaid_source(graph, coloring).encode()
    source = picture.dot_source(graph, coloring)
    return source.encode() if drawn_as == "dot" else picture.draw(source, drawn_as)


def _extent(graph: Subgraph) -> str:
    hidden = sum(graph.hidden.values())
    more = f"; {hidden:,} links lead to what is not drawn (--max-fan, --max-nodes)" if hidden else ""
    return f"{len(graph.nodes):,} nodes, {len(graph.links):,} links{more}"
