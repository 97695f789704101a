"""Writers, runners, pruning and repacking at once: nothing that a node names is ever lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from grange.core.profile import Profile
from grange.core.upkeep import upkeep
from grange.repository.holdings import holdings_of, objects_of

WORKER = Path(__file__).with_name("pruning_worker.py")
SECONDS = 8.0


def begin(profile: Profile, role: str, seed: int, seconds: float = SECONDS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, WORKER, role, profile.home, str(seconds), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(running: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    told: dict[str, Any] = json.loads(said)
    return told


def read_everything(profile: Profile) -> int:
    """Every file of every node, compared with its key; how many."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT id FROM node ORDER BY id")
        ids = [row[0] for row in cursor.fetchall()]
    return sum(len(node.read_files()) for node in profile.load(*ids))


def race(profile: Profile) -> None:
    """Three that store and one that tidies up; the contents are few, so that they die and come again."""
    writers = [begin(profile, "store", seed) for seed in (1, 2, 3)]
    tidying = begin(profile, "tidy", 0)
    kept = {int(id_): files for writer in writers for id_, files in end(writer)["kept"].items()}
    told = end(tidying)
    for node in profile.load(*kept):
        assert {path: str(key) for path, key in node._files.items()} == kept[node.id or 0]
    assert read_everything(profile) == sum(map(len, kept.values()))
    with upkeep(profile) as index:
        assert index.mark() == 0
    assert told["prunings"] > 1, told  # it waits for gaps between writers, and a machine may be busy
    assert told["rows"] > 30, told
    assert told["objects"] > 10, told
    assert told["moved"] > 10, told


def test_what_is_stored_while_the_same_contents_are_pruned(profile: Profile) -> None:
    race(profile)


def test_what_is_stored_in_a_bucket_while_the_same_contents_are_pruned(bucket_profile: Profile) -> None:
    race(bucket_profile)


def test_pruning_and_repacking_that_are_killed_at_any_time(profile: Profile) -> None:
    """Again and again, while somebody stores; the last one comes to its end and leaves what is needed."""
    draw = random.Random(3)
    writer = begin(profile, "store", 1, 2 * SECONDS)
    killed = 0
    while writer.poll() is None:
        tidying = begin(profile, "tidy", 0, 60)
        time.sleep(draw.uniform(0.5, 1.5))
        if tidying.poll() is None:
            tidying.kill()
            killed += 1
        _, errors = tidying.communicate()
        assert tidying.returncode == -signal.SIGKILL, errors
    kept = {int(id_): files for id_, files in end(writer)["kept"].items()}
    assert killed > 5
    assert read_everything(profile) == sum(map(len, kept.values()))
    told = end(begin(profile, "tidy", 0, 1))
    assert told["prunings"] >= 1
    assert read_everything(profile) == sum(map(len, kept.values()))
    store = profile.repository.store
    with upkeep(profile) as index:
        assert index.mark() == 0
        held = holdings_of(index.uses(), objects_of(store))
    needed = {key for files in kept.values() for key in files.values()}
    assert (held.blobs, held.unknown, held.gone) == (len(needed), 0, 0)


def test_what_is_computed_while_the_same_contents_are_pruned(profile: Profile) -> None:
    computing, storing = begin(profile, "compute", 7), begin(profile, "store", 1)
    tidying = begin(profile, "tidy", 0, SECONDS + 2)
    computed = end(computing)
    end(storing)
    told = end(tidying)
    for node in profile.load(*computed["outputs"]):
        node.read_files()
    read_everything(profile)
    assert computed["rounds"] > 2, computed
    assert told["prunings"] > 3, told
    assert told["rows"] > 30, told
