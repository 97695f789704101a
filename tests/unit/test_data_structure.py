"""Structures: AiiDA's attributes, and ASE's Atoms there and back."""

from __future__ import annotations

from typing import Any

import ase
import ase.build
import numpy as np
import pytest
from ase.constraints import FixAtoms, FixedPlane
from hypothesis import given
from hypothesis import strategies as st

from grange.core.data import Structure
from grange.core.data.structure import span
from grange.core.errors import InputInvalid
from grange.farm.runner import structure_attributes


def same(first: ase.Atoms, second: ase.Atoms) -> bool:
    return (
        first == second
        and (first.get_tags() == second.get_tags()).all()
        and np.array_equal(first.get_masses(), second.get_masses())
        and np.array_equal(first.get_initial_magnetic_moments(), second.get_initial_magnetic_moments())
        and np.array_equal(first.get_initial_charges(), second.get_initial_charges())
        and np.array_equal(first.get_momenta(), second.get_momenta())
        and [c.todict() for c in first.constraints] == [c.todict() for c in second.constraints]
    )


def test_attributes_are_aiidas() -> None:
    node = Structure(ase.build.bulk("NaCl", "rocksalt", a=5.64))
    assert node.node_type == "data.core.structure.StructureData."
    assert node.attributes == {
        "cell": [[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]],
        "pbc1": True,
        "pbc2": True,
        "pbc3": True,
        "kinds": [
            {"name": "Na", "mass": 22.98976928, "symbols": ["Na"], "weights": [1.0]},
            {"name": "Cl", "mass": 35.45, "symbols": ["Cl"], "weights": [1.0]},
        ],
        "sites": [
            {"kind_name": "Na", "position": [0.0, 0.0, 0.0]},
            {"kind_name": "Cl", "position": [2.82, 0.0, 0.0]},
        ],
    }
    assert node.formula == "ClNa"
    assert node.pbc == (True, True, True)
    assert len(node) == 2


def full() -> ase.Atoms:
    atoms = ase.build.fcc111("Al", (2, 1, 2), vacuum=5)
    atoms.set_tags([1, 2, 2, 0])
    atoms.set_initial_magnetic_moments([0, 1, 0, -1.5])
    atoms.set_initial_charges([0.5, 0, 0, 0])
    atoms.set_momenta(np.arange(12).reshape(4, 3))
    atoms.set_masses([26, 26, 27.5, 26])
    atoms.set_constraint([FixAtoms([0]), FixedPlane(1, (0, 0, 1))])
    return atoms


@pytest.mark.parametrize(
    "atoms",
    [
        ase.build.bulk("Cu"),
        ase.build.molecule("CH3"),
        ase.build.molecule("CH3CH2OH"),
        ase.Atoms("H"),
        ase.Atoms(),
        ase.Atoms("Cu", cell=[0, 0, 3], pbc=[False, False, True]),
        full(),
    ],
    ids=str,
)
def test_to_ase_and_back(atoms: ase.Atoms) -> None:
    node = Structure.from_ase(atoms)
    assert same(node.to_ase(), atoms)
    again = Structure(node.value)
    assert again.attributes == node.attributes
    assert again.content_hash() == node.content_hash()
    assert Structure(node.attributes).content_hash() == node.content_hash()


@pytest.mark.parametrize(
    "atoms",
    [ase.build.bulk("Cu"), ase.build.molecule("O2"), full(), ase.Atoms("Cu3", masses=[1, 2, 3])],
    ids=str,
)
def test_the_runner_hands_over_the_same_attributes(atoms: ase.Atoms) -> None:
    assert structure_attributes(atoms) == Structure(atoms).attributes


def test_masses_that_differ_are_no_tags() -> None:
    atoms = ase.Atoms("Cu3", masses=[63.5, 64, 65], tags=[0, 0, 4])
    assert [kind["name"] for kind in Structure(atoms).attributes["kinds"]] == ["Cu", "Cu_1", "Cu4"]
    assert same(Structure(atoms).value, atoms)


def test_a_constraint_that_cannot_be_kept_is_refused() -> None:
    class Own:
        def adjust_positions(self, atoms: ase.Atoms, new: Any) -> None: ...

    atoms = ase.Atoms("Cu")
    atoms.constraints = [Own()]
    with pytest.raises(InputInvalid, match="that ASE can write down"):
        Structure(atoms)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["H", "Al", "Fe"]), st.integers(0, 3), st.tuples(*[st.floats(-1e3, 1e3)] * 3)
        ),
        max_size=6,
    ),
    st.tuples(*[st.floats(0.5, 50)] * 3),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_atoms(sites: list[Any], cell: tuple[float, ...], pbc: tuple[bool, ...]) -> None:
    atoms = ase.Atoms(
        [site[0] for site in sites],
        positions=[site[2] for site in sites] or None,
        tags=[site[1] for site in sites],
        cell=cell,
        pbc=pbc,
    )
    assert same(Structure(atoms).value, atoms)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (None, True),
        ([1, 1, 0], True),
        ([[1, 0, 0], [2, 0, 0], [0, 0, 1]], True),
        ([0, 0, 1], [True, False, False]),
        ([[1, 0, 0], [1, 0, 0], [0, 0, 1]], [True, True, False]),
    ],
)
def test_a_periodic_structure_without_cell_is_refused(cell: Any, pbc: Any) -> None:
    with pytest.raises(InputInvalid, match="a cell for a periodic structure") as refused:
        Structure(ase.Atoms("Cu", cell=cell, pbc=pbc))
    assert refused.value.port == "structure"


def test_span() -> None:
    assert span([(3, 4, 0)]) == 5
    assert span([(2, 0, 0), (1, 3, 0)]) == 6
    assert span([(2, 0, 0), (1, 3, 0), (0, 0, -4)]) == 24


def broken(**changes: Any) -> dict[str, Any]:
    return {**Structure(ase.build.bulk("Cu")).attributes, **changes}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Cu", "ase.Atoms"),
        ([1], "ase.Atoms"),
        ({"cell": []}, "has also pbc1"),
        (broken(cell=[[1, 0, 0]]), "three vectors"),
        (broken(cell=[[1, 0, 0], [0, 1, 0], [0, 0, "1"]]), "three vectors"),
        (broken(pbc1=1), "bool"),
        (broken(kinds=[]), "one of the kinds"),
        (broken(kinds=[{}]), "kinds with a name"),
        (broken(sites=[{"kind_name": "Cu", "position": [1, 2]}]), "three numbers"),
        (broken(sites=[{"kind_name": "Cu", "position": [1, 2, float("nan")]}]), "finite"),
        (ase.Atoms("Cu", positions=[[0, 0, float("inf")]]), "finite"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_structure_is_refused(value: Any, expected: str) -> None:
    with pytest.raises(InputInvalid, match=expected):
        Structure(value)


def test_an_alloy_keeps_its_attributes_and_says_why_ase_cannot_have_it() -> None:
    kinds = [{"name": "CuAu", "mass": 100.0, "symbols": ["Cu", "Au"], "weights": [0.5, 0.5]}]
    sites = [{"kind_name": "CuAu", "position": [0.0, 0.0, 0.0]}]
    node = Structure(broken(kinds=kinds, sites=sites))
    assert node.symbols == ["CuAu"]
    with pytest.raises(InputInvalid, match="one element without vacancies"):
        node.to_ase()
