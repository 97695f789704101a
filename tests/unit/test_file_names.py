"""Names that one folder cannot hold everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.file_names import apart, clash, folded

PATHS = st.lists(
    st.lists(st.sampled_from(["a", "A", "b", "ä", "A\u0308", "ß", "SS", "a~2"]), min_size=1, max_size=3).map(
        "/".join
    ),
    max_size=8,
    unique=True,
)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (("a", "b", "c/a", "C/b"), None),
        (("out/A", "x", "out/a"), ("out/A", "out/a")),
        (("OUT/x", "out/x"), ("OUT/x", "out/x")),
        (("ä.dat", "a\u0308.dat"), ("ä.dat", "a\u0308.dat")),
        (("straße", "STRASSE"), ("straße", "STRASSE")),
        (("log", "Log/x/y"), ("log", "Log/x/y")),
        (("a/b", "a"), ("a", "a/b")),
        (("a", "a"), ("a", "a")),
    ],
)
def test_clashes_are_found_and_both_are_named(paths: tuple[str, ...], found: tuple[str, str] | None) -> None:
    assert clash(paths) == found


@given(PATHS)
def test_names_are_taken_apart(paths: list[str]) -> None:
    new = apart(paths)
    assert list(new) == paths
    assert clash(tuple(new.values())) is None
    if clash(tuple(paths)) is None:
        assert list(new.values()) == paths
    elif paths:
        assert new[paths[0]] == paths[0]


def test_thousands_of_names_are_taken_apart_at_once() -> None:
    new = apart([f"{case}{number}" for number in range(20_000) for case in "aA"])
    assert new["A19999"] == "A19999~2"
    assert folded("A1") == folded("a1")
