"""Workflows by the hundred while every part of the engine is killed: each ends once, with the right graph.

The variant of CI runs 300 roots (some 8,000 processes), does each kind of fault once when it matters, then
some by chance. The full one:

    GRANGE_TEST_WORKFLOWS=2000 .venv/bin/python -m pytest tests/acceptance/test_engine_faults.py -s

It takes 5 minutes on two busy cores: 13,261 workflows, 39,781 calculations, 101 faults.
GRANGE_TEST_SEED repeats what chance did; the seed and a diary of the faults are told when it fails.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator

import pytest
import workflow_faults_site as site
from engine_faults import FaultyEngine

from grange.core.profile import Profile

COUNT = int(os.environ.get("GRANGE_TEST_WORKFLOWS", "300"))
SEED = int(os.environ.get("GRANGE_TEST_SEED") or random.SystemRandom().randrange(1 << 31))
#: So many faults by chance, and seconds between them.
BY_CHANCE = 8 if COUNT <= 300 else COUNT // 20
PAUSE_S = (0.5, 2.5)

#: Each is done once for certain; before them the client is killed, which may have submitted all later.
KINDS = (
    "script",
    "worker",
    "dispatcher",
    "runner",
    "connections",
    "supervisor",
    "postgres",
    "disk",
)


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyEngine]:
    confined = any(
        subprocess.run(["unshare", flags, "true"], capture_output=True, check=False).returncode == 0
        for flags in ("-n", "-rn")
    )
    home = tmp_path_factory.mktemp("f") / "home"
    made = FaultyEngine(home, COUNT, SEED, hyperqueue=confined)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.timeout(300 if COUNT <= 300 else 7200)
def test_whatever_is_killed_every_workflow_ends_once_with_the_right_graph(
    engine: FaultyEngine, profile: Profile
) -> None:
    began = time.monotonic()
    expected = site.undisturbed(profile)
    print(f"seed {SEED}; undisturbed after {time.monotonic() - began:.1f} s")
    try:
        kinds = [*KINDS, *(["hyperqueue"] if engine.hyperqueue else [])]
        engine.luck.shuffle(kinds)
        engine.begin()
        for kind in ["client", *kinds]:
            engine.strike(kind, certain=True)
        assert engine.done.keys() == {"client", *kinds}
        engine.run_out(PAUSE_S, BY_CHANCE)
        print(f"all have ended after {time.monotonic() - began:.1f} s: {dict(engine.done)}")
        site.check(engine.profile, expected, COUNT + engine.scripts)
        site.check_files(engine.profile)
        engine.check_left_overs()
        print(f"checked after {time.monotonic() - began:.1f} s; {engine.told_of_work()}")
    except BaseException as error:
        error.add_note(f"seed {SEED}\n" + "\n".join(engine.diary))
        raise
