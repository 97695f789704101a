"""A store that asks again what did not answer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from grange.repository.cached_store import CachedStore
from grange.repository.errors import ContentChanged, StoreUnavailable
from grange.repository.key import Key, key_of
from grange.repository.local_store import LocalStore
from grange.repository.memory_store import MemoryStore
from grange.repository.retries import Retries
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store
from grange.repository.signer import Signer
from grange.repository.source import Source
from grange.repository.store import Contents, ObjectInfo, Range
from grange.repository.unchanged import UnchangedFile

MIB = 1 << 20

Urls = list[str]


class Shaky(MemoryStore):
    """A store that is unavailable as often as it is told, also in the midst of things."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures

    def fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("not now")

    def put_if_absent(self, name: str, source: Source) -> bool:
        if self.failures and not isinstance(source, bytes | bytearray | memoryview | Path):
            source.read(MIB)  # as far as it came
        self.fail()
        return super().put_if_absent(name, source)

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        self.fail()
        return super().get_ranges(name, ranges)

    def read(self, name: str) -> Iterator[bytes]:
        for piece in super().read(name):
            yield piece
            self.fail()

    def head(self, name: str) -> int | None:
        self.fail()
        return super().head(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        listing = super().list(prefix)
        return self._shaking(listing)

    def _shaking(self, listing: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        for number, info in enumerate(listing):
            yield info
            if number % 3 == 2:
                self.fail()


class ShakyInOrder(Shaky):
    """It can go on with a listing."""

    continued = 0

    def list_after(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        self.continued += 1
        rest = [info for info in MemoryStore.list(self, prefix) if info.name > name]
        return self._shaking(iter(rest))


class Signing(MemoryStore):
    def sign_get(self, names: Sequence[str], expires_s: float) -> Urls:
        return [f"get {name} {expires_s}" for name in names]

    def sign_put(self, names: Sequence[str], expires_s: float) -> Urls:
        return [f"put {name} {expires_s}" for name in names]


class OneWay:
    """A file that gives what it has once."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)


def retrying(store: MemoryStore, tries: int = 10) -> RetryingStore:
    return RetryingStore(store, Retries(tries=tries, first_pause_s=0.001))


CONTENT = bytes(range(256)) * (3 * MIB // 256)


@pytest.mark.parametrize(
    "source",
    [
        lambda path: CONTENT,
        lambda path: bytearray(CONTENT),
        lambda path: path,
        lambda path: io.BytesIO(CONTENT),
        lambda path: UnchangedFile(io.BytesIO(CONTENT), key_of(CONTENT), "a file"),
        lambda path: OneWay(CONTENT),
    ],
    ids=["bytes", "bytearray", "path", "seekable", "unchanged", "one way, short"],
)
def test_a_source_is_given_once_more_from_its_beginning(
    tmp_path: Path, source: Callable[[Path], Source]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    shaky = Shaky(failures=3)
    store = retrying(shaky)
    assert store.put_if_absent("a", source(path)) is True
    assert b"".join(shaky.read("a")) == CONTENT
    assert store.retries.retried == 3


def test_a_file_is_given_once_more_from_where_it_was() -> None:
    file = io.BytesIO(b"before" + CONTENT)
    file.seek(6)
    shaky = Shaky(failures=1)
    retrying(shaky).put_if_absent("a", file)
    assert b"".join(shaky.read("a")) == CONTENT


def test_a_long_file_without_a_way_back_is_not_put_in_part() -> None:
    shaky = Shaky(failures=1)
    with pytest.raises(StoreUnavailable, match="not now"):
        retrying(shaky).put_if_absent("a", OneWay(CONTENT * 4))
    assert shaky.head("a") is None
    assert retrying(shaky).put_if_absent("a", OneWay(CONTENT * 4)) is True
    assert shaky.head("a") == len(CONTENT) * 4


def test_a_file_that_changed_is_refused_after_a_retry_too() -> None:
    shaky = Shaky(failures=1)
    with pytest.raises(ContentChanged):
        retrying(shaky).put_if_absent("a", UnchangedFile(io.BytesIO(CONTENT), Key("0" * 64), "a file"))
    assert shaky.head("a") is None


def test_reading_goes_on_where_it_was() -> None:
    shaky = Shaky()
    shaky.put_if_absent("a", CONTENT + b"the end")
    shaky.failures = 3
    store = retrying(shaky)
    assert b"".join(store.read("a")) == CONTENT + b"the end"
    assert store.retries.retried == 3


def test_an_error_after_the_last_piece_gives_nothing_twice() -> None:
    shaky = Shaky()
    shaky.put_if_absent("a", b"x" * MIB)
    shaky.failures = 1
    assert b"".join(retrying(shaky).read("a")) == b"x" * MIB


@pytest.mark.parametrize("kind", [Shaky, ShakyInOrder])
def test_listing_goes_on_where_it_was(kind: type[Shaky]) -> None:
    shaky = kind()
    names = [f"a/{n:02}" for n in range(20)]
    for name in names:
        shaky.put_if_absent(name, b"x")
    shaky.failures = 5
    # Each failure comes after three more names: with two tries it gets through only if those count.
    listed = [info.name for info in retrying(shaky, tries=6 if kind is Shaky else 2).list("a/")]
    assert listed == names
    if isinstance(shaky, ShakyInOrder):
        assert shaky.continued == 5


def test_it_gives_up() -> None:
    store = retrying(Shaky(failures=100), tries=3)
    for call in (
        lambda: store.head("a"),
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.get_ranges("a", [(0, 1)]),
    ):
        with pytest.raises(StoreUnavailable, match="tried 3 times"):
            call()
    assert store.retries.given_up == 3


def test_it_signs_where_the_store_does() -> None:
    store = RetryingStore(Signing())
    assert isinstance(store, Signer)
    assert store.sign_get(["a", "b"], 5) == ["get a 5", "get b 5"]
    assert store.sign_put(["a"], 7) == ["put a 7"]
    plain = RetryingStore(MemoryStore())
    assert not isinstance(plain, Signer)
    assert not hasattr(plain, "sign_get")


def test_people_read_where_the_objects_are(tmp_path: Path) -> None:
    """Wrappers say what they wrap: in messages, a store is its place."""
    settings = S3Settings("https://s3.example.org", "ada-files")
    store = CachedStore(RetryingStore(S3Store(settings)), tmp_path, 1000)
    assert str(store) == "s3://ada-files at https://s3.example.org"
    assert repr(store).startswith("CachedStore(RetryingStore(S3Store(")
    assert str(RetryingStore(LocalStore(tmp_path))) == str(tmp_path)
