"""The examples and the notebook, run as a reader runs them, in one home of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from grange.core.postgres import stop_server

EXAMPLES = Path(__file__).parents[2] / "examples"
PNG = b"\x89PNG"
#: Å; the lattice constants at which EMT's energies are lowest.
EMT_CONSTANTS = {"Al": 3.994, "Ni": 3.487, "Cu": 3.590, "Pd": 3.879, "Ag": 4.064, "Pt": 3.922, "Au": 4.056}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home that the examples share, as a reader's do; results/ lies in it."""
    folder = Path(tempfile.mkdtemp(prefix="grange-examples-"))
    yield folder
    assert stop_server(folder / "postgres", force=True)
    data = folder / "postgres" / "data"
    if data.is_symlink():  # root without namespaces
        shutil.rmtree(data.readlink().parent)
    shutil.rmtree(folder)


def run(home: Path, *argv: str | Path) -> str:
    """Run Python on a script; both outputs as they come."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ, "PATH": path, "GRANGE_HOME": str(home), "MPLBACKEND": "Agg", "COLUMNS": "80"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def alloys(home: Path) -> str:
    return run(home, EXAMPLES / "alloy_screening.py", "--quick")


def test_the_metals_by_a_workflow(home: Path) -> None:
    said = run(home, EXAMPLES / "metal_relaxation.py")
    found = dict(re.findall(r"^ *([A-Z][a-z]) +(\d\.\d{3}) +0$", said, re.MULTILINE))
    # EMT's own, from its equations of state
    assert {metal: float(text) for metal, text in found.items()} == pytest.approx(EMT_CONSTANTS, abs=0.004)
    again = run(home, EXAMPLES / "metal_relaxation.py")
    assert "7 from the record" in again


def test_the_alloys(home: Path, alloys: str) -> None:
    assert max(map(len, alloys.splitlines())) <= 80
    table = pd.read_csv(home / "results" / "alloys.csv").set_index("compound")
    assert list(table.index) == ["Ni", "Pt", "Ni3Pt", "NiPt", "NiPt3"]
    assert table.loc["Pt", "lattice_constant"] == pytest.approx(3.922, abs=0.002)
    assert table.loc["NiPt", "formation_enthalpy"] == pytest.approx(-0.107, abs=0.002)
    assert len(pd.read_parquet(home / "results" / "alloys.parquet")) == 5
    for name in ("alloy_curves.png", "alloy_hull_Ni-Pt.png"):
        assert (home / "results" / name).read_bytes().startswith(PNG)


def test_the_alloys_again_come_from_the_record(home: Path, alloys: str) -> None:
    again = run(home, EXAMPLES / "alloy_screening.py", "--quick")
    assert "40 of 40, in" in again
    assert "40 from the record" in again
    assert again[again.index("Metals") :] == alloys[alloys.index("Metals") :]


def test_the_command_that_is_printed_draws_the_fit(home: Path, alloys: str) -> None:
    words = re.search(r"graph \d+ -o NiPt\.svg", alloys)
    assert words is not None
    assert "nodes" in run(home, "-m", "grange", *words[0].split())
    picture = (home / "NiPt.svg").read_text()
    for text in ("birch_murnaghan", "NiPt", "energies__0", "volumes__0", "StructureData", "bulk_modulus"):
        assert text in picture


def test_the_notebook(home: Path, alloys: str) -> None:
    """Its cells in a plain Python, on what the alloys left."""
    notebook = json.loads((EXAMPLES / "bulk_query.ipynb").read_text())
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    checks = """
assert lowest.loc["NiPt", "volume"] == 8, lowest
assert lowest["energy"].idxmin() == "Ni3Pt", lowest
assert len(reduced) == 40
assert abs(reduced["volume"] - 1).max() < 0.2 and -1e-3 < reduced["energy"].min() < 1e-3
figure.savefig("notebook.png")
"""
    script = home / "cells.py"
    script.write_text("\n".join([*cells, checks]))
    run(home, script)
    assert (home / "notebook.png").read_bytes().startswith(PNG)


def test_the_molecules(home: Path) -> None:
    printed = run(home, EXAMPLES / "molecule_screening.py", "--molecules", "H2O", "N2", "H")
    assert max(map(len, printed.splitlines())) <= 80
    assert "5 of 6 calculations gave an energy" in printed
    assert "H: exit status 314" in printed
    table = pd.read_csv(home / "results" / "ionisation.csv").set_index("molecule")
    assert table.loc["N2", "ionisation_energy"] == pytest.approx(13.33, abs=0.02)
    assert (home / "results" / "ionisation.png").read_bytes().startswith(PNG)
    words = re.search(r"node cat \d+ stdout\.txt", printed)
    assert words is not None
    assert "TOTAL ENERGY" in run(home, "-m", "grange", *words[0].split())


def test_the_first_lines(home: Path) -> None:
    printed = run(home, EXAMPLES / "first_contact.py")
    assert "first-contact: 1,000 of 1,000" in printed
    run(home, "-m", "grange", "campaign", "results", "first-contact", "--csv", "first.csv")
    steps = pd.read_csv(home / "first.csv").set_index("start")["result"]
    assert len(steps) == 1000
    assert (steps[1], steps[27], steps[871]) == (0, 111, 178)


def test_a_script_beside_a_folder_named_grange(tmp_path: Path) -> None:
    """As in the folder that holds the checkout: an environment of `make install` finds the package."""
    (tmp_path / "grange").mkdir()
    (tmp_path / "script.py").write_text("import grange as gr; print(gr.Campaign.__name__)")
    assert run(tmp_path, tmp_path / "script.py") == "Campaign\n"
