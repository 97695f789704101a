"""Campaigns whose files are in a bucket of a real S3 server, which may go away for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore

import grange as gr
from grange.core.engine import Progress
from grange.core.profile import Profile, open_profile
from grange.repository import Repository
from grange.repository.retries import Retries
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store


def profile_text(database_url: str, settings: S3Settings) -> str:
    lines = [f"{key} = {value!r}" for key, value in settings.to_table().items()]
    return "\n".join([f'database = "{database_url}"', "[store]", *lines, ""])


@pytest.fixture
def profile(tmp_path: Path, database_url: str, object_store: ObjectStore, bucket: str) -> Iterator[Profile]:
    """A profile whose files are in a bucket, as profile.toml says."""
    home = tmp_path / "home"
    home.mkdir()
    settings = object_store.settings(bucket, prefix="alloys/2026")
    (home / "profile.toml").write_text(profile_text(database_url, settings))
    with open_profile(home) as opened:
        yield opened


def shouting(count: int, profile: Profile, label: str = "shouting") -> gr.Campaign:
    """Each call reads a file, and leaves two."""
    job = gr.ShellJob(
        ["sh", "-c", "tr a-z A-Z < in; cat in in > twice; sleep 0.03", "{number}"],
        files={"in": "the content of {number}\n"},
        outputs={"twice": "twice"},
        label="shout",
    )
    campaign = gr.Campaign(label, profile)
    campaign.map(job, number=range(count))
    return campaign


def right(campaign: gr.Campaign, count: int) -> None:
    frame = campaign.results(nodes=True)
    assert [node.value for node in frame["stdout"]] == [f"THE CONTENT OF {n}\n" for n in range(count)]
    assert [node.content for node in frame["twice"]] == [b"the content of %d\n" % n * 2 for n in range(count)]


ELSEWHERE = """
import grange as gr
frame = gr.Campaign("shouting", gr.open()).results(nodes=True)
print("".join(node.content.decode() for node in frame["twice"]), end="")
"""


def test_files_go_to_the_bucket_and_come_back(
    profile: Profile, object_store: ObjectStore, bucket: str
) -> None:
    campaign = shouting(50, profile)
    done = campaign.run(progress=False)
    assert (done.done, done.failed) == (50, 0), campaign.failures()["exit_message"].tolist()
    right(campaign, 50)
    found = [one["Key"] for one in object_store.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert [name for name in found if name.startswith("alloys/2026/packs/")]
    assert all(name.startswith("alloys/2026/") for name in found), found
    assert not (profile.home / "store").exists()
    access, secret = object_store.keys()
    for path in profile.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content, path
            assert access.encode() not in content, path
    elsewhere = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        env={**os.environ, "GRANGE_HOME": str(profile.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert elsewhere.stdout == "".join(f"the content of {n}\n" * 2 for n in range(50))


def test_a_campaign_waits_for_a_store_that_is_away(
    profile: Profile, object_store: ObjectStore, bucket: str
) -> None:
    with object_store.spare_gateway() as gateway:
        settings = object_store.settings(bucket, endpoint=gateway.endpoint)
        retries = Retries(patience_s=1)
        profile._repository = Repository(RetryingStore(S3Store(settings, retries), retries))
        notes: list[str] = []
        gone = threading.Event()

        def go_away() -> None:
            gone.wait(60)
            gateway.kill()
            time.sleep(5)
            gateway.start()

        def listen(progress: Progress) -> None:
            if progress.note:
                notes.append(progress.note)
            if progress.done > 30:
                gone.set()

        campaign = shouting(400, profile)
        away = threading.Thread(target=go_away)
        away.start()
        done = campaign.run(progress=listen)
        away.join()
        assert (done.done, done.failed) == (400, 0)
        assert any("waiting for the store" in note and gateway.endpoint in note for note in notes), notes[-3:]
        right(campaign, 400)
        with profile.transaction() as cursor:
            cursor.execute("SELECT count(*), max(attempt) FROM process")
            assert cursor.fetchone() == (400, 1)


def test_ctrl_c_does_not_wait_for_a_store_that_is_away(
    profile: Profile, object_store: ObjectStore, bucket: str
) -> None:
    """What has come stays in the spool; the next run records it. At its beginning, too, Ctrl-C is heard."""
    with object_store.spare_gateway() as gateway:
        settings = object_store.settings(bucket, endpoint=gateway.endpoint)
        retries = profile.retries
        profile._repository = Repository(RetryingStore(S3Store(settings, retries), retries))
        gone = threading.Event()

        def go_away() -> None:
            gone.wait(60)
            gateway.kill()
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGINT)

        def listen(progress: Progress) -> None:
            if progress.done > 30:
                gone.set()

        away = threading.Thread(target=go_away)
        away.start()
        campaign = shouting(400, profile)
        with pytest.raises(
            gr.CampaignInterrupted, match="what came last is kept here until the store answers"
        ):
            campaign.run(progress=listen)
        away.join()
        assert retries.on_retry is None
        timer = threading.Timer(2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(gr.CampaignInterrupted):
            shouting(400, profile).run(progress=False)
        assert time.monotonic() - began < 30
        gateway.start()
        campaign = shouting(400, profile)
        done = campaign.run(progress=False)
        assert (done.total, done.failed) == (400, 0)
        right(campaign, 400)
