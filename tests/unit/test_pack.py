"""Packs: written, read by us and by others, damaged in every way."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.repository import BlobLocation, Key, PackMalformed, PackReader, PackWriter, key_of
from grange.repository.deflate import inflated
from grange.repository.store import Contents, Range

contents = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda text, times: text * times, st.binary(min_size=1, max_size=40), st.integers(1, 900)),
)


def pack_of(blobs: list[bytes], target_bytes: int = 1 << 20) -> tuple[bytes, dict[Key, BlobLocation]]:
    writer = PackWriter("packs/aa/a.zip", target_bytes)
    rows = {}
    for content in dict.fromkeys(blobs):
        rows[key_of(content)] = writer.add(key_of(content), content)
    return bytes(writer.finish()), rows


def reader_of(pack: bytes) -> PackReader:
    def read(ranges: list[Range] | tuple[Range, ...]) -> Contents:
        return [pack[offset : offset + length] for offset, length in ranges]

    return PackReader("some.zip", len(pack), lambda ranges: read(list(ranges)))


def content_at(pack: bytes, row: BlobLocation) -> bytes | None:
    stored = pack[row.offset : row.offset + row.stored_size]
    return stored if row.codec == "stored" else inflated(stored, row.size)


def zip_of(members: Mapping[str, bytes], compression: int, **options: bool) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as pack:
        for name, content in members.items():
            with pack.open(name, "w", **options) as member:
                member.write(content)
    return file.getvalue()


class Unseekable(io.BytesIO):
    """Makes zipfile put sizes and checksums behind the contents."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation

    def seek(self, offset: int, whence: int = 0, /) -> int:
        raise io.UnsupportedOperation


@given(st.lists(contents, max_size=12))
def test_what_goes_in_comes_out(blobs: list[bytes]) -> None:
    pack, rows = pack_of(blobs)
    assert reader_of(pack).locations("packs/aa/a.zip") == rows
    for key, row in rows.items():
        content = content_at(pack, row)
        assert content is not None
        assert key_of(content) == key
        assert len(content) == row.size


@given(st.lists(contents, max_size=12))
def test_zipfile_reads_what_we_write(blobs: list[bytes]) -> None:
    pack, _ = pack_of(blobs)
    with zipfile.ZipFile(io.BytesIO(pack)) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == {key_of(c): c for c in blobs}
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in file.infolist())


@pytest.mark.skipif(shutil.which("unzip") is None, reason="unzip is not installed")
def test_unzip_reads_what_we_write(tmp_path: Path) -> None:
    pack, rows = pack_of([b"", b"short", b"text " * 1000])
    path = tmp_path / "pack.zip"
    path.write_bytes(pack)
    done = subprocess.run(["unzip", "-t", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    subprocess.run(["unzip", "-q", path, "-d", tmp_path / "out"], check=True)
    assert {file.name: key_of(file.read_bytes()) for file in (tmp_path / "out").iterdir()} == {
        k: k for k in rows
    }


@given(
    st.lists(contents, max_size=8),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),
    st.binary(max_size=30),
)
def test_we_read_what_zipfile_writes(blobs: list[bytes], method: int, zip64: bool, comment: bytes) -> None:
    members = {"manifest.json": b'{"results": []}', **{key_of(c): c for c in blobs}, "notes/é.txt": b"x"}
    pack = zip_of(members, method, force_zip64=zip64)
    if b"PK" not in comment:
        with zipfile.ZipFile(file := io.BytesIO(pack), "a") as archive:
            archive.comment = comment
        pack = file.getvalue()
    rows = reader_of(pack).locations("packs/bb/b.zip")
    assert {key: content_at(pack, row) for key, row in rows.items()} == {key_of(c): c for c in blobs}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_we_read_what_zipfile_streams(method: int) -> None:
    file = Unseekable()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(key_of(b"abc" * 500), b"abc" * 500)
        archive.writestr("manifest.json", b"{}")
    pack = file.getvalue()
    [(key, row)] = reader_of(pack).locations("x").items()
    assert content_at(pack, row) == b"abc" * 500
    assert key == key_of(b"abc" * 500)


def test_extra_fields_move_the_content() -> None:
    info = zipfile.ZipInfo(key_of(b"content"))
    info.extra = b"\x99\x99\x04\x00abcd"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, b"content")
    [row] = reader_of(file.getvalue()).locations("x").values()
    assert content_at(file.getvalue(), row) == b"content"


def test_more_members_than_plain_zip_can_count() -> None:
    blobs = [b"%d" % i for i in range(0xFFFF + 10)]
    pack, rows = pack_of(blobs, 1 << 30)
    assert reader_of(pack).locations("packs/aa/a.zip") == rows
    with zipfile.ZipFile(io.BytesIO(pack)) as file:
        assert len(file.namelist()) == len(blobs)
        assert file.read(key_of(b"65540")) == b"65540"


def test_text_shrinks_noise_is_stored() -> None:
    noise = b"".join(bytes.fromhex(key_of(b"%d" % i)) for i in range(400))
    text = b"".join(b"%d energy %s eV\n" % (i, key_of(b"%d" % i)[:6].encode()) for i in range(2000))
    _, rows = pack_of([text, noise, b"a" * 60])
    assert rows[key_of(text)].codec == "deflate"
    assert rows[key_of(text)].stored_size < len(text) / 2
    assert rows[key_of(noise)].codec == "stored"
    assert rows[key_of(b"a" * 60)].codec == "stored"


def test_only_the_blobs_asked_for_are_located() -> None:
    pack, _ = pack_of([b"a", b"b", b"c"])
    wanted = {key_of(b"b"), key_of(b"elsewhere")}
    assert set(reader_of(pack).locations("x", wanted)) == {key_of(b"b")}


def test_equal_packs_have_equal_fingerprints() -> None:
    assert reader_of(pack_of([b"a", b"b"])[0]).fingerprint == reader_of(pack_of([b"a", b"b"])[0]).fingerprint
    assert reader_of(pack_of([b"a", b"b"])[0]).fingerprint != reader_of(pack_of([b"a", b"c"])[0]).fingerprint


def test_a_pack_says_when_it_is_full() -> None:
    writer = PackWriter("x", 1000)
    writer.add(key_of(b"1"), b"1")
    assert not writer.full
    noise = b"".join(bytes.fromhex(key_of(b"%d" % i)) for i in range(25))
    writer.add(key_of(noise), noise)
    assert writer.full
    assert len(writer) == 2


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        PackWriter("x").add(Key("abc"), b"content")
    with pytest.raises(ValueError, match="target_bytes"):
        PackWriter("x", 0)


DAMAGED = [b"", b"short", b"some text that repeats itself " * 40, bytes(range(256)) * 2]
WHOLE = {
    "ours": pack_of(DAMAGED)[0],
    "zipfile's": zip_of({"manifest.json": b"{}", **{key_of(c): c for c in DAMAGED}}, zipfile.ZIP_DEFLATED),
    "zip64": zip_of({key_of(c): c for c in DAMAGED}, zipfile.ZIP_STORED, force_zip64=True),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_pack_cut_off_anywhere_is_refused(kind: str) -> None:
    pack = WHOLE[kind]
    for length in range(len(pack)):
        with pytest.raises(PackMalformed, match=r"some\.zip is not a pack"):
            reader_of(pack[:length])


@pytest.mark.parametrize("kind", WHOLE)
def test_a_flipped_bit_hides_no_blob(kind: str) -> None:
    """Either the pack is refused, or all its keys are found (and reading them checks their contents)."""
    pack = bytearray(WHOLE[kind])
    expected = {key_of(c) for c in DAMAGED}
    refused = 0
    for position in range(len(pack) * 8):
        pack[position // 8] ^= 1 << position % 8
        damaged = bytes(pack)
        pack[position // 8] ^= 1 << position % 8
        try:
            rows = reader_of(damaged).locations("x")
        except PackMalformed:
            refused += 1
            continue
        assert set(rows) == expected, position
    assert refused > len(expected) * 64 * 8


@settings(max_examples=300)
@given(st.binary(max_size=400), st.binary(max_size=60), st.integers(0, 3000))
def test_rubbish_is_refused(before: bytes, inserted: bytes, at: int) -> None:
    """Whatever the bytes, nothing but PackMalformed is raised."""
    for candidate in (before, WHOLE["ours"][:at] + inserted + WHOLE["ours"][at:], before + WHOLE["zip64"]):
        try:
            reader_of(candidate).locations("x")
        except PackMalformed:
            continue
        assert candidate in WHOLE.values()


def test_encrypted_and_exotic_members_are_refused() -> None:
    exotic = zip_of({key_of(b"x" * 100): b"x" * 100}, zipfile.ZIP_BZIP2)
    with pytest.raises(PackMalformed, match="method 12"):
        reader_of(exotic)
    beside = zip_of({"notes.txt": b"x" * 100, key_of(b"y"): b"y"}, zipfile.ZIP_STORED)
    assert len(reader_of(beside).locations("x")) == 1


def test_a_deflate_bomb_makes_no_more_than_it_should() -> None:
    pack, rows = pack_of([b"\0" * 1_000_000])
    [row] = rows.values()
    stored = pack[row.offset : row.offset + row.stored_size]
    assert inflated(stored, 1_000_000) == b"\0" * 1_000_000
    assert inflated(stored, 10) is None
    assert inflated(stored, 1_000_001) is None
    assert inflated(stored[:-1], 1_000_000) is None
    assert inflated(stored + b"x", 1_000_000) is None
    assert inflated(b"\xff\xff\xff", 3) is None
