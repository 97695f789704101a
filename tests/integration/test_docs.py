"""What the pages for beginners show is true: their blocks are run, each page in a home of its own."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from grange.core.postgres import stop_server

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS = 120


class Block(NamedTuple):
    """A fenced block of a page; line is where its first line of code stands."""

    language: str
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start(2)) + 1) for found in _FENCE.finditer(page)
    ]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home where nothing was ever computed, as a reader of the pages has it."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GRANGE_HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    if (folder / "daemon").is_dir():  # a page that failed half-way has left one
        subprocess.run([sys.executable, "-m", "grange", "daemon", "stop"], check=False)
    if (folder / "postgres").is_dir():
        assert stop_server(folder / "postgres", force=True)


def run_script(name: str, source: str) -> None:
    """Run a script in a process of its own, as a reader would."""
    Path(name).write_text(source, "utf-8")
    done = subprocess.run(
        [sys.executable, name], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"


def console_script(block: Block, page: str) -> str:
    """Python that runs a block of commands; each must end with the status 0."""
    lines = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    assert lines, f"{page}:{block.line}: a console block without a command"
    commands = [shlex.split(line) for line in lines]
    assert all(command[0] == "grange" for command in commands), f"{page}:{block.line}: not a grange command"
    calls = [
        f"subprocess.run([sys.executable, '-m', 'grange', *{command[1:]!r}], check=True)"
        for command in commands
    ]
    return "import subprocess, sys\n" + "\n".join(calls) + "\n"


def script_of(page: Path) -> str:
    """One script of all blocks of a page, its lines where they stand on the page as far as that can be."""
    parts: list[str] = []
    for block in blocks_of(page.read_text("utf-8")):
        if block.language == "python":
            parts.append(f"# {page.name}:{block.line}\n{block.text}")
        elif block.language == "console":
            parts.append(f"# {page.name}:{block.line}\n{console_script(block, page.name)}")
    assert parts, f"{page} has no block to run"
    return "\n".join(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "docs/tutorial.md",
        "docs/caching.md",
        "docs/workchains.md",
        "docs/workflows.md",
        "docs/daemon.md",
        "docs/processes.md",
        "docs/programs.md",
        "README.md",
    ],
)
def test_blocks_run_in_order(page: str, home: Path) -> None:
    run_script("page.py", script_of(ROOT / page))
    assert (home / "profile.toml").exists()


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_exit_status_is_in_the_design() -> None:
    from grange.core import exit_status
    from grange.core.exit_code import ExitCode

    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for code in vars(exit_status).values():
        if isinstance(code, ExitCode):
            assert f"| {code.status} | {code.message} |" in design, code


def test_every_key_of_the_profile_is_in_the_design() -> None:
    from dataclasses import fields

    from grange.core.profile_file import ProfileFile

    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for field in fields(ProfileFile):
        assert f"`{field.name}`" in design, field.name


def test_every_dependency_has_its_reason_in_the_design() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    design = (ROOT / "docs" / "design.md").read_text("utf-8").partition("## Dependencies")[2]
    for requirement in wanted:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert name == "grange" or f"**{name}**" in design, requirement


def test_every_executor_is_in_the_design() -> None:
    from grange.core.executors import NAMES

    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for name in NAMES:
        assert f'"{name}"' in design, name
