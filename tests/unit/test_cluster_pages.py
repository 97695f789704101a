"""What the pages about clusters and deploy/ tell people to type is there: commands, options, settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from grange.cli.root import root
from grange.farm.computer import Computer, SshSettings

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = sorted((ROOT / "docs" / "cluster").glob("*.md"))
PAGES = [*CLUSTER, *sorted((ROOT / "deploy").rglob("README.md"))]
OTHERS = sorted([*(ROOT / "deploy").glob("computers/*.toml"), *(ROOT / "deploy").glob("systemd/*.service")])
SETTINGS = {field.name for field in fields(Computer)} | {field.name for field in fields(SshSettings)}


def commands_of(text: str) -> Iterator[str]:
    """Each `grange …` of a page: in backticks, as a line of its own, or in a comment or unit file."""
    text = re.sub(r"\\\n\s*", " ", text)
    for quoted in re.findall(r"`([^`]+)`", text):
        if quoted.startswith("grange ") and quoted.split()[1] != "…":
            yield " ".join(quoted.split())
    for line in text.splitlines():
        found = re.fullmatch(r"(?:#? {4,}|ExecStart=\S*/)(?:\$ )?(grange .+)", line)
        if found:
            yield re.split(r"\s{2,}#|\s#\s", found[1])[0].strip()


def check(line: str) -> None:
    """Walk down the commands, then look at the options. Errors: AssertionError."""
    words = shlex.split(line.replace("…", ""))[1:]
    command: click.Command = root
    context = click.Context(root, info_name="grange")
    while words and isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{line}: there is no command {name}"
        command = found
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for word in words:
        if word.startswith("-"):
            option = word.split("=")[0].rstrip(",:")
            assert option in known | {"-h", "--help"}, f"{line}: there is no option {option}"


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_options_are_there(page: Path) -> None:
    for line in commands_of(page.read_text("utf-8")):
        check(line)


def test_the_pages_show_commands() -> None:
    found = [line for page in PAGES for line in commands_of(page.read_text("utf-8"))]
    assert {line.split()[1] for line in found} >= {"computer", "allocation", "campaign"}
    assert "grange computer add --config" in found
    with pytest.raises(AssertionError, match="no option --no-such"):
        check("grange computer add --no-such thing")
    with pytest.raises(AssertionError, match="no command nothing"):
        check("grange computer nothing")


@pytest.mark.parametrize("page", CLUSTER, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_the_text_are_there(page: Path) -> None:
    """`--option` alone, as a page about one command mentions it, is an option of some command of ours."""
    context = click.Context(root)
    known = set()
    for name in root.list_commands(context):
        group = root.get_command(context, name)
        commands = group.commands.values() if isinstance(group, click.Group) else [group]
        known |= {option for command in commands if command for one in command.params for option in one.opts}
    for option in re.findall(r"`(--[a-z][a-z-]+)[^`]*`", page.read_text("utf-8")):
        assert option in known, option


@pytest.mark.parametrize("page", CLUSTER, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    named = set(re.findall(r"`(?:ssh\.)?([a-z]+(?:_[a-z]+)+)(?: = [^`]*)?`", text))
    assert not named - SETTINGS, f"{page.name} names settings that are not there"


def test_defaults_in_the_table_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "cluster" / "login-nodes.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+)", text, re.MULTILINE)
    assert len(rows) >= 6
    computer = Computer(label="any")
    for name, value in rows:
        holder: object = computer.ssh if name.startswith("ssh.") else computer
        assert getattr(holder, name.removeprefix("ssh.")) == float(value), name
