"""Workflows of tests, and hubs that are cut off where somebody would be killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grange as gr
from grange.core.future import Future
from grange.core.hub import Hub
from grange.core.pending_call import PendingCall, record_now
from grange.core.profile import Profile, open_profile
from grange.core.submit import _pending
from grange.core.worker import WORKER_LOCK, free_dead

#: What calcfunctions of this module were called with, in this process.
CALLED: list[tuple[Any, ...]] = []


@gr.calcfunction
def add(x: int, y: int) -> int:
    CALLED.append(("add", x, y))
    return x + y


@gr.calcfunction
def multiply(x: int, y: int) -> int:
    CALLED.append(("multiply", x, y))
    return x * y


@gr.calcfunction
def refuse(x: int) -> gr.ExitCode:
    return gr.ExitCode(310, f"{x} is refused")


@gr.calcfunction
def stumble(x: int) -> int:
    raise ValueError(f"{x} is a stone")


@gr.workfunction
def add_mul(x: gr.Int, y: gr.Int, z: gr.Int) -> gr.Int:
    return multiply(add(x, y), z)


@gr.workflow
def collatz(start: int, most: int = 30) -> dict[str, gr.Data]:
    """A loop and a branch on results."""
    value, steps = start, 0
    while value.value != 1 and steps < most.value:
        value = add(multiply(value, 3), 1) if value.value % 2 else halve(value)
        steps += 1
    return {"last": value}


@gr.calcfunction
def halve(x: int) -> int:
    CALLED.append(("halve", x))
    return x // 2


@gr.workflow
def tree(depth: int, width: int) -> gr.Data:
    """Workflows in parallel that call workflows in parallel."""
    if depth.value == 0:
        return add(1, 0)
    below = [gr.submit(tree, depth=depth.value - 1, width=width) for _ in range(width.value)]
    total = add(0, 0)
    for future in below:
        total = add(total, future.result())
    return total


@gr.workflow
def first_of(count: int) -> gr.Data:
    """What goes on with whatever ends first."""
    left = [gr.submit(collatz, start=number + 2) for number in range(count.value)]
    total = add(0, 0)
    while left:
        gr.wait(left, any_of_them=True)
        ended = [future for future in left if future.is_terminated]
        left = [future for future in left if not future.is_terminated]
        for future in ended:
            total = add(total, future.outputs.last)
        note(f"{len(left)} left")
    return total


def double(x: int) -> int:
    return 2 * x


@gr.workflow
def doubled(x: int, times: int = 1) -> gr.Data:
    """Hands calculations to the farm, one after the other."""
    for _ in range(times.value):  # type: ignore[attr-defined]
        x = gr.run(double, x=x)
    return x  # type: ignore[return-value]


def note(text: str) -> None:
    from grange.core.current_frame import current_frame

    frame = current_frame()
    assert frame is not None
    frame.report(text)


@gr.workflow
def careless(which: str) -> object:
    """Ends in one of the ways in which workflows end badly."""
    match which.value:
        case "refused":
            return refuse(3)
        case "stumbled":
            return stumble(4)
        case "caught":
            try:
                stumble(5)
            except gr.ProcessFailed as error:
                return add(5, 0) if error.exit_status is None else None
        case "code":
            return gr.ExitCode(401, "said so")
        case "value":
            return 3
        case "new":
            return gr.Int(3)
        case "error":
            raise KeyError("nowhere")
    return None


def pending_of(profile: Profile, runnable: Any, **inputs: object) -> list[PendingCall]:
    return _pending(profile, runnable, inputs, [""], None, None, None, one=True)


def begin(profile: Profile, runnable: Any, hub: Hub, **inputs: object) -> Future:
    """Record a workflow, and let a hub begin with it."""
    pending = pending_of(profile, runnable, **inputs)
    record_now(profile, pending, owner=profile.worker_id)
    hub.adopt(pending, roots=True)
    return pending[0].future


def run(profile: Profile, runnable: Any, **inputs: object) -> Future:
    """Run a workflow here, without farm."""
    hub = Hub(profile, alone=True)
    future = begin(profile, runnable, hub, **inputs)
    hub.run(lambda: future.is_terminated)
    return future


def work(profile: Profile, ids: Sequence[int], *, live: int = 1000, steps: int | None = None) -> int:
    """Be a worker until these have ended, or for so many steps; returns how many steps it took."""
    hub = Hub(profile, live=live)
    taken = 0
    while (steps is None or taken < steps) and not ended(profile, ids):
        hub.step(0.02)
        taken += 1
    if steps is None:
        hub.let_go()
    return taken


def rows_of(profile: Profile, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with profile.transaction() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def links_of(profile: Profile) -> list[tuple[Any, ...]]:
    """All links of a small graph, in order: processes by their labels, data by their values."""
    return sorted(
        rows_of(
            profile,
            """
            SELECT coalesce(sp.label, s.attributes ->> 'value'), l.type::text, l.label,
                   coalesce(tp.label, t.attributes ->> 'value')
            FROM link l JOIN node s ON s.id = l.source_id JOIN node t ON t.id = l.target_id
            LEFT JOIN process sp ON sp.node_id = s.id LEFT JOIN process tp ON tp.node_id = t.id
            """,
        )
    )


def ended(profile: Profile, ids: Sequence[int]) -> bool:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*) FROM process WHERE node_id = ANY(%s)"
            " AND state NOT IN ('created', 'waiting', 'running')",
            (list(ids),),
        )
        return cursor.fetchone() == (len(ids),)


@contextmanager
def another(profile: Profile) -> Iterator[Profile]:
    """A profile with a connection of its own, which ends as if its process had been killed."""
    opened = open_profile(profile.home)
    worker_id = opened.worker_id
    try:
        yield opened
    finally:
        opened.close()
        while is_alive(profile, worker_id):
            time.sleep(0.005)


def is_alive(profile: Profile, worker_id: int) -> bool:
    """Whether a worker has its lock; its server takes a moment to see that it is gone."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s"
            " AND objid::bigint = %s AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database()))",
            (WORKER_LOCK, worker_id),
        )
        return bool((cursor.fetchone() or (False,))[0])


def cut_off_everywhere(profile: Profile, submit: Callable[[], int], *, live: int = 1000) -> int:
    """Work on a process, by workers each of which dies after its first step; returns how many it took."""
    process_id = submit()
    workers = 0
    while not ended(profile, [process_id]):
        workers += 1
        with another(profile) as own:
            work(own, [process_id], live=live, steps=1)
        free_dead(profile)
    return workers


def shape(profile: Profile, process_id: int) -> list[tuple[Any, ...]]:
    """What a process has called, and so on, with inputs, outputs and states: equal for equal runs."""
    with profile.transaction() as cursor:
        cursor.execute(
            """
            WITH RECURSIVE called AS (
                SELECT node_id, ARRAY[0] AS place FROM process WHERE node_id = %s
                UNION ALL
                SELECT p.node_id, called.place || p.sequence FROM process p
                JOIN called ON p.parent_id = called.node_id
            )
            SELECT called.place, p.label, p.state::text, p.exit_status,
                   (SELECT array_agg((l.type, l.label, d.attributes)::text ORDER BY l.type, l.label)
                    FROM link l JOIN node d ON d.id = l.source_id
                    WHERE l.target_id = p.node_id AND l.type IN ('input_calc', 'input_work')),
                   (SELECT array_agg((l.type, l.label, d.attributes)::text ORDER BY l.type, l.label)
                    FROM link l JOIN node d ON d.id = l.target_id
                    WHERE l.source_id = p.node_id AND l.type IN ('create', 'return')),
                   (SELECT array_agg(l.type || ' ' || l.label) FROM link l
                    WHERE l.target_id = p.node_id AND l.type IN ('call_calc', 'call_work')),
                   p.open_children
            FROM called JOIN process p USING (node_id) ORDER BY called.place
            """,
            (process_id,),
        )
        return list(cursor.fetchall())
