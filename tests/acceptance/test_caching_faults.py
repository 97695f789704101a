"""Campaigns with the same calls, run at the same time and killed at random.

Each call is computed once, or once more for each time that who computed it was killed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import grange as gr
from grange.core.profile import Profile

CALLS = 150
NAMES = ("one", "two", "three")
KILLS = 6
PATIENCE_S = 120

SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr
    sys.path.insert(0, sys.argv[3])
    from counted_module import counted
    campaign = gr.Campaign(sys.argv[2], gr.open(sys.argv[1]))
    campaign.map(counted, x=range(int(sys.argv[4])), folder=sys.argv[3])
    done = campaign.run(progress=False)
    assert done.failed == 0 and done.done == done.total, done
""")

MODULE = textwrap.dedent("""
    def counted(x: int, folder: str) -> int:
        import time
        import uuid
        from pathlib import Path

        time.sleep(0.05)
        (Path(folder) / f"ran-{x}-{uuid.uuid4().hex}").touch()
        return x * x
""")


@dataclass(frozen=True, order=True)
class Attempt:
    """When a campaign had a call under way. Units: seconds since the epoch."""

    began_at: float
    ended_at: float
    campaign: str


def attempts(profile: Profile, killed: dict[str, list[float]]) -> dict[bytes, list[Attempt]]:
    """For each call, who had it under way and when, from the events; killed: when runs of campaigns were."""
    with profile.transaction() as cursor:
        cursor.execute(
            """
            SELECT key, g.label, process_id, kind::text, extract(epoch FROM e.time)::float8
            FROM event e JOIN process ON node_id = process_id JOIN "group" g ON g.id = campaign_id
            ORDER BY e.id
            """
        )
        events = cursor.fetchall()
    found: dict[bytes, list[Attempt]] = {}
    begun: dict[int, float] = {}
    for key, name, process, kind, at in events:
        if kind in ("submitted", "claimed"):
            if process in begun:  # that attempt ended with its run
                ended = min(time for time in killed[name] if time >= begun[process])
                found.setdefault(bytes(key), []).append(Attempt(begun[process], ended, name))
            begun[process] = at
        elif kind == "follows":  # found out in the same transaction as it was claimed
            begun.pop(process, None)
        elif kind == "finished":
            found.setdefault(bytes(key), []).append(Attempt(begun.pop(process), at, name))
    assert not begun.keys() - {process for _, _, process, kind, _ in events if kind == "reused"}
    return found


@pytest.mark.slow
def test_what_several_campaigns_want_is_computed_once_whoever_is_killed(
    profile: Profile, tmp_path: Path
) -> None:
    seed = int(os.environ.get("GRANGE_SEED", random.SystemRandom().randrange(1 << 30)))
    print(f"GRANGE_SEED={seed}")
    chance = random.Random(seed)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "counted_module.py").write_text(MODULE)

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SCRIPT, profile.home, name, folder, str(CALLS)]
        return subprocess.Popen(words, start_new_session=True)

    running = {name: start(name) for name in NAMES}
    killed: dict[str, list[float]] = {name: [] for name in NAMES}
    deadline = time.monotonic() + PATIENCE_S
    try:
        while running:
            assert time.monotonic() < deadline, f"{list(running)} do not end"
            time.sleep(chance.uniform(0.0, 0.8))
            for name in [name for name, process in running.items() if process.poll() is not None]:
                assert running.pop(name).returncode == 0
            if running and sum(map(len, killed.values())) < KILLS:
                name = chance.choice(list(running))
                if running[name].poll() is None:
                    killed[name].append(time.time())
                    os.killpg(running[name].pid, signal.SIGKILL)
                    running[name].wait()
                    running[name] = start(name)
    finally:
        for process in running.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*), count(*) FILTER (WHERE state = 'finished' AND exit_status = 0) FROM process"
        )
        assert cursor.fetchone() == (CALLS * len(NAMES), CALLS * len(NAMES))
        cursor.execute("SELECT count(*) FROM process WHERE cached_from IS NULL")
        ((computed,),) = cursor.fetchall()
        # who was answered names one that was computed
        cursor.execute(
            "SELECT count(*) FROM process p JOIN process s ON s.node_id = p.cached_from"
            " WHERE s.finished_at > p.finished_at OR s.key <> p.key"
        )
        assert cursor.fetchone() == (0,)
    assert CALLS <= computed <= len(list(folder.glob("ran-*"))), f"seed {seed}"
    for key, tries in attempts(profile, killed).items():
        tries.sort()
        for before, after in itertools.pairwise(tries):
            assert before.ended_at <= after.began_at, f"seed {seed}: {key.hex()} at the same time: {tries}"
    for name in NAMES:
        campaign = gr.Campaign(name, profile)
        assert campaign.results()["result"].tolist() == [x * x for x in range(CALLS)]
