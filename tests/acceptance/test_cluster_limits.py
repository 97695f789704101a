"""Limits are hit while thousands of calculations are under way on a real Slurm: time, room, a node that is
broken, and somebody who wants it to end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_campaign import FaultCampaign
from fault_site import FaultSite, wait_until

import grange as gr
from grange.core import kill as killing
from grange.core.profile import Profile

Make = Callable[..., FaultCampaign]

#: Fails at once on one node, as where a library is missing.
BROKEN_ON_ONE = """\
#!/bin/sh
[ "$SLURMD_NODENAME" = node2 ] && { echo "cannot open shared object file" >&2; exit 127; }
exec "$(dirname "$0")/program" "$@"
"""
BROKEN = "#!/bin/sh\nexit 3\n"


def test_a_node_with_a_broken_program_gets_nothing_more(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign(program=site.install("broken-on-one", BROKEN_ON_ONE)).start()
    assert running.end() == [running.count, 0, 0]
    running.check()
    assert (site.work / "broken" / "node2").exists()
    assert "node2" not in running.nodes()
    # its worker has ended
    wait_until(lambda: "node2" not in {one.node for one in site.supervisors()}, 30)
    site.cluster.shell(f"rm -rf {site.work}/broken")


def test_a_program_that_is_broken_everywhere_is_told_soon(site: FaultSite, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign(program=site.install("broken", BROKEN)).start()
    began = time.monotonic()
    assert running.end() == [running.count, running.count, 0]
    assert time.monotonic() - began < 45
    with running.profile.transaction() as cursor:
        cursor.execute("SELECT DISTINCT exit_status FROM process")
        assert cursor.fetchall() == [(171,)]
    assert not (site.work / "broken").exists() or not list((site.work / "broken").iterdir())
    running.check_left_overs()


def test_the_walltime_is_hit_in_the_middle(site: FaultSite, campaign: Make) -> None:
    """The first allocation has one minute; the second one goes on with its chunks."""
    site.cluster.cancel_all()
    wait_until(lambda: not site.supervisors())
    site.allocate(walltime_s=60)
    wait_until(lambda: len(site.supervisors()) == 4)
    running = campaign(seconds=0.4, walltime_s=5.0).start()
    running.in_midst()
    wait_until(lambda: not site.supervisors(), 90)
    before = running.finished()
    assert 0 < before < running.count
    site.allocate()
    running.end(240)
    running.check()
    # Slurm may say up to a minute early that the end is near: what ran then has run again, and nothing else
    assert running.repeated() <= 16


def test_what_does_not_fit_into_what_is_left_is_not_started(site: FaultSite, campaign: Make) -> None:
    site.cluster.cancel_all()
    wait_until(lambda: not site.supervisors())
    short = site.allocate(walltime_s=60)
    wait_until(lambda: len(site.supervisors()) == 4)
    running = campaign(count=2000, seconds=0.01, walltime_s=100.0).start()
    wait_until(lambda: running.in_flight() == running.count, 60, running.told)
    time.sleep(6)
    assert not running.started()
    site.cluster.shell(f"scancel -b -s TERM {short}")
    site.allocate()
    assert running.end() == [running.count, 0, 0]
    running.check()
    assert running.repeated() == 0


@pytest.fixture
def full_spool(site: FaultSite) -> Iterator[Path]:
    """The spool there is a small file system of its own, that can be filled."""
    spool = site.work / "spool"
    site.cluster.shell(f"mkdir -p {spool}")
    owner = spool.stat()
    options = f"size=24m,mode=700,uid={owner.st_uid},gid={owner.st_gid}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(spool)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield spool
    subprocess.run(["umount", "-l", str(spool)], check=True)


def test_the_disk_of_the_spool_is_full_for_a_while(site: FaultSite, full_spool: Path, campaign: Make) -> None:
    site.ensure_workers()
    running = campaign().start()
    running.in_midst()
    ballast = full_spool / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    before = running.finished()
    time.sleep(8)
    assert running.process is not None
    assert running.process.poll() is None, running.told()
    assert running.finished() < running.count
    ballast.unlink()
    running.end(180)
    running.check()
    assert before < running.count


def test_a_campaign_that_another_process_runs_is_killed(
    site: FaultSite, campaign: Make, profile: Profile
) -> None:
    site.ensure_workers()
    running = campaign(seconds=20.0).start()
    running.in_midst_of(8)
    assert gr.Campaign(running.name, profile).kill() == running.count
    done, failed, _ = running.end(60)
    assert (done, failed) == (running.count, running.count)
    check_killed(running, profile)


def test_a_campaign_that_nobody_runs_is_killed(site: FaultSite, campaign: Make, profile: Profile) -> None:
    site.ensure_workers()
    running = campaign(seconds=20.0).start()
    running.in_midst_of(8)
    running.kill()
    assert killing.kill(profile, computer=site.computer.label) == running.count
    check_killed(running, profile)


def check_killed(running: FaultCampaign, profile: Profile) -> None:
    begun = set(running.started())
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, count(*) FROM process GROUP BY 1")
        assert cursor.fetchall() == [("killed", running.count)]
        # what those that ran had written until then is kept
        cursor.execute("SELECT count(*) FROM link WHERE type = 'create' AND label = 'retrieved'")
        (kept,) = cursor.fetchone() or (0,)
    assert 1 <= len(begun) <= 32
    assert kept == len(begun)
    wait_until(lambda: not running.site.runners(), 20)
    time.sleep(1)
    assert set(running.started()) == begun, "something was started after all"
    running.check_left_overs()
