"""The pure parts of examples/alloy_screening.py: structures, fit, table, hull."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import alloy_figures
import alloy_screening
import alloy_tables
from alloy_screening import METALS, birch_murnaghan, compounds, emt_energy

GPA = 160.2176634  # per eV/Å^3


def curve(name: str, count: int = 11, largest: float = 0.02) -> tuple[list[float], list[float]]:
    """Volumes and energies of a metal."""
    structure = compounds([(name, "Au" if name != "Au" else "Ag")])[0 if name != "Au" else 1].structure()
    points = [emt_energy(structure, strain) for strain in np.linspace(-largest, largest, count)]
    return [point["volume"] for point in points], [point["energy"] for point in points]


def test_seventy_compounds_with_the_right_composition() -> None:
    from itertools import combinations

    found = compounds(list(combinations(METALS, 2)))
    assert len(found) == len({compound.name for compound in found}) == 70
    by_name = {compound.name: compound for compound in found}
    assert sorted(by_name["Cu3Au"].sites) == ["Au", "Cu", "Cu", "Cu"]
    assert sorted(by_name["CuAu3"].sites) == ["Au", "Au", "Au", "Cu"]
    assert sorted(by_name["CuAu"].sites) == ["Au", "Au", "Cu", "Cu"]


@pytest.mark.parametrize(("name", "unlike"), [("Cu3Au", (12, 4)), ("CuAu", (8, 8)), ("CuAu3", (4, 12))])
def test_the_orderings_have_the_neighbours_of_their_prototype(name: str, unlike: tuple[int, int]) -> None:
    """In L1_2 the minority has 12 unlike neighbours, the majority 4; in L1_0 every atom has 8."""
    from ase.neighborlist import neighbor_list

    structure = next(c for c in compounds([("Cu", "Au")]) if c.name == name).structure()
    nearest = structure.cell[0, 0] / np.sqrt(2)
    first, second = neighbor_list("ij", structure, nearest * 1.01)
    symbols = np.array(structure.get_chemical_symbols())
    for symbol, expected in (("Au", unlike[0]), ("Cu", unlike[1])):
        atom = int(np.flatnonzero(symbols == symbol)[0])
        mine = first == atom
        assert mine.sum() == 12
        assert (symbols[second[mine]] != symbol).sum() == expected


def test_the_fit_gives_back_the_parameters_of_a_birch_murnaghan_curve() -> None:
    v0, e0, b0, b1 = 47.3, -12.5, 137.0, 5.3
    volumes = np.linspace(0.9 * v0, 1.08 * v0, 9)
    eta = (v0 / volumes) ** (2 / 3) - 1
    energies = e0 + 9 / 16 * v0 * b0 / GPA * eta**2 * (2 + (b1 - 4) * eta)
    fit = birch_murnaghan(volumes.tolist(), energies.tolist())
    assert isinstance(fit, dict)
    assert fit["equilibrium_volume"] == pytest.approx(v0, rel=1e-9)
    assert fit["equilibrium_energy"] == pytest.approx(e0, rel=1e-9)
    assert fit["bulk_modulus"] == pytest.approx(b0, rel=1e-7)
    assert fit["bulk_modulus_derivative"] == pytest.approx(b1, rel=1e-6)
    assert fit["residual"] < 1e-9


def test_the_fit_agrees_with_that_of_ase() -> None:
    from ase.eos import EquationOfState

    volumes, energies = curve("Cu")
    v0, e0, b0 = EquationOfState(volumes, energies, "birchmurnaghan").fit()
    fit = birch_murnaghan(volumes, energies)
    assert isinstance(fit, dict)
    assert fit["equilibrium_volume"] == pytest.approx(v0, rel=1e-5)
    assert fit["equilibrium_energy"] == pytest.approx(e0, abs=1e-6)
    assert fit["bulk_modulus"] == pytest.approx(b0 * GPA, rel=1e-3)


def test_silver_is_as_in_the_tutorial_of_ase() -> None:
    """ase-lib.org, "Introduction to the Equation of state": 16.781 Å^3, 100.14 GPa by another fit."""
    fit = birch_murnaghan(*curve("Ag", 5, 0.03))
    assert isinstance(fit, dict)
    assert fit["equilibrium_volume"] / 4 == pytest.approx(16.781, abs=0.01)
    assert fit["bulk_modulus"] == pytest.approx(100.14, rel=0.005)


def test_a_curve_without_minimum_has_its_exit_code() -> None:
    volumes = [40.0, 42.0, 44.0, 46.0, 48.0]
    failed = birch_murnaghan(volumes, [volume * 0.1 for volume in volumes])
    assert getattr(failed, "status", None) == alloy_screening.NO_MINIMUM.status
    assert "40.00 and 48.00" in failed.message
    few = birch_murnaghan(volumes[:4], [1.0, 0.0, 0.5, 2.0])
    assert few is alloy_screening.TOO_FEW_VOLUMES


def test_all_seventy_minima_lie_well_inside_the_volumes() -> None:
    from itertools import combinations

    largest = alloy_screening.LARGEST_STRAIN
    for compound in compounds(list(combinations(METALS, 2))):
        structure = compound.structure()
        energies = [emt_energy(structure, s)["energy"] for s in np.linspace(-largest, largest, 9)]
        assert 2 <= int(np.argmin(energies)) <= 6, compound.name


def test_the_experimental_values_are_those_of_the_delta_project() -> None:
    from ase.collections import dcdft

    for metal, (a, b) in alloy_tables.EXPERIMENT.items():
        assert a == pytest.approx((4 * dcdft.data[metal]["exp_volume"]) ** (1 / 3), abs=6e-4)
        assert b == pytest.approx(dcdft.data[metal]["exp_B"], abs=0.06)


def table_of(a: str, b: str) -> pd.DataFrame:
    found = compounds([(a, b)])
    rows = []
    for compound in found:
        structure = compound.structure()
        points = [emt_energy(structure, strain) for strain in np.linspace(-0.03, 0.03, 7)]
        rows.append(birch_murnaghan([p["volume"] for p in points], [p["energy"] for p in points]))
    return alloy_tables.tabulate([(c.name, c.prototype, c.sites) for c in found], pd.DataFrame(rows))


def test_the_table_takes_enthalpies_from_the_metals() -> None:
    table = table_of("Ni", "Pt").set_index("compound")
    assert table.loc[["Ni", "Pt"], "formation_enthalpy"].abs().max() < 1e-12
    expected = (
        table.loc["Ni3Pt", "energy"] - 0.75 * table.loc["Ni", "energy"] - 0.25 * table.loc["Pt", "energy"]
    )
    assert table.loc["Ni3Pt", "formation_enthalpy"] == pytest.approx(expected, abs=1e-12)
    assert table.loc["Ni3Pt", "formation_enthalpy"] == pytest.approx(-0.118, abs=0.002)
    assert table.loc["Ni", "experimental_bulk_modulus"] == 192.5
    assert table.loc["NiPt", "experimental_bulk_modulus"] != table.loc["NiPt", "experimental_bulk_modulus"]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0, -3, -4, -3, 0], [0, 1, 2, 3, 4]),
        ([0, 1, 2, 1, 0], [0, 4]),
        ([0, -4, -1, 2, 0], [0, 1, 4]),
        ([0, -1, -2, -1, 0], [0, 2, 4]),
    ],
)
def test_convex_hull(heights: list[float], expected: list[int]) -> None:
    assert alloy_figures.convex_hull([0.0, 0.25, 0.5, 0.75, 1.0], heights) == expected


def test_hull_points_know_their_distance() -> None:
    table = pd.DataFrame(
        {
            "compound": ["A", "B", "A3B", "AB", "AB3"],
            "prototype": ["A1", "A1", "L1_2", "L1_0", "L1_2"],
            "formation_enthalpy": [0.0, 0.0, -0.040, 0.010, -0.001],
        }
    )
    points = alloy_figures.hull_points(table, ("A", "B"))
    assert [point.name for point in points] == ["A", "A3B", "AB", "AB3", "B"]
    assert [point.on_hull for point in points] == [True, True, False, False, True]
    assert [point.above for point in points] == pytest.approx([0, 0, 10 + 80 / 3, -1 + 40 / 3, 0])


def test_names_are_set_as_in_books() -> None:
    assert alloy_figures.formula("Ni3Pt") == "Ni$_3$Pt"
    assert alloy_figures.formula("L1_2") == "L1$_2$"
    assert alloy_figures.signed(-118.4) == "−118"


def test_tables_and_pictures_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("Cu", "Au")
    rows = [
        {**emt_energy(compound.structure(), strain), "compound": compound.name}
        for compound in compounds([("Cu", "Au")])
        for strain in (-0.02, 0.0, 0.02)
    ]
    alloy_tables.print_metals(table)
    alloy_tables.print_pairs(table, [("Cu", "Au")])
    printed = capsys.readouterr().out
    assert "144.3" in printed
    assert "Cu-Au" in printed
    assert max(len(line) for line in printed.splitlines()) <= 85
    alloy_figures.draw_curves(table, pd.DataFrame(rows), tmp_path / "curves.png")
    alloy_figures.draw_hull(table, ("Cu", "Au"), tmp_path / "hull.png")
    for picture in ("curves.png", "hull.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
