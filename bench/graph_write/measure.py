"""What do the rules of the graph cost? graph.store, beside bare COPY of the same rows.

    measure.py [--quick] [--calculations N] [--repeat R]

Each measure is a process of its own on a fresh database of one embedded PostgreSQL; the order changes
from round to round, because the machine is noisy; figures are medians.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grange.core import database, graph, node_rows
from grange.core.data.dict import Dict
from grange.core.link import Link, LinkType
from grange.core.node import CalcFunctionNode, Node
from grange.core.postgres import Server, stop_server
from grange.core.profile import open_profile
from grange.repository import MemoryIndex, MemoryStore, Repository

AIM = 0.70
#: With each calculation come one input of its own and two outputs: four nodes, and eight links.
NODES_EACH, LINKS_EACH = 4, 8
MEASURES = ("store", "bare_copy", "bare_copy_foreign_keys")

# The classic way to hold the ends of links: two foreign keys, in place of the trigger.
FOREIGN_KEYS = """
DROP TRIGGER link_ends ON link;
ALTER TABLE link ADD FOREIGN KEY (source_id) REFERENCES node, ADD FOREIGN KEY (target_id) REFERENCES node;
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer rows, within 45 s")
    options.add_argument("--calculations", type=int)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--one", choices=MEASURES, help="one measure, in this process")
    options.add_argument("--dsn", help="the database for --one")
    chosen = options.parse_args()
    calculations = chosen.calculations or (10_000 if chosen.quick else 25_000)
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.dsn, calculations)))
        return
    results = rounds(calculations, chosen.repeat, foreign_keys_each_time=not chosen.quick)
    report(results, calculations)


# ---------------------------------------------------------------- one measure


def one(measure: str, dsn: str, calculations: int) -> dict[str, float]:
    """Make the graph, then time writing it, from the first statement until the commit has returned."""
    made_at = time.perf_counter()
    nodes, links = make_graph(calculations)
    make_s = time.perf_counter() - made_at
    connection = database.connect(dsn)
    with database.transaction(connection) as cursor:
        cursor.execute("INSERT INTO \"user\" (email) VALUES ('bench@localhost') RETURNING id")
        user_id = cursor.fetchone()[0]
        if measure == "bare_copy_foreign_keys":
            cursor.execute(FOREIGN_KEYS)
    if measure == "store":
        before_mb = peak_mb()
        began = time.perf_counter()
        with database.transaction(connection) as cursor:
            graph.store(
                cursor,
                nodes,
                links,
                user_id=user_id,
                repository=Repository(MemoryStore()),
                index=MemoryIndex(),
            )
            stored = time.perf_counter()
        wall_s = time.perf_counter() - began
        told = {
            "store_s": stored - began,
            "peak_memory_mb": peak_mb(),
            "memory_added_mb": peak_mb() - before_mb,
        }
    else:
        rows_of_nodes, rows_of_links = rendered(nodes, links, user_id)
        began = time.perf_counter()
        with database.transaction(connection) as cursor:
            copy(cursor, "node", node_rows.NODE_COLUMNS, rows_of_nodes)
            nodes_at = time.perf_counter()
            copy(cursor, "link", node_rows.LINK_COLUMNS, rows_of_links)
            links_at = time.perf_counter()
        wall_s = time.perf_counter() - began
        told = {"nodes_s": nodes_at - began, "links_s": links_at - nodes_at}
    with database.transaction(connection) as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM link)")
        assert cursor.fetchone() == (len(nodes), len(links))
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall_s": wall_s, "make_s": make_s, "client_cpu_s": own.ru_utime + own.ru_stime, **told}


def make_graph(calculations: int) -> tuple[list[Node], list[Link]]:
    """Calculations that take an input of their own, a shared one, and the outputs of the two before."""
    nodes: list[Node] = [dict_node(-1)]
    links: list[Link] = []
    before: list[list[Node]] = [[dict_node(-2), dict_node(-3)], [dict_node(-4), dict_node(-5)]]
    nodes += [node for pair in before for node in pair]
    for number in range(calculations):
        own = dict_node(number)
        calculation = CalcFunctionNode(attributes(number), process_type="bench.graph_write")
        outputs: list[Node] = [dict_node(number), dict_node(number)]
        inputs = {"shared": nodes[0], "own": own}
        for place, (first, second) in enumerate(before):
            inputs[f"energy_{place}"], inputs[f"forces_{place}"] = first, second
        links += [Link(node, calculation, LinkType.INPUT_CALC, label) for label, node in inputs.items()]
        links.append(Link(calculation, outputs[0], LinkType.CREATE, "energy"))
        links.append(Link(calculation, outputs[1], LinkType.CREATE, "forces"))
        nodes += [own, calculation, *outputs]
        before = [before[1], outputs]
    return nodes, links


def dict_node(number: int) -> Dict:
    return Dict(attributes(number))


def attributes(number: int) -> dict[str, Any]:
    """About 295 bytes of JSON: what a small calculation has to say."""
    return {
        "energy": -3.125 * number,
        "formula": f"Al{number % 7}Cu{number % 5}",
        "converged": True,
        "steps": number % 100,
        "forces": [0.001 * number, -0.25, 0.125, 1.5, -2.75, 0.0625],
        "parameters": {"cutoff": 520.0, "smearing": "gaussian", "kpoints": [4, 4, 4], "tolerance": 1e-08},
        "message": f"the iteration ended within its limits, series {number // 100}",
    }


def rendered(nodes: list[Node], links: list[Link], user_id: int) -> tuple[bytes, bytes]:
    """The rows that graph.store writes, ready for COPY."""
    for number, (node, uuid) in enumerate(zip(nodes, database.uuid7s(len(nodes)), strict=True), 1):
        node.id, node.uuid = number, uuid
    sources, targets = [link.source.id for link in links], [link.target.id for link in links]
    rows_of_links = "".join(node_rows.link_lines(links, sources, targets)).encode()
    return "".join(node_rows.node_lines(nodes, user_id)).encode(), rows_of_links


def copy(cursor: Any, table: str, columns: Iterable[str], rows: bytes) -> None:
    cursor.copy_expert(f"COPY {table} ({', '.join(columns)}) FROM STDIN", io.BytesIO(rows), 1 << 17)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- all of them


def rounds(
    calculations: int, repeat: int, *, foreign_keys_each_time: bool
) -> dict[str, list[dict[str, float]]]:
    """Every measure, several times, in changing order."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURES}
    home = Path(tempfile.mkdtemp(prefix="graph-write-"))
    try:
        open_profile(home).close()
        with Server(home / "postgres") as server:
            for number, measure, dsn in turns(server, repeat, foreign_keys_each_time):
                command = [sys.executable, __file__, "--one", measure, "--dsn", dsn]
                command += ["--calculations", str(calculations)]
                told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                results[measure].append(told)
                print(f"round {number + 1} {measure:<24} {told['wall_s']:6.2f} s", flush=True)
    finally:
        stop_server(home / "postgres", force=True)
        shutil.rmtree(home, ignore_errors=True)
    return results


def turns(server: Server, repeat: int, foreign_keys_each_time: bool) -> Iterator[tuple[int, str, str]]:
    """(round, measure, database): each fresh, with nothing of the last left to be written to disk."""
    administrator = database.connect(server.dsn("template1"))
    administrator.autocommit = True
    with administrator.cursor() as cursor:
        for number in range(repeat):
            order = list(MEASURES[:2])
            if number % 2:
                order.reverse()
            if foreign_keys_each_time or number == repeat - 1:
                order.append(MEASURES[2])
            for measure in order:
                name = f"bench_{number}_{measure}"
                cursor.execute(f"CREATE DATABASE {name} TEMPLATE grange STRATEGY file_copy")
                cursor.execute("CHECKPOINT")
                yield number, measure, server.dsn(name)
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    administrator.close()


def report(results: dict[str, list[dict[str, float]]], calculations: int) -> None:
    """Medians as rates, and the one line that a machine reads."""

    def median(measure: str, figure: str) -> float:
        return round(statistics.median(told[figure] for told in results[measure]), 3)

    nodes, links = 5 + NODES_EACH * calculations, LINKS_EACH * calculations
    pairs = zip(results["bare_copy"], results["store"], strict=True)
    ratio = round(statistics.median(bare["wall_s"] / stored["wall_s"] for bare, stored in pairs), 3)
    figures: dict[str, float] = {"nodes": nodes, "links": links}
    for measure in MEASURES:
        wall_s = median(measure, "wall_s")
        figures[f"{measure}_s"] = wall_s
        figures[f"{measure}_nodes_per_s"] = round(nodes / wall_s)
    for measure in MEASURES[1:]:
        figures[f"{measure}_only_nodes_per_s"] = round(nodes / median(measure, "nodes_s"))
        figures[f"{measure}_only_links_per_s"] = round(links / median(measure, "links_s"))
    figures["over_copy_with_foreign_keys"] = round(
        median("bare_copy_foreign_keys", "wall_s") / median("store", "wall_s"), 3
    )
    figures["make_objects_s"] = median("store", "make_s")
    figures["peak_memory_mb"] = median("store", "peak_memory_mb")
    figures["memory_added_by_store_mb"] = median("store", "memory_added_mb")
    for name, figure in figures.items():
        print(f"{name:<44} {figure:>12,}")
    print(json.dumps({"question": "graph_write", "ratio": ratio, "aim": AIM, "figures": figures}))


if __name__ == "__main__":
    main()
