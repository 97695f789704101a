"""Moving the files of a profile to another store: while others write, killed anywhere, right in between."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import grange as gr
from grange.core import store_lock
from grange.core.errors import InputInvalid, RepositoryBusy
from grange.core.profile import Profile, open_profile
from grange.core.profile_file import read_profile_file
from grange.core.scrub import scrub
from grange.core.store_move import folder_setting, move, open_bare, plan_move
from grange.repository import LocalStore, ObjectInfo, Store, StoreError, key_of
from grange.repository.copying import CopyDiffers, CopyJournal, copy_objects, plan_copy
from grange.repository.source import Source

LARGE = random.Random(1).randbytes(12 << 20)


def noise(seed: int, size: int = 5000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def nodes(profile: Profile) -> list[gr.Folder]:
    made = [gr.Folder({"x": noise(number), "same": b"same"}) for number in range(12)]
    made.append(gr.Folder({"large": LARGE}))
    for node in made:
        profile.store(node)
    return made


def names(store: Store) -> list[tuple[str, int]]:
    """All objects but that which says whose the store is: it is not copied."""
    return sorted((info.name, info.size) for info in store.list() if not info.name.startswith("owner/"))


def store_of(profile: Profile) -> Path:
    setting = read_profile_file(profile.home / "profile.toml").store
    assert isinstance(setting, str)
    return profile.home / setting


def check_everything(home: Path) -> None:
    """Every blob is there and right, seen by somebody who opens the profile anew."""
    with open_profile(home) as profile:
        done = scrub(profile, restart=True)
        assert done.found == []
        assert done.blobs > 10


def test_plan_then_move_then_back(profile: Profile, nodes: list[gr.Folder]) -> None:
    old = names(LocalStore(profile.home / "store"))
    before = sorted(profile.home.rglob("*"))
    planned = plan_move(profile, "elsewhere")
    assert sorted(profile.home.rglob("*")) == before
    assert (len(planned.plan.todo), planned.plan.todo_bytes) == (13, sum(size for _, size in old))
    assert not (profile.home / "elsewhere").exists()
    assert store_of(profile) == profile.home / "store"
    seen: list[tuple[int, int]] = []
    moved = move(profile, "elsewhere", show=lambda done, total, note: seen.append((done, total)))
    assert (moved.switched, moved.copied.objects, moved.lost, moved.copied.damaged) == (True, 13, [], [])
    assert seen[0][0] == 0
    assert store_of(profile) == profile.home / "elsewhere"
    assert names(LocalStore(profile.home / "elsewhere")) == old == names(LocalStore(profile.home / "store"))
    # the very profile that moved it uses the new one
    profile.store(gr.Folder({"new": b"new"}))
    assert len(names(LocalStore(profile.home / "elsewhere"))) == 14
    assert len(names(LocalStore(profile.home / "store"))) == 13
    check_everything(profile.home)
    assert list(profile.home.glob("copied-*")) == []
    # back: what is there already is compared and not copied
    again = move(profile, "store")
    assert (again.copied.objects, again.copied.compared) == (1, 13)
    assert store_of(profile) == profile.home / "store"
    check_everything(profile.home)


def test_a_copy_for_a_backup_leaves_the_profile_alone(
    profile: Profile, nodes: list[gr.Folder], tmp_path: Path
) -> None:
    target = str(tmp_path / "backup")
    first = move(profile, target, copy_only=True)
    assert (first.switched, first.copied.objects) == (False, 13)
    assert store_of(profile) == profile.home / "store"
    profile.store(gr.Folder({"new": b"new"}))
    second = move(profile, target, copy_only=True)
    assert (second.copied.objects, second.copied.compared) == (1, 0)
    assert names(LocalStore(tmp_path / "backup")) == names(LocalStore(profile.home / "store"))


@pytest.mark.parametrize("target", ["store", "store/inside", ".", "", "sub/../store"])
def test_targets_that_are_the_store_or_hold_it(profile: Profile, nodes: list[gr.Folder], target: str) -> None:
    before = sorted(profile.home.rglob("*"))
    for call in (plan_move, move):
        with pytest.raises(InputInvalid, match="another folder than"):
            call(profile, target)  # type: ignore[operator]
    assert sorted(profile.home.rglob("*")) == before


def test_a_target_that_is_a_file(profile: Profile, nodes: list[gr.Folder]) -> None:
    (profile.home / "file").write_text("")
    with pytest.raises(InputInvalid, match="a folder"):
        move(profile, "file")


def test_folders_are_named_from_the_profile(tmp_path: Path) -> None:
    assert folder_setting(tmp_path, tmp_path / "a" / ".." / "b") == "b"
    assert folder_setting(tmp_path / "home", tmp_path / "b") == str(tmp_path / "b")


def test_nobody_may_have_files_open_in_the_last_step(profile: Profile, nodes: list[gr.Folder]) -> None:
    with open_profile(profile.home) as other:
        other.load(1)  # has the database, no files
        assert other.read_files([key_of(b"same")]) == [b"same"]
        with pytest.raises(
            RepositoryBusy, match="1 other process has the files of this profile open, the first of"
        ):
            move(profile, "elsewhere", patience_s=0.2)
        assert store_of(profile) == profile.home / "store"
        other.store(gr.Folder({"meanwhile": b"meanwhile"}))
    moved = move(profile, "elsewhere")
    assert (moved.switched, moved.copied.objects, moved.copied.compared) == (True, 1, 0)
    check_everything(profile.home)


def test_while_it_is_moved_nobody_opens_it_and_afterwards_the_new_one(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    with open_profile(profile.home) as other:
        with store_lock.alone(profile.connection, 0.0):
            with pytest.raises(RepositoryBusy, match="just being moved"):
                store_lock.share(other.connection, 0.1)
            waiting = threading.Thread(target=lambda: other.store(gr.Folder({"later": b"later"})))
            waiting.start()
            time.sleep(0.3)
            assert waiting.is_alive()
            (profile.home / "elsewhere").mkdir()
            (profile.home / "profile.toml").write_text(
                (profile.home / "profile.toml").read_text() + 'store = "elsewhere"\n'
            )
        waiting.join()
        assert len(names(LocalStore(profile.home / "elsewhere"))) == 1


def test_a_profile_whose_connection_was_lost_looks_again_which_store_it_is(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    with open_profile(profile.home) as other:
        assert other.read_files([key_of(b"same")]) == [b"same"]
        with profile.transaction() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", (other.connection.info.backend_pid,))
        move(profile, "elsewhere", patience_s=5)
        other.store(gr.Folder({"after": b"after"}))
        assert len(names(LocalStore(profile.home / "elsewhere"))) == 14
    assert len(names(LocalStore(profile.home / "store"))) == 13


WRITER = """
import sys, random
import grange as gr
from grange.core.profile import open_profile
start = int(sys.argv[2])
number = start
print("ready", flush=True)
while True:
    # opened anew each time, as by scripts that come and go
    with open_profile(sys.argv[1]) as profile:
        for _ in range(3):
            content = random.Random(number).randbytes(3000)
            profile.store(gr.Folder({"w": content}))
            print(number, flush=True)
            number += 1
"""


def test_writers_that_come_and_go_lose_nothing(profile: Profile, nodes: list[gr.Folder]) -> None:
    """Some store while it copies and switches; what each was told to be stored is there afterwards."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(profile.home), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in (1_000_000, 2_000_000)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for target in ("elsewhere", "store", "third"):
            time.sleep(0.5)
            assert move(profile, target, patience_s=60).switched
    finally:
        for writer in writers:
            writer.kill()
    stored = [int(line) for writer in writers for line in (writer.communicate()[0]).split()]
    assert len(stored) > 10
    contents = [noise(number, 3000) for number in stored]
    with open_profile(profile.home) as anew:
        assert store_of(anew) == profile.home / "third"
        assert anew.read_files([key_of(content) for content in contents]) == contents
        with anew.transaction() as cursor:
            cursor.execute("SELECT count(*) FROM blob")
            assert cursor.fetchone()[0] >= len(stored)  # type: ignore[index]
    check_everything(profile.home)


MOVER = """
import sys
from grange.core.profile import open_profile
from grange.core.store_move import move
with open_profile(sys.argv[1]) as profile:
    print("ready", flush=True)
    move(profile, sys.argv[2])
    print("done", flush=True)
"""


def test_killed_anywhere_it_goes_on_and_the_named_store_is_complete(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    for number in range(100, 400):
        profile.repository.store.put_if_absent(f"packs/aa/{number:032}.zip", noise(number, 40_000))
    chance = random.Random(3)
    finished = kills = 0
    while not finished:
        mover = subprocess.Popen(
            [sys.executable, "-c", MOVER, str(profile.home), "elsewhere"], stdout=subprocess.PIPE, text=True
        )
        assert mover.stdout is not None
        assert mover.stdout.readline() == "ready\n"
        profile.forget_store()
        profile.close()
        time.sleep(chance.uniform(0.02, 0.5))
        mover.send_signal(signal.SIGKILL)
        finished = mover.communicate()[0].count("done")
        kills += not finished
        with open_profile(profile.home) as anew:
            for node in nodes:
                (loaded,) = anew.load(node.id or 0)
                assert loaded.read_files().keys() == node.files.keys()
        with open_profile(profile.home) as anew:
            if store_of(anew) == profile.home / "elsewhere":
                break
        if kills > 40:
            with open_profile(profile.home) as anew:
                move(anew, "elsewhere")
            break
    assert kills > 0
    assert names(LocalStore(profile.home / "elsewhere")) == names(LocalStore(profile.home / "store"))
    check_everything_but_rubbish(profile.home)


def check_everything_but_rubbish(home: Path) -> None:
    with open_profile(home) as profile:
        assert scrub(profile, restart=True).found == []


class Faulty:
    """A store in which a part of what is put arrives wrong, or nothing at all."""

    def __init__(self, store: Store, fault: str) -> None:
        self.store = store
        self.fault = fault
        self.left = 3

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def put_if_absent(self, name: str, source: Source) -> bool:
        if self.left:
            self.left -= 1
            content = b"".join(iter(lambda: source.read(1000), b""))  # type: ignore[union-attr]
            return self.store.put_if_absent(
                name, content[:-1] + b"?" if self.fault == "wrong" else content[:-1]
            )
        return self.store.put_if_absent(name, source)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self.store.list(prefix)


@pytest.mark.parametrize("fault", ["wrong", "short"])
def test_what_arrives_wrong_is_put_again(tmp_path: Path, fault: str) -> None:
    source, target = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    source.put_if_absent("packs/aa/1.zip", noise(1))
    faulty = Faulty(target, fault)
    faulty.left = 2
    with CopyJournal(tmp_path / "journal", "a", "b") as journal:
        plan = plan_copy(source.list(), target.list(), journal)
        copy_objects(source, faulty, plan, journal)  # type: ignore[arg-type]
        assert b"".join(target.read("packs/aa/1.zip")) == noise(1)
        target.delete(["packs/aa/1.zip"])
        faulty.left = 9
        plan = plan_copy(source.list(), target.list(), journal)
        with pytest.raises(StoreError, match="does not come to"):
            copy_objects(source, faulty, plan, journal)  # type: ignore[arg-type]
    assert list(target.list()) == []


@pytest.mark.parametrize("other", [noise(2), noise(1)[:-1]], ids=["content", "size"])
def test_other_bytes_under_the_same_name_are_refused(tmp_path: Path, other: bytes) -> None:
    source, target = LocalStore(tmp_path / "a"), LocalStore(tmp_path / "b")
    source.put_if_absent("packs/aa/1.zip", noise(1))
    target.put_if_absent("packs/aa/1.zip", other)
    with CopyJournal(tmp_path / "journal", "a", "b") as journal:
        plan = plan_copy(source.list(), target.list(), journal)
        with pytest.raises(CopyDiffers, match=r"packs/aa/1\.zip"):
            copy_objects(source, target, plan, journal)
    assert b"".join(target.read("packs/aa/1.zip")) == other


def test_the_journal_survives_being_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with CopyJournal(path, "a", "b") as journal:
        for number in range(5):
            journal.note(f"packs/{number}", number)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        with CopyJournal(path, "a", "b") as journal:
            kept = [number for number in range(5) if journal.has(f"packs/{number}", number)]
            assert kept == list(range(lines - 1))
            journal.note("packs/9", 9)
        with CopyJournal(path, "a", "b") as journal:
            assert journal.has("packs/9", 9)
            assert len(journal) == len(kept) + 1
    with CopyJournal(path, "a", "c") as journal:
        assert len(journal) == 0


def test_large_blobs_that_are_damaged_are_told_and_copied_as_they_are(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    name = next(name for name, _ in names(LocalStore(profile.home / "store")) if name.startswith("blobs/"))
    path = profile.home / "store" / name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"damaged")
    moved = move(profile, "elsewhere")
    assert moved.copied.damaged == [name]
    assert (profile.home / "elsewhere" / name).read_bytes() == path.read_bytes()
    with open_profile(profile.home) as anew:
        assert [one.name for one in scrub(anew).found] == [name]


def test_what_runners_may_deliver_is_waited_for(profile: Profile, nodes: list[gr.Folder]) -> None:
    campaign = gr.Campaign("far", profile)
    with profile.transaction() as cursor:
        cursor.execute("SELECT id FROM \"group\" WHERE label = 'far'")
        (campaign_id,) = cursor.fetchone() or (0,)
        cursor.execute(
            "INSERT INTO node (id, uuid, kind, user_id, node_type)"
            " VALUES (nextval('node_id'), gen_random_uuid(), 'calculation', %s,"
            " 'process.calculation.calcjob.CalcJobNode.') RETURNING id",
            (profile.user_id,),
        )
        (node_id,) = cursor.fetchone() or (0,)
        cursor.execute(
            "INSERT INTO process (node_id, state, attempt, campaign_id, queue_id, label)"
            " VALUES (%s, 'waiting', 1, %s, %s, 'x')",
            (node_id, campaign_id, campaign_id),
        )
        profile.index(cursor).promise(["packs/ab/promised.zip"], campaign_id)
    assert campaign is not None
    with pytest.raises(RepositoryBusy, match="runners of far may still deliver"):
        move(profile, "elsewhere")
    assert store_of(profile) == profile.home / "store"
    assert move(profile, "elsewhere", despite_deliveries=True).switched


def grange(profile: Profile, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grange", "--home", str(profile.home), "repository", "migrate", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command(profile: Profile, nodes: list[gr.Folder], tmp_path: Path) -> None:
    target = tmp_path / "there"
    profile.close()
    done = grange(profile, "--to", str(target), "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "13 objects" in done.stdout
    assert not target.exists()
    done = grange(profile, "--to", str(target), "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{target} is used from now on" in done.stdout
    assert store_of(profile) == target
    document = json.loads(
        grange(profile, "--to", str(profile.home / "store"), "--copy-only", "--json").stdout
    )
    assert (document["switched"], document["compared"]) == (False, 13)
    assert grange(profile).returncode == 2
    assert grange(profile, "--to", "x", "--bucket", "abc").returncode == 2
    done = grange(profile, "--to", str(target), "--yes")
    assert done.returncode == 1
    assert "another folder than" in done.stderr
    assert open_bare(profile.home, str(target)).head(names(LocalStore(target))[0][0])
