"""A store with a cache before it: what it asks the store for, and what it gives."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grange.repository import CountingStore, MemoryStore, ObjectMissing, Range, StoreUnavailable
from grange.repository.cache_page import PAGE_BYTES, SEGMENT_BYTES
from grange.repository.cached_store import BLOCK_BYTES, CachedStore
from grange.repository.signer import Signer

LIMIT = 1 << 30


class Far(CountingStore):
    """A store that notes which ranges it is asked for, and can be out of reach."""

    merge_gap_bytes = 0

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.asked: list[Range] = []
        self.down = False

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        self.asked += ranges
        if self.down:
            raise StoreUnavailable("down")
        return super().get_ranges(name, ranges)

    def read(self, name: str) -> Iterator[bytes]:
        if self.down:
            raise StoreUnavailable("down")
        return super().read(name)


@pytest.fixture
def far() -> Far:
    return Far()


@pytest.fixture
def store(far: Far, tmp_path: Path) -> CachedStore:
    return CachedStore(far, tmp_path / "cache", LIMIT)


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


EDGES = [0, 1, PAGE_BYTES, BLOCK_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES, 2 * SEGMENT_BYTES + BLOCK_BYTES]
SIZES = st.builds(lambda edge, step: max(0, edge + step), st.sampled_from(EDGES), st.integers(-2, 2))
OFFSETS = SIZES | st.integers(0, 3 * SEGMENT_BYTES)
RANGES = st.lists(st.tuples(OFFSETS, SIZES | st.integers(0, 3 * BLOCK_BYTES)), max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=SIZES, calls=st.lists(RANGES, min_size=1, max_size=6), gap=st.sampled_from([0, 300_000]))
def test_ranges_are_those_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, size: int, calls: list[list[Range]], gap: int
) -> None:
    content = noise(size)
    far = Far()
    far.merge_gap_bytes = gap
    far.put_if_absent("a", content)
    store = CachedStore(far, tmp_path_factory.mktemp("cache"), LIMIT)
    for ranges in calls:
        assert store.get_ranges("a", ranges) == [content[start : start + n] for start, n in ranges]
    assert b"".join(store.read("a")) == content
    far.down = True
    # all that was asked for is here now; of an empty range the store is asked whether the object is there
    for ranges in calls:
        some = [(start, n) for start, n in ranges if n]
        if some:
            assert store.get_ranges("a", some) == [content[start : start + n] for start, n in some]


def test_what_was_read_is_not_asked_for_again_by_anybody(
    store: CachedStore, far: Far, tmp_path: Path
) -> None:
    content = noise(10_000_000)
    far.put_if_absent("packs/a", content)
    assert store.get_ranges("packs/a", [(0, 9_000_000), (9_999_000, 5000)]) == [
        content[:9_000_000],
        content[9_999_000:],
    ]
    far.down = True
    other = CachedStore(far, tmp_path / "cache", LIMIT)
    for someone in (store, other):
        assert someone.get_ranges("packs/a", [(5_000_000, 4_000_000)]) == [content[5_000_000:9_000_000]]
        assert someone.get_ranges("packs/a", [(9_999_999, 10), (20_000_000, 1)])[0] == content[-1:]


def test_a_small_range_fetches_a_block(store: CachedStore, far: Far) -> None:
    content = noise(10 * BLOCK_BYTES)
    far.put_if_absent("a", content)
    store.get_ranges("a", [(5 * BLOCK_BYTES + 5000, 4096)])
    assert far.asked == [(5 * BLOCK_BYTES, BLOCK_BYTES)]
    assert far.received_bytes["get_ranges"] <= 256 << 10
    store.get_ranges("a", [(6 * BLOCK_BYTES - 2000, 4096)])
    assert far.asked[1:] == [(6 * BLOCK_BYTES, BLOCK_BYTES)], "what was there was fetched again"


def test_all_that_one_call_misses_is_fetched_by_one_call(store: CachedStore, far: Far) -> None:
    content = noise(40 * BLOCK_BYTES)
    far.put_if_absent("a", content)
    store.get_ranges("a", [(4 * BLOCK_BYTES, 1)])
    del far.asked[:]
    far.calls.clear()
    wanted = [(block * BLOCK_BYTES + 7, 100) for block in (30, 3, 4, 5, 2, 20, 3)]
    assert store.get_ranges("a", wanted) == [content[start : start + n] for start, n in wanted]
    assert far.calls["get_ranges"] == 1
    assert far.asked == [
        (2 * BLOCK_BYTES, 2 * BLOCK_BYTES),
        (5 * BLOCK_BYTES, BLOCK_BYTES),
        (20 * BLOCK_BYTES, BLOCK_BYTES),
        (30 * BLOCK_BYTES, BLOCK_BYTES),
    ]


def test_blocks_that_the_store_would_rather_give_as_one_are_asked_for_so(
    store: CachedStore, far: Far
) -> None:
    far.merge_gap_bytes = 2 * BLOCK_BYTES
    far.put_if_absent("a", noise(40 * BLOCK_BYTES))
    store.get_ranges("a", [(0, 1), (3 * BLOCK_BYTES, 1), (20 * BLOCK_BYTES, 1)])
    assert far.asked == [(0, 4 * BLOCK_BYTES), (20 * BLOCK_BYTES, BLOCK_BYTES)]


def test_what_the_store_refuses_is_refused_and_not_kept(store: CachedStore, far: Far) -> None:
    far.put_if_absent("a", b"content")
    far.down = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.get_ranges("a", [(0, 7)])
        with pytest.raises(StoreUnavailable):
            b"".join(store.read("a"))
    far.down = False
    assert store.get_ranges("a", [(0, 7)]) == [b"content"]
    for _ in range(2):
        with pytest.raises(ObjectMissing):
            store.get_ranges("b", [(0, 7)])
        with pytest.raises(ObjectMissing):
            store.get_ranges("b", [])


def test_a_whole_read_is_kept(store: CachedStore, far: Far) -> None:
    content = noise(9_000_000)
    far.put_if_absent("a", content)
    assert b"".join(store.read("a")) == content
    far.down = True
    assert b"".join(store.read("a")) == content
    assert store.get_ranges("a", [(8_999_999, 10)]) == [content[-1:]]


def test_a_read_that_ends_early_leaves_what_is_true(store: CachedStore, far: Far) -> None:
    content = noise(9_000_000)
    far.put_if_absent("a", content)
    reading = store.read("a")
    assert content.startswith(next(reading))
    assert content[1 << 20 :].startswith(next(reading))
    reading.close()  # type: ignore[attr-defined]
    assert b"".join(store.read("a")) == content


def test_what_is_too_large_for_the_cache_is_not_kept(far: Far, tmp_path: Path) -> None:
    content = noise(6_000_000)
    far.put_if_absent("a", content)
    far.put_if_absent("small", b"x")
    store = CachedStore(far, tmp_path, 4_000_000)
    store.get_ranges("small", [(0, 1)])
    assert store.get_ranges("a", [(0, 3_000_000)]) == [content[:3_000_000]]
    assert store.info().files == 1
    assert b"".join(store.read("a")) == content
    kept = store.info().kept_bytes
    assert 900_000 < kept < 1_200_000, "a quarter of the bound is for one object"
    assert store.get_ranges("a", [(950_000, 200_000), (2_000_000, 9)]) == [
        content[950_000:1_150_000],
        content[2_000_000:][:9],
    ]
    assert store.info().kept_bytes < kept + 100_000
    far.down = True
    assert store.get_ranges("small", [(0, 1)]) == [b"x"]
    assert CachedStore(far, tmp_path / "none", 0).info().kept_bytes == 0


def test_what_is_deleted_is_let_go_of(store: CachedStore, far: Far) -> None:
    for name in ("a", "b", "c"):
        far.put_if_absent(name, name.encode() * 100)
        store.get_ranges(name, [(0, 100)])
    store.delete(iter(["a", "b"]))
    assert store.info().files == 1
    assert far.head("a") is None
    with pytest.raises(ObjectMissing):
        store.get_ranges("a", [(0, 100)])
    assert store.get_ranges("c", [(0, 3)]) == [b"ccc"]


def test_a_name_that_others_have_freed_is_read_anew(store: CachedStore, far: Far, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"healed")
    for put in (
        lambda name: store.put_if_absent(name, b"healed"),
        lambda name: store.adopt(name, tmp_path / "file"),
        lambda name: far.put_if_absent(name, b"healed") and store.forget([name]),
    ):
        far.put_if_absent("blobs/a", b"damaged")
        store.get_ranges("blobs/a", [(0, 10)])
        far.delete(["blobs/a"])
        put("blobs/a")
        assert store.get_ranges("blobs/a", [(0, 10)]) == [b"healed"]
        far.delete(["blobs/a"])
        store.forget(["blobs/a"])


def test_it_signs_where_the_store_does(far: Far, tmp_path: Path) -> None:
    class Signing(Far):
        def sign_get(self, names: Sequence[str], expires_s: float) -> list[str]:
            return [f"get {name} {expires_s}" for name in names]

        def sign_put(self, names: Sequence[str], expires_s: float) -> list[str]:
            return [f"put {name} {expires_s}" for name in names]

    assert not isinstance(CachedStore(far, tmp_path, LIMIT), Signer)
    store = CachedStore(Signing(), tmp_path, LIMIT)
    assert isinstance(store, Signer)
    assert store.sign_get(["a", "b"], 60) == ["get a 60", "get b 60"]
    assert store.sign_put(["a"], 60) == ["put a 60"]


def test_use_is_counted_for_all_together(store: CachedStore, far: Far, tmp_path: Path) -> None:
    far.put_if_absent("a", noise(3 * BLOCK_BYTES))
    store.get_ranges("a", [(0, 100), (PAGE_BYTES, 100), (2 * BLOCK_BYTES, 100)])
    other = CachedStore(far, tmp_path / "cache", LIMIT)
    other.get_ranges("a", [(0, 100), (BLOCK_BYTES, 100)])
    info = other.info()
    store.info()
    info = other.info()
    assert (info.hits, info.misses) == (1, 4)
    assert (info.hit_bytes, info.fetched_bytes) == (PAGE_BYTES, 3 * BLOCK_BYTES)
    assert 3 * BLOCK_BYTES < info.kept_bytes < 3 * BLOCK_BYTES + 20_000
    assert abs(info.since - time.time()) < 60
    assert store.clear() == info.kept_bytes
    info = other.info()
    assert (info.files, info.kept_bytes, info.hits, info.misses) == (0, 0, 0, 0)
    other.get_ranges("a", [(0, 100)])
    assert other.info().files == 1


def test_a_fork_goes_on(store: CachedStore, far: Far) -> None:
    content = noise(2_000_000)
    far.put_if_absent("a", content)
    store.get_ranges("a", [(0, 100)])
    child = os.fork()
    if child == 0:
        good = store.get_ranges("a", [(0, 100), (1_000_000, 100)]) == [
            content[:100],
            content[1_000_000:1_000_100],
        ]
        store.info()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    far.down = True
    assert store.get_ranges("a", [(1_000_000, 100)]) == [content[1_000_000:1_000_100]]
    info = store.info()
    assert (info.hits, info.misses) == (2, 2), "what was counted before the fork counts once"
