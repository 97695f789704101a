"""Deliveries into the store while everything is killed: who submits, the runners, the server of the store."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from delivery_site import (
    LABEL,
    SOME,
    blob_places,
    computer,
    large,
    no_secrets,
    profile_text,
    prune,
    right,
    rows_of,
)
from object_store import Gateway, ObjectStore

from grange.core import computer as computers
from grange.core.profile import Profile, open_profile
from grange.repository.s3_store import S3Store

COUNT = 120
SECONDS = 25.0


@pytest.fixture
def gateway(object_store: ObjectStore) -> Iterator[Gateway]:
    with object_store.spare_gateway() as gateway:
        yield gateway


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@pytest.fixture
def profile(
    tmp_path: Path, database_url: str, object_store: ObjectStore, bucket: str, gateway: Gateway, there: Path
) -> Iterator[Profile]:
    """A profile whose store is behind a gateway that goes away now and then, for us and for the nodes."""
    home = tmp_path / "home"
    home.mkdir()
    settings = object_store.settings(bucket, endpoint=gateway.endpoint)
    (home / "profile.toml").write_text(profile_text(database_url, settings))
    with open_profile(home) as opened:
        with opened.transaction() as cursor:
            computers.add(cursor, computer(there), user_id=opened.user_id)
        yield opened


SCRIPT = """
import sys
import grange as gr
sys.path.insert(0, sys.argv[1])
from delivery_site import large
large({count}, gr.open(sys.argv[2])).run(progress=False, executor={label!r})
"""


def runners(there: Path) -> list[int]:
    """The processes that run chunks."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = folder.joinpath("cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"run" in words and any(word.startswith(bytes(there)) for word in words):
                found.append(int(folder.name))
    return found


def kill_one(pids: list[int], draw: random.Random) -> bool:
    try:
        os.kill(draw.choice(pids), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


@pytest.mark.slow
def test_nothing_is_lost_whatever_is_killed(
    profile: Profile, there: Path, object_store: ObjectStore, bucket: str, gateway: Gateway
) -> None:
    draw = random.Random(4)
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", SCRIPT.format(count=COUNT, label=LABEL), tests, str(profile.home)]
    until = time.monotonic() + SECONDS
    submitter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    # each once while there is no end without the store, and then whatever comes
    while not kill_one(runners(there), draw):
        assert submitter.poll() is None
        time.sleep(0.01)
    gateway.kill()
    submitter.kill()
    submitter.wait()
    submitter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    gateway.start()
    while time.monotonic() < until and submitter.poll() is None:
        time.sleep(draw.uniform(0.5, 2.5))
        what = draw.choice(["submitter", "runner", "gateway"])
        if what == "submitter":
            submitter.kill()
            submitter.wait()
            submitter = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        elif what == "runner":
            kill_one(runners(there), draw)
        else:
            gateway.kill()
            time.sleep(draw.uniform(0.0, 2.0))
            gateway.start()
    submitter.kill()
    submitter.wait()

    campaign = large(COUNT, profile)
    done = campaign.run(progress=False, executor=LABEL)
    assert (done.done, done.failed) == (COUNT, 0), campaign.failures()["exit_message"].tolist()
    right(campaign, COUNT)
    assert rows_of(profile, "SELECT count(*) FROM process WHERE state = 'finished'") == [(COUNT,)]
    # what lies there is what is known, and nothing of it lies there twice
    prune(profile)
    store = S3Store(object_store.settings(bucket))
    sizes = {info.name: info.size for info in store.list()}
    assert set(blob_places(profile).values()) <= sizes.keys()
    assert sum(sizes.values()) < 1.1 * COUNT * SOME
    no_secrets(profile, object_store, profile.home / "spool", there)
