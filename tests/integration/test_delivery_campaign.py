"""Campaigns whose result packs and input files go between nodes and a real S3 store, past this machine."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cluster import Cluster
from delivery_site import (
    LABEL,
    SOME,
    blob_places,
    computer,
    large,
    large_ones,
    no_secrets,
    noise,
    profile_text,
    prune,
    right,
    rows_of,
)
from object_store import ObjectStore
from way_in import way_in

import grange as gr
from grange.cli.entry import run
from grange.core import computer as computers
from grange.core.delivery import delivery_of
from grange.core.engine import Progress
from grange.core.profile import Profile, open_profile
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.counting_transport import CountingTransport
from grange.farm.local_transport import LocalTransport
from grange.repository import key_of
from grange.repository.s3_store import S3Store


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """The work directory of the computer, which is this machine."""
    return tmp_path / "there"


@pytest.fixture
def profile(
    tmp_path: Path, database_url: str, object_store: ObjectStore, bucket: str, there: Path
) -> Iterator[Profile]:
    """A profile whose files are in a bucket, and which knows a computer that delivers there."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "profile.toml").write_text(
        profile_text(database_url, object_store.settings(bucket, prefix="a/b"))
    )
    with open_profile(home) as opened:
        with opened.transaction() as cursor:
            computers.add(cursor, computer(there), user_id=opened.user_id)
        yield opened


def wait_until(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.02)


def test_results_go_into_the_store_by_themselves(
    profile: Profile, there: Path, object_store: ObjectStore
) -> None:
    campaign = large(12, profile)
    done = campaign.run(progress=False, executor=LABEL)
    assert (done.done, done.failed) == (12, 0), campaign.failures()["exit_message"].tolist()
    places = blob_places(profile)
    assert {key_of(noise(n)) for n in range(12)} <= places.keys()
    promised = rows_of(profile, "SELECT name FROM pack WHERE campaign_id IS NOT NULL")
    assert set(places.values()) <= {name for (name,) in promised}
    right(campaign, 12)
    no_secrets(profile, object_store, profile.home / "spool", there)


class Passing:
    """An executor of a campaign, on a transport that counts what passes this machine."""

    def __init__(self, profile: Profile, campaign: gr.Campaign, there: Path, **changes: Any) -> None:
        self.transport = CountingTransport(LocalTransport())
        delivery = delivery_of(profile, campaign.id)
        assert delivery is not None
        self.executor = ClusterExecutor(
            profile.spool / f"campaign-{campaign.id}@{LABEL}",
            computer(there),
            self.transport,
            fetch=lambda keys: dict(zip(keys, profile.read_files(list(keys)), strict=True)),
            delivery=replace(delivery, **changes),
            flush_s=0.5,
        )
        self.executor.remote.prepare()
        self.before = self.transport.traffic

    @property
    def bytes(self) -> int:
        traffic = self.transport.traffic - self.before
        return traffic.bytes_in + traffic.bytes_out


def test_large_files_pass_this_machine_by(profile: Profile, there: Path) -> None:
    content = noise(99)
    job = gr.ShellJob(
        ["sh", "-c", f"sha256sum < {{file}}; head -c {SOME} /dev/urandom > out; echo {{n}} >> {{file}}"],
        outputs={"out": "out"},
    )
    campaign = gr.Campaign("inputs", profile)
    campaign.map(job, file=[gr.SingleFile(content, "in.dat")] * 6, n=range(6))
    way = Passing(profile, campaign, there)
    with way.executor:
        done = campaign.run(progress=False, executor=way.executor)
    assert (done.done, done.failed) == (6, 0), campaign.failures()["exit_message"].tolist()
    assert set(campaign.results()["stdout"]) == {f"{key_of(content)}  -\n"}
    assert {len(node.content) for node in campaign.results(nodes=True)["out"]} == {SOME}
    assert way.bytes < SOME / 4, "six times 300 kB each way"


def test_where_nodes_do_not_get_through_all_goes_as_before(
    profile: Profile, there: Path, object_store: ObjectStore, bucket: str
) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    content = noise(99)
    job = gr.ShellJob(["sh", "-c", f"sha256sum < {{file}}; head -c {SOME} /dev/zero; echo {{n}}"])
    campaign = gr.Campaign("inputs", profile)
    campaign.map(job, file=[gr.SingleFile(content, "in.dat")] * 3, n=range(3))
    signer = S3Store(object_store.settings(bucket, prefix="a/b", endpoint=endpoint))
    way = Passing(profile, campaign, there, signer=signer)
    with way.executor:
        notes: set[str] = set()
        done = campaign.run(progress=lambda progress: notes.add(progress.note), executor=way.executor)
    assert (done.done, done.failed) == (3, 0), campaign.failures()["exit_message"].tolist()
    assert any(endpoint.removeprefix("http://") in note for note in notes), notes
    assert way.bytes > SOME
    assert rows_of(profile, "SELECT count(*), max(attempt) FROM process") == [(3, 1)]


def test_a_store_that_is_away_when_we_look_is_waited_for(
    profile: Profile, there: Path, object_store: ObjectStore, bucket: str
) -> None:
    """Nodes reach it, we do not: what they have delivered is looked at once we do again."""
    with object_store.spare_gateway() as gateway:
        gateway.kill()
        notes: list[str] = []

        def listen(progress: Progress) -> None:
            if gateway.endpoint in progress.note and not notes:
                notes.append(progress.note)
                gateway.start()

        campaign = large(2, profile)
        ours = S3Store(object_store.settings(bucket, prefix="a/b", endpoint=gateway.endpoint))
        way = Passing(profile, campaign, there, store=ours)
        with way.executor:
            done = campaign.run(progress=listen, executor=way.executor)
    assert notes
    assert (done.done, done.failed) == (2, 0)
    right(campaign, 2)
    assert rows_of(profile, "SELECT count(*), max(attempt) FROM process") == [(2, 1)]


SCRIPT = """
import sys, time
from pathlib import Path
import grange as gr
from grange.core.intake import Intake
from grange.farm.cluster_executor import ClusterExecutor

def stay(*_):
    Path({mark!r}).touch()
    time.sleep(600)

if {place!r} == "before intake":
    Intake.record = stay
if {place!r} == "before the receipt is fetched":
    ClusterExecutor._take = stay
sys.path.insert(0, {tests!r})
from delivery_site import large
large(12, gr.open({home!r})).run(progress=False, executor={label!r})
"""


@pytest.mark.parametrize("place", ["before intake", "before the receipt is fetched"])
def test_kill_9_between_delivery_and_intake(
    profile: Profile, there: Path, tmp_path: Path, place: str, object_store: ObjectStore, bucket: str
) -> None:
    mark = tmp_path / "reached"
    script = SCRIPT.format(
        mark=str(mark), place=place, tests=str(Path(__file__).parents[1]), home=str(profile.home), label=LABEL
    )
    first = subprocess.Popen([sys.executable, "-c", script])
    wait_until(mark.exists)
    store = S3Store(object_store.settings(bucket, prefix="a/b"))
    wait_until(lambda: len(large_ones(store)) >= 2)
    delivered = large_ones(store)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert rows_of(profile, "SELECT count(*) FROM process WHERE state <> 'waiting'") == [(0,)]
    # nobody who tidies up meanwhile takes it away
    prune(profile)
    assert delivered <= large_ones(store)
    campaign = large(12, profile)
    done = campaign.run(progress=False, executor=LABEL)
    assert (done.done, done.failed) == (12, 0)
    right(campaign, 12)
    assert rows_of(profile, "SELECT count(*) FROM process") == [(12,)]
    ran = {path.name: path.read_text() for path in (tmp_path / "tally").iterdir()}
    assert ran == {str(n): "x" for n in range(12)}, "what was delivered was not computed again"
    # nothing lies there twice, nothing that nobody knows of
    assert delivered <= large_ones(store) == set(blob_places(profile).values())
    assert sum(info.size for info in store.list()) < 13 * SOME
    no_secrets(profile, object_store, profile.home / "spool", there)


def test_what_comes_when_nobody_waits_for_it_is_pruned(
    profile: Profile, object_store: ObjectStore, bucket: str
) -> None:
    """A runner that was stopped puts its packs once its campaign is done."""
    campaign = large(2, profile)
    delivery = delivery_of(profile, campaign.id)
    assert delivery is not None
    late = delivery.urls("run-1", "chunk-000001", 2, ())["put"]
    store = S3Store(object_store.settings(bucket, prefix="a/b"))
    put(late[0][1], noise(50))
    assert campaign.run(progress=False, executor=LABEL).done == 2
    put(late[1][1], noise(51))
    assert {name for name, _ in late} < large_ones(store)
    prune(profile)
    assert large_ones(store) == set(blob_places(profile).values())
    right(campaign, 2)


def put(url: str, content: bytes) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("PUT", f"{parts.path}?{parts.query}", content, {"If-None-Match": "*"})
    assert connection.getresponse().status == 200


def test_a_pack_that_has_vanished_gives_no_row(
    profile: Profile, there: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore, bucket: str
) -> None:
    """Somebody empties the bucket between the look at a pack and the record of it."""
    store = S3Store(object_store.settings(bucket, prefix="a/b"))
    deliver = ClusterExecutor._deliver

    def late(self: ClusterExecutor, run: Any, path: Path) -> None:
        deliver(self, run, path)
        store.delete(large_ones(store))

    monkeypatch.setattr(ClusterExecutor, "_deliver", late)
    campaign = large(1, profile)
    done = campaign.run(progress=False, executor=LABEL)
    assert (done.done, done.failed) == (1, 1)
    assert "not in the store any more" in campaign.failures()["exit_message"].tolist()[0]
    assert blob_places(profile) == {}


def test_what_a_receipt_claims_wrongly_is_computed_again(
    profile: Profile, there: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore, bucket: str
) -> None:
    """The first pack is taken out of the store before anybody has looked at it."""
    store = S3Store(object_store.settings(bucket, prefix="a/b"))
    monkeypatch.setattr("grange.farm.cluster_executor.LOST_S", 0.5)
    monkeypatch.setattr("grange.farm.cluster_executor.LOOK_AGAIN_S", 0.2)
    look = ClusterExecutor._refuse_untrue
    taken: list[str] = []

    def robbed(self: ClusterExecutor, run: Any, path: Path) -> None:
        if not taken:
            taken.extend(large_ones(store))
            store.delete(taken)
        look(self, run, path)

    monkeypatch.setattr(ClusterExecutor, "_refuse_untrue", robbed)
    campaign = large(2, profile)
    done = campaign.run(progress=False, executor=LABEL)
    assert taken
    assert (done.done, done.failed) == (2, 0)
    right(campaign, 2)
    assert not set(taken) & set(blob_places(profile).values())


# Nodes of a cluster


@pytest.mark.parametrize("restricted", [False, True])
def test_from_the_nodes_of_a_cluster(
    profile: Profile,
    cluster: Cluster,
    object_store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    restricted: bool,
) -> None:
    """Slurm, HyperQueue and SSH are real; the nodes have no credentials of the store."""
    make = cluster.restricted_computer if restricted else cluster.computer
    far = make("far", delivery="store")
    with profile.transaction() as cursor:
        computers.add(cursor, far, user_id=profile.user_id)
    with way_in(cluster, object_store.endpoint):
        if far.hyperqueue != "none":
            arguments = ["allocation", "start", "far", "--nodes", "2", "--time", "10m"]
            assert run(["--home", str(profile.home), *arguments]) == 0
            capsys.readouterr()
        status, steps = examined(profile, "far", capsys)
        assert (status, steps["store"]["state"]) == (0, "ok"), steps
        content = noise(99)
        job = gr.ShellJob(
            ["sh", "-c", f"sha256sum < {{file}}; head -c {SOME} /dev/urandom > out; echo {{n}} >> {{file}}"],
            outputs={"out": "out"},
        )
        campaign = gr.Campaign("far", profile)
        campaign.map(job, file=[gr.SingleFile(content, "in.dat")] * 20, n=range(20))
        done = campaign.run(progress=False, executor="far")
        cluster.cancel_all()
    assert (done.done, done.failed) == (20, 0), campaign.failures()["exit_message"].tolist()
    assert set(campaign.results()["stdout"]) == {f"{key_of(content)}  -\n"}
    assert {len(node.content) for node in campaign.results(nodes=True)["out"]} == {SOME}
    promised = rows_of(
        profile,
        "SELECT count(*) FROM pack WHERE campaign_id IS NOT NULL AND dead_since IS NULL "
        f"AND id IN (SELECT pack_id FROM blob WHERE size = {SOME})",
    )
    assert promised[0][0] > 0
    found = cluster.shell(f"grep -rlF X-Amz-Signature {far.work_dir} --exclude=*.py || true")
    assert found == "", "a URL is left there"


# grange computer test


def examined(profile: Profile, label: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = run(["--home", str(profile.home), "computer", "test", label, "--json", "--timeout", "60"])
    said = capsys.readouterr()
    return status, {step["name"]: step for step in map(json.loads, said.out.splitlines())}


def test_the_test_of_a_computer_tries_the_store(
    profile: Profile, capsys: pytest.CaptureFixture[str], object_store: ObjectStore, bucket: str
) -> None:
    status, steps = examined(profile, LABEL, capsys)
    assert (status, steps["store"]["state"]) == (0, "ok"), steps
    assert "straight into" in steps["store"]["detail"]
    assert steps["spool"]["state"] == "ok"
    left = [one.name for one in S3Store(object_store.settings(bucket, prefix="a/b")).list()]
    assert [name for name in left if not name.startswith("owner/")] == [], "nothing is left there"


def test_the_test_of_a_computer_whose_nodes_do_not_reach_the_store(
    profile: Profile, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behind = computer(there, label="behind", prepend_text="export http_proxy=http://127.0.0.1:9 no_proxy=")
    with profile.transaction() as cursor:
        computers.add(cursor, behind, user_id=profile.user_id)
    status, steps = examined(profile, "behind", capsys)
    assert (status, steps["store"]["state"]) == (1, "failed"), steps
    assert "refused" in steps["store"]["detail"]
    assert "--delivery ssh" in steps["store"]["advice"]
    assert steps["spool"]["state"] == "ok"
