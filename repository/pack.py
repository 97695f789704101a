"""Packs: many blobs in one ZIP file.

A pack is a plain ZIP file (APPNOTE.TXT 6.3), so any tool opens it: a member per blob, named by its key,
stored or deflated, ZIP64 where needed; its central directory is its index. Other members may lie beside
them.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from grange.repository.deflate import deflated
from grange.repository.errors import PackMalformed
from grange.repository.index import BlobLocation, Codec
from grange.repository.key import Key
from grange.repository.ranges import ReadRanges, read_merged

TARGET_BYTES = 32 << 20

# What a pack may say of itself, so that reading its directory has a bound. 32 MiB hold 350,000 members at the
# most; half a million take 200 MB while they are parsed. Deflate never gains more than 1032 to 1.
MOST_MEMBERS = 1 << 19
LARGEST_DIRECTORY_BYTES = 64 << 20
_LARGEST_RATIO = 1032
# What a header has behind the name where it says sizes in 64 bits.
_EXTRA64_BYTES = 20
# Headers are read over so much of a pack at a time: where they lie close, all between them is read too.
_EXTENT_BYTES = 64 << 20

_STORED, _DEFLATE = 0, 8
_CODECS: dict[int, Codec] = {_STORED: "stored", _DEFLATE: "deflate"}
_IS_KEY = re.compile(rb"[0-9a-f]{64}").fullmatch

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
_LOCAL_MARK, _CENTRAL_MARK, _END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END64_MARK, _LOCATOR64_MARK = b"PK\x06\x06", b"PK\x06\x07"
_LONGEST_COMMENT = 0xFFFF
_MANY, _FAR = 0xFFFF, 0xFFFFFFFF

# What grange writes: every member alike, its name behind the header, no extra fields. The date is ZIP's first
# day, so that equal contents make equal packs; 0600, so that unpacked files can be read.
_LOCAL_OF_KEY = struct.Struct(_LOCAL.format + "64s")
_CENTRAL_OF_KEY = struct.Struct(_CENTRAL.format + "64s")
_VERSION, _VERSION64, _UNIX = 20, 45, 3 << 8
_DATE = 1 << 5 | 1
_MODE = 0o100600 << 16


def size_of_pack(blobs: int, stored_bytes: int) -> int:
    """The size of a pack of ours of so many blobs that take so many bytes in it."""
    end = _END.size + (_END64.size + _LOCATOR64.size if blobs >= _MANY else 0)
    return blobs * (_LOCAL_OF_KEY.size + _CENTRAL_OF_KEY.size) + stored_bytes + end


class PackWriter:
    """Makes a pack in memory.

    Written by hand: zipfile takes three times as long a stored member (12-16 µs of 4 KiB, against 4-5).
    """

    def __init__(self, object_name: str, target_bytes: int = TARGET_BYTES) -> None:
        if not 0 < target_bytes <= 1 << 30:
            raise ValueError(f"target_bytes: expected 1 to {1 << 30}, got {target_bytes}")
        self.object_name = object_name
        self._target_bytes = target_bytes
        self._content = bytearray()
        self._directory = bytearray()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        """Whether the pack has reached its target size, or has as many members as a pack may have."""
        return len(self._content) + len(self._directory) >= self._target_bytes or self._count >= MOST_MEMBERS

    def add(self, key: Key, content: bytes) -> BlobLocation:
        """Put a blob in: deflated where that pays, else as it is. Each key once."""
        name = key.encode("ascii")
        if len(name) != 64:
            raise ValueError(f"key: expected 64 hexadecimal digits, got {key!r}")
        size = len(content)
        if size > 1 << 30:
            raise ValueError(
                f"blob {key} has {size} bytes: what is over {1 << 30} stands alone, not in a pack"
            )
        stored = deflated(content)
        codec: Codec = "deflate"
        method = _DEFLATE
        if stored is None:
            stored, codec, method = content, "stored", _STORED
        stored_size = len(stored)
        checksum = zlib.crc32(content)
        header = len(self._content)
        self._content += _LOCAL_OF_KEY.pack(
            _LOCAL_MARK, _VERSION, 0, method, 0, _DATE, checksum, stored_size, size, 64, 0, name
        )  # fmt: skip
        offset = len(self._content)
        self._content += stored
        self._directory += _CENTRAL_OF_KEY.pack(
            _CENTRAL_MARK, _UNIX | _VERSION, _VERSION, 0, method, 0, _DATE, checksum, stored_size, size,
            64, 0, 0, 0, 0, _MODE, header, name,
        )  # fmt: skip
        self._count += 1
        return BlobLocation(self.object_name, offset, stored_size, codec, size)

    def finish(self) -> bytearray:
        """The bytes of the pack. Nothing can be added any more."""
        start, size, count = len(self._content), len(self._directory), self._count
        pack = self._content
        pack += self._directory
        if count >= _MANY:
            end64 = len(pack)
            pack += _END64.pack(
                _END64_MARK, _END64.size - 12, _UNIX | _VERSION64, _VERSION64, 0, 0, count, count, size, start
            )  # fmt: skip
            pack += _LOCATOR64.pack(_LOCATOR64_MARK, 0, end64, 1)
            count = _MANY
        pack += _END.pack(_END_MARK, 0, 0, count, count, size, start, 0)
        self._content, self._directory = bytearray(), bytearray()
        return pack


class _Member(NamedTuple):
    """An entry of the central directory. common: the bytes that the local header should repeat."""

    name: bytes
    method: int
    flags: int
    checksum: int
    stored_size: int
    size: int
    header: int
    common: bytes


class PackReader:
    """What lies where in a pack, by its central directory and the local headers.

    Reads the end, the directory and the local headers, each in one call of read (of the headers one for each
    64 MiB of the pack); every header is compared with its directory entry. Contents are not read: whoever
    reads them checks them against their key.

    What a pack says is bounded before anything is done with it: how many members, how large a directory, how
    much of a content can be in so few bytes; no two members share bytes or a name.

    headers: False where the local headers cannot be read. Then the members have to follow each other without
    gaps, as a runner writes them, so that the directory tells alone where each content begins.

    Errors: PackMalformed (permanent); what read raises.
    """

    def __init__(
        self, name: str, size: int, read: ReadRanges, merge_gap_bytes: int = 0, *, headers: bool = True
    ) -> None:
        self._name = name
        self._size = size
        self._read = read
        start, directory, count = self._find_directory()
        self._members = self._parse(directory, count, start)
        self._offsets = (
            self._content_offsets(merge_gap_bytes, start) if headers else self._offsets_by_ends(start)
        )
        #: 32 hexadecimal digits, equal for equal packs: the directory holds all names, sizes and checksums.
        self.fingerprint = hashlib.sha256(directory).hexdigest()[:32]

    def locations(self, object_name: str, only: Collection[Key] | None = None) -> dict[Key, BlobLocation]:
        """Where the blobs lie, when the pack is the object of that name; only: of these keys."""
        rows = {}
        for member, offset in zip(self._members, self._offsets, strict=True):
            if _IS_KEY(member.name):
                key = Key(member.name.decode("ascii"))
                if only is None or key in only:
                    codec = _CODECS[member.method]
                    rows[key] = BlobLocation(object_name, offset, member.stored_size, codec, member.size)
        return rows

    def checksum(self, name: str) -> tuple[int, int] | None:
        """CRC-32 and size of a member, whatever it is; None if there is none of that name."""
        for member in self._members:
            if member.name == name.encode():
                return member.checksum, member.size
        return None

    def _malformed(self, reason: str) -> PackMalformed:
        return PackMalformed(self._name, reason)

    def _bytes(self, offset: int, length: int) -> bytes:
        content = self._read([(offset, length)])[0]
        if len(content) != length:
            raise self._malformed(f"it ends at byte {offset + len(content)} of {self._size}")
        return content

    def _find_directory(self) -> tuple[int, bytes, int]:
        """Offset, bytes and number of entries of the central directory."""
        longest = _END64.size + _LOCATOR64.size + _END.size + _LONGEST_COMMENT
        before = max(0, self._size - longest)
        tail = self._bytes(before, self._size - before)
        at = tail.rfind(_END_MARK)
        while at >= 0 and not self._ends_with(tail, at):
            at = tail.rfind(_END_MARK, 0, at)
        if at < 0:
            raise self._malformed(f"no end of a ZIP file in its {self._size} bytes; it may have been cut off")
        _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
        if count == _MANY or size == _FAR or start == _FAR:
            locator = at - _LOCATOR64.size
            if locator >= _END64.size and tail.startswith(_LOCATOR64_MARK, locator):
                at = locator - _END64.size
                disk, first_disk, here, count, size, start = self._end64(tail, at, before)
        if disk or first_disk or here != count:
            raise self._malformed("it is a part of a ZIP file of several parts")
        if start + size != before + at:
            raise self._malformed(f"its directory should end at byte {start + size}, not {before + at}")
        if count > MOST_MEMBERS or size > LARGEST_DIRECTORY_BYTES:
            raise self._malformed(
                f"its directory has {count} entries in {size} bytes: more than {MOST_MEMBERS} entries or "
                f"{LARGEST_DIRECTORY_BYTES} bytes are not read"
            )
        if count * _CENTRAL.size > size:
            raise self._malformed(f"its directory has {size} bytes, too few for {count} entries")
        return start, self._bytes(start, size), count

    @staticmethod
    def _ends_with(tail: bytes, at: int) -> bool:
        if at + _END.size > len(tail):
            return False
        comment = int(_END.unpack_from(tail, at)[-1])
        return at + _END.size + comment == len(tail)

    def _end64(self, tail: bytes, at: int, before: int) -> tuple[int, int, int, int, int, int]:
        _, disk_of_end, end64, _ = _LOCATOR64.unpack_from(tail, at + _END64.size)
        mark, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(tail, at)
        if mark != _END64_MARK or disk_of_end or end64 != before + at:
            raise self._malformed("its ZIP64 end is damaged")
        return disk, first_disk, here, count, size, start

    def _parse(self, directory: bytes, count: int, start: int) -> list[_Member]:
        members = []
        at = 0
        for number in range(count):
            if not directory.startswith(_CENTRAL_MARK, at) or at + _CENTRAL.size > len(directory):
                raise self._malformed(f"entry {number + 1} of its directory is damaged")
            fields = _CENTRAL.unpack_from(directory, at)
            _, _, _, flags, method, _, _, checksum, stored_size, size, n_name, n_extra, n_comment = fields[
                :13
            ]
            header = fields[16]
            name_at = at + _CENTRAL.size
            extra_at = name_at + n_name
            if _FAR in (stored_size, size, header):
                extra = directory[extra_at : extra_at + n_extra]
                size, stored_size, header = self._far(extra, size, stored_size, header)
            common = directory[at + 6 : at + 30]
            name = directory[name_at:extra_at]
            member = _Member(name, method, flags, checksum, stored_size, size, header, common)
            self._check(member, start)
            members.append(member)
            at = extra_at + n_extra + n_comment
        if at != len(directory):
            raise self._malformed(f"its directory has {len(directory)} bytes, its {count} entries {at}")
        if len({member.name for member in members}) < count:
            raise self._malformed("two of its members have one name")
        return members

    def _far(self, extra: bytes, size: int, stored_size: int, header: int) -> tuple[int, int, int]:
        """The values of those fields that say they are ZIP64: extra field 1 holds them in this order."""
        values = [size, stored_size, header]
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<HH", extra, at)
            wanted = [i for i, value in enumerate(values) if value == _FAR]
            if kind == 1 and 8 * len(wanted) <= length <= len(extra) - at - 4:
                for place, i in enumerate(wanted):
                    values[i] = struct.unpack_from("<Q", extra, at + 4 + 8 * place)[0]
                return values[0], values[1], values[2]
            at += 4 + length
        raise self._malformed("a ZIP64 entry of its directory is damaged")

    def _check(self, member: _Member, start: int) -> None:
        if member.header + _LOCAL.size + len(member.name) + member.stored_size > start:
            raise self._malformed(f"member {_shown(member)} reaches into the directory")
        if not _IS_KEY(member.name):
            return
        if member.method not in _CODECS or member.flags & 1:
            raise self._malformed(
                f"member {_shown(member)} is encrypted or packed by method {member.method}, not 0 or 8"
            )
        if member.method == _STORED and member.stored_size != member.size:
            raise self._malformed(f"member {_shown(member)} is stored, but has two sizes")
        if member.size > _LARGEST_RATIO * member.stored_size:
            raise self._malformed(
                f"member {_shown(member)} says that {member.size} bytes are in {member.stored_size}: "
                "no deflate does that"
            )

    def _content_offsets(self, merge_gap_bytes: int, start: int) -> list[int]:
        """The offset of the first byte of each content: only the local header knows how long it is."""
        members = self._members
        order = sorted(range(len(members)), key=lambda i: members[i].header)
        offsets = [0] * len(members)
        end = 0
        for lot in self._lots(order):
            part = [members[i] for i in lot]
            for i, member, offset in zip(
                lot, part, self._offsets_of(part, merge_gap_bytes, start), strict=True
            ):
                if member.header < end:
                    raise self._malformed(f"member {_shown(member)} lies within another one")
                offsets[i] = offset
                end = offset + member.stored_size
        return offsets

    def _offsets_by_ends(self, start: int) -> list[int]:
        """The offset of the first byte of each content, where it ends at the next member's header."""
        members = self._members
        order = sorted(range(len(members)), key=lambda i: members[i].header)
        offsets = [0] * len(members)
        ends = [members[i].header for i in order[1:]] + [start]
        for i, end in zip(order, ends, strict=True):
            member = members[i]
            offsets[i] = end - member.stored_size
            extra = offsets[i] - member.header - _LOCAL.size - len(member.name)
            if extra not in (0, _EXTRA64_BYTES):
                raise self._malformed(f"member {_shown(member)} does not end where the next one begins")
        return offsets

    def _lots(self, order: list[int]) -> Iterator[list[int]]:
        """Members in the order of the pack, cut so that those of a lot lie within so much of it."""
        lot: list[int] = []
        for i in order:
            if lot and self._members[i].header - self._members[lot[0]].header > _EXTENT_BYTES:
                yield lot
                lot = []
            lot.append(i)
        if lot:
            yield lot

    def _offsets_of(self, members: Sequence[_Member], merge_gap_bytes: int, start: int) -> list[int]:
        wanted = [(member.header, _LOCAL.size + len(member.name)) for member in members]
        offsets = []
        for member, header in zip(members, read_merged(self._read, wanted, merge_gap_bytes), strict=True):
            if (
                header[:4] != _LOCAL_MARK
                or (header[4:28] != member.common and not _agrees(bytes(header), member))
                or header[_LOCAL.size :] != member.name
            ):
                raise self._malformed(f"the header of member {_shown(member)} and the directory differ")
            offset = member.header + _LOCAL.size + len(member.name) + header[28] + (header[29] << 8)
            if offset + member.stored_size > start:
                raise self._malformed(f"member {_shown(member)} reaches into the directory")
            offsets.append(offset)
        return offsets


def _agrees(header: bytes, member: _Member) -> bool:
    """Whether a header that does not repeat the directory word for word says the same.

    Sizes and checksum may follow the content (flag 3), sizes may be in a ZIP64 extra field.
    """
    if len(header) < _LOCAL.size:
        return False
    _, _, flags, method, _, _, checksum, stored_size, size, n_name, _ = _LOCAL.unpack_from(header)
    if (flags, method, n_name) != (member.flags, member.method, len(member.name)):
        return False
    if flags & 8 and (checksum, stored_size, size) == (0, 0, 0):
        return True
    return (
        checksum == member.checksum
        and stored_size in (member.stored_size, _FAR)
        and size in (member.size, _FAR)
    )


def _shown(member: _Member) -> str:
    return repr(member.name[:80].decode("utf-8", errors="replace"))
