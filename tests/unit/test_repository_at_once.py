"""The repository over a store that is far away: many calls at once, in order, in bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence

import pytest

from grange.repository import (
    BlobLocation,
    BlobMissing,
    Key,
    MemoryIndex,
    MemoryStore,
    Range,
    Repository,
    Store,
    StoreUnavailable,
    key_of,
)
from grange.repository.team import Team


class FarStore(MemoryStore):
    """Each call takes a while; tells how many were under way at once."""

    parallel = 8

    def __init__(self) -> None:
        super().__init__()
        self._under_way = 0
        self._guard = threading.Lock()
        self.most = 0
        self.asked = 0

    def _wait(self) -> None:
        with self._guard:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        time.sleep(0.02)
        with self._guard:
            self._under_way -= 1

    def put_if_absent(self, name: str, source: object) -> bool:
        self._wait()
        return super().put_if_absent(name, source)  # type: ignore[arg-type]

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        self._wait()
        contents = super().get_ranges(name, ranges)
        with self._guard:
            self.asked += sum(map(len, contents))
        return contents


def filled(store: Store, count: int, pack_target_bytes: int = 1) -> tuple[Repository, list[Key], MemoryIndex]:
    repository, index = Repository(store, pack_target_bytes=pack_target_bytes), MemoryIndex()
    keys, rows = repository.put([b"content %d" % i for i in range(count)], index)
    index.add(rows)
    return repository, keys, index


def test_packs_are_written_and_read_many_at_once_in_order() -> None:
    store = FarStore()
    repository, keys, index = filled(store, 100)
    assert store.most == 4  # packs in memory
    assert len({row.object_name for row in index.rows.values()}) == 100
    contents = [b"content %d" % i for i in range(100)]
    assert repository.read(keys[::-1], index) == contents[::-1]
    assert store.most == 8
    store.most = 0
    assert list(repository.read_each(keys, index)) == contents
    assert store.most == 8


def test_a_pack_that_fails_fails_the_whole_put() -> None:
    class Failing(FarStore):
        puts = 0

        def put_if_absent(self, name: str, source: object) -> bool:
            with self._guard:
                self.puts += 1
                if self.puts == 5:
                    raise StoreUnavailable("the fifth is lost")
            return super().put_if_absent(name, source)

    store = Failing()
    with pytest.raises(StoreUnavailable, match="fifth"):
        filled(store, 30)
    assert store.puts <= 5 + 4  # those that were under way, and no more
    before = store.puts
    time.sleep(0.1)
    assert store.puts == before, "a put goes on after it was said to have failed"


def test_keys_are_looked_up_some_thousands_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grange.repository.repository.LOOKED_UP_AT_ONCE", 70)
    repository, keys, index = filled(FarStore(), 200, pack_target_bytes=10_000)
    asked: list[int] = []

    class Telling(MemoryIndex):
        def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
            asked.append(len(keys))
            return index.find(keys)

    given = repository.read_each(iter(keys), Telling(), window_bytes=100)
    assert asked == [70]
    assert [next(given) for _ in range(20)] == [b"content %d" % i for i in range(20)]
    assert asked == [70]
    assert list(given) == [b"content %d" % i for i in range(20, 200)]
    assert asked == [70, 70, 60]


@pytest.mark.parametrize("far", [False, True])
def test_windows_bound_what_is_read_ahead(far: bool) -> None:
    store = FarStore() if far else MemoryStore()
    repository, keys, index = filled(store, 200, pack_target_bytes=10_000)
    wanted = [*keys, keys[0], keys[150]]
    given = repository.read_each(wanted, index, window_bytes=100)
    first = [next(given) for _ in range(3)]
    assert first == [b"content 0", b"content 1", b"content 2"]
    if isinstance(store, FarStore):
        assert store.asked < 1000  # of 2,090
    assert [*first, *given] == [b"content %d" % i for i in [*range(200), 0, 150]]
    assert list(repository.read_each([], index)) == []


def test_all_that_is_missing_is_named_before_anything_is_given() -> None:
    repository, keys, index = filled(FarStore(), 3)
    with pytest.raises(BlobMissing) as caught:
        repository.read_each([keys[0], key_of(b"never")], index)
    assert caught.value.keys == [key_of(b"never")]
    repository.store.delete([index.rows[keys[2]].object_name])
    given = repository.read_each(keys, index, window_bytes=1)
    assert [next(given), next(given)] == [b"content 0", b"content 1"]
    with pytest.raises(BlobMissing) as caught:
        next(given)
    assert caught.value.keys == [keys[2]]


class Moving(MemoryIndex):
    """Tells old places once: what it knows has just been moved to another pack."""

    def __init__(self, old: dict[Key, BlobLocation], new: dict[Key, BlobLocation]) -> None:
        super().__init__()
        self.rows = old
        self._new = new

    def find(self, keys: object) -> dict[Key, BlobLocation]:
        found = super().find(keys)  # type: ignore[arg-type]
        self.rows = self._new
        return found


@pytest.mark.parametrize("store", [MemoryStore(), FarStore()])
def test_what_was_moved_while_it_is_read_is_found(store: Store) -> None:
    contents = [b"text that repeats itself " * n for n in (1, 50, 1000)]
    repository = Repository(store)
    keys, old = repository.put(contents, MemoryIndex())
    _, new = repository.put(contents, MemoryIndex())
    store.delete({row.object_name for row in old.values()})
    assert repository.read(keys, Moving(dict(old), dict(new))) == contents
    assert list(repository.read_each(keys, Moving(dict(old), dict(new)))) == contents
    for key, content in zip(keys, contents, strict=True):
        assert b"".join(repository.stream(key, Moving(dict(old), dict(new)), 100)) == content
    with pytest.raises(BlobMissing):
        repository.read(keys, Moving(dict(old), dict(old)))
    with pytest.raises(BlobMissing):
        list(repository.stream(keys[0], Moving(dict(old), dict(old))))


def test_a_put_holds_before_it_looks() -> None:
    said: list[str] = []

    class Telling(MemoryIndex):
        def hold(self) -> None:
            said.append("hold")

        def find(self, keys: object) -> dict[Key, BlobLocation]:
            said.append("find")
            return super().find(keys)  # type: ignore[arg-type]

    repository = Repository(MemoryStore())
    repository.put([b"a"], Telling())
    assert said == ["hold", "find"]
    said.clear()
    repository.read([], Telling())
    repository.put([], Telling())
    assert said == []


def test_a_team_keeps_order_bounds_and_errors() -> None:
    for size in (1, 5):
        with Team(size) as team:
            assert list(team.map(lambda number: number * 2, range(100))) == list(range(0, 200, 2))
            taken: list[int] = []
            some = team.map(lambda number: number, (taken.append(number) or number for number in range(100)))
            assert next(some) == 0
            assert len(taken) <= 2 * size
            broken = team.map(lambda number: 1 // (3 - number), range(10))
            assert [next(broken), next(broken), next(broken)] == [0, 0, 1]
            with pytest.raises(ZeroDivisionError):
                next(broken)
            with pytest.raises(ZeroDivisionError):
                team.start(lambda: 1 // 0).result()
