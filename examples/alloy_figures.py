"""The pictures of alloy_screening.py: all curves in one matrix, and the convex hull of one pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

INK = "#1f2933"
FAINT = "#9aa5b1"
GRID = "#e4e7eb"
#: From the first element to the second: readable without colour vision as well.
A_RICH, EQUAL, B_RICH = "#0f62a8", "#7b4fa3", "#d1495b"
STABLE = "#0b7a5e"
SOFT = "#52606d"

#: The margins of the matrix of curves, in inches.
LEFT, RIGHT, TOP, BOTTOM = 0.85, 0.75, 1.5, 0.75


def convex_hull(fractions: list[float], enthalpies: list[float]) -> list[int]:
    """The indices of the points on the lower convex hull, from left to right."""
    hull: list[int] = []
    for index in sorted(range(len(fractions)), key=lambda i: (fractions[i], enthalpies[i])):
        while len(hull) > 1:
            (x0, y0), (x1, y1) = ((fractions[i], enthalpies[i]) for i in hull[-2:])
            turn = (x1 - x0) * (enthalpies[index] - y0) - (y1 - y0) * (fractions[index] - x0)
            if turn > 0:
                break
            hull.pop()
        hull.append(index)
    return hull


def orderings(a: str, b: str) -> list[tuple[str, float, str]]:
    """Name, fraction of b, and colour of the three ordered compounds of a pair."""
    return [(f"{a}3{b}", 0.25, A_RICH), (f"{a}{b}", 0.5, EQUAL), (f"{a}{b}3", 0.75, B_RICH)]


def draw_curves(table: pd.DataFrame, points: pd.DataFrame, path: Path) -> None:
    """A matrix over the metals: their curves on the diagonal, their alloys' above it, enthalpies below."""
    from matplotlib.figure import Figure

    metals = list(table.loc[table["prototype"] == "A1", "compound"])
    count = len(metals)
    size = count * max(2.0, 12.4 / count)
    width, height = size + LEFT + RIGHT, size + TOP + BOTTOM
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    grid = figure.add_gridspec(
        count,
        count,
        left=LEFT / width,
        right=1 - RIGHT / width,
        bottom=BOTTOM / height,
        top=1 - TOP / height,
        wspace=0.08,
        hspace=0.08,
    )
    by_name = table.set_index("compound")
    curves = _curves(points, by_name)
    volumes, energies = (np.concatenate(values) for values in zip(*curves.values(), strict=True))
    enthalpies = 1000 * table["formation_enthalpy"]
    spread = max(enthalpies.max() - enthalpies.min(), 10.0)
    for row, a in enumerate(metals):
        for column, b in enumerate(metals):
            axes = figure.add_subplot(grid[row, column])
            _plain(axes)
            if row > column and f"{b}{a}" in by_name.index:
                axes.set_ylim(enthalpies.min() - 0.12 * spread, enthalpies.max() + 0.35 * spread)
                _draw_small_hull(axes, by_name, b, a)
            elif row <= column and (row == column or f"{a}{b}" in by_name.index):
                axes.set_xlim(volumes.min() - 0.3, volumes.max() + 0.3)
                axes.set_ylim(-0.06 * energies.max(), 1.05 * energies.max())
                axes.locator_params(axis="x", nbins=6, steps=[1, 2, 5, 10])
                axes.locator_params(axis="y", nbins=4, steps=[1, 2, 5, 10])
                shown = orderings(a, b) if row < column else [(a, 0.0, INK)]
                for name, _, colour in shown:
                    _draw_curve(axes, *curves[name], by_name.loc[name], colour)
                if row == column:
                    on_left = float(curves[a][0].mean()) > (volumes.min() + volumes.max()) / 2
                    _name_metal(axes, a, on_left)
            else:
                axes.set_axis_off()
            _tick_labels(axes, row, column, count)
    _explain(figure, width, height)
    figure.savefig(path)


def _curves(points: pd.DataFrame, by_name: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Volumes (Å^3/atom) and energies above the fitted minimum (meV/atom) of each compound of four atoms."""
    return {
        name: (
            curve["volume"].to_numpy(float) / 4,
            1000 * (curve["energy"].to_numpy(float) / 4 - by_name.loc[name, "energy"]),
        )
        for name, curve in points.groupby("compound", sort=False)
    }


def _explain(figure: Any, width: float, height: float) -> None:
    """Title, legend and the names of the axes."""
    from matplotlib.lines import Line2D

    left, middle = LEFT / width, (BOTTOM + (height - BOTTOM - TOP) / 2) / height
    centre = (LEFT + (width - LEFT - RIGHT) / 2) / width
    title = "Equations of state of fcc metals and their ordered alloys"
    figure.text(left, 1 - 0.32 / height, title, size=18, weight="bold", color=INK, va="center")
    what = (
        "Points: EMT energies. Lines: Birch-Murnaghan fits. Below the diagonal: formation enthalpies, "
        "their convex hull, and the extreme of each pair."
    )
    figure.text(left, 1 - 0.66 / height, what, size=11, color=SOFT, va="center")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=5, lw=1.6, label=label)
        for colour, label in (
            (A_RICH, "A$_3$B (L1$_2$)"),
            (EQUAL, "AB (L1$_0$)"),
            (B_RICH, "AB$_3$ (L1$_2$)"),
        )
    ]
    figure.legend(
        handles=handles,
        loc="center right",
        bbox_to_anchor=(1 - (RIGHT - 0.1) / width, 1 - 0.33 / height),
        ncols=3,
        frameon=False,
        fontsize=11.5,
        columnspacing=1.4,
        handlelength=1.6,
        handletextpad=0.6,
    )
    names = {"size": 12, "color": SOFT, "va": "center", "ha": "center"}
    figure.text(centre, 1 - (TOP - 0.42) / height, "volume (Å$^3$/atom)", **names)
    figure.text(1 - 0.2 / width, middle, "energy above the minimum (meV/atom)", rotation=270, **names)
    figure.text(0.2 / width, middle, "formation enthalpy (meV/atom)", rotation=90, **names)
    figure.text(centre, 0.25 / height, "composition, from A (column) to B (row)", **names)


def _draw_curve(axes: Any, volume: np.ndarray, energy: np.ndarray, row: pd.Series, colour: str) -> None:
    smooth = np.linspace(volume.min(), volume.max(), 120)
    axes.plot(smooth, 1000 * birch_murnaghan_energy(smooth, row), color=colour, lw=1.3, zorder=2)
    axes.plot(volume, energy, "o", color=colour, ms=2.8, mew=0, alpha=0.8, zorder=3)


def _name_metal(axes: Any, metal: str, on_left: bool) -> None:
    place = {"x": 0.08, "ha": "left"} if on_left else {"x": 0.92, "ha": "right"}
    axes.text(y=0.92, s=metal, transform=axes.transAxes, color=INK, va="top", size=19, weight="bold", **place)


def birch_murnaghan_energy(volume: np.ndarray, row: pd.Series) -> np.ndarray:
    """The energy per atom (eV) above the minimum, from the fitted parameters."""
    v0 = row["lattice_constant"] ** 3 / 4
    b0 = row["bulk_modulus"] / 160.2176634
    eta = (v0 / volume) ** (2 / 3) - 1
    return 9 / 16 * v0 * b0 * eta**2 * (2 + (row["bulk_modulus_derivative"] - 4) * eta)


def _draw_small_hull(axes: Any, by_name: pd.DataFrame, a: str, b: str) -> None:
    trio = orderings(a, b)
    x = [0.0, *(fraction for _, fraction, _ in trio), 1.0]
    y = [0.0, *(1000 * by_name.loc[name, "formation_enthalpy"] for name, _, _ in trio), 0.0]
    on_hull = convex_hull(x, y)
    axes.axhline(0, color=FAINT, lw=0.7, zorder=1)
    axes.plot([x[i] for i in on_hull], [y[i] for i in on_hull], color=INK, lw=1.2, zorder=2)
    for index, (_, fraction, colour) in enumerate(trio, start=1):
        face = colour if index in on_hull else "white"
        axes.vlines(fraction, 0, y[index], color=colour, lw=1.0, alpha=0.35, zorder=1)
        axes.plot(fraction, y[index], "o", ms=5.5, mfc=face, mec=colour, mew=1.3, zorder=3)
    axes.set_xlim(-0.08, 1.08)
    axes.set_xticks([0, 0.5, 1], ["A", "AB", "B"])
    extreme = min(y) if min(y) < -0.5 else max(y)
    axes.text(0.06, 0.92, f"{a}–{b}", transform=axes.transAxes, va="top", size=10, color=SOFT)
    axes.text(
        0.94,
        0.92,
        signed(extreme),
        transform=axes.transAxes,
        va="top",
        ha="right",
        size=10,
        weight="bold",
        color=STABLE if extreme < 0 else B_RICH,
    )


@dataclass(frozen=True, slots=True)
class HullPoint:
    """A compound in the picture of its pair: enthalpies in meV/atom."""

    name: str
    prototype: str
    fraction: float
    enthalpy: float
    above: float
    on_hull: bool


def hull_points(table: pd.DataFrame, pair: tuple[str, str]) -> list[HullPoint]:
    """The five compounds of a pair from left to right, with their distance to the convex hull."""
    by_name = table.set_index("compound")
    trio = orderings(*pair)
    names = [pair[0], *(name for name, _, _ in trio), pair[1]]
    x = [0.0, *(fraction for _, fraction, _ in trio), 1.0]
    y = [1000 * float(by_name.loc[name, "formation_enthalpy"]) for name in names]
    hull = convex_hull(x, y)
    floor = np.interp(x, [x[i] for i in hull], [y[i] for i in hull])
    return [
        HullPoint(
            name=name,
            prototype=by_name.loc[name, "prototype"],
            fraction=x[index],
            enthalpy=y[index],
            above=0.0 if index in hull else float(y[index] - floor[index]),
            on_hull=index in hull,
        )
        for index, name in enumerate(names)
    ]


def draw_hull(table: pd.DataFrame, pair: tuple[str, str], path: Path) -> None:
    """The convex hull of one pair: what is stable against decomposition, and how far the rest is from it."""
    from matplotlib.figure import Figure

    points = hull_points(table, pair)
    hull = [point for point in points if point.on_hull]
    heights = [point.enthalpy for point in points]
    span = max(max(heights) - min(heights), 5.0)

    figure = Figure(figsize=(7.6, 5.4), dpi=140, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _plain(axes)
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(
        min(heights) - 0.2 * span, max(heights) + (0.14 if len(hull) == len(points) else 0.32) * span
    )
    axes.axhline(0, color=FAINT, lw=0.8, zorder=1)
    hull_x, hull_y = [point.fraction for point in hull], [point.enthalpy for point in hull]
    axes.fill_between(hull_x, hull_y, 0, color=STABLE, alpha=0.08, lw=0, zorder=0)
    axes.plot(hull_x, hull_y, color=STABLE, lw=2, zorder=2)
    for index, point in enumerate(points):
        place = (point.fraction, point.enthalpy)
        if point.on_hull:
            axes.plot(*place, "o", ms=10, color=STABLE, zorder=3)
        else:
            axes.plot(*place, "o", ms=10, mfc="white", mec=B_RICH, mew=1.8, zorder=3)
            axes.vlines(
                place[0], place[1] - point.above, place[1], color=B_RICH, lw=1.2, ls=(0, (2, 2)), zorder=2
            )
        slope = (heights[min(index + 1, 4)] - heights[max(index - 1, 0)]) / span
        _label(axes, point, slope)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    axes.tick_params(labelsize=10.5)
    axes.set_xlabel(f"fraction of {pair[1]}", size=11, color=INK)
    axes.set_ylabel("formation enthalpy (meV/atom)", size=11, color=INK)
    axes.set_title(
        "–".join(pair) + ": which orderings EMT finds stable",
        size=14,
        weight="bold",
        color=INK,
        loc="left",
        pad=26,
    )
    axes.text(
        0,
        1.02,
        "Filled: on the convex hull.  Hollow: would decompose into its neighbours on the hull.",
        transform=axes.transAxes,
        size=9.5,
        color=SOFT,
        va="bottom",
    )
    figure.savefig(path)


def _label(axes: Any, point: HullPoint, slope: float) -> None:
    """The formula and its numbers, on the side where the hull does not run."""
    text = formula(point.name)
    if point.prototype != "A1":
        text += f"\n{formula(point.prototype)}  {signed(point.enthalpy)}"
    if point.above:
        text += f"\n{point.above:.0f} above the hull"
    below = point.on_hull and point.prototype != "A1"
    side = "center" if not below or abs(slope) < 0.3 else "left" if slope > 0 else "right"
    axes.annotate(
        text,
        (point.fraction, point.enthalpy),
        ({"left": 9, "center": 0, "right": -9}[side], -11 if below else 12),
        textcoords="offset points",
        ha=side,
        va="top" if below else "bottom",
        size=10.5,
        color=INK,
        linespacing=1.35,
    )


def formula(name: str) -> str:
    """A compound's or prototype's name with its numbers as subscripts: Ni3Pt, L1_2."""
    if "_" in name:
        stem, number = name.split("_")
        return f"{stem}$_{number}$"
    return "".join(f"$_{character}$" if character.isdigit() else character for character in name)


def signed(value: float) -> str:
    """A whole number with its sign, as it is printed in books."""
    return f"{value:+.0f}".replace("-", "−")


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.6)
    axes.tick_params(length=0, labelsize=8.5, colors=SOFT)
    for side in axes.spines.values():
        side.set_color("#cbd2d9")
        side.set_linewidth(0.8)


def _tick_labels(axes: Any, row: int, column: int, count: int) -> None:
    """Numbers at the outer edges only: left and bottom below the diagonal, right and top for the rest."""
    hulls = row > column
    axes.tick_params(
        labelleft=hulls and column == 0,
        labelbottom=hulls and row == count - 1,
        labelright=not hulls and column == count - 1,
        labeltop=not hulls and row == 0,
    )
