"""The pure parts of examples/molecule_screening.py: input, parser, spins, table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from ase.build import molecule
from ase.collections import g2

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import molecule_figures
import molecule_screening
import molecule_tables
from molecule_screening import XtbEnergy, reason_of, unpaired_electrons, xyz

from grange.core.output_files import OutputFiles
from grange.repository.key import Key

WATER = {
    "total energy": -5.06987491,
    "HOMO-LUMO gap/eV": 14.4,
    "number of molecular orbitals": 6,
    "number of electrons": 8,
    "number of unpaired electrons": 0,
}
NITROGEN = {
    **WATER,
    "number of molecular orbitals": 4,
    "number of electrons": 5,
    "number of unpaired electrons": 3,
}


def parse(result: object, printed: str = "", return_code: int = 0, asked: int = 0) -> Any:
    """What the parser makes of these files; result None: xtbout.json is not there."""
    contents = {"stdout.txt": printed.encode()}
    if result is not None:
        contents["xtbout.json"] = json.dumps(result).encode()
    keys = {path: Key(path) for path in contents}
    files = OutputFiles(
        keys, lambda _: [], {keys[path]: content for path, content in contents.items()}, return_code
    )
    job = XtbEnergy()
    job.inputs = SimpleNamespace(molecule=molecule("H2O"), charge=0, unpaired_electrons=asked)
    return job.parse(files)


def test_an_energy_comes_out_in_electronvolts() -> None:
    parsed = parse(WATER)
    assert parsed == {"energy": pytest.approx(-5.06987491 * 27.211386246, rel=1e-9), "gap": 14.4}


@pytest.mark.parametrize(
    ("result", "printed", "return_code", "asked", "expected"),
    [
        (None, "-1- scf: Self consistent charge iterator did not converge", 1, 0, XtbEnergy.NOT_CONVERGED),
        (None, "-1- Found *very* short distance of  0.000E+00 for H1-H2", 1, 0, XtbEnergy.REFUSED),
        (None, "", 0, 0, XtbEnergy.NO_ENERGY),
        ({**WATER, "total energy": float("nan")}, "", 0, 0, XtbEnergy.NO_ENERGY),
        (WATER, "", 0, 2, XtbEnergy.OTHER_SPIN),
        (
            {
                **WATER,
                "number of molecular orbitals": 4,
                "number of electrons": 5,
                "number of unpaired electrons": 3,
            },
            "",
            0,
            3,
            XtbEnergy.UNSTEADY,
        ),
    ],
)
def test_each_way_to_fail_has_its_exit_code(
    result: object, printed: str, return_code: int, asked: int, expected: Any
) -> None:
    assert parse(result, printed, return_code, asked).status == expected.status


def test_messages_say_what_happened() -> None:
    assert "0 unpaired electrons where 2 were" in parse(WATER, asked=2).message
    assert "short distance" in parse(None, "-2- REFUSES\n-1- Found *very* short distance\n#####", 1).message


def test_a_cation_without_electrons_is_no_unsteady_one() -> None:
    proton = {"total energy": 0.23, "HOMO-LUMO gap/eV": 0.0, "number of electrons": 0}
    parsed = parse({**proton, "number of molecular orbitals": 1, "number of unpaired electrons": 0})
    assert parsed["energy"] > 0


def test_the_reason_is_the_innermost_of_the_error_box() -> None:
    box = "####\n[ERROR] Program stopped\n-3- Single point terminated\n-1- scf: broken\n####\n"
    assert reason_of(box) == "scf: broken"
    assert reason_of("  |\n3 | Xx 0 0 0\n  | ^^ unknown element\n  |\n####\n") == "| ^^ unknown element"
    assert reason_of("") == "it printed nothing"


@pytest.mark.parametrize(
    ("name", "neutral", "cation"), [("H2O", 0, 1), ("OH", 1, 0), ("O2", 2, 1), ("N", 3, 2), ("H", 1, 0)]
)
def test_unpaired_electrons(name: str, neutral: int, cation: int) -> None:
    assert unpaired_electrons(molecule(name), 0) == neutral
    assert unpaired_electrons(molecule(name), 1) == cation


def test_spins_fit_the_number_of_electrons_in_all_molecules() -> None:
    for name in g2.names:
        atoms = molecule(name)
        for charge in (0, 1):
            electrons = int(atoms.numbers.sum()) - charge
            assert (electrons - unpaired_electrons(atoms, charge)) % 2 == 0, (name, charge)


def test_the_command_carries_charge_and_spin() -> None:
    inputs = SimpleNamespace(molecule=molecule("O2"), charge=1, unpaired_electrons=1)
    command = XtbEnergy().prepare(inputs)
    said = " ".join(command.argv)
    assert "--chrg 1 --uhf 1" in said
    assert "--gfn 2" in said
    assert command.environment == {"OMP_NUM_THREADS": "1"}


def test_xyz_is_read_back_by_ase(tmp_path: Path) -> None:
    from ase.io import read

    atoms = molecule("CH3OH")
    (tmp_path / "molecule.xyz").write_text(xyz(atoms))
    again = read(tmp_path / "molecule.xyz")
    assert again.get_chemical_symbols() == atoms.get_chemical_symbols()
    assert again.positions == pytest.approx(atoms.positions, abs=1e-8)


def table() -> pd.DataFrame:
    names = ["H2O", "CO", "Cl", "C2H4", "CH4"]
    neutral = pd.Series(-100.0, index=names)
    cation = pd.Series([-82.0, -81.0, -81.6, -85.0, float("nan")], index=names)
    return molecule_tables.tabulate(names, pd.DataFrame({0: neutral, 1: cation}))


def test_the_table_sets_experiment_beside_the_shifted_energy() -> None:
    rows = table().set_index("molecule")
    assert rows.loc["CO", "ionisation_energy"] == pytest.approx(19.0 - molecule_tables.SHIFT)
    assert rows.loc["CO", "experimental_vertical"] == 14.01
    assert rows.loc["Cl", "experimental_vertical"] == rows.loc["Cl", "experimental_adiabatic"] == 12.97
    assert pd.isna(rows.loc["H2O", "experimental_vertical"])
    assert rows.loc["H2O", "experimental_adiabatic"] == 12.62
    assert pd.isna(rows.loc["C2H4", "experimental_adiabatic"])
    assert pd.isna(rows.loc["CH4", "ionisation_energy"])
    assert list(molecule_tables.errors(table())) == pytest.approx([19.0 - molecule_tables.SHIFT - 14.01])


def test_ase_still_repeats_acetylene_for_ethylene() -> None:
    """If not, DOUBTFUL can lose it."""
    from ase.data.g2 import data

    for name in ("ionization energy", "vertical ionization energy"):
        assert data["C2H4"][name] == data["C2H2"][name]


def test_table_and_picture_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = pd.DataFrame(
        {
            "label": ["H2O", "CH4+"],
            "exit_status": [0, 310],
            "exit_message": ["", "the charges did not become self-consistent"],
        }
    )
    molecule_screening.report(table(), results, tmp_path)
    printed = capsys.readouterr().out
    assert "1 of 2 calculations gave an energy" in printed
    assert "CH4+: exit status 310" in printed
    assert (tmp_path / "ionisation.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_parquet(tmp_path / "ionisation.parquet")) == 5
    assert molecule_figures.formula("SiH2_s1A1d") == "SiH$_2$"
