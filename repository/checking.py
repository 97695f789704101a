"""Checking an object: whether its bytes are still what its blobs' keys say."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from grange.repository.deflate import inflated, inflated_pieces
from grange.repository.errors import ObjectMissing, PackMalformed, StoreUnavailable
from grange.repository.index import BlobLocation
from grange.repository.key import Key, key_of
from grange.repository.object_name import PACKS
from grange.repository.pack import PackReader
from grange.repository.ranges import ReadRanges, read_merged
from grange.repository.source import CHUNK_BYTES
from grange.repository.store import Contents, Range, Store

#: A pack of up to this size is read whole, by one request.
WHOLE_BYTES = 48 << 20
#: Blobs of larger objects are read so many bytes at a time, and those that are longer piece by piece.
_LOT_BYTES = 16 << 20
#: Below this, on average, blobs are small: hashing one takes less time than changing threads.
_SMALL_BYTES = 64 << 10

GONE = "the object is not in the store"
DIFFERENT = "its bytes are not what was stored: their SHA-256 differs"
CUT_OFF = "the object ends before it"
ELSEWHERE = "the pack's own directory does not have it there"
UNREADABLE = "its bytes cannot be read, though the store answers"


@dataclass(slots=True)
class Checked:
    """What checking an object has found.

    wrong: why each damaged or missing blob is that; malformed: what is wrong with a pack's own directory,
    by which the index is rebuilt, although its blobs may be well.
    Units: bytes as stored.
    """

    name: str
    blobs: int = 0
    stored_bytes: int = 0
    wrong: dict[Key, str] = field(default_factory=dict)
    malformed: str = ""


def check_object(store: Store, name: str, rows: Mapping[Key, BlobLocation]) -> Checked:
    """Hash all blobs of one object, and see that a pack's own directory names them where the index does.

    Where an object cannot be read as a whole, as on a disk with a bad block, its blobs are read one by one.

    Units: at most some 64 MiB are in memory, however large the object or a blob in it is.
    Errors: StoreUnavailable where nothing of it can be read, and what else keeps the store from answering;
    never what is wrong with the object.
    """
    return begin_check(store, name, rows)()


def begin_check(store: Store, name: str, rows: Mapping[Key, BlobLocation]) -> Callable[[], Checked]:
    """check_object() in two steps, for who has many threads: this reads, and what it gives checks.

    Threads that hash many small blobs at the same time are slower than one, for each waits for the
    interpreter again and again (bench/scrub). So a pack of small blobs is only read here; everything else is
    checked, too.

    Units, Errors: as check_object().
    """
    done = Checked(name, len(rows), sum(row.stored_size for row in rows.values()))
    size = store.head(name)
    try:
        if size is None:
            raise ObjectMissing(name, str(store))
        try:
            if size <= WHOLE_BYTES:
                [content] = store.get_ranges(name, [(0, size)])
                whole = partial(_check_whole, done, content, size, rows)
                return whole if done.stored_bytes < _SMALL_BYTES * done.blobs else _now(whole)
            _check_parts(done, store, size, rows)
        except StoreUnavailable as error:
            _check_each(done, store, rows, error)
    except ObjectMissing:
        done.wrong = dict.fromkeys(rows, GONE)
    return lambda: done


def _now(check: Callable[[], Checked]) -> Callable[[], Checked]:
    done = check()
    return lambda: done


def _check_whole(done: Checked, content: bytes, size: int, rows: Mapping[Key, BlobLocation]) -> Checked:
    """Check an object that is in memory."""

    def cut(ranges: Sequence[Range]) -> Contents:
        return [content[offset : offset + length] for offset, length in ranges]

    _check_directory(done, cut, size, rows, 0)
    for key, row in rows.items():
        end = row.offset + row.stored_size
        if end > size:
            done.wrong[key] = CUT_OFF
        elif row.size > _LOT_BYTES:
            if not _agrees(key, row, _pieces(cut, row)):
                done.wrong[key] = DIFFERENT
        elif not _is(key, row, content[row.offset : end]):
            done.wrong[key] = DIFFERENT
    return done


def _check_parts(done: Checked, store: Store, size: int, rows: Mapping[Key, BlobLocation]) -> None:
    """Check an object of which only parts are in memory at a time."""
    read = partial(store.get_ranges, done.name)
    _check_directory(done, read, size, rows, store.merge_gap_bytes)
    short: dict[Key, BlobLocation] = {}
    for key, row in sorted(rows.items(), key=lambda pair: pair[1].offset):
        if row.offset + row.stored_size > size:
            done.wrong[key] = CUT_OFF
        elif max(row.size, row.stored_size) <= _LOT_BYTES:
            short[key] = row
        elif not _agrees(key, row, _pieces(read, row)):
            done.wrong[key] = DIFFERENT
    for lot in _lots(short):
        ranges = [(row.offset, row.stored_size) for row in lot.values()]
        parts = read_merged(read, ranges, store.merge_gap_bytes)
        for (key, row), part in zip(lot.items(), parts, strict=True):
            if not _is(key, row, part):
                done.wrong[key] = DIFFERENT


def _check_each(
    done: Checked, store: Store, rows: Mapping[Key, BlobLocation], error: StoreUnavailable
) -> None:
    """Check an object of which some blobs cannot be read.

    Errors: the error, where none can.
    """
    read = partial(store.get_ranges, done.name)
    done.wrong, done.malformed = {}, "it cannot be read as a whole"
    unreadable = 0
    for key, row in rows.items():
        try:
            if not _agrees(key, row, _pieces(read, row)):
                done.wrong[key] = DIFFERENT
        except StoreUnavailable:
            done.wrong[key] = UNREADABLE
            unreadable += 1
            if unreadable == len(rows):
                raise error from None


def _check_directory(
    done: Checked, read: ReadRanges, size: int, rows: Mapping[Key, BlobLocation], gap_bytes: int
) -> None:
    if not done.name.startswith(PACKS):
        return
    try:
        there = PackReader(done.name, size, read, gap_bytes).locations(done.name)
        done.wrong |= {key: ELSEWHERE for key, row in rows.items() if there.get(key) != row}
    except PackMalformed as error:
        done.malformed = error.reason


def _is(key: Key, row: BlobLocation, stored: bytes | memoryview) -> bool:
    """Whether stored bytes are the content of a key, the whole of which is in memory."""
    content = stored if row.codec == "stored" else inflated(stored, row.size)
    return content is not None and len(content) == row.size and key_of(content) == key


def _lots(rows: Mapping[Key, BlobLocation]) -> Iterator[dict[Key, BlobLocation]]:
    """Rows in their order, so many at a time that they and their contents take a bounded room."""
    lot: dict[Key, BlobLocation] = {}
    start = 0
    for key, row in rows.items():
        if lot and row.offset + row.stored_size - start > _LOT_BYTES:
            yield lot
            lot = {}
        if not lot:
            start = row.offset
        lot[key] = row
    if lot:
        yield lot


def _pieces(read: ReadRanges, row: BlobLocation) -> Iterator[bytes]:
    end = row.offset + row.stored_size
    for offset in range(row.offset, end, _LOT_BYTES):
        [piece] = read([(offset, min(_LOT_BYTES, end - offset))])
        for at in range(0, len(piece), CHUNK_BYTES):
            yield bytes(piece[at : at + CHUNK_BYTES])


def _agrees(key: Key, row: BlobLocation, pieces: Iterable[bytes]) -> bool:
    """Whether these stored bytes are the content of a key, of which never more than a piece is in memory."""
    digest = hashlib.sha256()
    size = 0
    try:
        for piece in pieces if row.codec == "stored" else inflated_pieces(pieces, CHUNK_BYTES):
            digest.update(piece)
            size += len(piece)
            if size > row.size:
                return False
    except zlib.error:
        return False
    return size == row.size and digest.hexdigest() == key
