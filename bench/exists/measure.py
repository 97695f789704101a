"""Is it there? A hundred thousand keys: our index, beside listing the bucket and asking for each object.

    measure.py [--quick] [--keys N] [--repeat R]

Half of the keys that are asked for are there. The index is PostgreSQL's, with as many rows as keys are asked
for; the bucket (Ceph RGW on this machine) holds an object for each key, as AiiDA's plugin for S3 keeps them,
and is asked as that does: by listing all of it. Fewer objects than keys, for what they take is so much each.
Each measure is a process of its own; the order changes from round to round; figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import open_bucket  # noqa: E402 - it lies beside the benches

#: The index over the fastest of the others.
AIM = 5.0
THREADS = 16
FEW = 100
OTHERS = ("list, boto3", "list, obstore", "head, boto3", "head, obstore")
MEASURES = ("index", *OTHERS)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer objects, within 45 s")
    options.add_argument("--keys", type=int, default=100_000)
    options.add_argument("--repeat", type=int)
    options.add_argument("--one", help="one measure, in this process")
    options.add_argument("--place", type=Path, help="the folder for --one")
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.keys, chosen.place)))
        return
    load = os.getloadavg()[0]
    objects = min(chosen.keys, 2_000 if chosen.quick else 10_000)
    place = Path(tempfile.mkdtemp(prefix="grange-bench-"))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURES}
    try:
        with open_bucket() as bucket:
            (place / "bucket.json").write_text(json.dumps(bucket.settings.to_table()))
            (place / "home").mkdir()
            (place / "home" / "profile.toml").write_text(bucket.profile_text())

            def run(name: str) -> dict[str, float]:
                count = chosen.keys if name in ("index", "fill index") else objects
                argv = [sys.executable, __file__, "--one", name, "--keys", str(count), "--place", str(place)]
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, env=bucket.environment)
                return dict(json.loads(done.stdout))

            run("fill index")
            run("fill bucket")
            for number in range(chosen.repeat or (1 if chosen.quick else 5)):
                for name in MEASURES if number % 2 == 0 else MEASURES[::-1]:
                    found[name].append(run(name))
    finally:
        stop = [sys.executable, "-m", "grange", "--home", str(place / "home"), "database", "stop"]
        subprocess.run(stop, check=False, capture_output=True)
        shutil.rmtree(place)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    report(medians, chosen.keys, objects, load, keep=not chosen.quick)


# ---------------------------------------------------------------- one measure


def keys_of(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def one(measure: str, count: int, place: Path) -> dict[str, float]:
    there, absent = keys_of(count), keys_of(2 * count)[count:]
    asked = [*there[: count // 2], *absent[: count - count // 2]]
    if measure.endswith("index"):
        return of_index(measure, place, there, asked)
    where = json.loads((place / "bucket.json").read_text())
    client = boto3_client(where) if measure.endswith("boto3") else obstore_store(where)
    began = 0.0
    if measure == "fill bucket":
        import obstore

        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda key: obstore.put(client, key, b"x" * 100, use_multipart=False), there))
    elif measure.startswith("list"):
        began = time.perf_counter()
        known = listed_by_boto3(client, where["bucket"]) if "boto3" in measure else listed_by_obstore(client)
        assert sum(key in known for key in asked) == count // 2
    else:
        exists = head_by_boto3 if "boto3" in measure else head_by_obstore
        asked = asked[:: max(1, count // 1000)]
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda key: exists(client, where["bucket"], key), asked[:THREADS]))
            began = time.perf_counter()
            answers = list(threads.map(lambda key: exists(client, where["bucket"], key), asked))
        assert abs(sum(answers) - len(asked) // 2) <= 1
    spent_s = time.perf_counter() - began
    return {"per_s": len(asked if measure.startswith("head") else there) / spent_s, **cost(spent_s, asked)}


def of_index(measure: str, place: Path, there: list[str], asked: list[str]) -> dict[str, float]:
    """As somebody asks who is about to store so many contents: in the lots in which a repository asks."""
    from grange.core.profile import open_profile
    from grange.repository import BlobLocation, Key

    with open_profile(place / "home") as profile, profile.transaction() as cursor:
        index = profile.index(cursor)
        if measure == "fill index":
            packs = [f"packs/{digits[:2]}/{digits}.zip" for digits in (key[:32] for key in there[:100])]
            rows = {
                Key(key): BlobLocation(packs[number % len(packs)], number * 4096, 4000, "stored", 4000)
                for number, key in enumerate(there)
            }
            index.add(rows)
            cursor.execute("ANALYZE blob")
            return {"rows": len(rows)}
        began = time.perf_counter()
        found = index.find([Key(key) for key in asked])
        spent_s = time.perf_counter() - began
        assert len(found) == len(there) // 2
        few = [Key(key) for key in asked[:: len(asked) // FEW]]
        index.find(few)
        began = time.perf_counter()
        index.find(few)
        few_s = time.perf_counter() - began
    return {"per_s": len(asked) / spent_s, "few_ms": 1e3 * few_s, **cost(spent_s, asked)}


def cost(spent_s: float, asked: list[str]) -> dict[str, float]:
    return {"spent_s": spent_s, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def boto3_client(where: dict[str, Any]) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(max_pool_connections=THREADS, s3={"addressing_style": "path"})
    return boto3.Session().client(
        "s3", endpoint_url=where["endpoint"], region_name=where["region"], config=config
    )


def obstore_store(where: dict[str, Any]) -> Any:
    import boto3
    from obstore.store import S3Store

    keys = boto3.Session().get_credentials()
    return S3Store(
        where["bucket"],
        endpoint=where["endpoint"],
        region=where["region"],
        access_key_id=keys.access_key,
        secret_access_key=keys.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def listed_by_boto3(client: Any, bucket: str) -> set[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {found["Key"] for page in pages for found in page.get("Contents", [])}


def listed_by_obstore(client: Any) -> set[str]:
    import obstore

    return {found["path"] for chunk in obstore.list(client, chunk_size=1000) for found in chunk}


def head_by_boto3(client: Any, bucket: str, key: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise
        return False
    return True


def head_by_obstore(client: Any, _bucket: str, key: str) -> bool:
    import obstore

    try:
        obstore.head(client, key)
    except FileNotFoundError:
        return False
    return True


# ---------------------------------------------------------------- what they say


def report(found: dict[str, dict[str, float]], keys: int, objects: int, load: float, *, keep: bool) -> None:
    print(f"{keys:,} keys, {objects:,} objects, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load before: {load:.1f}\n")
    print(f"{'':<16}{'keys/s':>12}{'for ' + format(keys, ','):>14}{'for 100':>12}{'peak MB':>10}")
    for name, told in found.items():
        all_s = keys / told["per_s"]
        few_s = told["few_ms"] / 1e3 if name == "index" else all_s
        if name.startswith("head"):
            few_s = FEW / told["per_s"]
        print(
            f"{name:<16}{told['per_s']:>12,.0f}{all_s:>12.2f} s{1e3 * few_s:>9,.0f} ms"
            f"{told['peak_mb']:>10.0f}"
        )
    best = max(OTHERS, key=lambda name: found[name]["per_s"])
    answer = {
        "question": "exists",
        "ratio": round(found["index"]["per_s"] / found[best]["per_s"], 2),
        "aim": AIM,
        "figures": {
            "keys": keys,
            "objects": objects,
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "fastest_other": best,
            "over": {name: round(found["index"]["per_s"] / found[name]["per_s"], 2) for name in OTHERS},
            "measures": {name: {key: round(v, 3) for key, v in told.items()} for name, told in found.items()},
        },
    }
    if keep:
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
