"""How fast does a large file go up and come down? Our repository beside raw clients of S3.

    measure.py [--quick] [--size MIB] [--repeat R]

A file of noise, in the page cache, into a Ceph RGW on this machine, and back to where it is thrown away.
"store" is our client of S3, under a name that is given. "repository" is what is used: it makes the key first,
sees that the file has not changed while it was sent, and verifies what comes down, each by SHA-256.
"obstore, spans" asks for four ranges of 8 MiB at once.
Each measure is a process of its own; the order changes from round to round. Other programs only ever make one
slower: compared are the fastest rounds of each; the medians stand beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import open_bucket  # noqa: E402 - it lies beside the benches

#: Of the fastest raw client, both ways.
AIM = 0.9
SPAN = 8 << 20
OURS = ("store", "repository")
UP = (*OURS, "obstore", "boto3", "minio")
DOWN = (*OURS, "obstore", "obstore, spans", "boto3", "minio")
CACHED = ("cache, empty", "cache, full")
OBJECT, STORED = "blobs/raw", "blobs/stored"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="96 MiB, one round, within 45 s")
    options.add_argument("--size", type=int, metavar="MIB")
    options.add_argument("--repeat", type=int)
    options.add_argument("--one", help="one measure, in this process")
    options.add_argument("--place", type=Path, help="the folder for --one")
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.place)))
        return
    load = os.getloadavg()[0]
    size = (chosen.size or (96 if chosen.quick else 1024)) << 20
    # Not in /tmp, which may be memory.
    place = Path(tempfile.mkdtemp(prefix="grange-bench-", dir="/var/tmp"))
    names = [f"up {name}" for name in UP] + [f"down {name}" for name in DOWN]
    found: dict[str, list[dict[str, float]]] = {}

    def run(name: str) -> None:
        argv = [sys.executable, __file__, "--one", name, "--place", str(place)]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=bucket.environment)
        found.setdefault(name, []).append(dict(json.loads(done.stdout)))

    try:
        fill(place / "file", size)
        with open_bucket() as bucket:
            (place / "settings").write_bytes(pickle.dumps(bucket.settings))
            for number in range(chosen.repeat or (1 if chosen.quick else 3)):
                ups, downs = names[: len(UP)], names[len(UP) :]
                for name in [*ups, *downs] if number % 2 == 0 else [*ups[::-1], *downs[::-1]]:
                    run(name)
                for name in CACHED:
                    run(f"down {name}")
                shutil.rmtree(place / "cache")
    finally:
        shutil.rmtree(place)
    told = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        | {"best_mb_per_s": max(run["mb_per_s"] for run in runs)}
        for name, runs in found.items()
    }
    report(told, size, load, keep=not chosen.quick)


def fill(path: Path, size: int) -> None:
    noise = random.Random(size)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(noise.randbytes(1 << 20))


# ---------------------------------------------------------------- one measure


def one(measure: str, place: Path) -> dict[str, float]:
    way, name = measure.split(" ", 1)
    settings = pickle.loads((place / "settings").read_bytes())
    path = place / "file"
    size = path.stat().st_size
    ours = name in OURS or name in CACHED
    before_mb = peak_mb()
    work = (of_grange if ours else of_others)(way, name, place, settings)
    cpu_s, began = cpu(), time.perf_counter()
    done = work()
    spent_s, cpu_s = time.perf_counter() - began, cpu() - cpu_s
    assert done == size, (measure, done)
    return {
        "mb_per_s": size / spent_s / 1e6,
        "cpu_s": cpu_s,
        "peak_mb": peak_mb(),
        "added_mb": peak_mb() - before_mb,
    }


def of_grange(way: str, name: str, place: Path, settings: Any) -> Callable[[], int]:
    from grange.repository import MemoryIndex, Repository, Store
    from grange.repository.cached_store import CachedStore
    from grange.repository.retries import Retries
    from grange.repository.retrying_store import RetryingStore
    from grange.repository.s3_store import S3Store

    retries = Retries()
    store: Store = RetryingStore(S3Store(settings, retries), retries)
    if name in CACHED:
        store = CachedStore(store, place / "cache", 10**10)
    repository, index = Repository(store), MemoryIndex()
    store.head("warm/connection")
    if name == "store":
        if way == "up":
            store.delete([STORED])
            return lambda: (store.put_if_absent(STORED, place / "file"), (place / "file").stat().st_size)[1]
        return lambda: sum(map(len, store.read(STORED)))

    def up() -> int:
        [key], rows = repository.put([place / "file"], index)
        (place / "rows").write_bytes(pickle.dumps((key, rows)))
        return rows[key].size

    def down() -> int:
        return sum(map(len, repository.stream(key, index)))

    if way == "up":
        if (place / "rows").exists():  # of an earlier round
            _, rows = pickle.loads((place / "rows").read_bytes())
            store.delete({row.object_name for row in rows.values()})
        return up
    key, rows = pickle.loads((place / "rows").read_bytes())
    index.add(rows)
    return down


def of_others(way: str, name: str, place: Path, settings: Any) -> Callable[[], int]:
    path = place / "file"
    size = path.stat().st_size
    bucket = settings.bucket
    if name.startswith("obstore"):
        import obstore

        store = obstore_store(settings)

        def up() -> int:
            obstore.put(store, OBJECT, path)
            return size

        def down() -> int:
            return sum(map(len, obstore.get(store, OBJECT).stream(min_chunk_size=1 << 20)))

        def spans() -> int:
            def get(start: int) -> int:
                return len(obstore.get_range(store, OBJECT, start=start, length=min(SPAN, size - start)))

            return in_threads(get, size)

    elif name.startswith("boto3"):
        client = boto3_client(settings)

        def up() -> int:
            client.upload_file(str(path), bucket, OBJECT)
            return size

        def down() -> int:
            body = client.get_object(Bucket=bucket, Key=OBJECT)["Body"]
            return sum(map(len, body.iter_chunks(1 << 20)))

        spans = down

    else:
        import boto3
        import minio

        keys = boto3.Session().get_credentials()
        host = settings.endpoint.split("://", 1)[1]
        minio_client = minio.Minio(
            host, access_key=keys.access_key, secret_key=keys.secret_key, secure=False, region=settings.region
        )

        def up() -> int:
            minio_client.fput_object(bucket, OBJECT, str(path))
            return size

        def down() -> int:
            answer = minio_client.get_object(bucket, OBJECT)
            return sum(map(len, answer.stream(1 << 20)))

        spans = down
    if way == "up":
        return up
    return spans if name.endswith("spans") else down


def in_threads(get: Callable[[int], int], size: int) -> int:
    """Four at once, as we do it."""

    def spans() -> Iterator[int]:
        return iter(range(0, size, SPAN))

    with ThreadPoolExecutor(4) as threads:
        return sum(threads.map(get, spans()))


def boto3_client(settings: Any) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
    )
    return boto3.Session().client(
        "s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config
    )


def obstore_store(settings: Any) -> Any:
    import boto3
    from obstore.store import S3Store

    keys = boto3.Session().get_credentials()
    return S3Store(
        settings.bucket,
        endpoint=settings.endpoint,
        region=settings.region,
        access_key_id=keys.access_key,
        secret_access_key=keys.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "300s"},
    )


def cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- what they say


def report(found: dict[str, dict[str, float]], size: int, load: float, *, keep: bool) -> None:
    began = time.perf_counter()
    hashlib.sha256(bytes(100 << 20)).digest()
    hashing = (100 << 20) / (time.perf_counter() - began) / 1e6
    print(f"{size >> 20:,} MiB, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load before: {load:.1f}; SHA-256 by one core: {hashing:,.0f} MB/s\n")
    print(f"{'':<24}{'best MB/s':>10}{'median':>8}{'CPU s':>8}{'peak MB':>10}")
    for name, told in found.items():
        print(
            f"{name:<24}{told['best_mb_per_s']:>10,.0f}{told['mb_per_s']:>8,.0f}{told['cpu_s']:>8.2f}"
            f"{told['peak_mb']:>10.0f}"
        )
    ratios, fastest = {}, {}
    for way, names in (("up", UP), ("down", DOWN)):
        raw = {name: found[f"{way} {name}"]["best_mb_per_s"] for name in names if name not in OURS}
        fastest[way] = max(raw, key=lambda name: raw[name])
        for name in OURS:
            ratios[f"{name}_{way}"] = round(found[f"{way} {name}"]["best_mb_per_s"] / max(raw.values()), 3)
    print()
    for name, ratio in ratios.items():
        print(f"{name} over the fastest raw client: {ratio:.2f}")
    answer = {
        "question": "large_files",
        "ratio": min(ratios["store_up"], ratios["store_down"]),
        "aim": AIM,
        "figures": {
            "mib": size >> 20,
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "sha256_mb_per_s": round(hashing),
            **ratios,
            "fastest_raw": fastest,
            "measures": {name: {key: round(v, 2) for key, v in told.items()} for name, told in found.items()},
        },
    }
    if keep:
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
