"""What a person needs beside the results: a folder that takes them, and the command to type next."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make the folder for the results, before anything is computed; end with a sentence where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        sys.exit(f"The results cannot go to {folder}/ ({error.strerror}): --output names another folder.")


def grange_command(home: Path | None) -> str:
    """`grange`, by its path where that is not on PATH, with the home if it is not the usual one."""
    installed = Path(sys.executable).with_name("grange")
    found = shutil.which("grange")
    program = (
        "grange" if found and Path(found).resolve() == installed.resolve() else os.path.relpath(installed)
    )
    if program.startswith(".."):
        program = str(installed)
    return f"{program} --home {shlex.quote(str(home))}" if home else program


def print_commands(home: Path | None, *lines: str) -> None:
    """What to type to see what is behind the results."""
    print("\nWhat is behind it:")
    for line in lines:
        print(f"    {grange_command(home)} {line}")
    if shutil.which("dot") is None and any(line.startswith("graph") for line in lines):
        print("Pictures are drawn by Graphviz: apt-get install graphviz")
