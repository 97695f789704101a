"""Screen the fcc metals and their ordered alloys for stability and stiffness.

Al, Ni, Cu, Pd, Ag, Pt, Au, and for each of their 21 pairs the L1_0 and both L1_2 orderings: 70 compounds.
Each is computed at 30 volumes with ASE's effective-medium potential (EMT), a Birch-Murnaghan equation of
state is fitted to each curve, and tables and two pictures come out. Every one of the 2,100 energies and 70
fits is a recorded process. Stop it whenever you like; started again, it goes on where it was.

    python examples/alloy_screening.py            # everything, into results/
    python examples/alloy_screening.py --quick    # one pair, eight volumes
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from alloy_tables import print_metals, print_pairs, tabulate
from ase import Atoms
from ase.data import atomic_numbers, reference_states
from hints import make_folder, print_commands

import grange as gr

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")

#: The four sites of the cubic cell, in the order in which Compound.sites names their elements.
FCC_SITES = ((0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))

#: Linear strain at both ends. All 70 minima lie within 0.015 of the start (Vegard's rule); a wider range only
#: brings in the kinks that EMT has where a shell of neighbours passes its cut-off.
LARGEST_STRAIN = 0.04

TOO_FEW_VOLUMES = gr.ExitCode(310, "five volumes or more are needed for a fit")
NO_MINIMUM = gr.ExitCode(311, "no minimum between {smallest:.2f} and {largest:.2f} Å^3: try other volumes")


@dataclass(frozen=True, slots=True)
class Compound:
    """A metal or an ordered alloy of two, as four atoms in a cubic cell (L1_0 with c/a = 1)."""

    name: str
    prototype: str
    sites: tuple[str, str, str, str]

    def structure(self) -> Atoms:
        """The compound at the lattice constant that Vegard's rule gives."""
        a = float(np.mean([reference_states[atomic_numbers[symbol]]["a"] for symbol in self.sites]))
        return Atoms(self.sites, scaled_positions=FCC_SITES, cell=[a, a, a], pbc=True)


def compounds(pairs: list[tuple[str, str]]) -> list[Compound]:
    """The metals of the pairs, then three orderings of each pair."""
    metals = [metal for metal in METALS if any(metal in pair for pair in pairs)]
    found = [Compound(metal, "A1", (metal,) * 4) for metal in metals]
    for a, b in pairs:
        found.append(Compound(f"{a}3{b}", "L1_2", (b, a, a, a)))
        found.append(Compound(f"{a}{b}", "L1_0", (a, a, b, b)))
        found.append(Compound(f"{a}{b}3", "L1_2", (a, b, b, b)))
    return found


def emt_energy(structure: Atoms, strain: float) -> dict[str, float]:
    """The energy (eV) and volume (Å^3) of a cell that is stretched by a linear strain."""
    from ase.calculators.emt import EMT

    strained = structure.copy()
    strained.set_cell(structure.cell * (1 + strain), scale_atoms=True)
    strained.calc = EMT()
    return {"energy": float(strained.get_potential_energy()), "volume": float(strained.get_volume())}


def birch_murnaghan(volumes: list[float], energies: list[float]) -> dict[str, float] | gr.ExitCode:
    """Fit a Birch-Murnaghan equation of state of third order.

    In x = V^(-2/3) it is a polynomial of third degree: a linear fit, with a minimum that can be solved for.

    Units: Å^3 and eV in; Å^3, eV, GPa and, for the residual (root mean square), eV out.
    Errors: exit codes where fewer than five volumes are given or no minimum lies between them.
    """
    from numpy.polynomial import Polynomial

    if len(volumes) < 5:
        return TOO_FEW_VOLUMES
    x = np.power(volumes, -2 / 3)
    energy = Polynomial.fit(x, energies, 3)
    curvature = energy.deriv(2)
    turns = [
        root.real for root in energy.deriv().roots() if np.isreal(root) and x.min() < root.real < x.max()
    ]
    minima = [turn for turn in turns if curvature(turn) > 0]
    if not minima:
        return NO_MINIMUM.format(smallest=min(volumes), largest=max(volumes))
    x0 = minima[0]
    return {
        "equilibrium_volume": float(x0**-1.5),
        "equilibrium_energy": float(energy(x0)),
        "bulk_modulus": float(4 / 9 * x0**3.5 * curvature(x0) * 160.2176634),  # eV/Å^3 in GPa
        "bulk_modulus_derivative": float(4 + 2 / 3 * x0 * energy.deriv(3)(x0) / curvature(x0)),
        "residual": float(np.sqrt(np.mean((energy(x) - energies) ** 2))),
    }


def main() -> int:
    arguments = parse_arguments()
    make_folder(arguments.output)
    found = compounds(arguments.pairs)
    names = [compound.name for compound in found]
    strains = np.linspace(-LARGEST_STRAIN, LARGEST_STRAIN, arguments.volumes).tolist()

    profile = gr.open(arguments.home)
    energies = gr.Campaign(
        "alloy-energies", profile, description="EMT energies of fcc metals and their alloys"
    )
    energies.map(
        emt_energy,
        structure=[c.structure() for c in found],
        strain=strains,
        product=True,
        labels=[name for name in names for _ in strains],
    )
    energies.run()

    # The fits take the stored nodes, not their values: so each fit knows the calculations that it rests on.
    points = energies.results(nodes=True).assign(compound=np.repeat(names, len(strains)))
    curves = dict(list(points[points["exit_status"] == 0].groupby("compound", sort=False)))
    fits = gr.Campaign("alloy-fits", profile, description="Birch-Murnaghan fits to alloy-energies")
    fits.map(
        birch_murnaghan,
        volumes=[list(curve["volume"]) for curve in curves.values()],
        energies=[list(curve["energy"]) for curve in curves.values()],
        labels=list(curves),
    )
    fits.run()

    failures = pd.concat([energies.failures(), fits.failures()])
    if len(failures):
        print(failures[["process", "exit_status", "exit_message"]].to_string(index=False), file=sys.stderr)
        return 1
    fitted = fits.results()
    table = tabulate([(c.name, c.prototype, c.sites) for c in found], fitted)
    report(table, energies.results().assign(compound=points["compound"]), arguments)
    example = fitted["process"].iloc[names.index("".join(arguments.pair))]
    name = "".join(arguments.pair)
    print_commands(
        arguments.home,
        f"campaign show {energies.name}",
        f"graph {example} -o {name}.svg    # the origin of one fit",
    )
    return 0


def report(table: pd.DataFrame, points: pd.DataFrame, arguments: argparse.Namespace) -> None:
    """Print the tables and write the files."""
    from alloy_figures import draw_curves, draw_hull

    print_metals(table)
    print_pairs(table, arguments.pairs)
    folder = arguments.output
    table.to_csv(folder / "alloys.csv", index=False, float_format="%.6g")
    table.to_parquet(folder / "alloys.parquet")
    draw_curves(table, points, folder / "alloy_curves.png")
    hull = f"alloy_hull_{'-'.join(arguments.pair)}.png"
    draw_hull(table, arguments.pair, folder / hull)
    print(f"\nIn {folder}/: alloys.csv, alloys.parquet, alloy_curves.png, {hull}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [f"{a}-{b}" for a, b in combinations(METALS, 2)]
    parser.add_argument(
        "--pairs", nargs="+", choices=every, default=every, metavar="A-B", help="only these pairs"
    )
    parser.add_argument(
        "--pair", choices=every, default="Ni-Pt", metavar="A-B", help="whose hull to draw (Ni-Pt)"
    )
    parser.add_argument("--volumes", type=int, default=30, help="volumes for each compound (30)")
    parser.add_argument("--quick", action="store_true", help="one pair, eight volumes")
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder for tables and pictures (results)"
    )
    parser.add_argument("--home", type=Path, help="folder of the profile (GRANGE_HOME, or ~/.grange)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.volumes = [arguments.pair], 8
    if arguments.pair not in arguments.pairs:
        arguments.pair = arguments.pairs[0]
    arguments.pair = tuple(arguments.pair.split("-"))
    arguments.pairs = [tuple(pair.split("-")) for pair in arguments.pairs]
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        sys.exit(130)
