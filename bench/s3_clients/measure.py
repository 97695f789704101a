"""Which client of S3 should carry our bytes: boto3, minio or obstore?

    measure.py [--quick] [--repeat R]

Objects of 4 KiB and of 32 MiB (a pack) are put into a Ceph RGW on this machine and got back, by one thread
and by 16, over HTTP, each with its SHA-256 in the signature, as our store sends them. Each measure is a
process of its own; the order changes from round to round; figures are medians. CPU is that of the client's
process, and beside it what the server's three daemons used meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import open_bucket  # noqa: E402 - it lies beside the benches

#: The chosen one is to be as fast as the faster of the others, in the mean of what many threads do at once.
CHOSEN, AIM = "obstore", 1.0
CLIENTS = ("boto3", "minio", "obstore")
SMALL, LARGE = 4 << 10, 32 << 20
THREADS = (1, 16)
#: How many objects of a size by so many threads; an eighth of them for --quick.
COUNTS = {(SMALL, 1): 1200, (SMALL, 16): 6400, (LARGE, 1): 16, (LARGE, 16): 32}
WAYS = ("put", "get")
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--quick", action="store_true", help="an eighth of the objects, one round, within 45 s"
    )
    options.add_argument("--repeat", type=int)
    options.add_argument("--one", nargs=4, help="client, size, threads, count: one measure, in this process")
    options.add_argument("--place", type=Path, help="the file of settings for --one")
    chosen = options.parse_args()
    if chosen.one:
        client, size, threads, count = chosen.one[0], *map(int, chosen.one[1:])
        print(json.dumps(one(client, size, threads, count, chosen.place)))
        return
    load = os.getloadavg()[0]
    report(rounds(chosen.repeat or (1 if chosen.quick else 3), 8 if chosen.quick else 1), load)


def rounds(repeat: int, part: int) -> dict[str, list[dict[str, float]]]:
    """Every measure, several times, in changing order."""
    found: dict[str, list[dict[str, float]]] = {}
    cases = [(*case, client) for case in COUNTS for client in CLIENTS]
    with open_bucket() as bucket, tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "settings")
        place.write_bytes(pickle.dumps((bucket.settings, list(bucket.server.status()["parts"].values()))))
        for number in range(repeat):
            for size, threads, client in cases if number % 2 == 0 else cases[::-1]:
                count = max(threads, COUNTS[size, threads] // part)
                argv = [sys.executable, __file__, "--one", client, str(size), str(threads), str(count)]
                argv += ["--place", str(place)]
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=bucket.environment)
                found.setdefault(name_of(client, size, threads), []).append(json.loads(done.stdout))
    return found


def name_of(client: str, size: int, threads: int) -> str:
    return f"{client}_{'4k' if size == SMALL else '32m'}_{threads}"


# ---------------------------------------------------------------- one measure


def one(client: str, size: int, threads: int, count: int, place: Path) -> dict[str, float]:
    """Put and get so many objects; each name is new."""
    settings, daemons = pickle.loads(place.read_bytes())
    noise = random.Random(size).randbytes(size)
    prefix = os.urandom(8).hex()
    names = [f"{prefix}/{number:06}" for number in range(count)]
    put, get = {"boto3": of_boto3, "minio": of_minio, "obstore": of_obstore}[client](settings)

    def puts(name: str) -> int:
        put(name, noise)
        return size

    told: dict[str, float] = {}
    with ThreadPoolExecutor(threads) as team:
        list(team.map(lambda name: (put(f"{name}-warm", b"x"), get(f"{name}-warm")), names[:threads]))
        for way, call in zip(WAYS, (puts, get), strict=True):
            theirs, mine, began = cpu_of(daemons), cpu(), time.perf_counter()
            done = sum(each(call, names, team) if threads > 1 else map(call, names))
            spent_s = time.perf_counter() - began
            assert done == size * count, (client, way, done)
            told |= {
                f"{way}_per_s": count / spent_s,
                f"{way}_mb_per_s": done / spent_s / 1e6,
                f"{way}_cpu_ms": 1e3 * (cpu() - mine) / count,
                f"{way}_server_cpu_ms": 1e3 * (cpu_of(daemons) - theirs) / count,
            }
    return {**told, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def each(call: Callable[[str], int], names: list[str], team: ThreadPoolExecutor) -> Iterable[int]:
    return team.map(call, names)


Put, Get = Callable[[str, bytes], object], Callable[[str], int]


def of_boto3(settings: Any) -> tuple[Put, Get]:
    import boto3
    from botocore.config import Config

    config = Config(
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path", "payload_signing_enabled": True},
    )
    client = boto3.Session().client(
        "s3", endpoint_url=settings.endpoint, region_name=settings.region, config=config
    )

    def put(name: str, content: bytes) -> object:
        return client.put_object(Bucket=settings.bucket, Key=name, Body=content)

    def get(name: str) -> int:
        return len(client.get_object(Bucket=settings.bucket, Key=name)["Body"].read())

    return put, get


def of_minio(settings: Any) -> tuple[Put, Get]:
    import boto3
    import minio
    import urllib3

    keys = boto3.Session().get_credentials()
    client = minio.Minio(
        settings.endpoint.partition("://")[2],
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        secure=False,
        region=settings.region,
        http_client=urllib3.PoolManager(maxsize=16),
    )

    def put(name: str, content: bytes) -> object:
        # One request, as the others: else in parts from 5 MiB on.
        return client.put_object(
            settings.bucket, name, io.BytesIO(content), len(content), part_size=max(len(content), 5 << 20)
        )

    def get(name: str) -> int:
        answer = client.get_object(settings.bucket, name)
        try:
            return len(answer.read())
        finally:
            answer.release_conn()

    return put, get


def of_obstore(settings: Any) -> tuple[Put, Get]:
    import boto3
    import obstore
    from obstore.store import S3Store

    keys = boto3.Session().get_credentials()
    store = S3Store(
        settings.bucket,
        endpoint=settings.endpoint,
        region=settings.region,
        access_key_id=keys.access_key,
        secret_access_key=keys.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "300s"},
    )

    def put(name: str, content: bytes) -> object:
        return obstore.put(store, name, content, use_multipart=False)

    def get(name: str) -> int:
        return len(obstore.get(store, name).bytes())

    return put, get


def cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def cpu_of(pids: list[int]) -> float:
    """What processes have used, in seconds."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / _TICKS


# ---------------------------------------------------------------- what they say


def report(found: dict[str, list[dict[str, float]]], load: float) -> None:
    middle = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, load before: {load:.1f}")
    ratios: dict[str, float] = {}
    for size, threads in COUNTS:
        kind, unit = ("4 KiB", "per_s") if size == SMALL else ("32 MiB", "mb_per_s")
        shown = "objects/s" if size == SMALL else "MB/s"
        print(f"\n{kind}, {threads} thread{'s' if threads > 1 else ''}")
        print(f"{shown:>26}{'client ms':>20}{'server ms':>20}{'peak MB':>10}")
        print(f"{'':<10}{'put':>8}{'get':>8}{'put':>12}{'get':>8}{'put':>12}{'get':>8}")
        for client in CLIENTS:
            told = middle[name_of(client, size, threads)]
            speeds = "".join(f"{told[f'{way}_{unit}']:>8,.0f}" for way in WAYS)
            own, theirs = (
                f"{told[f'put_{whose}cpu_ms']:>12.2f}{told[f'get_{whose}cpu_ms']:>8.2f}"
                for whose in ("", "server_")
            )
            print(f"{client:<10}{speeds}{own}{theirs}{told['peak_mb']:>10.0f}")
        for way in WAYS:
            speed = {client: middle[name_of(client, size, threads)][f"{way}_per_s"] for client in CLIENTS}
            other = max(rate for client, rate in speed.items() if client != CHOSEN)
            ratios[f"{way}_{'4k' if size == SMALL else '32m'}_{threads}"] = round(speed[CHOSEN] / other, 2)
    print(f"\n{CHOSEN} over the faster of the others: {ratios}")
    answer = {
        "question": "s3_clients",
        "ratio": round(statistics.geometric_mean(r for name, r in ratios.items() if name.endswith("_16")), 2),
        "aim": AIM,
        "figures": {
            "load_before": round(load, 2),
            **{f"ratio_{name}": ratio for name, ratio in ratios.items()},
            **{name: {key: round(value, 3) for key, value in told.items()} for name, told in middle.items()},
        },
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
