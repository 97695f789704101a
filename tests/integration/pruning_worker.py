"""One process of the race in test_pruning_race.py: python pruning_worker.py ROLE HOME SECONDS SEED.

It does what its role says until the time is over, and then prints one JSON document.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grange as gr
from grange.core import graph
from grange.core.campaign import Campaign
from grange.core.profile import Profile, open_profile
from grange.core.upkeep import upkeep
from grange.repository import BlobMissing
from grange.repository.holdings import objects_of
from grange.repository.prune_plan import plan_prune
from grange.repository.pruning import prune
from grange.repository.repack_plan import plan_repack
from grange.repository.repacking import repack

#: Contents that everybody stores again and again while they die.
POOL = [b"content %d " % number * 40 for number in range(16)]
DELETE_LINKS = "DELETE FROM link WHERE source_id = ANY (%(ids)s) OR target_id = ANY (%(ids)s)"
DELETE_NODES = "DELETE FROM node WHERE id = ANY (%(ids)s)"


def delete_nodes(profile: Profile, ids: list[int]) -> None:
    """Delete nodes and their links, by SQL.

    The lock first: whoever deletes links and then nodes asks for a stronger one, and two such wait for each
    other.
    """
    with profile.transaction() as cursor:
        cursor.execute("LOCK TABLE link IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(DELETE_LINKS, {"ids": ids})
        cursor.execute(DELETE_NODES, {"ids": ids})


def read(profile: Profile, node_id: int) -> None:
    """Read the files of a node, compared with their keys.

    Without any grace a pack may vanish twice between the look into the index and the read.
    """
    for tries in range(20):
        (node,) = profile.load(node_id)
        try:
            node.read_files()
            return
        except BlobMissing:
            assert tries < 19, f"lost: files of node {node_id}"


def store(profile: Profile, seed: int, until_s: float) -> dict[str, Any]:
    """Store nodes with contents of the pool and of their own, and delete most of them again."""
    draw = random.Random(seed)
    kept: dict[int, dict[str, str]] = {}
    stored = 0
    while time.time() < until_s:
        folders = []
        for _ in range(draw.randint(1, 3)):
            files = {f"pool-{n}": POOL[n] for n in draw.sample(range(len(POOL)), 2)}
            if draw.random() < 0.3:
                files["own"] = b"%d of %d" % (stored, seed)
            folders.append(gr.Folder(files))
        with profile.transaction() as cursor:
            graph.store(
                cursor,
                folders,
                user_id=profile.user_id,
                repository=profile.repository,
                index=profile.index(cursor),
                reader=profile.read_files,
            )
            time.sleep(draw.uniform(0, 0.03))  # as in a transaction that has more to do
        stored += len(folders)
        for folder in folders:
            assert folder.id is not None
            kept[folder.id] = {path: str(key) for path, key in folder._files.items()}
        while len(kept) > 2:
            gone = draw.choice(list(kept))
            read(profile, gone)
            del kept[gone]
            delete_nodes(profile, [gone])
    return {"stored": stored, "kept": kept}


def squared(number: int) -> Any:
    """A function whose results are few contents, again and again."""
    import numpy as np

    return {"array": np.full(100, number % 5), "own": np.full(100, number)}


def compute(profile: Profile, seed: int, until_s: float) -> dict[str, Any]:
    """Run campaigns whose results share contents; delete the nodes of every second one."""
    computed, rounds = 0, 0
    kept: list[int] = []
    while time.time() < until_s or not rounds:
        name = f"race-{seed}-{rounds}"
        campaign = Campaign(name, profile)
        campaign.map(squared, number=list(range(1000 * rounds, 1000 * rounds + 40)), cache=False)
        campaign.run(progress=False)
        frame = campaign.results()
        computed += len(frame)
        assert list(frame["exit_status"]) == [0] * len(frame), frame
        with profile.transaction() as cursor:
            cursor.execute("SELECT array_agg(node_id) FROM process WHERE campaign_id = %s", (campaign.id,))
            (processes,) = cursor.fetchone() or ([],)
            cursor.execute(
                "SELECT coalesce(array_agg(target_id), '{}') FROM link WHERE source_id = ANY (%s)",
                (processes,),
            )
            (outputs,) = cursor.fetchone() or ([],)
        if rounds % 2:
            kept += outputs
        else:
            delete_nodes(profile, [*processes, *outputs])
        rounds += 1
    return {"computed": computed, "rounds": rounds, "outputs": kept}


def tidy(profile: Profile, seed: int, until_s: float) -> dict[str, Any]:
    """Prune without any grace, and repack at the least occasion."""
    store = profile.repository.store
    told = {"prunings": 0, "rows": 0, "objects": 0, "moved": 0}
    while time.time() < until_s:
        with upkeep(profile) as index:
            missing = index.mark()
            assert missing == 0
            plan = plan_prune(index.uses(), objects_of(store), now_s=time.time(), grace_s=0)
            pruned = prune(store, index, plan)
        told["prunings"] += 1
        told["rows"] += pruned.rows
        told["objects"] += pruned.objects
        with upkeep(profile) as index:
            packs = plan_repack(index.uses(), store.list("packs/"), dead_share=0.1, target_bytes=2000)
            repacked = repack(profile.repository, index, packs, target_bytes=2000)
            assert not repacked.damaged, repacked.damaged
        told["moved"] += repacked.blobs
    return told


ROLES: dict[str, Callable[[Profile, int, float], dict[str, Any]]] = {
    "store": store,
    "compute": compute,
    "tidy": tidy,
}


def main() -> None:
    role, home, seconds, seed = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    with open_profile(home) as profile:
        print(json.dumps(ROLES[role](profile, seed, time.time() + seconds)))


if __name__ == "__main__":
    main()
