"""docs/backup.md does what it says: its commands are run, and every content is compared with its key."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import object_store as object_stores
import pytest

import grange as gr
from grange.core.database_dump import _programs, _version, dump, restore
from grange.core.errors import DatabaseUnavailable, InputInvalid, InUse
from grange.core.postgres import find_binaries, stop_server
from grange.core.profile import Profile, open_profile
from grange.core.profile_edit import set_store
from grange.core.scrub import scrub
from grange.core.store_move import move
from grange.core.upkeep import upkeep
from grange.repository import key_of
from grange.repository.prune_plan import plan_prune
from grange.repository.pruning import prune
from grange.repository.quarantine import evidence_of, notes

PAGE = Path(__file__).resolve().parents[2] / "docs" / "backup.md"
BACK_UP, RESTORE, HEAL = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
LARGE = random.Random(0).randbytes(10 << 20)


def noise(seed: int, size: int = 3000) -> bytes:
    return random.Random(seed).randbytes(size)


def run(block: str, **places: Path) -> subprocess.CompletedProcess[str]:
    """Run a block of the page as a person would, with its variables set."""
    environment = {
        **os.environ,
        **{name: str(place) for name, place in places.items()},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def new_home(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Homes with embedded servers, which end with the test."""
    made = []

    def make(name: str) -> Path:
        made.append(tmp_path / name)
        return made[-1]

    yield make
    for home in made:
        if (home / "postgres").is_dir():
            stop_server(home / "postgres", force=True)


def everything(profile: Profile) -> dict[str, dict[str, bytes]]:
    """All nodes that have files, with their contents, by uuid."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT id FROM node WHERE repository_metadata <> '{}' ORDER BY id")
        ids = [row[0] for row in cursor.fetchall()]
    return {node.uuid or "": node.read_files() for node in profile.load(*ids)} if ids else {}


def filled(home: Path) -> dict[str, dict[str, bytes]]:
    with open_profile(home) as profile:
        for number in range(10):
            profile.store(gr.Folder({"a": noise(number), "b/c": b"same"}, label=f"number {number}"))
        profile.store(gr.SingleFile(LARGE, "large"))
        profile.create_group("mine", [1, 2])
        return everything(profile)


def test_as_the_page_says(new_home: Callable[[str], Path], tmp_path: Path) -> None:
    def double(n: int) -> int:
        return 2 * n

    old, new, backup = new_home("old"), new_home("new"), tmp_path / "backup"
    before = filled(old)
    backup.mkdir()
    run(BACK_UP, GRANGE_HOME=old, BACKUP=backup)
    stop_server(old / "postgres", force=True)
    (old / "store").rename(tmp_path / "lost")
    done = run(RESTORE, NEW_HOME=new, BACKUP=backup)
    assert "all of it is well" in done.stdout
    assert "checked 12 contents in 11 objects" in done.stdout
    with open_profile(new) as profile:
        assert everything(profile) == before
        assert [group.label for group in profile.groups()] == ["mine"]
        profile.store(gr.Folder({"goes": b"on"}))
        campaign = gr.Campaign("goes-on", profile)
        campaign.map(double, n=[1, 2])
        campaign.run(progress=False)
        frame = campaign.results()
        assert list(frame["exit_status"]) == [0, 0], frame.to_dict()
        assert list(frame["result"]) == [2, 4]


def test_what_is_damaged_comes_back_from_the_backup(new_home: Callable[[str], Path], tmp_path: Path) -> None:
    home, backup = new_home("home"), tmp_path / "backup"
    before = filled(home)
    backup.mkdir()
    run(BACK_UP, GRANGE_HOME=home, BACKUP=backup)
    # one pack of the store is overwritten, one is gone, the large one is cut off; and the backup is not whole
    packs = sorted((home / "store" / "packs").rglob("*.zip"))
    large = next((home / "store" / "blobs").rglob("????????*"))
    for path in (packs[0], large):
        path.chmod(0o600)
    packs[0].write_bytes(bytes(packs[0].stat().st_size))
    packs[1].unlink()
    os.truncate(large, 1000)
    lost = backup / "store" / packs[1].relative_to(home / "store")
    lost.rename(tmp_path / "lost.zip")
    with pytest.raises(AssertionError, match="damaged there, too: "):
        run(HEAL, GRANGE_HOME=home, BACKUP=backup)
    # elsewhere in the copy it is found, too
    (backup / "store" / "packs" / "ff").mkdir(exist_ok=True)
    (tmp_path / "lost.zip").rename(backup / "store" / "packs" / "ff" / f"{'f' * 32}.zip")
    run(HEAL, GRANGE_HOME=home, BACKUP=backup)
    with open_profile(home) as profile:
        assert everything(profile) == before
        done = scrub(profile, restart=True)
        assert (done.found, done.unknown) == ([], [])
        # what was damaged is kept until somebody clears it away
        store = profile.repository.store
        assert len(evidence_of(store)) == 2
        lost_too = profile.repository.store.put_if_absent("quarantine/packs/aa/x.zip", b"of another note")
        assert lost_too
    info = run("grange repository info", GRANGE_HOME=home).stdout
    assert "in quarantine" in info
    assert "3 damaged objects" in info
    said = run("grange repository heal --clear --yes", GRANGE_HOME=home).stdout
    assert said == "removed from quarantine: 3 damaged objects\n"  # one of which had been gone
    with open_profile(home) as profile:
        assert [found.name for found in evidence_of(profile.repository.store)] == [
            "quarantine/packs/aa/x.zip"
        ]
        assert list(notes(profile.repository.store)) == []
    said = run("grange repository heal --clear --yes", GRANGE_HOME=home).stdout
    assert said == "nothing is missing, and nothing to be removed\n"


WRITER = """
import itertools, random, sys
import grange as gr
from grange.core.profile import open_profile
with open_profile(sys.argv[1]) as profile:
    for number in itertools.count(int(sys.argv[2])):
        content = random.Random(number).randbytes(3000)
        profile.store(gr.Folder({"w": content, "same": b"same"}, label=str(number)))
        print(number, flush=True)
"""


def test_while_others_store_and_prune_and_repack(new_home: Callable[[str], Path], tmp_path: Path) -> None:
    """What was stored when the dump began is in the restored profile, and nothing in it is missing."""
    old, new, backup = new_home("old"), new_home("new"), tmp_path / "backup"
    filled(old)
    backup.mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(old), str(start)], stdout=subprocess.PIPE, text=True
        )
        for start in (1_000_000, 2_000_000)
    ]
    pruner = subprocess.Popen(
        ["bash", "-c", "while true; do grange repository prune --yes; grange repository repack --yes; done"],
        env={
            **os.environ,
            "GRANGE_HOME": str(old),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        acknowledged = []
        for writer in writers:
            assert writer.stdout is not None
            acknowledged += [int(writer.stdout.readline()) for _ in range(30)]
        run(BACK_UP, GRANGE_HOME=old, BACKUP=backup)
        # nodes go, and what they had is pruned, after the dump
        with open_profile(old) as profile:
            with profile.transaction() as cursor:
                cursor.execute("DELETE FROM node WHERE label LIKE 'number%'")
            with upkeep(profile) as index:
                missing = index.mark()
                store = profile.repository.store
                plan = plan_prune(
                    index.uses(), store.list(), now_s=time.time(), grace_s=86_400.0, missing=missing
                )
                prune(store, index, plan)
        run(BACK_UP.splitlines()[1], GRANGE_HOME=old, BACKUP=backup)
    finally:
        for process in (*writers, pruner):
            if process is pruner:
                os.killpg(process.pid, 9)
            process.kill()
            process.wait()
    done = run(RESTORE, NEW_HOME=new, BACKUP=backup)
    assert "all of it is well" in done.stdout
    with open_profile(new) as profile:
        found = everything(profile)
        contents = [content for files in found.values() for content in files.values()]
        assert {key_of(noise(number)) for number in acknowledged} <= {key_of(content) for content in contents}
        assert {key_of(noise(number)) for number in range(10)} <= {key_of(content) for content in contents}


def test_a_bucket_and_a_database_on_a_server(
    bucket_profile: Profile,
    object_store: object_stores.ObjectStore,
    new_bucket: Callable[[], str],
    new_database: Callable[..., str],
    tmp_path: Path,
) -> None:
    old, copy = bucket_profile, object_store.settings(new_bucket(), prefix="copy")
    for number in range(5):
        old.store(gr.Folder({"a": noise(number)}))
    old.store(gr.SingleFile(LARGE, "large"))
    before = everything(old)
    file = tmp_path / "grange.dump"
    assert dump(old.home, file) == file.stat().st_size > 1000
    assert file.stat().st_mode & 0o777 == 0o600
    old.store(gr.Folder({"later": b"later"}))
    assert not move(old, copy, copy_only=True).switched

    home = tmp_path / "restored"
    home.mkdir(0o700)
    (home / "profile.toml").write_text(f'database = "{new_database("template0")}"\n')
    set_store(home / "profile.toml", copy)
    restore(home, file)
    with open_profile(home) as profile:
        assert everything(profile) == before
        done = scrub(profile)
        assert (done.found, done.state.complete, done.blobs) == ([], True, 6)
        # what was stored after the dump is not known, and goes
        with upkeep(profile) as index:
            assert index.mark() == 0
            plan = plan_prune(index.uses(), profile.repository.store.list(), now_s=time.time() + 1, grace_s=0)
            assert [doomed.reason for doomed in plan.now] == ["orphan"]


def test_what_is_in_use_is_not_restored_into(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "grange.dump"
    dump(profile.home, file)
    with pytest.raises(InputInvalid, match="a name that is not taken"):
        dump(profile.home, file)
    restore(profile.home, file)  # nothing is in it but its tables
    profile.store(gr.Int(1))
    with pytest.raises(InUse, match="in use"):
        restore(profile.home, file)
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        assert cursor.fetchone() == (1,)


def test_programs_of_the_servers_own_version_are_taken(tmp_path: Path) -> None:
    newest = _version(find_binaries())
    assert _programs(newest, None) == find_binaries()
    with pytest.raises(DatabaseUnavailable, match=f"the server is PostgreSQL {newest + 1}, and no pg_dump"):
        _programs(newest + 1, None)
    older = tmp_path / "older"
    older.mkdir()
    (older / "pg_dump").write_text(
        f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {newest - 1}.3 (Debian {newest}.9)'\n"
    )
    (older / "pg_dump").chmod(0o700)
    assert _programs(newest - 1, older) == older
    assert _programs(newest, older) == find_binaries()
    assert _version(tmp_path) == 0


def test_what_is_no_dump_changes_nothing(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "grange.dump"
    with pytest.raises(InputInvalid, match="a file that"):
        restore(profile.home, file)
    dump(profile.home, file)
    content = file.read_bytes()
    for damaged in (b"nothing", content[: len(content) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(DatabaseUnavailable, match="pg_restore has failed"):
            restore(profile.home, file)


def test_the_commands(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "grange.dump"
    words = [sys.executable, "-m", "grange", "--home", str(profile.home), "database"]
    done = subprocess.run([*words, "dump", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file}, ")
    done = subprocess.run([*words, "restore", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "restored\n"), done.stderr
    status = subprocess.run(
        [sys.executable, "-m", "grange", "--home", str(profile.home), "repository", "info", "--json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(status.stdout)["blobs"] == 0
