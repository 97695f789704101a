"""Ranges of bytes: near ones are read as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from grange.repository.store import Contents, Range

# A merged range is in memory whole beside the contents cut from it.
LARGEST_MERGED_BYTES = 8 << 20

ReadRanges = Callable[[Sequence[Range]], Contents]


def merge(ranges: Sequence[Range], gap_bytes: int, limit_bytes: int = LARGEST_MERGED_BYTES) -> list[Range]:
    """Cover ranges by fewer: neighbours at most gap_bytes apart become one of at most limit_bytes.

    A single range longer than the limit stays whole.

    Shapes: ranges sorted by offset in, at most as many out, sorted; each range in lies in one range out.
    """
    merged: list[Range] = []
    if not ranges:
        return merged
    start, length = ranges[0]
    end = start + length
    for offset, length in islice(ranges, 1, None):
        reach = offset + length
        if reach <= end:
            continue
        if offset - end <= gap_bytes and reach - start <= limit_bytes:
            end = reach
        else:
            merged.append((start, end - start))
            start, end = offset, reach
    merged.append((start, end - start))
    return merged


def read_merged(read: ReadRanges, ranges: Sequence[Range], gap_bytes: int) -> list[bytes | memoryview]:
    """Read ranges in as few pieces as pays; one call of read for all.

    Shapes: n ranges in, in any order; n contents out, in the same order, each shorter than asked for where
    the object ends.
    """
    order = sorted(range(len(ranges)), key=ranges.__getitem__)
    merged = merge([ranges[i] for i in order], gap_bytes)
    pieces = read(merged)
    out: list[bytes | memoryview] = [b""] * len(ranges)
    at = -1
    start = end = -1
    piece = memoryview(b"")
    for i in order:
        offset, length = ranges[i]
        while at < 0 or offset + length > end or offset < start:
            at += 1
            start, size = merged[at]
            end = start + size
            piece = memoryview(pieces[at])
        whole = offset == start and length == end - start
        out[i] = pieces[at] if whole else piece[offset - start : offset - start + length]
    return out
