"""`grange code` through its command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import grange as gr
from grange.cli.entry import run
from grange.core import computer as computers
from grange.core.code_file import code_of, read
from grange.core.errors import InputInvalid, InputMissing
from grange.core.profile import Profile
from grange.farm.computer import Computer, SshSettings

Say = Callable[..., str]

FIT = "#!/bin/sh\n. lib/helper.sh\n"


@pytest.fixture
def say(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command; its standard output and what it warned of. status: what it has to end with."""

    def run_it(*words: str, status: int = 0) -> str:
        ended = run(["--home", str(profile.home), *words])
        said = capsys.readouterr()
        assert ended == status, said.out + said.err
        return said.out + said.err

    return run_it


@pytest.fixture
def here(profile: Profile) -> str:
    """A computer that is this machine."""
    add(profile, Computer(label="here", transport="local", scheduler="direct", mpirun="env A=1 nice -n 0"))
    return "here"


def add(profile: Profile, computer: Computer) -> None:
    with profile.transaction() as cursor:
        computers.add(cursor, computer, user_id=profile.user_id)


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    """A folder of a portable code."""
    folder = tmp_path / "fit"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "fit.sh").write_text(FIT)
    (folder / "helper.sh").write_text("true\n")
    return folder


class TestAdding:
    def test_installed(self, profile: Profile, say: Say, here: str) -> None:
        text = say(
            *("code", "add", "pw", "--computer", here, "-x", "/opt/pw.x", "--with-mpi"),
            *("--prepend-text", "module load qe", "--append-text", "date", "--description", "plane waves"),
            *("--plugin", "quantumespresso.pw", "--use-double-quotes"),
        )
        code = profile.load_code("pw@here")
        assert text == (
            f"code pw@here added (id {code.id}); see whether all is well: grange code test pw@here\n"
        )
        assert type(code) is gr.InstalledCode
        assert (code.label, code.description) == ("pw", "plane waves")
        assert code.attributes == {
            "filepath_executable": "/opt/pw.x",
            "with_mpi": True,
            "input_plugin": "quantumespresso.pw",
            "prepend_text": "module load qe",
            "append_text": "date",
            "use_double_quotes": True,
            "wrap_cmdline_params": False,
        }

    def test_portable_and_containerised(self, profile: Profile, say: Say, fit: Path) -> None:
        say("code", "add", "fit", "--files", str(fit), "--filepath-executable", "bin/fit.sh")
        code = profile.load_code("fit")
        assert type(code) is gr.PortableCode
        assert code.read_files() == {"bin/fit.sh": FIT.encode(), "helper.sh": b"true\n"}
        say(
            *("code", "add", "inside", "-x", "pw.x", "--image", "/images/qe", "--wrap-cmdline-params"),
            *("--engine-command", "ch-run {image_name} -- sh -c"),
        )
        code = profile.load_code("inside")
        assert type(code) is gr.ContainerizedCode
        assert (code.engine_command, code.image_name) == ("ch-run {image_name} -- sh -c", "/images/qe")
        assert code.value.launch.line

    def test_what_is_there_stays_one(self, profile: Profile, say: Say, here: str) -> None:
        words = ("code", "add", "pw", "--computer", here, "-x", "/opt/pw.x")
        say(*words)
        code = profile.load_code("pw")
        assert say(*words) == f"code pw@here is there already (id {code.id})\n"
        assert f"another code pw@here (id {code.id})" in say(*words[:-1], "/opt/other.x", status=1)
        say(*words[:3], *words[5:])
        assert profile.load_code("pw@here").id == code.id

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "a code needs a name"),
            (["pw"], "filepath_executable: expected the path of a program"),
            (["pw", "-x", "pw.x", "--computer", "lumi"], "lumi"),
            (["pw", "-x", "pw.x", "--image", "qe"], "engine_command"),
            (["pw", "-x", "pw.x", "--engine-command", "{image_name}"], "image_name"),
            (["pw", "-x", "pw.x", "--engine-command", "ch-run", "--image", "qe"], "{image_name} in it"),
            (["pw", "-x", "pw.x", "--files", "/no/such/folder"], "a folder that exists"),
            (["pw@here", "-x", "pw.x"], "without"),
            (["7", "-x", "pw.x"], "no number"),
        ],
    )
    def test_refused(self, say: Say, words: list[str], message: str) -> None:
        assert message in say("code", "add", *words, status=1)


class TestFiles:
    def test_toml(self, profile: Profile, say: Say, fit: Path, tmp_path: Path) -> None:
        (tmp_path / "fit.toml").write_text(
            'label = "fit"\nfilepath_executable = "bin/fit.sh"\nfilepath_files = "fit"\nwith_mpi = false\n'
            'prepend_text = """\nmodule load a\nmodule load b\n"""\n'
        )
        text = say("code", "add", "--config", str(tmp_path / "fit.toml"), "--description", "mine")
        assert (
            "prepend_text, which every calculation of it will run:\n  module load a\n  module load b\n"
            in text
        )
        code = profile.load_code("fit")
        assert (code.with_mpi, code.description, sorted(code.files)) == (
            False,
            "mine",
            ["bin/fit.sh", "helper.sh"],
        )

    def test_what_aiida_writes(self, tmp_path: Path) -> None:
        file = tmp_path / "code.yaml"
        file.write_text(
            "label: pw\ndescription: ''\ndefault_calc_job_plugin: quantumespresso.pw\n"
            "use_double_quotes: false\nwith_mpi: null\nprepend_text: module load qe\nappend_text: ''\n"
            "computer: lumi\nfilepath_executable: /opt/pw.x\nwrap_cmdline_params: false\n"
            "engine_command: singularity exec {image_name}\nimage_name: qe.sif\n"
        )
        values = read(str(file))
        assert values["computer"] == "lumi"
        code = code_of(values, 3)
        assert isinstance(code, gr.ContainerizedCode)
        assert (code.label, code.computer_id, code.with_mpi) == ("pw", 3, None)
        file.write_text("label: pw\non_computer: true\nremote_abs_path: /opt/pw.x\ninput_plugin: x\n")
        assert code_of(read(str(file)), 3).attributes["input_plugin"] == "x"

    def test_from_the_web(self, profile: Profile, say: Say, served: str, here: str) -> None:
        say("code", "add", "--config", f"{served}/pw.yaml", "--computer", here)
        assert profile.load_code("pw@here").executable == "/opt/pw.x"
        assert "filepath_files" in say("code", "add", "--config", f"{served}/fit.yaml", status=1)

    def test_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "code.toml"
        file.write_text('label = "x"\nfilepath_exec = "y"\n')
        with pytest.raises(InputInvalid, match="a known key: filepath_executable"):
            read(str(file))
        with pytest.raises(InputMissing, match="filepath_executable"):
            code_of({"label": "x"}, None)
        with pytest.raises(InputInvalid, match="computer"):
            code_of({"filepath_executable": "x", "filepath_files": {"x": b""}, "computer": "lumi"}, 3)


@pytest.fixture
def served() -> Iterator[str]:
    """A web server with two files of codes."""
    pages = {
        "/pw.yaml": b"label: pw\ncomputer: lumi\nfilepath_executable: /opt/pw.x\n",
        "/fit.yaml": b"label: fit\nfilepath_executable: fit\nfilepath_files: /etc\n",
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[self.path])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestLooking:
    def test_list_and_show(self, profile: Profile, say: Say, here: str, fit: Path) -> None:
        assert say("code", "list") == "no code yet: `grange code add` makes one\n"
        say("code", "add", "echo", "--computer", here, "-x", "/bin/echo", "--with-mpi")
        say("code", "add", "fit", "--files", str(fit), "-x", "bin/fit.sh", "--description", "fits")
        campaign = gr.Campaign("used", profile)
        campaign.map(gr.ShellJob("echo {n}", code=profile.load_code("echo"), with_mpi=False), n=[1, 2, 3])
        campaign.map(gr.ShellJob("true"))
        campaign.run(progress=False)
        lines = say("code", "list").splitlines()
        assert lines[0].split() == ["code", "id", "kind", "program", "mpi", "used", "description"]
        assert [line.split()[0] for line in lines[1:]] == ["echo@here", "fit"]
        assert lines[1].split()[2:] == ["installed", "/bin/echo", "yes", "3"]
        assert lines[2].split()[2:] == ["portable", "bin/fit.sh", "fits"]
        assert len(say("code", "list", "--computer", here).splitlines()) == 2
        everything = [json.loads(line) for line in say("code", "list", "--all", "--json").splitlines()]
        assert [(line["label"], line["filepath_executable"], line["uses"]) for line in everything] == [
            ("", "true", 1),
            ("echo", "/bin/echo", 3),
            ("fit", "bin/fit.sh", 0),
        ]
        text = say("code", "show", "echo@here")
        assert text.splitlines()[0] == "echo@here"
        assert ["used", "by", "3", "processes"] in [line.split() for line in text.splitlines()]
        report = json.loads(say("code", "show", "fit", "--json"))
        assert (report["name"], report["files"]) == ("fit", ["bin/fit.sh", "helper.sh"])
        assert report["attributes"]["filepath_executable"] == "bin/fit.sh"
        assert "did you mean 'echo@here'" in say("code", "show", "echo@her", status=1)

    def test_delete(self, profile: Profile, say: Say) -> None:
        say("code", "add", "echo", "-x", "/bin/echo")
        say("code", "add", "unused", "-x", "/bin/false")
        campaign = gr.Campaign("used", profile)
        campaign.map(gr.ShellJob("{code} {n}"), code=profile.load_code("echo"), n=[1, 2])
        campaign.submit()
        for more in ([], ["--dry-run"], ["--yes"]):
            assert "2 processes have used it" in say("code", "delete", "echo", *more, status=1)
        assert "would delete the code unused" in say("code", "delete", "unused", "--dry-run")
        assert "say --yes" in say("code", "delete", "unused", status=1)
        assert say("code", "delete", "unused", "--yes") == "code unused deleted\n"
        assert [line.split()[0] for line in say("code", "list").splitlines()[1:]] == ["echo"]


class TestTesting:
    def findings(self, say: Say, *words: str, status: int = 0) -> list[tuple[str, str, str]]:
        lines = say("code", "test", *words, "--json", status=status).splitlines()
        found = [json.loads(line) for line in lines]
        return [(one["name"], one["state"], one["detail"]) for one in found]

    def test_a_program_that_is_there(self, say: Say, here: str, tmp_path: Path) -> None:
        say("code", "add", "sh", "--computer", here, "-x", "/bin/sh", "--with-mpi")
        found = self.findings(say, "sh@here")
        assert [one[:2] for one in found] == [("program", "ok"), ("mpirun", "ok")]
        assert found[0][2] == "/bin/sh on here"
        assert found[1][2].endswith("/nice on here")
        assert "✓ program" in say("code", "test", "sh@here")
        # by what the lines before the program do, whatever they print, and on this machine
        (tmp_path / "pw.x").write_text("#!/bin/sh\n")
        (tmp_path / "pw.x").chmod(0o755)
        say("code", "add", "pw", "-x", "pw.x", "--prepend-text", f"echo hello\nPATH={tmp_path}:$PATH")
        assert self.findings(say, "pw") == [("program", "ok", f"{tmp_path}/pw.x on this machine")]
        assert self.findings(say, "pw", "--computer", here) == [("program", "ok", f"{tmp_path}/pw.x on here")]
        assert "is on here, not on there" in say("code", "test", "sh@here", "--computer", "there", status=1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["-x", "/no/such/program"], "/no/such/program is not on here"),
            (["-x", "no-such-program"], "no-such-program is not on here"),
            (["-x", "/etc/passwd"], "/etc/passwd on here may not be run"),
            (["-x", "/etc"], "/etc on here is a folder"),
            (["-x", "/bin/sh", "--prepend-text", "echo no modules here >&2; exit 3"], "no modules here"),
            (
                ["-x", "pw.x", "--image", "/no/image", "--engine-command", "env A=1 no-engine {image_name}"],
                "no-engine is not on here",
            ),
            (
                ["-x", "x", "--image", "/no/image", "--engine-command", "sh {image_name}"],
                "/no/image is not on here",
            ),
        ],
    )
    def test_what_is_wrong_is_said(self, say: Say, here: str, options: list[str], message: str) -> None:
        say("code", "add", "pw", "--computer", here, *options)
        found = self.findings(say, "pw", status=1)
        assert [detail for _, state, detail in found if state == "failed" and message in detail], found

    def test_portable(self, profile: Profile, say: Say, fit: Path, here: str) -> None:
        say("code", "add", "fit", "--files", str(fit), "-x", "bin/fit.sh")
        for more in ([], ["--computer", here]):
            found = self.findings(say, "fit", *more)
            assert [one[:2] for one in found] == [("files", "ok"), ("interpreter", "ok")]
        (fit / "bin" / "fit.sh").write_text("no first line\n")
        say("code", "add", "broken", "--files", str(fit), "-x", "bin/fit.sh")
        ((name, state, detail),) = self.findings(say, "broken", status=1)
        assert (name, state) == ("files", "failed")
        assert "no program" in detail
        for pack in (profile.home / "store" / "packs").rglob("*.zip"):
            pack.chmod(0o600)
            pack.unlink()
        assert self.findings(say, "fit", status=1)[0][:2] == ("files", "failed")

    def test_containerised(self, say: Say, here: str, tmp_path: Path) -> None:
        say(
            *("code", "add", "inside", "--computer", here, "-x", "pw.x", "--image", str(tmp_path)),
            *("--engine-command", 'env USER=me sh -b "$PWD" {image_name} --'),
        )
        assert [one[:2] for one in self.findings(say, "inside")] == [
            ("container engine", "ok"),
            ("image", "ok"),
        ]

    def test_a_computer_that_is_not_reached(self, profile: Profile, say: Say) -> None:
        ssh = SshSettings(port=1, config_file="none", user="nobody", connect_timeout_s=2)
        add(profile, Computer(label="far", hostname="127.0.0.1", ssh=ssh, connection_interval_s=0.1))
        say("code", "add", "pw", "--computer", "far", "-x", "/opt/pw.x")
        with profile.transaction() as cursor:
            computers.enable(cursor, ["far"], user_id=profile.user_id, enabled=False)
        assert "the computer far is disabled" in say("code", "test", "pw", status=1)
