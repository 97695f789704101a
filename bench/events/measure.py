"""What do events cost? Recording, claiming and ending processes, with the triggers of events and without.

    measure.py [--quick] [--processes N] [--repeat R]

Both ways in one embedded PostgreSQL, slice about; figures are medians, for slices of 2,000 processes, of the
time that the server's process was on a core, which others at work change less than the clock. Commits are not
counted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from grange.core import database
from grange.core import process as rows
from grange.core.postgres import Server, stop_server
from grange.core.process import End, NewProcess
from grange.core.profile import open_profile
from grange.core.transition import State

AIM = 0.75
SLICE = 2000
TRIGGERS = ("process_noted", "process_changes_noted")
STEPS = ("record", "claim", "end", "one that tells nothing", "one claimed")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer processes, within 45 s")
    options.add_argument("--processes", type=int)
    options.add_argument("--repeat", type=int, default=3)
    chosen = options.parse_args()
    slices = (chosen.processes or (20_000 if chosen.quick else 60_000)) // SLICE
    figures: dict[str, dict[str, list[float]]] = {way: {} for way in ("with", "without")}
    home = Path(tempfile.mkdtemp(prefix="events-"))
    try:
        open_profile(home).close()
        with Server(home / "postgres") as server:
            for number in range(chosen.repeat):
                ways = list(figures) if number % 2 else list(figures)[::-1]
                opened = {way: _database(server, f"bench_{number}_{way}", slices, way) for way in ways}
                for part in range(slices):
                    for way in ways:
                        for step, seconds in _slice(opened[way], part):
                            figures[way].setdefault(step, []).append(seconds)
                for connection in opened.values():
                    connection.close()
    finally:
        stop_server(home / "postgres", force=True)
        shutil.rmtree(home, ignore_errors=True)
    report(figures)


def _database(server: Server, name: str, slices: int, way: str) -> database.Connection:
    """A fresh database with a node for every process."""
    administrator = database.connect(server.dsn("template1"))
    administrator.autocommit = True
    with administrator.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE grange STRATEGY file_copy")
    administrator.close()
    connection = database.connect(server.dsn(name))
    with database.transaction(connection) as cursor:
        cursor.execute("INSERT INTO \"user\" (email) VALUES ('bench@localhost') RETURNING id")
        (user_id,) = cursor.fetchone() or (0,)
        cursor.execute(
            "INSERT INTO node (uuid, kind, user_id, node_type)"
            " SELECT gen_random_uuid(), 'calculation', %s, 'process.' FROM generate_series(1, %s)",
            (user_id, slices * SLICE + 1),
        )
        for trigger in TRIGGERS if way == "without" else ():
            cursor.execute(f"ALTER TABLE process DISABLE TRIGGER {trigger}")
        rows.insert(
            cursor, [NewProcess(slices * SLICE + 1, "bench", None, None, None, State.CREATED, 0, None)]
        )
    return connection


def _slice(connection: database.Connection, part: int) -> Iterator[tuple[str, float]]:
    """What the engine does to a slice of processes, and what is done to one alone."""
    ids = range(1 + part * SLICE, 1 + (part + 1) * SLICE)
    new = [
        NewProcess(id_, "bench", id_.to_bytes(32), None, None, State.WAITING, 1, 7, queue_id=3) for id_ in ids
    ]
    ends = [End(id_, 2, State.FINISHED, 0, None, 1.7e9, 0.1, 0.1, 10.0, "host") for id_ in ids]
    alone = (
        "UPDATE process SET {} WHERE attempt = 0 AND label = 'bench' AND node_id = (SELECT max(id) FROM node)"
    )
    yield "record", _timed(connection, lambda cursor: rows.insert(cursor, new))
    yield "claim", _timed(connection, lambda cursor: rows.claim(cursor, ids, 8))
    yield "end", _timed(connection, lambda cursor: rows.end(cursor, ends))
    quiet, told = alone.format("ready = NOT ready"), alone.format("worker_id = coalesce(worker_id, 0) + 1")
    yield "one that tells nothing", _timed(connection, lambda cursor: cursor.execute(quiet))
    yield "one claimed", _timed(connection, lambda cursor: cursor.execute(told))


def _timed(connection: database.Connection, do: Callable[[database.Cursor], object]) -> float:
    with database.transaction(connection) as cursor:
        cursor.execute("SELECT")  # BEGIN is not counted either
        began = _on_core_s(connection)
        do(cursor)
        return _on_core_s(connection) - began


def _on_core_s(connection: database.Connection) -> float:
    """How long the server's process of a connection has been on a core. Units: seconds."""
    return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0]) / 1e9


def report(figures: dict[str, dict[str, list[float]]]) -> None:
    """Medians in ms a slice, and the one line that a machine reads."""
    told: dict[str, float] = {}
    print(f"{'ms':<24} {'with':>9} {'without':>9}")
    for step in STEPS:
        with_ms, without_ms = (1e3 * statistics.median(figures[way][step]) for way in ("with", "without"))
        print(f"{step:<24} {with_ms:9.3f} {without_ms:9.3f}")
        name = step.replace(" ", "_")
        told |= {f"{name}_with_ms": round(with_ms, 3), f"{name}_without_ms": round(without_ms, 3)}
    # of a calculation's life: recorded and ended once, seldom claimed anew
    life = {
        way: [sum(times) for times in zip(steps["record"], steps["end"], strict=True)]
        for way, steps in figures.items()
    }
    each_us = 1e6 * (statistics.median(life["with"]) - statistics.median(life["without"])) / SLICE
    print(f"a calculation's three events: {each_us:.1f} µs")
    told["a_calculation_us"] = round(each_us, 2)
    ratio = round(
        statistics.median(
            without / with_ for with_, without in zip(life["with"], life["without"], strict=True)
        ),
        3,
    )
    print(json.dumps({"question": "events", "ratio": ratio, "aim": AIM, "figures": told}))


if __name__ == "__main__":
    main()
