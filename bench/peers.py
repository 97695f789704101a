"""Other programs, to compare with: each in an environment of its own, made on first use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent.parent / "build" / "peers"


def python_with(requirement: str) -> str:
    """An interpreter that has a package of PyPI, of an exact version ("name==1.2").

    Errors: SystemExit where it cannot be installed.
    """
    folder = _FOLDER / requirement
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {requirement} to compare with ...", file=sys.stderr)
        for argv in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
        ):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{requirement} cannot be installed: {done.stderr.strip()[-500:]}")
        (folder / "installed").touch()
    return str(python)
