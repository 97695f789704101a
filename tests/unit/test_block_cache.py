"""The cache folder when things go wrong: damage, kills, full disks, many at once. What is read is right."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from test_local_store import in_child, namespace

from grange.repository import CountingStore, LocalStore, MemoryStore, StoreReadOnly
from grange.repository.block_cache import BlockCache
from grange.repository.cache_ledger import change_ledger, read_ledger
from grange.repository.cache_page import PAGE_BYTES, SEGMENT_BYTES
from grange.repository.cached_store import BLOCK_BYTES, CachedStore

SIZE = SEGMENT_BYTES + 3 * PAGE_BYTES + 777
CONTENT = random.Random(1).randbytes(SIZE)
# What one reader below writes at once, at most.
WRITTEN = 3 * 3 * BLOCK_BYTES


@pytest.fixture
def far() -> CountingStore:
    store = CountingStore(MemoryStore())
    store.put_if_absent("a", CONTENT)
    return store


def cache_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("blocks-1/??/*"))


def on_disk(folder: Path) -> int:
    total = 0
    for path in cache_files(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def flip(place: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            [byte] = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 1]))

    return damage


def zero(place: int, length: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes(length))

    return damage


def truncate(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def replace(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def exchange(path: Path) -> None:
    """What another file of the folder holds, and the other way round."""
    [other] = [other for other in path.parent.parent.glob("??/*") if other != path]
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


DATA = 4096
DAMAGES = {
    "a bit of a length": flip(0),
    "a high bit of a length": flip(3),
    "a bit of a checksum": flip(4),
    "a bit of the second entry": flip(12),
    "a bit of the content": flip(DATA + 5),
    "the last bit of a page": flip(DATA + PAGE_BYTES - 1),
    "a table of zeros": zero(0, 2048),
    "an entry of zeros": zero(8, 8),
    "content of zeros": zero(DATA, 3 * PAGE_BYTES),
    "a sector of zeros": zero(DATA + 512, 512),
    "nothing left": truncate(0),
    "half a table": truncate(12),
    "no content": truncate(DATA),
    "a part of a page": truncate(DATA + 1000),
    "a part of the last page": truncate(DATA + 3 * PAGE_BYTES + 776),
    "another file": exchange,
    "something else": replace(random.Random(2).randbytes(100_000)),
    "ones": replace(b"\xff" * 5_000_000),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen_and_heals(far: CountingStore, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    store = CachedStore(far, tmp_path, 100 << 20)
    for number in range(2):
        assert store.get_ranges("a", [(0, SIZE + 1)]) == [CONTENT]
        first, second = cache_files(tmp_path)
        calls = far.calls["get_ranges"]
        damage((first, second)[number])
        assert store.get_ranges("a", [(0, SIZE + 1)]) == [CONTENT]
        assert far.calls["get_ranges"] == calls + 1, "it was believed"
        assert store.get_ranges("a", [(0, SIZE + 1)]) == [CONTENT]
        assert far.calls["get_ranges"] == calls + 1, "it has not healed"


def test_every_byte_of_a_small_file_may_be_damaged(tmp_path: Path) -> None:
    content = b"some content of one page"
    far = MemoryStore()
    far.put_if_absent("a", content)
    store = CachedStore(far, tmp_path, 100 << 20)
    store.get_ranges("a", [(0, 100)])
    [path] = cache_files(tmp_path)
    good = path.read_bytes()
    for place in [*range(64), *range(DATA, len(good))]:
        for bit in range(8):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
            assert store.get_ranges("a", [(0, 100), (5, 5), (90, 1)]) == [content, content[5:10], b""]


def test_a_folder_where_a_file_should_be_is_no_error(far: CountingStore, tmp_path: Path) -> None:
    store = CachedStore(far, tmp_path, 100 << 20)
    store.get_ranges("a", [(0, 100)])
    [path] = cache_files(tmp_path)
    path.unlink()
    path.mkdir()
    for _ in range(2):
        assert store.get_ranges("a", [(5, 100)]) == [CONTENT[5:105]]
    shutil.rmtree(tmp_path / "blocks-1")
    for _ in range(3):
        assert store.get_ranges("a", [(5, 100)]) == [CONTENT[5:105]]
    assert len(cache_files(tmp_path)) == 1, "the folder was not made again"


@pytest.mark.parametrize("content", [b"", b"x" * 60, b"\xff" * 60, b"\0" * 60, b"x" * 5000], ids=range(5))
def test_a_damaged_ledger_is_made_anew(tmp_path: Path, content: bytes) -> None:
    far = MemoryStore()
    for name in "abcdefgh":
        far.put_if_absent(name, CONTENT[:300_000])
    store = CachedStore(far, tmp_path, 1 << 20)
    ledger = tmp_path / "blocks-1" / "ledger"
    for name in "abcdefgh":
        store.get_ranges(name, [(0, 300_000)])
        ledger.write_bytes(content)
        assert on_disk(tmp_path) <= 1 << 20
        assert store.get_ranges(name, [(0, 300_000)]) == [CONTENT[:300_000]]
    store.get_ranges("a", [(0, 300_000)])
    figures = read_ledger(ledger)
    assert figures is not None
    assert on_disk(tmp_path) <= figures.kept <= 1 << 20
    ledger.unlink()
    ledger.mkdir()
    assert store.get_ranges("b", [(0, 300_000)]) == [CONTENT[:300_000]]
    assert store.info().files > 0


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    far = CountingStore(MemoryStore())
    names = [f"packs/{number}" for number in range(10)]
    for name in [*names, "new"]:
        far.put_if_absent(name, CONTENT[:100_000])
    store = CachedStore(far, tmp_path, 1_100_000)
    for name in names:
        store.get_ranges(name, [(0, 100_000)])
    files = cache_files(tmp_path)
    assert len(files) == 10
    for path in files:
        os.utime(path, (1, 1))
    used = names[3:6]
    for name in used:
        store.get_ranges(name, [(10, 10)])
    store.get_ranges("new", [(0, 100_000)])
    assert len(cache_files(tmp_path)) == 10, "one had to go, and one was enough"
    far.calls.clear()
    for name in [*used, "new"]:
        store.get_ranges(name, [(0, 100_000)])
    assert far.calls["get_ranges"] == 0


def test_a_read_writes_only_now_and_then(far: CountingStore, tmp_path: Path) -> None:
    store = CachedStore(far, tmp_path, 100 << 20)
    store.get_ranges("a", [(0, 100)])
    [path] = cache_files(tmp_path)
    before = path.stat()
    store.get_ranges("a", [(0, 100)])
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    os.utime(path, (before.st_mtime - 100, before.st_mtime - 100))
    store.get_ranges("a", [(0, 100)])
    assert path.stat().st_mtime >= before.st_mtime
    assert path.stat().st_size == before.st_size


def test_only_what_is_ours_is_removed(far: CountingStore, tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("from somebody")
    store = CachedStore(far, tmp_path, 100 << 20)
    store.get_ranges("a", [(0, SIZE)])
    [bucket, *_] = {path.parent for path in cache_files(tmp_path)}
    (bucket / "letter").write_text("from somebody")
    (tmp_path / "blocks-1" / "photos").mkdir()
    (tmp_path / "blocks-1" / "photos" / cache_files(tmp_path)[0].name).write_text("of somebody")
    assert store.clear() > SIZE
    assert (tmp_path / "letter").exists()
    assert (bucket / "letter").exists()
    assert len(list((tmp_path / "blocks-1" / "photos").iterdir())) == 1
    assert [path.name for path in cache_files(tmp_path) if path.parent == bucket] == ["letter"]


def test_the_folder_is_for_this_user_alone(far: CountingStore, tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        CachedStore(far, tmp_path / "deep" / "cache", 100 << 20).get_ranges("a", [(0, 100)])
    finally:
        os.umask(mask)
    for path in (tmp_path / "deep").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    (tmp_path / "deep" / "cache" / "blocks-1").chmod(0o777)
    BlockCache(tmp_path / "deep" / "cache", 100)
    assert stat.S_IMODE((tmp_path / "deep" / "cache" / "blocks-1").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["a file", "below a file", "a link", "somebody else's"])
def test_a_folder_that_cannot_be_trusted_is_not_used(far: CountingStore, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "cache"
    if kind == "a file":
        folder.write_text("x")
    elif kind == "below a file":
        (tmp_path / "file").write_text("x")
        folder = tmp_path / "file" / "cache"
    else:
        good = CachedStore(far, folder, 100 << 20)
        good.get_ranges("a", [(0, 100)])
        if kind == "a link":
            (folder / "blocks-1").rename(tmp_path / "elsewhere")
            (folder / "blocks-1").symlink_to(tmp_path / "elsewhere")
        elif os.geteuid() == 0:
            os.chown(folder / "blocks-1", 65534, 65534)
        else:
            pytest.skip("only root can give a folder away")
    far.calls.clear()
    store = CachedStore(far, folder, 100 << 20)
    for _ in range(2):
        assert store.get_ranges("a", [(0, 100)]) == [CONTENT[:100]]
    assert far.calls["get_ranges"] == 2
    assert store.clear() == 0
    store.info()


READER = """
import sys
from pathlib import Path
from grange.repository import LocalStore
from grange.repository.cached_store import CachedStore
import random

root, folder, limit, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
inner = LocalStore(root)
store = CachedStore(inner, folder, limit)
names = sorted(info.name for info in inner.list())
choice = random.Random(seed)
print("reading", flush=True)
for _ in range(int(sys.argv[5])):
    name = choice.choice(names)
    ranges = [(choice.randrange(5 << 20), choice.choice([100, 5000, 200_000])) for _ in range(3)]
    assert store.get_ranges(name, ranges) == inner.get_ranges(name, ranges)
print("right", flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with eight objects of 5 MiB."""
    inner = LocalStore(tmp_path / "store")
    for number in range(8):
        inner.put_if_absent(f"packs/{number}", random.Random(number).randbytes(5 << 20))
    return tmp_path / "store"


def start_reader(root: Path, folder: Path, limit: int, seed: int, rounds: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", READER, str(root), str(folder), str(limit), str(seed), str(rounds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


def test_readers_killed_at_any_time_leave_nothing_wrong(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    limit = 20 << 20
    chance = random.Random(7)
    for seed in range(12):
        with start_reader(root, folder, limit, seed, 1_000_000) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"reading\n"
            time.sleep(chance.uniform(0.0, 0.15))
            reader.send_signal(signal.SIGKILL)
    assert on_disk(folder) <= limit + WRITTEN
    inner = LocalStore(root)
    store = CachedStore(inner, folder, limit)
    assert store.info().kept_bytes > 1 << 20, "they were killed before they had kept anything"
    for info in inner.list():
        content = b"".join(inner.read(info.name))
        for place in range(0, len(content), 100_000):
            assert store.get_ranges(info.name, [(place, 100_000)]) == [content[place : place + 100_000]]
    left = {path.name for path in (folder / "blocks-1").iterdir() if path.is_file()}
    assert left == {"ledger", "evicting"}


def test_many_processes_fill_one_folder_and_the_bound_is_kept(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    limit = 12 << 20
    readers = [start_reader(root, folder, limit, seed, 400) for seed in range(5)]
    highest = 0
    while any(reader.poll() is None for reader in readers):
        highest = max(highest, on_disk(folder))
        time.sleep(0.01)
    for reader in readers:
        assert reader.stdout is not None
        assert reader.communicate()[0].endswith(b"right\n")
    assert limit // 3 < highest <= limit + len(readers) * WRITTEN
    assert BlockCache(folder, limit).info().hits > 100


def test_threads_share_one_store(root: Path, tmp_path: Path) -> None:
    inner = LocalStore(root)
    store = CachedStore(inner, tmp_path / "cache", 12 << 20)
    wrong: list[object] = []

    def work(seed: int) -> None:
        choice = random.Random(seed)
        for _ in range(150):
            name = f"packs/{choice.randrange(8)}"
            ranges = [(choice.randrange(5 << 20), choice.choice([100, 5000, 200_000])) for _ in range(3)]
            if store.get_ranges(name, ranges) != inner.get_ranges(name, ranges):
                wrong.append((name, ranges))
            if choice.random() < 0.02:
                store.forget([name])
        store.info()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    info = store.info()
    assert info.hits + info.misses == 8 * 150 * 3
    assert on_disk(tmp_path / "cache") <= 12 << 20


def test_nobody_waits_for_a_process_that_was_stopped(far: CountingStore, tmp_path: Path) -> None:
    store = CachedStore(far, tmp_path, 100 << 20)
    store.get_ranges("a", [(0, 100)])
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with change_ledger(tmp_path / "blocks-1" / "ledger"):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    try:
        began = time.monotonic()
        for _ in range(3):
            assert store.get_ranges("a", [(0, 100), (SIZE - 10, 10)]) == [CONTENT[:100], CONTENT[-10:]]
        assert time.monotonic() - began < 5
        assert len(cache_files(tmp_path)) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store.get_ranges("a", [(SIZE - 10, 10)])
    assert len(cache_files(tmp_path)) == 2


def test_a_limit_on_files_makes_it_slower(far: CountingStore, tmp_path: Path) -> None:
    """The kernel's limit stands in for a full disk where nothing can be mounted."""
    import resource

    def check() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        store = CachedStore(far, tmp_path, 100 << 20)
        for _ in range(2):
            assert store.get_ranges("a", [(0, SIZE)]) == [CONTENT]
            assert store.get_ranges("a", [(BLOCK_BYTES, 10)]) == [CONTENT[BLOCK_BYTES:][:10]]
            assert b"".join(store.read("a")) == CONTENT

    in_child(check, as_nobody=False)


MOUNTED = """
import sys
from pathlib import Path
from grange.repository import CountingStore, MemoryStore
from grange.repository.cached_store import CachedStore

kind, folder = sys.argv[1], Path(sys.argv[2])
far = CountingStore(MemoryStore())
names = [f"packs/{number}" for number in range(20)]
for number, name in enumerate(names):
    far.put_if_absent(name, bytes([number]) * 500_000)
store = CachedStore(far, folder, 100 << 20)
for _ in range(3):
    for number, name in enumerate(names):
        content = bytes([number]) * 200_000
        assert store.get_ranges(name, [(0, 1), (300_000, 400_000)]) == [content[:1], content]
        assert b"".join(store.read(name)) == bytes([number]) * 500_000
far.calls.clear()
if kind == "full":
    # what was read last is there, although the disk was full long before
    assert store.get_ranges(names[-1], [(0, 500_000)]) == [bytes([19]) * 500_000]
    assert far.calls["get_ranges"] == 0, store.info()
    assert 1_000_000 < store.info().kept_bytes <= 3 << 20, store.info()
    assert store.clear() > 1_000_000
else:
    assert store.get_ranges("packs/0", [(0, 100_000)]) == [bytes(100_000)]
    assert far.calls["get_ranges"] == 0, "what is there is of use still"
    store.delete(names)
    store.info()
    try:
        store.clear()
    except Exception as error:
        assert type(error).__name__ == "StoreReadOnly", repr(error)
    else:
        sys.exit("it was cleared")
"""


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_is_full_or_read_only_makes_it_slower(tmp_path: Path, kind: str) -> None:
    private = namespace()
    if private is None:
        pytest.skip("file systems cannot be mounted here (unshare -m is not allowed)")
    far = MemoryStore()
    far.put_if_absent("packs/0", bytes(500_000))
    CachedStore(far, tmp_path, 100 << 20).get_ranges("packs/0", [(0, 500_000)])
    mount = {
        "full": 'mount -t tmpfs -o size=3m,mode=700 tmpfs "$3"',
        "read-only": 'mount --bind "$3" "$3" && mount -o remount,ro,bind "$3"',
    }[kind]
    script = f'{mount} && exec "$0" -c "$1" "$2" "$3"'
    done = subprocess.run(
        [*private, "sh", "-c", script, sys.executable, MOUNTED, kind, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_folder_without_the_right_to_write_is_read(far: CountingStore) -> None:
    def check() -> None:
        with tempfile.TemporaryDirectory() as folder:
            store = CachedStore(far, Path(folder), 100 << 20)
            store.get_ranges("a", [(0, 100)])
            [path] = cache_files(Path(folder))
            closed = [path, path.parent, path.parent.parent / "ledger", path.parent.parent]
            for place in closed:
                place.chmod(0o500)
            far.calls.clear()
            assert store.get_ranges("a", [(0, 100), (SIZE - 9, 10)]) == [CONTENT[:100], CONTENT[-9:]]
            assert store.get_ranges("a", [(0, 100)]) == [CONTENT[:100]]
            assert far.calls["get_ranges"] == 1
            with pytest.raises(StoreReadOnly):
                store.clear()
            for place in closed:
                place.chmod(0o700)

    in_child(check, as_nobody=os.geteuid() == 0)
