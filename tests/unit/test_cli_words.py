from __future__ import annotations

import pytest

from grange.cli import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0 ms"),
        (0.0124, "12 ms"),
        (0.9996, "1.0 s"),
        (3.44, "3.4 s"),
        (59.96, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (12_000, "3 h 20 min"),
        (86_400 * 4 + 7_200, "4 d 2 h"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "?"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_340_000, "12.3 MB"), (999_950, "1.0 MB"),
     (340 * 10**9, "340 GB"), (5 * 10**16, "50000 TB")],
)  # fmt: skip
def test_size(count: int | None, text: str) -> None:
    assert words.size(count) == text


def test_plural() -> None:
    assert [words.plural(1, "process", "processes"), words.plural(1200, "row")] == ["1 process", "1,200 rows"]
