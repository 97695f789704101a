"""Dry runs: the folder and script that would be run, and nothing stored."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import grange as gr
from grange.core import computer as computers
from grange.core.profile import Profile
from grange.farm.computer import Computer


class Job(gr.CalcJob):
    """Says what it finds, into a file and both streams."""

    class Inputs:
        name: str
        level: int = 2

    def prepare(self, inputs: Any) -> gr.Command:
        script = 'cat; echo warned >&2; echo $LEVEL-$OMP_NUM_THREADS "$1" > out/result; ls -R; exit 3'
        return gr.Command(
            ["sh", "-c", script, "sh", f"it's {inputs.name}; $HOME"],
            files={"in/given.txt": f"hello {inputs.name}\n", "out/nothing": b""},
            environment={"LEVEL": str(inputs.level), "QUOTED": "a 'b' $c"},
            stdin="in/given.txt",
            stdout="log/run.log",
            retrieve=["out/*"],
        )


def tables(profile: Profile) -> dict[str, int]:
    """How many rows there are of everything."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        found = {}
        for (name,) in cursor.fetchall():
            cursor.execute(f'SELECT count(*) FROM "{name}"')
            found[name] = cursor.fetchone()[0]  # type: ignore[index]
    return found


def kept(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def retrieved(profile: Profile, campaign_name: str, job: Any, /, **inputs: Any) -> dict[str, bytes]:
    campaign = gr.Campaign(campaign_name, profile)
    campaign.map(job, **inputs)
    campaign.run(progress=False)
    process = campaign.results()["process"][0]
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT target_id FROM link WHERE source_id = %s AND label = 'retrieved'", (int(process),)
        )
        [(node_id,)] = cursor.fetchall()
    return dict(profile.load(node_id)[0].value)


def test_the_script_does_what_the_runner_does(profile: Profile, tmp_path: Path) -> None:
    made = gr.dry_run(Job, name="x y", folder=tmp_path / "dry")
    assert made.folder == tmp_path / "dry" / "Job-00001"
    assert made.script == made.folder / "_grange_run.sh"
    assert str(made.folder) in str(made)
    assert sorted(
        str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()
    ) == [
        "_grange_run.sh",
        "in/given.txt",
        "out/nothing",
    ]
    assert made.retrieve == ("log/run.log", "stderr.txt", "out/*")
    script = made.script.read_text()
    assert "# It needs: 1 cpus.\n" in script
    assert "# Kept: log/run.log, stderr.txt, out/*.\n" in script
    # elsewhere, and from any folder
    moved = Path(shutil.move(made.folder, tmp_path / "elsewhere"))
    (moved / "_grange_run.sh").rename(tmp_path / "run.sh")
    text = (tmp_path / "run.sh").read_text().replace('"$(dirname "$0")"', str(moved))
    assert subprocess.run(["bash", "-c", text], check=False, cwd="/").returncode == 3
    names = ("log/run.log", "stderr.txt", "out/result", "out/nothing")
    assert kept(moved, names) == retrieved(profile, "real", Job, name="x y")
    assert b"hello x y" in kept(moved, names)["log/run.log"]
    assert kept(moved, names)["out/result"] == b"2-1 it's x y; $HOME\n"


def test_nothing_is_stored_and_no_profile_is_needed(profile: Profile, tmp_path: Path) -> None:
    before = tables(profile)
    first = gr.dry_run(Job, {"name": "a"}, folder=tmp_path, level=7)
    second = gr.dry_run(Job, name="b", folder=tmp_path, profile=profile)
    with gr.recording(profile):
        third = gr.dry_run(
            gr.ShellJob("cat {x}.txt", files={"{y}.txt": "{x}"}, label="the job/1"), x=1, folder=tmp_path
        )
    assert [made.folder.name for made in (first, second, third)] == [
        "Job-00001",
        "Job-00002",
        "the_job_1-00001",
    ]
    assert "export LEVEL=7\n" in first.script.read_text()
    assert tables(profile) == before
    assert not (profile.home / "spool").exists()


def test_what_a_call_could_not_be_run_with_is_refused(profile: Profile, tmp_path: Path) -> None:
    def function(x: int) -> int:
        return x

    with pytest.raises(gr.GrangeError, match="dry_run: expected a CalcJob class or a ShellJob"):
        gr.dry_run(function, x=1, folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(gr.GrangeError, match="what a workflow calls is known only as it runs"):
        gr.dry_run(gr.workflow(function), x=1)  # type: ignore[arg-type]
    with pytest.raises(gr.GrangeError, match="name: expected str"):
        gr.dry_run(Job, name=3, folder=tmp_path)
    with pytest.raises(gr.GrangeError, match="did you mean 'level'"):
        gr.dry_run(Job, name="x", levl=3, folder=tmp_path)
    with pytest.raises(gr.GrangeError, match=r"there is no profile .* give profile="):
        gr.dry_run(Job, name="x", executor="lumi", folder=tmp_path)
    with pytest.raises(gr.GrangeError, match=r"there is no profile .* give profile="):
        gr.dry_run(gr.ShellJob("pw@lumi -v"), folder=tmp_path)
    with pytest.raises(gr.GrangeError, match="lumi"):
        gr.dry_run(Job, name="x", executor="lumi", folder=tmp_path, profile=profile)
    assert list(tmp_path.glob("Job*")) == []


def test_what_a_computer_and_a_code_want_is_in_the_script(profile: Profile, tmp_path: Path) -> None:
    machine = Computer(
        label="big", transport="local", scheduler="slurm", work_dir=str(tmp_path / "there"), cores_per_node=4,
        prepend_text="export SITE=big", mpirun="env WRAPPED={tot_num_mpiprocs}/{nodes}",
    )  # fmt: skip
    program = tmp_path / "program.sh"
    program.write_text("#!/bin/sh\necho $SITE $WRAPPED $LOADED $OMP_NUM_THREADS $* > result\n")
    with profile.transaction() as cursor:
        computers.add(cursor, machine, user_id=profile.user_id)
    code = gr.PortableCode(
        label="prog",
        filepath_executable="program.sh",
        filepath_files=tmp_path,
        prepend_text="export LOADED=yes",
    )
    profile.store(code)
    job = gr.ShellJob("prog {x} out", code=code, with_mpi=True, monitors=[gr.Monitor("stdout.txt", "nan")],
                      stash=gr.Stash(["wfc"], "/scratch"))  # fmt: skip
    before = tables(profile)
    made = gr.dry_run(
        job, x="it's", folder=tmp_path / "dry", executor="big", profile=profile,
        resources=gr.Resources(cpus=8, mpi_procs=8, walltime_s=60, memory_mb=100),
    )  # fmt: skip
    assert tables(profile) == before
    assert made.resources.nodes == 2
    script = made.script.read_text()
    assert "# It needs on big: 8 cpus, 2 nodes, 100 MiB, 60 s.\n" in script
    assert "# Monitor of stdout.txt, every 30 s.\n# Stays there: wfc, in /scratch.\n" in script
    subprocess.run([made.script], check=True)
    assert (made.folder / "result").read_text() == "big 8/2 yes 1 it's out\n"


def test_the_first_calls_of_a_campaign(profile: Profile, tmp_path: Path) -> None:
    campaign = gr.Campaign("dry", profile)
    campaign.map(Job, name=["a", "a", "b", "b"], level=[5, 6, 5, 6])
    campaign.map(gr.ShellJob("echo {x}"), x=range(1000))
    before = tables(profile)
    made = campaign.dry_run(6, folder=tmp_path)
    assert [one.folder.name for one in made] == [
        *(f"Job-0000{n}" for n in (1, 2, 3, 4)),
        "echo-00001",
        "echo-00002",
    ]
    assert [(one.folder / "in/given.txt").read_text() for one in made[:4]] == ["hello a\n"] * 2 + [
        "hello b\n"
    ] * 2
    assert tables(profile) == before
    assert len(campaign.dry_run(folder=tmp_path)) == 1
