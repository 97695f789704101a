"""Vertical ionisation energies of the G2 molecules with GFN2-xTB, a program that is run 324 times.

Each of the 162 molecules of ASE's G2 collection is computed twice by `xtb`, neutral and as a cation in the
same geometry. Every run has a directory of its own; its files are kept, and what it failed of is its exit
status. Stop it whenever you like; started again, it goes on where it was.

    sudo apt-get install xtb
    python examples/molecule_screening.py                        # everything, into results/
    python examples/molecule_screening.py --molecules H2O C6H6
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from hints import make_folder, print_commands
from molecule_tables import print_table, tabulate

import grange as gr

HARTREE = 27.211386245988  # eV


class XtbEnergy(gr.CalcJob):
    """The energy of a molecule as it is: a single point with GFN2-xTB."""

    class Inputs:
        molecule: gr.Structure
        charge: int = 0
        unpaired_electrons: int = 0

    class Outputs:
        energy: float  # eV
        gap: float  # eV, from the highest occupied to the lowest unoccupied orbital

    NOT_CONVERGED = gr.ExitCode(310, "the charges did not become self-consistent")
    REFUSED = gr.ExitCode(311, "xtb gave up: {reason}")
    NO_ENERGY = gr.ExitCode(312, "no total energy in xtbout.json")
    OTHER_SPIN = gr.ExitCode(313, "xtb took {taken} unpaired electrons where {asked} were asked for")

    #: Energies of such atoms (H, N, O, F) differ by 1 Hartree from run to run of xtb 6.5.1.
    UNSTEADY = gr.ExitCode(314, "no orbital is left for the majority spin: the energy may be 1 Hartree off")

    parse_failed = True  # xtb returns 1 for whatever went wrong; its output says what it was

    def prepare(self, inputs) -> gr.Command:
        electrons = ["--chrg", str(inputs.charge), "--uhf", str(inputs.unpaired_electrons)]
        return gr.Command(
            argv=["xtb", "molecule.xyz", "--gfn", "2", "--sp", "--json", "--norestart", *electrons],
            files={"molecule.xyz": xyz(inputs.molecule)},
            environment={"OMP_NUM_THREADS": "1"},
            retrieve=["xtbout.json", "charges", "wbo"],
        )

    def parse(self, files) -> dict[str, float] | gr.ExitCode:
        import json

        printed = files.text("stdout.txt")
        if "iterator did not converge" in printed:
            return self.NOT_CONVERGED
        if files.return_code:
            return self.REFUSED.format(reason=reason_of(printed))
        if "xtbout.json" not in files:
            return self.NO_ENERGY
        result = json.loads(files["xtbout.json"])
        energy, electrons = result.get("total energy"), result["number of electrons"]
        taken, asked = result["number of unpaired electrons"], self.inputs.unpaired_electrons
        if not isinstance(energy, float) or not np.isfinite(energy):
            return self.NO_ENERGY
        if taken != asked:  # where there are not so many electrons, xtb takes fewer
            return self.OTHER_SPIN.format(taken=taken, asked=asked)
        if electrons > 0 and (electrons + taken) // 2 == result["number of molecular orbitals"]:
            return self.UNSTEADY
        return {"energy": energy * HARTREE, "gap": result["HOMO-LUMO gap/eV"]}


def xyz(atoms: Atoms) -> str:
    """A molecule in the XYZ format (Å)."""
    rows = zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)
    lines = [f"{symbol:2} {x:15.8f} {y:15.8f} {z:15.8f}" for symbol, (x, y, z) in rows]
    return "\n".join([str(len(atoms)), "", *lines, ""])


def reason_of(printed: str) -> str:
    """What xtb says of why it stopped: the innermost line of its error box, or the last line before it."""
    lines = [line.strip() for line in printed.splitlines() if line.strip(" #|")]
    innermost = [line for line in lines if line.startswith("-1- ")]
    return innermost[-1].removeprefix("-1- ") if innermost else (lines or ["it printed nothing"])[-1]


def unpaired_electrons(atoms: Atoms, charge: int) -> int:
    """How many electrons are unpaired in the neutral molecule, or in its cation (charge 1).

    The electron is taken from a half-filled orbital where there is one. Where experiment says otherwise
    (OH+ is a triplet) GFN2-xTB does not know: its energy has no term that favours parallel spins, and for
    nearly all of the 43 molecules with unpaired electrons the cation with fewer of them is not higher.
    """
    of_neutral = round(abs(atoms.get_initial_magnetic_moments().sum()))
    return abs(of_neutral - charge)


def main() -> int:
    arguments = parse_arguments()
    if shutil.which("xtb") is None:
        print("This example runs the program xtb, which is not on PATH: apt-get install xtb", file=sys.stderr)
        return 1
    make_folder(arguments.output)
    names = arguments.molecules
    structures = [molecule(name) for name in names]

    profile = gr.open(arguments.home)
    campaign = gr.Campaign("g2-ionisation", profile, description="GFN2-xTB single points of the G2 molecules")
    campaign.map(
        XtbEnergy,
        molecule=structures * 2,
        charge=[0] * len(names) + [1] * len(names),
        unpaired_electrons=[unpaired_electrons(atoms, charge) for charge in (0, 1) for atoms in structures],
        labels=names + [f"{name}+" for name in names],
        resources=gr.Resources(cpus=1, walltime_s=60),
    )
    campaign.run()

    results = campaign.results().assign(name=names * 2)
    energies = results.pivot_table(
        index="name", columns="charge", values="energy", aggfunc="first", dropna=False
    )
    table = tabulate(names, energies.reindex(index=names, columns=[0, 1]).astype(float))
    report(table, results, arguments.output)
    last = results["process"].iloc[-1]
    print_commands(
        arguments.home,
        f"campaign show {campaign.name}",
        f"node cat {last} stdout.txt    # what xtb printed for {names[-1]}+",
    )
    return 0


def report(table: pd.DataFrame, results: pd.DataFrame, folder: Path) -> None:
    """Print the table and what failed; write the files."""
    from molecule_figures import draw_parity

    print_table(table)
    failed = results[results["exit_status"] != 0]
    print(f"\n{len(results) - len(failed)} of {len(results)} calculations gave an energy.")
    for row in failed.itertuples():
        said = f"{row.label}: exit status {row.exit_status}, {row.exit_message}"
        print(textwrap.fill(said, 80, initial_indent="  ", subsequent_indent="    "))
    table.to_csv(folder / "ionisation.csv", index=False, float_format="%.6f")
    table.to_parquet(folder / "ionisation.parquet")
    draw_parity(table, folder / "ionisation.png")
    print(f"\nIn {folder}/: ionisation.csv, ionisation.parquet, ionisation.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = sorted(g2.names)
    parser.add_argument(
        "--molecules",
        nargs="+",
        choices=every,
        default=every,
        metavar="NAME",
        help="only these of ASE's G2 names",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results"), help="folder for tables and pictures (results)"
    )
    parser.add_argument("--home", type=Path, help="folder of the profile (GRANGE_HOME, or ~/.grange)")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        sys.exit(130)
