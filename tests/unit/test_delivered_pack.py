"""Packs that others put into the store: rows by the directory alone, and what is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.farm import runner
from grange.repository import MemoryIndex, MemoryStore, PackMalformed, PackReader, PackWriter, Repository
from grange.repository.delivered import DeliveredPack
from grange.repository.key import key_of

NAME = "packs/ab/abababababababababababababababab.zip"


def written(path: Path, contents: list[bytes], streamed: list[bytes]) -> bytes:
    """A pack as a runner writes it; what is streamed comes last, with 64-bit sizes where it is long."""
    pack = runner.ZipWriter(str(path))
    known = set()
    for content in contents:
        if key_of(content) not in known:
            pack.add(key_of(content), content)
            known.add(key_of(content))
    for number, content in enumerate(streamed):
        source = path.with_name(f"{number}.dat")
        source.write_bytes(content)
        fd = os.open(source, os.O_RDONLY)
        known.add(pack.add_file(fd, len(content), known.__contains__))
        os.close(fd)
    pack.add("manifest.json", b"{}")
    pack.close(sync=False)
    return path.read_bytes()


def told(content: bytes, path: Path) -> DeliveredPack:
    """What the receipt of such a pack tells."""
    path.write_bytes(content)
    reader = runner.ZipReader(str(path))
    try:
        return DeliveredPack(NAME, len(content), reader.directory_at, reader.tail(reader.directory_at))
    finally:
        reader.close()


some = st.lists(st.binary(max_size=6000) | st.integers(1, 9000).map(lambda n: b"ab" * n), max_size=8)


@settings(max_examples=60, deadline=None)
@given(some, some)
def test_the_directory_alone_tells_where_blobs_lie(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], streamed: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        # as if what has 3,000 bytes had 2 GiB
        patch.setattr(runner, "WIDE", 3000)
        content = written(folder / "a.zip", contents, streamed)
    pack = told(content, folder / "a.zip")
    whole = PackReader(NAME, len(content), lambda ranges: [content[at : at + size] for at, size in ranges])
    rows = pack.locations()
    assert rows == whole.locations(NAME)
    store, index = MemoryStore(), MemoryIndex()
    store.put_if_absent(NAME, content)
    index.add(rows)
    assert pack.is_in(store)
    wanted = list({key_of(one) for one in [*contents, *streamed]})
    assert [key_of(found) for found in Repository(store).read(wanted, index, verify=True)] == wanted
    assert pack.reader().checksum("manifest.json") is not None
    assert pack.reader().checksum("other") is None


def test_members_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    content = bytearray(written(tmp_path / "a.zip", [b"a" * 50, b"b" * 50], []))
    pack = told(bytes(content), tmp_path / "b.zip")
    at = pack.directory.index(b"PK\1\2", 4) + 42
    moved = bytearray(pack.directory)
    moved[at : at + 4] = (int.from_bytes(moved[at : at + 4], "little") + 7).to_bytes(4, "little")
    with pytest.raises(PackMalformed, match="does not end where the next one begins"):
        DeliveredPack(NAME, pack.size, pack.directory_at, bytes(moved)).locations()


@pytest.mark.parametrize(("size", "at"), [(1, 0), (0, 1), (-1, 0), (0, -(10**6))])
def test_a_receipt_that_contradicts_itself_is_refused(tmp_path: Path, size: int, at: int) -> None:
    pack = told(written(tmp_path / "a.zip", [b"a" * 50], []), tmp_path / "b.zip")
    with pytest.raises(PackMalformed):
        DeliveredPack(NAME, pack.size + size, pack.directory_at + at, pack.directory).locations()


def test_a_directory_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    """Nothing is made up of what the receipt does not hold."""
    pack = told(written(tmp_path / "a.zip", [b"a" * 50], []), tmp_path / "b.zip")
    end = pack.directory[-22:]
    with pytest.raises(PackMalformed):
        DeliveredPack(NAME, pack.size, pack.size - 22, end).locations()


def test_only_the_very_pack_is_in_the_store(tmp_path: Path) -> None:
    content = written(tmp_path / "a.zip", [b"a" * 50], [])
    pack = told(content, tmp_path / "b.zip")
    other = PackWriter(NAME)
    other.add(key_of(b"a" * 50), b"a" * 50)
    for held in (
        None,
        b"",
        content[:-1],
        content + b"x",
        content[1:],
        bytes(other.finish()),
        b"\0" * len(content),
    ):
        store = MemoryStore()
        if held is not None:
            store.put_if_absent(NAME, held)
        assert not pack.is_in(store)
    store = MemoryStore()
    store.put_if_absent(NAME, content)
    assert pack.is_in(store)
