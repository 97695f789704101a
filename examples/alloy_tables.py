"""The tables of alloy_screening.py: as a frame, and printed at most 80 columns wide."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Lattice constant (Å) and bulk modulus (GPa) from experiment, at 0 K with zero-point motion taken out.
#: Source: K. Lejaeghere et al., Crit. Rev. Solid State Mater. Sci. 39, 1 (2014),
#: doi:10.1080/10408436.2013.772503, as in ase.collections.dcdft (there by volume per atom: a = (4 V)^(1/3)).
EXPERIMENT = {
    "Al": (4.022, 77.1),
    "Ni": (3.510, 192.5),
    "Cu": (3.598, 144.3),
    "Pd": (3.877, 187.2),
    "Ag": (4.070, 105.7),
    "Pt": (3.917, 285.5),
    "Au": (4.067, 182.0),
}

SOURCE = (
    "Experiment: at 0 K, zero-point motion taken out; K. Lejaeghere et al.,\n"
    "Crit. Rev. Solid State Mater. Sci. 39, 1 (2014), as in ase.collections.dcdft."
)
MEANING = (
    "ΔH: formation enthalpy per atom from the metals, at 0 K and no pressure;\n"
    "below zero the alloy is stable against them. a³: the volume of four atoms."
)


def tabulate(compounds: list[tuple[str, str, tuple[str, ...]]], fits: pd.DataFrame) -> pd.DataFrame:
    """One row per compound (name, prototype, elements of its four sites), with experiment beside the metals.

    Units: Å for lattice constants, GPa, eV/atom for energies; at zero pressure the formation enthalpy is
    the difference of the energies.
    """
    names = [name for name, _, _ in compounds]
    table = pd.DataFrame({"compound": names, "prototype": [prototype for _, prototype, _ in compounds]})
    table["lattice_constant"] = fits["equilibrium_volume"].to_numpy(float) ** (1 / 3)
    for column in ("bulk_modulus", "bulk_modulus_derivative"):
        table[column] = fits[column].to_numpy(float)
    table["energy"] = fits["equilibrium_energy"].to_numpy(float) / 4
    energy_of = dict(zip(names, table["energy"], strict=True))
    elements = [np.mean([energy_of[symbol] for symbol in sites]) for _, _, sites in compounds]
    table["formation_enthalpy"] = table["energy"] - elements
    table["residual"] = fits["residual"].to_numpy(float) / 4
    experiment = [EXPERIMENT.get(name, (np.nan, np.nan)) for name in names]
    table["experimental_lattice_constant"] = [a for a, _ in experiment]
    table["experimental_bulk_modulus"] = [b for _, b in experiment]
    return table


def print_metals(table: pd.DataFrame) -> None:
    """The pure metals beside experiment."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title="Metals: lattice constant a and bulk modulus B", title_justify="left", box=SIMPLE_HEAD
    )
    shown.add_column("metal")
    for heading in ("a (Å)\nEMT", "\nexp.", "\nerror", "B (GPa)\nEMT", "\nexp.", "\nerror"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table[table["prototype"] == "A1"].itertuples():
        a, a_exp = row.lattice_constant, row.experimental_lattice_constant
        b, b_exp = row.bulk_modulus, row.experimental_bulk_modulus
        cells = (
            f"{a:.3f}",
            f"{a_exp:.3f}",
            f"{a / a_exp - 1:+.1%}",
            f"{b:.1f}",
            f"{b_exp:.1f}",
            f"{b / b_exp - 1:+.0%}",
        )
        shown.add_row(row.compound, *cells)
    console = Console(highlight=False)
    console.print(shown)
    console.print(f"{SOURCE}\n", style="dim")


def print_pairs(table: pd.DataFrame, pairs: list[tuple[str, str]]) -> None:
    """One line per pair, its three orderings side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = "Ordered alloys: A3B and AB3 as L1_2, AB as L1_0 (with c/a = 1)"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("A-B")
    for quantity in ("a (Å)", "B (GPa)", "ΔH (meV)"):
        for heading in (f"{quantity}\nA3B", "\nAB", "\nAB3"):
            shown.add_column(heading, justify="right", no_wrap=True)
    by_name = table.set_index("compound")
    for a, b in pairs:
        rows = by_name.loc[[f"{a}3{b}", f"{a}{b}", f"{a}{b}3"]]
        shown.add_row(
            f"{a}-{b}",
            *(f"{value:.3f}" for value in rows["lattice_constant"]),
            *(f"{value:.0f}" for value in rows["bulk_modulus"]),
            *(_enthalpy(1000 * value) for value in rows["formation_enthalpy"]),
        )
    console = Console(highlight=False)
    console.print(shown)
    console.print(MEANING, style="dim")


def _enthalpy(mev: float) -> str:
    return f"[bold green]{mev:+.0f}[/]" if mev < 0 else f"{mev:+.0f}"
