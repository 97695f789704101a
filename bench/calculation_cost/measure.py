"""What does a calculation cost? Measured beside xargs, bare posix_spawn and raw HyperQueue, in one run.

    measure.py [--quick] [--calculations N] [--repeat R]

Everything runs in turn, several times, because the machine is noisy; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0))
AIM = 0.6

SPAWN_LOOP = """
import os, sys
for number in range(int(sys.argv[1])):
    # as the others start it: with an argument (which costs it a sixth more) and an environment
    os.waitpid(os.posix_spawn("/bin/true", ["/bin/true", str(number)], os.environ), 0)
"""

GRANGE = """
import json, resource, sys, time
import grange as gr
kind, count, executor = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def identity(x: int) -> int:
    return x
profile = gr.open()
profile.worker_id
began = time.perf_counter()
campaign = gr.Campaign("cost", profile)
campaign.map(gr.ShellJob("/bin/true {index}") if kind == "executable" else identity,
             **{"index" if kind == "executable" else "x": range(count)})
done = campaign.run(progress=False, executor=executor)
wall_s = time.perf_counter() - began
assert (done.done, done.failed, done.reused) == (count, 0, 0), done
frame = campaign.results()
assert len(frame) == count and set(frame["exit_status"]) == {0}
with profile.transaction() as cursor:
    counts = [f"(SELECT count(*) FROM {table})" for table in ("node", "link", "blob")]
    cursor.execute("SELECT " + ", ".join(counts))
    nodes, links, blobs = cursor.fetchone()
own = resource.getrusage(resource.RUSAGE_SELF)
runners = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": wall_s, "nodes": nodes, "links": links, "blobs": blobs,
    "engine_cpu_s": own.ru_utime + own.ru_stime, "engine_peak_mb": own.ru_maxrss / 1024,
    "runner_peak_mb": runners.ru_maxrss / 1024}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer calculations, once over, within 45 s")
    options.add_argument("--calculations", type=int, default=5000)
    options.add_argument("--repeat", type=int, default=3)
    chosen = options.parse_args()
    count, repeat = (3000, 2) if chosen.quick else (chosen.calculations, chosen.repeat)
    rates: dict[str, list[float]] = {}
    facts: dict[str, dict[str, float]] = {}

    def measure(name: str, once: Callable[[], float], calculations: int) -> None:
        rates.setdefault(name, []).append(calculations / once())

    def grange(name: str, kind: str, calculations: int, executor: str = "local") -> None:
        def once() -> float:
            told = run_grange(kind, calculations, executor)
            facts[name] = told
            return told["wall_s"]

        measure(name, once, calculations)

    for number in range(repeat):
        measure("xargs", lambda: xargs(count), count)
        grange("grange executables", "executable", count)
        measure("posix_spawn loops", lambda: spawn_loops(count), count)
        grange("grange functions", "function", 2 * count)
        if number == 0 or not chosen.quick:
            grange("grange executables on HyperQueue", "executable", count, "hyperqueue")
            measure("raw HyperQueue", lambda: raw_hyperqueue(count), count)
        if not chosen.quick:
            grange("grange functions on HyperQueue", "function", 2 * count, "hyperqueue")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in sorted(medians.items(), key=lambda item: -item[1]):
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        peak = facts.get(name, {})
        memory = (
            f", engine {peak['engine_peak_mb']:.0f} MB, runner {peak['runner_peak_mb']:.0f} MB"
            if peak
            else ""
        )
        print(f"{name:34} {rate:8,.0f}/s  ({spread}; {rate / medians['xargs']:.2f} of xargs{memory})")
    figures = {
        "calculations": count,
        "cores": CORES,
        "rates_per_s": {name: round(rate, 1) for name, rate in medians.items()},
        "of_grange": facts,
        "functions_aim_per_s": 3000,
    }
    answer = {
        "question": "calculation_cost",
        "ratio": round(medians["grange executables"] / medians["xargs"], 3),
        "aim": AIM,
        "figures": figures,
    }
    if not chosen.quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


def xargs(count: int) -> float:
    """Seconds for xargs to run /bin/true on all cores."""
    names = "\n".join(map(str, range(count)))
    began = time.perf_counter()
    subprocess.run(["xargs", "-n1", f"-P{CORES}", "/bin/true"], input=names, text=True, check=True)
    return time.perf_counter() - began


def spawn_loops(count: int) -> float:
    """Seconds for one bare loop a core: nothing can be faster from Python."""
    began = time.perf_counter()
    loops = [
        subprocess.Popen([sys.executable, "-S", "-c", SPAWN_LOOP, str(count // CORES)]) for _ in range(CORES)
    ]
    assert all(loop.wait() == 0 for loop in loops)
    return time.perf_counter() - began


def run_grange(kind: str, count: int, executor: str) -> dict[str, float]:
    """What a run in a fresh profile tells of itself; starting PostgreSQL is not counted, all else is."""
    home = Path(tempfile.mkdtemp(prefix="grange-bench-"))
    environment = {**os.environ, "GRANGE_HOME": str(home)}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", GRANGE, kind, str(count), executor],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise SystemExit(f"grange {kind} on {executor} failed:\n{ran.stderr}")
        return dict(json.loads(ran.stdout.splitlines()[-1]))
    finally:
        subprocess.run(
            [sys.executable, "-m", "grange", "database", "stop"],
            env=environment,
            check=True,
            capture_output=True,
        )
        shutil.rmtree(home)


def raw_hyperqueue(count: int) -> float:
    """Seconds for HyperQueue's own server and worker: one task a command, nothing recorded."""
    script = HERE / "raw_hyperqueue.py"
    confined = (
        ["unshare", "--net", "--"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user", "--"]
    )
    ran = subprocess.run(
        [*confined, sys.executable, str(script), str(count), str(CORES)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(ran.stdout.splitlines()[-1])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
