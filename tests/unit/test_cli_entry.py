from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import grange.cli.root
from grange.cli.entry import run
from grange.version import VERSION

REPOSITORY = Path(__file__).parents[2]


def _commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child, (*words, name))


@pytest.mark.parametrize("words", list(_commands(grange.cli.root.root)), ids=" ".join)
def test_every_command_has_help_with_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    _, _, examples = capsys.readouterr().out.partition("Example")
    assert " ".join(("grange", *words)) in examples


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"] == VERSION
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"grange {VERSION}\n"


def test_the_version_is_told_without_importing_click() -> None:
    script = (
        "import sys; sys.argv = ['grange', '--version'];"
        "from grange.__main__ import main; assert main() == 0;"
        "print(sorted({'click', 'rich', 'psycopg2', 'msgspec', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"grange {VERSION}\n[]\n"


@pytest.mark.parametrize(
    "words", [["nope"], ["process", "list", "--limit", "0"], ["graph"], ["campaign", "show"]]
)
def test_wrong_usage_is_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Usage: grange" in said.err
    assert "Error:" in said.err


def test_status_where_nothing_was_set_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "none"
    assert run(["--home", str(home), "status"]) == 0
    assert "not set up" in capsys.readouterr().out
    assert run(["--home", str(home), "status", "--json"]) == 0
    assert '"set_up": false' in capsys.readouterr().out
    assert not home.exists()


@pytest.mark.parametrize(
    "words",
    [["process", "list"], ["node", "show", "1"], ["campaign", "run", "x"], ["graph", "1"],
     ["profile", "show"], ["database", "start"], ["database", "stop"], ["database", "migrate"]],
    ids=" ".join,
)  # fmt: skip
def test_looking_never_makes_a_profile(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "none"
    assert run(["--home", str(home), *words]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: there is no profile in {home}: nothing has been computed there yet"
    assert "gr.open()" in said[1]
    assert not home.exists()


def test_the_home_is_told_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRANGE_HOME", str(tmp_path / "here"))
    assert run(["profile", "path"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'here'}\n"


def test_the_error_of_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(grange.cli.root.root, "main", broken)
    with pytest.raises(ZeroDivisionError):
        run(["status"])


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt("campaign x: 3 of 5 calls done"), click.Abort()])
def test_an_interrupt_is_status_130(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise interrupt

    monkeypatch.setattr(grange.cli.root.root, "main", interrupted)
    assert run(["status"]) == 130
    assert capsys.readouterr().err.strip() == (str(interrupt) or "interrupted")
