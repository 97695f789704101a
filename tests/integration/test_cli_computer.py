"""`grange computer` through its command line."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from grange.cli.entry import run
from grange.core import computer as computers
from grange.core.data.code import InstalledCode
from grange.core.postgres import stop_server
from grange.core.profile import Profile
from grange.farm.computer import Computer, SshSettings

ADD = ["computer", "add", "lumi", "--host", "lumi.example.org", "--user", "ada", "--partition", "small"]

Say = Callable[..., str]
Refuse = Callable[..., str]


@pytest.fixture
def say(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command that must succeed; returns its standard output, then what it warned of."""

    def run_it(*words: str) -> str:
        status = run(["--home", str(profile.home), *words])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out + said.err

    return run_it


@pytest.fixture
def refused(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail; returns its standard error."""

    def run_it(*words: str) -> str:
        assert run(["--home", str(profile.home), *words]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    return run_it


def load(profile: Profile, label: str = "lumi") -> Computer:
    with profile.transaction() as cursor:
        return computers.load(cursor, label, user_id=profile.user_id).computer


def test_add_by_options(profile: Profile, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(profile.home)
    text = say(
        *ADD, "--work-dir", "/scratch/{username}", "--cores-per-node", "128", "--memory-per-node", "0",
        "--directive", "--exclusive", "--directive", "#SBATCH -C rome", "--hq-binary", "bin/hq",
        "--key-file", "~/.ssh/id_cluster", "--ssh-config", "none", "--restricted",
        "--connection-interval", "60",
    )  # fmt: skip
    assert text == "computer lumi added; see whether all is well: grange computer test lumi\n"
    assert load(profile) == Computer(
        label="lumi",
        hostname="lumi.example.org",
        partition="small",
        hyperqueue="hq",
        hq_binary=str(profile.home / "bin/hq"),
        work_dir="/scratch/{username}",
        cores_per_node=128,
        directives=("--exclusive", "-C rome"),
        connection_interval_s=60.0,
        ssh=SshSettings(user="ada", key_file="~/.ssh/id_cluster", config_file="none", restricted=True),
    )


def test_add_says_what_is_wrong(say: Say, refused: Refuse) -> None:
    assert "hostname: expected the host that ssh connects to" in refused("computer", "add", "a")
    assert "label: expected a name" in refused("computer", "add", "--host", "h")
    assert "ssh.user: expected a name on that host" in refused(
        "computer", "add", "a", "--host", "h", "--user", "-l"
    )
    assert refused("computer", "add", "a", "--config", "/nothing").startswith("error: [Errno 2]")
    say(*ADD)
    assert "a computer 'lumi' exists" in refused(*ADD)


def test_add_from_a_file(profile: Profile, say: Say, tmp_path: Path) -> None:
    (tmp_path / "lumi.toml").write_text(
        'label = "lumi"\nhostname = "h"\npartition = "small"\nprepend_text = "module load hq"\n'
        "[ssh]\nport = 2222\n"
    )
    text = say("computer", "add", "other", "--config", str(tmp_path / "lumi.toml"), "--partition", "large")
    assert "prepend_text, which every job will run:\n  module load hq\n" in text
    found = load(profile, "other")
    assert (found.label, found.hostname, found.partition, found.ssh.port) == ("other", "h", "large", 2222)


@pytest.fixture
def web() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"label: daint\nhostname: daint\nhyperqueue: private-wheel\n")

        def log_message(self, *args: object) -> None:
            """Quietly."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/daint.yaml"
        server.shutdown()
        thread.join()


def test_add_from_an_address(profile: Profile, say: Say, refused: Refuse, web: str) -> None:
    assert "asks for hyperqueue = private-wheel" in refused("computer", "add", "--config", web)
    say("computer", "add", "--config", web, "--hyperqueue", "none")
    assert load(profile, "daint").hyperqueue == "none"
    assert "asks for hyperqueue = private-wheel" in refused("computer", "edit", "daint", "--config", web)


def test_the_open_server_is_spoken_of_loudly(say: Say) -> None:
    for text in (say(*ADD, "--hyperqueue", "private-wheel"), say("computer", "show", "lumi")):
        assert (
            "warning: private-wheel: the HyperQueue server that grange starts there has NO authentication"
            in text
        )
    assert "WITHOUT authentication" in say("computer", "add", "--help")


def test_add_makes_the_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "new"
    assert run(["--home", str(home), "computer", "list"]) == 1
    assert "there is no profile" in capsys.readouterr().err
    assert run(["--home", str(home), *ADD]) == 0
    assert run(["--home", str(home), "computer", "list"]) == 0
    assert "lumi.example.org" in capsys.readouterr().out
    assert stop_server(home / "postgres", force=True)


# ---------------------------------------------------------------- looking


def test_list_and_show(profile: Profile, say: Say) -> None:
    assert say("computer", "list") == "no computer yet: `grange computer add` makes one\n"
    say(*ADD, "--description", "the big one")
    say("computer", "duplicate", "lumi", "broken")
    say("computer", "duplicate", "lumi", "asleep")
    say("computer", "disable", "asleep")
    with profile.transaction() as cursor:
        identity = computers.computer_id(cursor, "broken")
        cursor.execute(
            "INSERT INTO connection (computer_id, failures, last_error, paused)"
            " VALUES (%s, 5, 'no route', true)",
            (identity,),
        )
        cursor.execute(
            "INSERT INTO allocation (computer_id, token, state, nodes, walltime_s)"
            " VALUES (%s, 'a', 'running', 1, 60)",
            (identity,),
        )
        cursor.execute(
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type)"
            " VALUES ('theirs', 'h', 'core.pbspro', 'core.ssh')"
        )
    lines = {line.split()[0]: line for line in say("computer", "list").splitlines()}
    assert lines["lumi"].split()[1:] == ["lumi.example.org", "ssh", "slurm", "none", "enabled"]
    assert "disabled" in lines["asleep"]
    assert "paused after 5 failures: no route" in lines["broken"]
    assert lines["broken"].endswith(" 1")
    assert "computers  asleep (disabled), broken (paused, 1 allocation), lumi, theirs (unusable)" in say(
        "status"
    )
    assert "only AiiDA can use it" in lines["theirs"]
    found = [json.loads(line) for line in say("computer", "list", "--json").splitlines()]
    states = ["disabled", "paused", "enabled", "unusable"]
    assert [line["label"] for line in found] == ["asleep", "broken", "lumi", "theirs"]
    assert [line["state"] for line in found] == states
    text = say("computer", "show", "lumi")
    for part in ("the big one", "lumi.example.org", "partition", "small", "ssh.user", "ada", "enabled"):
        assert part in text
    document = json.loads(say("computer", "show", "broken", "--json"))
    assert (document["summary"]["state"], document["computer"]["ssh"]["user"]) == ("paused", "ada")
    assert document["summary"]["last_error"] == "no route"
    assert say("computer", "resume", "broken") == "broken is tried again\n"
    assert say("computer", "resume", "lumi") == "lumi was not paused\n"
    assert json.loads(say("computer", "show", "broken", "--json"))["summary"]["state"] == "enabled"
    with profile.transaction() as cursor:
        cursor.execute("UPDATE connection SET failures = 2, last_error = 'no route'")
    assert "not reached, 2 times in a row: no route" in say("computer", "list")
    assert "not reached, 2 times in a row: no route" in say("computer", "show", "broken")


def test_status_counts_computers(profile: Profile, say: Say) -> None:
    assert "computers  " not in say("status")
    say(*ADD)
    say("computer", "duplicate", "lumi", "asleep")
    say("computer", "disable", "asleep")
    assert "computers  asleep (disabled), lumi\n" in say("status")
    assert json.loads(say("status", "--json"))["computers"] == {"asleep": "disabled", "lumi": "enabled"}


@pytest.mark.parametrize(
    "words",
    [["show", "lum"], ["edit", "lum", "--qos", "x"], ["enable", "lum"], ["delete", "lum"],
     ["duplicate", "lum", "x"], ["export", "lum"], ["resume", "lum"]],
)  # fmt: skip
def test_a_name_that_is_not_there(say: Say, refused: Refuse, words: list[str]) -> None:
    say(*ADD)
    said = refused("computer", *words).splitlines()
    assert said[0] == "error: there is no computer 'lum'; did you mean 'lumi'?"
    assert "`grange computer list`" in said[1]


# ---------------------------------------------------------------- changing


def test_edit_by_options(profile: Profile, say: Say, refused: Refuse) -> None:
    say(*ADD, "--cores-per-node", "4")
    before = load(profile)
    assert (
        say("computer", "edit", "lumi", "--qos", "long", "--cores-per-node", "0") == "computer lumi changed\n"
    )
    after = load(profile)
    assert (after.qos, after.cores_per_node, after.ssh) == ("long", None, before.ssh)
    assert say("computer", "edit", "lumi", "--qos", "long") == "nothing changed\n"
    assert "port: expected a whole number" in refused("computer", "edit", "lumi", "--port", "-1")


def test_edit_by_a_file(profile: Profile, say: Say, tmp_path: Path) -> None:
    say(*ADD)
    (tmp_path / "more.yaml").write_text("label: else\nqos: long\nmpiprocs_per_machine: 64\nusername: eve\n")
    say("computer", "edit", "lumi", "--config", str(tmp_path / "more.yaml"), "--user", "bob")
    found = load(profile)
    assert (found.qos, found.cores_per_node, found.partition, found.ssh.user) == ("long", 64, "small", "bob")


def editor(folder: Path, program: str) -> str:
    """An editor that changes a file by itself."""
    path = folder / "editor.py"
    path.write_text(
        f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n{program}\n"
    )
    return f"{sys.executable} {path}"


def test_edit_in_an_editor(
    profile: Profile, say: Say, refused: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(*ADD)
    # click asks for a later time of the file than it had
    later = "import os, time; os.utime(path, (time.time() + 5,) * 2)"
    change = "path.write_text(text.replace('small', {!r})); " + later
    monkeypatch.setenv("VISUAL", editor(tmp_path, change.format("large")))
    assert say("computer", "edit", "lumi") == "computer lumi changed\n"
    assert load(profile).partition == "large"
    monkeypatch.setenv("VISUAL", "true")
    assert say("computer", "edit", "lumi") == "nothing changed\n"
    monkeypatch.setenv("VISUAL", editor(tmp_path, "path.write_text(text.replace('large', '-x')); " + later))
    assert "partition: expected a partition" in refused("computer", "edit", "lumi")
    monkeypatch.setenv(
        "VISUAL", editor(tmp_path, "path.write_text(text.replace('\"lumi\"', '\"x\"')); " + later)
    )
    assert "a computer keeps its name" in refused("computer", "edit", "lumi")
    assert load(profile).partition == "large"


def test_enable_and_disable(profile: Profile, say: Say) -> None:
    say(*ADD)
    say("computer", "duplicate", "lumi", "other")
    for word, enabled in (("disable", False), ("enable", True)):
        assert say("computer", word, "lumi", "other") == f"{word}d: lumi, other\n"
        with profile.transaction() as cursor:
            assert computers.load(cursor, "other", user_id=profile.user_id).enabled is enabled


def test_duplicate(profile: Profile, say: Say, refused: Refuse) -> None:
    say(*ADD)
    say("computer", "duplicate", "lumi", "lumi-gpu", "--gpus-per-node", "8", "--partition", "gpu")
    found = load(profile, "lumi-gpu")
    assert (found.gpus_per_node, found.partition, found.hostname) == (8, "gpu", "lumi.example.org")
    assert "a computer 'lumi' exists" in refused("computer", "duplicate", "lumi-gpu", "lumi")


def test_delete(profile: Profile, say: Say, refused: Refuse) -> None:
    say(*ADD)
    say("computer", "duplicate", "lumi", "used")
    with profile.transaction() as cursor:
        identity = computers.computer_id(cursor, "used")
    profile.store(InstalledCode("/usr/bin/xtb", computer_id=identity))
    assert say("computer", "delete", "lumi", "--dry-run").startswith(
        "would delete computer lumi (lumi.example.org)"
    )
    assert "say --yes" in refused("computer", "delete", "lumi")
    assert load(profile)
    assert say("computer", "delete", "lumi", "--yes") == "computer lumi deleted\n"
    assert "no computer 'lumi'" in refused("computer", "delete", "lumi", "--yes")
    for words in (["--dry-run"], ["--yes"]):
        said = refused("computer", "delete", "used", *words)
        assert "'used' cannot be deleted: 1 node names it" in said
        assert "`grange computer disable used`" in said


@pytest.mark.parametrize("form", ["toml", "yaml"])
def test_export_and_back(profile: Profile, say: Say, tmp_path: Path, form: str) -> None:
    say(*ADD, "--prepend-text", "a\nb", "--directive", "--exclusive", "--proxy-jump", "gate")
    text = say("computer", "export", "lumi", "--format", form)
    document = tomllib.loads(text) if form == "toml" else yaml.safe_load(text)
    assert (document["label"], document["ssh"]["proxy_jump"]) == ("lumi", "gate")
    path = tmp_path / f"lumi.{form}"
    say("computer", "export", "lumi", "--format", form, "-o", str(path))
    assert path.read_text() == text
    before = load(profile)
    say("computer", "delete", "lumi", "-y")
    say("computer", "add", "--config", str(path))
    assert load(profile) == before


# ---------------------------------------------------------------- questions


def answered(profile: Profile, words: list[str], answers: list[str]) -> tuple[int, str]:
    """What a command prints on a terminal where somebody answers each question in turn."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "grange", "--home", str(profile.home), *words]
    said = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        asked = 0
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    block = os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
                said += block
                continue
            if asked < len(answers) and said.endswith(b": "):
                os.write(ours, answers[asked].encode() + b"\n")
                asked += 1
        status = child.wait(timeout=30)
    os.close(ours)
    assert asked == len(answers), said.decode()
    return status, said.decode()


def test_questions_for_what_is_missing(profile: Profile) -> None:
    answers = [
        "a b", "lumi",                  # a bad name is asked again
        "the big one", "",              # ssh
        "lumi.example.org", "ada", "/scratch/{username}", "slurm", "", "project_1", "128", "many", "", "",
        "hq",
    ]  # fmt: skip
    status, said = answered(profile, ["computer", "add", "--qos", "long"], answers)
    assert status == 0, said
    assert "Error: label: expected letters" in said
    assert "Error: memory_mb_per_node: expected a whole number" in said
    assert load(profile) == Computer(
        label="lumi",
        description="the big one",
        hostname="lumi.example.org",
        work_dir="/scratch/{username}",
        account="project_1",
        qos="long",
        cores_per_node=128,
        hyperqueue="hq",
        ssh=SshSettings(user="ada"),
    )


def test_no_questions_where_none_are_wanted(profile: Profile) -> None:
    status, said = answered(profile, ["computer", "add", "a", "--non-interactive"], [])
    assert status == 1
    assert "hostname: expected the host" in said


def test_delete_asks(profile: Profile, say: Say) -> None:
    say(*ADD)
    assert answered(profile, ["computer", "delete", "lumi"], ["n"])[0] == 130
    assert load(profile)
    assert answered(profile, ["computer", "delete", "lumi"], ["y"])[0] == 0
    with profile.transaction() as cursor:
        assert computers.list_computers(cursor, user_id=profile.user_id) == []
