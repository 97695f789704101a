"""How fast is the engine, and does anything grow that must not?

    measure.py [--quick] [--only NAME]

Each measure has a database of its own in one embedded PostgreSQL (fsync on); workers and dispatchers are
processes as a daemon starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

import steps  # noqa: E402 – it lies beside this file
from bed import Bed, Place, cpu_s, memory_mb, open_bed  # noqa: E402
from many_rows import fill  # noqa: E402

import grange as gr  # noqa: E402
from grange.core import workflow_rows  # noqa: E402
from grange.core.hub import Hub  # noqa: E402

#: Recorded processes a second, with a worker on each of two cores.
AIM_PER_S = 2000
WORKERS = (1, 2, 4)
#: A workflow of so many steps is so many processes and one.
STEPS = 9

Figures = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="smaller, within 45 s; leaves results alone")
    options.add_argument("--only", choices=MEASURES, action="append", help="this measure, or these")
    chosen = options.parse_args()
    figures: Figures = {}
    before = os.getloadavg()[0]
    with open_bed() as bed:
        for name, measure in MEASURES.items():
            if chosen.only and name not in chosen.only:
                continue
            began = time.perf_counter()
            found = measure(bed, chosen.quick)
            print(f"{name} ({time.perf_counter() - began:.1f} s)", flush=True)
            for what, figure in found.items():
                print(f"    {what:<56} {figure:>12,}", flush=True)
            figures.update(found)
    figures["machine"] = {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "load_before": round(before, 2),
    }
    ratio = round(figures.get("processes_per_s_2_workers", 0) / AIM_PER_S, 3)
    answer = {"question": "engine", "ratio": ratio, "aim": 1.0, "figures": figures}
    if not chosen.quick and not chosen.only:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


# ---------------------------------------------------------------- how fast


def rates(bed: Bed, quick: bool) -> Figures:
    """Steps a second, from the call of submit_many until its futures have ended, by idle workers."""
    workflows = 800 if quick else 3000
    found = {}
    for count in WORKERS:
        with bed.place() as place, place.workers(count) as pids:
            used = [time.process_time(), cpu_s(pids), place.server_cpu_s()]
            began = time.perf_counter()
            futures = gr.submit_many(steps.sequence, x=range(workflows), steps=STEPS, profile=place.profile)
            futures.wait(progress=False)
            seconds = time.perf_counter() - began
            recorded = place.count_processes()
            require(recorded == workflows * (STEPS + 1) and not futures.failed(), "not all ended well")
            using = [time.process_time(), cpu_s(pids), place.server_cpu_s()]
        found[f"processes_per_s_{count}_workers"] = round(recorded / seconds)
        if count == 2:
            for who, before, after in zip(("script", "workers", "server"), used, using, strict=True):
                found[f"cpu_ms_per_process_{who}"] = round(1000 * (after - before) / recorded, 4)
    return found


def submitting(bed: Bed, quick: bool) -> Figures:
    """Seconds for gr.submit_many to record 10,000; workflows, and calculations for the farm."""
    found = {}
    with bed.place() as place:
        for what, runnable in (("workflows", steps.leaf), ("calculations", steps.plus)):
            began = time.perf_counter()
            gr.submit_many(runnable, x=range(10_000), profile=place.profile)
            found[f"submit_10000_{what}_s"] = round(time.perf_counter() - began, 3)
    return found


def statements(bed: Bed, quick: bool) -> Figures:
    """SQL statements a process, from submitting 1,000 to their end: all connections, by the server's log."""
    found = {}
    for what, runnable in (("workflows", steps.leaf), ("calculations", steps.plus)):
        with bed.place(counted=True) as place:
            staff = place.workers(1) if what == "workflows" else place.dispatcher()
            with staff:
                since = place.log.stat().st_size
                futures = gr.submit_many(runnable, x=range(1000), profile=place.profile)
                futures.wait(progress=False)
                sent = place.count_statements(since)
            recorded = place.count_processes()
            require(not futures.failed(), "not all ended well")
        found[f"statements_{what}"] = sent
        found[f"statements_per_process_{what}"] = round(sent / recorded, 3)
    return found


def latency(bed: Bed, quick: bool) -> Figures:
    """Milliseconds from the end of a child, run elsewhere, to the start of the parent's next step."""
    found: Figures = {}
    rounds = 8 if quick else 50
    for what, runnable in (("another_worker", steps.relay), ("the_farm", steps.relay_by_farm)):
        with bed.place() as place, place.workers(2):
            with place.dispatcher():
                futures = gr.submit_many(runnable, rounds=[rounds] * 4, profile=place.profile)
                futures.wait(progress=False)
                require(not futures.failed(), "not all ended well")
            waits = [
                1000 * seconds
                for (seconds,) in place.rows(
                    """
                    SELECT extract(epoch FROM next.started_at - child.finished_at)::float8
                    FROM process parent JOIN process child ON child.parent_id = parent.node_id
                    JOIN process next ON next.parent_id = parent.node_id
                         AND next.sequence = child.sequence + 1
                    WHERE parent.parent_id IS NULL AND child.sequence %% 2 = 1
                      AND child.worker_id <> parent.worker_id
                    """
                )
            ]
        require(len(waits) > rounds / 2, f"only {len(waits)} children were run elsewhere")
        found[f"latency_by_{what}_median_ms"] = round(statistics.median(waits), 1)
        found[f"latency_by_{what}_90_percent_ms"] = round(statistics.quantiles(waits, n=10)[-1], 1)
    return found


# ---------------------------------------------------------------- what must not grow


def linear(bed: Bed, quick: bool) -> Figures:
    """Milliseconds a call of workflows with few and with many calls, live and by replay of their record.

    Growth is that of CPU, ours and the server's: the clock depends on what else the machine is at.
    """
    found: Figures = {}
    few, many = (250, 1000) if quick else (1000, 10_000)
    for what, runnable, inputs in (
        ("sequential", steps.sequence, lambda calls: {"x": 0, "steps": calls}),
        ("parallel", steps.parallel, lambda calls: {"children": calls}),
    ):
        cpu: dict[tuple[str, int], float] = {}
        with bed.place() as place:
            for calls, times in ((few, 3), (many, 1)):
                spent = [0.0] * 4
                for _ in range(times):
                    future = gr.submit(runnable, inputs(calls), profile=place.profile)
                    one = _live_and_replayed(place, future, calls, children=what == "parallel")
                    require(future.is_finished_ok, future.said())
                    spent = [before + more / times for before, more in zip(spent, one, strict=True)]
                live_s, cpu["live", calls], replay_s, cpu["replay", calls] = spent
                found[f"{what}_live_{calls}_calls_ms_each"] = round(1000 * live_s / calls, 4)
                found[f"{what}_replay_{calls}_calls_ms_each"] = round(1000 * replay_s / calls, 4)
        for how in ("live", "replay"):
            growth = cpu[how, many] / many / (cpu[how, few] / few)
            found[f"{what}_{how}_growth"] = round(growth, 2)
    return found


def _live_and_replayed(
    place: Place, future: gr.Future, calls: int, *, children: bool
) -> tuple[float, float, float, float]:
    """Seconds, and of CPU, for all calls but the last, and for another worker from the record to the end."""

    def used_s() -> float:
        return time.process_time() + place.server_cpu_s()

    hub = Hub(place.profile)
    before_s, began = used_s(), time.perf_counter()
    hub.run(lambda: hub.ended >= 2 * calls if children else hub.recorded >= calls - 1)
    live_s, live_cpu_s = time.perf_counter() - began, used_s() - before_s
    require(not future.done(), "it ended before it could be cut off")
    other = Hub(place.profile)
    before_s, began_at = used_s(), time.time()
    other.run(lambda: other.ended > 0 and future.done())
    replay_cpu_s = used_s() - before_s
    ((ended_at,),) = place.rows(
        "SELECT extract(epoch FROM finished_at)::float8 FROM process WHERE node_id = %s", future.id
    )
    return live_s, live_cpu_s, ended_at - began_at, replay_cpu_s


def memory(bed: Bed, quick: bool) -> Figures:
    """Mebibytes that one worker holds after a tenth of the processes, and after all."""
    workflows = 600 if quick else 10_000
    held = []
    with bed.place() as place, place.workers(1) as (pid,):
        for part in (workflows // 10, workflows - workflows // 10):
            for start in range(0, part, 1000):
                count = min(1000, part - start)
                gr.submit_many(steps.sequence, x=range(count), steps=STEPS, profile=place.profile).wait(
                    progress=False
                )
            held.append(memory_mb(pid))
        recorded = place.count_processes()
    return {
        "memory_processes": recorded,
        "memory_after_a_tenth_mb": round(held[0], 1),
        "memory_after_all_mb": round(held[1], 1),
    }


def many_rows(bed: Bed, quick: bool) -> Figures:
    """`grange process list`, as a command, and claiming 200 workflows, among millions of processes."""
    count = 150_000 if quick else 10_000_000
    with bed.place() as place:
        began = time.perf_counter()
        fill(place.profile, count)
        fill_s = time.perf_counter() - began
        lists = {
            "list": [],
            "list_failed": ["--failed"],
            "list_unfinished": ["--state", "waiting"],
        }
        found: Figures = {"rows": count, "rows_filled_in_s": round(fill_s, 1)}
        for name, more in lists.items():
            found[f"process_{name}_s"] = round(statistics.median(_listed(place, more) for _ in range(3)), 3)
        worker_id = place.profile.worker_id
        for what in ("claim_200_after_a_checkpoint_ms", "claim_200_ms"):
            claims = [_claimed(place, worker_id) for _ in range(4)]
            found[what] = round(statistics.median(claims), 1)
            found[f"{what}_best"] = round(min(claims), 1)
            with place.profile.transaction() as cursor:
                workflow_rows.give_back(cursor, [worker_id])
    return found


def _claimed(place: Place, worker_id: int) -> float:
    """Milliseconds for claiming 200."""
    began = time.perf_counter()
    with place.profile.transaction() as cursor:
        ready = workflow_rows.find_ready(cursor, 200)
        claimed = workflow_rows.claim(cursor, ready, worker_id)
    claim_s = time.perf_counter() - began
    require(len(claimed) == 200, f"{len(claimed)} of 200 were claimed")
    return 1000 * claim_s


def _listed(place: Place, more: list[str]) -> float:
    command = [sys.executable, "-m", "grange", "process", "list", *more]
    began = time.perf_counter()
    subprocess.run(
        command,
        env={**os.environ, "GRANGE_HOME": str(place.home)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def waiting_parents(bed: Bed, quick: bool) -> Figures:
    """Processes a second of workflows by 4 workers, alone and beside parents that wait for the farm.

    Then the farm is there: how fast the parents end.
    """
    parents, children = (1000, 500) if quick else (100_000, 10_000)

    def run_children(place: Place) -> float:
        gr.submit_many(steps.leaf, x=range(100), profile=place.profile).wait(progress=False)  # imports
        began = time.perf_counter()
        futures = gr.submit_many(steps.leaf, x=range(children), profile=place.profile)
        futures.wait(progress=False)
        require(not futures.failed(), "not all ended well")
        return 2 * children / (time.perf_counter() - began)

    with bed.place() as place, place.workers(4):
        alone = run_children(place)
    with bed.place() as place, place.workers(4):
        began = time.perf_counter()
        waiting = gr.submit_many(steps.parent, x=range(parents), profile=place.profile)
        while place.rows("SELECT count(*) FROM process WHERE state = 'waiting' AND workflow") != [(parents,)]:
            time.sleep(0.1)
        begun_s = time.perf_counter() - began
        beside = run_children(place)
        began = time.perf_counter()
        with place.dispatcher():
            waiting.wait(progress=False)
        ended_s = time.perf_counter() - began
        require(not waiting.failed(), "not all ended well")
    return {
        "waiting_parents": parents,
        "parents_begun_per_s": round(parents / begun_s),
        "children_alone_per_s": round(alone),
        "children_beside_waiting_parents_per_s": round(beside),
        "children_beside_over_alone": round(beside / alone, 2),
        "parents_ended_with_their_calculations_per_s": round(parents / ended_s),
    }


MEASURES: dict[str, Callable[[Bed, bool], Figures]] = {
    "rates": rates,
    "submitting": submitting,
    "statements": statements,
    "latency": latency,
    "linear": linear,
    "memory": memory,
    "many_rows": many_rows,
    "waiting_parents": waiting_parents,
}


def require(fine: bool, otherwise: str) -> None:
    """Errors: SystemExit, when a measure is of something else than it says."""
    if not fine:
        raise SystemExit(otherwise)


if __name__ == "__main__":
    main()
