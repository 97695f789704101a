"""The scripts of allocations: what they ask Slurm for, and how they run, under a shell and without Slurm."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grange.farm.allocation import (
    AllocationPaths,
    AllocationRequest,
    job_script,
    new_token,
    request_on,
    settings_text,
    term_before_s,
)
from grange.farm.computer import Computer, SshSettings

PATHS = AllocationPaths("/home/rita/grange", "/home/rita/grange/bin/0a1b")
REQUEST = AllocationRequest(token="abc", walltime_s=7200)
COMPUTER = Computer(label="lumi", hyperqueue="hq")

#: A worker that leaves a mark, waits for the stop mark or its time, and ends with the status it was given.
WORKER = """\
import os, sys, time
verb, folder = sys.argv[1:]
os.write(1, f"{verb} {os.environ.get('MODULE', '')}\\n".encode())  # whole: two of us may write at once
open(os.path.join(folder, "began"), "w").close()
end = time.monotonic() + float(os.environ["LASTS_S"])
while time.monotonic() < end and not os.path.exists(os.path.join(folder, "stop")):
    time.sleep(0.02)
open(os.path.join(folder, "ended"), "w").close()
sys.exit(int(os.environ["STATUS"]))
"""


def directives(script: str) -> dict[str, str]:
    """What a script asks Slurm for, as Slurm reads it: options up to the first line of the shell."""
    lines = script.splitlines()
    assert lines[0].startswith("#!")
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    return dict(
        (*option.removeprefix("--").split("=", 1), "")[:2] for line in asked for option in shlex.split(line)
    )


def test_one_node_without_any_wish() -> None:
    assert directives(job_script(COMPUTER, REQUEST, PATHS)) == {
        "job-name": "grange-abc",
        "output": "log",
        "open-mode": "append",
        "nodes": "1",
        "ntasks-per-node": "1",
        "time": "02:00:00",
        "signal": "B:TERM@60",
        "no-requeue": "",
    }


def test_all_wishes() -> None:
    computer = replace(
        COMPUTER, partition="gpu", account="project_46", qos="short",
        directives=("--constraint=a100", "--time=5"),
        cores_per_node=64, memory_mb_per_node=256_000, gpus_per_node=4,
    )  # fmt: skip
    request = request_on(computer, nodes=8, walltime_s=129_600, idle_s=60)
    asked = directives(job_script(computer, request, PATHS))
    expected = {
        "job-name": f"grange-{request.token}", "nodes": "8", "cpus-per-task": "64", "mem": "256000M",
        "gres": "gpu:4", "partition": "gpu", "account": "project_46", "qos": "short", "constraint": "a100",
        "no-kill": "",
        "time": "5",  # the person's own lines come last
    }  # fmt: skip
    assert {name: asked[name] for name in expected} == expected
    assert request.cores == 512


def test_the_signal_leaves_time_to_work() -> None:
    assert [term_before_s(walltime_s) for walltime_s in (60, 120, 600, 86400)] == [6, 12, 60, 60]


def test_what_the_worker_is_told() -> None:
    request = replace(REQUEST, nodes=2, cores_per_node=8, memory_mb_per_node=4000, gpus=1, idle_s=90)
    told = json.loads(settings_text(COMPUTER, request, PATHS))
    assert told == {
        "format": 1, "hyperqueue": "hq", "hq_program": "hq", "wheel": "",
        "server": "/home/rita/grange/server", "cores": 8, "memory_mb": 4000, "gpus": 1,
        "nodes": 2, "idle_s": 90, "walltime_s": 7200, "term_before_s": 60,
    }  # fmt: skip
    sent = json.loads(settings_text(replace(COMPUTER, hq_binary="/opt/hq"), request, PATHS))
    assert sent["hq_program"] == "/home/rita/grange/bin/0a1b/hq"
    wheel = json.loads(settings_text(replace(COMPUTER, hyperqueue="private-wheel"), REQUEST, PATHS))
    assert (wheel["wheel"], wheel["hq_program"]) == ("/home/rita/grange/bin/0a1b/wheel", "")
    assert wheel["cores"] is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("partition", "a b", "partition: expected a name without blanks"),
        ("account", "a\n#SBATCH --uid=0", "account: expected a name without blanks"),
        ("directives", ("--a\n--b",), "directives: expected one line"),
    ],
)
def test_settings_stay_in_their_line(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job_script(replace(COMPUTER, **{field: value}), REQUEST, PATHS)  # type: ignore[arg-type]


def test_tokens_differ() -> None:
    assert len({new_token() for _ in range(1000)}) == 1000


class Started:
    """A script that runs under a shell, with a worker of ours in the agent's place."""

    def __init__(
        self,
        tmp_path: Path,
        shell: str,
        computer: Computer = COMPUTER,
        *,
        lasts_s: float = 30,
        status: int = 0,
    ) -> None:
        paths = AllocationPaths(f"{tmp_path}/it's a $HOME", f"{tmp_path}/it's a $HOME/bin")
        computer = replace(
            computer, python=sys.executable, prepend_text="set -eu\nMODULE=loaded; export MODULE\n"
        )
        computer = replace(computer, append_text='echo "appended $grange_status"')
        self.folder = Path(paths.folder("abc"))
        self.folder.mkdir(parents=True, exist_ok=True)
        Path(paths.code_dir).mkdir(exist_ok=True)
        Path(paths.agent).write_text(WORKER)
        script = self.folder / "job.sh"
        script.write_text(job_script(computer, REQUEST, paths))
        environment = {**os.environ, "LASTS_S": str(lasts_s), "STATUS": str(status)}
        self.shell = subprocess.Popen(
            [shell, str(script)], stdout=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)

    def end(self) -> tuple[int, list[str]]:
        said, _ = self.shell.communicate(timeout=30)
        return self.shell.returncode, said.splitlines()


shells = pytest.mark.parametrize("shell", ["bash", "dash"])


@shells
@pytest.mark.parametrize("status", [0, 3, 200])
def test_a_script_ends_as_its_worker_does(tmp_path: Path, shell: str, status: int) -> None:
    started = Started(tmp_path, shell, lasts_s=0.1, status=status)
    assert started.end() == (status, ["worker loaded", f"appended {status}"])


@shells
def test_a_signal_becomes_a_mark_and_the_script_waits(tmp_path: Path, shell: str) -> None:
    started = Started(tmp_path, shell, status=143)
    started.wait_for("began")
    started.shell.send_signal(signal.SIGTERM)
    assert started.end() == (0, ["worker loaded", "appended 0"])
    assert (started.folder / "stop").exists()
    assert (started.folder / "ended").exists()


@shells
def test_a_script_that_was_stopped_before_it_began_ends_at_once(tmp_path: Path, shell: str) -> None:
    first = Started(tmp_path, shell)
    first.wait_for("began")
    (first.folder / "stop").touch()
    assert first.end()[0] == 0
    assert Started(tmp_path, shell).end() == (0, [])


@shells
def test_of_two_jobs_of_one_allocation_the_first_to_begin_is_it(tmp_path: Path, shell: str) -> None:
    first = Started(tmp_path, shell)
    first.wait_for("began")
    assert Started(tmp_path, shell).end() == (0, [])
    first.shell.send_signal(signal.SIGTERM)
    assert first.end() == (0, ["worker loaded", "appended 0"])


@shells
def test_where_nothing_runs_on_the_login_node_the_service_ends_with_the_workers(
    tmp_path: Path, shell: str
) -> None:
    restricted = replace(COMPUTER, ssh=SshSettings(restricted=True))
    status, said = Started(tmp_path, shell, restricted, lasts_s=0.3, status=5).end()
    assert status == 5
    assert sorted(said) == ["appended 5", "serve loaded", "worker loaded"]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    paths = AllocationPaths(str(tmp_path / "gone"), str(tmp_path))
    script = tmp_path / "job.sh"
    script.write_text(job_script(COMPUTER, REQUEST, paths))
    assert subprocess.run(["bash", str(script)], capture_output=True, check=False).returncode == 73


def test_a_worker_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    computer = replace(COMPUTER, python="/nowhere/python")
    folder = tmp_path / "a"
    folder.mkdir()
    paths = AllocationPaths(str(tmp_path), str(tmp_path))
    Path(paths.folder("abc")).mkdir(parents=True)
    script = folder / "job.sh"
    script.write_text(job_script(computer, REQUEST, paths))
    assert subprocess.run(["bash", str(script)], capture_output=True, check=False).returncode == 127


def test_an_interpreter_below_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "my env").mkdir()
    (tmp_path / "my env" / "python").symlink_to("/bin/echo")
    paths = AllocationPaths(str(tmp_path), str(tmp_path / "code"))
    Path(paths.folder("abc")).mkdir(parents=True)
    script = tmp_path / "job.sh"
    script.write_text(job_script(replace(COMPUTER, python="~/my env/python"), REQUEST, paths))
    ran = subprocess.run(
        ["bash", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    assert ran.stdout.split() == [paths.agent, "worker", paths.folder("abc")]
