"""The repository: contents by key, over any store."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from grange.repository.deflate import inflated, inflated_pieces
from grange.repository.errors import BlobCorrupt, BlobMissing, ObjectMissing, PackMalformed
from grange.repository.index import BlobLocation, Index
from grange.repository.key import Key, check_keys, key_of
from grange.repository.object_blobs import alone, blobs_in
from grange.repository.object_name import BLOBS, PACKS, blob_name, key_of_blob, pack_name
from grange.repository.pack import TARGET_BYTES, PackReader
from grange.repository.packing import Packing
from grange.repository.ranges import read_merged
from grange.repository.source import Content, Readable, chunks_of
from grange.repository.store import Contents, ObjectInfo, Range, Store
from grange.repository.team import Team
from grange.repository.unchanged import UnchangedFile

if TYPE_CHECKING:
    from concurrent.futures import Future

BLOB_LIMIT_BYTES = 8 << 20
# How much of the contents of one put is in memory at a time, and so how many share a look into the index.
_LOT_BYTES = 64 << 20
_ROWS_AT_ONCE = 10_000
# How much of a long blob a server is asked for at a time, and how often at once. Twice as many are ahead.
SPAN_BYTES = 4 << 20
_SPANS_AT_ONCE = 4
#: How many keys read_each() looks up at once.
LOOKED_UP_AT_ONCE = 20_000
#: How much read_each() reads at once.
WINDOW_BYTES = 64 << 20


@runtime_checkable
class _Forgets(Protocol):
    """A store with a cache."""

    def forget(self, names: Iterable[str]) -> None: ...


class Repository:
    """Contents by key: many to a pack, large ones alone; each kept once.

    It holds no state but its settings, and whether it has begun to write: threads and processes may share a
    store and an index freely.

    Units: pack_target_bytes: a pack is closed when it has reached this; blob_limit_bytes: what is larger
    stands alone. verify: whether read() hashes what it reads, if it is not told. before_writing: called
    before anything is put or relied upon, until it has ended well once; what it raises is raised by whoever
    wanted to, every time. Threads that begin at the same moment may each call it.
    """

    def __init__(
        self,
        store: Store,
        *,
        pack_target_bytes: int = TARGET_BYTES,
        blob_limit_bytes: int = BLOB_LIMIT_BYTES,
        verify: bool = True,
        before_writing: Callable[[], object] | None = None,
    ) -> None:
        self.store = store
        self._before_writing = before_writing
        self._pack_target_bytes = pack_target_bytes
        self._blob_limit_bytes = blob_limit_bytes
        self._verify = verify

    def begin_writing(self) -> None:
        """Call before_writing, if that has not been done; for whoever lets others write to the store."""
        before_writing = self._before_writing  # another thread may have done with it at any moment
        if before_writing is not None:
            before_writing()
            self._before_writing = None

    def put(
        self, contents: Iterable[bytes | Path], index: Index
    ) -> tuple[list[Key], dict[Key, BlobLocation]]:
        """Keep contents, each once; what the index knows is not written again.

        The rows are for the caller to add to the index, in the transaction that makes their nodes visible.
        When this returns, the bytes are on the disk; when it raises, or the caller dies, packs may be left
        that no row points to, which pruning removes.

        Shapes: n contents in, n keys out, in the same order; rows of what the index did not know.
        Errors: StoreFull, StoreReadOnly (mend, then again), StoreUnavailable (retry); ContentChanged;
        OSError when a file cannot be read.
        """
        keys: list[Key] = []
        held = False
        with Packing(self.store, self._pack_target_bytes) as packing:
            for lot in self._lots(contents):
                if not held:
                    self.begin_writing()
                    index.hold()
                    held = True
                keys += [key for key, _ in lot]
                fresh = {key: content for key, content in lot if key not in packing.rows}
                known = index.find(fresh.keys()) if fresh else {}
                for key, content in fresh.items():
                    if key in known:
                        continue
                    if isinstance(content, bytes) and len(content) <= self._blob_limit_bytes:
                        packing.add(key, content)
                    else:
                        packing.rows[key] = self._put_alone(key, content)
        return keys, packing.rows

    def put_stream(self, file: Readable, index: Index) -> tuple[Key, dict[Key, BlobLocation]]:
        """Keep what a file gives until its end; a long one is never whole in memory.

        Errors: as put(); what reading the file raises.
        """
        head = _read_up_to(file, self._blob_limit_bytes + 1)
        if len(head) <= self._blob_limit_bytes:
            [key], rows = self.put([head], index)
            return key, rows
        digest = hashlib.sha256()
        sizes: list[int] = []
        with self.store.scratch(_watched(chain([head], chunks_of(file)), digest.update, sizes)) as path:
            key = Key(digest.hexdigest())
            self.begin_writing()
            index.hold()
            if index.find([key]):
                return key, {}
            name = blob_name(key)
            self.store.adopt(name, path)
        return key, {key: alone(name, sum(sizes))}

    def adopt(self, *paths: Path, only: Collection[Key] | None = None) -> dict[Key, BlobLocation]:
        """Take in packs that lie in files, as they are, by link where the file system allows; nothing is
        hashed.

        The name in the store comes from a pack's directory: the same file again is the same object and
        gives the same rows. A pack without blobs (or without any of only) is not kept. The files must be on
        the disk (fsync) and must never be written to afterwards.

        Shapes: rows of all blobs in them, or of those of only that are; of a blob in several, the last one's.
        Errors: PackMalformed; as put().
        """
        rows: dict[Key, BlobLocation] = {}
        if paths:
            self.begin_writing()
        with Team(self.store.parallel) as team:
            for found in team.map(partial(self._adopt, only=only), paths):
                rows |= found
        return rows

    def _adopt(self, path: Path, only: Collection[Key] | None) -> dict[Key, BlobLocation]:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            reader = PackReader(str(path), size, partial(_read_file, file.fileno()))
        name = pack_name(reader.fingerprint)
        rows = reader.locations(name, only)
        if rows:
            self.store.adopt(name, path)
        return rows

    def read(self, keys: Sequence[Key], index: Index, verify: bool | None = None) -> list[bytes]:
        """The contents of many keys: one look into the index, one call of the store per object, many at once.

        What was moved into another pack meanwhile is looked up once more.
        verify: whether to hash what was read; None: as the repository was made.

        Shapes: n keys in, n contents out, in the same order; a key that comes twice is read once.
        Errors: KeyInvalid; BlobMissing with all keys that are missing, BlobCorrupt (permanent);
        StoreUnavailable (retry).
        """
        check_keys(keys)
        found = index.find(dict.fromkeys(keys)) if keys else {}
        with Team(self.store.parallel) as team:
            contents = self._read_found(found, index, team, verify)
        self._refuse_missing(keys, contents)
        return [contents[key] for key in keys]

    def read_each(
        self,
        keys: Iterable[Key],
        index: Index,
        verify: bool | None = None,
        window_bytes: int = WINDOW_BYTES,
    ) -> Iterator[bytes]:
        """The contents of any number of keys, one after the other, in bounded memory.

        While one window is given out the next is read. Keys that were stored together are best asked for
        together: a window reads each of its packs in one call.

        Units: two windows of window_bytes bytes are in memory, and what is longer than that alone; the keys
        and locations of some ten thousand.
        Shapes: n keys in, n contents out, in the same order.
        Errors: as read(), of a window before anything of it is given; keys that the index has not, before
        anything of the LOOKED_UP_AT_ONCE keys among which they are.
        """
        rest = iter(keys)
        first = self._look_up(rest, index)
        return self._windows(
            chain([first], iter(partial(self._look_up, rest, index), ([], {}))), index, verify, window_bytes
        )

    def _look_up(self, keys: Iterator[Key], index: Index) -> tuple[list[Key], dict[Key, BlobLocation]]:
        """The next keys, and where their blobs lie; ([], {}) after the last."""
        batch = list(islice(keys, LOOKED_UP_AT_ONCE))
        check_keys(batch)
        found = index.find(dict.fromkeys(batch)) if batch else {}
        self._refuse_missing(batch, found)
        return batch, found

    def _windows(
        self,
        batches: Iterable[tuple[list[Key], dict[Key, BlobLocation]]],
        index: Index,
        verify: bool | None,
        window_bytes: int,
    ) -> Iterator[bytes]:
        with Team(self.store.parallel) as team, Team(2) as ahead:

            def read(window: list[Key], found: Mapping[Key, BlobLocation]) -> list[bytes]:
                rows = {key: found[key] for key in window}
                contents = self._read_found(rows, index, team, verify)
                self._refuse_missing(window, contents)
                return [contents[key] for key in window]

            windows = (
                (window, found) for keys, found in batches for window in _cut(keys, found, window_bytes)
            )
            if self.store.parallel == 1:
                for window in windows:
                    yield from read(*window)
                return
            coming: Future[list[bytes]] | None = None
            for window in windows:
                following = ahead.start(partial(read, *window))
                if coming is not None:
                    yield from coming.result()
                coming = following
            if coming is not None:
                yield from coming.result()

    def _read_found(
        self, found: Mapping[Key, BlobLocation], index: Index, team: Team, verify: bool | None
    ) -> dict[Key, bytes]:
        contents = self._read_objects(found, team, verify)
        if len(contents) < len(found):
            lost = found.keys() - contents.keys()
            moved = {key: row for key, row in index.find(lost).items() if row != found[key]}
            contents |= self._read_objects(moved, team, verify)
        return contents

    def _read_objects(
        self, found: Mapping[Key, BlobLocation], team: Team, verify: bool | None
    ) -> dict[Key, bytes]:
        """The contents of those whose object is there."""

        def read(group: tuple[str, dict[Key, BlobLocation]]) -> dict[Key, bytes]:
            try:
                return self._read_object(*group, self._verify if verify is None else verify)
            except ObjectMissing:
                return {}

        contents: dict[Key, bytes] = {}
        groups = _by_object(found).items()
        for part in team.map(read, groups) if len(groups) > 1 else map(read, groups):
            contents |= part
        return contents

    def stream(self, key: Key, index: Index, chunk_bytes: int = SPAN_BYTES) -> Iterator[bytes]:
        """One content, piece by piece, in bounded memory.

        It is hashed on the way: what was given is sure when the last piece has come and nothing was raised.

        Units: pieces of at most chunk_bytes bytes, none empty.
        Errors: KeyInvalid; BlobMissing; BlobCorrupt, after the last piece (permanent); StoreUnavailable
        (retry).
        """
        check_keys([key])
        found = index.find([key])
        if key not in found:
            raise self._missing([key])
        return self._stream(key, found[key], index, chunk_bytes)

    def rebuild_index(self, index: Index, on_malformed: Callable[[PackMalformed], None] | None = None) -> int:
        """Add the location of every blob in the store to an index; says how many there are.

        A blob that lies in several packs counts in each. on_malformed: told of each object that should be a
        pack and is not, which is then passed over; without it the first such is raised.
        """
        count = 0
        packs = sorted(self.store.list(PACKS), key=lambda info: info.name)
        with Team(self.store.parallel) as team:
            for rows in team.map(self._blobs_or_problem, packs):
                if isinstance(rows, PackMalformed):
                    if on_malformed is None:
                        raise rows
                    on_malformed(rows)
                    continue
                index.add(rows)
                count += len(rows)
        single = (
            (key, alone(info.name, info.size))
            for info in self.store.list(BLOBS)
            if (key := key_of_blob(info.name)) is not None
        )
        while rows := dict(islice(single, _ROWS_AT_ONCE)):
            index.add(rows)
            count += len(rows)
        return count

    def _lots(self, contents: Iterable[bytes | Path]) -> Iterator[list[tuple[Key, bytes | Path]]]:
        lot: list[tuple[Key, bytes | Path]] = []
        size = 0
        for content in contents:
            key, content = self._named(content)
            lot.append((key, content))
            size += len(content) if isinstance(content, bytes) else 0
            if size >= _LOT_BYTES:
                yield lot
                lot, size = [], 0
        if lot:
            yield lot

    def _named(self, content: bytes | Path) -> tuple[Key, bytes | Path]:
        if not isinstance(content, Path):
            return key_of(content), content
        with content.open("rb", buffering=0) as file:
            head = _read_small(file, self._blob_limit_bytes)
            if len(head) <= self._blob_limit_bytes:
                return key_of(head), head
            digest = hashlib.sha256(head)
            for chunk in chunks_of(file):
                digest.update(chunk)
        return Key(digest.hexdigest()), content

    def _put_alone(self, key: Key, content: bytes | Path) -> BlobLocation:
        name = blob_name(key)
        if isinstance(content, bytes):
            self.store.put_if_absent(name, content)
            return alone(name, len(content))
        with content.open("rb", buffering=0) as file:
            checked = UnchangedFile(file, key, str(content))
            if not self.store.put_if_absent(name, checked):
                size = self.store.head(name)
                if size is None:
                    raise ObjectMissing(name, str(self.store))
                return alone(name, size)
        return alone(name, checked.size)

    def _read_object(self, name: str, rows: Mapping[Key, BlobLocation], verify: bool) -> dict[Key, bytes]:
        try:
            return self._read_once(name, rows, verify)
        except BlobCorrupt:
            # Damaged on its way, perhaps: what comes a second time from where it lies is.
            self._forget(name)
            return self._read_once(name, rows, verify)

    def _forget(self, name: str) -> None:
        """A cache does not give again what it gave of an object."""
        if isinstance(self.store, _Forgets):
            self.store.forget([name])

    def _read_once(self, name: str, rows: Mapping[Key, BlobLocation], verify: bool) -> dict[Key, bytes]:
        ranges = [(row.offset, row.stored_size) for row in rows.values()]
        parts = read_merged(partial(self.store.get_ranges, name), ranges, self.store.merge_gap_bytes)
        contents = {}
        for (key, row), part in zip(rows.items(), parts, strict=True):
            content = bytes(part) if row.codec == "stored" else inflated(part, row.size)
            if content is None or len(content) != row.size or (verify and key_of(content) != key):
                raise BlobCorrupt(key, name)
            contents[key] = content
        return contents

    def _stream(self, key: Key, row: BlobLocation, index: Index, chunk_bytes: int) -> Iterator[bytes]:
        digest = hashlib.sha256()
        pieces = self._stored_pieces(key, row, index, chunk_bytes)
        if row.codec == "deflate":
            pieces = inflated_pieces(pieces, chunk_bytes)
        given = 0
        try:
            for piece in pieces:
                digest.update(piece)
                given += len(piece)
                if given > row.size:
                    break
                yield piece
        except zlib.error as error:
            self._forget(row.object_name)
            raise BlobCorrupt(key, row.object_name) from error
        if given != row.size or digest.hexdigest() != key:
            self._forget(row.object_name)
            raise BlobCorrupt(key, row.object_name)

    def _stored_pieces(self, key: Key, row: BlobLocation, index: Index, chunk_bytes: int) -> Iterator[bytes]:
        """The bytes of a blob as they are stored; what was moved meanwhile is the same in its new place."""
        span = chunk_bytes if self.store.parallel == 1 else max(chunk_bytes, SPAN_BYTES)
        places = [row]

        def read(start: int) -> bytes:
            length = min(span, row.stored_size - start)
            for _ in range(2):
                place = places[-1]
                try:
                    [piece] = self.store.get_ranges(place.object_name, [(place.offset + start, length)])
                except ObjectMissing:
                    places.extend(index.find([key]).values())
                    if (places[-1].codec, places[-1].stored_size) != (row.codec, row.stored_size):
                        break
                else:
                    return piece
            raise self._missing([key])

        with Team(min(self.store.parallel, _SPANS_AT_ONCE)) as team:
            for piece in team.map(read, range(0, row.stored_size, span)):
                if not piece:
                    return
                for at in range(0, len(piece), chunk_bytes):
                    yield piece[at : at + chunk_bytes]

    def _missing(self, keys: Sequence[Key]) -> BlobMissing:
        from grange.repository.quarantine import missing_error  # what it needs is imported when it is needed

        return missing_error(self.store, keys)

    def _refuse_missing(self, keys: Sequence[Key], found: Collection[Key]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            raise self._missing(missing)

    def _blobs_or_problem(self, pack: ObjectInfo) -> dict[Key, BlobLocation] | PackMalformed:
        """Where the blobs in a pack lie; none if it is not there any more."""
        try:
            return blobs_in(self.store, pack.name, pack.size)
        except PackMalformed as error:
            return error
        except ObjectMissing:  # pruned meanwhile
            return {}


def _cut(keys: Sequence[Key], found: Mapping[Key, BlobLocation], window_bytes: int) -> Iterator[list[Key]]:
    """Keys in their order, so many at a time that their contents fill a window."""
    window: list[Key] = []
    size = 0
    for key in keys:
        more = found[key].size
        if window and size + more > window_bytes:
            yield window
            window, size = [], 0
        window.append(key)
        size += more
    if window:
        yield window


def _by_object(found: Mapping[Key, BlobLocation]) -> dict[str, dict[Key, BlobLocation]]:
    groups: dict[str, dict[Key, BlobLocation]] = {}
    for key, row in found.items():
        groups.setdefault(row.object_name, {})[key] = row
    return groups


def _watched(
    chunks: Iterable[Content], update: Callable[[Content], object], sizes: list[int]
) -> Iterator[Content]:
    for chunk in chunks:
        update(chunk)
        sizes.append(len(chunk))
        yield chunk


def _read_up_to(file: Readable, size: int) -> bytes:
    """Read until the end or until there are size bytes: one call of read may give less."""
    content = file.read(size)
    while len(content) < size and (more := file.read(size - len(content))):
        content += more
    return content


def _read_small(file: io.FileIO, limit_bytes: int) -> bytes:
    """The content of a file; more than limit_bytes of it if it is longer.

    Asks for as much as the file has: a buffer of the limit for each small file costs more than reading it.
    """
    size = os.fstat(file.fileno()).st_size
    content = _read_up_to(file, min(size, limit_bytes) + 1)
    if len(content) > size:  # it has grown
        content += _read_up_to(file, max(0, limit_bytes + 1 - len(content)))
    return content


def _read_file(descriptor: int, ranges: Sequence[Range]) -> Contents:
    return [os.pread(descriptor, length, offset) for offset, length in ranges]
