"""Functions that the executors' tests ship by reference."""

from __future__ import annotations

import enum
import os
import pathlib
import signal
import subprocess
import sys
import time


class ExitCode:
    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class Colour(enum.Enum):
    RED = "red"


def add(x, y):
    return {"sum": x + y}


def identity(x):
    return x


def raise_value_error(x):
    raise ValueError(f"no such {x}")


def say(x):
    print("said", x)
    sys.stderr.write("warned\n")
    os.write(1, b"low level\n")
    return x


def arrays():
    import numpy as np

    return {"energies": np.arange(6.0).reshape(2, 3), "scalar": np.float64(2.5), "flags": np.array([True])}


def end_by_exit(x):
    if x == 3:
        print("last words", flush=True)
        os._exit(17)
    return x


def end_by_signal(x):
    if x == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return x


def exit_code(x):
    return ExitCode(410, f"did not converge: {x}")


def nap(seconds):
    time.sleep(seconds)
    return seconds


def busy(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return seconds


def allocate(mib):
    block = bytearray(mib << 20)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.5)
    return len(block)


def write_file(text):
    path = pathlib.Path("out.dat")
    path.write_text(text)
    return {"file": path, "left": sorted(os.listdir("."))}


def change(atoms):
    """Changes its argument, as many a function does."""
    before = len(atoms)
    atoms.append(1)
    return before


def start_and_wait(seconds):
    subprocess.run(["sleep", str(seconds)], check=True)
    return "over"


def bulk(symbol):
    from ase.build import bulk as build

    return {"structure": build(symbol, cubic=True)}


def colour():
    return Colour.RED


def stop_at_five(text):
    return text.count("step") >= 5
