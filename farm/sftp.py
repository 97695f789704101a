"""SFTP, version 3: requests that do not wait for each other's answers.

What a round trip costs is paid once for many requests, not once for each: a thousand small files take a
handful of round trips. (A client that waits for each answer needs five thousand.)

Source: draft-ietf-secsh-filexfer-02, and the extensions that OpenSSH describes in its PROTOCOL.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from grange.farm.errors import TransportUnavailable

Tag = TypeVar("Tag")

_INIT, _VERSION = 1, 2
_OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _SETSTAT, _FSETSTAT = 3, 4, 5, 6, 7, 8, 9, 10
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH, _STAT, _RENAME = 11, 12, 13, 14, 15, 16, 17, 18
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED, _EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201

OK, END, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8

#: Flags of open.
FOR_READING, FOR_WRITING, CREATE, EXCLUSIVE = 0x01, 0x02, 0x08, 0x20

#: What may be under way at once: bytes of requests and of answers to come, and requests. More brings nothing
#: on a link of 100 ms and 40 MB/s; it bounds the memory of both sides.
WINDOW_BYTES = 4 << 20
WINDOW_REQUESTS = 256
#: Bytes a read or write where the server does not say what it takes; all servers take this.
_PLAIN_BLOCK = 32768
_LARGEST_BLOCK = 255 * 1024
#: Requests are sent together up to this many bytes.
_GATHER = 32768
#: No server sends larger packets; a shell that prints a greeting in place of SFTP seems to.
_LARGEST_PACKET = 1 << 20


class Stream(Protocol):
    """Bytes to and from the server. Errors: TransportUnavailable."""

    def send(self, data: bytes) -> None:
        """Send all of it."""
        ...

    def receive(self) -> bytes:
        """Some bytes, as soon as there are any; none at the end."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request. answer_bytes: how much its answer may bring."""

    kind: int
    body: bytes
    answer_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a server tells of a file. Units: size in bytes, mtime in seconds since the epoch."""

    size: int
    mode: int
    mtime: float

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request; which of its properties has a sense follows from the request."""

    kind: int
    body: bytes

    @property
    def status(self) -> int:
        """OK for whatever is not a refusal."""
        return int(_INT.unpack_from(self.body)[0]) if self.kind == _STATUS else OK

    @property
    def text(self) -> str:
        """What the server says of a refusal."""
        if self.kind != _STATUS or len(self.body) < 8:
            return ""
        return _string(self.body, 4)[0].decode(errors="replace")

    @property
    def handle(self) -> bytes:
        return _string(self.body, 0)[0]

    @property
    def data(self) -> memoryview:
        """The bytes that were read; none at the end of the file."""
        return memoryview(self.body)[4:] if self.kind == _DATA else memoryview(b"")

    @property
    def attributes(self) -> Attributes:
        return _attributes(self.body, 0)[0]

    @property
    def names(self) -> list[tuple[str, Attributes]]:
        found = []
        (count,) = _INT.unpack_from(self.body)
        at = 4
        for _ in range(count):
            name, at = _string(self.body, at)
            _, at = _string(self.body, at)  # a line as of `ls -l`
            attributes, at = _attributes(self.body, at)
            found.append((os.fsdecode(name), attributes))
        return found


class SftpSession:
    """One session with an SFTP server; one thread at a time uses it.

    computer: its label, for messages.
    Errors, of all methods: TransportUnavailable.
    """

    def __init__(self, stream: Stream, computer: str) -> None:
        self._stream = stream
        self._computer = computer
        self._heard = bytearray()
        self._gathered = bytearray()
        self._next = 0
        #: Whether answers are missing: what follows cannot be told from them.
        self.broken = False
        self.requests = 0
        self.read_bytes = self.write_bytes = _PLAIN_BLOCK
        stream.send(struct.pack(">IBI", 5, _INIT, 3))
        kind, _, body = self._packet()
        if kind != _VERSION:
            raise TransportUnavailable(computer, "its SFTP server does not answer as one")
        self.extensions = _pairs(body)
        if "limits@openssh.com" in self.extensions:
            self._ask_limits()

    def _ask_limits(self) -> None:
        answer = self.ask([extended("limits@openssh.com")])[0]
        if answer.kind == _EXTENDED_REPLY:
            _, most_read, most_written, _ = struct.unpack_from(">QQQQ", answer.body)
            self.read_bytes = min(int(most_read) or _PLAIN_BLOCK, _LARGEST_BLOCK)
            self.write_bytes = min(int(most_written) or _PLAIN_BLOCK, _LARGEST_BLOCK)

    def ask(self, requests: Iterable[Request]) -> list[Answer]:
        """The answers to requests, in their order."""
        answers = dict(self.exchange(enumerate(requests)))
        return [answers[at] for at in range(len(answers))]

    def exchange(self, requests: Iterable[tuple[Tag, Request]]) -> Iterator[tuple[Tag, Answer]]:
        """Send requests as they come, and give their answers as they come, each with its request's tag.

        The requests may follow from answers that were given before: they are asked for one at a time.
        """
        waiting: dict[int, tuple[Tag, int]] = {}
        under_way = 0
        self.broken = True  # until all answers are there, whatever ends this
        for tag, request in requests:
            weight = len(request.body) + request.answer_bytes
            while waiting and (under_way + weight > WINDOW_BYTES or len(waiting) >= WINDOW_REQUESTS):
                answered, answer = self._answer()
                whose, freed = waiting.pop(answered)
                under_way -= freed
                yield whose, answer
            waiting[self._send(request)] = (tag, weight)
            under_way += weight
        while waiting:
            answered, answer = self._answer()
            yield waiting.pop(answered)[0], answer
        self.broken = False

    def close(self) -> None:
        self._stream.close()

    def _send(self, request: Request) -> int:
        self._next = (self._next + 1) & 0xFFFFFFFF
        self.requests += 1
        self._gathered += _HEAD.pack(len(request.body) + 5, request.kind, self._next)
        if len(request.body) < _GATHER:
            self._gathered += request.body
        else:
            self._flush()
            self._stream.send(request.body)
        if len(self._gathered) >= _GATHER:
            self._flush()
        return self._next

    def _flush(self) -> None:
        if self._gathered:
            self._stream.send(bytes(self._gathered))
            self._gathered.clear()

    def _answer(self) -> tuple[int, Answer]:
        self._flush()
        kind, number, body = self._packet()
        return number, Answer(kind, body)

    def _packet(self) -> tuple[int, int, bytes]:
        """Kind, number of the request (of the version, in the first one), and the rest."""
        self._hear(9)
        length = int(_INT.unpack_from(self._heard)[0])
        if not 5 <= length <= _LARGEST_PACKET:
            said = bytes(self._heard[:80]).decode(errors="replace").splitlines()[0]
            raise TransportUnavailable(
                self._computer,
                f"where SFTP was to begin, it says {said!r}: a start-up file of the shell there prints "
                "something, which it may do only for people at a terminal",
            )
        self._hear(4 + length)
        kind, number = struct.unpack_from(">BI", self._heard, 4)
        with memoryview(self._heard) as heard:
            body = bytes(heard[9 : 4 + length])
        del self._heard[: 4 + length]
        return kind, number, body

    def _hear(self, count: int) -> None:
        while len(self._heard) < count:
            data = self._stream.receive()
            if not data:
                raise TransportUnavailable(
                    self._computer, "the connection was lost (its SFTP server has ended)"
                )
            self._heard += data


# ---------------------------------------------------------------- requests


def open_file(path: str, flags: int, mode: int | None = None) -> Request:
    return Request(_OPEN, _packed(os.fsencode(path)) + _INT.pack(flags) + _mode(mode))


def close_handle(handle: bytes) -> Request:
    return Request(_CLOSE, _packed(handle))


def read_at(handle: bytes, offset: int, length: int) -> Request:
    return Request(_READ, _packed(handle) + struct.pack(">QI", offset, length), length)


def write_at(handle: bytes, offset: int, data: bytes | memoryview) -> Request:
    return Request(_WRITE, b"".join((_packed(handle), struct.pack(">QI", offset, len(data)), data)))


def stat_handle(handle: bytes) -> Request:
    return Request(_FSTAT, _packed(handle))


def stat_path(path: str) -> Request:
    """Through links."""
    return Request(_STAT, _packed(os.fsencode(path)))


def stat_link(path: str) -> Request:
    """Of a link itself."""
    return Request(_LSTAT, _packed(os.fsencode(path)))


def set_mode(handle: bytes, mode: int) -> Request:
    return Request(_FSETSTAT, _packed(handle) + _mode(mode))


def set_path_mode(path: str, mode: int) -> Request:
    return Request(_SETSTAT, _packed(os.fsencode(path)) + _mode(mode))


def open_folder(path: str) -> Request:
    return Request(_OPENDIR, _packed(os.fsencode(path)))


def read_folder(handle: bytes) -> Request:
    # OpenSSH's server sends 100 names at once.
    return Request(_READDIR, _packed(handle), 32768)


def remove_file(path: str) -> Request:
    return Request(_REMOVE, _packed(os.fsencode(path)))


def make_folder(path: str, mode: int) -> Request:
    return Request(_MKDIR, _packed(os.fsencode(path)) + _mode(mode))


def remove_folder(path: str) -> Request:
    return Request(_RMDIR, _packed(os.fsencode(path)))


def real_path(path: str) -> Request:
    return Request(_REALPATH, _packed(os.fsencode(path)))


def rename(old: str, new: str) -> Request:
    """Refused where the new name is taken."""
    return Request(_RENAME, _packed(os.fsencode(old)) + _packed(os.fsencode(new)))


def rename_over(old: str, new: str) -> Request:
    """Takes the place of what has the new name; an extension, posix-rename@openssh.com."""
    return extended("posix-rename@openssh.com", os.fsencode(old), os.fsencode(new))


def sync_handle(handle: bytes) -> Request:
    """Onto the disk; an extension, fsync@openssh.com."""
    return extended("fsync@openssh.com", handle)


def extended(name: str, *strings: bytes) -> Request:
    return Request(_EXTENDED, b"".join(map(_packed, (name.encode(), *strings))), 1024)


# ---------------------------------------------------------------- the wire

_INT = struct.Struct(">I")
_HEAD = struct.Struct(">IBI")
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES, _HAS_MORE = 1, 2, 4, 8, 0x80000000


def _packed(data: bytes) -> bytes:
    return _INT.pack(len(data)) + data


def _mode(mode: int | None) -> bytes:
    return _INT.pack(0) if mode is None else struct.pack(">II", _HAS_MODE, mode)


def _string(body: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + int(_INT.unpack_from(body, at)[0])
    return body[at + 4 : end], end


def _pairs(body: bytes) -> dict[str, bytes]:
    found, at = {}, 0
    while at < len(body):
        name, at = _string(body, at)
        found[name.decode(errors="replace")], at = _string(body, at)
    return found


def _attributes(body: bytes, at: int) -> tuple[Attributes, int]:
    (flags,) = _INT.unpack_from(body, at)
    at += 4
    size = mode = mtime = 0
    if flags & _HAS_SIZE:
        (size,) = struct.unpack_from(">Q", body, at)
        at += 8
    if flags & _HAS_OWNER:
        at += 8
    if flags & _HAS_MODE:
        (mode,) = _INT.unpack_from(body, at)
        at += 4
    if flags & _HAS_TIMES:
        _, mtime = struct.unpack_from(">II", body, at)
        at += 8
    if flags & _HAS_MORE:
        (count,) = _INT.unpack_from(body, at)
        at += 4
        for _ in range(2 * count):
            _, at = _string(body, at)
    return Attributes(size, mode, float(mtime)), at
