"""A bucket as a store, on the real server: what the contract of all stores does not ask."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fault_plan import Answer, Corrupt, Cut, Fault, Lose, Request, Reset, first
from fault_proxy import FaultProxy
from object_store import ObjectStore

from grange.repository import s3_multipart, s3_store
from grange.repository.errors import ObjectMissing, StoreError, StoreUnavailable
from grange.repository.retries import Retries
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_store import S3Store
from grange.repository.signer import Signer

MIB = 1 << 20


def quick() -> Retries:
    return Retries(tries=5, first_pause_s=0.01, longest_pause_s=0.05)


@pytest.fixture
def store(object_store: ObjectStore, bucket: str) -> S3Store:
    return S3Store(object_store.settings(bucket, prefix="below/this"), quick())


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts are enough to see what becomes of them; S3 takes none below 5 MiB but the last."""
    monkeypatch.setattr(s3_store, "SINGLE_PUT_BYTES", 4 * MIB)
    monkeypatch.setattr(s3_store, "_LOOKED_AT_BYTES", 2 * MIB)
    monkeypatch.setattr(s3_multipart, "PART_BYTES", 5 * MIB)


LONG = os.urandom(11 * MIB + 17)


def whole(store: S3Store, name: str) -> bytes:
    return b"".join(store.read(name))


def unfinished(object_store: ObjectStore, store: S3Store) -> list[object]:
    found = object_store.client().list_multipart_uploads(Bucket=store.settings.bucket)
    return list(found.get("Uploads", []))


def parts_sent(proxy: FaultProxy, number: int) -> int:
    return sum(f"partNumber={number}" in request.target for request in proxy.requests)


class Counted(io.BytesIO):
    """A file that knows how much was read at once."""

    largest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.largest = max(self.largest, len(content))
        return content


def test_names_begin_with_the_prefix(object_store: ObjectStore, store: S3Store, bucket: str) -> None:
    store.put_if_absent("packs/a", b"x")
    S3Store(object_store.settings(bucket)).put_if_absent("elsewhere", b"y")
    listed = object_store.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert "below/this/packs/a" in [found["Key"] for found in listed]
    assert [info.name for info in store.list()] == ["packs/a"]
    assert store.head("elsewhere") is None


@pytest.mark.usefixtures("short_parts")
@pytest.mark.parametrize("kind", ["bytes", "file", "path"])
def test_a_long_object_goes_in_parts(
    object_store: ObjectStore, store: S3Store, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "long"
    path.write_bytes(LONG)
    file = Counted(LONG)
    source = {"bytes": LONG, "file": file, "path": path}[kind]
    assert store.put_if_absent("long", source) is True  # type: ignore[arg-type]
    assert whole(store, "long") == LONG
    [found] = object_store.client().list_objects_v2(Bucket=store.settings.bucket, Prefix="below/this/long")[
        "Contents"
    ]
    assert found["ETag"].endswith('-3"')  # of three parts
    assert file.largest <= 5 * MIB
    assert store.put_if_absent("long", source) is False  # type: ignore[arg-type]
    assert unfinished(object_store, store) == []


@pytest.mark.usefixtures("short_parts")
def test_a_part_that_fails_is_sent_again_alone(object_store: ObjectStore, bucket: str) -> None:
    faults: Iterator[Fault] = iter([Answer(), Reset(after=MIB, way="up"), Corrupt(at=99, way="up"), Lose()])

    def plan(request: Request) -> Fault | None:
        return next(faults, None) if "partNumber=2" in request.target else None

    with FaultProxy(object_store.endpoint, plan) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        assert store.put_if_absent("long", io.BytesIO(LONG)) is True
        assert [parts_sent(proxy, number) for number in (1, 2, 3)] == [1, 5, 1]
    assert store.retries.retried == 4
    assert whole(S3Store(object_store.settings(bucket)), "long") == LONG


@pytest.mark.usefixtures("short_parts")
def test_a_part_that_fails_too_often_leaves_nothing(object_store: ObjectStore, bucket: str) -> None:
    with FaultProxy(
        object_store.endpoint, lambda request: Answer() if "partNumber=2" in request.target else None
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        with pytest.raises(StoreUnavailable, match=r"SlowDown.*tried 5 times"):
            RetryingStore(store, store.retries).put_if_absent("long", io.BytesIO(LONG))
        assert parts_sent(proxy, 2) == 5
        assert store.head("long") is None
        assert unfinished(object_store, store) == []


@pytest.mark.usefixtures("short_parts")
def test_the_answer_to_the_end_of_an_upload_is_lost(object_store: ObjectStore, bucket: str) -> None:
    def ends(request: Request) -> bool:
        return request.method == "POST" and "uploadId" in request.target

    with FaultProxy(object_store.endpoint, first(2, Lose(), where=ends)) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        assert store.put_if_absent("long", LONG) is True
        assert sum(map(ends, proxy.requests)) == 3
        assert whole(store, "long") == LONG


@pytest.mark.usefixtures("short_parts")
def test_a_source_that_fails_in_its_midst_leaves_no_parts(object_store: ObjectStore, store: S3Store) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 8 * MIB:
                raise OSError(5, "the disk of the source is broken")
            return super().read(min(size or 0, MIB))

    with pytest.raises(OSError, match="source is broken"):
        store.put_if_absent("long", Failing(LONG))
    assert store.head("long") is None
    assert unfinished(object_store, store) == []


@pytest.mark.usefixtures("short_parts")
def test_a_long_object_is_made_young_part_by_part(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (s3_multipart, s3_store):
        monkeypatch.setattr(module, "COPIED_AT_ONCE_BYTES", 6 * MIB)
    store.put_if_absent("long", LONG)
    [before] = store.list()
    time.sleep(0.02)
    assert store.put_if_absent("long", LONG) is False
    [after] = store.list()
    assert after.mtime > before.mtime
    assert whole(store, "long") == LONG


def test_where_a_copy_keeps_its_age_an_object_is_made_anew(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {
        "CopyObjectResult": {"LastModified": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)},
        "ResponseMetadata": {"HTTPHeaders": {"date": "Fri, 02 Jan 2026 03:04:06 GMT"}},
    }
    assert s3_store._is_young(answer)
    answer["ResponseMetadata"]["HTTPHeaders"]["date"] = "Fri, 02 Jan 2026 03:06:06 GMT"  # type: ignore[index]
    assert not s3_store._is_young(answer)
    for content in (b"content", b""):
        store.put_if_absent("a", content)
        # The server here says when it copied: as if it had said another time.
        monkeypatch.setattr(s3_store, "_is_young", lambda _: False)
        [before] = store.list()
        time.sleep(0.02)
        assert store.put_if_absent("a", b"another") is False
        [after] = store.list()
        assert after.mtime > before.mtime
        assert whole(store, "a") == content
        store.delete(["a"])


def test_the_answer_to_a_put_is_lost(object_store: ObjectStore, bucket: str) -> None:
    def puts(request: Request) -> bool:
        return request.method == "PUT" and request.target.endswith("/a")

    with FaultProxy(object_store.endpoint, first(1, Lose(), where=puts)) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        # Somebody made it, and it was us: who needs to know has names that nobody else can know.
        assert RetryingStore(store, store.retries).put_if_absent("a", b"content") is False
        assert whole(store, "a") == b"content"


def test_bytes_that_were_damaged_on_their_way_are_sent_again(object_store: ObjectStore, bucket: str) -> None:
    content = os.urandom(MIB)
    with FaultProxy(
        object_store.endpoint,
        first(2, Corrupt(at=4711, way="up"), where=lambda request: request.size == MIB),
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        with pytest.raises(StoreUnavailable, match=r"cannot write a in bucket.*SHA256Mismatch"):
            store.put_if_absent("a", content)
        assert store.head("a") is None
        assert RetryingStore(store, store.retries).put_if_absent("a", content) is True
        assert whole(store, "a") == content
        assert store.retries.retried == 1


@pytest.mark.parametrize("fault", [Reset(after=3 * MIB), Cut(after=3 * MIB), Answer(500, "InternalError")])
def test_reading_goes_on_where_it_was_cut(object_store: ObjectStore, bucket: str, fault: Fault) -> None:
    content = os.urandom(8 * MIB)
    S3Store(object_store.settings(bucket)).put_if_absent("a", content)
    with FaultProxy(
        object_store.endpoint, first(1, fault, where=lambda request: request.method == "GET")
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        with pytest.raises(StoreUnavailable):
            whole(store, "a")
        proxy.plan = first(1, fault, where=lambda request: request.method == "GET")
        retrying = RetryingStore(store, store.retries)
        assert b"".join(retrying.read("a")) == content
        assert store.retries.retried == 1
        proxy.plan = first(1, fault, where=lambda request: request.method == "GET")
        ranges = [(0, 4 * MIB), (5 * MIB, 10), (8 * MIB - 5, 10)]
        assert retrying.get_ranges("a", ranges) == [content[at : at + size] for at, size in ranges]


def test_a_listing_goes_on_where_it_was_cut(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"a/{number:03}" for number in range(30)]
    plain = S3Store(object_store.settings(bucket))
    for name in names:
        plain.put_if_absent(name, b"x")
    with FaultProxy(
        object_store.endpoint, first(3, Answer(), where=lambda request: "list-type=2" in request.target)
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        assert [info.name for info in RetryingStore(store, store.retries).list("a/")] == names
        assert store.retries.retried == 3
    assert [info.name for info in plain.list_after("a/", "a/027")] == ["a/028", "a/029"]
    assert [info.name for info in plain.list_after("a/02", "a/005")] == names[20:]


def test_a_server_that_does_not_refuse_a_second_object_is_found_out(
    object_store: ObjectStore, bucket: str
) -> None:
    made = Answer(200, "", headers={"ETag": '"1"'})
    refused = Answer(501, "NotImplemented")
    for number, answer in enumerate((made, refused)):
        with FaultProxy(
            object_store.endpoint,
            lambda request, answer=answer: answer if "if-none-match" in request.headers else None,  # type: ignore[misc]
        ) as proxy:
            store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
            name = f"a/{number}"
            assert store.put_if_absent(name, b"first") is True
            assert store.put_if_absent(name, b"second") is False
            assert whole(store, name) == b"first"
            asked = [request for request in proxy.requests if "if-none-match" in request.headers]
            assert all(request.target.endswith(".grange-probe") for request in asked)
            assert len(asked) == (2 if answer is made else 1)


def test_one_probe_serves_a_store(object_store: ObjectStore, bucket: str) -> None:
    with FaultProxy(object_store.endpoint) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        threads = [
            threading.Thread(target=store.put_if_absent, args=(f"a/{number}", b"x")) for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        probes = [request for request in proxy.requests if request.target.endswith(".grange-probe")]
        assert len(probes) == 2
        assert sorted(info.name for info in store.list()) == [f"a/{number}" for number in range(8)]
        other = S3Store(store.settings, quick())
        other.put_if_absent("b", b"x")
        probes = [request for request in proxy.requests if request.target.endswith(".grange-probe")]
        assert len(probes) == 3  # the object of the first probe is there


def test_an_object_that_vanishes_meanwhile_is_made_again(object_store: ObjectStore, bucket: str) -> None:
    plain = S3Store(object_store.settings(bucket))
    plain.put_if_absent("a", b"x")

    def plan(request: Request) -> Fault | None:
        if "x-amz-copy-source" in request.headers:
            plain.delete(["a"])
        return None

    with FaultProxy(object_store.endpoint, plan) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        assert store.put_if_absent("a", b"x") is True
    assert whole(plain, "a") == b"x"


def test_ranges_that_touch_or_overlap_or_begin_past_the_end(store: S3Store) -> None:
    content = os.urandom(10_000)
    store.put_if_absent("a", content)
    for ranges in (
        [(0, 100), (100, 100), (150, 100), (9_990, 20), (10_000, 5), (10_005, 5), (5, 0)],
        [(9_000, 2_000), (11_000, 5)],
        [(0, 10), (20_000, 5), (30_000, 5)],
        [(n * 7, 5) for n in range(1_000)],
        [(20_000, 1)],
    ):
        assert store.get_ranges("a", ranges) == [content[at : at + size] for at, size in ranges]
    with pytest.raises(ObjectMissing, match="no object absent in s3://"):
        store.get_ranges("absent", [(0, 1), (100, 1)])
    with pytest.raises(ObjectMissing):
        store.get_ranges("absent", [(0, 0)])


def test_many_threads_share_a_store(store: S3Store) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for round_ in range(10):
                name, content = f"t/{number}/{round_}", f"{number} {round_}".encode() * 100
                assert store.put_if_absent(name, content)
                assert store.get_ranges(name, [(0, 5), (50, 7)]) == [content[:5], content[50:57]]
                assert store.head(name) == len(content)
                store.delete([name])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(store.list()) == []


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied")])
def test_where_many_cannot_be_deleted_at_once_they_go_one_by_one(
    object_store: ObjectStore, bucket: str, status: int, code: str
) -> None:
    def many(request: Request) -> bool:
        return request.method == "POST" and "?delete" in request.target

    with FaultProxy(
        object_store.endpoint, lambda request: Answer(status, code) if many(request) else None
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), quick())
        names = [f"a/{number}" for number in range(20)]
        for name in [*names, "kept"]:
            store.put_if_absent(name, b"x")
        store.delete([*names[:10], "never"])
        store.delete(names[10:])
        assert [info.name for info in store.list()] == ["kept"]
        assert sum(map(many, proxy.requests)) == 1


def request(url: str, method: str, content: bytes | None = None, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(url, data=content, method=method, headers=named)
    with urllib.request.urlopen(asked) as answer:
        return bytes(answer.read())


def test_signed_urls_are_good_for_one_thing_and_a_while(store: S3Store) -> None:
    assert isinstance(store, Signer)
    assert isinstance(RetryingStore(store), Signer)
    put, other = store.sign_put(["a/new", "a/other"], 60)
    request(put, "PUT", b"0123456789", If_None_Match="*")
    with pytest.raises(urllib.error.HTTPError, match="412"):
        request(put, "PUT", b"again", If_None_Match="*")
    assert whole(store, "a/new") == b"0123456789"
    [get] = store.sign_get(["a/new"], 60)
    assert request(get, "GET", Range="bytes=2-4") == b"234"
    for url, method in ((get, "PUT"), (put, "GET"), (get, "DELETE"), (get.replace("new", "other"), "GET")):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            request(url, method, b"x" if method == "PUT" else None)
    assert store.head("a/other") is None
    assert other != put
    [short] = store.sign_get(["a/new"], 1)
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        request(short, "GET")
    for seconds in (0.5, 8 * 24 * 3600):
        with pytest.raises(StoreError, match="1 second to 7 days"):
            store.sign_get(["a/new"], seconds)
    assert store.sign_get([], 60) == []


FORKS = """
import os, sys
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

endpoint, bucket, credentials, used = sys.argv[1:]
store = S3Store(S3Settings(endpoint, bucket, credentials_file=credentials))
if used == "used":
    print("parent", store.put_if_absent("a", b"x"), flush=True)
if (child := os.fork()) == 0:
    try:
        print("child", store.head("a"), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", store.head("a"), flush=True)
"""


def forks(object_store: ObjectStore, bucket: str, used: str) -> list[str]:
    words = [object_store.endpoint, bucket, object_store.credentials_file, used]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *words], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


def test_a_fork_of_who_used_a_store_is_refused_and_does_not_hang(
    object_store: ObjectStore, bucket: str
) -> None:
    first_line, child, last = forks(object_store, bucket, "used")
    assert (first_line, last) == ("parent True", "parent 1")
    assert child.startswith("StoreError cannot use s3://")
    assert "start processes afresh" in child
    assert forks(object_store, bucket, "not used") == ["child 1", "parent 1"]


NOTHING_IMPORTED = """
import sys
import grange
from grange.repository import LocalStore
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

S3Store(S3Settings("https://s3.example", "bucket"))
print([name for name in ("boto3", "botocore", "obstore", "minio", "urllib3") if name in sys.modules])
"""


def test_a_store_that_is_not_used_imports_no_client() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_IMPORTED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


STREAMS = """
import hashlib, os, sys
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

MIB = 1 << 20
endpoint, bucket, credentials, ca_file, mib = sys.argv[1:]


def memory(what):
    [line] = [line for line in open("/proc/self/status") if line.startswith(what)]
    return int(line.split()[1]) * 1024


class Long:
    def __init__(self):
        self.digest, self.left, self.filler = hashlib.sha256(), int(mib), os.urandom(MIB)

    def read(self, size):
        if not self.left:
            return b""
        self.left -= 1
        chunk = self.left.to_bytes(8, "big") + self.filler[8:]
        self.digest.update(chunk)
        return chunk


store = RetryingStore(S3Store(S3Settings(endpoint, bucket, credentials_file=credentials, ca_file=ca_file)))
store.put_if_absent("short", b"x")
open("/proc/self/clear_refs", "w").write("5")
before, source = memory("VmRSS"), Long()
store.put_if_absent("long", source)
put = memory("VmHWM") - before
open("/proc/self/clear_refs", "w").write("5")
before, digest = memory("VmRSS"), hashlib.sha256()
for piece in store.read("long"):
    digest.update(piece)
assert digest.digest() == source.digest.digest()
print(put, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_long_blob_is_never_whole_in_memory(object_store: ObjectStore, bucket: str, scheme: str) -> None:
    """GRANGE_TEST_LONG_MIB=4096 is the size that the bound was set for."""
    mib = int(os.environ.get("GRANGE_TEST_LONG_MIB", "192"))
    endpoint = object_store.https_endpoint if scheme == "https" else object_store.endpoint
    ca_file = object_store.ca_file if scheme == "https" else ""
    words = [endpoint, bucket, object_store.credentials_file, ca_file, str(mib)]
    done = subprocess.run(
        [sys.executable, "-c", STREAMS, *words], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    put, read = map(int, done.stdout.split())
    assert put <= 100e6
    assert read <= 30e6
