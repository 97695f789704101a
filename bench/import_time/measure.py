"""How long does grange keep a person waiting? The command line beside a bare interpreter, and first contact.

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
import time
from pathlib import Path

from grange.core.postgres import Server, stop_server
from grange.core.profile import open_profile

#: What a person should not have to wait longer for.
AIMS_MS = {"grange --version": 100.0, "grange status": 300.0, "first recorded result": 3000.0}

#: The script of somebody who has never used grange; told() says when results are first in the record.
FIRST_CONTACT = """
import sys, time
import grange as gr
def square(x): return x * x
seen = []
def told(progress):
    if progress.done and not seen:
        seen.append(time.time())
campaign = gr.Campaign("squares", gr.open())
campaign.map(square, x=range(1000))
campaign.run(progress=told)
print(seen[0], time.time())
"""

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
    contacts = [first_contact() for _ in range(3 if chosen.quick else 7)]
    rounds["first recorded result"] = [(first, 0.0) for first, _ in contacts]
    rounds["a thousand results"] = [(last, 0.0) for _, last in contacts]
    report(rounds, keep=not chosen.quick)


def first_contact() -> tuple[float, float]:
    """Milliseconds from starting Python, with no home yet, to the first result and to the thousandth."""
    home = Path(tempfile.mkdtemp(prefix="grange-bench-")) / "home"
    began = time.time()
    try:
        done = subprocess.run(
            [sys.executable, "-c", FIRST_CONTACT],
            env={**os.environ, "GRANGE_HOME": str(home)},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        stop_server(home / "postgres", force=True)
        shutil.rmtree(home.parent, ignore_errors=True)
    first, last = map(float, done.stdout.split())
    return (first - began) * 1000, (last - began) * 1000


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


def report(rounds: dict[str, list[tuple[float, float]]], *, keep: bool) -> None:
    """A table, and the figures in the last line."""
    print(f"{'':24}{'median ms':>10}{'fastest ms':>12}{'slowest ms':>12}{'peak MiB':>10}")
    figures = {}
    for name, runs in rounds.items():
        times, memory = [run[0] for run in runs], [run[1] for run in runs]
        figures[f"{name}: ms"] = round(statistics.median(times), 1)
        if any(memory):
            figures[f"{name}: peak MiB"] = round(statistics.median(memory), 1)
        print(
            f"{name:24}{statistics.median(times):10.1f}{min(times):12.1f}{max(times):12.1f}"
            + (f"{statistics.median(memory):10.1f}" if any(memory) else "")
        )
    figures["version over bare python"] = round(
        figures["grange --version: ms"] / figures["python -c pass: ms"], 3
    )
    # of the aims the one that is nearest to being missed: 1 is just reached, more is better
    ratio = min(aim / figures[f"{name}: ms"] for name, aim in AIMS_MS.items())
    result = {
        "question": "import_time",
        "ratio": round(ratio, 3),
        "aim": 1.0,
        "aims_ms": AIMS_MS,
        "figures": figures,
    }
    if keep:
        results = Path(__file__).with_name("results")
        results.mkdir(exist_ok=True)
        (results / "latest.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
