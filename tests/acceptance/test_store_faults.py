"""A bucket behind a bad way to it: what passes is tried again, what does not is said at once, none is lost.

The server is real; a proxy between it and the store (fault_proxy.py) does the damage.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_plan import (
    Answer,
    Corrupt,
    Cut,
    Delay,
    Fault,
    Lose,
    Plan,
    Request,
    Reset,
    Stall,
    by_chance,
    first,
    nothing,
)  # fmt: skip
from fault_proxy import FaultProxy, TlsProxy
from object_store import ObjectStore

from grange.core import database
from grange.core.blob_index import PostgresIndex
from grange.repository import (
    BlobCorrupt,
    BlobMissing,
    MemoryIndex,
    Repository,
    Store,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    s3_session,
)
from grange.repository.cached_store import CachedStore
from grange.repository.key import key_of
from grange.repository.retries import Retries
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

CONTENT = random.Random(1).randbytes(300_000)
LONG = random.Random(2).randbytes(3_000_000)
MIB = 1 << 20


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    with FaultProxy(object_store.endpoint) as running:
        yield running


@pytest.fixture
def settings(object_store: ObjectStore, bucket: str, proxy: FaultProxy) -> S3Settings:
    """A bucket behind the proxy."""
    return object_store.settings(bucket, endpoint=proxy.endpoint)


def opened(settings: S3Settings, cache: Path, retries: Retries | None = None) -> CachedStore:
    """As a profile opens it, but quicker to try again."""
    retries = retries or Retries(first_pause_s=0.02)
    return CachedStore(RetryingStore(S3Store(settings, retries), retries), cache, 1 << 30)


def retries_of(store: CachedStore) -> Retries:
    inner = store.store
    assert isinstance(inner, RetryingStore)
    return inner.retries


#: Everything that a store does, and what comes of it.
DEEDS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put_if_absent("packs/new", CONTENT),
    "put again": lambda store: store.put_if_absent("packs/a", b"other"),
    "read": lambda store: b"".join(store.read("packs/long")) == LONG,
    "ranges": lambda store: (
        store.get_ranges("packs/a", [(0, 9), (200_000, 90_000)]) == [CONTENT[:9], CONTENT[200_000:290_000]]
    ),
    "head": lambda store: store.head("packs/long") == len(LONG),
    "head of none": lambda store: store.head("packs/none") is None,
    "list": lambda store: {info.name for info in store.list("packs/")} >= {"packs/a", "packs/long"},
    "delete": lambda store: store.delete(["packs/a", "packs/none"]) is None and store.head("packs/a") is None,
}


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503, "SlowDown", {"Retry-After": "0"}),
        Answer(500, "InternalError"),
        Answer(429, "TooManyRequests"),
        Reset(),
        Reset(100, "up"),
        Reset(70_000),
        Reset(70_000, "up"),
        Cut(2_000_000),
        Lose(),
        Lose(Answer(503, "SlowDown")),
        Delay(0.1),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again(
    proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path, fault: Fault
) -> None:
    fill(object_store, settings)
    for deed, do in DEEDS.items():
        store = opened(settings, tmp_path / f"cache {deed}")
        store.head("packs/a")  # the connection is there, and lost
        proxy.injected.clear()
        proxy.plan = first(3, fault)
        right = do(store)
        proxy.plan = nothing
        # A put that was done, and its answer lost, finds its own object.
        assert right is (deed != "put again") or (deed == "put" and isinstance(fault, Lose)), deed
        assert (retries_of(store).retried > 0) == (not isinstance(fault, Delay)), deed
        assert retries_of(store).retried <= proxy.injected.total(), deed
        held = {name: content_of(object_store, settings, name) for name in listed(object_store, settings)}
        assert held == {"packs/new": CONTENT, "packs/long": LONG} | (
            {"packs/a": CONTENT} if deed != "delete" else {}
        )


@pytest.mark.parametrize("fault", [Stall(), Stall(70_000, "up")], ids=repr)
def test_what_does_not_answer_in_time_is_tried_again(
    proxy: FaultProxy,
    settings: S3Settings,
    object_store: ObjectStore,
    tmp_path: Path,
    fault: Fault,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_session, "ANSWER_TIMEOUT_S", 0.4)
    monkeypatch.setattr(s3_session, "PUT_TIMEOUT_S", 0.8)
    fill(object_store, settings)
    for deed, do in DEEDS.items():
        store = opened(settings, tmp_path / f"cache {deed}")
        store.head("packs/a")
        proxy.injected.clear()
        proxy.plan = first(1, fault)
        assert do(store) is (deed != "put again"), deed
        assert proxy.injected == {"Stall": 1}
        assert retries_of(store).retried == 1


def test_bytes_that_change_on_their_way_are_noticed(
    proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    """There by the server, by their SHA-256; back by the reader, by their key: both go again."""
    repository, index = Repository(opened(settings, tmp_path / "cache"), pack_target_bytes=MIB), MemoryIndex()
    contents = [random.Random(number).randbytes(5000) for number in range(500)]
    long = random.Random(0).randbytes(50 * MIB)
    puts = first(2, Corrupt(1234, "up"), where=lambda request: request.method == "PUT" and request.size > MIB)
    proxy.plan = puts
    keys, rows = repository.put([*contents, long], index)
    index.add(rows)
    assert proxy.injected == {"Corrupt": 2}
    proxy.plan = first(3, Corrupt(1234), where=lambda request: request.method == "GET")
    assert repository.read(keys, index) == [*contents, long]
    assert proxy.injected == {"Corrupt": 5}
    # What came back wrong was not kept either.
    assert repository.read(keys, index) == [*contents, long]


def test_refused_connections_are_tried_again(
    proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    fill(object_store, settings)
    for deed, do in DEEDS.items():
        store = opened(settings, tmp_path / f"cache {deed}")
        proxy.refuse()
        back = threading.Timer(0.5, proxy.accept)
        back.start()
        assert do(store) is (deed != "put again"), deed
        assert retries_of(store).retried > 0
        back.join()


def test_tls_connections_that_break_are_made_again(
    object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    fill(object_store, object_store.settings(bucket))
    # In the handshake, after it, in a long answer; every fifth connection is good.
    faults = [Reset(), Cut(500), Reset(1600), Cut(1_000_000), None]
    with TlsProxy(object_store.https_endpoint, plan=lambda number: faults[number % 5]) as proxy:
        settings = replace(object_store.settings(bucket, https=True), endpoint=proxy.endpoint)
        for deed, do in DEEDS.items():
            store = opened(settings, tmp_path / f"cache {deed}")
            assert do(store) is (deed != "put again"), deed
        assert proxy.injected.total() > 10


def test_it_gives_up_within_its_bounds_and_pauses_at_random(
    proxy: FaultProxy, settings: S3Settings, tmp_path: Path
) -> None:
    pauses: list[float] = []
    patient = Retries(tries=1000, patience_s=2.0, first_pause_s=0.05, longest_pause_s=0.3,
                      on_retry=lambda _, pause_s: pauses.append(pause_s))  # fmt: skip
    few = Retries(tries=4, patience_s=1000.0, first_pause_s=0.01)
    for retries, fault in ((patient, Answer()), (few, Reset())):
        proxy.plan = first(1000, fault)
        began = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=rf"{settings.bucket} at {proxy.endpoint}.*; tried "
        ) as told:
            opened(settings, tmp_path / "cache", retries).get_ranges("packs/a", [(0, 1)])
        assert time.monotonic() - began < 20
        assert told.value.tries == retries.retried + 1
        assert retries.given_up == 1
    assert few.retried == 3
    assert all(pause <= min(0.3, 0.05 * 2**number) for number, pause in enumerate(pauses))
    assert len({round(pause, 6) for pause in pauses}) == len(pauses) >= 4
    assert max(pauses) > 0.05


# ---------------------------------------------------------------- what does not pass


def told_at_once(
    proxy: FaultProxy, settings: S3Settings, tmp_path: Path, *deeds: str
) -> dict[str, StoreError]:
    """What each deed is told, without having been tried again."""
    told = {}
    for deed in deeds or DEEDS:
        store = opened(settings, tmp_path / "cache")
        began, before = time.monotonic(), len(proxy.requests)
        with pytest.raises(StoreError) as raised:
            DEEDS[deed](store)
        told[deed] = raised.value
        assert time.monotonic() - began < 5
        assert not isinstance(told[deed], StoreUnavailable), told[deed]
        assert retries_of(store).retried == retries_of(store).given_up == 0
        # Two of them find out what the server can do.
        assert len(proxy.requests) - before <= 3, deed
        assert settings.endpoint in str(told[deed])
        assert settings.bucket in str(told[deed])
    return told


def test_wrong_credentials(
    proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path
) -> None:
    access, _ = object_store.keys()
    file = tmp_path / "credentials"
    file.write_text(
        f"[wrong]\naws_access_key_id = {access}\naws_secret_access_key = not-the-secret\n"
        "[unknown]\naws_access_key_id = NOBODY\naws_secret_access_key = nothing\n"
    )
    settings = replace(settings, credentials_file=str(file))
    for section, words in (
        ("wrong", "the secret key does not belong to the access key"),
        ("unknown", "does not know this access key"),
    ):
        for told in told_at_once(proxy, replace(settings, aws_profile=section), tmp_path).values():
            assert words in str(told)
            assert str(file) in str(told)
            assert "not-the-secret" not in str(told)


def test_no_bucket(proxy: FaultProxy, settings: S3Settings, tmp_path: Path) -> None:
    for told in told_at_once(proxy, replace(settings, bucket="no-such-bucket"), tmp_path).values():
        assert "there is no such bucket" in str(told)
        assert "grange repository init" in str(told)


SKEWED = """
import json, sys
from pathlib import Path
from grange.repository.errors import StoreError
from grange.repository.s3_settings import S3Settings
from test_store_faults import DEEDS, opened, retries_of
told = {}
for deed, do in DEEDS.items():
    store = opened(S3Settings(**json.loads(sys.argv[1])), Path(sys.argv[2]))
    try:
        do(store)
    except StoreError as error:
        told[deed] = [type(error).__name__, str(error), retries_of(store).retried]
print(json.dumps(told))
"""


@pytest.mark.parametrize("shift", ["+1h", "-1h"])
def test_clocks_that_differ(
    object_store: ObjectStore, settings: S3Settings, tmp_path: Path, shift: str
) -> None:
    """The client's clock is wrong: its process runs under faketime."""
    fill(object_store, settings)
    argv = [
        "faketime",
        "-f",
        shift,
        sys.executable,
        "-c",
        SKEWED,
        json.dumps(settings.to_table()),
        str(tmp_path),
    ]
    tests = Path(__file__).resolve().parents[1]
    said = subprocess.run(
        argv,
        env={**os.environ, "PYTHONPATH": f"{tests}:{tests / 'acceptance'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert told.keys() == DEEDS.keys()
    for deed, (kind, words, retried) in told.items():
        assert kind == "StoreError", (deed, words)
        assert "the clocks of this machine and of the server differ too much" in words, deed
        assert settings.endpoint in words
        assert settings.bucket in words
        assert retried == 0


def test_no_right(proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path) -> None:
    object_store.add_user("reader")
    for deed, told in told_at_once(proxy, replace(settings, aws_profile="reader"), tmp_path).items():
        assert "this user has not the right to" in str(told)
        assert isinstance(told, StoreReadOnly) == (deed in ("put", "put again", "delete")), deed


def test_no_room(proxy: FaultProxy, settings: S3Settings, object_store: ObjectStore, tmp_path: Path) -> None:
    object_store.set_quota(settings.bucket, max_bytes=100_000)
    told = told_at_once(proxy, settings, tmp_path, "put")["put"]
    assert isinstance(told, StoreFull)
    assert "no space is left" in str(told)


def test_a_certificate_that_is_not_trusted(
    proxy: FaultProxy, object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    settings = replace(object_store.settings(bucket, https=True), ca_file="")
    for told in told_at_once(proxy, settings, tmp_path).values():
        assert "certificate is not trusted" in str(told)
        assert "ca_file" in str(told)


# ---------------------------------------------------------------- objects that are not what was stored


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
        lambda content: b"PK" + content,
        None,
    ],
    ids=["half", "one byte less", "empty", "zeros", "one bit", "shifted", "gone"],
)
@pytest.mark.parametrize("alone", [False, True])
def test_a_damaged_object_is_never_believed(
    settings: S3Settings,
    object_store: ObjectStore,
    tmp_path: Path,
    damage: Callable[[bytes], bytes] | None,
    alone: bool,
) -> None:
    index = MemoryIndex()
    repository = Repository(opened(settings, tmp_path / "cache"), blob_limit_bytes=100 if alone else MIB)
    contents = [random.Random(number).randbytes(2000) for number in range(3)]
    keys, rows = repository.put(contents, index)
    index.add(rows)
    name = rows[keys[0]].object_name
    stored = content_of(object_store, settings, name)
    if damage is None:
        object_store.client().delete_object(Bucket=settings.bucket, Key=name)
    else:
        object_store.client().put_object(Bucket=settings.bucket, Key=name, Body=damage(stored))
    for key, content in zip(keys, contents, strict=True):
        row = rows[key]
        there = damage and damage(stored)[row.offset : row.offset + row.stored_size] == content
        if row.object_name != name or there:
            assert repository.read([key], index) == [content]
            continue
        error = BlobCorrupt if damage else BlobMissing
        with pytest.raises(error, match=key):
            repository.read([key], index)
        with pytest.raises(error, match=key):
            for _ in repository.stream(key, index):
                pass
        with pytest.raises(error):
            repository.read(keys, index)
    # Whoever has the content heals it; a cache must not stand in the way.
    object_store.client().put_object(Bucket=settings.bucket, Key=name, Body=stored)
    assert repository.read(keys, index) == contents


# ---------------------------------------------------------------- a server that comes and goes


def test_a_server_that_is_killed_and_started_while_many_write_and_read(
    object_store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    with object_store.spare_gateway() as gateway:
        store = opened(object_store.settings(bucket, endpoint=gateway.endpoint), tmp_path / "cache")
        repository, stop, problems = Repository(store, pack_target_bytes=MIB), threading.Event(), []
        written: dict[str, bytes] = {}

        def work(number: int) -> None:
            chance, index = random.Random(number), MemoryIndex()
            try:
                while not stop.is_set():
                    contents = [chance.randbytes(3000) for _ in range(400)]
                    keys, rows = repository.put(contents, index)
                    index.add(rows)
                    written.update(zip(keys, contents, strict=True))
                    wanted = chance.sample(sorted(index.rows), 300)
                    assert repository.read(wanted, index) == [written[key] for key in wanted]
            except BaseException as problem:
                problems.append(problem)
                raise

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for end in (gateway.kill, gateway.stop, gateway.kill):
            time.sleep(0.7)
            end()
            time.sleep(0.7)
            gateway.start()
        time.sleep(0.5)
        stop.set()
        for worker in workers:
            worker.join()
    assert not problems
    assert retries_of(store).retried > 3
    assert retries_of(store).given_up == 0
    index = MemoryIndex()
    whole = Repository(S3Store(object_store.settings(bucket)))
    whole.rebuild_index(index)
    assert index.rows.keys() >= written.keys()
    assert whole.read(list(written), index) == list(written.values())


# ---------------------------------------------------------------- all of it at once


BLOBS = 100_000
WRITERS = 4
#: How many blobs a transaction stores: some tasks' results.
LOT = 500


def damage_of_all_kinds(chance: random.Random, request: Request) -> Fault:
    """One of everything that can go wrong with a request."""
    there, back = chance.randrange(max(1, request.size)), chance.randrange(60_000)
    return chance.choice(
        [
            Answer(503, "SlowDown"),
            Answer(500, "InternalError"),
            Lose(),
            Lose(Answer(503, "SlowDown")),
            Reset(there, "up"),
            Reset(back),
            Cut(back),
            Corrupt(there, "up"),
            Delay(0.05),
        ]
    )


def once_each(plan: Plan, fault: Fault) -> Plan:
    """A plan: the first GET of each object gets a fault, all else is as the other plan says."""
    seen: set[str] = set()

    def both(request: Request) -> Fault | None:
        if request.method != "GET" or request.target in seen:
            return plan(request)
        seen.add(request.target)
        return fault

    return both


def content(number: int) -> bytes:
    """Blob of a number: of 20 bytes to 3 kB, of noise and of text; a few are long enough to stand alone."""
    chance = random.Random(number)
    size = 9 * MIB if number % 25_000 == 0 else chance.randrange(20, 3000)
    noise = b"%d " % number + chance.randbytes(size if size < 5000 else 50_000)
    return noise if number % 2 else (noise.hex().encode() * (1 + size // len(noise)))[:size]


def test_a_hundred_thousand_blobs_over_a_bad_way(
    object_store: ObjectStore, bucket: str, database_url: str, tmp_path: Path
) -> None:
    died, done, lock = 0, 0, threading.Lock()
    with object_store.spare_gateway() as gateway, FaultProxy(gateway.endpoint) as proxy:
        proxy.plan = once_each(by_chance(0.3, damage_of_all_kinds, seed=4), Corrupt(30_000))
        settings = object_store.settings(bucket, endpoint=proxy.endpoint)
        store = opened(settings, tmp_path / "cache")
        repository = Repository(store, pack_target_bytes=MIB // 4)

        def write(first_lot: int) -> None:
            nonlocal died, done
            with database.connect(database_url) as connection:
                chance = random.Random(first_lot)
                for lot in range(first_lot, BLOBS // LOT, WRITERS):
                    contents = [content(number) for number in range(lot * LOT, (lot + 1) * LOT)]
                    while True:
                        with connection.cursor() as cursor:
                            index = PostgresIndex(cursor)
                            _, rows = repository.put(contents, index)
                            # Some die after the bytes and before the rows, or before they are committed.
                            fate = chance.random()
                            if fate > 0.05:
                                index.add(rows)
                            if fate > 0.1:
                                connection.commit()
                                break
                            connection.rollback()
                            with lock:
                                died += 1
                    with lock:
                        done += LOT

        writers = [Worker(write, number) for number in range(WRITERS)]
        for share in (0.2, 0.5, 0.8):
            while done < share * BLOBS and any(writer.is_alive() for writer in writers):
                time.sleep(0.05)
            gateway.kill()
            with proxy.refusing():
                time.sleep(0.3)
            time.sleep(0.3)
            gateway.start()
        for writer in writers:
            writer.join()
        assert [writer.problem for writer in writers] == [None] * WRITERS
        retried = retries_of(store).retried
        assert retries_of(store).given_up == 0
        assert {"Answer", "Lose", "Reset", "Corrupt"} <= proxy.injected.keys()
        assert retried > 100, proxy.injected
        assert died > 5

        with database.connect(database_url) as connection, connection.cursor() as cursor:
            # No row without bytes, as the server itself says.
            cursor.execute(
                'SELECT name, max("offset" + stored_size) FROM blob JOIN pack ON pack.id = pack_id GROUP BY 1'
            )
            ends = dict(cursor.fetchall())
            sizes = sizes_in(object_store, bucket)
            assert all(sizes[name] >= end for name, end in ends.items())
            cursor.execute("SELECT count(*), count(DISTINCT pack_id) FROM blob")
            assert cursor.fetchone() == (BLOBS, len(ends))
            # All readable and none corrupt, over the same bad way.
            index = PostgresIndex(cursor)
            keys = [key_of(content(number)) for number in range(BLOBS)]
            for number, found in enumerate(repository.read_each(keys, index)):
                assert found == content(number)
    assert retries_of(store).retried > retried
    assert retries_of(store).given_up == 0
    # And what the bucket alone says is the same, with some orphans of those who died.
    rebuilt = MemoryIndex()
    Repository(S3Store(object_store.settings(bucket))).rebuild_index(rebuilt)
    assert rebuilt.rows.keys() == set(keys)
    assert len(sizes) > len(ends)


class Worker(threading.Thread):
    """A thread that has begun, and keeps what went wrong in it."""

    def __init__(self, work: Callable[[int], None], number: int) -> None:
        super().__init__()
        self.problem: BaseException | None = None
        self._work = work
        self._number = number
        self.start()

    def run(self) -> None:
        try:
            self._work(self._number)
        except BaseException as problem:
            self.problem = problem


# ---------------------------------------------------------------- by the way that is good


def fill(object_store: ObjectStore, settings: S3Settings) -> None:
    client = object_store.client()
    for name, content in (("packs/a", CONTENT), ("packs/long", LONG)):
        client.put_object(Bucket=settings.bucket, Key=name, Body=content)


def sizes_in(object_store: ObjectStore, bucket: str) -> dict[str, int]:
    pages = object_store.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}


def listed(object_store: ObjectStore, settings: S3Settings) -> list[str]:
    return [name for name in sizes_in(object_store, settings.bucket) if not name.startswith(".")]


def content_of(object_store: ObjectStore, settings: S3Settings, name: str) -> bytes:
    found: bytes = object_store.client().get_object(Bucket=settings.bucket, Key=name)["Body"].read()
    return found
