from __future__ import annotations

import pytest

from grange.cli.table import Cell, Column, display_width, print_fields, print_table

COLUMNS = (
    Column("id", right=True),
    Column("process", flexible=True),
    Column("created", optional=True),
    Column("message", flexible=True),
)
ROWS = [
    ("7", "emt_energy", "2026-01-01 12:00:00", Cell("the cell is too small [301] for the cutoff", "red")),
    ("12345", "birch_murnaghan", "2026-01-01 12:00:01", "能量太低 " * 10),
]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(display_width, lines)) <= width
    assert ("created" in lines[0]) == (width >= 80)


def test_a_pipe_gets_whole_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(COLUMNS, ROWS)
    assert "the cell is too small [301] for the cutoff" in capsys.readouterr().out


def test_an_empty_column_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("a"), Column("b"), Column("c", right=True)], [("x", "", "1"), ("yy", "", "10")])
    assert capsys.readouterr().out == "a    c\nx    1\nyy  10\n"


def test_one_row_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("message")], [("first\nsecond\tthird\x1b[31m",)])
    assert capsys.readouterr().out == "message\nfirst second third\N{REPLACEMENT CHARACTER}[31m\n"


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("name", "a\nb"), ("message", ""), ("host", Cell("node1"))], indent=" ")
    assert capsys.readouterr().out == " name  a\n       b\n host  node1\n"
