"""The graph around a node, on a real database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from grange.core.database import Cursor
from grange.core.errors import NotFound
from grange.core.profile import Profile
from grange.core.provenance import Subgraph, subgraph

KINDS = {
    "data": "data.core.float.Float.",
    "calculation": "process.calculation.calcfunction.CalcFunctionNode.",
    "workflow": "process.workflow.workchain.WorkChainNode.",
}


@pytest.fixture
def cursor(profile: Profile) -> Iterator[Cursor]:
    with profile.transaction() as opened:
        yield opened


def nodes(cursor: Cursor, *kinds: str) -> list[int]:
    """New nodes of these kinds, in one statement; their ids grow."""
    cursor.execute(
        "INSERT INTO node (uuid, kind, user_id, node_type) "
        "SELECT gen_random_uuid(), kind::node_kind, 1, node_type "
        "FROM unnest(%s, %s) WITH ORDINALITY AS new (kind, node_type, place) ORDER BY place RETURNING id",
        (list(kinds), [KINDS[kind] for kind in kinds]),
    )
    return [row[0] for row in cursor.fetchall()]


def links(cursor: Cursor, *rows: tuple[int, int, str, str]) -> None:
    """New links, in one statement."""
    cursor.execute(
        "INSERT INTO link SELECT s, t, y::link_type, l "
        "FROM unnest(%s::bigint[], %s::bigint[], %s, %s) AS new (s, t, y, l)",
        tuple(list(column) for column in zip(*rows, strict=True)),
    )


def shown(graph: Subgraph) -> set[int]:
    return {node.id for node in graph.nodes}


def test_both_sides_without_siblings(cursor: Cursor) -> None:
    a, b, calc, c, other, d = nodes(cursor, "data", "data", "calculation", "data", "calculation", "data")
    links(
        cursor,
        (a, calc, "input_calc", "a"), (b, calc, "input_calc", "b"), (calc, c, "create", "sum"),
        (a, other, "input_calc", "a"), (other, d, "create", "sum"),
    )  # fmt: skip
    graph = subgraph(cursor, [calc])
    assert shown(graph) == {a, b, calc, c}
    assert {(link.source_id, link.target_id) for link in graph.links} == {(a, calc), (b, calc), (calc, c)}
    assert graph.hidden == {}
    assert shown(subgraph(cursor, [a])) == {a, calc, c, other, d}, "b is no descendant of a"
    assert shown(subgraph(cursor, [calc], up=0)) == {calc, c}
    assert shown(subgraph(cursor, [calc], down=0)) == {a, b, calc}
    assert shown(subgraph(cursor, [c, d], up=1, down=0)) == {c, calc, d, other}


def test_workflows_and_the_classes_of_links(cursor: Cursor) -> None:
    a, flow, inner, calc, b = nodes(cursor, "data", "workflow", "workflow", "calculation", "data")
    links(
        cursor,
        (a, flow, "input_work", "a"), (flow, inner, "call_work", "CALL"), (inner, calc, "call_calc", "CALL"),
        (a, calc, "input_calc", "a"), (calc, b, "create", "result"), (flow, b, "return", "result"),
    )  # fmt: skip
    assert len(subgraph(cursor, [b]).links) == 6
    assert shown(subgraph(cursor, [b], links="data")) == {a, calc, b}
    logic = subgraph(cursor, [b], links="logic")
    assert {link.type for link in logic.links} == {"input_work", "return"}
    assert shown(logic) == {a, flow, b}
    assert shown(subgraph(cursor, [calc], down=0, links="logic")) == {a, flow, inner, calc}


def test_a_circle_through_a_returned_input_ends(cursor: Cursor) -> None:
    a, flow = nodes(cursor, "data", "workflow")
    links(cursor, (a, flow, "input_work", "a"), (flow, a, "return", "a"))
    graph = subgraph(cursor, [a])
    assert shown(graph) == {a, flow}
    assert len(graph.links) == 2
    assert graph.hidden == {}


def test_a_ladder_of_diamonds_is_walked_once(cursor: Cursor) -> None:
    depth = 200
    ids = nodes(cursor, "data", *["calculation", "calculation", "data", "data"] * depth)
    rows = []
    left, right = ids[0], None
    for rung in range(depth):
        calc1, calc2, data1, data2 = ids[1 + 4 * rung : 5 + 4 * rung]
        for calc in (calc1, calc2):
            rows.append((left, calc, "input_calc", "x"))
            if right is not None:
                rows.append((right, calc, "input_calc", "y"))
        rows += [(calc1, data1, "create", "result"), (calc2, data2, "create", "result")]
        left, right = data1, data2
    links(cursor, *rows)
    start = time.perf_counter()
    graph = subgraph(cursor, [ids[-1]], max_nodes=None)
    took = time.perf_counter() - start
    # the other half of the last rung is no ancestor
    assert len(graph.nodes) == 4 * depth + 1 - 2
    assert len(graph.links) == len(rows) - 3
    assert graph.hidden == {}
    assert took < 10, "2^200 paths would never end; each node once takes a second"


def test_a_fan_is_cut_and_counted(cursor: Cursor) -> None:
    fan = 10_000
    root, *calcs = nodes(cursor, "data", *["calculation"] * fan)
    fit, result = nodes(cursor, "calculation", "data")
    links(
        cursor,
        *((root, calc, "input_calc", "x") for calc in calcs),
        (root, fit, "input_calc", "x"), (fit, result, "create", "result"),
    )  # fmt: skip
    graph = subgraph(cursor, [root], max_fan=8)
    assert shown(graph) == {root, *calcs[:8]}
    assert graph.hidden == {(root, "down"): fan + 1 - 8}
    graph = subgraph(cursor, [root, result], max_fan=8)
    assert shown(graph) == {root, *calcs[:8], fit, result}
    assert graph.hidden == {(root, "down"): fan - 8}, "what is shown for another reason is not hidden"
    graph = subgraph(cursor, [root])
    assert len(graph.nodes) == 200
    assert graph.hidden == {(root, "down"): fan + 1 - 199}
    assert len(subgraph(cursor, [root], max_nodes=None).nodes) == fan + 3


def test_a_cut_fan_shows_the_first_elements_of_each_list(cursor: Cursor) -> None:
    degree, *elements, fit = nodes(cursor, *["data"] * 25, "calculation")
    x, y = elements[:12], elements[12:]
    links(
        cursor,
        (degree, fit, "input_calc", "degree"),
        *((node, fit, "input_calc", f"x__{number}") for number, node in enumerate(x)),
        *((node, fit, "input_calc", f"y__{number}") for number, node in enumerate(y)),
    )
    assert shown(subgraph(cursor, [fit], max_fan=7)) == {fit, degree, *x[:3], *y[:3]}


def test_near_nodes_come_before_far_ones(cursor: Cursor) -> None:
    chain = nodes(cursor, "data", *["calculation", "data"] * 20)
    links(
        cursor,
        *(
            (source, target, "create" if place % 2 else "input_calc", "x")
            for place, (source, target) in enumerate(pairwise(chain))
        ),
    )
    middle = chain[20]
    assert shown(subgraph(cursor, [middle], max_nodes=7)) == set(chain[17:24])
    assert shown(subgraph(cursor, [middle], 2, 1)) == set(chain[18:22])
    graph = subgraph(cursor, [middle], 3, 0)
    assert shown(graph) == set(chain[17:21])
    assert graph.hidden == {}, "what is beyond the depth asked for is not hidden"


def test_what_is_told_of_a_node(cursor: Cursor) -> None:
    (calc,) = nodes(cursor, "calculation")
    cursor.execute(
        "INSERT INTO process (node_id, state, label, exit_status, finished_at)"
        " VALUES (%s, 'finished', 'f', 7, now())",
        (calc,),
    )
    cursor.execute(
        "INSERT INTO node (uuid, kind, user_id, node_type, attributes) SELECT gen_random_uuid(), 'data', 1,"
        " 'data.core.list.List.', jsonb_build_object('list', jsonb_agg(md5(i::text)))"
        " FROM generate_series(1, 5000) i RETURNING id"
    )
    large = (cursor.fetchone() or (0,))[0]
    by_id = {node.id: node for node in subgraph(cursor, [calc, large]).nodes}
    assert (by_id[calc].state, by_id[calc].exit_status, by_id[calc].process_label) == ("finished", 7, "f")
    assert by_id[large].attributes is None


def test_what_is_not_there_is_named(cursor: Cursor) -> None:
    (there,) = nodes(cursor, "data")
    with pytest.raises(NotFound, match=f"no node {there + 1}, {there + 5}"):
        subgraph(cursor, [there, there + 5, there + 1])
