"""What does the local cache save, and what does it cost? Small files from a bucket, read again and again.

    measure.py [--quick] [--files N] [--repeat R]

Files of 4 KiB that do not compress lie in packs in a Ceph RGW on this machine, and in a folder. They are read
from the bucket, from the bucket with an empty cache before it, from the bucket with a full one, and from the
folder; all of them, 100 of them anywhere by one call, and 100 of them one by one. Each content is verified.
Each measure is a process of its own; the order changes from round to round; figures are medians.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bucket import open_bucket  # noqa: E402 - it lies beside the benches

from grange.repository import LocalStore, MemoryIndex, Repository, Store  # noqa: E402
from grange.repository import cached_store as cached  # noqa: E402
from grange.repository.block_cache import BlockCache  # noqa: E402
from grange.repository.cache_page import PAGE_BYTES  # noqa: E402
from grange.repository.cached_store import CachedStore  # noqa: E402
from grange.repository.retrying_store import RetryingStore  # noqa: E402
from grange.repository.s3_store import S3Store  # noqa: E402

#: What a full cache reaches of a local folder.
AIM = 0.5
SIZE = 4096
LIMIT = 10 * 10**9
MEASURES = ("bucket", "cache, empty", "cache, full", "folder")
BLOCKS_KIB = (16, 64, 128, 256, 1024)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="20,000 files, two rounds, within 45 s")
    options.add_argument("--files", type=int)
    options.add_argument("--repeat", type=int)
    options.add_argument("--one", help="one measure, in this process")
    options.add_argument("--place", type=Path, help="the folder for --one")
    chosen = options.parse_args()
    if chosen.one:
        print(json.dumps(one(chosen.one, chosen.place)))
        return
    files = chosen.files or (20_000 if chosen.quick else 100_000)
    place = Path(tempfile.mkdtemp(prefix="grange-bench-"))
    load = os.getloadavg()[0]
    try:
        with open_bucket() as bucket:
            (place / "settings.pickle").write_bytes(pickle.dumps((bucket.settings, files)))
            run("fill", place)  # elsewhere: what it has in memory would count to the peaks of all others
            found = rounds(place, chosen.repeat or (2 if chosen.quick else 5))
            blocks = {size: run(f"block {size}", place) for size in BLOCKS_KIB}
        crowd = eviction(place, 10_000 if chosen.quick else 100_000)
    finally:
        shutil.rmtree(place)
    report(found, blocks, crowd, files, load, keep=not chosen.quick)


def fill(place: Path) -> dict[str, float]:
    """The same packs in the bucket and in a folder; what is needed to read them goes into the place."""
    settings, files = pickle.loads((place / "settings.pickle").read_bytes())
    noise = random.Random(files).randbytes(SIZE)
    contents = [number.to_bytes(8, "little") + noise[8:] for number in range(files)]
    index = MemoryIndex()
    local = LocalStore(place / "store")
    keys, rows = Repository(local).put(contents, index)
    server = S3Store(settings)
    for info in local.list():
        server.put_if_absent(info.name, place / "store" / info.name)
    (place / "asked.pickle").write_bytes(pickle.dumps((settings, keys, rows)))
    return {"files": len(rows)}


# ---------------------------------------------------------------- one measure


def one(measure: str, place: Path) -> dict[str, float]:
    if measure == "fill":
        return fill(place)
    settings, keys, rows = pickle.loads((place / "asked.pickle").read_bytes())
    index = MemoryIndex()
    index.add(rows)
    server = RetryingStore(S3Store(settings))
    server.head("warm/connection")
    chance = random.Random(measure)
    if measure.startswith("block "):
        return of_block(int(measure.split()[1]), place, server, keys, index)
    folders = [place / measure.replace(" ", "-") / str(number) for number in range(3)]

    def store(folder: Path) -> Store:
        if measure == "folder":
            return LocalStore(place / "store")
        return server if measure == "bucket" else CachedStore(server, folder, LIMIT)

    if measure == "cache, full":
        folders = folders[:1] * 3
        for _ in Repository(store(folders[0])).read_each(keys, index):
            pass
    some = chance.sample(keys, 200)
    cpu_s = time.process_time()
    repository = Repository(store(folders[0]))
    began = time.perf_counter()
    assert sum(len(content) for content in repository.read_each(keys, index)) == SIZE * len(keys)
    all_s = time.perf_counter() - began
    cpu_s = time.process_time() - cpu_s
    repository = Repository(store(folders[1]))
    began = time.perf_counter()
    repository.read(some[:100], index)
    some_s = time.perf_counter() - began
    repository = Repository(store(folders[2]))
    singles = [timed(lambda key=key: repository.read([key], index)) for key in some[100:]]  # type: ignore[misc]
    if measure == "cache, full":
        assert isinstance(repository.store, CachedStore)
        info = repository.store.info()
        assert info.misses <= len({row.object_name for row in rows.values()}) * 8, "the server was asked"
    return {
        "read_per_s": len(keys) / all_s,
        "read_100_ms": 1e3 * some_s,
        "read_one_ms": 1e3 * statistics.median(singles),
        "cpu_us_each": 1e6 * cpu_s / len(keys),
        "peak_mb": peak_mb(),
    }


def of_block(
    size_kib: int, place: Path, server: Store, keys: list[str], index: MemoryIndex
) -> dict[str, float]:
    """Small files anywhere, one by one, each the first of its block, with blocks of another size."""
    cached.BLOCK_BYTES = size_kib << 10
    store = CachedStore(server, place / f"block-{size_kib}", LIMIT)
    repository = Repository(store)
    some = random.Random(size_kib).sample(keys, 200)
    spans = [timed(lambda key=key: repository.read([key], index)) for key in some]  # type: ignore[misc]
    info = store.info()
    return {
        "read_one_ms": 1e3 * statistics.median(spans),
        "fetched_kb_each": info.fetched_bytes / len(some) / 1e3,
    }


def eviction(place: Path, files: int) -> dict[str, float]:
    """A cache that has reached its bound in so many files: what goes on then costs."""
    content = random.Random(0).randbytes(PAGE_BYTES)
    size = PAGE_BYTES + 4096
    cache = BlockCache(place / "crowd", files * size)
    began, cpu_s = time.perf_counter(), time.process_time()
    for number in range(files):
        cache.keep(f"packs/{number}", 0, content, PAGE_BYTES)
    kept_s, kept_cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    assert cache.info().files == files
    cpu_s = time.process_time()
    evicting_s = timed(lambda: cache.keep("packs/more", 0, content, PAGE_BYTES))
    evicting_cpu_s = time.process_time() - cpu_s
    left = cache.info().files
    assert files * 0.89 < left < files * 0.91
    return {
        "files": files,
        "keep_us": 1e6 * kept_s / files,
        "keep_cpu_us": 1e6 * kept_cpu_s / files,
        "evict_ms": 1e3 * evicting_s,
        "evict_cpu_ms": 1e3 * evicting_cpu_s,
    }


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- all of them


def run(measure: str, place: Path) -> dict[str, float]:
    argv = [sys.executable, __file__, "--one", measure, "--place", str(place)]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE)
    for folder in place.glob("*[0-9ey]"):  # the caches of this run
        if folder.name.startswith(("cache", "block")):
            shutil.rmtree(folder)
    return dict(json.loads(done.stdout))


def rounds(place: Path, repeat: int) -> dict[str, dict[str, float]]:
    """The medians of each measure."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURES}
    for number in range(repeat):
        for name in MEASURES if number % 2 == 0 else MEASURES[::-1]:
            found[name].append(run(name, place))
    return {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    }


def report(
    found: dict[str, dict[str, float]],
    blocks: dict[int, dict[str, float]],
    crowd: dict[str, float],
    files: int,
    load: float,
    *,
    keep: bool,
) -> None:
    print(f"{files:,} files of 4 KiB, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"load before: {load:.1f}\n")
    heads = ("all, files/s", "100, ms", "one, ms", "CPU µs/file", "peak MB")
    print(f"{'':<16}" + "".join(f"{head:>13}" for head in heads))
    for name, told in found.items():
        print(
            f"{name:<16}{told['read_per_s']:>13,.0f}{told['read_100_ms']:>13.1f}{told['read_one_ms']:>13.2f}"
            f"{told['cpu_us_each']:>13.1f}{told['peak_mb']:>13.0f}"
        )
    print(f"\n{'blocks, KiB':<16}{'one, ms':>10}{'fetched kB':>12}")
    for size, told in blocks.items():
        print(f"{size:<16}{told['read_one_ms']:>10.2f}{told['fetched_kb_each']:>12.0f}")
    print(
        f"\n{crowd['files']:,} cache files: {crowd['keep_us']:.0f} µs ({crowd['keep_cpu_us']:.0f} of CPU) to "
        f"keep one more, then {crowd['evict_ms']:.0f} ms ({crowd['evict_cpu_ms']:.0f} of CPU) to evict 10 %"
    )
    full, folder, bucket = found["cache, full"], found["folder"], found["bucket"]
    answer = {
        "question": "cache",
        "ratio": round(full["read_per_s"] / folder["read_per_s"], 3),
        "aim": AIM,
        "figures": {
            "files": files,
            "cores": os.cpu_count(),
            "load_before": round(load, 2),
            "full_over_bucket": round(full["read_per_s"] / bucket["read_per_s"], 2),
            "empty_over_bucket": round(found["cache, empty"]["read_per_s"] / bucket["read_per_s"], 2),
            "one_full_over_bucket": round(bucket["read_one_ms"] / full["read_one_ms"], 1),
            "measures": {name: {key: round(v, 3) for key, v in told.items()} for name, told in found.items()},
            "blocks_kib": {
                size: {key: round(v, 3) for key, v in told.items()} for size, told in blocks.items()
            },
            "eviction": {key: round(v, 1) for key, v in crowd.items()},
        },
    }
    if keep:
        (HERE / "results" / "latest.json").write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
