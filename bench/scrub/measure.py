"""How fast are stored contents hashed again, and do threads help? Beside SHA-256 of the same files alone.

    measure.py [--quick]

Contents of 4 KiB, half of them deflated, and of 1 MiB, in packs in a folder of this machine. Each measure is
a process of its own, and the order changes from round to round. Rates are bytes of content a second; medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from grange.repository import BlobLocation, Key, LocalStore, MemoryIndex, Repository
from grange.repository.checking import begin_check, check_object
from grange.repository.team import Team

HERE = Path(__file__).resolve().parent
#: One thread that hashes while others read ahead, over two that hash; small contents.
AIM = 1.0
MEASURES = ("sha256", "one_thread", "two_read", "two_hash", "four_hash")
SIZES = {"4 KiB": 4096, "1 MiB": 1 << 20}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="100 MB, one round")
    options.add_argument("--one", nargs=3, metavar=("MEASURE", "SIZE", "FOLDER"), help="one, in this process")
    options.add_argument("--total", type=int, help="bytes of content")
    chosen = options.parse_args()
    total = chosen.total or (100_000_000 if chosen.quick else 200_000_000)
    if chosen.one:
        measure, size, folder = chosen.one
        print(json.dumps(one(measure, SIZES[size], total, Path(folder))))
        return
    rounds = 1 if chosen.quick else 5
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        size: {measure: [] for measure in MEASURES} for size in SIZES
    }
    with tempfile.TemporaryDirectory(prefix="grange-bench-") as folder:
        for size in SIZES:
            for number in range(rounds):
                for measure in random.sample(MEASURES, len(MEASURES)):
                    words = ["--one", measure, size, f"{folder}/{size[0]}", "--total", str(total)]
                    done = subprocess.run(
                        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
                    )
                    found[size][measure].append(json.loads(done.stdout))
                print(f"{size}: round {number + 1} of {rounds}", file=sys.stderr)
    report(found, total, quick=chosen.quick)


def contents(size: int, total: int) -> Iterator[bytes]:
    chance = random.Random(1)
    for number in range(total // size):
        noise = chance.randbytes(size // 2 if size < 100_000 and number % 2 else size)
        yield noise if len(noise) == size else b"\n%015d" % number * (size // 16)


def one(measure: str, size: int, total: int, folder: Path) -> dict[str, float]:
    """A measure of contents that are there already, or are put there by the first."""
    store, index = LocalStore(folder), MemoryIndex()
    repository = Repository(store)
    if next(iter(store.list()), None) is None:
        repository.put(contents(size, total), MemoryIndex())
    repository.rebuild_index(index)
    objects: dict[str, dict[Key, BlobLocation]] = {}
    for key, row in index.rows.items():
        objects.setdefault(row.object_name, {})[key] = row
    content = sum(row.size for row in index.rows.values())
    started_s, cpu_s = time.perf_counter(), time.process_time()
    wrong = 0
    if measure == "sha256":
        for name in objects:
            digest = hashlib.sha256()
            for piece in store.read(name):
                digest.update(piece)
    else:
        threads = {"one": 1, "two": 2, "four": 4}[measure.partition("_")[0]]
        with Team(threads) as team:
            if measure.endswith("hash"):
                checks = team.map(lambda one: check_object(store, *one), objects.items())
                wrong = sum(len(done.wrong) for done in checks)
            else:
                begun = team.map(lambda one: begin_check(store, *one), objects.items())
                wrong = sum(len(end().wrong) for end in begun)
    passed_s = time.perf_counter() - started_s
    assert not wrong
    return {
        "mb_per_s": content / passed_s / 1e6,
        "blobs_per_s": len(index.rows) / passed_s,
        "cpu_us_per_blob": (time.process_time() - cpu_s) / len(index.rows) * 1e6,
        "memory_mb": peak_kb() / 1e3,
    }


def peak_kb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return float(line.split()[1])
    raise ValueError("no VmHWM here")


def report(found: dict[str, dict[str, list[dict[str, float]]]], total: int, *, quick: bool) -> None:
    medians = {
        size: {
            measure: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            for measure, runs in by_measure.items()
        }
        for size, by_measure in found.items()
    }
    for size, by_measure in medians.items():
        print(f"{size}")
        limit = by_measure["sha256"]["mb_per_s"]
        for measure, figures in by_measure.items():
            rate, blobs = figures["mb_per_s"], figures["blobs_per_s"]
            print(
                f"  {measure:<11}{rate:8,.0f} MB/s  {rate / limit:5.2f} of sha256{blobs:12,.0f} blobs/s",
                end="",
            )
            print(f"{figures['cpu_us_per_blob']:10,.1f} µs of CPU a blob{figures['memory_mb']:8,.0f} MB")
    small = medians["4 KiB"]
    ratio = round(small["two_read"]["mb_per_s"] / small["two_hash"]["mb_per_s"], 2)
    figures = {
        f"{measure}_{size.replace(' ', '')}_{name}": round(value, 1)
        for size, by_measure in medians.items()
        for measure, told in by_measure.items()
        for name, value in told.items()
    }
    print(json.dumps({"question": "scrub", "ratio": ratio, "aim": AIM, "figures": figures}))
    if not quick:
        path = HERE / "results" / f"{time.strftime('%Y-%m-%d')}.json"
        machine = {"cpus": os.cpu_count(), "python": platform.python_version()}
        path.write_text(json.dumps({"bytes": total, "machine": machine, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
