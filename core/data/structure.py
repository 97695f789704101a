"""Structures of atoms."""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from grange.core.errors import InputInvalid
from grange.core.formula import formula
from grange.core.json_value import checked, checked_text
from grange.core.node import Data, register

if TYPE_CHECKING:
    import ase

#: Periodic cell vectors that span less than this (Å, Å² or Å³) count as no cell.
_LEAST_SPAN = 1e-6
_KIND_WITH_TAG = re.compile(r"([A-Z][a-z]?)(\d+)")
#: Per-site arrays of ASE that are kept beside AiiDA's attributes, where they say anything.
_SITE_ARRAYS = ("initial_magmoms", "initial_charges", "momenta")


@register
class Structure(Data):
    """Atoms: cell, periodicity, kinds and sites, as AiiDA's attributes.

    Of ASE's Atoms also magnetic moments, charges, momenta and constraints are kept, under the attribute
    "ase"; calculator and info are not.

    Units: lengths in Å, masses in u, as in ASE.
    """

    __slots__ = ()
    node_type: ClassVar[str] = "data.core.structure.StructureData."

    def __init__(
        self, value: ase.Atoms | Mapping[str, Any], *, label: str = "", description: str = ""
    ) -> None:
        """From ASE's Atoms, or from a dict of cell, pbc1, pbc2, pbc3, kinds and sites.

        Errors: InputInvalid, also for a periodic structure without cell.
        """
        self._begin(attributes_of_structure(value), label, description)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms) -> Structure:
        """From ASE's Atoms."""
        return cls(atoms)

    def to_ase(self) -> ase.Atoms:
        """As ASE's Atoms.

        Errors: InputInvalid for a kind that is an alloy or has vacancies, which ASE cannot hold.
        """
        return _atoms(self._attributes)

    @property
    def value(self) -> ase.Atoms:
        """As ASE's Atoms."""
        return self.to_ase()

    @property
    def cell(self) -> list[list[float]]:
        """The three cell vectors in Å."""
        return [list(vector) for vector in self._attributes["cell"]]

    @property
    def pbc(self) -> tuple[builtins.bool, builtins.bool, builtins.bool]:
        """Along which cell vectors the structure repeats."""
        first, second, third = (self._attributes[f"pbc{number}"] for number in (1, 2, 3))
        return first, second, third

    @property
    def symbols(self) -> list[str]:
        """The chemical symbol of each site; of an alloy's site all, as in "AuCu"."""
        of_kind = {kind["name"]: "".join(kind["symbols"]) for kind in self._attributes["kinds"]}
        return [of_kind[site["kind_name"]] for site in self._attributes["sites"]]

    @property
    def formula(self) -> str:
        """The chemical formula, in Hill's order."""
        return formula(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes["sites"])

    def __bool__(self) -> builtins.bool:
        return True  # a node is there, however few its sites


def is_atoms(value: object) -> bool:
    """Whether a value is ASE's Atoms (or derived from it); does not import ASE."""
    return any(cls.__name__ == "Atoms" and cls.__module__ == "ase.atoms" for cls in type(value).__mro__)


def attributes_of_structure(value: object, port: str = "structure") -> dict[str, Any]:
    """The attributes of a structure.

    Errors: InputInvalid.
    """
    if is_atoms(value):
        attributes = _attributes_of_atoms(value, port)
    elif isinstance(value, Mapping):
        attributes = cast("dict[str, Any]", checked(value, port))
        _check_shape(attributes, port)
    else:
        raise InputInvalid(port, value, "ase.Atoms")
    pbc = [attributes[f"pbc{number}"] for number in (1, 2, 3)]
    _check_cell(attributes["cell"], pbc, value, port)
    return attributes


def _attributes_of_atoms(atoms: Any, port: str) -> dict[str, Any]:
    symbols = atoms.get_chemical_symbols()
    tags = atoms.get_tags().tolist()
    masses = atoms.get_masses().tolist()
    kinds: dict[tuple[str, int, float], dict[str, Any]] = {}
    names: dict[str, int] = {}
    sites = []
    for symbol, tag, mass, position in zip(symbols, tags, masses, atoms.positions.tolist(), strict=True):
        kind = kinds.get((symbol, tag, mass))
        if kind is None:
            kind = {
                "mass": mass,
                "name": _kind_name(symbol, tag, names),
                "symbols": [symbol],
                "weights": [1.0],
            }
            kinds[symbol, tag, mass] = kind
        sites.append({"kind_name": kind["name"], "position": position})
    pbc = atoms.pbc.tolist()
    attributes: dict[str, Any] = {
        "cell": atoms.cell.tolist(),
        "pbc1": pbc[0],
        "pbc2": pbc[1],
        "pbc3": pbc[2],
        "kinds": list(kinds.values()),
        "sites": sites,
    }
    more = _more_of_atoms(atoms, port)
    if more:
        attributes["ase"] = more
    return cast("dict[str, Any]", checked(attributes, port))


def _kind_name(symbol: str, tag: int, names: dict[str, int]) -> str:
    """The symbol with its tag; where the same is taken by another mass, a letter more."""
    name = f"{symbol}{tag or ''}"
    number = names.get(name, 0)
    names[name] = number + 1
    return f"{name}_{number}" if number else name


def _more_of_atoms(atoms: Any, port: str) -> dict[str, Any]:
    more: dict[str, Any] = {
        name: atoms.arrays[name].tolist()
        for name in _SITE_ARRAYS
        if name in atoms.arrays and atoms.arrays[name].any()
    }
    if atoms.constraints:
        more["constraints"] = [_written_down(constraint, port) for constraint in atoms.constraints]
    return more


def _written_down(constraint: Any, port: str) -> Any:
    """Errors: InputInvalid for a constraint of which ASE has no form that can be kept."""
    try:
        return _plain(constraint.todict())
    except (AttributeError, NotImplementedError):
        raise InputInvalid(
            f"{port}: constraint", constraint, "a constraint that ASE can write down"
        ) from None


def _plain(value: Any) -> Any:
    """What todict() of a constraint gives, without NumPy."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _check_shape(attributes: Mapping[str, Any], port: str) -> None:
    """Errors: InputInvalid for attributes that are none of a structure."""
    missing = [name for name in ("cell", "pbc1", "pbc2", "pbc3", "kinds", "sites") if name not in attributes]
    if missing:
        raise InputInvalid(port, attributes, f"ase.Atoms, or a dict that has also {', '.join(missing)}")
    if not _is_matrix(attributes["cell"], 3):
        raise InputInvalid(f"{port}['cell']", attributes["cell"], "three vectors of three numbers")
    for name in ("pbc1", "pbc2", "pbc3"):
        if not isinstance(attributes[name], bool):
            raise InputInvalid(f"{port}[{name!r}]", attributes[name], "bool")
    try:
        kinds = {checked_text(kind["name"], port) for kind in attributes["kinds"]}
        wrong = [site for site in attributes["sites"] if site["kind_name"] not in kinds]
        bad = [site for site in attributes["sites"] if not _is_matrix([site["position"]], 1)]
    except (TypeError, KeyError) as error:
        raise InputInvalid(
            port, attributes, f"kinds with a name, sites with kind_name and position ({error!r})"
        ) from None
    if wrong:
        raise InputInvalid(
            f"{port}: site", wrong[0], f"a site of one of the kinds {', '.join(sorted(kinds))}"
        )
    if bad:
        raise InputInvalid(f"{port}: site", bad[0], "a position of three numbers")


def _is_matrix(value: object, rows: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, list) and len(row) == 3 for row in value)
        and all(isinstance(item, int | float) and not isinstance(item, bool) for row in value for item in row)
    )


def _check_cell(cell: Sequence[Sequence[float]], pbc: Sequence[bool], value: object, port: str) -> None:
    """Errors: InputInvalid if the periodic cell vectors do not span anything."""
    periodic = [vector for vector, repeats in zip(cell, pbc, strict=True) if repeats]
    if periodic and span(periodic) < _LEAST_SPAN:
        raise InputInvalid(
            port,
            value,
            "a cell for a periodic structure: its periodic cell vectors span no volume "
            "(set the cell, or pbc=False for a molecule)",
        )


def span(vectors: Sequence[Sequence[float]]) -> float:
    """The length, area or volume that one, two or three vectors span."""
    if len(vectors) == 1:
        return math.hypot(*vectors[0])
    cross = _cross(vectors[0], vectors[1])
    if len(vectors) == 2:
        return math.hypot(*cross)
    return abs(sum(a * b for a, b in zip(cross, vectors[2], strict=True)))


def _cross(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def _atoms(attributes: Mapping[str, Any]) -> ase.Atoms:
    import ase
    from ase.constraints import dict2constraint

    kinds = {kind["name"]: kind for kind in attributes["kinds"]}
    for name, kind in kinds.items():
        if len(kind["symbols"]) != 1 or abs(sum(kind["weights"]) - 1) > 1e-6:
            raise InputInvalid(
                f"structure: kind {name}", kind["symbols"], "a kind of one element without vacancies"
            )
    sites = attributes["sites"]
    of_site = [kinds[site["kind_name"]] for site in sites]
    more = attributes.get("ase", {})
    atoms = ase.Atoms(
        symbols=[kind["symbols"][0] for kind in of_site],
        positions=[site["position"] for site in sites],
        masses=[kind["mass"] for kind in of_site],
        tags=[_tag(kind) for kind in of_site],
        cell=attributes["cell"],
        pbc=[attributes[f"pbc{number}"] for number in (1, 2, 3)],
        constraint=[dict2constraint(constraint) for constraint in more.get("constraints", ())] or None,
        magmoms=more.get("initial_magmoms"),
        charges=more.get("initial_charges"),
    )
    if "momenta" in more:
        atoms.set_momenta(more["momenta"], apply_constraint=False)  # type: ignore[no-untyped-call]
    return atoms


def _tag(kind: Mapping[str, Any]) -> int:
    """The tag that a kind's name tells, as in "Fe2"."""
    matched = _KIND_WITH_TAG.fullmatch(kind["name"].split("_")[0])
    return int(matched[2]) if matched and matched[1] == kind["symbols"][0] else 0
