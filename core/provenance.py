"""Where a result comes from and what became of it: the part of the graph around a few nodes.

Breadth first, one statement a level, each node visited once: the cost is that of the links met, whatever
the number of paths between two nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from grange.core.database import Cursor
from grange.core.errors import NotFound

LinkClass = Literal["all", "data", "logic"]
Side = Literal["up", "down"]

#: Data provenance is what computed what; the logic is which workflow wanted it.
LINK_TYPES: dict[LinkClass, tuple[str, ...]] = {
    "all": ("input_calc", "input_work", "create", "return", "call_calc", "call_work"),
    "data": ("input_calc", "create"),
    "logic": ("input_work", "return", "call_calc", "call_work"),
}


@dataclass(frozen=True, slots=True)
class GraphNode:
    """What a picture or a list needs to know of a node.

    attributes is None where they are too large to be fetched for a label; state, exit_status and
    process_label are None for data.
    """

    id: int
    uuid: UUID
    kind: str
    node_type: str
    label: str
    attributes: dict[str, Any] | None
    ctime: datetime
    state: str | None
    exit_status: int | None
    process_label: str | None


@dataclass(frozen=True, slots=True)
class GraphLink:
    """One link of the graph, from source to target."""

    source_id: int
    target_id: int
    type: str
    label: str


@dataclass(frozen=True, slots=True)
class Subgraph:
    """Some nodes, all links between them, and how many links lead out of sight.

    hidden counts, for nodes whose neighbours were looked at, the links on one side that lead to nodes
    left out because of max_nodes or max_fan; what lies beyond the depth asked for is not counted.
    """

    roots: tuple[int, ...]
    nodes: tuple[GraphNode, ...]
    links: tuple[GraphLink, ...]
    hidden: dict[tuple[int, Side], int]


# The links that arrive at each of some nodes, at most `fan` by each index, with how many there are by it.
# The predicates are those of the partial indexes, word for word, so that each branch is one index scan.
# Of inputs that are lists the first elements are taken of each, not ten of one list and none of the other.
_LINKS_UP = """
SELECT near.id, l.branch, l.source_id, l.total
FROM unnest(%(ids)s::bigint[]) AS near (id) CROSS JOIN LATERAL (
    (SELECT 1 AS branch, source_id, count(*) OVER () AS total FROM link
     WHERE target_id = near.id AND type IN ('input_calc', 'input_work')
       AND type = ANY (%(types)s::link_type[])
     ORDER BY substring(label FROM '__([0-9]{1,9})$')::integer NULLS FIRST, label LIMIT %(fan)s)
    UNION ALL
    (SELECT 2, source_id, 1 FROM link
     WHERE target_id = near.id AND type = 'create' AND type = ANY (%(types)s::link_type[]))
    UNION ALL
    (SELECT 3, source_id, 1 FROM link
     WHERE target_id = near.id AND type IN ('call_calc', 'call_work') AND type = ANY (%(types)s::link_type[]))
    UNION ALL
    (SELECT 4, source_id, count(*) OVER () FROM link
     WHERE target_id = near.id AND type = 'return' AND type = ANY (%(types)s::link_type[])
     ORDER BY source_id LIMIT %(fan)s)
) l
"""

# The links that leave each of some nodes, in the same way.
_LINKS_DOWN = """
SELECT near.id, l.branch, l.target_id, l.total
FROM unnest(%(ids)s::bigint[]) AS near (id) CROSS JOIN LATERAL (
    (SELECT 1 AS branch, target_id, count(*) OVER () AS total FROM link
     WHERE source_id = near.id AND type IN ('input_calc', 'input_work', 'call_calc', 'call_work')
       AND type = ANY (%(types)s::link_type[])
     ORDER BY target_id LIMIT %(fan)s)
    UNION ALL
    (SELECT 2, target_id, count(*) OVER () FROM link
     WHERE source_id = near.id AND type IN ('create', 'return') AND type = ANY (%(types)s::link_type[])
     ORDER BY label LIMIT %(fan)s)
) l
"""

# Every link of which both ends are among some nodes.
_LINKS_BETWEEN = """
SELECT source_id, target_id, type::text, label FROM (
    SELECT * FROM link WHERE target_id = ANY (%(ids)s) AND type IN ('input_calc', 'input_work')
    UNION ALL
    SELECT * FROM link WHERE target_id = ANY (%(ids)s) AND type = 'create'
    UNION ALL
    SELECT * FROM link WHERE target_id = ANY (%(ids)s) AND type IN ('call_calc', 'call_work')
    UNION ALL
    SELECT * FROM link WHERE target_id = ANY (%(ids)s) AND type = 'return'
) arriving
WHERE source_id = ANY (%(ids)s) AND type = ANY (%(types)s::link_type[])
ORDER BY source_id, target_id, type, label
"""

# What is drawn of some nodes. A structure of 100,000 sites is not fetched to be named in a label.
_NODES = """
SELECT n.id, n.uuid::text, n.kind::text, n.node_type, n.label,
       CASE WHEN n.kind = 'data' AND pg_column_size(n.attributes) < 65536 THEN n.attributes END,
       n.ctime, p.state::text, p.exit_status, p.label
FROM node n LEFT JOIN process p ON p.node_id = n.id
WHERE n.id = ANY (%(ids)s) ORDER BY n.id
"""


def subgraph(
    cursor: Cursor,
    ids: Sequence[int],
    up: int | None = None,
    down: int | None = None,
    max_nodes: int | None = 200,
    max_fan: int | None = None,
    links: LinkClass = "all",
) -> Subgraph:
    """The ancestors and descendants of some nodes.

    up and down are depths in links, None for as far as it goes, 0 for not at all. Ancestors of
    descendants do not belong: siblings would drown what was asked for. Near nodes are taken before far
    ones, and at most max_fan at each node by each kind of link.

    Errors: NotFound names the ids that are no nodes.
    """
    roots = tuple(dict.fromkeys(ids))
    walk = _Walk(cursor, roots, max_nodes, max_fan, LINK_TYPES[links])
    walk.go(up, down)
    shown = list(walk.seen)
    nodes = tuple(_nodes(cursor, shown))
    missing = sorted(set(roots) - {node.id for node in nodes})
    if missing:
        raise NotFound(f"no node {', '.join(map(str, missing))}")
    cursor.execute(_LINKS_BETWEEN, {"ids": shown, "types": list(LINK_TYPES[links])})
    between = tuple(GraphLink(*row) for row in cursor.fetchall())
    return Subgraph(roots, nodes, between, _hidden(walk.totals, between))


class _Walk:
    """A breadth-first walk from the roots, upwards and downwards in turn so that both share the limit."""

    def __init__(
        self,
        cursor: Cursor,
        roots: Iterable[int],
        max_nodes: int | None,
        max_fan: int | None,
        types: Sequence[str],
    ) -> None:
        self._cursor = cursor
        self._max_nodes = max_nodes
        self._max_fan = max_fan
        self._types = list(types)
        self.seen: dict[int, None] = dict.fromkeys(roots)
        #: (node, side) → the number of its links on that side, shown or not
        self.totals: Counter[tuple[int, Side]] = Counter()

    def go(self, up: int | None, down: int | None) -> None:
        left: dict[Side, int | None] = {"up": up, "down": down}
        frontier: dict[Side, list[int]] = {"up": list(self.seen), "down": list(self.seen)}
        visited: dict[Side, set[int]] = {"up": set(self.seen), "down": set(self.seen)}
        while frontier["up"] or frontier["down"]:
            for side in ("up", "down"):
                depth = left[side]
                if depth == 0 or not frontier[side]:
                    frontier[side] = []
                    continue
                left[side] = None if depth is None else depth - 1
                frontier[side] = list(self._step(side, frontier[side], visited[side]))

    def _step(self, side: Side, near: list[int], visited: set[int]) -> Iterator[int]:
        """The nodes one link further that are new on this side and for which there is room."""
        statement = _LINKS_UP if side == "up" else _LINKS_DOWN
        self._cursor.execute(statement, {"ids": near, "types": self._types, "fan": self._max_fan})
        fans: set[tuple[int, int]] = set()
        for node_id, branch, far_id, total in self._cursor.fetchall():
            if (node_id, branch) not in fans:
                fans.add((node_id, branch))
                self.totals[node_id, side] += total
            if far_id in visited:
                continue
            if far_id not in self.seen and self._max_nodes is not None and len(self.seen) >= self._max_nodes:
                continue
            visited.add(far_id)
            self.seen[far_id] = None
            yield far_id


def _nodes(cursor: Cursor, ids: list[int]) -> Iterator[GraphNode]:
    cursor.execute(_NODES, {"ids": ids})
    for row in cursor.fetchall():
        yield GraphNode(row[0], UUID(row[1]), *row[2:])


def _hidden(totals: Counter[tuple[int, Side]], shown: Iterable[GraphLink]) -> dict[tuple[int, Side], int]:
    hidden = totals.copy()
    for link in shown:
        for key in ((link.target_id, "up"), (link.source_id, "down")):
            if key in hidden:
                hidden[key] -= 1
    return {key: count for key, count in hidden.items() if count > 0}
