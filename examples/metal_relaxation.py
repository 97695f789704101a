"""Find the lattice constants of seven fcc metals by a workflow that looks where the last look told it to.

For each metal five energies are computed around a guess that is far off; a parabola through them says where
to look next, ever closer, until the guess stands still. Each metal is a workflow, its energies are computed
side by side, and every number that the loop went by is recorded. Stop it whenever you like; started again,
each workflow goes on where it was.

    python examples/metal_relaxation.py
    python examples/metal_relaxation.py --submit     # after `grange daemon start`: it computes, this waits
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from hints import print_commands

import grange as gr

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")
#: Å, for all of them: between nickel's 3.5 and gold's 4.1.
FIRST_GUESS = 3.8
#: Å, from the guess to the outermost of the five.
FIRST_REACH, LAST_REACH = 0.3, 0.002

NOT_FOUND = gr.ExitCode(310, "the lattice constant still moved after {rounds} rounds")


def emt_energy(metal: str, constant: float) -> float:
    """The energy (eV) of an atom in an fcc crystal with a lattice constant (Å)."""
    from ase.build import bulk
    from ase.calculators.emt import EMT

    atoms = bulk(metal, "fcc", a=constant)
    atoms.calc = EMT()
    return float(atoms.get_potential_energy())


@gr.calcfunction
def around(guess: float, reach: float) -> dict[str, float]:
    """Five lattice constants (Å) around a guess."""
    return {f"a{number}": guess + step * reach for number, step in enumerate((-1, -0.5, 0, 0.5, 1))}


@gr.calcfunction
def look_next(constants: list[float], energies: list[float], reach: float) -> dict[str, float]:
    """Where to look next (Å), and how far around; where no minimum lies between, on the lower side.

    It looks closer only when the minimum lies well inside.
    """
    curvature, slope, _ = np.polyfit(np.array(constants) - constants[2], energies, 2)
    step = -slope / (2 * curvature) if curvature > 0 else -np.sign(slope) * np.inf
    inside = abs(step) < reach / 2
    return {
        "guess": constants[2] + float(np.clip(step, -reach, reach)),
        "reach": reach / 4 if inside else reach,
    }


@gr.workflow
def lattice_constant(metal: gr.Str, guess: gr.Float, reach: gr.Float, rounds: int = 20) -> object:
    """The lattice constant (Å) of a metal, to within LAST_REACH."""
    for _ in range(rounds.value):  # type: ignore[attr-defined]  # workflows get nodes
        constants = list(around(guess, reach).values())
        energies = [gr.submit(emt_energy, metal=metal, constant=constant) for constant in constants]
        found = look_next(constants, [energy.result() for energy in energies], reach)
        guess, reach = found["guess"], found["reach"]
        if reach.value < LAST_REACH:
            return {"constant": guess}
    return NOT_FOUND.format(rounds=rounds.value)  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--home", type=Path, help="the folder of the profile (default: GRANGE_HOME, else ~/.grange)"
    )
    parser.add_argument("--submit", action="store_true", help="let a daemon run it, and wait")
    arguments = parser.parse_args()
    profile = gr.open(arguments.home)
    campaign = gr.Campaign("metal-relaxation", profile, description="lattice constants by a loop")
    campaign.map(lattice_constant, metal=METALS, guess=FIRST_GUESS, reach=FIRST_REACH, labels=METALS)
    if arguments.submit:
        campaign.submit()
    campaign.run()
    frame = campaign.results()
    print(frame[["label", "constant", "exit_status"]].to_string(index=False, float_format="%.3f"))
    print_commands(
        arguments.home,
        "process status metal-relaxation/0",
        "graph metal-relaxation/0 --links logic -o aluminium.svg",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
