"""How long does the command line keep a person waiting? Beside a bare interpreter, in one run.

    measure.py [--quick] [--repeat R]

Each round runs every command once, in turn, so that what else the machine does falls on all alike;
figures are medians, in milliseconds of wall time and mebibytes of peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from grange.core.postgres import Server, stop_server
from grange.core.profile import open_profile

#: docs/design.md: `grange --version` within 100 ms, `grange status` within 300 ms.
AIM_VERSION_MS, AIM_STATUS_MS = 100.0, 300.0

GRANGE = str(Path(sys.executable).with_name("grange"))
COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "python -I -S -c pass": (sys.executable, "-I", "-S", "-c", "pass"),
    "import grange": (sys.executable, "-c", "import grange"),
    "import click": (sys.executable, "-c", "import click"),
    "import psycopg2": (sys.executable, "-c", "import psycopg2"),
    "grange --version": (GRANGE, "--version"),
    "grange --help": (GRANGE, "--help"),
    "grange status": (GRANGE, "status"),
    "grange process list": (GRANGE, "process", "list"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer rounds, within 45 s")
    options.add_argument("--repeat", type=int)
    chosen = options.parse_args()
    repeat = chosen.repeat or (15 if chosen.quick else 40)
    home = Path(tempfile.mkdtemp(prefix="grange-bench-"))
    try:
        with open_profile(home), Server(home / "postgres"):
            rounds = measure(home, repeat)
    finally:
        stop_server(home / "postgres", force=True)
        shutil.rmtree(home, ignore_errors=True)
    report(rounds)


def measure(home: Path, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """(milliseconds, mebibytes) of each command in each round; the first round warms the caches.

    A bare interpreter starts the commands: the kernel counts the memory of whoever starts a program to
    that program's peak.
    """
    launcher = (sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py")))
    done = subprocess.run(
        launcher,
        input=repr((repeat + 1, list(COMMANDS.items()))),
        env={**os.environ, "GRANGE_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for line in done.stdout.splitlines()[len(COMMANDS) :]:
        milliseconds, mebibytes, name = line.split(" ", 2)
        found[name].append((float(milliseconds), float(mebibytes)))
    return found


def report(rounds: dict[str, list[tuple[float, float]]]) -> None:
    """A table, and the figures in the last line."""
    print(f"{'':24}{'median ms':>10}{'fastest ms':>12}{'slowest ms':>12}{'peak MiB':>10}")
    figures = {}
    for name, runs in rounds.items():
        times, memory = [run[0] for run in runs], [run[1] for run in runs]
        figures[f"{name}: ms"] = round(statistics.median(times), 1)
        figures[f"{name}: peak MiB"] = round(statistics.median(memory), 1)
        print(
            f"{name:24}{statistics.median(times):10.1f}{min(times):12.1f}{max(times):12.1f}"
            f"{statistics.median(memory):10.1f}"
        )
    version, status = figures["grange --version: ms"], figures["grange status: ms"]
    result = {
        "question": "import_time",
        "ratio": round(version / figures["python -c pass: ms"], 3),
        "aim": {"grange --version: ms": AIM_VERSION_MS, "grange status: ms": AIM_STATUS_MS},
        "reached": version <= AIM_VERSION_MS and status <= AIM_STATUS_MS,
        "figures": figures,
    }
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
