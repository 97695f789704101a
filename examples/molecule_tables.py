"""The table of molecule_screening.py: as a frame, and the best-known molecules printed."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: What `xtb --vip` takes off the energy that it costs to remove an electron (it prints it as "empirical IP
#: shift"): tight binding in a minimal basis overestimates all of them by about that.
SHIFT = 4.8455  # eV

#: Under C2H4, ASE 3.29 repeats the energies of C2H2 (11.40 and 11.49 eV): they are not used.
DOUBTFUL = frozenset({"C2H4"})

# fmt: off
WELL_KNOWN = (
    "H2", "N2", "O2", "F2", "Cl2", "HF", "HCl", "CO", "NO", "H2O", "SH2", "NH3", "PH3", "CH4", "SiH4", "CO2",
    "SO2", "HCN", "C2H2", "H2CO", "CH3OH", "CH3Cl", "C6H6",
)
# fmt: on

SOURCE = (
    "Experiment: NIST Computational Chemistry Comparison and Benchmark Database\n"
    "(cccbdb.nist.gov), as in ase.data.g2. GFN2-xTB: less the 4.8455 eV that xtb\n"
    "takes off itself (xtb --vip). Geometry: of the neutral, MP2(full)/6-31G(d)."
)


def tabulate(names: list[str], energies: pd.DataFrame) -> pd.DataFrame:
    """One row per molecule: ionisation energy (eV) as computed, less the shift, and from experiment.

    energies: indexed by name, columns 0 and 1 (charge); NaN where a calculation failed.
    An atom has no geometry to relax: its one experimental value is the vertical one.
    """
    from ase.data.g2 import data

    table = pd.DataFrame({"molecule": names, "kind": [_kind(data[name]) for name in names]})
    table["energy_neutral"] = energies[0].to_numpy(float)
    table["energy_cation"] = energies[1].to_numpy(float)
    table["difference"] = table["energy_cation"] - table["energy_neutral"]
    table["ionisation_energy"] = table["difference"] - SHIFT
    known = [{} if name in DOUBTFUL else data[name] for name in names]
    adiabatic = np.array([entry.get("ionization energy") for entry in known], dtype=float)
    vertical = np.array([entry.get("vertical ionization energy") for entry in known], dtype=float)
    table["experimental_vertical"] = np.where(table["kind"] == "atom", adiabatic, vertical)
    table["experimental_adiabatic"] = adiabatic
    return table


def _kind(entry: dict[str, object]) -> str:
    """Atom, radical (with unpaired electrons) or closed shell."""
    if len(entry["positions"]) == 1:  # type: ignore[arg-type]
        return "atom"
    return "radical" if entry["magmoms"] else "closed shell"


def errors(table: pd.DataFrame) -> pd.Series:
    """How far the molecules (not the atoms) are from the vertical experiment, where there is one (eV)."""
    shown = table[table["kind"] != "atom"]
    return (shown["ionisation_energy"] - shown["experimental_vertical"]).dropna()


def print_table(table: pd.DataFrame) -> None:
    """The best-known molecules; if none of them is there, all."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="Vertical ionisation energies (eV)", title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("molecule")
    for heading in ("GFN2-xTB", "exp.\nvertical", "\nadiabatic", "\nerror"):
        shown.add_column(heading, justify="right", no_wrap=True)
    by_name = table.set_index("molecule")
    rows = by_name.loc[[name for name in WELL_KNOWN if name in by_name.index]]
    for name, row in (rows if len(rows) else by_name).iterrows():
        computed, vertical = row["ionisation_energy"], row["experimental_vertical"]
        cells = [_number(value) for value in (computed, vertical, row["experimental_adiabatic"])]
        shown.add_row(str(name), *cells, _number(computed - vertical, "+.2f"))
    console = Console(highlight=False)
    console.print(shown)
    console.print(SOURCE, style="dim")
    off = errors(table)
    if len(off):
        mean, size = off.mean(), off.abs().mean()
        print(f"\nError of {len(off)} vertical energies: {mean:+.2f} eV in the mean, {size:.2f} eV in size.")


def _number(value: float, form: str = ".2f") -> str:
    return "" if np.isnan(value) else format(value, form)
