"""Computers as TOML and YAML, of a folder and of the web, of ours and of AiiDA's."""

from __future__ import annotations

import contextlib
import threading
import time
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.core import computer_file, web_file
from grange.core.computer_check import checked
from grange.core.computer_file import Format, computer_of, document_of, parse, read, write
from grange.core.errors import InputInvalid, InputMissing
from grange.farm.computer import Computer, SshSettings

OURS = """\
label = "lumi"
hostname = "lumi.example.org"
scheduler = "slurm"
partition = "small"
cores_per_node = 128
connection_interval_s = 30
directives = ["--constraint=rome"]
prepend_text = '''
module load hq
'''

[ssh]
user = "ada"
port = 2222
"""

AIIDAS = """\
---
label: daint-mc
hostname: daint.example.org
description: Hybrid nodes
transport: core.ssh
scheduler: core.slurm
shebang: '#!/bin/bash -l'
work_dir: /scratch/snx3000/{username}/aiida_run/
mpirun_command: srun -n {tot_num_mpiprocs} --ntasks-per-node {num_mpiprocs_per_machine}
mpiprocs_per_machine: 36
default_memory_per_machine: 62500000
use_double_quotes: false
prepend_text: |
  #SBATCH --account=s1000
  #SBATCH --constraint=mc
  module load cray
append_text: ' '
"""


def test_toml() -> None:
    assert computer_of(parse(OURS)) == Computer(
        label="lumi",
        hostname="lumi.example.org",
        partition="small",
        cores_per_node=128,
        connection_interval_s=30.0,
        directives=("--constraint=rome",),
        prepend_text="module load hq\n",
        ssh=SshSettings(user="ada", port=2222),
    )


def test_yaml_of_aiida() -> None:
    assert computer_of(parse(AIIDAS)) == Computer(
        label="daint-mc",
        hostname="daint.example.org",
        description="Hybrid nodes",
        work_dir="/scratch/snx3000/{username}/aiida_run",
        shebang="#!/bin/bash -l",
        mpirun="srun -n {tot_num_mpiprocs} --ntasks-per-node {procs_per_node}",
        cores_per_node=36,
        memory_mb_per_node=61035,
        account="s1000",
        directives=("--constraint=mc",),
        prepend_text="module load cray\n",
        append_text=" ",
    )


def test_settings_of_aiida() -> None:
    text = (
        "username: ada\nport: 22\nlook_for_keys: true\nkey_filename: ''\ntimeout: 60\nproxy_jump: gate\n"
        "proxy_command: ''\nkey_policy: AutoAddPolicy\nsafe_interval: 15\n"
        "mpirun_command: [mpirun, -np, '4']\ntransport: ssh_async\nscheduler: direct\n"
        "mpiprocs_per_machine: null\n"
    )
    base = Computer(label="a", hostname="h")
    assert computer_of(parse(text), base) == Computer(
        label="a",
        hostname="h",
        transport="openssh",
        scheduler="direct",
        mpirun="mpirun -np 4",
        connection_interval_s=15.0,
        ssh=SshSettings(user="ada", port=22, proxy_jump="gate", connect_timeout_s=60.0),
    )


def test_options_replace_what_a_file_says() -> None:
    values = parse(OURS)
    values.update(parse("partition = 'large'\n"))
    assert computer_of(values).partition == "large"
    base = computer_of(values)
    changed = computer_of({"ssh": {"port": 0}, "qos": "long"}, base)
    assert (changed.ssh, changed.qos, changed.partition) == (SshSettings(user="ada"), "long", "large")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labl: x", "config: labl: expected a known key: label?"),
        ("zzz = 1", "config: zzz: expected a known key: label, hostname"),
        ("[ssh]\nusr = 'a'", "config: ssh: usr: expected a known key: user?"),
        ("ssh: 3", "config: ssh: expected keys and values"),
        ("[1, 2]", "expected keys and values"),
        ("label: [", "TOML or YAML: while parsing"),
        ("label = x\n", "TOML: Invalid value"),
        ("label: x\nhostname: 3", "hostname: expected the name or address of a host.*got 3 "),
        ("<!DOCTYPE html>", "take the address of the raw file"),
        ("label: &a [1]\npartition: *a", "references .* are not read"),
        ("label: !!python/object/apply:os.system [date]", "could not determine a constructor"),
        ("[" * 5000, "TOML"),
        ("a: " + "[" * 5000, "TOML or YAML"),
        ("label: 2026-13-45", "TOML or YAML: month must be"),
        ("work_dir: /scratch/{{ project }}/x", "in the place of {{ project }}"),
        ("prepend_text: '{% if x %}'", "in the place of {% if x %}"),
        ("proxy_command: ssh -W %h:%p gate", "proxy_jump, or a ProxyCommand"),
        ("default_memory_per_machine: 10 GB", "memory in kB"),
        ("mpirun_command: [1]", "mpirun"),
        ("mpirun_command: run {num_cores_per_mpiproc}", "no other fields"),
        ("scheduler: core.pbspro", "scheduler: expected one of direct, slurm"),
        ("1: x", "config: 1: expected a known key"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputInvalid, match=words):
        computer_of({"label": "a", "hostname": "h", **parse(text)})


def test_what_has_to_be_said() -> None:
    with pytest.raises(InputMissing, match="label: expected a name"):
        computer_of({"hostname": "h"})
    with pytest.raises(InputMissing, match="hostname: expected the host"):
        computer_of({"label": "a", "transport": "openssh"})
    assert computer_of({"label": "a", "transport": "local"}).hostname == "localhost"


# ---------------------------------------------------------------- there and back

_line = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40)
_lines = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80)
_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
_seconds = st.floats(1, 1e6) | st.integers(1, 10**6).map(float)

_computers = st.builds(
    Computer,
    label=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(
        lambda label: label not in ("local", "hyperqueue")
    ),
    hostname=_names,
    description=_line,
    transport=st.sampled_from(["local", "ssh", "openssh"]),
    scheduler=st.sampled_from(["direct", "slurm"]),
    hyperqueue=st.sampled_from(["none", "hq", "private-wheel"]),
    ssh=st.builds(
        SshSettings,
        user=_names,
        port=st.integers(0, 65535),
        key_file=_names.map("~/{}".format),
        restricted=st.booleans(),
        keepalive_s=_seconds,
    ),
    cores_per_node=st.none() | st.integers(1, 1000),
    partition=st.just("") | _names,
    directives=st.lists(_names.map("--{}".format).filter(lambda text: text[2].isalpha()), max_size=3)
    .filter(lambda found: not any(d[2:5] in ("job", "arr", "wai", "par", "tes") for d in found))
    .map(tuple),
    prepend_text=_lines,
    append_text=_lines,
    connection_interval_s=_seconds,
)


@given(_computers, st.sampled_from(["toml", "yaml"]))
@settings(deadline=None)
def test_what_is_written_is_read_as_the_same(computer: Computer, form: Format) -> None:
    computer = checked(computer)
    if "#SBATCH" not in computer.prepend_text:
        text = write(computer, form)
        assert computer_of(parse(text, form)) == computer
        assert computer_of(parse(text)) == computer
        assert write(computer_of(parse(text, form)), form) == text


def test_each_is_what_its_name_says() -> None:
    computer = computer_of(parse(OURS))
    assert tomllib.loads(write(computer)) == yaml.safe_load(write(computer, "yaml")) == document_of(computer)
    assert 'prepend_text = """\nmodule load hq\n"""' in write(computer)
    assert "prepend_text: |\n  module load hq\n" in write(computer, "yaml")


EXAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "computers").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_files(path: Path) -> None:
    computer = computer_of(read(str(path)))
    assert computer_of(parse(write(computer))) == computer


def test_there_are_example_files() -> None:
    assert EXAMPLES


# ---------------------------------------------------------------- files and addresses


def test_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lumi.toml").write_text(OURS)
    (tmp_path / "daint.yml").write_text(AIIDAS)
    assert computer_of(read("~/lumi.toml")).label == "lumi"
    assert computer_of(read(str(tmp_path / "daint.yml"))).label == "daint-mc"
    (tmp_path / "large").write_bytes(b"#" * (computer_file.LARGEST + 1))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, words in (("large", "at most 256 KiB"), ("binary", "UTF-8")):
        with pytest.raises(InputInvalid, match=words):
            read(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "nothing"))


class Pages(BaseHTTPRequestHandler):
    """The web."""

    pages: ClassVar[dict[str, bytes]] = {
        "/lumi.toml": OURS.encode(),
        "/daint.yaml": AIIDAS.encode(),
        "/binary": b"\xff\xfe",
        "/large": b"#" * (computer_file.LARGEST + 1),
        "/page": b"\n<html></html>",
    }
    moves: ClassVar[dict[str, str]] = {
        "/moved": "/lumi.toml",
        "/file": "file:///etc/passwd",
        "/ftp": "ftp://127.0.0.1/x",
        "/loop": "/loop",
    }

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.moves:
            self.send_response(302)
            self.send_header("Location", self.moves[path])
            self.end_headers()
        elif path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    self.wfile.write(b"#")
                    time.sleep(0.1)
        elif path in self.pages:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.pages[path])
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        """Quietly."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/lumi.toml", "/lumi.toml?raw=1#x", "/daint.yaml", "/moved"])
def test_an_address(web: str, path: str) -> None:
    assert computer_of(read(web + path)).label == ("daint-mc" if "daint" in path else "lumi")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nothing", "the server says 404"),
        ("/binary", "UTF-8"),
        ("/large", "at most 256 KiB"),
        ("/page", "raw file"),
        ("/file", "an address that can be reached|the server says 302"),
        ("/ftp", "an address that can be reached|the server says 302"),
        ("/loop", "the server says 302"),
    ],
)
def test_an_address_that_does_not_help(web: str, path: str, words: str) -> None:
    with pytest.raises(InputInvalid, match=words):
        read(web + path)


def test_a_server_that_drips_is_left(web: str) -> None:
    begun = time.monotonic()
    with pytest.raises(InputInvalid, match=r"an answer within 0\.5 s"):
        web_file.fetch(web + "/slow", largest=1000, timeout_s=0.5)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://127.0.0.1/x", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("http://", "http:// or https://"),
        ("http://[::1", "a URL"),
        ("http://127.0.0.1:1/x", "can be reached: .*refused"),
        ("http://127.0.0.1:99999/x", "can be reached"),
    ],
)
def test_an_address_that_is_none(address: str, words: str) -> None:
    with pytest.raises(InputInvalid, match=words):
        read(address)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(InputInvalid) as caught:
        read("https://ada:secret@example.org/x.toml")
    assert "secret" not in str(caught.value)
