"""Scrubbing: what is damaged is found, told with its nodes, taken out, and healed by storing it again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

import grange as gr
from grange.core.errors import InUse, RepositoryBusy
from grange.core.heal import clear, healed_notes
from grange.core.profile import Profile
from grange.core.scrub import scrub
from grange.core.scrub_pass import alone_on
from grange.core.upkeep import upkeep
from grange.repository import (
    BlobLocation,
    BlobQuarantined,
    LocalStore,
    MemoryIndex,
    Repository,
    Store,
    StoreUnavailable,
    key_of,
)
from grange.repository.prune_plan import plan_prune
from grange.repository.pruning import prune
from grange.repository.quarantine import QUARANTINE, evidence_of, notes
from grange.repository.store import Contents, Range

LARGE = os.urandom(9 << 20)


def noise(seed: int, size: int = 3000) -> bytes:
    return random.Random(seed).randbytes(size)


def text(seed: int) -> bytes:
    return f"line {seed}\n".encode() * 500


@pytest.fixture
def nodes(profile: Profile) -> list[gr.Folder]:
    """Five nodes in five packs, each with noise (stored) and text (deflated); the last has a large file."""
    made = []
    for number in range(5):
        files = {"noise": noise(number), "text": text(number)}
        if number == 4:
            files["large"] = LARGE
        folder = gr.Folder(files, label=f"folder {number}")
        profile.store(folder)
        made.append(folder)
    return made


def place(profile: Profile, content: bytes) -> BlobLocation:
    with profile.transaction() as cursor:
        return profile.index(cursor).find([key_of(content)])[key_of(content)]


def path_of(profile: Profile, name: str) -> Path:
    path = profile.home / "store" / name
    path.chmod(0o600)
    return path


def flip(profile: Profile, content: bytes) -> str:
    """One bit of a stored content, somewhere in the middle."""
    row = place(profile, content)
    path = path_of(profile, row.object_name)
    found = bytearray(path.read_bytes())
    found[row.offset + row.stored_size // 2] ^= 4
    path.write_bytes(found)
    return row.object_name


def cut(profile: Profile, content: bytes) -> str:
    """The object ends in the middle of a content."""
    row = place(profile, content)
    os.truncate(path_of(profile, row.object_name), row.offset + row.stored_size // 2)
    return row.object_name


def remove(profile: Profile, content: bytes) -> str:
    row = place(profile, content)
    path_of(profile, row.object_name).unlink()
    return row.object_name


def read(profile: Profile, content: bytes) -> bytes:
    return profile.read_files([key_of(content)])[0]


def test_what_is_well_is_said_to_be_well(profile: Profile, nodes: list[gr.Folder]) -> None:
    seen: list[tuple[int, int]] = []
    done = scrub(profile, show=lambda so_far, total, note: seen.append((so_far, total)))
    assert (done.found, done.hits, done.state.complete, done.went_on) == ([], [], True, False)
    assert (done.objects, done.blobs) == (6, 11)
    assert done.stored_bytes == done.total_bytes > 9 << 20
    assert seen[-1] == (done.total_bytes, done.total_bytes)
    assert seen == sorted(seen)


@pytest.mark.parametrize("content", [noise(2), text(2), LARGE], ids=["stored", "deflated", "large"])
@pytest.mark.parametrize("damage", [flip, cut, remove])
def test_damage_is_found_told_taken_out_and_healed(
    profile: Profile, nodes: list[gr.Folder], content: bytes, damage: object
) -> None:
    assert callable(damage)
    name = damage(profile, content)
    number = 4 if content is LARGE else 2
    done = scrub(profile)
    assert key_of(content) in {one.key for one in done.found}
    assert {one.name for one in done.found} == {name}
    assert all(one.missing == (damage is remove) for one in done.found)
    [hit] = done.hits
    assert (hit.id, hit.label, hit.count) == (nodes[number].id, f"folder {number}", len(done.found))
    if damage is flip:
        assert [one.key for one in done.found] == [key_of(content)]

    # looked at again, without going through everything; then taken out
    again = scrub(profile, known_only=True)
    assert (again.found, again.objects) == (done.found, 0)
    taken = scrub(profile, known_only=True, quarantine=True)
    assert [set(note.reasons) for note in taken.taken_out] == [{one.key for one in done.found}]
    with pytest.raises(
        BlobQuarantined, match=r"in quarantine.*storing the same content again heals it"
    ) as said:
        read(profile, content)
    assert name in str(said.value)
    with pytest.raises(BlobQuarantined):
        list(profile.read_each([key_of(content)]))
    evidence = profile.repository.store.head(QUARANTINE + name)
    assert (evidence is None) == (damage is remove)
    assert profile.repository.store.head(name) is None
    for other in {noise(2), text(2)} - {
        one for one in (noise(2), text(2)) if key_of(one) in taken.taken_out[0].reasons
    }:
        assert read(profile, other) == other

    # nothing else is left to be found; the same content heals it, and the evidence stays
    hurt = scrub(profile)
    assert hurt.found == []
    assert set(hurt.unknown) == set(hurt.quarantined) == {one.key for one in done.found}
    assert [hit.id for hit in hurt.hits] == [nodes[number].id]
    for one in (noise(number), text(number), LARGE):
        if key_of(one) in hurt.unknown:
            profile.store(gr.SingleFile(one, "again"))
    assert read(profile, content) == content
    healed = scrub(profile)
    assert (healed.found, healed.unknown, healed.well) == ([], [], 0)
    assert profile.repository.store.head(QUARANTINE + name) == evidence


def test_neighbours_of_what_is_damaged_stay_and_their_nodes_read_them(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    many = [noise(number, 700) for number in range(1000, 1300)]
    profile.store(gr.Folder({str(number): content for number, content in enumerate(many)}))
    for number in (0, 150, 299):
        flip(profile, many[number])
    done = scrub(profile, quarantine=True)
    assert {one.key for one in done.found} == {key_of(many[number]) for number in (0, 150, 299)}
    good = [content for number, content in enumerate(many) if number not in (0, 150, 299)]
    assert profile.read_files([key_of(content) for content in good]) == good
    [note] = notes(profile.repository.store)
    assert set(note.reasons) == {one.key for one in done.found}


def test_pruning_and_rebuilding_leave_quarantinealone_on(profile: Profile, nodes: list[gr.Folder]) -> None:
    name = flip(profile, noise(1))
    alone = flip(profile, LARGE)
    scrub(profile, quarantine=True)
    store = profile.repository.store
    evidence = sorted(info.name for info in store.list(QUARANTINE))
    with upkeep(profile) as index:
        missing = index.mark()
        plan = plan_prune(index.uses(), store.list(), now_s=time.time() + 1, grace_s=0, missing=missing)
        prune(store, index, plan)
    assert sorted(info.name for info in store.list(QUARANTINE)) == evidence
    assert read(profile, text(1)) == text(1)

    # the index is lost: what is rebuilt from the store does not believe the damaged ones again
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob; DELETE FROM pack")
    with profile.transaction() as cursor:
        profile.repository.rebuild_index(profile.index(cursor))
    for content in (noise(1), LARGE):
        with pytest.raises(BlobQuarantined):
            read(profile, content)
    assert read(profile, text(1)) == text(1)
    assert name != alone
    assert scrub(profile, restart=True).found == []


def test_what_is_in_quarantine_does_not_keep_rubbish(profile: Profile, nodes: list[gr.Folder]) -> None:
    """Objects that the index does not know stay while contents are missing; those in quarantine are not."""
    orphan = "packs/aa/00000000000000000000000000000000.zip"
    profile.repository.store.put_if_absent(orphan, b"left by a killed writer")
    os.utime(profile.home / "store" / orphan, (0, 0))
    flip(profile, noise(1))
    scrub(profile, quarantine=True)
    words = [sys.executable, "-m", "grange", "--home", str(profile.home), "repository", "prune", "--yes"]
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob WHERE key = %s", (bytes.fromhex(key_of(noise(2))),))
    subprocess.run(words, check=True, capture_output=True)
    assert profile.repository.store.head(orphan)  # noise(2) may be in it
    profile.store(gr.SingleFile(noise(2), "again"))
    subprocess.run(words, check=True, capture_output=True)
    assert profile.repository.store.head(orphan) is None


def test_a_damaged_directory_is_told_though_all_contents_are_well(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    name = place(profile, noise(3)).object_name
    path = path_of(profile, name)
    path.write_bytes(path.read_bytes()[:-5])
    done = scrub(profile)
    assert (done.found, list(done.state.malformed)) == ([], [name])
    done = scrub(profile, known_only=True, quarantine=True)
    assert (done.found, done.state.malformed) == ([], {})
    assert place(profile, noise(3)).object_name != name
    assert read(profile, noise(3)) == noise(3)
    with profile.transaction() as cursor:
        profile.repository.rebuild_index(MemoryIndex())
        cursor.execute("SELECT count(*) FROM pack WHERE name = %s", (name,))
        assert cursor.fetchone() == (0,)


def test_what_the_directory_does_not_have_where_the_index_does(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    with profile.transaction() as cursor:
        key = bytes.fromhex(key_of(noise(3)))
        cursor.execute('UPDATE blob SET "offset" = "offset" + 1 WHERE key = %s', (key,))
    [found] = scrub(profile).found
    assert found.key == key_of(noise(3))


def test_what_nodes_name_and_the_index_does_not_know(profile: Profile, nodes: list[gr.Folder]) -> None:
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob WHERE key = %s", (bytes.fromhex(key_of(noise(3))),))
    done = scrub(profile)
    assert (done.found, done.unknown, done.quarantined) == ([], [key_of(noise(3))], {})
    assert [(hit.id, hit.path) for hit in done.hits] == [(nodes[3].id, "noise")]
    assert scrub(profile, share=0.1).unknown == []  # looked for at the end of a pass only
    assert "not known to the index" in grange(profile).stdout


def test_samples_go_through_everything_in_turn(profile: Profile, nodes: list[gr.Folder]) -> None:
    for number in range(100, 120):
        profile.store(gr.Folder({"x": noise(number, 400_000)}))
    flip(profile, noise(119, 400_000))
    objects = calls = 0
    while True:
        done = scrub(profile, share=0.2)
        objects += done.objects
        calls += 1
        assert done.went_on == (calls > 1)
        if done.state.complete:
            break
        assert done.found == []
        assert done.objects < 20
    assert objects == 26
    assert calls in (4, 5, 6)
    assert [one.key for one in done.found] == [key_of(noise(119, 400_000))]
    # the next pass begins anew, and remembers
    assert not scrub(profile, share=0.01).state.complete
    assert len(scrub(profile, known_only=True).found) == 1


def test_it_goes_on_where_it_was_stopped(profile: Profile, nodes: list[gr.Folder]) -> None:
    class Stop(Exception):
        pass

    seen = 0

    def show(so_far: int, total: int, note: str) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise Stop

    flip(profile, noise(0))
    with pytest.raises(Stop):
        scrub(profile, show=show)
    done = scrub(profile)
    assert done.went_on
    assert done.objects == 3
    assert done.state.complete
    assert [one.key for one in done.found] == [key_of(noise(0))]
    assert done.state.objects == 6


def test_a_copy_of_a_database_takes_nothing_out_of_the_store_of_the_original(
    profile: Profile, nodes: list[gr.Folder]
) -> None:
    name = flip(profile, noise(1))
    profile.repository.store.put_if_absent("owner/another-database", b"")
    with pytest.raises(InUse, match="belongs to another database"):
        scrub(profile, quarantine=True)
    assert profile.repository.store.head(name)
    assert scrub(profile, known_only=True, quarantine=True, take_over=True).taken_out


def test_what_is_not_healed_is_not_cleared_away(profile: Profile, nodes: list[gr.Folder]) -> None:
    flip(profile, noise(1))
    flip(profile, noise(2))
    scrub(profile, quarantine=True)
    profile.store(gr.SingleFile(noise(1), "again"))
    [healed] = healed_notes(profile)
    assert list(healed.reasons) == [key_of(noise(1))]
    clear(profile, [healed])
    store = profile.repository.store
    [left] = notes(store)
    assert list(left.reasons) == [key_of(noise(2))]
    assert [found.name for found in evidence_of(store)] == [left.evidence]


def test_only_one_scrubs(profile: Profile) -> None:
    with alone_on(profile.home), pytest.raises(RepositoryBusy, match="another process scrubs"):
        scrub(profile)


class Moving:
    """A store from which a pack vanishes just before it is looked at, because it is repacked."""

    def __init__(self, store: Store, profile: Profile, name: str) -> None:
        self._store = store
        self._profile = profile
        self._name = name

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def head(self, name: str) -> int | None:
        if name == self._name:
            self._name = ""
            with upkeep(self._profile) as index:
                rows = index.locations([name])
                mine = MemoryIndex()
                mine.rows.update(rows)
                contents = Repository(self._store).read(list(rows), mine)
                _, new = Repository(self._store).put(contents, MemoryIndex())
                index.move(new, [name])
            self._store.delete([name])
        return self._store.head(name)


def test_what_is_moved_under_it_is_found_in_its_new_place(profile: Profile, nodes: list[gr.Folder]) -> None:
    name = place(profile, noise(1)).object_name
    profile.repository.store = Moving(profile.repository.store, profile, name)  # type: ignore[assignment]
    assert scrub(profile).found == []
    assert place(profile, noise(1)).object_name != name


def test_a_pack_that_a_kill_left_half_taken_out_is_finished(profile: Profile, nodes: list[gr.Folder]) -> None:
    """Killed between taking the object away and the commit: the row points at nothing."""
    flip(profile, LARGE)

    class Killed(BaseException):
        pass

    store = profile.repository.store

    class Dying:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def delete(self, names: Collection[str]) -> None:
            names = list(names)
            store.delete(names)
            if names:
                raise Killed

    profile.repository.store = Dying()  # type: ignore[assignment]
    with pytest.raises(Killed):
        scrub(profile, quarantine=True)
    profile.repository.store = store
    with pytest.raises(BlobQuarantined):
        read(profile, LARGE)
    done = scrub(profile, quarantine=True)
    assert [one.missing for one in done.found] == [True]
    profile.store(gr.SingleFile(LARGE, "again"))
    assert read(profile, LARGE) == LARGE


class BadBlock:
    """A folder on a disk with a bad block: reads that touch it fail, in an object or in all of them."""

    def __init__(self, store: Store, name: str, start: int, end: int) -> None:
        self._store = store
        self.name = name
        self._start, self._end = start, end
        self.dead = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def head(self, name: str) -> int | None:
        if self.dead:
            raise StoreUnavailable("does not answer")
        return self._store.head(name)

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        touched = any(offset < self._end and offset + size > self._start for offset, size in ranges)
        if self.dead or (name == self.name and touched):
            raise StoreUnavailable(f"cannot read {name}: Input/output error")
        return self._store.get_ranges(name, ranges)

    def read(self, name: str) -> Iterator[bytes]:
        if self.dead or name == self.name:
            raise StoreUnavailable(f"cannot read {name}: Input/output error")
        return self._store.read(name)


@pytest.mark.parametrize("content", [noise(2), LARGE], ids=["in a pack", "large"])
def test_a_bad_block_of_a_disk_is_damage_and_not_the_end(
    profile: Profile, nodes: list[gr.Folder], content: bytes
) -> None:
    row = place(profile, content)
    store = profile.repository.store
    bad = BadBlock(store, row.object_name, row.offset + 10, row.offset + 20)
    profile.repository.store = bad  # type: ignore[assignment]
    done = scrub(profile, quarantine=True)
    assert [one.key for one in done.found] == [key_of(content)]
    assert done.found[0].reason.startswith("its bytes cannot be read, though the store answers")
    assert done.state.complete
    assert list(done.left) == [row.object_name]
    assert done.taken_out == []
    assert store.head(row.object_name)
    # the disk is mended, or the object removed by hand: then it goes on
    profile.repository.store = store
    store.delete([row.object_name])
    gone = scrub(profile, known_only=True, quarantine=True)
    assert all(one.missing for one in gone.found)
    profile.store(gr.Folder({"noise": noise(2), "text": text(2), "large": LARGE}))
    assert read(profile, content) == content


def test_a_store_that_does_not_answer_is_not_damaged(profile: Profile, nodes: list[gr.Folder]) -> None:
    bad = BadBlock(profile.repository.store, "", 0, 0)
    profile.repository.store = bad  # type: ignore[assignment]
    assert not scrub(profile, share=0.0001).state.complete
    bad.dead = True
    with pytest.raises(StoreUnavailable):
        scrub(profile)
    bad.dead = False
    done = scrub(profile)
    assert done.went_on
    assert (done.found, done.objects, done.state.complete) == ([], 5, True)


def test_large_members_and_large_objects_are_hashed_in_little_memory(tmp_path: Path) -> None:
    script = """
import sys, hashlib, zlib
from pathlib import Path
from grange.repository import LocalStore, Key
from grange.repository.checking import check_object
from grange.repository.index import BlobLocation
name, key, offset, stored, codec, size = sys.argv[2:]
row = BlobLocation(name, int(offset), int(stored), codec, int(size))
print(check_object(LocalStore(Path(sys.argv[1])), name, {Key(key): row}).wrong)
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    store = LocalStore(tmp_path / "store")
    size = 400 << 20
    zeros, deflater = bytes(1 << 20), zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join(deflater.compress(zeros) for _ in range(400)) + deflater.flush()
    key = __import__("hashlib").sha256()
    for _ in range(400):
        key.update(zeros)
    source = tmp_path / "zeros"
    with source.open("wb") as file:
        file.truncate(size)
    store.put_if_absent("blobs/ab/cd/large", source)
    store.put_if_absent("blobs/ab/cd/packed", packed)
    for name, stored, codec in (("large", size, "stored"), ("packed", len(packed), "deflate")):
        for row_size, right in ((size, True), (size - 1, False)):
            arguments = [str(store.root), f"blobs/ab/cd/{name}", key.hexdigest(), "0", str(stored), codec]
            done = subprocess.run(
                [sys.executable, "-c", script, *arguments, str(row_size)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            wrong, peak_kb = done.stdout.splitlines()
            assert (wrong == "{}") == right
            assert int(peak_kb) < 130_000


def grange(profile: Profile, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "grange", "--home", str(profile.home), "repository", "scrub", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300"},
    )


def test_the_command(profile: Profile, nodes: list[gr.Folder]) -> None:
    done = grange(profile)
    assert (done.returncode, done.stderr) == (0, "")
    assert "checked 11 contents in 6 objects" in done.stdout
    assert "all of it is well" in done.stdout
    name = flip(profile, noise(1))
    done = grange(profile, "--sample", "100")
    assert done.returncode == 1
    assert key_of(noise(1)) in done.stdout
    assert name in done.stdout
    assert "1 content damaged, 1 node hit." in done.stdout
    assert "folder 1" in done.stdout
    document = json.loads(grange(profile, "--known", "--quarantine", "--json").stdout)
    assert document["damaged"][0]["key"] == key_of(noise(1))
    assert document["nodes"][0]["id"] == nodes[1].id
    assert document["quarantined"][0]["evidence"] == QUARANTINE + name
    done = grange(profile)
    assert done.returncode == 1
    assert "in quarantine: its bytes are not what was stored" in done.stdout
    assert "1 content missing, 1 node hit." in done.stdout
    profile.store(gr.SingleFile(noise(1), "again"))
    assert grange(profile).returncode == 0
