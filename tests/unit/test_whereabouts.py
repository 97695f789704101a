"""What a worker is at is known when it is dead."""

from __future__ import annotations

import os
import subprocess
import sys

from grange.core.whereabouts import KEPT_S, Watched, Whereabouts

CODE = """
import os, signal, sys
from grange.core.whereabouts import Whereabouts
at = Whereabouts(int(sys.argv[1]))
for process_id in (0, 2**40, 0, 17):
    at.tell(process_id)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_has_told_where_it_was() -> None:
    watched = Watched()
    assert watched.process_id == 0
    ended = subprocess.run(
        [sys.executable, "-c", CODE, str(watched.descriptor)],
        pass_fds=(watched.descriptor,),
        timeout=60,
        check=False,
    )
    assert ended.returncode == -9
    assert watched.process_id == 17
    watched.close()


def test_who_keeps_a_worker_is_told_once() -> None:
    watched = Watched()
    at = Whereabouts(os.dup(watched.descriptor))
    at.tell(17)
    assert watched.kept_by(0.0) == 0
    assert watched.kept_by(KEPT_S - 1) == 0
    assert watched.kept_by(KEPT_S) == 17
    assert watched.kept_by(10 * KEPT_S) == 0
    at.tell(0)
    for now_s in (20 * KEPT_S, 40 * KEPT_S):  # nobody is at anything: however long
        assert watched.kept_by(now_s) == 0
    at.tell(17)
    at.tell(0)
    at.tell(17)  # again, not still
    assert watched.kept_by(41 * KEPT_S) == 0
    assert watched.kept_by(42 * KEPT_S) == 17
    watched.close()
