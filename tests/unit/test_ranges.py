"""Ranges: merged, read, cut up again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grange.repository.ranges import merge, read_merged

OBJECT = bytes(i * 7 % 251 for i in range(1000))
ranges = st.lists(st.tuples(st.integers(0, 1100), st.integers(0, 200)), max_size=30)


def test_near_ranges_become_one() -> None:
    assert merge([(0, 10), (12, 8), (30, 5)], gap_bytes=2) == [(0, 20), (30, 5)]
    assert merge([(0, 10), (10, 10)], gap_bytes=0) == [(0, 20)]
    assert merge([(0, 10), (11, 10)], gap_bytes=0) == [(0, 10), (11, 10)]
    assert merge([(0, 100), (5, 5), (90, 20)], gap_bytes=0) == [(0, 110)]
    assert merge([], gap_bytes=9) == []


def test_a_merged_range_stays_bounded() -> None:
    assert merge([(0, 10), (10, 10), (20, 10)], gap_bytes=0, limit_bytes=20) == [(0, 20), (20, 10)]
    assert merge([(0, 100), (100, 10)], gap_bytes=0, limit_bytes=20) == [(0, 100), (100, 10)]


@given(ranges, st.integers(0, 50), st.integers(1, 300))
def test_every_range_lies_in_a_merged_one(wanted: list[tuple[int, int]], gap: int, limit: int) -> None:
    merged = merge(sorted(wanted), gap, limit)
    assert merged == sorted(merged)
    assert len(merged) <= len(wanted)
    for offset, length in wanted:
        assert any(start <= offset and offset + length <= start + size for start, size in merged)
    longest = max((length for _, length in wanted), default=0)
    assert all(size <= max(limit, longest) for _, size in merged)


@given(ranges, st.integers(0, 50))
def test_what_is_read_is_what_lies_there(wanted: list[tuple[int, int]], gap: int) -> None:
    calls = []

    def read(merged: object) -> list[bytes]:
        assert isinstance(merged, list)
        calls.append(merged)
        return [OBJECT[offset : offset + length] for offset, length in merged]

    got = read_merged(read, wanted, gap)
    assert [bytes(part) for part in got] == [OBJECT[offset : offset + length] for offset, length in wanted]
    assert len(calls) == 1
