"""What every store must do: the same tests for each."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from object_store import ObjectStore
from old_server import old_server

from grange.repository import (
    CountingStore,
    LocalStore,
    MemoryStore,
    ObjectMissing,
    ObjectNameInvalid,
    Store,
)
from grange.repository.cached_store import CachedStore
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_store import S3Store

HOSTILE_NAMES = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../outside",
    "packs/../../outside",
    "packs/..",
    "packs//a",
    "packs/",
    "./a",
    ".scratch/a",
    "packs/.hidden",
    "-rf",
    "a\nb",
    "a\n",
    "a\0b",
    "a b",
    "a\\b",
    "é",
    "packs/ａ",
    "‮gpj",
    "a*",
    "a" * 300,
    "/".join("a" * 40),
]


#: On a real server. "https" has a prefix, too; "old" always overwrites; "whole" is what a profile opens.
S3 = ["s3", "s3 https", "s3 old", "s3 retrying", "s3 whole"]


@pytest.fixture(params=["local", "memory", "counting", "cached local", "cached memory", *S3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with ExitStack() as stack:
        if request.param in S3:
            yield s3_store(request.param, request.getfixturevalue("object_store"), tmp_path, stack)
        else:
            yield store_here(request.param, tmp_path)


def store_here(kind: str, tmp_path: Path) -> Store:
    if kind == "local":
        return LocalStore(tmp_path / "store")
    if kind == "memory":
        return MemoryStore()
    if kind.startswith("cached"):
        kept = MemoryStore() if kind == "cached memory" else LocalStore(tmp_path / "store")
        return CachedStore(kept, tmp_path / "cache", 100 << 20)
    return CountingStore(LocalStore(tmp_path / "store"))


def s3_store(kind: str, server: ObjectStore, tmp_path: Path, stack: ExitStack) -> Store:
    """A store in a bucket of its own."""
    bucket = server.new_bucket()
    if kind == "s3 old":
        proxy = stack.enter_context(old_server(server))
        return S3Store(server.settings(bucket, endpoint=proxy.endpoint))
    if kind == "s3 https":
        return S3Store(server.settings(bucket, https=True, prefix="some/prefix"))
    store = S3Store(server.settings(bucket))
    if kind == "s3":
        return store
    retrying = RetryingStore(store, store.retries)
    return retrying if kind == "s3 retrying" else CachedStore(retrying, tmp_path / "cache", 100 << 20)


def content_of(store: Store, name: str) -> bytes:
    return b"".join(store.read(name))


def names(store: Store, prefix: str = "") -> list[str]:
    return sorted(info.name for info in store.list(prefix))


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) + 1])
def test_what_was_put_is_read(store: Store, tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path = tmp_path / "file"
    path.write_bytes(content)
    sources = {
        "bytes": content,
        "buffer": bytearray(content),
        "view": memoryview(content),
        "file": io.BytesIO(content),
        "path": path,
    }
    for name, source in sources.items():
        assert store.put_if_absent(f"a/{name}", source) is True
    for name in sources:
        assert content_of(store, f"a/{name}") == content
        assert store.head(f"a/{name}") == size
    assert path.read_bytes() == content


def test_a_name_is_taken_once(store: Store) -> None:
    assert store.put_if_absent("a/b", b"first") is True
    assert store.put_if_absent("a/b", b"second") is False
    assert content_of(store, "a/b") == b"first"


def test_of_sixteen_racers_one_wins(store: Store, request: pytest.FixtureRequest) -> None:
    for heat in range(5):
        name = f"race/{heat}"
        start = threading.Barrier(16)
        won: list[bytes] = []

        def put(content: bytes, name: str = name, start: threading.Barrier = start) -> None:
            start.wait()
            if store.put_if_absent(name, content):
                won.append(content)  # noqa: B023 - joined below

        racers = [threading.Thread(target=put, args=(bytes([i]) * 10_000,)) for i in range(16)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        if "[s3 old]" in request.node.name:  # nobody can know
            assert content_of(store, name) in won
            continue
        assert len(won) == 1
        assert content_of(store, name) == won[0]


def test_an_object_put_again_is_young_again(store: Store) -> None:
    store.put_if_absent("a", b"1")
    [before] = store.list()
    time.sleep(0.02)
    store.put_if_absent("a", b"1")
    [after] = store.list()
    assert after.mtime > before.mtime
    assert abs(time.time() - after.mtime) < 60


def test_a_source_that_fails_leaves_nothing(store: Store) -> None:
    class Failing(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            if self.reads == 3:
                raise OSError(5, "the disk of the source is broken")
            return b"x" * 100

    with pytest.raises(OSError, match="source is broken"):
        store.put_if_absent("a", Failing())
    assert store.head("a") is None
    assert names(store) == []
    assert store.put_if_absent("a", b"whole") is True


def test_a_source_that_is_missing_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        store.put_if_absent("a", tmp_path / "no-such-file")
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        store.adopt("a", tmp_path / "no-such-file")
    assert names(store) == []


def test_a_file_is_adopted_once(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "pack.zip"
    path.write_bytes(b"the content")
    assert store.adopt("packs/a", path) is True
    path.unlink(missing_ok=True)
    path.write_bytes(b"something else")
    assert store.adopt("packs/a", path) is False
    assert content_of(store, "packs/a") == b"the content"


def test_scratch_files_are_no_objects(store: Store) -> None:
    with store.scratch([b"some ", bytearray(b"content"), b""]) as path:
        assert path.read_bytes() == b"some content"
        assert names(store) == []
        assert store.adopt("a", path) is True
    assert not path.exists()
    assert content_of(store, "a") == b"some content"
    with pytest.raises(ZeroDivisionError):
        with store.scratch([b"x"]) as path:
            raise ZeroDivisionError
    assert not path.exists()


def test_ranges_come_in_the_order_asked_for_and_end_with_the_object(store: Store) -> None:
    store.put_if_absent("a", b"0123456789")
    ranges = [(8, 2), (0, 3), (8, 10), (10, 1), (99, 5), (3, 0), (0, 10), (0, 3)]
    assert store.get_ranges("a", ranges) == [b"89", b"012", b"89", b"", b"", b"", b"0123456789", b"012"]
    assert store.get_ranges("a", []) == []


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put_if_absent("empty", b"") is True
    assert store.put_if_absent("empty", b"x") is False
    assert store.head("empty") == 0
    assert content_of(store, "empty") == b""
    assert store.get_ranges("empty", [(0, 1)]) == [b""]
    assert [(info.name, info.size) for info in store.list()] == [("empty", 0)]


def test_what_is_missing_is_named(store: Store) -> None:
    store.put_if_absent("there/a", b"x")
    for name in ("absent", "there", "there/b"):
        assert store.head(name) is None
        with pytest.raises(ObjectMissing, match=name):
            store.get_ranges(name, [(0, 1)])
        with pytest.raises(ObjectMissing, match=name):
            next(iter(store.read(name)))


def test_deleting_is_idempotent(store: Store) -> None:
    for name in ("a/1", "a/2", "b"):
        store.put_if_absent(name, b"x")
    store.delete(["a/1", "never", "b", "b"])
    store.delete(iter(["a/1"]))
    store.delete([])
    assert names(store) == ["a/2"]
    assert store.put_if_absent("a/1", b"new") is True
    assert content_of(store, "a/1") == b"new"


def test_a_prefix_is_any_beginning(store: Store) -> None:
    for name in ("packs/ab/1", "packs/ab/2", "packs/ac/1", "packs-old", "blobs/x", "top"):
        store.put_if_absent(name, name.encode())
    assert names(store) == ["blobs/x", "packs-old", "packs/ab/1", "packs/ab/2", "packs/ac/1", "top"]
    assert names(store, "packs/") == ["packs/ab/1", "packs/ab/2", "packs/ac/1"]
    assert names(store, "packs/a") == names(store, "packs/")
    assert names(store, "packs/ab/1") == ["packs/ab/1"]
    assert names(store, "pack") == ["packs-old", *names(store, "packs/")]
    assert names(store, "none/") == []
    assert names(store, "top/") == []
    assert {info.size for info in store.list("blobs/")} == {len("blobs/x")}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    store.put_if_absent("there", b"x")
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(ObjectNameInvalid):
        store.put_if_absent(name, b"x")
    with pytest.raises(ObjectNameInvalid):
        store.adopt(name, path)
    with pytest.raises(ObjectNameInvalid):
        store.head(name)
    with pytest.raises(ObjectNameInvalid):
        store.get_ranges(name, [(0, 1)])
    with pytest.raises(ObjectNameInvalid):
        next(iter(store.read(name)))
    with pytest.raises(ObjectNameInvalid):
        store.delete(["there", name])
    assert names(store) == ["there"]


@pytest.mark.parametrize("prefix", ["..", "../", "/", "packs/../", "packs//", ".scratch/", "a\n", "é"])
def test_hostile_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(ObjectNameInvalid):
        store.list(prefix)


def test_listing_goes_on_while_others_write_and_delete(store: Store) -> None:
    kept = [f"kept/{i:02}/x" for i in range(20)]
    for name in kept:
        store.put_if_absent(name, b"x")
    listing: Iterator[str] = (info.name for info in store.list("kept/"))
    first = next(listing)
    store.put_if_absent("kept/zz/new", b"x")
    store.delete(["kept/zz/new"])
    assert sorted([first, *listing]) == kept
