"""A Ctrl-C ends a command, wherever it comes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_SCRIPT = """
import os, signal, sys, threading, time
import click, grange.cli.entry
from grange.__main__ import main

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

@click.command("there")
def in_the_midst():
    Finalised()
    for _ in range(500):
        time.sleep(0.01)

@click.command("end")
def at_the_end():
    Finalised()

@click.command("after")
def after():
    def interrupt():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    threading.Thread(target=interrupt).start()

grange.cli.entry.root = click.Group(commands=[in_the_midst, at_the_end, after])
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("command", "status"), [("there", 130), ("end", 130), ("after", -signal.SIGINT)], ids=str
)
def test_where_python_drops_it(command: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, command], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert "KeyboardInterrupt" not in done.stderr
    assert done.stderr.strip() == ("" if status < 0 else "interrupted")
