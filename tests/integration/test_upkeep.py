"""Upkeep of the repository: pruning, repacking, rebuilding the index, on a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import grange as gr
from grange.cli.entry import run
from grange.core.blob_index import PRUNE_LOCK
from grange.core.campaign import Campaign
from grange.core.data.folder import Folder
from grange.core.database import connect, transaction
from grange.core.errors import InUse, RepositoryBusy
from grange.core.intake import Intake, Opened
from grange.core.profile import Profile, open_profile
from grange.core.queues import Queues
from grange.core.recipe import Conclusion, succeeded
from grange.core.store_owner import require_owner
from grange.core.upkeep import Upkeep, upkeep
from grange.farm.result import ResultPack, TaskResult
from grange.repository import (
    BlobMissing,
    CountingStore,
    Key,
    LocalStore,
    PackWriter,
    StoreUnavailable,
    key_of,
)
from grange.repository.holdings import objects_of
from grange.repository.object_name import blob_name
from grange.repository.prune_plan import PrunePlan, plan_prune
from grange.repository.pruning import Pruned, prune
from grange.repository.rebuild_plan import plan_rebuild
from grange.repository.rebuilding import Rebuilt, rebuild
from grange.repository.repack_plan import plan_repack
from grange.repository.repacking import Repacked, repack

DAY = 86_400.0
BIG = os.urandom(1 << 20) * 9


@pytest.fixture(params=["folder", "bucket"])
def kept(request: pytest.FixtureRequest) -> Profile:
    """A profile that keeps its files in a folder, and one that keeps them in a bucket."""
    found: Profile = request.getfixturevalue("profile" if request.param == "folder" else "bucket_profile")
    return found


def stored(profile: Profile, *files: dict[str, bytes]) -> list[int]:
    """Nodes with these files, in one pack; their ids."""
    folders = [gr.Folder(one) for one in files]
    profile.store(*folders)
    return [folder.id for folder in folders if folder.id is not None]


def delete(profile: Profile, *ids: int) -> None:
    with profile.transaction() as cursor:
        cursor.execute("LOCK TABLE link IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(
            "DELETE FROM link WHERE source_id = ANY (%(ids)s) OR target_id = ANY (%(ids)s)",
            {"ids": list(ids)},
        )
        cursor.execute("DELETE FROM node WHERE id = ANY (%s)", (list(ids),))


def objects(profile: Profile) -> dict[str, int]:
    return {found.name: found.size for found in objects_of(profile.repository.store)}


def contents(profile: Profile, *ids: int) -> list[dict[str, bytes]]:
    """The files of nodes, compared with their keys."""
    return [node.read_files() for node in profile.load(*ids)]


def planned(profile: Profile, index: Upkeep, grace_s: float) -> PrunePlan:
    missing = index.mark()
    return plan_prune(
        index.uses(),
        objects_of(profile.repository.store),
        now_s=time.time() + 1,
        grace_s=grace_s,
        missing=missing,
    )


def pruned(profile: Profile, grace_s: float = 0.0) -> tuple[PrunePlan, Pruned]:
    with upkeep(profile) as index:
        plan = planned(profile, index, grace_s)
        return plan, prune(profile.repository.store, index, plan)


def repacked(profile: Profile, **how: float) -> Repacked:
    with upkeep(profile) as index:
        plan = plan_repack(index.uses(), objects_of(profile.repository.store), **how)  # type: ignore[arg-type]
        return repack(profile.repository, index, plan)


def rebuilt(profile: Profile, *, everything: bool = False) -> Rebuilt:
    store = profile.repository.store
    with upkeep(profile) as index:
        return rebuild(store, index, plan_rebuild(index.uses(), objects_of(store), everything=everything))


def age(profile: Profile, by_s: float) -> None:
    """Let dead objects have been dead for longer."""
    with profile.transaction() as cursor:
        cursor.execute("UPDATE pack SET dead_since = dead_since - make_interval(secs => %s)", (by_s,))


@contextmanager
def pruning_under_way(profile: Profile) -> Iterator[None]:
    """Somebody has the lock of pruning alone."""
    connection = profile.connect()
    try:
        with transaction(connection) as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (PRUNE_LOCK,))
            yield
    finally:
        connection.close()


def wait_for_waiting(profile: Profile) -> None:
    """Until somebody waits for the lock of pruning."""
    for _ in range(500):
        with profile.transaction() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            if cursor.fetchone() != (0,):
                return
        time.sleep(0.02)
    raise AssertionError("nobody waits")


# ---------------------------------------------------------------- pruning


def test_what_nodes_name_stays_and_the_rest_goes(kept: Profile) -> None:
    [a, b] = stored(kept, {"x": b"only of a" * 99, "y": b"of both" * 99}, {"y": b"of both" * 99, "z/k": b"k"})
    [c] = stored(kept, {"x": b"of c" * 99})
    [d] = stored(kept, {"big": BIG})
    before = objects(kept)
    plan, done = pruned(kept)
    assert plan.nothing
    assert done == Pruned()
    assert objects(kept) == before
    delete(kept, a, c, d)
    plan, done = pruned(kept)
    assert (plan.rows, len(plan.now)) == (3, 2)
    assert (done.rows, done.objects) == (3, 2)
    after = objects(kept)
    assert blob_name(key_of(BIG)) in before.keys() - after.keys()
    assert done.size == sum(before.values()) - sum(after.values())
    assert contents(kept, b) == [{"y": b"of both" * 99, "z/k": b"k"}]
    assert pruned(kept)[0].nothing


def test_dead_objects_wait_for_the_grace_period(kept: Profile) -> None:
    [a] = stored(kept, {"x": b"x" * 999})
    delete(kept, a)
    plan, done = pruned(kept, DAY)
    assert (done.rows, done.objects, len(plan.later)) == (1, 0, 1)
    assert len(objects(kept)) == 1
    age(kept, DAY / 2)
    assert pruned(kept, DAY)[1].objects == 0
    age(kept, DAY / 2)
    plan, done = pruned(kept, DAY)
    assert (done.objects, done.size) == (1, plan.object_bytes)
    assert objects(kept) == {}


def test_what_is_stored_again_while_it_is_dead_is_new(kept: Profile) -> None:
    [a] = stored(kept, {"x": b"x" * 999, "big": BIG})
    delete(kept, a)
    pruned(kept, DAY)
    [b] = stored(kept, {"x": b"x" * 999, "big": BIG})
    age(kept, 2 * DAY)
    pruned(kept, DAY)
    assert contents(kept, b) == [{"x": b"x" * 999, "big": BIG}]
    assert len(objects(kept)) == 2


def test_what_is_stored_between_mark_and_sweep_is_taken_back(profile: Profile) -> None:
    [a] = stored(profile, {"x": b"x" * 999, "y": b"y"})
    delete(profile, a)
    with upkeep(profile) as index:
        plan = planned(profile, index, 0)
        assert plan.rows == 2
        [b] = stored(profile, {"x": b"x" * 999})
        done = prune(profile.repository.store, index, plan)
    assert (done.rows, done.objects) == (1, 0)
    assert contents(profile, b) == [{"x": b"x" * 999}]


def test_what_is_stored_between_two_steps_of_the_sweep_is_taken_back(profile: Profile) -> None:
    delete(
        profile, *stored(profile, {"x": b"x"}), *stored(profile, {"y": b"y"}), *stored(profile, {"z": b"z"})
    )
    with upkeep(profile) as index:
        plan = planned(profile, index, 0)
        first, second, third = plan.sweep
        index.sweep([first])
        lost = {next(iter(index.locations([name]))) for name in (second, third)}
        ids = [stored(profile, {"x": c})[0] for c in (b"x", b"y", b"z") if key_of(c) in lost]
        assert index.sweep([second]) == index.sweep([third]) == 0
    assert len(contents(profile, *ids)) == 2


class TestWhoStoresWaits:
    """Whoever relies on what is there waits for a step of pruning before he looks, and before he has ids."""

    def started(self, profile: Profile, call: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=call)
        thread.start()
        other = profile.connect()
        try:
            for _ in range(500):
                with transaction(other) as cursor:
                    cursor.execute(
                        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    )
                    if cursor.fetchone() != (0,):
                        return thread
                time.sleep(0.02)
        finally:
            other.close()
        raise AssertionError("nobody waits")

    def last_id(self, profile: Profile) -> int:
        other = profile.connect()
        try:
            with transaction(other) as cursor:
                cursor.execute("SELECT last_value FROM node_id")
                return int((cursor.fetchone() or (0,))[0])
        finally:
            other.close()

    def test_to_store_nodes(self, profile: Profile) -> None:
        before = self.last_id(profile)
        with pruning_under_way(profile):
            thread = self.started(profile, lambda: stored(profile, {"x": b"x"}))
            assert self.last_id(profile) == before
            assert objects(profile) == {}
        thread.join()
        assert len(objects(profile)) == 1

    def test_to_take_results_in(self, profile: Profile, tmp_path: Path) -> None:
        campaign, process = begun(profile, "taken")
        before = objects(profile)
        pack = delivered(tmp_path, process, {"x.txt": b"x" * 99})
        told: dict[str, bool] = {}

        def record() -> None:
            opened = Opened(process, 1, KeepsFiles(), {}, 1)  # type: ignore[arg-type]
            told.update(Intake(profile, campaign).record([pack], {str(process): opened}))

        with pruning_under_way(profile):
            thread = self.started(profile, record)
            assert objects(profile) == before
        thread.join()
        assert told == {str(process): True}
        assert len(objects(profile)) == len(before) + 1

    def test_to_make_failed_calls_again(self, profile: Profile) -> None:
        campaign = Campaign("again", profile)
        campaign.map(raising, number=[1])
        campaign.run(progress=False)
        before = self.last_id(profile)
        with pruning_under_way(profile):
            thread = self.started(profile, campaign.retry)
            assert self.last_id(profile) == before
        thread.join()


def valued(number: int) -> object:
    import numpy as np

    return np.full(1000, number)


def raising(number: int) -> int:
    raise ValueError(number)


def test_pruning_waits_for_who_stores(profile: Profile) -> None:
    [a] = stored(profile, {"x": b"x" * 99})
    delete(profile, a)
    order: list[str] = []
    waiting = threading.Event()

    def prune_elsewhere() -> None:
        """By a profile of its own: transactions of one take turns."""
        with open_profile(profile.home) as another, upkeep(another) as index:
            index.on_wait = waiting.set
            plan = planned(another, index, 0.0)
            prune(another.repository.store, index, plan)
        order.append("pruned")

    with profile.transaction() as cursor:
        index = profile.index(cursor)
        index.hold()
        assert key_of(b"x" * 99) in index.find([key_of(b"x" * 99)])
        other = threading.Thread(target=prune_elsewhere)
        other.start()
        assert waiting.wait(60)
        order.append("stored")
    other.join()
    assert order == ["stored", "pruned"]


def test_writers_do_not_wait_long_for_a_pruning_that_waits(profile: Profile) -> None:
    """One that stores for long keeps pruning out; those that come meanwhile are hardly held up."""
    with upkeep(profile) as index, profile.transaction() as cursor:
        profile.index(cursor).hold()
        told: list[str] = []
        index.on_wait = lambda: told.append("waiting")
        thread = threading.Thread(target=index.mark)
        thread.start()
        other = profile.connect()
        longest_s = 0.0
        deadline_s = time.monotonic() + 5.0
        while time.monotonic() < deadline_s:
            started_s = time.monotonic()
            with transaction(other) as another:
                another.execute("SELECT pg_advisory_xact_lock_shared(%s)", (PRUNE_LOCK,))
            longest_s = max(longest_s, time.monotonic() - started_s)
            time.sleep(0.05)
        other.close()
        profile.connection.rollback()
        thread.join()
    assert longest_s < 3.0
    assert told == ["waiting"]


def test_one_at_a_time(profile: Profile) -> None:
    with upkeep(profile):
        with pytest.raises(RepositoryBusy, match="another process prunes"), upkeep(profile, patience_s=0.1):
            pass
        with upkeep(profile, alone=False) as looking:
            assert looking.mark(settle=False) == 0


@pytest.mark.parametrize("key", ["no key", "ABC", "g" * 64, "ab" * 33, ""])
def test_a_node_of_an_archive_that_names_what_is_no_key(profile: Profile, key: str) -> None:
    [a] = stored(profile, {"x": b"x" * 999})
    delete(profile, *stored(profile, {"y": b"y" * 999}))
    odd = {"o": {"k": {"k": key}, "o": {"o": {"k": {"k": key_of(b"x" * 999)}}}}}
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO node (uuid, kind, user_id, node_type, repository_metadata)"
            " VALUES (gen_random_uuid(), 'data', %s, 'data.core.folder.FolderData.', %s)",
            (profile.user_id, json.dumps(odd)),
        )
    delete(profile, a)
    plan, done = pruned(profile)
    assert (plan.missing, done.rows, done.objects) == (1, 1, 1)
    [b] = stored(profile, {"x": b"x" * 999})
    assert contents(profile, b) == [{"x": b"x" * 999}]
    assert len(objects(profile)) == 1


# ---------------------------------------------------------------- campaigns under way


def begun(profile: Profile, label: str) -> tuple[int, int]:
    """A campaign with one calculation that has been submitted: ids of campaign and calculation."""
    campaign = Campaign(label, profile)
    campaign.map(valued, number=[1])
    campaign.submit()
    with profile.transaction() as cursor:
        cursor.execute(
            "UPDATE process SET state = 'waiting', attempt = 1 WHERE campaign_id = %s RETURNING node_id",
            (campaign.id,),
        )
        [(process,)] = cursor.fetchall()
    return campaign.id, process


def ended(profile: Profile, process: int) -> None:
    with profile.transaction() as cursor:
        cursor.execute(
            "UPDATE process SET state = 'killed', finished_at = now() WHERE node_id = %s", (process,)
        )


def test_a_pack_of_a_campaign_under_way_stays_whoever_names_its_blobs(kept: Profile) -> None:
    campaign, process = begun(kept, "screening")
    [a] = stored(kept, {"x": b"x" * 999})
    with kept.transaction() as cursor:
        index = kept.index(cursor)
        place = index.find([key_of(b"x" * 999)])[key_of(b"x" * 999)]
        index.promise([place.object_name], campaign)
    delete(kept, a)
    plan, done = pruned(kept)
    assert plan.held_for == ("screening",)
    assert (done.rows, done.objects) == (0, 0)
    [b] = stored(kept, {"x": b"x" * 999})
    assert contents(kept, b) == [{"x": b"x" * 999}]
    delete(kept, b)
    ended(kept, process)
    assert pruned(kept)[1].rows == 1
    assert place.object_name not in objects(kept)


def test_a_busy_queue_keeps_no_pack_for_calculations_that_came_later(kept: Profile) -> None:
    queue = Queues(kept).id_of(None)
    [a] = stored(kept, {"x": b"x" * 999})
    _, process = begun(kept, "screening")
    with kept.transaction() as cursor:
        cursor.execute("UPDATE process SET campaign_id = NULL, queue_id = %s", (queue,))
        index = kept.index(cursor)
        place = index.find([key_of(b"x" * 999)])[key_of(b"x" * 999)]
        index.promise([place.object_name], queue)
    delete(kept, a)
    assert pruned(kept)[0].held_for == (f"local@{socket.gethostname()}",)
    begun(kept, "later")
    with kept.transaction() as cursor:
        cursor.execute("UPDATE process SET campaign_id = NULL, queue_id = %s", (queue,))
    assert pruned(kept)[1].rows == 0
    ended(kept, process)
    plan, done = pruned(kept)
    assert (plan.held_for, done.rows) == ((), 1)
    assert place.object_name not in objects(kept)


def test_a_promised_pack_is_no_orphan_before_it_is_taken_in(kept: Profile) -> None:
    campaign, process = begun(kept, "delivered")
    name = "packs/ab/" + "ab" * 16 + ".zip"
    with kept.transaction() as cursor:
        kept.index(cursor).promise([name], campaign)
    kept.repository.store.put_if_absent(name, b"what a node has put there")
    pruned(kept)
    assert name in objects(kept)
    ended(kept, process)
    assert pruned(kept)[1].objects == 1
    assert name not in objects(kept)


def task_result(process: int, files: dict[str, Key]) -> TaskResult:
    return TaskResult(str(process), 1, "finished", 0, None, "", {}, files, time.time(), 1.0, 1.0, 1.0, "here")


def delivered(folder: Path, process: int, files: dict[str, bytes]) -> ResultPack:
    """A result pack as a runner delivers it, of one calculation."""
    writer = PackWriter("")
    for content in files.values():
        writer.add(key_of(content), content)
    path = folder / "result-1.zip"
    path.write_bytes(writer.finish())
    keys = {name: key_of(content) for name, content in files.items()}
    return ResultPack(path, (task_result(process, keys),), len(files))


class KeepsFiles:
    """A recipe that keeps all files of a result and nothing else."""

    parses = False

    def conclude(self, result: TaskResult, values: object, files: object) -> Conclusion:
        return succeeded({"retrieved": Folder.of_keys(result.files)})


def test_what_an_ignored_result_brought_stays_for_later_packs_of_its_chunk(
    profile: Profile, tmp_path: Path
) -> None:
    """An old, dead row of the same content must not take it along."""
    campaign, process = begun(profile, "shared")
    [a] = stored(profile, {"x": b"shared" * 99})
    delete(profile, a)
    pack = delivered(tmp_path, process, {"x.txt": b"shared" * 99})
    assert Intake(profile, campaign).record([pack], {}) == {}  # nobody waits for this one
    pruned(profile)
    later = ResultPack(tmp_path / "none.zip", (task_result(process, {"y.txt": key_of(b"shared" * 99)}),), 0)
    opened = Opened(process, 1, KeepsFiles(), {}, 1)  # type: ignore[arg-type]
    assert Intake(profile, campaign).record([later], {str(process): opened}) == {str(process): True}
    pruned(profile)
    with profile.transaction() as cursor:
        cursor.execute("SELECT target_id FROM link WHERE source_id = %s AND label = 'retrieved'", (process,))
        [(folder,)] = cursor.fetchall()
    assert contents(profile, folder) == [{"y.txt": b"shared" * 99}]


def test_a_result_whose_content_is_gone_ends_its_own_calculation(profile: Profile, tmp_path: Path) -> None:
    campaign, process = begun(profile, "lost")
    lost, there = key_of(b"lost"), key_of(b"there")
    stored(profile, {"x": b"there"})
    pack = ResultPack(
        tmp_path / "none.zip", (task_result(process, {"lost.txt": lost, "there.txt": there}),), 0
    )
    opened = Opened(process, 1, KeepsFiles(), {}, 1)  # type: ignore[arg-type]
    told = Intake(profile, campaign).record([pack], {str(process): opened})
    assert told == {str(process): False}
    with profile.transaction() as cursor:
        cursor.execute("SELECT exit_status, exit_message FROM process WHERE node_id = %s", (process,))
        status, message = cursor.fetchone() or (None, "")
    assert status == 172
    assert message.endswith("lost.txt: not in the store any more; retry the calculation")
    with profile.transaction() as cursor:
        cursor.execute("SELECT target_id FROM link WHERE source_id = %s AND label = 'retrieved'", (process,))
        [(folder,)] = cursor.fetchall()
    assert contents(profile, folder) == [{"there.txt": b"there"}]


def test_a_key_that_the_repository_has_not_is_refused(profile: Profile) -> None:
    with pytest.raises(BlobMissing, match=key_of(b"nowhere")):
        profile.store(gr.Folder.of_keys({"x": key_of(b"nowhere")}))
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        assert cursor.fetchone() == (0,)


# ---------------------------------------------------------------- what kills leave

KILLED = """
import os, signal, sys
from pathlib import Path
import grange as gr
from grange.core.profile import open_profile
with open_profile(Path(sys.argv[1])) as profile, profile.transaction() as cursor:
    profile.repository.put([b"of a writer that is killed" * 99], profile.index(cursor))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_put_goes_after_the_grace_period(kept: Profile) -> None:
    [a] = stored(kept, {"x": b"x"})
    done = subprocess.run([sys.executable, "-c", KILLED, kept.home], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(objects(kept)) == 2
    plan, gone = pruned(kept, DAY)
    assert gone.objects == 0
    assert [one.reason for one in plan.later] == ["orphan"]
    store = kept.repository.store
    with upkeep(kept) as index:
        index.mark()
        plan = plan_prune(index.uses(), objects_of(store), now_s=time.time() + DAY + 5, grace_s=DAY)
        assert prune(store, index, plan).objects == 1
    assert len(objects(kept)) == 1
    assert contents(kept, a) == [{"x": b"x"}]


def test_scratch_files_of_killed_writers_go(profile: Profile) -> None:
    [a] = stored(profile, {"x": b"x"})
    store = profile.repository.store
    assert isinstance(store, LocalStore)
    left = store.root / ".scratch" / ("grange-scratch-" + "ab" * 16)
    left.write_bytes(b"half")
    assert pruned(profile)[1].leftovers == 0
    os.utime(left, (time.time() - 2 * DAY,) * 2)
    with store.scratch([b"of one that lives"]) as path:
        os.utime(path, (time.time() - 2 * DAY,) * 2)
        assert pruned(profile, DAY)[1].leftovers == 1
        assert path.exists()
    assert not left.exists()
    assert contents(profile, a) == [{"x": b"x"}]


def test_uploads_of_killed_writers_are_aborted(bucket_profile: Profile) -> None:
    settings = bucket_profile.config.store
    assert not isinstance(settings, str)
    store = bucket_profile.repository.store.store._store  # type: ignore[attr-defined]
    boto = store._session.boto
    for key in ("packs/ab/half.zip", "blobs/ab/cd/half", "of somebody else"):
        upload = boto.create_multipart_upload(Bucket=settings.bucket, Key=key)["UploadId"]
        boto.upload_part(Bucket=settings.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    assert pruned(bucket_profile)[1].leftovers == 0  # younger than a minute
    assert bucket_profile.repository.store.sweep(-5) == 2  # type: ignore[attr-defined]
    left = boto.list_multipart_uploads(Bucket=settings.bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["of somebody else"]


class Killed(Exception):
    pass


def test_killed_between_removing_objects_and_their_rows(kept: Profile) -> None:
    delete(kept, *stored(kept, {"x": b"x"}))
    with upkeep(kept) as index:
        plan = planned(kept, index, 0)
        index.sweep(list(plan.sweep))
        with suppress(Killed), index.removing([one.name for one in plan.now], 0) as free:
            kept.repository.store.delete(free)
            raise Killed
    assert objects(kept) == {}
    plan, done = pruned(kept)
    assert len(plan.forgotten) == 1
    assert (done.objects, done.size) == (0, 0)
    with kept.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM pack")
        assert cursor.fetchone() == (0,)


def test_repacking_that_is_killed_before_the_rows_move(kept: Profile) -> None:
    ids = stored(kept, *({"x": b"%d" % n * 999} for n in range(10)))
    delete(kept, *ids[1:])
    pruned(kept)
    [old] = objects(kept)

    class Dies(Upkeep):
        def move(self, *_: object) -> int:
            raise Killed

    connection = kept.connect()
    index = Dies(connection)
    planned_packs = plan_repack(index.uses(), objects_of(kept.repository.store))
    with pytest.raises(Killed):
        repack(kept.repository, index, planned_packs)
    connection.close()
    assert len(objects(kept)) == 2
    plan, done = pruned(kept)
    assert [one.reason for one in plan.now] == ["orphan"]
    assert done.objects == 1
    assert list(objects(kept)) == [old]
    assert contents(kept, ids[0]) == [{"x": b"0" * 999}]


# ---------------------------------------------------------------- repacking


def test_repacking_frees_what_is_dead_inside_packs(kept: Profile) -> None:
    ids = stored(kept, *({"x": os.urandom(1000), "y": b"shared" * 99} for _ in range(20)))
    before = contents(kept, *ids[:3])
    delete(kept, *ids[3:])
    plan, _ = pruned(kept)
    assert plan.inside_bytes > 15_000
    [(old, size)] = objects(kept).items()
    with upkeep(kept) as index:
        stale = index.locations([old])
    done = repacked(kept)
    assert (done.packs, done.blobs, done.new_packs, done.size) == (1, 4, 1, size)
    assert len(objects(kept)) == 2
    assert contents(kept, *ids[:3]) == before
    plan, _ = pruned(kept, DAY)
    assert [one.reason for one in plan.later] == ["dead"]
    assert pruned(kept)[1].size == size
    assert sum(objects(kept).values()) == done.new_size < size / 3
    assert contents(kept, *ids[:3]) == before

    class Stale:
        """An index that is asked before the repacking, and once more after it."""

        def __init__(self) -> None:
            self.asked = 0

        def hold(self) -> None:
            raise AssertionError

        def find(self, keys: Sequence[Key]) -> object:
            self.asked += 1
            with kept.transaction() as cursor:
                now = kept.index(cursor).find(keys)
            return {key: stale[key] for key in keys} if self.asked == 1 else now

    if hasattr(kept.repository.store, "clear"):
        kept.repository.store.clear()
    reader = Stale()
    key = key_of(b"shared" * 99)
    assert kept.repository.read([key], reader) == [b"shared" * 99]  # type: ignore[arg-type]
    assert reader.asked == 2
    assert not repacked(kept).packs


def test_small_packs_become_one(profile: Profile) -> None:
    ids = [stored(profile, {"x": b"%d" % n})[0] for n in range(100)]
    done = repacked(profile)
    assert (done.packs, done.new_packs, done.blobs) == (100, 1, 100)
    pruned(profile)
    assert len(objects(profile)) == 1
    assert contents(profile, *ids) == [{"x": b"%d" % n} for n in range(100)]


def test_a_damaged_pack_stays_as_it_is(profile: Profile) -> None:
    whole = stored(profile, {"a": os.urandom(999)}, {"b": os.urandom(999)})
    hurt = stored(profile, {"a": os.urandom(999)}, {"b": os.urandom(999)})
    with profile.transaction() as cursor:
        [key] = profile.load(hurt[0])[0]._files.values()
        place = profile.index(cursor).find([Key(str(key))])[Key(str(key))]
    delete(profile, whole[1], hurt[1])
    pruned(profile)
    store = profile.repository.store
    assert isinstance(store, LocalStore)
    path = store.root / place.object_name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(b"damage")
    done = repacked(profile, dead_share=0.2)
    assert (done.packs, done.blobs, list(done.damaged)) == (1, 1, [place.object_name])
    assert str(key) in done.damaged[place.object_name]
    pruned(profile)
    assert place.object_name in objects(profile)
    contents(profile, whole[0])


# ---------------------------------------------------------------- the index


def test_the_index_from_the_store_alone(kept: Profile) -> None:
    ids = stored(kept, {"x": b"x" * 999, "big": BIG}, {"y/z": b""})
    ids += stored(kept, {"x": b"another" * 99})
    before = contents(kept, *ids)
    delete(kept, *stored(kept, {"gone": b"of no node"}))
    with kept.transaction() as cursor:
        cursor.execute("TRUNCATE blob, pack")
    with pytest.raises(BlobMissing):
        contents(kept, *ids)
    plan, done = pruned(kept)
    assert plan.missing == 4
    assert len(plan.kept_orphans) == 4
    assert done.objects == 0
    told = rebuilt(kept)
    assert (told.objects, told.blobs, told.forgotten, told.malformed) == (4, 5, 0, {})
    assert contents(kept, *ids) == before
    assert rebuilt(kept) == Rebuilt()
    plan, done = pruned(kept)
    assert (plan.missing, done.rows, done.objects) == (0, 1, 1)
    assert contents(kept, *ids) == before


def test_rows_of_objects_that_are_not_there(kept: Profile) -> None:
    [a] = stored(kept, {"x": b"x" * 999})
    [b] = stored(kept, {"y": b"y" * 999})
    with kept.transaction() as cursor:
        name = kept.index(cursor).find([key_of(b"x" * 999)])[key_of(b"x" * 999)].object_name
    kept.repository.store.delete([name])
    told = rebuilt(kept)
    assert (told.forgotten, told.objects) == (1, 0)
    with upkeep(kept) as index:
        assert index.files().missing == 1
    [c] = stored(kept, {"x": b"x" * 999})  # who stores it again heals it
    assert contents(kept, a, b, c) == [{"x": b"x" * 999}, {"y": b"y" * 999}, {"x": b"x" * 999}]


def test_an_object_that_is_no_pack_is_told(profile: Profile) -> None:
    [a] = stored(profile, {"x": b"x"})
    profile.repository.store.put_if_absent("packs/aa/notes.zip", b"no pack at all")
    told = rebuilt(profile)
    assert list(told.malformed) == ["packs/aa/notes.zip"]
    assert rebuilt(profile, everything=True).objects == 1
    assert contents(profile, a) == [{"x": b"x"}]


# ---------------------------------------------------------------- errors, and whose store it is


class Unwilling(CountingStore):
    """A store that does not answer when it is asked to delete, the first time after it has deleted."""

    def delete(self, names: Iterable[str]) -> None:
        super().delete(names)
        if self.calls["delete"] == 1:
            raise StoreUnavailable("it did not answer")


def test_a_store_that_does_not_answer_in_the_midst_of_it(kept: Profile) -> None:
    delete(kept, *stored(kept, {"x": b"x" * 99}))
    [b] = stored(kept, {"y": b"y" * 99})
    store = Unwilling(kept.repository.store)
    with upkeep(kept) as index:
        plan = planned(kept, index, 0)
        with pytest.raises(StoreUnavailable):
            prune(store, index, plan)
    assert len(objects(kept)) == 1
    with upkeep(kept) as index:
        plan = planned(kept, index, 0)
        assert (plan.rows, plan.now, len(plan.forgotten)) == (0, [], 1)
        prune(store, index, plan)
        assert {use.name for use in index.uses()} == set(objects(kept))
    assert contents(kept, b) == [{"y": b"y" * 99}]


def test_a_store_has_one_owner(kept: Profile, new_database: Callable[..., str]) -> None:
    store = kept.repository.store
    for _ in range(2):
        with kept.transaction() as cursor:
            require_owner(cursor, store)
    [own] = store.list("owner/")
    copy = connect(new_database())
    with transaction(copy) as cursor:
        with pytest.raises(InUse, match="belongs to another database"):
            require_owner(cursor, store)
        assert list(store.list("owner/")) == [own]
        require_owner(cursor, store, take_over=True)
        require_owner(cursor, store)
    copy.close()
    with kept.transaction() as cursor, pytest.raises(InUse):
        require_owner(cursor, store)


def test_a_second_profile_stores_nothing_where_another_one_does(
    kept: Profile, new_database: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    [first] = stored(kept, {"a": b"what the first one has"})
    before = objects(kept)
    home = kept.home.parent / "second"
    home.mkdir()
    text = (kept.home / "profile.toml").read_text()
    place = "" if "[store]" in text else f'store = "{kept.home / "store"}"\n'
    (home / "profile.toml").write_text(place + text.replace(kept.config.database, new_database()))
    with open_profile(home) as second:
        node = gr.Folder({"b": b"what the second one has"})
        for _ in range(2):
            with pytest.raises(InUse, match="belongs to another database"):
                second.store(node)
        assert node.id is None
        assert objects(second) == before
        assert run(["--home", str(home), "repository", "take-over", "--yes"]) == 0
        second.store(node)
        assert node.read_files() == {"b": b"what the second one has"}
    with open_profile(kept.home) as again:
        assert contents(again, first) == [{"a": b"what the first one has"}]
        with pytest.raises(InUse):
            again.store(gr.Folder({"c": b"more of the first one's"}))
