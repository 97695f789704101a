"""What do many small files cost in a bucket, and in a folder? Our packs, beside an object for each file.

    measure.py [--quick] [--files N] [--repeat R]

Files of 4 KiB that do not compress, into a Ceph RGW on this machine and into a folder, and back. Each measure
is a process of its own; the order changes from round to round; figures are medians. Rates are files a second.
What takes an object a file is measured on fewer of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import open_bucket  # noqa: E402 - it lies beside the benches
from peers import python_with  # noqa: E402

AIM = 50.0
SIZE = 4096
THREADS = 16
PEER = "disk-objectstore==1.5.0"
#: Measures by what they are asked with; "one" by one of few, for an object a file is slow.
OURS = ("grange_s3", "grange_folder")
SINGLES = ("boto3_16", "aiida_s3_method")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="20,000 files, one round, within 45 s")
    options.add_argument("--files", type=int)
    options.add_argument("--repeat", type=int)
    options.add_argument("--one", choices=[*OURS, *SINGLES], help="one measure, in this process")
    options.add_argument("--place", type=Path, help="the folder for --one")
    chosen = options.parse_args()
    files = chosen.files or (20_000 if chosen.quick else 100_000)
    if chosen.one:
        print(json.dumps(one(chosen.one, files, chosen.place)))
        return
    load = os.getloadavg()[0]
    report(rounds(files, chosen.repeat or (1 if chosen.quick else 3), chosen.quick), files, load)


# ---------------------------------------------------------------- one measure


def contents(files: int) -> list[bytes]:
    noise = random.Random(files).randbytes(SIZE)
    return [number.to_bytes(8, "little") + noise[8:] for number in range(files)]


def one(measure: str, files: int, place: Path) -> dict[str, float]:
    given = contents(files)
    before_mb = peak_mb()
    told = (ours if measure in OURS else singles)(measure, given, place)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {**told, "cpu_s": own.ru_utime + own.ru_stime, "memory_added_mb": peak_mb() - before_mb}


def ours(measure: str, given: list[bytes], home: Path) -> dict[str, float]:
    """Put, with the rows of the index in PostgreSQL; read all by key, each verified."""
    from grange.core.profile import open_profile

    with open_profile(home) as profile:
        repository = profile.repository
        began = time.perf_counter()
        with profile.transaction() as cursor:
            index = profile.index(cursor)
            keys, rows = repository.put(given, index)
            index.add(rows)
        written = time.perf_counter()
        assert len(rows) == len(given)
        count = sum(len(content) == SIZE for content in profile.read_each(keys))
        read = time.perf_counter()
        assert count == len(given)
        few = random.Random(1).sample(keys, 100)
        assert all(len(content) == SIZE for content in profile.read_files(few))
        some = time.perf_counter()
    return {
        "write_per_s": len(given) / (written - began),
        "read_per_s": len(given) / (read - written),
        "read_100_anywhere_ms": 1e3 * (some - read),
    }


def singles(measure: str, given: list[bytes], place: Path) -> dict[str, float]:
    """An object a file by boto3: by 16 threads under its key; or one after the other under a random name."""
    import uuid

    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    where = json.loads((place / "bucket.json").read_text())
    client = boto3.Session().client(
        "s3",
        endpoint_url=where["endpoint"],
        region_name="us-east-1",
        config=Config(
            max_pool_connections=THREADS,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )
    names = [uuid.uuid4().hex for _ in given]

    def put(pair: tuple[str, bytes]) -> None:
        client.put_object(Bucket=where["bucket"], Key=pair[0], Body=pair[1])

    def get(name: str) -> int:
        return len(client.get_object(Bucket=where["bucket"], Key=name)["Body"].read())

    def each(call: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        if measure == "aiida_s3_method":
            return list(map(call, items))
        with ThreadPoolExecutor(THREADS) as threads:
            return list(threads.map(call, items))

    put((f"{names[0]}-first", b"warm"))
    began = time.perf_counter()
    each(put, list(zip(names, given, strict=True)))
    written = time.perf_counter()
    assert set(each(get, names)) == {SIZE}
    read = time.perf_counter()
    return {"write_per_s": len(given) / (written - began), "read_per_s": len(given) / (read - written)}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- all of them


def rounds(files: int, repeat: int, quick: bool) -> dict[str, list[dict[str, float]]]:
    """Every measure, several times, in changing order."""
    names = [*OURS, *SINGLES, "disk_objectstore"]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with open_bucket() as bucket, contextlib.ExitStack() as stack:
        homes = {}
        for name in OURS:
            homes[name] = Path(tempfile.mkdtemp(prefix="grange-bench-"))
            stack.callback(close_home, homes[name])
            if name == "grange_s3":
                (homes[name] / "profile.toml").write_text(bucket.profile_text())
        for number in range(repeat):
            for name in names if number % 2 == 0 else names[::-1]:
                place = Path(tempfile.mkdtemp(prefix="grange-bench-"))
                (place / "bucket.json").write_text(json.dumps(bucket.settings.to_table()))
                few = {"boto3_16": 4000, "aiida_s3_method": 1500}.get(name, files)
                count = min(files, few // 3 if quick and few < files else few)
                argv = [sys.executable, __file__, "--one", name, "--files", str(count + number)]
                argv += ["--place", str(homes.get(name, place))]
                if name == "disk_objectstore":
                    argv = [
                        python_with(PEER),
                        str(HERE / "disk_objectstore_packs.py"),
                        str(place),
                        str(count),
                    ]
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=bucket.environment)
                results[name].append(json.loads(done.stdout))
                shutil.rmtree(place)
    return results


def close_home(home: Path) -> None:
    stop = [sys.executable, "-m", "grange", "database", "stop"]
    subprocess.run(stop, env={**os.environ, "GRANGE_HOME": str(home)}, check=False, capture_output=True)
    shutil.rmtree(home, ignore_errors=True)


def report(results: dict[str, list[dict[str, float]]], files: int, load: float) -> None:
    middle: dict[str, dict[str, float]] = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in results.items()
    }
    print(f"{files:,} files of 4 KiB, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load before: {load:.1f}\n")
    print(f"{'':<20}{'written/s':>12}{'read/s':>12}{'CPU s':>8}{'memory +MB':>12}")
    for name, told in middle.items():
        print(
            f"{name:<20}{told['write_per_s']:>12,.0f}{told['read_per_s']:>12,.0f}{told['cpu_s']:>8.1f}"
            f"{told['memory_added_mb']:>12.0f}"
        )
    ours, folder = middle["grange_s3"], middle["grange_folder"]
    ratios = {
        f"{what}_over_{name}": round(mine[f"{what}_per_s"] / middle[name][f"{what}_per_s"], 2)
        for what in ("write", "read")
        for mine, name in ((ours, "boto3_16"), (ours, "aiida_s3_method"), (folder, "disk_objectstore"))
    }
    print()
    for name, ratio in ratios.items():
        print(f"{name:<32}{ratio:>8.1f}")
    figures = {
        **ratios,
        **{f"{name}_{key}": round(value, 1) for name, told in middle.items() for key, value in told.items()},
    }
    print(
        json.dumps(
            {
                "question": "small_files",
                "ratio": ratios["write_over_boto3_16"],
                "aim": AIM,
                "figures": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
