"""Writing blobs anew: long ones never whole in memory, and none by way of a cache."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from grange.repository import BlobCorrupt, LocalStore, MemoryIndex, Repository, key_of
from grange.repository.cached_store import CachedStore
from grange.repository.object_use import ObjectUse
from grange.repository.pack import PackWriter, size_of_pack
from grange.repository.repack_plan import plan_repack
from grange.repository.repacking import repack
from grange.repository.rewriting import rewritten

LONG = random.Random(1).randbytes(9 << 20)
SHORT = [random.Random(seed).randbytes(3000) for seed in range(2, 6)]


def adopted(store: LocalStore, tmp_path: Path) -> MemoryIndex:
    """A pack with short blobs and long ones, as a runner writes it: one stored, one deflated."""
    path = tmp_path / "pack.zip"
    with zipfile.ZipFile(path, "w") as pack:
        for content in [SHORT[0], LONG, *SHORT[1:]]:
            pack.writestr(key_of(content), content)
        pack.writestr(key_of(bytes(20 << 20)), bytes(20 << 20), zipfile.ZIP_DEFLATED)
    index = MemoryIndex()
    index.add(Repository(store).adopt(path))
    return index


def test_short_ones_lie_together_and_long_ones_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    old = adopted(store, tmp_path)
    new = rewritten(store, old.rows)
    assert new.keys() == old.rows.keys()
    assert {row.object_name for row in new.values()}.isdisjoint(r.object_name for r in old.rows.values())
    assert len({new[key_of(content)].object_name for content in SHORT}) == 1
    for content in (LONG, bytes(20 << 20)):
        row = new[key_of(content)]
        assert row.object_name.startswith("blobs/")
        assert row.size == store.head(row.object_name)
    index = MemoryIndex()
    index.add(new)
    contents = [*SHORT, LONG, bytes(20 << 20)]
    assert Repository(store).read([key_of(one) for one in contents], index, verify=True) == contents


def test_a_cache_is_neither_believed_nor_filled(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    old = adopted(store, tmp_path)
    cached = CachedStore(store, tmp_path / "cache", 100 << 20)
    Repository(cached).read([key_of(SHORT[0])], old)
    kept = cached.info().kept_bytes
    assert kept
    rewritten(cached, {key: row for key, row in old.rows.items() if key != key_of(SHORT[0])})
    assert cached.info().kept_bytes == kept
    place = old.rows[key_of(SHORT[0])]
    path = tmp_path / "store" / place.object_name
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(bytes(16))
    assert Repository(cached).read([key_of(SHORT[0])], old) == [SHORT[0]]
    with pytest.raises(BlobCorrupt):
        rewritten(cached, {key_of(SHORT[0]): place})


class Moving:
    """An index of which all packs are to be repacked."""

    def __init__(self, index: MemoryIndex) -> None:
        self.rows = index.rows

    def locations(self, names: object) -> dict:  # type: ignore[type-arg]
        return dict(self.rows)

    def move(self, rows: dict, only_from: object) -> int:  # type: ignore[type-arg]
        self.rows = rows
        return len(rows)


def test_repacking_knows_the_sizes_of_what_it_wrote(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    index = Moving(adopted(store, tmp_path))
    [found] = store.list("packs/")
    done = repack(Repository(store), index, plan_repack([ObjectUse(found.name, 1, 1, 1)], [found]))
    there = [one for one in store.list() if one.name != found.name]
    assert (done.new_packs, done.new_size) == (3, sum(one.size for one in there))
    assert (done.packs, done.size, done.blobs) == (1, found.size, 6)


@pytest.mark.parametrize("blobs", [1, 65_534, 65_535])
def test_the_size_of_a_pack_is_known_beforehand(blobs: int) -> None:
    pack = PackWriter("packs/x", 1 << 30)
    for number in range(blobs):
        pack.add(key_of(number.to_bytes(4, "big")), b"x")
    assert len(pack.finish()) == size_of_pack(blobs, blobs)


_PROGRAM = """
import resource, sys, zipfile
from pathlib import Path
from grange.repository import LocalStore, MemoryIndex, Repository, key_of
from grange.repository.rewriting import rewritten
folder = Path(sys.argv[1])
store, index = LocalStore(folder / "store"), MemoryIndex()
index.add(Repository(store).adopt(folder / "pack.zip"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rewritten(store, index.rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_blob_is_never_whole_in_memory(tmp_path: Path) -> None:
    size = 300 << 20
    key = hashlib.sha256()
    for _ in range(300):
        key.update(bytes(1 << 20))
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack, pack.open(key.hexdigest(), "w") as member:
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert int(said) < 60_000  # KiB
