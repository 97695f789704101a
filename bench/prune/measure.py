"""How long does pruning take with a million nodes, and how long do writers wait for it?

    measure.py [--quick] [--nodes N]

One embedded PostgreSQL (fsync on) of this run's own; N nodes with two files each, N blobs in packs of 5,000,
a tenth of them dead. Beside the plan, in the same run: the same question answered by reading the columns into
sets of Python. While rows are swept another process stores nodes, and says how long each took.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grange as gr
from grange.core.database import copy_rows, reserve_ids, uuid7s
from grange.core.files import files_of
from grange.core.json_value import decoded
from grange.core.postgres import stop_server
from grange.core.profile import Profile, open_profile
from grange.core.upkeep import upkeep
from grange.repository import MemoryStore
from grange.repository.prune_plan import plan_prune
from grange.repository.pruning import prune
from grange.repository.store import ObjectInfo

#: The same question in Python over the plan.
AIM = 1.0
BLOBS_A_PACK = 5_000
SHARED = 1_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="200,000 nodes, some 15 s")
    options.add_argument("--nodes", type=int)
    options.add_argument("--store", type=Path, help="store nodes in this home until standard input ends")
    chosen = options.parse_args()
    if chosen.store:
        store_nodes(chosen.store)
        return
    home = Path(tempfile.mkdtemp(prefix="grange-bench-"))
    try:
        with open_profile(home) as profile:
            measure(profile, chosen.nodes or (200_000 if chosen.quick else 1_000_000))
        stop_server(home / "postgres", force=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def measure(profile: Profile, count: int) -> None:
    load = os.getloadavg()[0]
    names = fill(profile, count)
    objects = [ObjectInfo(name, BLOBS_A_PACK * 4300, time.time()) for name in names]
    quiet = waits(profile.home, lambda: time.sleep(3))
    with upkeep(profile) as index:
        marked_s, _ = timed(index.mark)
        used_s, uses = timed(index.uses)
        planned_s, plan = timed(lambda: plan_prune(uses, objects, now_s=time.time(), grace_s=86_400))
        assert plan.rows == count // 10, plan.rows
        files_s, _ = timed(index.files)
        memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        swept_s = 0.0

        def sweep() -> None:
            nonlocal swept_s
            swept_s, done = timed(lambda: prune(MemoryStore(), index, plan))
            assert done.rows == count // 10, done

        busy = waits(profile.home, sweep)
    in_python_s, dead = timed(lambda: dead_by_sets(profile))
    assert dead == 0
    python_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    plan_s = marked_s + used_s + planned_s
    print(f"{count:,} nodes with {2 * count:,} files, {count + SHARED:,} blobs in {len(names)} packs")
    print(
        f"plan                {plan_s:6.2f} s, {memory_mib:,.0f} MiB: mark {marked_s:.2f}, uses {used_s:.2f}"
    )
    print(f"in sets of Python   {in_python_s:6.2f} s, {python_mib:,.0f} MiB")
    print(f"sweep               {swept_s:6.2f} s for {plan.rows:,} rows")
    print(f"info                {files_s:6.2f} s")
    for what, taken in (("alone", quiet), ("beside the sweep", busy)):
        print(f"storing a node {what:16}: median {1000 * statistics.median(taken):.1f} ms, "
              f"longest {1000 * max(taken):.0f} ms, {len(taken)} nodes")  # fmt: skip
    figures = {
        "nodes": count,
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "plan_s": round(plan_s, 2),
        "in_python_s": round(in_python_s, 2),
        "sweep_s": round(swept_s, 2),
        "info_s": round(files_s, 2),
        "plan_peak_mib": round(memory_mib),
        "in_python_peak_mib": round(python_mib),
        "store_alone_ms": round(1000 * statistics.median(quiet), 1),
        "store_beside_sweep_ms": round(1000 * statistics.median(busy), 1),
        "store_beside_sweep_longest_ms": round(1000 * max(busy)),
    }
    ratio = round(in_python_s / plan_s, 2)
    print(json.dumps({"question": "prune", "ratio": ratio, "aim": AIM, "figures": figures}))


def timed(call):  # type: ignore[no-untyped-def]
    started_s = time.monotonic()
    result = call()
    return time.monotonic() - started_s, result


def fill(profile: Profile, count: int) -> list[str]:
    """Rows by COPY; the names of the packs."""
    with profile.transaction() as cursor:
        ids, uuids = reserve_ids(cursor, count), uuid7s(count)

        def nodes() -> Iterator[str]:
            for number, (node_id, uuid) in enumerate(zip(ids, uuids, strict=True)):
                own, shared = key(b"%d" % number), key(b"shared %d" % (number % SHARED))
                yield (
                    f"{node_id}\t{uuid}\tdata\t{profile.user_id}\tdata.core.folder.FolderData.\t"
                    f'{{"o": {{"out.txt": {{"k": "{own}"}}, "log": {{"k": "{shared}"}}}}}}\n'
                )

        copy_rows(
            cursor, "node", ("id", "uuid", "kind", "user_id", "node_type", "repository_metadata"), nodes()
        )
        cursor.execute(
            "INSERT INTO pack (name) SELECT 'packs/aa/' || lpad(to_hex(number), 32, '0') || '.zip'"
            " FROM generate_series(1, %s) AS number RETURNING id, name",
            ((count + SHARED) // BLOBS_A_PACK + 1,),
        )
        packs = cursor.fetchall()

        def blobs() -> Iterator[str]:
            for number in range(count + SHARED):
                if number >= count:
                    content = b"shared %d" % (number - count)
                else:
                    content = b"%d" % number if number % 10 else b"dead %d" % number
                pack, place = packs[number // BLOBS_A_PACK][0], number % BLOBS_A_PACK * 4200
                yield f"\\\\x{key(content)}\t{pack}\t{place}\t4000\t4096\tdeflate\n"

        copy_rows(cursor, "blob", ("key", "pack_id", "offset", "stored_size", "size", "codec"), blobs())
    connection = profile.connect()
    connection.autocommit = True
    connection.cursor().execute("VACUUM ANALYZE node, blob")
    connection.close()
    return [name for _, name in packs]


def key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def dead_by_sets(profile: Profile) -> int:
    """The same question, answered here."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT repository_metadata::text FROM node WHERE repository_metadata <> '{}'")
        named = set()
        for (metadata,) in cursor:
            named.update(files_of(decoded(metadata)).values())
        cursor.execute("SELECT encode(key, 'hex') FROM blob")
        return sum(row[0] not in named for row in cursor)


def waits(home: Path, meanwhile) -> list[float]:  # type: ignore[no-untyped-def]
    """How long each node took that another process stored meanwhile."""
    storing = subprocess.Popen(
        [sys.executable, __file__, "--store", home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert storing.stdout is not None
    storing.stdout.readline()
    meanwhile()
    said, _ = storing.communicate("")
    return [float(word) for word in said.split()]


def store_nodes(home: Path) -> None:
    import select

    with open_profile(home) as profile:
        profile.store(gr.Folder({"x": b"first"}))
        print("begun", flush=True)
        taken = []
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            content = b"%d" % time.monotonic_ns()
            started_s = time.monotonic()
            profile.store(gr.Folder({"x": content}))
            taken.append(time.monotonic() - started_s)
    print(*taken)


if __name__ == "__main__":
    main()
