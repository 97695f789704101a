"""Modules of the user's own folders are imported anew when their files have changed."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grange.farm.runner import OwnModules

_numbers = itertools.count()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes modules into a folder that is imported from, each time with another time of last change."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        then = 1_700_000_000 + next(_numbers)
        os.utime(path, (then, then))
        return path

    yield write
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_all_of_them_are_imported_anew_when_one_has_changed(
    write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    write("own_helper.py", "N = 1\n")
    write("own_main.py", "from own_helper import N\n")
    own = OwnModules()
    own.add(str(tmp_path))
    main = importlib.import_module("own_main")
    assert not own.forget_changed()
    assert not own.forget_changed()
    assert importlib.import_module("own_main") is main
    write("own_helper.py", "N = 2\n")
    assert own.forget_changed()
    assert not own.forget_changed()
    assert importlib.import_module("own_main").N == 2
    assert not own.forget_changed()


def test_one_that_is_gone_counts_as_changed(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    path = write("own_gone.py", "")
    own = OwnModules()
    own.add(str(tmp_path))
    importlib.import_module("own_gone")
    assert not own.forget_changed()
    path.unlink()
    assert own.forget_changed()
    assert "own_gone" not in sys.modules


def test_one_whose_file_may_have_changed_just_after_it_was_imported(
    write: Callable[[str, str], Path], tmp_path: Path
) -> None:
    own = OwnModules()
    own.add(str(tmp_path))
    assert not own.forget_changed()
    path = write("own_young.py", "N = 1\n")
    importlib.import_module("own_young")
    path.write_text("N = 2\n")  # before anybody has looked
    os.utime(path, (2_000_000_000, 2_000_000_000))
    assert own.forget_changed()
    assert importlib.import_module("own_young").N == 2


def test_what_is_installed_or_elsewhere_stays(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    write("own_here/site-packages/own_installed.py", "N = 1\n")
    write("elsewhere/own_elsewhere.py", "N = 1\n")
    write("own_mine.py", "N = 1\n")
    own = OwnModules()
    own.add("")
    assert not own.forget_changed()
    sys.path[:0] = [str(tmp_path / "own_here" / "site-packages"), str(tmp_path / "elsewhere")]
    try:
        kept = [importlib.import_module(name) for name in ("own_installed", "own_elsewhere")]
        importlib.import_module("own_mine")
    finally:
        del sys.path[:2]
    own.add(str(tmp_path / "own_here"))
    assert not own.forget_changed()
    write("own_here/site-packages/own_installed.py", "N = 2\n")
    write("elsewhere/own_elsewhere.py", "N = 2\n")
    write("own_mine.py", "N = 2\n")
    assert not own.forget_changed()
    assert [sys.modules[one.__name__] for one in kept] == kept
