"""Calculations that were run without grange, taken into the graph."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import grange as gr
from grange.core import computer as computers
from grange.core.profile import Profile
from grange.farm.computer import Computer
from grange.farm.local_transport import LocalTransport


class Energy(gr.CalcJob):
    """Of a molecule, as a program has written it."""

    class Inputs:
        molecule: str
        charge: int = 0

    class Outputs:
        energy: float
        log: gr.SingleFile
        dipole: float | None = None

    UNCONVERGED = gr.ExitCode(310, "not converged")

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command(
            ["sh", "-c", "echo energy $(wc -c < mol.inp); echo done > out/log"],
            files={"mol.inp": f"{inputs.molecule} {inputs.charge}\n", "out/empty": b""},
            retrieve=["out/*", "*.json"],
        )

    def parse(self, files: Any) -> Any:
        words = files.text("stdout.txt").split()
        if "UNCONVERGED" in words:
            return self.UNCONVERGED
        return {"energy": float(words[1]), "log": gr.SingleFile(files["out/log"], "log")}

    @classmethod
    def import_inputs(cls, files: Any) -> dict[str, object]:
        molecule, charge = files.text("mol.inp").split()
        return {"molecule": molecule, "charge": int(charge)}


def computed(folder: Path, molecule: str = "h2o", charge: int = 0, energy: str = "-76.4") -> Path:
    """A folder as somebody has left it."""
    (folder / "out" / "deep").mkdir(parents=True)
    (folder / "mol.inp").write_text(f"{molecule}   {charge}\n")
    (folder / "stdout.txt").write_text(f"energy {energy}\n")
    (folder / "out" / "log").write_text(f"log of {molecule}\n")
    (folder / "out" / "deep" / "wave").write_bytes(b"\0" * 1000)
    (folder / "unrelated").write_text("not kept")
    (folder / "out" / "secret").symlink_to("/etc/hostname")
    return folder


def links(profile: Profile, process_id: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs by label."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT label, source_id FROM link WHERE target_id = %s", (process_id,))
        inputs = dict(cursor.fetchall())
        cursor.execute("SELECT label, target_id FROM link WHERE source_id = %s", (process_id,))
        outputs = dict(cursor.fetchall())
    return (
        {label: profile.load(node_id)[0] for label, node_id in inputs.items()},
        {label: profile.load(node_id)[0] for label, node_id in outputs.items()},
    )


def counted(profile: Profile) -> int:
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process")
        return int(cursor.fetchone()[0])  # type: ignore[index]


def test_a_folder_becomes_a_finished_calculation(profile: Profile, tmp_path: Path) -> None:
    folder = computed(tmp_path / "old")
    future = gr.import_calculation(Energy, folder, molecule="h2o", charge=0, label="old one", profile=profile)
    assert future.is_finished_ok
    assert future.outputs.energy.value == -76.4
    process = profile.load(future.id)[0]
    assert process.node_type == "process.calculation.calcjob.CalcJobNode."
    assert (process.label, process.process_type) == ("old one", f"{__name__}.Energy")
    attributes = process.attributes
    assert attributes["imported"] is True
    assert attributes["remote_workdir"] == str(folder)
    assert attributes["retrieve_list"] == ["out/*", "*.json"]
    assert "argv" not in attributes
    assert process.read_file("mol.inp") == b"h2o   0\n"
    assert b"def parse" in process.read_file(".grange/source_file")
    inputs, outputs = links(profile, future.id)
    assert {label: node.value for label, node in inputs.items()} == {"molecule": "h2o", "charge": 0}
    assert sorted(outputs) == ["energy", "log", "retrieved"]
    assert outputs["retrieved"].value == {
        "stdout.txt": b"energy -76.4\n",
        "out/log": b"log of h2o\n",
        "out/deep/wave": b"\0" * 1000,
    }
    assert outputs["log"].content == b"log of h2o\n"

    # an equal call is answered by it, and another one is not
    campaign = gr.Campaign("after", profile)
    campaign.map(Energy, molecule=["h2o", "h2o"], charge=[0, 1])
    campaign.run(progress=False)
    frame = campaign.results()
    assert frame["energy"].tolist() == [-76.4, 6.0]
    with profile.transaction() as cursor:
        cursor.execute("SELECT cached_from FROM process WHERE node_id = %s", (int(frame["process"][0]),))
        assert cursor.fetchone() == (future.id,)


def test_the_same_again_is_found_and_changed_files_are_another(profile: Profile, tmp_path: Path) -> None:
    folder = computed(tmp_path / "old")
    with gr.recording(profile):
        first = gr.import_calculation(Energy, folder)
        again = gr.import_calculation(Energy, str(folder))
        assert again.id == first.id
        assert again.outputs.energy.value == -76.4
        (folder / "stdout.txt").write_text("energy -76.5\n")
        other = gr.import_calculation(Energy, folder, {"molecule": "h2o"})
        assert other.id != first.id
        assert other.outputs.energy.value == -76.5
        private = gr.import_calculation(Energy, computed(tmp_path / "own", "co"), cache=False)
    campaign = gr.Campaign("after", profile)
    campaign.map(Energy, molecule="co")
    campaign.run(progress=False)
    assert campaign.results()["energy"].tolist() == [5.0]
    assert private.outputs.energy.value == -76.4
    assert counted(profile) == 4


def test_many_folders_at_once_each_with_its_inputs(profile: Profile, tmp_path: Path) -> None:
    folders = [computed(tmp_path / f"old{n}", f"m{n % 7}", n, str(-n)) for n in range(40)]
    futures = gr.import_calculations(Energy, folders, labels=[f"l{n}" for n in range(40)], profile=profile)
    assert [future.outputs.energy.value for future in futures] == [-float(n) for n in range(40)]
    inputs, _ = links(profile, futures[9].id)
    assert {label: node.value for label, node in inputs.items()} == {"molecule": "m2", "charge": 9}
    assert profile.load(futures[9].id)[0].label == "l9"
    # what is given counts, whatever the files say
    given = gr.import_calculations(Energy, folders[:2], molecule="other", charge=[7, 8], profile=profile)
    assert [links(profile, one.id)[0]["charge"].value for one in given] == [7, 8]
    assert [links(profile, one.id)[0]["molecule"].value for one in given] == ["other"] * 2


def test_programs_that_failed_and_files_of_other_names(profile: Profile, tmp_path: Path) -> None:
    folder = computed(tmp_path / "failed", energy="UNCONVERGED")
    os.rename(folder / "stdout.txt", folder / "run.out")
    with gr.recording(profile):
        failed = gr.import_calculation(Energy, folder, files={"stdout.txt": "run.out"})
        assert (failed.exit_status, failed.exit_message) == (310, "not converged")
        assert failed.outputs.retrieved.value["stdout.txt"] == b"energy UNCONVERGED\n"
        died = gr.import_calculation(Energy, folder, files={"stdout.txt": "run.out"}, return_code=3, charge=5)
        assert died.exit_status == 171
        (folder / "out" / "log").unlink()
        (folder / "run.out").write_text("energy 1\n")
        broken = gr.import_calculation(Energy, folder, files={"stdout.txt": "run.out"})
        assert broken.exit_status == 173
        job = gr.ShellJob("wc -l {x}.txt", outputs={"data": "result.dat"}, files={"{x}.txt": "a"})
        (folder / "result.dat").write_text("1 2 3\n")
        shell = gr.import_calculation(job, folder, x="poem", files={"stdout.txt": "run.out"})
        assert shell.outputs.data.content == b"1 2 3\n"
        assert shell.outputs.stdout.value == "energy 1\n"


def test_what_cannot_be_imported_stores_nothing(profile: Profile, tmp_path: Path) -> None:
    folder = computed(tmp_path / "old")
    (tmp_path / "empty").mkdir()

    def function(x: int) -> int:
        return x

    with gr.recording(profile):
        one: Any = gr.import_calculation
        many: Any = gr.import_calculations
        empty = gr.ShellJob("ls")
        for match, call in (
            ("folder: expected a folder that exists", lambda: one(Energy, tmp_path / "none", molecule="x")),
            ("one with any of the files stdout.txt", lambda: one(empty, tmp_path / "empty")),
            (r"files\['a'\]: expected a file in", lambda: one(Energy, folder, files={"a": "none"})),
            (r"files\['a'\]: expected a file in", lambda: one(Energy, folder, files={"a": "../old/mol.inp"})),
            ("charge: expected int", lambda: one(Energy, folder, charge="much")),
            ("did you mean 'charge'", lambda: one(Energy, folder, chrge=1)),
            ("CalcJob class or a ShellJob", lambda: one(function, folder, x=1)),
            ("lists of 2 values", lambda: many(Energy, [folder, folder], {"molecule": ["x"], "charge": [1]})),
            ("as many values for each", lambda: many(Energy, [folder, folder], charge=[1, 2, 3])),
            ("a list of at least one folder", lambda: many(Energy, str(folder))),
        ):
            with pytest.raises(gr.GrangeError, match=match):
                call()
    with pytest.raises(gr.GrangeError, match="there is no profile"):
        gr.import_calculation(Energy, folder)
    assert counted(profile) == 0
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM node")
        assert cursor.fetchone() == (0,)


class CountingTransport(LocalTransport):
    """Counts round trips."""

    calls: list[str] = []  # noqa: RUF012

    def list(self, folders: Any) -> Any:
        self.calls.append("list")
        return super().list(folders)

    def get(self, files: Any) -> None:
        self.calls.append("get")
        super().get(files)


def test_folders_of_another_computer(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Computer(
        label="here", transport="local", scheduler="direct", work_dir=str(tmp_path / "there"),
        python=sys.executable,
    )  # fmt: skip
    with profile.transaction() as cursor:
        computer_id = computers.add(cursor, machine, user_id=profile.user_id).id
    monkeypatch.setattr("grange.core.connection.LocalTransport", CountingTransport)
    folders = [str(computed(tmp_path / f"there{n}", charge=n)) for n in range(6)]
    futures = gr.import_calculations(
        Energy, folders, molecule="h2o", charge=list(range(6)), computer="here", profile=profile
    )
    assert [future.outputs.energy.value for future in futures] == [-76.4] * 6
    inputs, outputs = links(profile, futures[3].id)
    assert sorted(inputs) == ["charge", "molecule", "remote_folder"]
    assert (inputs["remote_folder"].value, inputs["remote_folder"].computer_id) == (folders[3], computer_id)
    assert profile.load(futures[3].id)[0].computer_id == computer_id
    assert set(outputs["retrieved"].files) == {"stdout.txt", "out/log", "out/deep/wave"}
    # levels and files of all folders together
    assert CountingTransport.calls.count("list") == 3
    assert CountingTransport.calls.count("get") == 1
    del CountingTransport.calls[:]
    again = gr.import_calculations(Energy, folders, computer="here", profile=profile)
    assert [future.id for future in again] == [future.id for future in futures]
    # what reads inputs out of files asks for one after the other
    assert (CountingTransport.calls.count("list"), CountingTransport.calls.count("get")) == (3, 7)
    assert list(profile.spool.glob("import-*")) == []
    for folder, match in (("/none", "a folder that exists there"), ("old", "an absolute path there")):
        with pytest.raises(gr.GrangeError, match=match):
            gr.import_calculation(Energy, folder, molecule="x", computer="here", profile=profile)
