"""Files that claim to be packs and would cost their reader memory or time: refused by what they say."""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from grange.farm import read_result_pack, runner
from grange.farm.errors import ResultMalformed
from grange.repository import Key, LocalStore, MemoryIndex, PackMalformed, PackReader, PackWriter, Repository
from grange.repository import pack as pack_module

LOCAL = struct.Struct("<4sHHHHHIIIHH")
CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
END = struct.Struct("<4sHHHHIIH")
END64 = struct.Struct("<4sQHHIIQQQQ")
LOCATOR64 = struct.Struct("<4sIQI")


def local(name: bytes, method: int, stored: int, size: int) -> bytes:
    return LOCAL.pack(b"PK\3\4", 20, 0, method, 0, 33, 0, stored, size, len(name), 0) + name


def central(name: bytes, method: int, stored: int, size: int, header: int) -> bytes:
    return (
        CENTRAL.pack(b"PK\1\2", 20, 20, 0, method, 0, 33, 0, stored, size, len(name), 0, 0, 0, 0, 0, header)
        + name
    )


def end(count: int, size: int, start: int) -> bytes:
    return END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0)


def end64(count: int, size: int, start: int, at: int) -> bytes:
    return (
        END64.pack(b"PK\6\6", END64.size - 12, 45, 45, 0, 0, count, count, size, start)
        + LOCATOR64.pack(b"PK\6\7", 0, at, 1)
        + end(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    )


def deflate(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


def of(members: list[tuple[bytes, int, bytes, int]]) -> bytes:
    """A ZIP file of (name, method, stored bytes, size that it claims)."""
    body = directory = b""
    for name, method, stored, size in members:
        directory += central(name, method, len(stored), size, len(body))
        body += local(name, method, len(stored), size) + stored
    return body + directory + end(len(members), len(directory), len(body))


def key(number: int) -> bytes:
    return b"%064x" % number


def manifest(content: bytes = b'{"format":1,"results":[]}') -> tuple[bytes, int, bytes, int]:
    return b"manifest.json", 0, content, len(content)


def huge_size() -> bytes:
    """A gigabyte in ten bytes."""
    return of([(key(1), 8, deflate(b"")[:2].ljust(10, b"\0"), 1 << 30), manifest()])


def overlapping() -> bytes:
    """Each member holds the headers and contents of all that come after it."""
    body, at, spans = b"", 0, []
    kernel = deflate(bytes(1 << 20))
    for number in range(20):
        spans.append((key(number), at))
        body += b"\0" * (30 + 64)
        at = len(body)
    total = len(body) + len(kernel)
    body = bytearray(body + kernel)
    directory = b""
    for name, at in spans:
        stored = total - at - 94
        body[at : at + 94] = local(name, 8, stored, 1 << 20)
        directory += central(name, 8, stored, 1 << 20, at)
    name, method, stored_bytes, size = manifest()
    directory += central(name, method, size, size, len(body))
    body += local(name, method, size, size) + stored_bytes
    return bytes(body) + directory + end(21, len(directory), len(body))


def twice_the_same() -> bytes:
    return of([(key(1), 0, b"abc", 3), (key(1), 0, b"abd", 3), manifest()])


def too_many() -> bytes:
    """A directory that says it has seven million entries, in so many bytes."""
    count = 7_000_000
    body = local(*manifest()[:2], 0, 0)
    directory = bytes(46 * count)
    return body + directory + end64(count, len(directory), len(body), len(body) + len(directory))


def more_entries_than_bytes() -> bytes:
    body = local(key(1), 0, 0, 0)
    directory = central(key(1), 0, 0, 0, 0)
    return body + directory + end(60_000, len(directory), len(body))


def a_directory_of_exabytes() -> bytes:
    body = local(key(1), 0, 0, 0)
    return body + end64(1, 1 << 62, len(body), len(body))


@pytest.mark.parametrize(
    "make",
    [huge_size, overlapping, twice_the_same, too_many, more_entries_than_bytes, a_directory_of_exabytes],
    ids=lambda make: str(make.__name__),
)
def test_the_repository_refuses_it_and_keeps_nothing(make: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    path.write_bytes(make())
    repository = Repository(LocalStore(tmp_path / "store"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PackMalformed):
        repository.adopt(path)
    assert list(repository.store.list()) == []
    assert path.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "make", [too_many, more_entries_than_bytes, a_directory_of_exabytes], ids=lambda make: str(make.__name__)
)
def test_the_farm_refuses_it(make: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    path.write_bytes(make())
    with pytest.raises(ResultMalformed, match="result-1"):
        read_result_pack(path)


def test_a_manifest_gives_no_more_than_it_says(tmp_path: Path) -> None:
    """600 MB of blanks in 600 kB, which say that they are 26 bytes; and the same that say what they are."""
    content = deflate(b" " * (600 << 20))
    for said in (26, 600 << 20):
        path = tmp_path / "result-1.zip"
        path.write_bytes(of([(b"manifest.json", 8, content, said)]))
        script = (
            "import sys; from pathlib import Path; from grange.farm import read_result_pack\n"
            "from grange.farm.errors import ResultMalformed\n"
            "try: read_result_pack(Path(sys.argv[1]))\n"
            "except ResultMalformed as error: print(error)\n"
            "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        *words, peak_kb = done.stdout.splitlines()
        assert len(words) == 1, done.stderr
        assert "manifest" in words[0]
        assert int(peak_kb) < 150_000


@pytest.mark.parametrize("name", ["delivered.json", "directory"])
def test_a_receipt_is_bounded_too(name: str, tmp_path: Path) -> None:
    content = deflate(bytes(100 << 20))
    parts = {
        "delivered.json": (b'{"name":"packs/ab/x.zip","size":100,"directory_at":1}', 0),
        "directory": (b"", 0),
        name: (content, 8),
    }
    members = [
        (part.encode(), method, stored, 100 << 20 if part == name else len(stored))
        for part, (stored, method) in parts.items()
    ]
    path = tmp_path / "result-1.zip"
    path.write_bytes(of([*members, manifest()]))
    with pytest.raises(ResultMalformed, match=f"{name} would have 104857600 bytes"):
        read_result_pack(path)


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 40])
def test_what_is_too_short_is_malformed_and_nothing_else(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    path.write_bytes((b"\0" * 40 + end64(1, 46, 0, 1 << 40))[-cut:] if cut else b"")
    with pytest.raises(ResultMalformed):
        read_result_pack(path)


def test_a_wide_entry_without_its_numbers_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    body = local(key(1), 0, 0, 0)
    directory = central(key(1), 0, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(body + directory + end(1, len(directory), len(body)))
    with pytest.raises(ResultMalformed, match="64-bit"):
        read_result_pack(path)


def test_a_writer_stops_where_readers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "MOST_MEMBERS", 3)
    writer = PackWriter("packs/aa/a.zip")
    for number in range(3):
        assert not writer.full
        writer.add(Key(f"{number:064x}"), b"%d" % number)
    assert writer.full
    pack = bytes(writer.finish())
    assert (
        len(PackReader("x", len(pack), lambda ranges: [pack[o : o + n] for o, n in ranges]).locations("x"))
        == 3
    )


def test_headers_far_apart_are_not_read_as_one(tmp_path: Path) -> None:
    """A store that merges generously is not asked for the whole of a large pack at once."""
    path = tmp_path / "pack.zip"
    megabyte = bytes(range(256)) * 4096
    path.write_bytes(of([(key(number), 0, megabyte, len(megabyte)) for number in range(200)]))
    asked = []

    def read(ranges: object) -> list[bytes]:
        pairs = list(ranges)  # type: ignore[call-overload]
        asked.append(sum(length for _, length in pairs))
        with path.open("rb") as file:
            return [(file.seek(offset), file.read(length))[1] for offset, length in pairs]

    reader = PackReader("pack.zip", path.stat().st_size, read, merge_gap_bytes=2 << 20)
    assert len(reader.locations("pack.zip")) == 200
    assert max(asked) < 80 << 20


def test_a_ratio_that_deflate_does_reach_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    content = bytes(64 << 20)
    path.write_bytes(
        of([(runner.hashlib.sha256(content).hexdigest().encode(), 8, deflate(content), len(content))])
    )
    index = MemoryIndex()
    repository = Repository(LocalStore(tmp_path / "store"))
    rows = repository.adopt(path)
    index.add(rows)
    assert repository.read(list(rows), index) == [content]


def test_the_manifest_that_a_pack_has_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    text = json.dumps({"format": 1, "results": []}).encode() + b" " * (3 << 20)
    path.write_bytes(of([(b"manifest.json", 8, deflate(text), len(text))]))
    assert read_result_pack(path).results == ()
