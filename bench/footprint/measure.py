"""What do calculations cost the login node and the shared file system?

    measure.py [--quick]

Counted, not timed: commands by SSH, files made on the shared file system (those that are gone again too) and
bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from testbed import Testbed, machine, open_testbed  # noqa: E402 – it lies beside this folder

import grange as gr  # noqa: E402
from grange.farm.cluster_executor import ClusterExecutor  # noqa: E402
from grange.farm.counting_transport import CountingTransport  # noqa: E402

#: Of 1,000 calculations.
COMMANDS_ALLOWED, FILES_ALLOWED = 20, 50
PROGRAMS = {
    "1 ms": "/bin/true {index}",
    "50 ms": "/bin/sleep 0.05 {index}e-12",
    "1 s": "/bin/sleep 1 {index}e-12",
}

Counts = dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="the shorter ones, within 45 s")
    quick = options.parse_args().quick
    both = [1000, 10_000]
    sizes = {"1 ms": both, "50 ms": both[:1] if quick else both, "1 s": [] if quick else both}
    found: dict[str, Counts] = {}
    with open_testbed() as bed:
        about = machine()
        each = one_by_one(bed, 60 if quick else 300)
        show("one folder and one job each", each)
        bed.allocate()
        first = 0
        for kind, counts in sizes.items():
            for count in counts:
                found[f"{count:,} of {kind}"] = campaign(bed, PROGRAMS[kind], first, count)
                show(f"{count:,} of {kind}", found[f"{count:,} of {kind}"])
                first += count
    ratios = {
        name: min(COMMANDS_ALLOWED / counts["commands"], FILES_ALLOWED / counts["files"])
        for name, counts in found.items()
    }
    answer = {
        "question": "footprint",
        "ratio": round(min(ratios.values()), 2),
        "aim": 1.0,
        "figures": {
            "per 1,000 calculations": found,
            "one folder and one job each, per 1,000": each,
            "allowed over used": {name: round(ratio, 2) for name, ratio in ratios.items()},
            "allowed": {"commands": COMMANDS_ALLOWED, "files": FILES_ALLOWED},
            "slots": bed.slots,
            "machine": about,
        },
    }
    if not quick:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


def show(name: str, counts: Counts) -> None:
    """One line of the table, of 1,000 calculations."""
    words = ", ".join(f"{value:,.1f} {what}" for what, value in counts.items())
    print(f"{name:28} {words}", flush=True)


def campaign(bed: Testbed, program: str, first: int, count: int) -> Counts:
    """What a campaign of so many calculations comes to, of 1,000 of them."""
    counting = CountingTransport(bed.site.remote.transport)
    made = gr.Campaign(f"bench-{first}", bed.profile)
    made.map(gr.ShellJob(program), index=range(first, first + count))
    with watched(bed) as files:
        with ClusterExecutor(bed.profile.spool / f"bench-{first}", bed.site.computer, counting) as executor:
            done = made.run(progress=False, executor=executor)
        if (done.done, done.failed, done.reused) != (count, 0, 0):
            raise SystemExit(f"{done} of {count} calls")
    return per_thousand(counting, files, count)


def one_by_one(bed: Testbed, count: int) -> Counts:
    """The same for a folder, a script, a job and three files to be fetched for each calculation.

    Nothing is wasted: the folders are made by the same call that puts their scripts, one squeue a second asks
    for all jobs, and folders stay where they are.
    """
    counting = CountingTransport(bed.site.remote.transport)
    there = f"{bed.site.remote.work_dir}/one-by-one"
    names = ("stdout.txt", "stderr.txt", "exit.txt")
    with watched(bed) as files, tempfile.TemporaryDirectory() as fetched:
        for number in range(count):
            folder = f"{there}/{number:06d}"
            script = f"#!/bin/sh\n/bin/true {number} >stdout.txt 2>stderr.txt\necho $? >exit.txt\n"
            counting.put([(script.encode(), f"{folder}/job.sh")])
            done = counting.run(["sbatch", "--parsable", "-o", "scheduler.txt", "job.sh"], cwd=folder)
            assert done.status == 0, done.stderr
        while counting.run(["squeue", "-h", "-o", "%i"]).stdout.strip():
            time.sleep(1.0)
        for number in range(count):
            counting.get(
                [(f"{there}/{number:06d}/{name}", Path(fetched, f"{number}-{name}")) for name in names]
            )
    return per_thousand(counting, files, count)


def per_thousand(counting: CountingTransport, files: dict[str, int], count: int) -> Counts:
    """The counts of 1,000 calculations. Bytes: of contents, of what commands read and say."""
    traffic = asdict(counting.traffic)
    wanted: dict[str, Any] = {
        "commands": traffic["commands"],
        "calls of SFTP": traffic["calls"],
        "files": files["files"],
        "folders": files["folders"],
        "renamed": files["renamed"],
        "bytes out": traffic["bytes_out"],
        "bytes in": traffic["bytes_in"],
    }
    return {name: round(1000 * value / count, 1) for name, value in wanted.items()}


@contextmanager
def watched(bed: Testbed) -> Iterator[dict[str, int]]:
    """Count what is made in the work directory within the block: see watch_files.py."""
    counts: dict[str, int] = {}
    argv = [sys.executable, str(HERE / "watch_files.py"), bed.site.remote.work_dir]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "ready\n"
        yield counts
        said, _ = watch.communicate("")
        counts.update(json.loads(said))


if __name__ == "__main__":
    main()
