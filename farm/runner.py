"""The runner: works through chunks of tasks where the cores are.

One file, standard library only, Python 3.9 or newer: it is what travels to a compute node.

    runner.py judge CHUNK_FOLDER   a few tasks of a chunk that failed on another node (Node)
    runner.py run CHUNK_FOLDER     one chunk; a crash of the interpreter is survived by starting it again
    runner.py serve PARENT_PID     chunk after chunk; requests as JSON lines on standard input, reports as
                                   JSON lines on standard output, end of input ends it

Beside it lie, and are loaded where a chunk needs them, courier.py (packs into a store), lookout.py (monitors
of running tasks) and stower.py (files that stay here).

A chunk folder holds chunk.zip (chunk.json, blobs of input files, calls.pickle), perhaps delivery.json (signed
URLs: see courier.py, and Delivery below) and gets

    result-<n>.zip    a result pack: blobs named by key, and manifest.json as its last member; or, if the pack
                      was put into the store, its receipt: delivered.json, directory, manifest.json
    marks             four bytes each: the running task, its tries, and per task the number of its pack
    cancel            a JSON list of ids to end (empty: all), written by the executor
    stdout, stderr    what a call of a function prints, taken away after each call

Order of writes of a pack: result-<n>.part, fsync, marks, rename. A .part that marks point at is complete,
so whoever comes next renames it; any other is rubbish. So no task is lost, and none runs twice. A pack that
is to be put into the store is in its place before that, as any other; only its marks say that it is pending,
and so that the chunk is not done.
"""

# zip() has no strict= before Python 3.10, and contextlib costs a fifth of the start-up time.
# ruff: noqa: B905, SIM105
from __future__ import annotations

import array
import enum
import errno
import faulthandler
import fcntl
import hashlib
import json
import os
import signal
import stat
import struct
import sys
import threading
import time
import zlib
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

FORMAT = 1
#: The exit code of a runner that cannot write to its spool (EX_CANTCREAT).
EXIT_UNWRITABLE = 73
#: The exit code of a runner that left its chunk to others: no time is left here, or this node is suspect.
EXIT_ELSEWHERE = 75
#: The exit code, within a runner, of a chunk that another runner is at.
EXIT_OCCUPIED = 76
#: A signal that a scheduler sends to a task reaches its runner within this time. Seconds.
SHARED_SIGNAL_S = 0.5
#: What a runner of a cluster leaves of an allocation's time for ending in order. Seconds.
LAST_S = 5.0
#: A node whose program failed at once is left alone for so long while other nodes are alive. Seconds.
SUSPICION_S = 120.0
#: A chunk waits on a suspect node so long for what another one says of it. Seconds.
JUDGEMENT_S = 10.0
#: A node that was found broken gets nothing for so long. Seconds.
BROKEN_S = 86400.0
#: A host of ours that has said nothing for so long is not counted on. Seconds.
ALIVE_S = 90.0
#: Where packs could not be put into the store of late, it is not tried for long again. Seconds.
UNDELIVERED_S = 120.0
#: A program that fails within this time has not done its work. Seconds.
AT_ONCE_S = 5.0
#: How long a cancelled call that cannot be interrupted may go on before its interpreter is killed.
CANCEL_PATIENCE_S = 5.0
#: After so many deaths of the runner while it runs, a task is taken for the cause.
DEATHS = 3
#: Larger files are streamed into the pack, never held whole in memory.
WHOLE_FILE = 1 << 20
#: From this size on a streamed file gets a header with 64-bit sizes, before its stored size is known.
WIDE = 1 << 31
#: A part result of this size is handed over at once; of the second, if it is put into the store: there are
#: only so many URLs.
PACK_BYTES = 32 << 20
DELIVERED_BYTES = 128 << 20
#: What a pack may have of members, and of bytes in its directory, so that reading it has a bound.
MOST_MEMBERS = 1 << 19
LARGEST_DIRECTORY = 64 << 20
MIB = 1 << 20

#: Of an output's name: what labels a link is in an index of the database.
LABEL_LIMIT = 255
#: Bits of an int that Python still writes out as JSON (4,300 digits).
INT_BITS = 14284
#: The largest exit status that the database takes.
LARGEST_STATUS = (1 << 31) - 1
#: In marks: no task is running.
IDLE = 0xFFFFFFFF
#: In marks, in place of a pack's number: the task was done in a folder beside this one.
NOT_HERE = 0xFFFFFFFF
#: In marks, with a pack's number: the pack is here, and about to be put into the store.
PENDING = 0x80000000
#: The file among those that are kept which tells of monitors that could not do their work.
MONITOR_LOG = "monitors.txt"
PAIR = struct.Struct("=2I")
EMPTY = hashlib.sha256(b"").hexdigest()
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
#: 1980-01-01: packs of equal content are equal bytes.
DOS_DATE = 0x21

Json = Dict[str, Any]


class SpoolFailed(Exception):
    """The spool cannot be written: full, read-only, no rights."""


class Ended(BaseException):
    """The runner was told to end; not an Exception, so that a function's own handlers let it pass."""


class Cancelled(BaseException):
    """The running call was cancelled."""


class Elsewhere(BaseException):
    """What is left of this chunk is for another node, or for later."""


# ---------------------------------------------------------------------------------------------- ZIP files


def deflated(content: bytes) -> Optional[bytes]:
    """The content deflated, where that saves at least a tenth; level 1, because nodes are for computing."""
    if len(content) <= 4096:
        return None
    if len(content) > 65536 and len(zlib.compress(content[:16384], 1)) > 14746:
        return None
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
    smaller = squeeze.compress(content) + squeeze.flush()
    return smaller if len(smaller) < 0.9 * len(content) else None


class ZipWriter:
    """Writes a ZIP file member after member; a fifth of zipfile's cost for small members.

    Errors: SpoolFailed where the file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._fd = spool_open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._buffer: List[bytes] = []
        self._buffered = 0
        self._directory: List[bytes] = []
        self._broken: Optional[OSError] = None
        self.offset = 0

    def add(self, name: str, content: bytes) -> None:
        """Add one member that is at hand."""
        smaller = deflated(content)
        data, method = (content, 0) if smaller is None else (smaller, 8)
        label, crc, start = name.encode(), zlib.crc32(content), self.offset
        self._write(
            LOCAL_HEADER.pack(
                b"PK\3\4", 20, 0x800, method, 0, DOS_DATE, crc, len(data), len(content), len(label), 0
            )
        )
        self._write(label)
        self._write(data)
        self._list(label, method, crc, len(data), len(content), start)

    def add_file(self, fd: int, size: int, known: Callable[[str], bool]) -> str:
        """Add an open file, named by its key, in one pass and in pieces; dropped again if it is known.

        Errors: OSError of reading the file.
        """
        self._flush()
        start = self.offset
        extra = 20 if size >= WIDE else 0
        body = start + LOCAL_HEADER.size + 64 + extra
        digest, crc, length, position = hashlib.sha256(), 0, 0, body
        squeeze = None
        piece = os.pread(fd, WHOLE_FILE, 0)
        if deflated(piece) is not None:
            squeeze = zlib.compressobj(1, zlib.DEFLATED, -15)
        try:
            while piece:
                digest.update(piece)
                crc = zlib.crc32(piece, crc)
                length += len(piece)
                position += self._write_at(squeeze.compress(piece) if squeeze else piece, position)
                piece = os.pread(fd, WHOLE_FILE, length)
            if squeeze:
                position += self._write_at(squeeze.flush(), position)
            key = digest.hexdigest()
            if known(key):
                position = start
            else:
                stored = position - body
                if not extra and max(stored, length) >= 0xFFFFFFFF:
                    raise OSError(errno.EFBIG, "grew while it was read")
                header = LOCAL_HEADER.pack(
                    b"PK\3\4",
                    45 if extra else 20,
                    0x800,
                    8 if squeeze else 0,
                    0,
                    DOS_DATE,
                    crc,
                    0xFFFFFFFF if extra else stored,
                    0xFFFFFFFF if extra else length,
                    64,
                    extra,
                )
                zip64 = struct.pack("<HHQQ", 1, 16, length, stored) if extra else b""
                self._write_at(header + key.encode() + zip64, start)
                self._list(key.encode(), 8 if squeeze else 0, crc, stored, length, start)
        except OSError:
            os.ftruncate(self._fd, start)
            raise
        os.ftruncate(self._fd, position)
        os.lseek(self._fd, position, os.SEEK_SET)
        self.offset = position
        return key

    def add_named(self, name: str, fd: int) -> None:
        """Add an open file as it is, under a name, in pieces."""
        label, start, crc, length = name.encode(), self.offset, 0, 0
        size = os.fstat(fd).st_size
        while length < size:
            piece = os.pread(fd, WHOLE_FILE, length)
            crc, length = zlib.crc32(piece, crc), length + len(piece)
        if size >= 0xFFFFFFFF:
            raise SpoolFailed("%s is larger than 4 GiB" % name)
        self._write(
            LOCAL_HEADER.pack(b"PK\3\4", 20, 0x800, 0, 0, DOS_DATE, crc, size, size, len(label), 0) + label
        )
        length = 0
        while length < size:
            piece = os.pread(fd, WHOLE_FILE, length)
            self._write(piece)
            length += len(piece)
        self._list(label, 0, crc, size, size, start)

    def close(self, sync: bool = True) -> None:
        """Write the central directory; everything is on the disk when this returns."""
        directory = b"".join(self._directory)
        start, count, size = self.offset, len(self._directory), len(directory)
        self._write(directory)
        if count >= 0xFFFF or start >= 0xFFFFFFFF or size >= 0xFFFFFFFF:
            self._write(END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start))
            self._write(LOCATOR64.pack(b"PK\6\7", 0, start + size, 1))
        self._write(
            END.pack(
                b"PK\5\6",
                0,
                0,
                min(count, 0xFFFF),
                min(count, 0xFFFF),
                min(size, 0xFFFFFFFF),
                min(start, 0xFFFFFFFF),
                0,
            )
        )
        self._flush()
        try:
            if sync:
                os.fsync(self._fd)
            os.close(self._fd)
        except OSError as problem:
            raise SpoolFailed(str(problem)) from problem

    def abandon(self) -> None:
        """Close without finishing; the file is rubbish."""
        os.close(self._fd)

    def _list(self, label: bytes, method: int, crc: int, stored: int, size: int, start: int) -> None:
        wide = [number for number in (size, stored, start) if number >= 0xFFFFFFFF]
        extra = struct.pack("<HH%dQ" % len(wide), 1, 8 * len(wide), *wide) if wide else b""
        self._directory.append(
            CENTRAL_HEADER.pack(
                b"PK\1\2",
                (3 << 8) | (45 if wide else 20),
                45 if wide else 20,
                0x800,
                method,
                0,
                DOS_DATE,
                crc,
                min(stored, 0xFFFFFFFF),
                min(size, 0xFFFFFFFF),
                len(label),
                len(extra),
                0,
                0,
                0,
                0o100644 << 16,
                min(start, 0xFFFFFFFF),
            )
            + label
            + extra
        )

    def _write(self, data: bytes) -> None:
        self._buffer.append(data)
        self._buffered += len(data)
        self.offset += len(data)
        if self._buffered > WHOLE_FILE:
            self._flush()

    def _flush(self) -> None:
        self._sound()
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._buffered = 0
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as problem:
            self._broken = problem
            self._sound()

    def _sound(self) -> None:
        """What was not written once is missing for ever: nobody may finish such a pack."""
        if self._broken is not None:
            raise SpoolFailed(str(self._broken)) from self._broken

    def _write_at(self, data: bytes, position: int) -> int:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, position)
                view, position = view[written:], position + written
        except OSError as problem:
            self._broken = problem
            self._sound()
        return len(data)


class ZipReader:
    """Reads members of ZIP files that ZipWriter made; names is in the order of the file."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        #: Where the directory begins, which reaches to the end of the file. Bytes.
        self.directory_at = 0
        self.length = os.fstat(self._fd).st_size
        self._members: Dict[str, Tuple[int, int, int, int]] = {}
        try:
            for name, method, stored, size, start in self._entries():
                self._members[name] = (method, stored, size, start)
        except (struct.error, ValueError) as problem:
            os.close(self._fd)
            raise ValueError("%s is not a pack: %s" % (path, problem)) from problem
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def names(self) -> List[str]:
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        return self._members[name][2]

    def read(self, name: str) -> bytes:
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        """The content in pieces of bounded size; never more of it than the directory says."""
        method, stored, size, start = self._members[name]
        header = LOCAL_HEADER.unpack(os.pread(self._fd, LOCAL_HEADER.size, start))
        position = start + LOCAL_HEADER.size + header[9] + header[10]
        inflate = zlib.decompressobj(-15) if method == 8 else None
        while stored:
            piece = os.pread(self._fd, min(stored, WHOLE_FILE), position)
            if not piece:
                raise ValueError("the pack ends inside its member %s" % name)
            position, stored = position + len(piece), stored - len(piece)
            # a piece may hold a thousand times its size
            while piece:
                made = inflate.decompress(piece, WHOLE_FILE) if inflate else piece
                piece = inflate.unconsumed_tail if inflate else b""
                size -= len(made)
                if size < 0:
                    raise ValueError("the member %s is longer than it says" % name)
                yield made
        # What is left in the inflater is less than it gives at once.
        rest = inflate.flush() if inflate else b""
        if len(rest) != size:
            raise ValueError("the member %s is not as long as it says" % name)
        yield rest

    def tail(self, start: int) -> bytes:
        """The bytes of the file from a place on."""
        return os.pread(self._fd, max(0, self.length - start), start)

    def close(self) -> None:
        os.close(self._fd)

    def _entries(self) -> Iterator[Tuple[str, int, int, int, int]]:
        """Nothing that the file says of itself is believed before it is seen to fit into the file."""
        length = os.fstat(self._fd).st_size
        if length < END.size:
            raise ValueError("it is too short")
        fields = END.unpack(os.pread(self._fd, END.size, length - END.size))
        if fields[0] != b"PK\5\6":
            raise ValueError("it has no end record")
        count, size, start = fields[4], fields[5], fields[6]
        if count == 0xFFFF or size == 0xFFFFFFFF or start == 0xFFFFFFFF:
            at = length - END.size - LOCATOR64.size
            end64 = LOCATOR64.unpack(os.pread(self._fd, LOCATOR64.size, at))[2] if at >= 0 else length
            if end64 > length - END64.size:
                raise ValueError("its 64-bit end record is damaged")
            fields64 = END64.unpack(os.pread(self._fd, END64.size, end64))
            count, size, start = fields64[7], fields64[8], fields64[9]
        if start + size > length or count * CENTRAL_HEADER.size > size:
            raise ValueError("its directory does not fit into its %d bytes" % length)
        if count > MOST_MEMBERS or size > LARGEST_DIRECTORY:
            raise ValueError("it has %d members, %d bytes of directory: too many" % (count, size))
        self.directory_at = start
        directory, position = os.pread(self._fd, size, start), 0
        for _ in range(count):
            entry = CENTRAL_HEADER.unpack_from(directory, position)
            position += CENTRAL_HEADER.size
            name = directory[position : position + entry[10]].decode()
            extra = directory[position + entry[10] : position + entry[10] + entry[11]]
            position += entry[10] + entry[11] + entry[12]
            stored, full, offset = entry[8], entry[9], entry[16]
            if 0xFFFFFFFF in (stored, full, offset):
                wide = [
                    value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + (len(extra) - 4) // 8 * 8])
                ]
                if len(wide) < (stored, full, offset).count(0xFFFFFFFF):
                    raise ValueError("a 64-bit entry of its directory is damaged")
                full = wide.pop(0) if full == 0xFFFFFFFF else full
                stored = wide.pop(0) if stored == 0xFFFFFFFF else stored
                offset = wide.pop(0) if offset == 0xFFFFFFFF else offset
            if offset + LOCAL_HEADER.size + stored > start:
                raise ValueError("its member %s reaches into the directory" % clean_text(name[:80]))
            yield name, entry[4], stored, full, offset


# ------------------------------------------------------------------------------------------------ results


Tell = Callable[[int, bool, int, int], None]


class Results:
    """What became of the tasks of one chunk: marks, and packs handed over part by part.

    tell(number, complete, results, blobs) is called when pack `number` is in its place.
    """

    def __init__(
        self,
        folder: str,
        count: int,
        flush_s: float,
        tell: Tell,
        patience_s: Optional[float] = None,
    ) -> None:
        self._folder = folder
        self._tell = tell
        self.flush_s = flush_s
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._keys: Set[str] = set()
        self._pack: Optional[ZipWriter] = None
        self._results: List[Json] = []
        self._indexes: List[int] = []
        self._blobs = 0
        self._dirty = threading.Event()
        self._closed = False
        self.due: Optional[float] = None
        #: Results are held back until one of them shows that this node can run the program.
        self.holding = False
        self.last: Optional[Json] = None
        self._live_s = patience_s / 3 if patience_s else None
        self._live_at = 0.0
        #: Who puts packs into the store, if somebody does.
        self.delivery: Optional[Delivery] = None
        #: Held while nobody should fork.
        self.quiet = threading.Lock()
        path = os.path.join(folder, "marks")
        self._fd = spool_open(path, os.O_RDWR | os.O_CREAT)
        # Another runner that is at work is waited for.
        life: object = None
        while not lock_alone(self._fd, patience_s):
            before, life = life, life_of(path)
            if life == before or not patience_s:
                os.close(self._fd)
                raise Occupied
        self._marks = array.array("I", os.pread(self._fd, 4 * count + 8, 0))
        if len(self._marks) < count + 2:
            self._marks = array.array("I", [IDLE, 0]) + array.array("I", bytes(4 * count))
            self.idle()
            self._save()
        self._number = 1 + self._settle()
        self._suspect = self.running()

    def live(self, now: float) -> None:
        """Show whoever waits for the chunk that we are at work on it, however long a task takes."""
        if self._live_s is not None and now >= self._live_at:
            self._live_at = now + self._live_s
            try:
                os.utime(self._fd)
            except OSError:
                pass

    @property
    def complete(self) -> bool:
        """Whether all is done. Our own marks: to close their file, opened anew, would end our lock on it."""
        return are_done(self._marks[2:])

    def unlock(self) -> None:
        """Let another runner at the chunk."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def lock(self) -> None:
        """Be alone at the chunk again, and see what was done meanwhile."""
        lock_alone(self._fd)
        self._marks = array.array("I", os.pread(self._fd, 4 * len(self._marks), 0))
        self._number = 1 + self._settle()

    def _settle(self) -> int:
        """Finish what an earlier life of this chunk left; returns the number of the last pack."""
        done = numbers_in(self._marks[2:])
        last = max(done, default=0)
        settle_parts(self._folder, done)
        for name in os.listdir(self._folder):
            if name.startswith("result-") and name.endswith(".zip"):
                last = max(last, int(name[7:-4]))
                pack = ZipReader(os.path.join(self._folder, name))
                members = pack.names
                if "delivered.json" in pack:
                    members = names_in_directory(pack.read("directory"))
                self._keys.update(member for member in members if member != "manifest.json")
                pack.close()
        return last

    def deliver_by(self, delivery: Optional[Delivery]) -> None:
        """From now on packs are put into the store by somebody (None: by nobody), and those first that an
        earlier life of this chunk had still to put there."""
        self.delivery = delivery
        for number in sorted({mark & ~PENDING for mark in self._marks[2:] if is_pending(mark)}):
            if delivery is not None and delivery.takes(number):
                delivery.add(number, 0, 0)
            else:
                self.handed_over(number, 0, 0)

    def handed_over(self, number: int, results: int, blobs: int) -> None:
        """Nothing more is to be done about a pack that was pending."""
        with self._lock:
            for index, mark in enumerate(self._marks):
                if index > 1 and mark == number | PENDING:
                    self._marks[index] = number
            self._save()
        self._tell(number, self.complete, results, blobs)

    def done(self, index: int) -> bool:
        return self._marks[index + 2] != 0

    def running(self) -> Optional[Tuple[int, int]]:
        """The task that was running when the last life of this chunk ended, and its tries."""
        index, tries = self._marks[:2]
        return None if index == IDLE or self.done(index) else (index, tries)

    def begin(self, index: int) -> None:
        """Mark a task as running, so that whoever comes after a crash knows it."""
        if self._suspect is not None and self._suspect[0] == index:
            # What was done again because of it need not be done a third time.
            self.flush()
            self._mark(index, self._suspect[1] + 1)
        else:
            self._mark(index, 1)

    def idle(self) -> None:
        """Mark that no task is running: it was ended, and is not to blame for that."""
        self._mark(IDLE, 0)

    def _mark(self, index: int, tries: int) -> None:
        # Without the lock: only the main thread writes these eight bytes.
        self._marks[0], self._marks[1] = index, tries
        try:
            os.pwrite(self._fd, PAIR.pack(index, tries), 0)
        except OSError as problem:
            raise SpoolFailed(str(problem)) from problem

    def keep(self, content: bytes) -> str:
        """Keep a content in the pack; returns its key."""
        key = hashlib.sha256(content).hexdigest()
        if key not in self._keys:
            with self._lock:
                self._writer().add(key, content)
                self._keys.add(key)
                self._blobs += 1
        return key

    def keep_file(self, fd: int) -> str:
        """Keep an open file; large ones are streamed. Errors: OSError of reading it."""
        size = os.fstat(fd).st_size
        if not size and EMPTY in self._keys:
            return EMPTY
        if size <= WHOLE_FILE:
            return self.keep(os.pread(fd, size, 0) if size else b"")
        with self._lock:
            key = self._writer().add_file(fd, size, self._keys.__contains__)
            if key not in self._keys:
                self._keys.add(key)
                self._blobs += 1
        return key

    def add(self, index: int, result: Json) -> None:
        with self._lock:
            self._results.append(result)
            self._indexes.append(index)
            self.last = result
            if self.holding and not failed_at_once(result):
                self.holding = False
            most = PACK_BYTES if self.delivery is None else DELIVERED_BYTES
            full = self._pack is not None and self._pack.offset > most and not self.holding
            if self.due is None and not self.holding:
                self.due = time.monotonic() + self.flush_s
                self._dirty.set()
        if full:
            self.flush()

    def leave(self, indexes: Iterable[int]) -> None:
        """These are done elsewhere: nothing is to be done about them here."""
        for index in indexes:
            if not self.done(index):
                self._marks[index + 2] = NOT_HERE
        self._save()

    @property
    def held(self) -> int:
        """How many results are held back."""
        return len(self._results) if self.holding else 0

    def discard(self) -> None:
        """Forget what is held back: those tasks will run again, elsewhere."""
        with self._lock:
            for result in self._results:
                if result.get("stash"):
                    remove_stash(result["stash"]["path"])
            self._results, self._indexes, self._blobs, self.holding = [], [], 0, False
            self._drop_pack()

    def flush(self) -> None:
        """Hand over what there is."""
        with self._flushing:
            with self._lock:
                if not self._results or self.holding:
                    return
                pack, results, indexes = self._writer(), self._results, self._indexes
                blobs, number = self._blobs, self._number
                self._pack, self._results, self._indexes, self._blobs = None, [], [], 0
                self._number += 1
                self.due = None
                self._dirty.clear()
            pack.add("manifest.json", dump({"format": FORMAT, "results": results}))
            pack.close()
            delivery = self.delivery if blobs else None
            pending = delivery is not None and delivery.takes(number, pack.offset)
            with self._lock:
                for index in indexes:
                    self._marks[index + 2] = number | PENDING if pending else number
                self._save()
            path = os.path.join(self._folder, "result-%d" % number)
            try:
                os.rename(path + ".part", path + ".zip")
            except OSError as problem:
                # Whoever went on elsewhere with a chunk that we were stopped at has done it for us, and the
                # pack may have been fetched since.
                if problem.errno != errno.ENOENT or not os.path.exists(self._folder):
                    raise SpoolFailed(str(problem)) from problem
            if delivery is not None and pending:
                delivery.add(number, len(results), blobs)
            else:
                self._tell(number, self.complete, len(results), blobs)

    def flush_if_due(self) -> None:
        if self.due is not None and time.monotonic() >= self.due:
            self.flush()

    def flush_in_background(self) -> None:
        """Flush at intervals from now on, in a thread: a call that takes hours holds back no result."""
        threading.Thread(target=self._flusher, name="flush", daemon=True).start()

    def _flusher(self) -> None:
        try:
            while not self._closed:
                self._dirty.wait(self._live_s)
                self.live(time.monotonic())
                due = self.due
                if due is not None:
                    time.sleep(max(0.0, due - time.monotonic()))
                    self.flush_if_due()
        except SpoolFailed as problem:
            fail(problem)

    def close(self) -> None:
        if self.holding:
            self.discard()
        self.flush()
        if self.delivery is not None:
            for number, results, blobs in self.delivery.stop():
                self.handed_over(number, results, blobs)
        self._closed = True
        self._dirty.set()
        self._drop_pack()
        os.close(self._fd)

    def _drop_pack(self) -> None:
        if self._pack is not None:
            self._pack.abandon()
            os.unlink(os.path.join(self._folder, "result-%d.part" % self._number))
            self._pack = None

    def _writer(self) -> ZipWriter:
        if self._pack is None:
            self._pack = ZipWriter(os.path.join(self._folder, "result-%d.part" % self._number))
        return self._pack

    def _save(self) -> None:
        try:
            os.pwrite(self._fd, self._marks[2:].tobytes(), 8)
        except OSError as problem:
            raise SpoolFailed(str(problem)) from problem


class Delivery:
    """Puts result packs of one chunk into the store, one after the other, in a thread.

    A pack lies in its place in the chunk folder before. Once it is in the store its receipt takes that place;
    where that cannot be done, it stays, and comes back as other packs do.
    """

    def __init__(self, results: Results, folder: str, spec: Json) -> None:
        self._results = results
        self._folder = folder
        self._places: List[List[str]] = spec["put"]
        self._least: int = spec.get("least", 0)
        self._changed = threading.Condition()
        self._waiting: List[Tuple[int, int, int]] = []
        self._stopping = False
        self._courier = load_beside("courier")
        self._told = undelivered_mark(folder)
        self._carrier = self._courier.Courier(
            spec.get("ca", ""),
            lambda: self._stopping,
            results.quiet,
            time.time() - changed_at(self._told) > UNDELIVERED_S,
        )
        self._thread: Optional[threading.Thread] = None
        self._said = ""
        self._first = True

    def takes(self, number: int, size: Optional[int] = None) -> bool:
        """Whether a pack is to be put into the store: one of some size, for which there is a URL."""
        return 0 < number <= len(self._places) and (size is None or size >= self._least)

    def add(self, number: int, results: int, blobs: int) -> None:
        """Let a pack be put into the store."""
        with self._changed:
            self._waiting.append((number, results, blobs))
            self._changed.notify_all()
        if self._thread is None:
            # Not earlier: it takes over which signals are blocked.
            self._thread = threading.Thread(target=self._work, name="deliver", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether all has been dealt with, after some time at the latest."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def stop(self) -> List[Tuple[int, int, int]]:
        """Break off; what has not been dealt with."""
        self._stopping = True
        with self._changed:
            self._changed.notify_all()
        self._carrier.abort()
        if self._thread is not None:
            self._thread.join(0.5)  # what waits for a name server is left to itself
        return list(self._waiting)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._stopping)
                    if self._stopping:
                        return
                    work = self._waiting[0]
                self._deliver(work[0])
                with self._changed:
                    if self._stopping:
                        return
                    self._waiting.pop(0)
                    self._changed.notify_all()
                self._results.handed_over(*work)
        except SpoolFailed as problem:
            fail(problem)

    def _deliver(self, number: int) -> None:
        path = os.path.join(self._folder, "result-%d.zip" % number)
        name, url = self._places[number - 1]
        try:
            pack = ZipReader(path)
        except FileNotFoundError:
            return  # somebody has fetched it, or nobody wants it any more
        try:
            if "delivered.json" in pack:
                return
            self._carrier.put(url, path)
            if self._first or self._said:
                self._first, self._said = False, ""
                unmark(self._told)
            self._put_receipt(number, name, pack)
        except self._courier.Stopped:
            return
        except SpoolFailed:
            raise
        except Exception as problem:
            why = problem if isinstance(problem, self._courier.Undelivered) else type(problem).__name__
            self._say("a result pack was not put into the store, and is fetched instead: %s" % why)
        finally:
            pack.close()

    def _put_receipt(self, number: int, name: str, pack: ZipReader) -> None:
        part = os.path.join(self._folder, "receipt-%d.part" % number)
        try:
            receipt = ZipWriter(part)
            receipt.add(
                "delivered.json",
                dump({"name": name, "size": pack.length, "directory_at": pack.directory_at}),
            )
            receipt.add("directory", pack.tail(pack.directory_at))
            receipt.add("manifest.json", pack.read("manifest.json"))
            receipt.close()
            os.rename(part, os.path.join(self._folder, "result-%d.zip" % number))
        except (OSError, SpoolFailed) as problem:
            if os.path.exists(self._folder):
                raise SpoolFailed(str(problem)) from problem

    def _say(self, text: str) -> None:
        """Tell whoever runs the campaign, and the log of the run; not the streams of a call."""
        if text == self._said:
            return
        self._said = text
        run = os.path.dirname(self._folder)
        mark(self._told, text)
        try:
            with open(os.path.join(run, "log"), "a", encoding="utf-8") as file:
                file.write("%s: %s\n" % (os.path.basename(self._folder), text))
        except OSError:
            pass


def undelivered_mark(folder: str) -> str:
    """Where it is told, for all chunks of a run, why the store is not reached from there."""
    return os.path.join(os.path.dirname(folder), "undelivered")


def remove_stash(path: str) -> None:
    """Remove what was stashed by a task whose result nobody will hear of."""
    try:
        if os.path.isdir(path):
            remove_tree(path)
        else:
            os.unlink(path)
    except OSError as problem:
        sys.stderr.write("%s: %s\n" % (path, problem))


def load_beside(module: str) -> Any:
    """courier.py, lookout.py or stower.py, which lie beside this file; most chunks need none of them."""
    import importlib.util

    name = "grange_" + module
    found = sys.modules.get(name)
    if found is None:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), module + ".py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
    return found


def read_delivery(folder: str) -> Optional[Json]:
    """What delivery.json of a chunk folder says; None where there is none."""
    try:
        with open(os.path.join(folder, "delivery.json"), encoding="utf-8") as file:
            found: Json = json.load(file)
            return found
    except (OSError, ValueError):
        return None


class Occupied(Exception):
    """Another runner is at work on the chunk, or was stopped at it."""


def lock_alone(fd: int, patience_s: Optional[float] = None) -> bool:
    """Wait until no other runner is at work on the chunk: one that was stopped may wake after its chunk was
    given away. A record lock, because no child inherits it. False when patience is over."""
    until = None if patience_s is None else time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as problem:
            if problem.errno not in (errno.EACCES, errno.EAGAIN):
                return True
            if until is not None and time.monotonic() >= until:
                return False
            time.sleep(0.05)


def life_of(path: str) -> Tuple[bytes, int]:
    """What of a marks file changes while a runner is at work: its content, or the time of its last change.

    Opened anew each time, because a shared file system goes on showing an open file as it was.
    """
    try:
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return b"", 0


def failed_at_once(result: Json) -> bool:
    """Whether a program failed as it would on a node where it is missing or broken."""
    if result["outcome"] in ("program_missing", "crashed"):
        return bool(result["wall_s"] < AT_ONCE_S)
    return bool(result["outcome"] == "finished" and result["return_code"] and result["wall_s"] < AT_ONCE_S)


def settle_parts(folder: str, done: Optional[Iterable[int]] = None) -> None:
    """Give complete packs their names, remove incomplete ones. Nobody else may be at work in the folder."""
    parts = [name for name in os.listdir(folder) if name.startswith("result-") and name.endswith(".part")]
    if not parts:
        return
    wanted = numbers_in(read_marks(folder)[2:]) if done is None else set(done)
    for name in parts:
        path = os.path.join(folder, name)
        if int(name[7:-5]) in wanted:
            os.rename(path, path[:-5] + ".zip")
        else:
            os.unlink(path)


def is_pending(mark: int) -> bool:
    """Whether the pack with a task's result is still to be put into the store."""
    return bool(mark & PENDING) and mark != NOT_HERE


def numbers_in(marks: Iterable[int]) -> Set[int]:
    """The numbers of the packs that marks of tasks name."""
    return {mark & ~PENDING for mark in set(marks) if mark not in (0, NOT_HERE)}


def are_done(marks: Iterable[int]) -> bool:
    """Whether nothing is to be done any more of the tasks with these marks."""
    found = set(marks)
    return 0 not in found and not any(map(is_pending, found))


def names_in_directory(content: bytes) -> List[str]:
    """The names of the members that a directory lists."""
    found: List[str] = []
    position = 0
    while content.startswith(b"PK\1\2", position):
        entry = CENTRAL_HEADER.unpack_from(content, position)
        position += CENTRAL_HEADER.size
        found.append(content[position : position + entry[10]].decode())
        position += entry[10] + entry[11] + entry[12]
    return found


def read_marks(folder: str) -> array.array[int]:
    """The marks of a chunk; empty if no runner has begun it."""
    try:
        with open(os.path.join(folder, "marks"), "rb") as file:
            return array.array("I", file.read())
    except (FileNotFoundError, ValueError):
        return array.array("I")


def dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")


def spool_open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise SpoolFailed(str(problem)) from problem


def clean_text(text: str) -> str:
    """Text that JSON and databases take: no lone surrogates, no NUL, no novels."""
    if len(text) > 10000:
        text = text[:9990] + " [...]"
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\0", "\\x00")


HOST = os.uname().nodename
#: The name of this node: Slurm's, where it gave one.
NODE = os.environ.get("SLURMD_NODENAME") or HOST


def result_of(task: Json, outcome: str, message: str = "") -> Json:
    """A result without measures: of a task that did not run."""
    return {
        "id": task["id"],
        "attempt": task.get("attempt", 1),
        "outcome": outcome,
        "return_code": None,
        "signal": None,
        "message": clean_text(message),
        "outputs": {},
        "files": {},
        "started_at": time.time(),
        "wall_s": 0.0,
        "cpu_s": 0.0,
        "peak_memory_mb": 0.0,
        "host": NODE,
    }


def micro(seconds: float) -> float:
    """Rounded to microseconds; several times quicker than round()."""
    return int(seconds * 1e6) / 1e6


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number


# ---------------------------------------------------------------------------------------------- processes

_libc: Any = None


def prctl(option: int, argument: int) -> bool:
    """prctl(2), where there is one; False where not."""
    global _libc
    try:
        if _libc is None:
            import ctypes

            _libc = ctypes.CDLL(None, use_errno=True)
        return bool(_libc.prctl(option, argument, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def die_with_parent(number: int) -> None:
    prctl(1, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent dies: none can slip away from its task."""
    prctl(36, 1)


def children_of(pid: int) -> List[int]:
    found: List[int] = []
    try:
        for thread in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, thread), "rb") as file:
                found.extend(map(int, file.read().split()))
    except FileNotFoundError:
        if not os.path.exists("/proc/self/task/%d/children" % os.getpid()) and os.path.exists("/proc/self"):
            return children_by_scan(pid)
    except OSError:
        pass
    return found


def children_by_scan(pid: int) -> List[int]:
    """For kernels without lists of children."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as file:
                    if int(file.read().rsplit(b")", 1)[1].split()[1]) == pid:
                        found.append(int(name))
            except OSError:
                continue
    return found


def descendants(known: Iterable[int] = ()) -> List[int]:
    """All processes below this one, except those known before and what is below them."""
    skip = set(known)
    found: List[int] = []
    queue = [os.getpid()]
    while queue:
        for child in children_of(queue.pop()):
            if child not in skip:
                skip.add(child)
                found.append(child)
                queue.append(child)
    return found


def lives(pid: str) -> bool:
    """Whether there is such a process; one that has ended and that nobody waits for is none."""
    try:
        with open("/proc/%s/stat" % pid, "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def resident_bytes(pids: Iterable[int]) -> int:
    pages = 0
    for pid in pids:
        try:
            with open("/proc/%d/statm" % pid, "rb") as file:
                pages += int(file.read().split()[1])
        except (OSError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            continue


def reap() -> bool:
    """Bury the children that have ended; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def kill_leftovers(known: Iterable[int], patience_s: float = 5.0) -> None:
    """Kill every process below this one that was not known before, and wait for their end."""
    until = time.monotonic() + patience_s
    pause = 0.0002
    while True:
        left = descendants(known)
        if not left:
            return
        send(left, signal.SIGKILL)
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
        if time.monotonic() > until:
            sys.stderr.write("processes %s cannot be ended\n" % left)
            return
        time.sleep(pause)
        pause = min(0.01, 2 * pause)


def kill_strays(folder: str, patience_s: float = 0.0) -> None:
    """Wait for the end of what works at or below a folder of the spool; kill it when patience is over."""
    until = time.monotonic() + patience_s
    while True:
        left = strays(folder)
        if not left:
            return
        late = time.monotonic() - until
        if late > 0:
            send(left, signal.SIGKILL)
        if late > 5:
            sys.stderr.write("processes %s cannot be ended\n" % left)
            return
        time.sleep(0.01)


def strays(folder: str) -> List[int]:
    """Processes whose environment says that they work for a chunk folder at or below a folder."""
    found = []
    wanted = b"\0GRANGE_CHUNK=" + os.fsencode(folder)
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and int(name) not in (os.getpid(), os.getppid()):
            try:
                with open("/proc/%s/environ" % name, "rb") as file:
                    _, here, rest = (b"\0" + file.read()).partition(wanted)
            except OSError:
                continue
            if here and rest[:1] in (b"\0", b"/", b""):
                found.append(int(name))
    return found


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class OutOfMemory:
    """How many processes the kernel has ended in our memory cgroup because that was full."""

    def __init__(self) -> None:
        self._fd = -1
        for path in self._places():
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                return
            except OSError:
                continue

    @staticmethod
    def _places() -> List[str]:
        """Where the kernel may tell: of cgroups of the first version, then of the second."""
        found: List[str] = []
        try:
            with open("/proc/self/cgroup", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except OSError:
            return found
        for line in lines:
            number, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if "memory" in names.split(","):
                found.insert(0, "/sys/fs/cgroup/memory%s/memory.oom_control" % path)
            elif number == "0" and not names:
                found.append("/sys/fs/cgroup%s/memory.events" % path)
        return found

    def count(self) -> int:
        if self._fd < 0:
            return 0
        try:
            words = os.pread(self._fd, 4096, 0).split()
            return int(words[words.index(b"oom_kill") + 1])
        except (OSError, ValueError, IndexError):
            return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Control:
    """What the world wants of the runner: to end, to cancel tasks, or to go on."""

    #: Looking for a cancel file so often costs nothing, and is soon enough where no signal announces it.
    INTERVAL_S = 0.25

    def __init__(self, parent: int) -> None:
        self.parent = parent
        self.ending = False
        self.alarmed = False
        self.in_call = False
        self.current: Optional[str] = None
        self._folder = ""
        self._all = False
        self._ids: Set[str] = set()
        self._next = 0.0

    def enter(self, folder: str) -> None:
        self._folder, self._all, self._ids, self.current = folder, False, set(), None
        self._next = 0.0

    def look(self, now: float) -> None:
        """Look for a cancel file and for the parent, if it is time."""
        if now < self._next and not self.alarmed:
            return
        self.alarmed = False
        self._next = now + self.INTERVAL_S
        if self.parent and os.getppid() != self.parent:
            self.ending = True
        try:
            with open(os.path.join(self._folder, "cancel"), encoding="utf-8") as file:
                ids = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            # Without its folder nobody wants the chunk any more.
            self._all = self._all or not os.path.isdir(self._folder)
            return
        self._all = not ids
        self._ids = set(ids)

    def cancelled(self, task_id: str) -> bool:
        return self._all or task_id in self._ids

    def on_term(self, _number: int, _frame: object) -> None:
        self.ending = True
        if self.in_call:
            self.in_call = False
            raise Ended

    def on_usr1(self, _number: int, _frame: object) -> None:
        self.alarmed = True
        if self.in_call and self.current is not None:
            self.look(time.monotonic())
            if self.cancelled(self.current):
                self.in_call = False
                raise Cancelled


SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1}


class Watch:
    """Waits for one process and all that it starts, and ends them when it must."""

    def __init__(self, control: Control, results: Results, spec: Json) -> None:
        self._control = control
        self._results = results
        self._walltime_s: Optional[float] = spec.get("walltime_s")
        memory_mb = spec.get("memory_mb")
        self._memory = memory_mb * MIB if memory_mb else 0
        self._grace_s: float = spec.get("grace_s", 2.0)
        self._known = descendants()
        #: On a cluster others than we may send signals to what we run.
        self._shared = bool(os.environ.get("GRANGE_WORK"))
        #: What the monitor said that stopped the process.
        self.said = ""
        self._out_of_memory = OutOfMemory()
        self._ended_by_kernel = 0

    def spare(self, pid: int, gone: int) -> None:
        """A process below this one that is no part of any task; gone: the one whose place it takes."""
        self._known = [known for known in self._known if known != gone] + [pid]

    def wait(self, pid: int, task_id: str, started: float, lookout: Any = None) -> Tuple[int, Any, str, int]:
        """Returns wait status, resource usage, why it was ended ("" if by itself), peak memory in bytes.

        lookout: asked whether a monitor wants the process to be stopped.
        """
        control, results = self._control, self._results
        self._ended_by_kernel = self._out_of_memory.count()
        reason, kill_at, peak = "", 0.0, 0
        #: A process that a monitor wants to stop has until then to do so by itself.
        term_at = 0.0
        poll_at = started + 0.005 if self._memory else 0.0
        until = started + self._walltime_s if self._walltime_s else 0.0
        now = started
        while True:
            wake = now + 0.25
            if results.due is not None and results.due < wake:
                wake = results.due
            if poll_at and poll_at < wake:
                wake = poll_at
            if lookout is not None and not reason:
                wake = min(wake, lookout.wake_at(now))
            if reason:
                wake = min(wake, term_at or kill_at)
            elif until and until < wake:
                wake = until
            event = signal.sigtimedwait(SIGNALS, max(0.0, wake - now))
            if event is not None and event.si_signo != signal.SIGCHLD:
                control.alarmed = True
                control.ending = control.ending or event.si_signo == signal.SIGTERM
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            now = time.monotonic()
            results.flush_if_due()
            results.live(now)
            if poll_at and now >= poll_at:
                used = resident_bytes(descendants(self._known))
                peak = max(peak, used)
                if used > self._memory and (not reason or term_at):
                    reason, kill_at, term_at = "memory", now, 0.0
                # Memory is touched at some GB/s at most: the nearer the limit, the closer we look.
                poll_at = now + min(0.1, max(0.005, (self._memory - used) / 4e9))
            control.look(now)
            if not reason and lookout is not None:
                verdict = lookout.look(now)
                if verdict is not None:
                    monitor, self.said = verdict
                    reason, kill_at = "stopped", now
                    told = leave_note(monitor)
                    if monitor["grace_s"]:
                        term_at = now + monitor["grace_s"]
                        if not told:
                            self._send(pid, signal.SIGTERM)
            if not reason or term_at:
                why = ""
                if control.ending:
                    why, kill_at = "ended", now + min(0.5, self._grace_s)
                elif control.cancelled(task_id):
                    why, kill_at = "cancelled", now + self._grace_s
                elif (until and now >= until) or (term_at and now >= term_at):
                    why, kill_at = reason or "walltime", now + self._grace_s
                if why:
                    reason, term_at = why, 0.0
                    self._send(pid, signal.SIGTERM)
                if why == "ended":
                    # Whoever ends us may not wait for long: what is finished comes first.
                    results.flush()
            if reason and not term_at and now >= kill_at:
                self._send(pid, signal.SIGKILL)
                kill_at = now + 1.0
        if not reason and self._meant_us_too(status):
            reason = "ended"
        self._clear()
        return status, usage, reason, peak

    def _meant_us_too(self, status: int) -> bool:
        """Whether we are to end as well as a process that has just ended: a scheduler that ends a job sends
        its signal to all that runs in it, in no order. What the process left is not to be trusted then."""
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status) - 128
        patience_s = 0.0
        if number in (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM) and self._shared:
            patience_s = SHARED_SIGNAL_S
        until = time.monotonic() + patience_s
        while not self._control.ending:
            event = signal.sigtimedwait(SIGNALS, max(0.0, until - time.monotonic()))
            if event is None:
                break
            self._control.alarmed = self._control.alarmed or event.si_signo == signal.SIGUSR1
            self._control.ending = event.si_signo == signal.SIGTERM
        return self._control.ending

    def _send(self, pid: int, number: int) -> None:
        # Its session first: that works where /proc shows no children.
        try:
            os.killpg(pid, number)
        except OSError:
            pass  # nobody is left in it
        send(descendants(self._known), number)

    def _clear(self) -> None:
        """Kill what the process left running."""
        if not self._known:
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
        kill_leftovers(self._known)

    def judge(self, result: Json, status: int, usage: Any, reason: str, peak: int) -> None:
        """Fill in outcome, exit status and measures."""
        result["cpu_s"] = micro(usage.ru_utime + usage.ru_stime)
        result["peak_memory_mb"] = (max(usage.ru_maxrss << 10, peak) * 100 >> 20) / 100
        if os.WIFSIGNALED(status):
            result["signal"] = os.WTERMSIG(status)
        else:
            result["return_code"] = os.WEXITSTATUS(status)
        # The kernel counts the runner's own peak for whatever it starts: below that it says nothing.
        limit_kb = max(self._memory / 1024, peak_mb() * 1024) if self._memory else 0
        if not reason and limit_kb and usage.ru_maxrss > limit_kb:
            reason = "memory"
        if reason == "walltime":
            result["outcome"] = "walltime_exceeded"
            result["message"] = "ended after its walltime of %g s" % (self._walltime_s or 0)
        elif reason == "memory":
            result["outcome"] = "memory_exceeded"
            result["message"] = "used %.0f MiB of memory, its limit is %.0f MiB" % (
                result["peak_memory_mb"],
                self._memory / MIB,
            )
        elif not reason and self._is_killed(result) and self._out_of_memory.count() > self._ended_by_kernel:
            result["outcome"] = "memory_exceeded"
            result["message"] = "ended by the kernel: the memory of the job that it ran in was used up"
        elif reason == "stopped":
            result["outcome"], result["message"] = "stopped", clean_text(self.said)
        elif reason == "cancelled":
            result["outcome"], result["message"] = "cancelled", "cancelled while it ran"
        elif result["signal"] is not None:
            result["outcome"] = "crashed"
            result["message"] = "ended by %s" % signal_name(result["signal"])

    @staticmethod
    def _is_killed(result: Json) -> bool:
        """Whether it was ended as the kernel does, or a shell says that of its program."""
        return bool(result["signal"] == signal.SIGKILL or result["return_code"] == 128 + signal.SIGKILL)

    def close(self) -> None:
        self._out_of_memory.close()


def leave_note(monitor: Json) -> bool:
    """Write the file that tells a program to stop, into the working directory; False where there is none to
    be written."""
    if not monitor["stop_file"]:
        return False
    try:
        path = inside(monitor["stop_file"])
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, monitor["stop_text"].encode())
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return False
    return True


# ------------------------------------------------------------------------------------------------- scratch


def scratch_base(name: str) -> str:
    """The node-local folder of a run: $TMPDIR/name, ours alone."""
    path = os.path.join(os.environ.get("TMPDIR") or "/tmp", name)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "not a folder of ours", path) from None
    return path


def remove_tree(path: str) -> None:
    """Remove a folder and all below it, also what was made unwritable; symbolic links are not followed."""
    try:
        empty_folder(path)
        os.rmdir(path)
    except FileNotFoundError:
        return


def empty_folder(path: str) -> None:
    try:
        entries = list(os.scandir(path))
    except PermissionError:
        os.chmod(path, 0o700)
        entries = list(os.scandir(path))
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
        except PermissionError:
            os.chmod(path, 0o700)
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)


def inside(path: str) -> str:
    """A relative path that stays below its folder, or ValueError."""
    parts = path.split("/")
    if not path or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("the path %r must be relative, without '..'" % path)
    kept = [part for part in parts if part not in ("", ".")]
    if not kept:
        raise ValueError("the path %r names no file" % path)
    return "/".join(kept)


class Scratch:
    """The directory of a task; the next task gets it again, emptied."""

    def __init__(self, name: str) -> None:
        self._base = scratch_base(name)
        self._clear_after_the_dead()
        self.path = os.path.join(self._base, "%d" % os.getpid())
        remove_tree(self.path)
        os.mkdir(self.path, 0o700)
        os.chdir(self.path)

    def _clear_after_the_dead(self) -> None:
        """Remove the directories of runners of this run that were killed."""
        for name in os.listdir(self._base):
            if not lives(name.partition(".")[0]):
                remove_tree(os.path.join(self._base, name))

    def renew(self) -> None:
        """Empty it, whatever the task did to it."""
        try:
            os.chdir(self._base)
            os.chmod(self.path, 0o700)
            empty_folder(self.path)
        except OSError:
            remove_tree(self.path)
            os.mkdir(self.path, 0o700)
        os.chdir(self.path)

    def leave(self) -> None:
        os.chdir("/")
        try:
            remove_tree(self.path)
            os.rmdir(self._base)
        except OSError:
            pass


# ------------------------------------------------------------------------------------------------ commands


class Program:
    """Where a program lies; looked up once a chunk for each name and PATH."""

    def __init__(self) -> None:
        self._found: Dict[Tuple[str, str], str] = {}

    def find(self, name: str, search: str) -> str:
        """Errors: FileNotFoundError, PermissionError with a message for the user."""
        found = self._found.get((name, search))
        if found is None:
            found = self._found[name, search] = self._search(name, search)
        return found

    @staticmethod
    def _search(name: str, search: str) -> str:
        hidden = None
        for folder in search.split(os.pathsep):
            path = os.path.join(folder, name)
            if folder and os.path.isfile(path):
                if os.access(path, os.X_OK):
                    return path
                hidden = path
        if hidden is not None:
            raise PermissionError("the program %s is not executable" % hidden)
        raise FileNotFoundError("there is no program %r in PATH (%s)" % (name, search))


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Stream:
    """stdout or stderr of a task: a file that the runner keeps open and the next task gets emptied."""

    def __init__(self) -> None:
        self.name = ""
        self.fd = -1

    def open(self, name: str) -> None:
        if "/" in name:
            os.makedirs(os.path.dirname(name), exist_ok=True)
        self.fd = os.open(
            name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self.name = name

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.name = -1, ""


class Unfetched(Exception):
    """An input file that lies in the store could not be had from there, or not in the time that we have."""


class Fetched:
    """Input files that lie in the store, fetched by signed URL: each once for all tasks of a chunk."""

    def __init__(self, chunk: Chunk, control: Control, scratch: Scratch) -> None:
        self._places: Json = chunk.delivery["get"]
        self._folder = scratch.path + ".inputs"
        self._courier = load_beside("courier")
        self._carrier = self._courier.Courier(
            chunk.delivery.get("ca", ""), lambda: self._ends(control, chunk.results), chunk.results.quiet
        )
        #: Who waits for a content now.
        self.task_id = ""
        #: How many tasks are still to come that use a content.
        self._uses: Dict[str, int] = {}
        for index, task in enumerate(chunk.tasks):
            if not chunk.results.done(index):
                for key in task.get("files", {}).values():
                    self._uses[key] = self._uses.get(key, 0) + 1
        remove_tree(self._folder)
        os.mkdir(self._folder, 0o700)

    def write(self, key: str, fd: int) -> None:
        """Write a content into an open file. Errors: Unfetched; OSError of writing."""
        self._uses[key] = self._uses.get(key, 1) - 1
        path = os.path.join(self._folder, key)
        if not self._uses[key] and not os.path.exists(path):
            self._get(key, fd)
            return
        if not os.path.exists(path):
            part = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                self._get(key, part)
            finally:
                os.close(part)
            os.rename(path + ".part", path)
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            piece = os.read(source, WHOLE_FILE)
            while piece:
                write_all(fd, piece)
                piece = os.read(source, WHOLE_FILE)
        finally:
            os.close(source)
        if not self._uses[key]:
            os.unlink(path)

    def close(self) -> None:
        remove_tree(self._folder)

    def _get(self, key: str, fd: int) -> None:
        try:
            self._carrier.get(self._places[key], key, lambda piece: write_all(fd, piece))
        except (self._courier.Undelivered, self._courier.Stopped) as problem:
            raise Unfetched("the input %s cannot be had from the store: %s" % (key, problem)) from None

    def _ends(self, control: Control, results: Results) -> bool:
        return wanted_to_end(control, results) or control.cancelled(self.task_id)


def write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


class Commands:
    """Runs the commands of one chunk, each in a directory and session of its own."""

    def __init__(self, chunk: Chunk, control: Control) -> None:
        self._chunk = chunk
        self._control = control
        self._results = chunk.results
        self._watch = Watch(control, chunk.results, chunk.spec)
        self._scratch = Scratch(chunk.spec["scratch"])
        self._program = Program()
        self._out, self._err = Stream(), Stream()
        self._names = ("", "")
        self._streams: List[Stream] = []
        self._untouched: Set[str] = set()
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        base = dict(os.environb)
        for name in THREADS:
            base.setdefault(name.encode(), b"%d" % chunk.spec.get("cpus", 1))
        self._environment = base
        self._session: Json = {"setsid": True}
        self._inputs: Dict[str, bytes] = {}
        self._places: Json = chunk.delivery.get("get", {})
        self._fetched = Fetched(chunk, control, self._scratch) if self._places else None
        self._lookout: Any = None
        if chunk.spec.get("monitors"):
            self._lookout = load_beside("lookout").Lookout(
                chunk.folder, chunk.spec["monitors"], self._watch.spare
            )

    def run(self, index: int, task: Json) -> None:
        """Run one task and record what became of it; SpoolFailed if it cannot be recorded."""
        result = result_of(task, "finished")
        names = (task.get("stdout", "stdout.txt"), task.get("stderr", "stderr.txt"))
        try:
            self._prepare(task, names)
        except (OSError, ValueError) as problem:
            result["outcome"], result["message"] = "input_missing", clean_text(str(problem))
            self._finish(index, result, None)
            return
        except Unfetched as problem:
            if self._control.ending:
                raise Ended from None
            result["outcome"], result["message"] = "input_unreachable", clean_text(str(problem))
            why = "an input file was not fetched from the store, and is sent instead: %s" % problem
            mark(undelivered_mark(self._chunk.folder), clean_text(why))
            if self._control.cancelled(task["id"]):
                result["outcome"], result["message"] = "cancelled", "cancelled before it began"
            self._finish(index, result, None)
            return
        started = time.monotonic()
        result["started_at"] = micro(time.time())
        pid = self._start(task, result)
        if pid:
            lookout = self._lookout if task.get("monitors") else None
            if lookout is not None:
                lookout.begin(task["monitors"], self._scratch.path, started)
            status, usage, reason, peak = self._watch.wait(pid, task["id"], started, lookout)
            result["wall_s"] = micro(time.monotonic() - started)
            if lookout is not None:
                lookout.end()
            if reason == "ended":
                raise Ended
            self._watch.judge(result, status, usage, reason, peak)
        self._finish(index, result, task if pid else None)

    def close(self) -> None:
        self._close_streams()
        os.close(self._null)
        if self._fetched is not None:
            self._fetched.close()
        if self._lookout is not None:
            self._lookout.close()
        self._watch.close()
        self._scratch.leave()

    def _prepare(self, task: Json, names: Tuple[str, str]) -> None:
        if not task["argv"]:
            raise ValueError("the command is empty")
        if self._fetched is not None:
            self._fetched.task_id = task["id"]
        program = task["argv"][0]
        if self._names != names:
            self._open_streams(names)
        for path, key in task.get("files", {}).items():
            self._write(inside(path), key, path == program or "./" + path == program)
        stdin = task.get("stdin")
        if stdin is not None and stdin not in task.get("files", {}):
            raise ValueError("standard input is to come from %r, which is none of the input files" % stdin)

    def _write(self, path: str, key: str, executable: bool) -> None:
        if "/" in path:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        away = key not in self._chunk.pack
        if away and key not in self._places:
            if key in self._chunk.spec.get("away", ()):
                raise Unfetched("nobody said where the content %s is" % key)
            raise ValueError("the content %s of the input file %r is not there" % (key, path))
        mode = 0o700 if executable else 0o600
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            if away and self._fetched is not None:
                self._fetched.write(key, fd)
                return
            content = self._inputs.get(key)
            if content is None and self._chunk.pack.size(key) <= WHOLE_FILE:
                content = self._chunk.pack.read(key)
                if len(self._inputs) < 64:
                    self._inputs[key] = content
            for piece in self._chunk.pack.pieces(key) if content is None else (content,):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
        finally:
            os.close(fd)

    def _start(self, task: Json, result: Json) -> int:
        """Start the program; its pid, or 0 with the reason in the result."""
        argv: List[str] = task["argv"]
        environment = self._environment
        if task.get("environment"):
            environment = dict(environment)
            for name, value in task["environment"].items():
                environment[os.fsencode(name)] = os.fsencode(value)
        try:
            path = argv[0]
            if "/" not in path:
                path = self._program.find(path, os.fsdecode(environment.get(b"PATH", os.defpath)))
        except OSError as problem:
            result["outcome"], result["message"] = "program_missing", clean_text(str(problem))
            return 0
        out = self._out.fd
        err = out if self._err.fd < 0 else self._err.fd
        actions: List[Tuple[Any, ...]] = [
            (os.POSIX_SPAWN_DUP2, self._null, 0),
            (os.POSIX_SPAWN_DUP2, out, 1),
            (os.POSIX_SPAWN_DUP2, err, 2),
        ]
        if task.get("stdin") is not None:
            actions[0] = (os.POSIX_SPAWN_OPEN, 0, inside(task["stdin"]), os.O_RDONLY, 0)
        pause = 0.05
        while True:
            try:
                return os.posix_spawn(
                    path,
                    argv,
                    environment,
                    file_actions=actions,
                    **self._session,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ),
                )
            except OSError as problem:
                if problem.errno in (errno.EAGAIN, errno.ENOMEM, errno.ETXTBSY) and pause < 3:
                    time.sleep(pause)
                    pause *= 2
                    continue
                self._not_started(path, problem, result)
            except NotImplementedError:  # the C library is older than 2.26
                self._session = {"setpgroup": 0}
                continue
            except ValueError as problem:
                result["outcome"], result["message"] = (
                    "input_missing",
                    clean_text("arguments or environment: %s" % problem),
                )
            return 0

    @staticmethod
    def _not_started(path: str, problem: OSError, result: Json) -> None:
        outcome = "program_missing"
        reason = problem.strerror
        if problem.errno == errno.ENOENT:
            reason = "there is no such program"
            if os.path.exists(path):
                reason = "its interpreter (the first line, or the loader) is missing"
        elif problem.errno == errno.EACCES:
            reason = "it is not executable"
        elif problem.errno == errno.ENOEXEC:
            reason = "it is no executable file; a script needs a first line that begins with #!"
        elif problem.errno == errno.E2BIG:
            outcome, reason = "input_missing", "its arguments and environment are too long"
        elif problem.errno in (errno.EAGAIN, errno.ENOMEM):
            outcome = "crashed"
        result["outcome"] = outcome
        result["message"] = clean_text("the program %s cannot be started: %s" % (path, reason))

    def _finish(self, index: int, result: Json, task: Optional[Json]) -> None:
        """Keep the output of a task that ran, record the result, clear the directory."""
        if task is not None:
            self._keep(task, result)
            if task.get("stash") and result["outcome"] != "cancelled":
                self._stash(task, result)
        self._results.add(index, result)
        self._clear()

    def _keep(self, task: Json, result: Json) -> None:
        files: Dict[str, str] = {}
        problems: List[str] = []
        for stream in self._streams:
            self._keep_fd(stream.fd, stream.name, files, problems)
        if task.get("retrieve"):
            for path in retrieved(task["retrieve"], problems):
                if path in files:
                    continue
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                except OSError as problem:
                    problems.append("%s: %s" % (path, problem.strerror))
                    continue
                try:
                    if stat.S_ISREG(os.fstat(fd).st_mode):
                        self._keep_fd(fd, path, files, problems)
                finally:
                    os.close(fd)
        if len(files) > 2:
            files = {clean_text(path): key for path, key in files.items()}
        if task.get("monitors") and self._lookout.problems and MONITOR_LOG not in files:
            told = "".join("%s\n" % clean_text(problem) for problem in self._lookout.problems)
            files[MONITOR_LOG] = self._results.keep(told.encode())
        result["files"] = files
        if problems:
            text = clean_text("output that could not be kept: " + "; ".join(problems))
            if result["outcome"] == "finished":
                result["outcome"], result["message"] = "retrieve_failed", text
            else:
                result["message"] += "; " + text

    def _stash(self, task: Json, result: Json) -> None:
        """Put files where they are to stay on this computer."""
        problems: List[str] = []
        paths = [path for path in dict.fromkeys(retrieved(task["stash"]["paths"], problems)) if is_file(path)]
        name = "%s-%s" % (task["id"].replace("/", "_"), os.urandom(6).hex())
        try:
            if paths:
                made = load_beside("stower").stow(paths, task["stash"], name, self._alive)
                result["stash"] = dict(made, path=clean_text(made["path"]))
        except (OSError, ValueError) as problem:
            problems.append(str(problem))
        if problems:
            text = clean_text("files that could not be stashed: " + "; ".join(problems))
            if result["outcome"] == "finished":
                result["outcome"], result["message"] = "stash_failed", text
            else:
                result["message"] += "; " + text

    def _alive(self) -> None:
        """What must be done now and then while files are copied for long."""
        self._results.live(time.monotonic())
        self._results.flush_if_due()

    def _keep_fd(self, fd: int, path: str, files: Dict[str, str], problems: List[str]) -> None:
        try:
            files[path] = self._results.keep_file(fd)
        except OSError as problem:
            problems.append("%s: %s" % (path, problem.strerror or problem))

    def _clear(self) -> None:
        """Make the directory as new; quick where the task left nothing but its two streams."""
        try:
            if self._streams and set(os.listdir(".")) == self._untouched and self._emptied():
                return
        except OSError:
            pass
        self._close_streams()
        self._scratch.renew()

    def _emptied(self) -> bool:
        """Empty the streams' files; False if the task has put others in their place."""
        for stream in self._streams:
            status = os.fstat(stream.fd)
            if status.st_nlink != 1:
                return False
            if status.st_size:
                os.ftruncate(stream.fd, 0)
        return True

    def _open_streams(self, names: Tuple[str, str]) -> None:
        for name in names:
            inside(name)
        self._close_streams()
        self._scratch.renew()
        self._out.open(names[0])
        if names[1] != names[0]:
            self._err.open(names[1])
        self._names = names
        self._streams = [stream for stream in (self._out, self._err) if stream.fd >= 0]
        self._untouched = {stream.name for stream in self._streams}

    def _close_streams(self) -> None:
        self._out.close()
        self._err.close()
        self._names = ("", "")
        self._streams = []


def is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def retrieved(patterns: Iterable[str], problems: List[str]) -> List[str]:
    """The files below the working directory that the patterns name; links that leave it are not followed.

    A pattern that names a folder keeps all below it. Appends to problems what cannot be read.
    """
    plain: List[str] = []
    regexes = []
    for pattern in patterns:
        try:
            pattern = inside(pattern)
        except ValueError as problem:
            problems.append(str(problem))
            continue
        if any(mark in pattern for mark in "*?["):
            regexes.append(glob_regex(pattern))
        else:
            plain.append(pattern)
    root = os.path.realpath(".")
    found: List[str] = []
    for path in plain:
        if os.path.isdir(path) and not os.path.islink(path):
            found.extend(walk(path + "/", problems))
        elif os.path.lexists(path):
            found.append(path)
    if regexes:
        for path in walk("", problems):
            if any(regex.fullmatch(path) for regex in regexes):
                found.append(path)
    return [path for path in found if os.path.realpath(path).startswith(root + "/")]


def glob_regex(pattern: str) -> Any:
    """What a glob means: wildcards do not cross "/", "**" does; what matches a folder matches all below."""
    import re

    parts = pattern.split("/")
    text = ""
    for part in parts[:-1]:
        text += "(?:[^/]+/)*" if part == "**" else segment_regex(part) + "/"
    text += ".+" if parts[-1] == "**" else segment_regex(parts[-1])
    return re.compile("(?s:" + text + "(?:/.+)?)")


def segment_regex(part: str) -> str:
    import re

    text, position = "", 0
    while position < len(part):
        mark = part[position]
        position += 1
        # "]" is no end where it comes first, as in []a] and [!]a].
        first = position + (part[position : position + 1] == "!")
        close = part.find("]", first + 1) if mark == "[" else -1
        if mark == "*":
            text += "[^/]*"
        elif mark == "?":
            text += "[^/]"
        elif close > 0:
            body = part[position:close].replace("\\", "\\\\").replace("[", "\\[")
            choice = "[" + ("^" + body[1:] if body.startswith("!") else body.replace("^", "\\^")) + "]"
            try:
                re.compile(choice)
            except re.error:  # a range that runs backwards, as [z-a], holds nothing
                choice = "(?!)"
            text += "(?!/)" + choice
            position = close + 1
        else:
            text += re.escape(mark)
    return text


def walk(prefix: str, problems: List[str]) -> Iterator[str]:
    """Paths of all files below a folder; symbolic links to folders are not entered."""
    try:
        entries = sorted(os.scandir(prefix or "."), key=lambda entry: entry.name)
    except OSError as problem:
        problems.append("%s: %s" % (prefix or ".", problem.strerror))
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(prefix + entry.name + "/", problems)
        else:
            yield prefix + entry.name


# ------------------------------------------------------------------------------------------- typed values


class NotRecordable(Exception):
    """A value that is no data. where: the way to it inside the output, put together on the way out."""

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason = reason
        self.where = where
        super().__init__(reason)

    def below(self, step: str) -> NotRecordable:
        return NotRecordable(self.reason, step + self.where)


class Encoder:
    """Turns what a function returned into typed values (docs/design.md), without importing what it uses."""

    def __init__(self, keep: Callable[[bytes], str], keep_file: Callable[[int], str]) -> None:
        self._keep = keep
        self._keep_file = keep_file
        self._array_headers: Dict[Tuple[str, Tuple[int, ...]], bytes] = {}

    def outputs(self, value: object) -> Dict[str, List[Any]]:
        """Outputs by label. Errors: NotRecordable, with the way to what is no data."""
        if value is None:
            return {}
        if type(value) is dict and all(type(name) is str for name in value):
            return {name: self._output(name, part) for name, part in value.items()}
        return {"result": self._output("result", value)}

    def _output(self, name: str, value: object) -> List[Any]:
        if not (name.isascii() and name.isidentifier() and name[0] != "_" and name[-1] != "_"):
            raise NotRecordable(
                "an output's name is made of letters, digits and single underscores inside; to keep the"
                ' dict whole, return {"result": the dict}',
                repr(name),
            )
        if len(name) > LABEL_LIMIT:
            raise NotRecordable("an output's name has at most %d characters" % LABEL_LIMIT, name[:40] + "...")
        try:
            return self.typed(value)
        except NotRecordable as problem:
            raise problem.below(name) from None
        except RecursionError:
            raise NotRecordable("it contains itself, or is nested too deeply", name) from None

    def typed(self, value: Any) -> List[Any]:
        kind = type(value)
        if kind is float:
            return ["float", value if value - value == 0 else special_float(value)]
        if kind is int:
            return ["int", recordable_int(value)]
        if kind is str:
            return ["str", recordable_text(value)]
        if kind is bool:
            return ["bool", value]
        if kind is list or kind is tuple:
            return ["list", self.plain(value)]
        if kind is dict:
            return ["dict", self.plain(value)]
        return self._foreign(value)

    def _foreign(self, value: Any) -> List[Any]:
        if isinstance(value, enum.Enum):
            return self.typed(value.value)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if isinstance(value, numpy.generic):
                return self.typed(numpy_scalar(value))
            if isinstance(value, numpy.ndarray):
                return self._array(value, numpy)
        atoms = sys.modules.get("ase.atoms")
        if atoms is not None and isinstance(value, atoms.Atoms):
            return ["structure", self.plain(structure_attributes(value))]
        pathlib = sys.modules.get("pathlib")
        if pathlib is not None and isinstance(value, pathlib.PurePath):
            return self._file(str(value))
        bases: Tuple[Any, ...] = (int, float, str, list, tuple, dict)
        for base in bases:
            if isinstance(value, base):
                return self.typed(base(value))
        raise no_data(value)

    def plain(self, value: Any) -> Any:
        """A value inside a list or dict, as JSON."""
        kind = type(value)
        if kind is float:
            if value - value != 0:
                raise NotRecordable(
                    "%s inside a list or dict cannot be stored; return it as an output of its own"
                    " or in a NumPy array" % special_float(value)
                )
            return value
        if kind is int:
            return recordable_int(value)
        if kind is bool or value is None:
            return value
        if isinstance(value, str) and not isinstance(value, enum.Enum):
            return recordable_text(str(value))
        if isinstance(value, (list, tuple)):
            return self._plain_list(value)
        if isinstance(value, dict):
            return self._plain_dict(value)
        return self._plain_foreign(value)

    def _plain_list(self, value: Any) -> List[Any]:
        made: List[Any] = []
        try:
            for part in value:
                made.append(self.plain(part))
        except NotRecordable as problem:
            raise problem.below("[%d]" % len(made)) from None
        return made

    def _plain_dict(self, value: Dict[Any, Any]) -> Dict[str, Any]:
        made = {}
        for name, part in value.items():
            if not isinstance(name, str):
                raise NotRecordable(
                    "the key of a dict must be a str, not %s" % type(name).__name__, "[%r]" % (name,)
                )
            try:
                made[recordable_text(name)] = self.plain(part)
            except NotRecordable as problem:
                raise problem.below("[%r]" % name) from None
        return made

    def _plain_foreign(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return self.plain(value.value)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if isinstance(value, numpy.generic):
                return self.plain(numpy_scalar(value))
            if isinstance(value, numpy.ndarray):
                raise NotRecordable(
                    "a NumPy array inside a list or dict; return it as an output of its own, or .tolist()"
                )
        for base in (int, float):
            if isinstance(value, base):
                return self.plain(base(value))
        raise no_data(value)

    def _array(self, value: Any, numpy: Any) -> List[Any]:
        if value.dtype.hasobject:
            raise NotRecordable("a NumPy array of Python objects; its dtype must be numeric, bool or str")
        if type(value).__name__ == "MaskedArray":
            raise NotRecordable("a masked NumPy array; return its data and its mask as two arrays")
        if value.dtype.names:
            content = self._npy(value, numpy)
        else:
            # The header depends on dtype and shape alone; numpy.save costs ten times the rest.
            form = (value.dtype.str, value.shape)
            header = self._array_headers.get(form)
            if header is None:
                whole = self._npy(numpy.zeros(value.shape, value.dtype), numpy)
                header = self._array_headers[form] = whole[: len(whole) - value.nbytes]
            content = header + value.tobytes()
        key = self._keep(content)
        form_text = value.dtype.str
        return ["array", {"name": "default", "key": key, "dtype": form_text, "shape": list(value.shape)}]

    @staticmethod
    def _npy(value: Any, numpy: Any) -> bytes:
        import io

        file = io.BytesIO()
        numpy.save(file, value, allow_pickle=False)
        return file.getvalue()

    def _file(self, path: str) -> List[Any]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as problem:
            raise NotRecordable("the file %s cannot be read: %s" % (path, problem.strerror)) from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotRecordable("%s is no file; return a pathlib.Path of a regular file" % path)
            return ["file", {"name": clean_text(os.path.basename(path)), "key": self._keep_file(fd)}]
        except OSError as problem:
            raise NotRecordable("the file %s cannot be read: %s" % (path, problem.strerror)) from None
        finally:
            os.close(fd)


def special_float(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def recordable_int(value: int) -> int:
    if value.bit_length() > INT_BITS:
        raise NotRecordable("an int of more than 4,300 digits; return it as a str")
    return value


def recordable_text(value: str) -> str:
    if "\0" in value:
        raise NotRecordable("a str with a NUL character; write it to a file and return its pathlib.Path")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise NotRecordable("a str that is not valid Unicode (lone surrogates)") from None
    return value


def numpy_scalar(value: Any) -> Any:
    plain = value.item()
    if type(plain) is type(value):
        return float(plain)
    return plain


def no_data(value: object) -> NotRecordable:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else kind.__module__ + "." + kind.__qualname__
    hint = ""
    if isinstance(value, complex):
        hint = "; return its real and imaginary part, or a NumPy array"
    elif isinstance(value, (bytes, bytearray)):
        hint = "; write it to a file and return its pathlib.Path"
    elif isinstance(value, (set, frozenset)):
        hint = "; return a sorted list"
    elif value is None:
        hint = "; leave the output out"
    return NotRecordable("%s is no kind of data that can be recorded%s" % (name, hint))


def structure_attributes(atoms: Any) -> Json:
    """ASE's Atoms as the attributes of a structure node (AiiDA's: cell, pbc1..3, kinds, sites).

    Units: ångström (cell, position), atomic mass units (mass).
    """
    names: Dict[Tuple[str, int, float], str] = {}
    kinds: List[Json] = []
    sites: List[Json] = []
    rows = zip(
        atoms.get_chemical_symbols(),
        atoms.get_tags().tolist(),
        atoms.get_masses().tolist(),
        atoms.positions.tolist(),
    )
    for symbol, tag, mass, position in rows:
        form = (symbol, tag, mass)
        if form not in names:
            name, number, taken = (symbol if tag == 0 else "%s%d" % (symbol, tag)), 0, set(names.values())
            while name in taken:
                number += 1  # another mass; digits alone after the symbol would be a tag
                name = "%s%s_%d" % (symbol, tag or "", number)
            names[form] = name
            kinds.append({"name": name, "symbols": [symbol], "weights": [1.0], "mass": mass})
        sites.append({"kind_name": names[form], "position": position})
    pbc = [bool(flag) for flag in atoms.pbc]
    attributes = {
        "cell": atoms.cell[:].tolist(),
        "pbc1": pbc[0],
        "pbc2": pbc[1],
        "pbc3": pbc[2],
        "kinds": kinds,
        "sites": sites,
    }
    more = beyond_aiida(atoms)
    if more:
        attributes["ase"] = more
    return attributes


def beyond_aiida(atoms: Any) -> Dict[str, Any]:
    """What Atoms say that AiiDA's attributes have no place for, as grange.core.data.structure keeps it."""
    more = {
        name: atoms.arrays[name].tolist()
        for name in ("initial_magmoms", "initial_charges", "momenta")
        if name in atoms.arrays and atoms.arrays[name].any()
    }
    if atoms.constraints:
        try:
            more["constraints"] = [without_arrays(constraint.todict()) for constraint in atoms.constraints]
        except (AttributeError, NotImplementedError) as problem:
            raise NotRecordable("a constraint that ASE cannot write down (%s)" % problem) from None
    return more


def without_arrays(value: Any) -> Any:
    """The same with lists in place of NumPy's arrays."""
    if isinstance(value, dict):
        return {name: without_arrays(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_arrays(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


# ----------------------------------------------------------------------------------------------- functions


class OwnModules:
    """Modules below the user's own folders: their files may change while an interpreter lives that has them.

    What is installed beside them, as in a virtual environment there, is none of them.
    """

    def __init__(self) -> None:
        self._folders: Set[str] = set()
        self._found: Dict[str, str] = {}
        self._counted = 0
        self._seen: Dict[str, Tuple[int, int]] = {}
        self._looked_at = time.time()

    def add(self, folder: str) -> None:
        """Look after the modules of a folder that is imported from."""
        folder = os.path.join(os.path.abspath(folder), "") if folder else ""
        if folder and folder not in self._folders:
            self._folders.add(folder)
            self._counted = 0

    def forget_changed(self) -> bool:
        """Let all of them be imported anew, if a file of one has changed since it was imported."""
        began = time.time()
        self._find()
        changed = False
        for name, path in self._found.items():
            try:
                status = os.stat(path)
            except OSError:
                changed = changed or name in self._seen
                continue
            now = (status.st_mtime_ns, status.st_size)
            if name in self._seen:
                changed = changed or self._seen[name] != now
            else:
                # It was imported since the last look. A file that is younger may have been another one then.
                changed = changed or status.st_mtime >= self._looked_at
                self._seen[name] = now
        self._looked_at = began
        if changed:
            import importlib

            for name in self._found:
                sys.modules.pop(name, None)
            self._seen.clear()
            self._counted = 0
            importlib.invalidate_caches()
        return changed

    def _find(self) -> None:
        """Know which modules are below the folders; looked up again when there are others."""
        if not self._folders or len(sys.modules) == self._counted:
            return
        self._counted = len(sys.modules)
        self._found = {}
        library = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "")
        for name, module in list(sys.modules.items()):
            path = getattr(module, "__file__", None)
            if not isinstance(path, str) or name == "__main__" or name.partition(".")[0] == "grange":
                continue
            path = os.path.abspath(path)
            if any(part in path for part in (library, "/site-packages/", "/dist-packages/")):
                continue
            if any(path.startswith(folder) for folder in self._folders):
                self._found[name] = path


_functions: Dict[Tuple[str, str, str, str], Any] = {}
_own_modules = OwnModules()


def load_function(spec: Json, pack: ZipReader) -> Any:
    """The function of a chunk; kept for the next chunk of this interpreter."""
    identity = (spec["module"], spec["qualname"], spec["path"], spec["pickle"] or "")
    function = _functions.get(identity)
    if function is None:
        _own_modules.add(spec["path"])
        if spec["path"] and spec["path"] not in sys.path:
            sys.path.insert(0, spec["path"])
        if spec["pickle"]:
            import pickle

            function = pickle.loads(pack.read(spec["pickle"]))
        else:
            import importlib

            function = importlib.import_module(spec["module"])
            for name in spec["qualname"].split("."):
                function = getattr(function, name)
        _functions[identity] = function
    return function


class Calls:
    """The arguments of a chunk's calls. What several calls share is stored once and loaded for each anew,
    so that a call that changes its arguments changes nobody else's."""

    def __init__(self, content: bytes) -> None:
        import pickle

        self._loads = pickle.loads
        self._shared, self._calls = pickle.loads(content)

    def arguments(self, index: int) -> Dict[str, Any]:
        own, shared = self._calls[index]
        arguments: Dict[str, Any] = self._loads(own)
        for name, number in shared:
            arguments[name] = self._loads(self._shared[number])
        return arguments


class Printed:
    """What calls print, at the level of file descriptors: taken away after each call.

    The files lie in the chunk folder, so that the last words of an interpreter that died are kept too.
    """

    def __init__(self, folder: str) -> None:
        self._saved = [os.dup(1), os.dup(2)]
        self.paths = [os.path.join(folder, name) for name in ("stdout", "stderr")]
        for number, path in zip((1, 2), self.paths):
            fd = spool_open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, number)
            os.close(fd)

    def take(self, keep_file: Callable[[int], str], files: Dict[str, str]) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            try:
                if os.fstat(number).st_size:
                    files[name] = keep_file(number)
                    os.ftruncate(number, 0)
            except OSError:
                continue

    def close(self) -> None:
        for number, saved in zip((1, 2), self._saved):
            os.dup2(saved, number)
            os.close(saved)


class Functions:
    """Runs the calls of one chunk: in this interpreter, or, with limits, each in a fork of it."""

    def __init__(self, chunk: Chunk, control: Control) -> None:
        self._chunk = chunk
        self._control = control
        self._results = chunk.results
        self._limited = bool(chunk.spec.get("walltime_s") or chunk.spec.get("memory_mb"))
        self._scratch = Scratch(chunk.spec["scratch"])
        if _own_modules.forget_changed():
            _functions.clear()
        self._calls = Calls(chunk.pack.read("calls.pickle"))
        self._encoder = Encoder(self._results.keep, self._results.keep_file)
        self._printed = Printed(chunk.folder)
        faulthandler.enable()
        self._watch = Watch(control, chunk.results, chunk.spec)
        if not self._limited:
            chunk.results.flush_in_background()

    def run(self, index: int, task: Json) -> None:
        result = result_of(task, "finished")
        if self._limited:
            self._in_fork(index, task, result)
        else:
            self._control.current = task["id"]
            started, cpu = time.monotonic(), time.process_time()
            self._call(index, result)
            result["wall_s"] = micro(time.monotonic() - started)
            result["cpu_s"] = micro(time.process_time() - cpu)
            result["peak_memory_mb"] = round(peak_mb(), 3)
            self._printed.take(self._results.keep_file, result["files"])
        self._results.add(index, result)
        try:
            if os.listdir("."):
                self._scratch.renew()
            elif os.getcwd() != self._scratch.path:
                os.chdir(self._scratch.path)
        except OSError:
            self._scratch.renew()

    def close(self) -> None:
        self._printed.close()
        self._watch.close()
        self._scratch.leave()

    def crashed(self, result: Json, death: int) -> None:
        """The result of a call that ended the interpreter; what it had printed is kept."""
        result["outcome"] = "crashed"
        if death < 0:
            result["signal"] = -death
            result["message"] = "the interpreter was ended by %s" % signal_name(-death)
        else:
            result["return_code"] = death
            result["message"] = "the interpreter ended with exit code %d during the call" % death
        self._printed.take(self._results.keep_file, result["files"])

    def _call(self, index: int, result: Json) -> None:
        """Load, call, encode; only Ended and what concerns the spool gets out."""
        control = self._control
        stage = "program_missing"
        try:
            function = load_function(self._chunk.spec["function"], self._chunk.pack)
            stage = "input_missing"
            arguments = self._calls.arguments(index)
            stage = "raised"
            control.in_call = True
            value = function(**arguments)
            control.in_call = False
            stage = "not_recordable"
            self._encode(value, result)
        except (Ended, SpoolFailed):
            raise
        except Cancelled:
            result["outcome"], result["message"] = "cancelled", "cancelled while it ran"
        except NotRecordable as problem:
            control.in_call = False
            if stage == "not_recordable":
                result["outcome"], result["outputs"] = "not_recordable", {}
                result["message"] = clean_text("%s: %s" % (problem.where, problem.reason))
            else:
                self._raised(problem, stage, result)
        except BaseException as problem:
            control.in_call = False
            number = getattr(problem, "returncode", 0)
            if number in (-signal.SIGHUP, -signal.SIGINT, -signal.SIGKILL, -signal.SIGTERM):
                # of a program that the call has run: see Watch
                time.sleep(SHARED_SIGNAL_S if os.environ.get("GRANGE_WORK") else 0.0)
            if control.ending:
                raise Ended from None
            self._raised(problem, stage, result)

    def _encode(self, value: object, result: Json) -> None:
        if type(value).__name__ == "ExitCode":
            status, message = getattr(value, "status", None), getattr(value, "message", None)
            if isinstance(status, int) and isinstance(message, str):
                if not 0 <= status <= LARGEST_STATUS:
                    raise NotRecordable("an exit status is at most %d" % LARGEST_STATUS, "the exit code")
                result["return_code"], result["message"] = int(status), clean_text(message)
                if getattr(value, "invalidates_cache", False):
                    result["invalidates_cache"] = True
                return
        result["outputs"] = self._encoder.outputs(value)

    def _raised(self, problem: BaseException, stage: str, result: Json) -> None:
        import traceback

        try:
            text = str(problem)
        except Exception:
            text = "(its message cannot be shown)"
        kind = type(problem).__name__
        result["outcome"], result["outputs"] = stage, {}
        message = "%s: %s" % (kind, text) if text else kind
        if stage == "program_missing":
            message = "the function %s cannot be loaded: %s" % (self._chunk.spec["function"]["name"], message)
        elif stage == "input_missing":
            message = "the arguments cannot be loaded: %s" % message
        result["message"] = clean_text(message)
        frames = problem.__traceback__.tb_next if problem.__traceback__ else None
        try:
            trace = "".join(traceback.format_exception(type(problem), problem, frames))
        except Exception:
            trace = message + "\n"
        result["files"]["traceback.txt"] = self._results.keep(trace.encode("utf-8", "backslashreplace"))

    def _in_fork(self, index: int, task: Json, result: Json) -> None:
        self._load_here()
        answer_path = os.path.join(self._chunk.folder, "answer")
        started = time.monotonic()
        with self._results.quiet:
            pid = os.fork()
        if pid == 0:
            self._child(index, result, answer_path)
        status, usage, reason, peak = self._watch.wait(pid, task["id"], started)
        if reason == "ended":
            raise Ended
        answer = read_answer(answer_path, self._results)
        if answer is not None and not reason and status == 0:
            result.update(answer)
        elif not reason and os.WIFEXITED(status):
            result["outcome"] = "crashed"
            result["message"] = "the interpreter ended with exit code %d during the call" % os.WEXITSTATUS(
                status
            )
        code, number = result["return_code"], result["signal"]
        result["wall_s"] = micro(time.monotonic() - started)
        self._watch.judge(result, status, usage, reason, peak)
        if result["outcome"] not in ("crashed", "walltime_exceeded", "memory_exceeded", "cancelled"):
            result["return_code"], result["signal"] = code, number
        if result["outcome"] in ("walltime_exceeded", "memory_exceeded"):
            result["outputs"] = {}
        self._printed.take(self._results.keep_file, result["files"])

    def _load_here(self) -> None:
        """Load before the fork: every call then finds it loaded. What goes wrong is told by the call."""
        try:
            load_function(self._chunk.spec["function"], self._chunk.pack)
        except Exception:
            return

    def _child(self, index: int, result: Json, answer_path: str) -> None:
        code = 1
        try:
            os.setsid()
            die_with_parent(signal.SIGKILL)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            answer = Answer(answer_path)
            self._results = answer  # type: ignore[assignment]
            self._encoder = Encoder(answer.keep, answer.keep_file)
            self._call(index, result)
            answer.finish(result)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            code = 0
        except BaseException as problem:
            sys.stderr.write("%s: %s\n" % (type(problem).__name__, problem))
            sys.stderr.flush()
        finally:
            os._exit(code)


class Answer:
    """How the fork of a call hands over its result: a pack in the spool."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pack = ZipWriter(path + ".part")
        self._keys: Set[str] = set()

    def keep(self, content: bytes) -> str:
        key = hashlib.sha256(content).hexdigest()
        if key not in self._keys:
            self._keys.add(key)
            self._pack.add(key, content)
        return key

    def keep_file(self, fd: int) -> str:
        key = self._pack.add_file(fd, os.fstat(fd).st_size, self._keys.__contains__)
        self._keys.add(key)
        return key

    def finish(self, result: Json) -> None:
        self._pack.add("result.json", dump(result))
        self._pack.close(sync=False)
        os.rename(self._path + ".part", self._path)


def read_answer(path: str, results: Results) -> Optional[Json]:
    """Take over what a fork handed over: its blobs into the results; None if it died before."""
    try:
        pack = ZipReader(path)
    except FileNotFoundError:
        return None
    try:
        for name in pack.names:
            if name != "result.json":
                results.keep(pack.read(name))
        answer: Json = json.loads(pack.read("result.json"))
        return answer
    finally:
        pack.close()
        os.unlink(path)


# --------------------------------------------------------------------------------------------------- chunk


class Chunk:
    """A chunk folder, opened: what is to be done, and what has been done."""

    def __init__(self, folder: str, tell: Tell, judge: bool = False) -> None:
        self.folder = folder
        self.pack = ZipReader(os.path.join(folder, "chunk.zip"))
        self.spec: Json = json.loads(self.pack.read("chunk.json"))
        if self.spec["format"] != FORMAT:
            raise ValueError(
                "%s is of format %s, this runner knows %d" % (folder, self.spec["format"], FORMAT)
            )
        self.tasks: List[Json] = self.spec["tasks"]
        #: Signed URLs, if there are any: see courier.py.
        self.delivery: Json = read_delivery(folder) or {}
        try:
            self.results = Results(
                folder,
                len(self.tasks),
                self.spec.get("flush_s", 0.5),
                tell,
                0.0 if judge else self.spec.get("twin_s"),
            )
        except Occupied:
            self.pack.close()
            raise

    def close(self) -> None:
        self.results.close()
        self.pack.close()

    def begin_delivery(self, judge: bool) -> None:
        """Let packs be put into the store, where that is wanted."""
        wanted = bool(self.delivery.get("put")) and not judge
        self.results.deliver_by(Delivery(self.results, self.folder, self.delivery) if wanted else None)


def wanted_to_end(control: Control, results: Results) -> bool:
    """Whether somebody wants us to end, asked while no task runs; does what must be done meanwhile."""
    now = time.monotonic()
    waiting = signal.sigpending() & SIGNALS
    control.ending = control.ending or signal.SIGTERM in waiting
    control.alarmed = control.alarmed or signal.SIGUSR1 in waiting
    control.look(now)
    results.live(now)
    results.flush_if_due()
    return control.ending


def run_chunk(
    folder: str,
    control: Control,
    tell: Tell,
    death: Optional[int],
    judge: bool = False,
) -> None:
    """Run what of a chunk has not been done; as a judge, only as much as it takes to judge.

    death: how the last runner of this chunk died: exit code, or minus a signal; None if it is not known.
    """
    control.enter(folder)
    os.environ["GRANGE_CHUNK"] = folder
    control.in_call = True
    chunk = Chunk(folder, tell, judge)
    control.in_call = False
    functions = chunk.spec["kind"] == "function"
    direct = functions and not (chunk.spec.get("walltime_s") or chunk.spec.get("memory_mb"))
    if not direct:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        worker: Any = Functions(chunk, control) if functions else Commands(chunk, control)
        try:
            blame(chunk, worker, control, death, direct)
            node = Node(chunk, judge)
            chunk.begin_delivery(judge)
            for index, task in enumerate(chunk.tasks):
                if chunk.results.done(index):
                    continue
                if control.ending:
                    raise Ended
                control.look(time.monotonic())
                if control.cancelled(task["id"]):
                    chunk.results.add(index, result_of(task, "cancelled", "cancelled before it began"))
                    continue
                node.check_time()
                chunk.results.begin(index)
                try:
                    worker.run(index, task)
                except Ended:
                    chunk.results.idle()
                    raise
                node.check_health()
            node.check_health(last=True)
            chunk.results.flush()
            delivery = chunk.results.delivery
            while delivery is not None and not delivery.wait(0.1):
                if wanted_to_end(control, chunk.results) or not os.path.isdir(folder):
                    break
        finally:
            control.in_call, control.current = False, None
            worker.close()
            chunk.close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class Node:
    """This node of a cluster, as far as a chunk is concerned: its time, and whether it can be trusted.

    A program that fails at once in all of a chunk's first tasks may be broken on this node only. Their
    results are held back then, the node is suspect, and another node judges: a worker there looks for such
    marks and runs a few of the tasks. If the program works there, the suspect is broken and gets nothing
    more; if it fails there too, it is the program, and what comes next is believed everywhere.

    W/suspects/<node>, W/broken/<node>: marks, W being the work directory (GRANGE_WORK); a suspect's mark
    names the chunk. Workers that live touch W/hosts/<node>@<allocation>. suspects in the chunk folder: the
    nodes where it failed, a line each.
    """

    #: So many tasks that fail at once, and none that does not, convince a judge.
    CONVINCING = 3

    def __init__(self, chunk: Chunk, judge: bool = False) -> None:
        self._chunk = chunk
        self._work = os.environ.get("GRANGE_WORK", "")
        self._ends_at = float(os.environ.get("GRANGE_ENDS_AT") or "inf")
        self._walltime_s: float = chunk.spec.get("walltime_s") or 0.0
        self._limit: int = chunk.spec.get("suspect_after", 0) if self._work else 0
        self._suspects: List[str] = []
        self._judge = judge
        self._judging = False
        self._failed = 0
        program = hashlib.sha256(str(chunk.tasks[0].get("argv", [""])[0]).encode()).hexdigest()[:12]
        self._believed = os.path.join(os.path.dirname(chunk.folder), "believed-" + program)
        if self._limit:
            self._suspects = self._earlier()
            others = self._live_others()
            if not judge:
                self._await_judgement(others)
            self._judging = bool(self._others_failed())
            alone = bool(self._suspects) and not others - set(self._suspects)
            believed = self._judging or alone or judge or os.path.exists(self._believed)
            chunk.results.holding = not believed

    def check_time(self) -> None:
        """Leave tasks that would not end in time to another allocation."""
        if self._walltime_s and time.time() + self._walltime_s + LAST_S > self._ends_at:
            raise Elsewhere

    def check_health(self, last: bool = False) -> None:
        """Leave the chunk if all that was tried here failed at once; judge, if it failed elsewhere before."""
        results = self._chunk.results
        if not self._limit:
            return
        if results.holding:
            if results.held and (last or results.held >= self._limit):
                results.discard()
                results.idle()
                self._suspect()
                raise Elsewhere
            return
        if self._judging and results.last is not None and (not last or self._judge):
            self._failed += failed_at_once(results.last)
            works = not failed_at_once(results.last)
            if works or self._failed >= self.CONVINCING or last:
                self._pronounce(works)
                if self._judge:
                    raise Elsewhere

    def _pronounce(self, works: bool) -> None:
        """Say whose fault it was."""
        self._judging = False
        for node in self._others_failed():
            if works:
                mark(os.path.join(self._work, "broken", node), "programs that work on %s fail there" % NODE)
            unmark(os.path.join(self._work, "suspects", node))
        if not works:
            self._note_failure()
            mark(self._believed, "it fails on %s too" % NODE)

    def _others_failed(self) -> Set[str]:
        return set(self._suspects) - {NODE}

    def _earlier(self) -> List[str]:
        try:
            with open(os.path.join(self._chunk.folder, "suspects"), encoding="utf-8") as file:
                return file.read().split()
        except FileNotFoundError:
            return []

    def _await_judgement(self, others: Set[str]) -> None:
        """Wait a little for what another node has to say; then leave the chunk to others."""
        until = time.monotonic() + JUDGEMENT_S
        while self._is_better_elsewhere(others):
            if time.monotonic() > until:
                raise Elsewhere
            # nobody can judge a chunk that we hold
            self._chunk.results.unlock()
            time.sleep(0.25)
            self._chunk.results.lock()
            self._suspects = self._earlier()

    def _is_better_elsewhere(self, others: Set[str]) -> bool:
        now = time.time()
        if now - changed_at(os.path.join(self._work, "broken", NODE)) < BROKEN_S:
            raise Elsewhere
        if os.path.exists(self._believed):
            return False
        recent = now - changed_at(os.path.join(self._work, "suspects", NODE)) < SUSPICION_S
        if self._suspects:
            # It failed here and nowhere else: somebody who has not tried it should.
            return set(self._suspects) == {NODE} and bool(others) and recent
        folder = os.path.join(self._work, "suspects")
        return recent and any(not os.path.exists(os.path.join(folder, node)) for node in others)

    def _live_others(self) -> Set[str]:
        """The other nodes with workers of ours that live and are not known to be broken."""
        found: Set[str] = set()
        now = time.time()
        folder = os.path.join(self._work, "hosts")
        try:
            names = os.listdir(folder)
        except OSError:
            return found
        for name in names:
            host = name.partition("@")[0]
            broken = now - changed_at(os.path.join(self._work, "broken", host)) < BROKEN_S
            if host != NODE and not broken and now - changed_at(os.path.join(folder, name)) < ALIVE_S:
                found.add(host)
        return found

    def _suspect(self) -> None:
        self._note_failure()
        mark(os.path.join(self._work, "suspects", NODE), self._chunk.folder)

    def _note_failure(self) -> None:
        fd = spool_open(os.path.join(self._chunk.folder, "suspects"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, (NODE + "\n").encode())
        os.close(fd)


def changed_at(path: str) -> float:
    """When a file was last written, in seconds since the epoch; 0 if there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def mark(path: str, text: str) -> None:
    """Leave a mark with a reason; it is no harm if that cannot be done."""
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as problem:
        sys.stderr.write("%s: %s\n" % (path, problem))


def unmark(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def blame(chunk: Chunk, worker: Any, control: Control, death: Optional[int], direct: bool) -> None:
    """Deal with the task that was running when the last runner of this chunk died."""
    running = chunk.results.running()
    if running is None:
        return
    kill_strays(chunk.folder)
    index, tries = running
    task = chunk.tasks[index]
    control.look(time.monotonic())
    result = result_of(task, "crashed")
    if control.cancelled(task["id"]):
        result["outcome"], result["message"] = "cancelled", "cancelled while it ran"
    elif direct and death is not None:
        worker.crashed(result, death)
    elif tries >= DEATHS and death is None and os.environ.get("GRANGE_WORK"):
        # Not even its supervisor has lived to bury it.
        result["outcome"] = "node_lost"
        result["message"] = "the node, or the job on it, was lost %d times while this task ran" % tries
    elif tries >= DEATHS:
        result["message"] = "the runner died %d times while this task ran" % tries
    else:
        return
    chunk.results.add(index, result)
    chunk.results.flush()


# --------------------------------------------------------------------------------------------------- modes


def fail(problem: BaseException) -> None:
    """End at once: the spool cannot be written, so nothing that is done from here on could be told."""
    try:
        os.write(2, ("the spool cannot be written: %s\n" % problem).encode())
    finally:
        os._exit(EXIT_UNWRITABLE)


def settle_in(control: Control) -> None:
    """What both modes set up first: nothing of ours leaks into tasks, and signals reach the control."""
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        if int(name) > 2:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, control.on_term)
    signal.signal(signal.SIGUSR1, control.on_usr1)
    adopt_orphans()
    # Our own folder must not hide a user's modules of the same name.
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        del sys.path[0]
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def serve(parent: int) -> int:
    """Run chunk after chunk, as standard input tells: {"chunk": folder, "death": how its runner died}."""
    die_with_parent(signal.SIGTERM)
    requests, reports = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    control = Control(parent)
    settle_in(control)
    lines = os.fdopen(requests, "rb")
    try:
        serve_lines(lines, reports, control)
    finally:
        kill_leftovers(())
    return 0


def serve_lines(lines: Any, reports: int, control: Control) -> None:
    while not control.ending and os.getppid() == control.parent:
        try:
            # A signal that asks to end must not find us waiting for the next line.
            control.in_call = True
            line = lines.readline()
            control.in_call = False
            if not line:
                return
            request = json.loads(line)
            folder = request["chunk"]

            def tell(number: int, _complete: bool, results: int, blobs: int, folder: str = folder) -> None:
                report(reports, {"chunk": folder, "pack": number, "results": results, "blobs": blobs})

            began = time.monotonic()
            run_chunk(folder, control, tell, request.get("death"))
            report(reports, {"chunk": folder, "done": True, "wall_s": time.monotonic() - began})
        except (Ended, Cancelled):
            continue
        except BrokenPipeError:
            return


def report(fd: int, message: Json) -> None:
    os.write(fd, dump(message) + b"\n")


def run(folder: str) -> int:
    """Run one chunk, in a child, so that a call that ends the interpreter ends neither us nor the others."""
    die_with_parent(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS | {signal.SIGINT})
    folder = os.path.abspath(folder)
    speak_into(os.path.join(os.path.dirname(folder), "log"))
    death: Optional[int] = None
    unproductive = 0
    while True:
        if all_done(folder):
            end_mark(folder)  # or whoever did it died before it could say so
            return 0
        before = done_in(folder)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS | {signal.SIGINT})
                die_with_parent(signal.SIGTERM)
                code = run_once(folder, death)
            except SpoolFailed as problem:
                fail(problem)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = supervise(pid, folder)
        death = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if not os.path.exists(folder):
            return 0  # all that was wanted of it has been fetched
        if all_done(folder):
            continue
        if death in (EXIT_UNWRITABLE, EXIT_ELSEWHERE, 128 + signal.SIGTERM):
            return death
        if death == EXIT_OCCUPIED:
            folder, death = twin_of(folder), None
            continue
        unproductive = 0 if done_in(folder) > before else unproductive + 1
        if unproductive > DEATHS:
            return 1


def twin_of(folder: str) -> str:
    """A folder beside a chunk that another runner is stopped at, to go on in: the same tasks, without those
    that are done. Should the other runner wake, both deliver, and one of the two results is ignored."""
    number = 1
    base = folder.partition("+")[0]
    while True:
        twin = "%s+%d" % (base, number)
        try:
            os.mkdir(twin, 0o700)
            break
        except FileExistsError:
            number += 1
        except OSError as problem:
            raise SpoolFailed(str(problem)) from problem
    marks = read_marks(folder)
    done = numbers_in(marks[2:])
    # What is pending there is in its place there: for us it is done.
    marks = array.array("I", [mark & ~PENDING if is_pending(mark) else mark for mark in marks])
    marks[:2] = array.array("I", [IDLE, 0])
    try:
        for name in ("cancel", "suspects"):
            copy_small(os.path.join(folder, name), os.path.join(twin, name))
        copy_delivery(folder, twin)
        for name in os.listdir(folder):
            # Complete, though the other was stopped before it said so; what is not complete is its own.
            if name.startswith("result-") and name.endswith(".part") and int(name[7:-5]) in done:
                os.rename(os.path.join(folder, name), os.path.join(folder, name[:-5] + ".zip"))
        with open(os.path.join(twin, "marks"), "wb") as file:
            file.write(marks.tobytes())
        os.link(os.path.join(folder, "chunk.zip"), os.path.join(twin, "chunk.zip"))
    except FileNotFoundError:
        return folder  # the other one has just come to its end
    except OSError as problem:
        raise SpoolFailed(str(problem)) from problem
    return twin


def copy_delivery(folder: str, twin: str) -> None:
    """Let a folder beside a chunk know where input files lie. Its packs stay here: a URL to put one to is for
    one pack only."""
    spec = read_delivery(folder)
    if spec is not None:
        fd = os.open(os.path.join(twin, "delivery.json"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(dump(dict(spec, put=[])))


def copy_small(source: str, target: str) -> None:
    """Copy a small file, if it is there."""
    try:
        with open(source, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return
    with open(target, "wb") as file:
        file.write(content)


def settle(folder: str, outcome: str, message: str, ids: Optional[Set[str]] = None) -> bool:
    """Say of a chunk's tasks (None: all) that have no result what became of them, in a pack of the chunk.

    What was done in a folder beside this one has its result there. False if a runner is at work on it:
    nothing is done then.
    """
    numbers: List[int] = []
    pack = ZipReader(os.path.join(folder, "chunk.zip"))
    tasks = json.loads(pack.read("chunk.json"))["tasks"]
    pack.close()
    beside = done_beside(folder)
    try:
        results = Results(folder, len(tasks), 0.5, lambda number, *_: numbers.append(number), 0.0)
    except Occupied:
        return False
    results.deliver_by(None)
    results.leave(index for index in beside if index < len(tasks))
    for index, task in enumerate(tasks):
        if not results.done(index) and (ids is None or task["id"] in ids):
            results.add(index, result_of(task, outcome, message))
    results.close()
    run = os.path.dirname(folder)
    for number in numbers:
        note(os.path.join(run, "done"), "%s.%d" % (os.path.basename(folder), number))
    if all_done(folder):
        forget_urls(folder)
        note(os.path.join(run, "done"), os.path.basename(folder) + ".end")
    return True


def done_beside(folder: str) -> Set[int]:
    """The tasks of a chunk that are done in its folder or one beside it, other than this."""
    run, own = os.path.split(folder)
    names = [name for name in os.listdir(run) if name.partition("+")[0] == own.partition("+")[0]]
    return {
        index
        for name in names
        if name != own
        for index, number in enumerate(read_marks(os.path.join(run, name))[2:])
        if number
    }


def speak_into(path: str) -> None:
    """Let what we have to say, and what belongs to no task, go to the log of the run."""
    fd = spool_open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def supervise(pid: int, folder: str) -> int:
    """Wait for the child; pass on signals, and the news of a cancel file. Returns its wait status."""
    mark = os.path.join(folder, "cancel")
    seen, kill_at = 0, 0.0
    while True:
        event = signal.sigtimedwait(SIGNALS | {signal.SIGINT}, Control.INTERVAL_S)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if event is not None and event.si_signo != signal.SIGCHLD:
            # HyperQueue ends a task by SIGINT to its process group, and a second later by SIGKILL.
            send([pid], signal.SIGTERM if event.si_signo == signal.SIGINT else event.si_signo)
        try:
            changed = os.stat(mark).st_mtime_ns
        except OSError:
            continue
        if changed != seen:
            seen, kill_at = changed, time.monotonic() + CANCEL_PATIENCE_S
            send([pid], signal.SIGUSR1)
        elif kill_at and time.monotonic() > kill_at:
            kill_at = 0.0
            if stubborn(folder):
                send([pid], signal.SIGKILL)


def stubborn(folder: str) -> bool:
    """Whether a call in this interpreter runs on though it was cancelled."""
    pack = ZipReader(os.path.join(folder, "chunk.zip"))
    spec = json.loads(pack.read("chunk.json"))
    pack.close()
    marks = read_marks(folder)
    if spec["kind"] != "function" or not marks or marks[0] == IDLE:
        return False
    control = Control(0)
    control.enter(folder)
    control.look(time.monotonic())
    return control.cancelled(spec["tasks"][marks[0]]["id"])


def all_done(folder: str) -> bool:
    return is_done(read_marks(folder).tobytes())


def is_done(content: bytes) -> bool:
    """Whether the content of a marks file says that all is done."""
    marks = array.array("I", content)
    return len(marks) > 2 and are_done(marks[2:])


def done_in(folder: str) -> int:
    """How many tasks of a chunk are done."""
    return sum(1 for number in read_marks(folder)[2:] if number)


def run_once(folder: str, death: Optional[int], judge: bool = False) -> int:
    control = Control(os.getppid())
    settle_in(control)
    done = os.path.join(os.path.dirname(folder), "done")
    name = os.path.basename(folder)

    def tell(number: int, complete: bool, _results: int, _blobs: int) -> None:
        # the mark of the end, which follows at once, tells of the last pack too
        if not complete:
            note(done, "%s.%d" % (name, number))

    try:
        run_chunk(folder, control, tell, death, judge)
    except Ended:
        return 128 + signal.SIGTERM
    except Elsewhere:
        return EXIT_ELSEWHERE
    except Occupied:
        return EXIT_OCCUPIED
    finally:
        kill_leftovers(())
    return 0


def judge_chunk(folder: str) -> int:
    """Run some tasks of a chunk that failed on another node, to tell whether that node is broken."""
    die_with_parent(signal.SIGTERM)
    speak_into(os.path.join(os.path.dirname(folder), "log"))
    try:
        code = run_once(folder, None, judge=True)
    except SpoolFailed as problem:
        fail(problem)
    except FileNotFoundError:
        return 0  # it is done with
    if all_done(folder):
        end_mark(folder)
    return code


def end_mark(folder: str) -> None:
    """Say that a chunk is done: what was to be done, which nobody reads any more, becomes the mark of it.

    That is one file less to be made and removed on a file system that many share.
    """
    done, name = os.path.join(os.path.dirname(folder), "done"), os.path.basename(folder) + ".end"
    forget_urls(folder)
    try:
        os.rename(os.path.join(folder, "chunk.zip"), os.path.join(done, name))
    except OSError:
        note(done, name)


def forget_urls(folder: str) -> None:
    """A chunk is done: nobody needs its URLs any more, here or in the folder that this one is beside."""
    for place in {folder, folder.partition("+")[0]}:
        unmark(os.path.join(place, "delivery.json"))


def note(folder: str, name: str) -> None:
    """Leave a mark for whoever watches the folder; nobody need watch."""
    try:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT | os.O_CLOEXEC, 0o600))
    except FileNotFoundError:
        return
    except OSError as problem:
        raise SpoolFailed(str(problem)) from problem


def main(arguments: List[str]) -> int:
    try:
        if len(arguments) == 2 and arguments[0] == "serve":
            return serve(int(arguments[1]))
        if len(arguments) == 2 and arguments[0] == "run":
            return run(arguments[1])
        if len(arguments) == 2 and arguments[0] == "judge":
            return judge_chunk(arguments[1])
    except SpoolFailed as problem:
        fail(problem)
    sys.stderr.write("usage: runner.py run CHUNK_FOLDER | judge CHUNK_FOLDER | serve PARENT_PID\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
