"""Does one login node keep many nodes busy, and what does a task cost it?

    measure.py [--quick] [--tasks N] [--cpus-each C]

64 emulated nodes that declare 128 cores each, in allocations of 8; tasks are calls of a function that sleeps
for a second and asks for C cores, so that 8,192 / C of them keep all declared cores busy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from testbed import LABEL, machine, open_testbed  # noqa: E402 – it lies beside this folder
from usage import usage  # noqa: E402

import grange as gr  # noqa: E402
from grange.core.engine import Progress  # noqa: E402

#: The share of the time for which slots are busy.
AIM = 0.9
NODES, CORES_EACH, NODES_OF_ALLOCATION = 64, 128, 8
NAP_S = 1.0
#: What runs on a login node, or on the user's machine; all else runs on compute nodes.
CONTROL = ("engine", "PostgreSQL", "commands", "HyperQueue server", "Slurm")


def nap(index: int, seconds: float) -> int:
    """What is to be computed."""
    import time

    time.sleep(seconds)
    return index


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="few tasks of a whole node each, within 45 s")
    options.add_argument("--tasks", type=int, default=100_000)
    options.add_argument("--cpus-each", type=int, default=32)
    chosen = options.parse_args()
    tasks, cpus = (1000, CORES_EACH) if chosen.quick else (chosen.tasks, chosen.cpus_each)
    slots = NODES * CORES_EACH // cpus
    memory_mb: dict[str, float] = {}
    with open_testbed(NODES, CORES_EACH) as bed:
        about = machine()
        began = time.perf_counter()
        bed.allocate(NODES_OF_ALLOCATION)
        up_s = time.perf_counter() - began
        print(f"{NODES} workers with {bed.slots:,} cores are there after {up_s:.1f} s", flush=True)
        campaign = gr.Campaign("bench", bed.profile)
        campaign.map(nap, index=range(tasks), seconds=NAP_S, resources=gr.Resources(cpus=cpus))
        told = [time.monotonic()]

        def listen(progress: Progress) -> None:
            if progress.done >= tasks // 2 and not memory_mb:
                memory_mb.update(usage(bed).memory_mb)
            if time.monotonic() - told[0] > 20:
                told[0] = time.monotonic()
                print(f"{progress.done:8,} done, {progress.rate:,.0f}/s; {progress.note}", flush=True)

        before = usage(bed)
        began = time.perf_counter()
        done = campaign.run(progress=listen, executor=LABEL)
        seconds = time.perf_counter() - began
        used = usage(bed) - before
        if (done.done, done.failed, done.reused) != (tasks, 0, 0):
            raise SystemExit(f"{done} of {tasks} calls")
    busy = tasks * NAP_S / (slots * seconds)
    control_ms = sum(1e3 * used.cpu_s.get(part, 0.0) / tasks for part in CONTROL)
    control_mb = sum(memory_mb.get(part, 0.0) for part in CONTROL)
    print(f"{tasks:,} tasks in {seconds:.1f} s on {slots} slots: busy {busy:.1%}")
    print(f"control plane: {control_ms:.3f} ms and {control_mb / tasks * 1024:.1f} KiB a task")
    answer = {
        "question": "many_nodes",
        "ratio": round(busy, 3),
        "aim": AIM,
        "figures": {
            "nodes": NODES,
            "cores_declared": bed.slots,
            "cpus_of_a_task": cpus,
            "slots": slots,
            "tasks": tasks,
            "nap_s": NAP_S,
            "seconds": round(seconds, 2),
            "tasks_per_s": round(tasks / seconds, 1),
            "workers_after_s": round(up_s, 1),
            "control_cpu_ms_per_task": round(control_ms, 3),
            "control_memory_mb": round(control_mb),
            "cpu_ms_per_task": {part: round(1e3 * used_s / tasks, 3) for part, used_s in used.cpu_s.items()},
            "cpu_busy_of_machine": round(sum(used.cpu_s.values()) / seconds / about["cores"], 2),
            "memory_mb": {part: round(each) for part, each in memory_mb.items()},
            "machine": about,
        },
    }
    if not chosen.quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
