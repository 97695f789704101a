"""Deflate: when it pays, and how to undo it without trusting what is undone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

# Below, a member's headers (some 200 bytes) outweigh whatever could be gained.
_SMALLEST_BYTES = 256
_LEAST_GAIN = 0.05
# A small window is set up in 4 µs, zlib's own (256 KiB of tables) in up to 33-45 µs where the allocator gives
# them back each time; contents up to 8 KiB shrink as much in it. Any inflater reads both.
_SMALL_BYTES = 8 << 10
_SMALL_WINDOW, _SMALL_MEMORY = -13, 7
_WINDOW, _MEMORY = -15, 8
# Trying to deflate noise (compressed data, mantissas) costs ten times its hash. 128 bytes of it have some 100
# different values, of doubles 90, of doubles with few digits or half text 80, of text less than 45; counting
# costs 3 µs.
_SAMPLE_BYTES = 64
_NOISE_VALUES = 82


def deflated(content: bytes) -> bytes | None:
    """The content deflated at level 1; None if that gains less than 5 %, or if it looks like noise."""
    size = len(content)
    if size < _SMALLEST_BYTES or _is_noise(content, size // 4, size // 2):
        return None
    if size <= _SMALL_BYTES:
        return _worth(content, _SMALL_WINDOW, _SMALL_MEMORY)
    return _worth(content, _WINDOW, _MEMORY)


def _is_noise(content: bytes, one: int, other: int) -> bool:
    sample = content[one : one + _SAMPLE_BYTES] + content[other : other + _SAMPLE_BYTES]
    return len(set(sample)) > _NOISE_VALUES


def _worth(content: bytes, window: int, memory: int) -> bytes | None:
    deflater = zlib.compressobj(1, zlib.DEFLATED, window, memory)
    small = deflater.compress(content) + deflater.flush()
    return small if len(small) <= len(content) * (1 - _LEAST_GAIN) else None


def inflated(stored: bytes | memoryview, size: int) -> bytes | None:
    """Undo deflate; None if it does not give exactly size bytes. Never makes more than that."""
    inflater = zlib.decompressobj(-15)
    try:
        content = inflater.decompress(stored, size + 1)
    except zlib.error:
        return None
    return content if len(content) == size and inflater.eof and not inflater.unused_data else None


def inflated_pieces(pieces: Iterable[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """Undo deflate piece by piece, at most chunk_bytes at a time.

    Errors: zlib.error, where it is damaged or when it does not end with the last piece.
    """
    inflater = zlib.decompressobj(-15)
    for piece in pieces:
        rest = piece
        while True:
            content = inflater.decompress(rest, chunk_bytes)
            if content:
                yield content
            rest = inflater.unconsumed_tail
            # A full piece may leave more inside the inflater, although it has eaten everything.
            if not rest and len(content) < chunk_bytes:
                break
    if not inflater.eof or inflater.unused_data:
        raise zlib.error("not one whole deflated content")
