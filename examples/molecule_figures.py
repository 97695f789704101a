"""The picture of molecule_screening.py: computed against measured ionisation energies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from molecule_tables import errors

INK, SOFT, GRID = "#1f2933", "#52606d", "#e4e7eb"
COLOURS = {"closed shell": "#0f62a8", "radical": "#d1495b", "atom": "#b7791f"}
NAMES = {"closed shell": "closed shell", "radical": "radical or triplet", "atom": "atom"}


def draw_parity(table: pd.DataFrame, path: Path) -> None:
    """Computed over measured ionisation energies, with the molecules that are furthest off named."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    known = table.dropna(subset=["ionisation_energy", "experimental_adiabatic"]).copy()
    known["vertical"] = known["experimental_vertical"].notna()
    known["experiment"] = known["experimental_vertical"].fillna(known["experimental_adiabatic"])
    known["off"] = known["ionisation_energy"] - known["experiment"]

    figure = Figure(figsize=(7.4, 8.1), dpi=140, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.6)
    axes.tick_params(length=0, labelsize=10.5, colors=SOFT)
    for side in axes.spines.values():
        side.set_color("#cbd2d9")
    values = known[["experiment", "ionisation_energy"]].to_numpy(float)
    low, high = (values.min() - 0.9, values.max() + 0.9) if len(values) else (5.0, 15.0)
    ends = np.array([low, high])
    axes.fill_between(ends, ends - 1, ends + 1, color=INK, alpha=0.05, lw=0)
    axes.plot(ends, ends, color=SOFT, lw=1)
    for kind, colour in COLOURS.items():
        for vertical, face in ((True, colour), (False, "white")):
            shown = known[(known["kind"] == kind) & (known["vertical"] == vertical)]
            axes.plot(
                shown["experiment"],
                shown["ionisation_energy"],
                "o",
                ms=6.5,
                mfc=face,
                mec=colour,
                mew=1.3,
                alpha=0.9,
            )
    for row in known[known["off"].abs() > 1.8].itertuples():
        right = row.off < 0
        axes.annotate(
            formula(row.molecule),
            (row.experiment, row.ionisation_energy),
            (7 if right else -7, -5 if right else 5),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            size=9,
            color=INK,
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("experiment (eV)", size=11.5, color=INK)
    axes.set_ylabel("GFN2-xTB, less xtb's shift of 4.8455 eV (eV)", size=11.5, color=INK)
    axes.set_title("Vertical ionisation energies", size=15, weight="bold", color=INK, loc="left", pad=28)
    off = errors(table)
    said = f"mean error {off.mean():+.2f} eV, mean size {off.abs().mean():.2f} eV; " if len(off) else ""
    axes.text(
        0,
        1.015,
        f"{len(off)} molecules with a vertical experiment: {said}band: ±1 eV".replace("-", "−"),
        transform=axes.transAxes,
        size=10,
        color=SOFT,
        va="bottom",
    )
    handles = [
        Line2D([], [], ls="", marker="o", ms=6.5, color=colour, label=NAMES[kind])
        for kind, colour in COLOURS.items()
    ]
    handles.append(
        Line2D([], [], ls="", marker="o", ms=6.5, mfc="white", mec=SOFT, label="only adiabatic known")
    )
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=10.5, handletextpad=0.2)
    figure.savefig(path)


def formula(name: str) -> str:
    """A name of the G2 collection with its numbers as subscripts, without what tells its state."""
    return "".join(
        f"$_{character}$" if character.isdigit() else character for character in name.split("_")[0]
    )
