"""The repository: contents in, keys out, contents back."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.repository import (
    BlobCorrupt,
    BlobLocation,
    BlobMissing,
    ContentChanged,
    CountingStore,
    Key,
    LocalStore,
    MemoryIndex,
    MemoryStore,
    PackMalformed,
    PackWriter,
    Repository,
    StoreUnavailable,
    key_of,
)


class CountingIndex(MemoryIndex):
    """Counts the looks into it."""

    looks = 0

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        self.looks += 1
        return super().find(keys)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def a_pack(path: Path, blobs: list[bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("manifest.json", '{"results": []}')
        for content in blobs:
            pack.writestr(key_of(content), content)
    return path


@given(st.lists(st.binary(max_size=600), max_size=30), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_what_was_put_is_read_in_order(contents: list[bytes], target: int) -> None:
    repository = Repository(MemoryStore(), pack_target_bytes=target, blob_limit_bytes=400)
    index = MemoryIndex()
    keys, rows = repository.put(contents, index)
    assert keys == [key_of(content) for content in contents]
    assert rows.keys() == set(keys)
    assert index.rows == {}
    index.add(rows)
    assert repository.read(keys, index) == contents
    assert repository.put(contents, index) == (keys, {})
    for key, content in zip(keys, contents, strict=True):
        pieces = list(repository.stream(key, index, chunk_bytes=100))
        assert b"".join(pieces) == content
        assert all(0 < len(piece) <= 100 for piece in pieces)
    rebuilt = MemoryIndex()
    assert repository.rebuild_index(rebuilt) == len(rows)
    assert rebuilt.rows == rows


def test_one_look_and_one_object_for_thousands() -> None:
    store = CountingStore(MemoryStore())
    repository = Repository(store)
    index = CountingIndex()
    contents = [b"content %d" % i for i in range(5000)]
    keys, rows = repository.put([*contents, *contents], index)
    assert len(keys) == 10_000
    assert len(rows) == 5000
    assert index.looks == 1
    assert store.calls == {"put_if_absent": 1}
    index.add(rows)
    assert repository.read([*keys[::-1], keys[0]], index) == [*contents[::-1], *contents[::-1], contents[0]]
    assert index.looks == 2
    assert store.calls == {"put_if_absent": 1, "get_ranges": 1}
    assert store.received_bytes["get_ranges"] == sum(map(len, contents))


def test_nothing_costs_nothing() -> None:
    store = CountingStore(MemoryStore())
    repository = Repository(store)
    index = CountingIndex()
    assert repository.put([], index) == ([], {})
    assert repository.read([], index) == []
    assert not store.calls


def test_packs_close_at_their_target_and_large_blobs_stand_alone() -> None:
    store = MemoryStore()
    repository = Repository(store, pack_target_bytes=10_000, blob_limit_bytes=5000)
    small = [noise(1000, seed) for seed in range(30)]
    large = noise(5001, 99)
    _, rows = repository.put([*small, large], MemoryIndex())
    packs = list(store.list("packs/"))
    assert len(packs) == 4
    assert all(info.size < 13_000 for info in packs)
    name = f"blobs/{key_of(large)[:2]}/{key_of(large)[2:4]}/{key_of(large)}"
    assert rows[key_of(large)] == BlobLocation(name, 0, 5001, "stored", 5001)
    assert [info.name for info in store.list("blobs/")] == [name]


def test_files_are_put_as_contents_are(tmp_path: Path) -> None:
    repository = Repository(LocalStore(tmp_path / "store"), blob_limit_bytes=5000)
    index = MemoryIndex()
    contents = [b"", b"text", noise(5000), noise(5001), noise(3_000_000)]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(content)
    keys, rows = repository.put([*paths, *contents], index)
    assert keys == [key_of(content) for content in contents] * 2
    index.add(rows)
    assert repository.read(keys[:5], index) == contents
    assert all(path.read_bytes() == content for path, content in zip(paths, contents, strict=True))
    with pytest.raises(FileNotFoundError, match="absent"):
        repository.put([tmp_path / "absent"], index)
    with pytest.raises(IsADirectoryError, match="store"):
        repository.put([tmp_path / "store"], index)


def test_a_large_file_that_is_there_already_is_found(tmp_path: Path) -> None:
    repository = Repository(LocalStore(tmp_path / "store"), blob_limit_bytes=100)
    path = tmp_path / "file"
    path.write_bytes(noise(1000))
    keys, rows = repository.put([path], MemoryIndex())
    assert repository.put([path], MemoryIndex()) == (keys, rows)
    assert repository.put_stream(io.BytesIO(noise(1000)), MemoryIndex()) == (keys[0], rows)


def test_a_file_that_changes_while_it_is_stored_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(1000))

    class Meddling(MemoryIndex):
        def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
            path.write_bytes(noise(1000, 1))
            return {}

    store = MemoryStore()
    with pytest.raises(ContentChanged, match=str(path)):
        Repository(store, blob_limit_bytes=100).put([path], Meddling())
    assert list(store.list()) == []


class Trickle(io.BytesIO):
    """Gives less than it is asked for, as pipes and sockets do."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(7, size if size is not None else 7))


@pytest.mark.parametrize("size", [0, 1, 100, 101, 1000])
def test_a_stream_of_unknown_length_is_put(tmp_path: Path, size: int) -> None:
    store = LocalStore(tmp_path)
    repository = Repository(store, blob_limit_bytes=100)
    index = MemoryIndex()
    key, rows = repository.put_stream(Trickle(noise(size)), index)
    assert key == key_of(noise(size))
    assert [row.size for row in rows.values()] == [size]
    index.add(rows)
    assert repository.read([key], index) == [noise(size)]
    assert repository.put_stream(Trickle(noise(size)), index) == (key, {})
    assert len(list(store.list())) == 1
    assert not (tmp_path / ".scratch").exists() or not list((tmp_path / ".scratch").iterdir())


def test_a_result_pack_is_taken_in_as_it_is(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    repository = Repository(store)
    index = MemoryIndex()
    blobs = [b"", b"out", noise(10_000)]
    path = a_pack(tmp_path / "result-1.zip", blobs)
    rows = repository.adopt(path)
    assert rows.keys() == {key_of(content) for content in blobs}
    assert repository.adopt(path) == rows
    [info] = store.list()
    assert info.name.startswith("packs/")
    assert (store.root / info.name).stat().st_ino == path.stat().st_ino
    index.add(rows)
    path.unlink()
    assert repository.read([key_of(content) for content in blobs], index) == blobs
    rebuilt = MemoryIndex()
    assert repository.rebuild_index(rebuilt) == 3
    assert rebuilt.rows == rows


def test_only_the_blobs_that_are_wanted_are_located(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    repository = Repository(store)
    path = a_pack(tmp_path / "result-1.zip", [b"a", b"b"])
    assert repository.adopt(path, only=set()) == {}
    assert repository.adopt(path, only={key_of(b"elsewhere")}) == {}
    assert repository.adopt(a_pack(tmp_path / "result-2.zip", [])) == {}
    assert list(store.list()) == []
    assert repository.adopt(path, only=[key_of(b"b"), key_of(b"elsewhere")]).keys() == {key_of(b"b")}


def test_what_is_no_pack_is_not_taken_in(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    repository = Repository(store)
    path = a_pack(tmp_path / "whole.zip", [b"a" * 1000])
    cut = tmp_path / "cut.zip"
    cut.write_bytes(path.read_bytes()[:-30])
    for bad in (cut, tmp_path / "empty.zip"):
        bad.touch()
        with pytest.raises(PackMalformed, match=str(bad)):
            repository.adopt(bad)
    with pytest.raises(FileNotFoundError):
        repository.adopt(tmp_path / "absent.zip")
    assert list(store.list()) == []


def test_all_that_is_missing_is_named() -> None:
    store = MemoryStore()
    repository = Repository(store, pack_target_bytes=1)
    index = MemoryIndex()
    keys, rows = repository.put([b"a", b"b", b"c"], index)
    index.add(rows)
    store.delete([rows[keys[1]].object_name])
    unknown = key_of(b"never stored")
    with pytest.raises(BlobMissing) as caught:
        repository.read([unknown, *keys, keys[1], unknown], index)
    assert caught.value.keys == [unknown, keys[1]]
    for key in (unknown, keys[1]):
        with pytest.raises(BlobMissing, match=key):
            list(repository.stream(key, index))


BLOBS = [b"", b"tiny", b"some text that repeats itself " * 30, noise(500)]


def unless_corrupt(repository: Repository, key: Key, index: MemoryIndex, how: str) -> bytes | None:
    try:
        if how == "read":
            return repository.read([key], index)[0]
        return b"".join(repository.stream(key, index, 64))
    except BlobCorrupt:
        return None


def test_a_flipped_bit_never_gives_a_wrong_content() -> None:
    writer = PackWriter("packs/aa/a.zip")
    rows = {key_of(content): writer.add(key_of(content), content) for content in BLOBS}
    whole = bytearray(writer.finish())
    index = MemoryIndex()
    index.add(rows)
    found = 0
    for position in range(0, len(whole) * 8, 3):
        whole[position // 8] ^= 1 << position % 8
        store = MemoryStore()
        store.put_if_absent("packs/aa/a.zip", whole)
        whole[position // 8] ^= 1 << position % 8
        repository = Repository(store)
        for content in BLOBS:
            key = key_of(content)
            results = [unless_corrupt(repository, key, index, how) for how in ("read", "stream")]
            assert results in ([content, content], [None, None])
            found += results[0] is None
    stored = sum(row.stored_size for row in rows.values())
    # A deflated block ends with a few bits that mean nothing.
    assert stored * 8 // 3 - 10 < found <= stored * 8 // 3 + len(BLOBS)


def test_a_pack_cut_off_is_corrupt_not_short() -> None:
    writer = PackWriter("packs/aa/a.zip")
    rows = {key_of(content): writer.add(key_of(content), content) for content in BLOBS}
    index = MemoryIndex()
    index.add(rows)
    last = key_of(BLOBS[-1])
    store = MemoryStore()
    store.put_if_absent("packs/aa/a.zip", writer.finish()[: rows[last].offset + 499])
    for verify in (True, False):
        with pytest.raises(BlobCorrupt, match=last):
            Repository(store).read([last], index, verify)
    with pytest.raises(BlobCorrupt, match=last):
        list(Repository(store).stream(last, index))
    with pytest.raises(PackMalformed):
        Repository(store).rebuild_index(MemoryIndex())


def test_verifying_can_be_left_out() -> None:
    store = MemoryStore()
    store.put_if_absent("packs/aa/a.zip", b"wrong")
    index = MemoryIndex()
    key = key_of(b"right")
    index.add({key: BlobLocation("packs/aa/a.zip", 0, 5, "stored", 5)})
    assert Repository(store, verify=False).read([key], index) == [b"wrong"]
    assert Repository(store).read([key], index, verify=False) == [b"wrong"]
    with pytest.raises(BlobCorrupt, match=key):
        Repository(store).read([key], index)
    with pytest.raises(BlobCorrupt, match=key):
        Repository(store, verify=False).read([key], index, verify=True)


def test_rebuilding_passes_over_what_is_no_pack() -> None:
    store = MemoryStore()
    repository = Repository(store, blob_limit_bytes=100)
    _, rows = repository.put([b"a", noise(101)], MemoryIndex())
    store.put_if_absent("packs/00/rubbish.zip", b"rubbish")
    store.put_if_absent("blobs/aa/bb/not-a-key", b"rubbish")
    index = MemoryIndex()
    with pytest.raises(PackMalformed, match="packs/00/rubbish"):
        repository.rebuild_index(index)
    told: list[PackMalformed] = []
    assert repository.rebuild_index(index, told.append) == 2
    assert [error.name for error in told] == ["packs/00/rubbish.zip"]
    assert index.rows == rows


def test_a_put_that_fails_can_be_repeated() -> None:
    class Failing(MemoryStore):
        failures = 1

        def put_if_absent(self, name: str, source: object) -> bool:
            done = super().put_if_absent(name, source)  # type: ignore[arg-type]
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("the answer was lost")
            return done

    store = Failing()
    repository = Repository(store)
    index = MemoryIndex()
    with pytest.raises(StoreUnavailable):
        repository.put([b"a"], index)
    keys, rows = repository.put([b"a"], index)
    index.add(rows)
    assert repository.read(keys, index) == [b"a"]


LARGE = """
import hashlib, resource, sys
from pathlib import Path
from grange.repository import LocalStore, MemoryIndex, Repository

SIZE = 200 << 20

def resident():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10

class Source:
    def __init__(self):
        self.left = SIZE
        self.block = bytes(range(256)) * 4096
    def read(self, size):
        chunk = self.block[:min(size, self.left)]
        self.left -= len(chunk)
        return chunk

root = Path(sys.argv[1])
repository, index = Repository(LocalStore(root / "store")), MemoryIndex()
repository.put([b"warm"], index)
before = resident()
key, rows = repository.put_stream(Source(), index)
index.add(rows)
digest = hashlib.sha256()
size = 0
with open(root / "copy", "wb") as copy:
    for piece in repository.stream(key, index):
        digest.update(piece)
        size += len(piece)
        copy.write(piece)
assert (size, digest.hexdigest()) == (SIZE, key)
assert Repository(LocalStore(root / "other")).put([root / "copy"], index) == ([key], {})
assert Repository(LocalStore(root / "other")).put([root / "copy"], MemoryIndex()) == ([key], rows)
print((resident() - before) >> 20)
"""


def test_a_large_blob_is_never_whole_in_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            os.unlink(path)
    assert int(done.stdout) < 60


def test_equal_contents_make_packs_that_unpack_to_their_keys(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    _, rows = Repository(store).put(BLOBS, MemoryIndex())
    [info] = store.list()
    with zipfile.ZipFile(store.root / info.name) as pack:
        assert pack.testzip() is None
        assert {name: hashlib.sha256(pack.read(name)).hexdigest() for name in pack.namelist()} == {
            key: key for key in rows
        }
