"""What a process has died at while it took results in: together twice, then one by one."""

from __future__ import annotations

from pathlib import Path

from grange.core.intake_deaths import IntakeDeaths

#: Blocks that nobody leaves any more, not even when they are collected.
DEAD: list[object] = []


def die(path: Path, ids: list[str]) -> None:
    """The life of one process, which dies when it parses the result "3"."""
    deaths = IntakeDeaths(path)
    for id_ in deaths.alone(ids):
        at = deaths.at([id_], alone=True)
        at.__enter__()
        if id_ == "3":
            DEAD.append(at)
            return
        at.__exit__(None, None, None)
    at = deaths.at(ids)
    at.__enter__()
    DEAD.append(at)


def test_one_that_was_alone_three_times_is_the_cause(tmp_path: Path) -> None:
    path, ids = tmp_path / "note", ["1", "2", "3", "4"]
    for _ in range(2):
        assert IntakeDeaths(path).alone(ids) == []
        die(path, ids)
    assert IntakeDeaths(path).alone(ids) == ids
    for _ in range(3):
        assert IntakeDeaths(path).culprits(ids) == set()
        die(path, ids)
        assert IntakeDeaths(path).alone(ids) == ["3"]
    deaths = IntakeDeaths(path)
    assert deaths.culprits(ids) == {"3"}
    assert deaths.culprits(["1", "2"]) == set()
    deaths.forget(["3"])
    assert deaths.alone(ids) == []
    with deaths.at(["1", "2", "4"]):
        assert path.exists()
    assert not path.exists()


def test_who_lives_on_leaves_nothing_behind(tmp_path: Path) -> None:
    path, ids = tmp_path / "note", ["1", "2"]
    for _ in range(2):
        die(path, ids)
    deaths = IntakeDeaths(path)
    for id_ in deaths.alone(ids):
        with deaths.at([id_], alone=True):
            pass
    assert deaths.alone(ids) == []
    with deaths.at(ids):
        pass
    assert not path.exists()
    assert IntakeDeaths(path).alone(ids) == []
    with deaths.at([]):
        assert not path.exists()


def test_a_note_that_is_none_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "note"
    for text in ("", "{}", "[1]", '{"ids": 1, "deaths": "x", "alone": 1}'):
        path.write_text(text)
        deaths = IntakeDeaths(path)
        assert (deaths.alone(["1"]), deaths.culprits(["1"])) == ([], set())


def test_where_nothing_can_be_written_it_goes_on(tmp_path: Path) -> None:
    deaths = IntakeDeaths(tmp_path / "missing" / "note")
    with deaths.at(["1"]):
        assert deaths.alone(["1"]) == []
