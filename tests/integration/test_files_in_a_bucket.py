"""Scrubbing, moving and fetching files on a real S3 server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import object_store as object_stores
import pytest

import grange as gr
from grange.core.fetch import fetch, nodes_in_folders, plan_fetch
from grange.core.profile import Profile, open_profile
from grange.core.profile_file import read_profile_file
from grange.core.scrub import scrub
from grange.core.store_move import move, open_bare, plan_move
from grange.repository import BlobQuarantined, LocalStore, Store, key_of
from grange.repository.cached_store import truth_of
from grange.repository.quarantine import QUARANTINE
from grange.repository.s3_settings import S3Settings

LARGE = random.Random(1).randbytes(20 << 20)


def noise(seed: int, size: int = 5000) -> bytes:
    return random.Random(seed).randbytes(size)


def text(seed: int) -> bytes:
    return f"line {seed}\n".encode() * 500


def filled(profile: Profile) -> list[gr.Folder]:
    made = [gr.Folder({"noise": noise(number), "text": text(number)}) for number in range(8)]
    made.append(gr.Folder({"large": LARGE}))
    for node in made:
        profile.store(node)
    return made


def names(store: Store) -> list[tuple[str, int]]:
    return sorted((info.name, info.size) for info in store.list())


def setting_of(profile: Profile) -> str | S3Settings:
    return read_profile_file(profile.home / "profile.toml").store


def damage(profile: Profile, content: bytes, change: Callable[[bytearray, int], bytes | bytearray]) -> str:
    """Put other bytes in the place of an object, as no store of ours would."""
    with profile.transaction() as cursor:
        row = profile.index(cursor).find([key_of(content)])[key_of(content)]
    store = truth_of(profile.repository.store)
    changed = change(bytearray(b"".join(store.read(row.object_name))), row.offset + row.stored_size // 2)
    store.delete([row.object_name])
    assert store.put_if_absent(row.object_name, bytes(changed))
    return row.object_name


def flip(content: bytearray, at: int) -> bytearray:
    content[at] ^= 1
    return content


@pytest.mark.parametrize("content", [noise(3), text(3), LARGE], ids=["stored", "deflated", "large"])
@pytest.mark.parametrize("change", [flip, lambda content, at: content[:at]], ids=["flipped", "cut off"])
def test_damage_is_found_under_the_cache_and_healed(
    bucket_profile: Profile, content: bytes, change: Callable[[bytearray, int], bytes]
) -> None:
    profile = bucket_profile
    nodes = filled(profile)
    assert profile.read_files([key_of(content)]) == [content]  # in the cache from now on
    assert scrub(profile).found == []
    name = damage(profile, content, change)
    done = scrub(profile, quarantine=True)
    assert key_of(content) in {one.key for one in done.found}
    assert {one.name for one in done.found} == {name}
    assert [hit.id for hit in done.hits] == [nodes[-1 if content is LARGE else 3].id]
    with pytest.raises(BlobQuarantined):
        profile.read_files([key_of(content)])
    store = truth_of(profile.repository.store)
    assert store.head(name) is None
    assert store.head(QUARANTINE + name)
    profile.store(gr.SingleFile(content, "again"))
    assert profile.read_files([key_of(content)]) == [content]
    assert scrub(profile, restart=True).found == []


def test_from_a_folder_to_a_bucket_to_another_and_back(
    profile: Profile, object_store: object_stores.ObjectStore, new_bucket: Callable[[], str]
) -> None:
    nodes = filled(profile)
    old = names(LocalStore(profile.home / "store"))
    first = object_store.settings(new_bucket())
    second = object_store.settings(new_bucket(), prefix="ours/files")
    planned = plan_move(profile, first)
    assert len(planned.plan.todo) == 9
    for target, there in ((first, 0), (second, 0), ("back", 0), (first, 9)):
        moved = move(profile, target)
        assert (moved.switched, moved.copied.objects, moved.copied.compared) == (True, 9 - there, there)
        assert setting_of(profile) == target
        assert names(open_bare(profile.home, target)) == old
        with open_profile(profile.home) as anew:
            assert scrub(anew, restart=True).found == []
            for node, loaded in zip(nodes, anew.load(*[node.id or 0 for node in nodes]), strict=True):
                assert loaded.read_files().keys() == node.files.keys()


MOVER = """
import sys
from grange.core.profile import open_profile
from grange.core.store_move import move
from grange.repository.s3_settings import S3Settings
with open_profile(sys.argv[1]) as profile:
    print("ready", flush=True)
    move(profile, S3Settings(*sys.argv[2:6], credentials_file=sys.argv[6]))
    print("done", flush=True)
"""


def test_killed_on_its_way_to_a_bucket_it_goes_on(
    profile: Profile, object_store: object_stores.ObjectStore, new_bucket: Callable[[], str]
) -> None:
    nodes = filled(profile)
    for number in range(100, 160):
        profile.repository.store.put_if_absent(f"packs/aa/{number:032}.zip", noise(number, 100_000))
    old = names(profile.repository.store)
    profile.close()
    target = object_store.settings(new_bucket(), prefix="files")
    arguments = [target.endpoint, target.bucket, target.prefix, target.region, target.credentials_file]
    chance = random.Random(5)
    kills = 0
    for _ in range(40):
        mover = subprocess.Popen(
            [sys.executable, "-c", MOVER, str(profile.home), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert mover.stdout is not None
        assert mover.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0.1, 0.6))
        mover.send_signal(signal.SIGKILL)
        if "done" in mover.communicate()[0]:
            break
        kills += 1
        with open_profile(profile.home) as anew:
            anew.load(nodes[0].id or 0)[0].read_files()
            if setting_of(anew) != "store":
                break
    assert kills > 0
    with open_profile(profile.home) as anew:
        if setting_of(anew) == "store":
            move(anew, target)
        assert names(open_bare(profile.home, target)) == old
        assert scrub(anew, restart=True).found == []


def test_files_are_fetched(bucket_profile: Profile, tmp_path: Path) -> None:
    nodes = filled(bucket_profile)
    plan = plan_fetch(bucket_profile, nodes_in_folders([node.id or 0 for node in nodes]))
    assert fetch(bucket_profile, plan, tmp_path / "out") == 0
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {
        **{f"{node.id}/noise": noise(number) for number, node in enumerate(nodes[:-1])},
        **{f"{node.id}/text": text(number) for number, node in enumerate(nodes[:-1])},
        f"{nodes[-1].id}/large": LARGE,
    }


def test_the_command_takes_a_bucket(
    profile: Profile, object_store: object_stores.ObjectStore, new_bucket: Callable[[], str]
) -> None:
    filled(profile)
    profile.close()
    target = object_store.settings(new_bucket(), https=True)
    words = [
        "--endpoint", target.endpoint, "--bucket", target.bucket, "--region", target.region,
        "--credentials-file", target.credentials_file, "--ca-file", target.ca_file,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "grange", "--home", profile.home, "repository", "migrate", "--yes", *words],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{target} is used from now on" in done.stdout
    with open_profile(profile.home) as anew:
        assert setting_of(anew) == target
        assert scrub(anew).found == []
