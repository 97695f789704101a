"""Campaigns that a dispatcher runs: submitted, followed, gone on with when it is gone; real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import grange as gr
from grange.cli.entry import run
from grange.core.errors import CampaignBusy, ProfileLocked
from grange.core.profile import Profile, open_profile
from grange.core.profile_lock import lock
from grange.core.queue_hold import find_holder, hold
from grange.core.queues import find_waiting
from grange.core.transition import State

PATIENCE_S = 60.0


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def square(x: int) -> int:
    if x == 3:
        raise ValueError("three")
    return x * x


def logged(log: str, x: int, release: str) -> int:
    """Says that it runs; waits for a file to be there."""
    import pathlib
    import time

    with open(log, "a") as file:
        file.write(f"{x}\n")
    while not pathlib.Path(release).exists():
        time.sleep(0.02)
    return x


def is_dispatched(profile: Profile, campaign: gr.Campaign) -> bool:
    with profile.transaction() as cursor:
        holder = find_holder(cursor, campaign.id)
    return holder is not None and holder.is_dispatcher


def waiting(profile: Profile) -> list[int]:
    with profile.transaction() as cursor:
        return [queue.id for queue in find_waiting(cursor, str(profile.home))]


@contextmanager
def dispatching(profile: Profile, campaign: gr.Campaign) -> Iterator[subprocess.Popen[bytes]]:
    """A dispatcher of a campaign, as the daemon starts one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "grange.core.dispatch", str(profile.home), str(campaign.id)]
    )
    try:
        until(lambda: process.poll() is not None or is_dispatched(profile, campaign), "it has not begun")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE_S)


def test_what_was_submitted_is_run_by_a_dispatcher(profile: Profile) -> None:
    campaign = gr.Campaign("submitted", profile)
    campaign.map(square, x=range(20))
    assert waiting(profile) == []
    assert campaign.submit() == 20
    assert waiting(profile) == [campaign.id]
    with dispatching(profile, campaign) as process:
        assert waiting(profile) == []
        assert process.wait(PATIENCE_S) == 0  # by itself, since nothing is left
    assert campaign.counts() == {(State.FINISHED, False): 19, (State.EXCEPTED, False): 1}
    # it is nobody's business any more: not even when something is left by a script
    assert campaign.retry() == 1
    assert waiting(profile) == []
    assert campaign.submit() == 1
    assert waiting(profile) == [campaign.id]


def test_a_run_follows_a_dispatcher(profile: Profile, tmp_path: Path) -> None:
    log, release = tmp_path / "log", tmp_path / "release"
    first = gr.Campaign("followed", profile)
    first.map(logged, log=str(log), x=[1], release=str(release))
    first.submit()
    seen: list[tuple[int, int, str]] = []
    with dispatching(profile, first):
        campaign = gr.Campaign("followed", profile)
        campaign.map(square, x=[*range(8), 3])
        campaign.map(logged, log=str(log), x=[1, 2], release=str(release))

        def show(progress: gr.Progress) -> None:
            seen.append((progress.done, progress.total, progress.note))
            if progress.done >= 9:
                release.touch()

        done = campaign.run(progress=show)
    # the call of 3 is in two places of the map and is one process
    assert (done.total, done.done, done.failed, done.reused) == (11, 11, 2, 0)
    assert seen[0][2].startswith("run by a dispatcher, process ")
    assert campaign.results()["state"].tolist() == (
        ["finished"] * 3 + ["excepted"] + ["finished"] * 4 + ["excepted"] + ["finished"] * 2
    )
    assert sorted(log.read_text().split()) == ["1", "2"]
    # without a map: what is left, and how much of it has failed
    assert campaign.retry() == 1
    campaign.submit()
    with dispatching(profile, campaign):
        done = gr.Campaign("followed", profile).run(progress=False)
    assert (done.total, done.done, done.failed) == (1, 1, 1)


def test_a_run_goes_on_where_a_dispatcher_is_gone(profile: Profile, tmp_path: Path) -> None:
    log, release = tmp_path / "log", tmp_path / "release"
    campaign = gr.Campaign("gone", profile)
    campaign.map(logged, log=str(log), x=[0], release=str(release))
    campaign.submit()
    with dispatching(profile, campaign) as process:
        until(log.exists, "it has not begun")
        again = gr.Campaign("gone", profile)
        again.map(logged, log=str(log), x=range(4), release=str(release))

        def show(progress: gr.Progress) -> None:
            if "dispatcher" in progress.note:
                process.kill()
            elif process.poll() is not None:
                release.touch()

        done = again.run(progress=show)
    assert (done.total, done.done, done.failed) == (4, 4, 0)
    assert again.results()["result"].tolist() == [0, 1, 2, 3]
    assert again.counts() == {(State.FINISHED, False): 4}


def test_who_wants_it_elsewhere_or_otherwise_is_told_who_runs_it(profile: Profile, tmp_path: Path) -> None:
    campaign = gr.Campaign("busy", profile)
    campaign.map(logged, log=str(tmp_path / "log"), x=[1], release=str(tmp_path / "release"))
    campaign.submit()
    with dispatching(profile, campaign) as process:
        for refused in (
            lambda: campaign.run(progress=False, executor="hyperqueue"),
            lambda: campaign.run(progress=False, resources=gr.Resources(cpus=1)),
            lambda: campaign.submit(executor="hyperqueue"),
        ):
            with pytest.raises(CampaignBusy, match=f"process {process.pid}"):
                refused()
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET paused = true")  # nothing to do for it
    with dispatching(profile, campaign):
        assert campaign.submit(executor="hyperqueue") == 1
    # one that a script runs is followed by nobody, and takes nothing more
    with open_profile(profile.home) as other, hold(other, campaign.id, "busy"):
        for refused in (campaign.submit, campaign.retry, lambda: campaign.run(progress=False)):
            with pytest.raises(CampaignBusy, match=f"process {os.getpid()}"):
                refused()


def test_a_call_that_does_not_fit_is_paused(profile: Profile) -> None:
    campaign = gr.Campaign("large", profile)
    campaign.map(square, x=[1], resources=gr.Resources(cpus=4096))
    campaign.map(square, x=[2])
    campaign.submit()
    with dispatching(profile, campaign) as process:
        assert process.wait(PATIENCE_S) == 0
    assert waiting(profile) == []
    ((reason, count),) = campaign.paused().items()
    assert (count, "4096 cpus" in reason) == (1, True), reason


def test_many_may_submit_the_same_at_once(profile: Profile) -> None:
    together = threading.Barrier(4)
    counts: list[int] = []
    first = gr.Campaign("together", profile)
    first.map(square, x=[-1])
    assert first.submit() == 1

    def submit() -> None:
        with open_profile(profile.home) as own:
            campaign = gr.Campaign("together", own)
            campaign.map(square, x=range(300))
            together.wait()
            counts.append(campaign.submit())

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [301] * 4
    assert first.counts() == {(State.CREATED, False): 301}


SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr

    def waits(release: str, x: int) -> int:
        import pathlib, time
        while not pathlib.Path(release).exists():
            time.sleep(0.02)
        return x

    with gr.open(sys.argv[1]) as profile:
        campaign = gr.Campaign("interrupted", profile)
        campaign.map(waits, release=sys.argv[2], x=range(3))
        print(campaign.submit(), flush=True)
        if sys.argv[3] == "run":
            def show(progress):
                print("run", progress.note, flush=True)
            try:
                campaign.run(progress=show)
            except gr.CampaignInterrupted as interrupted:
                print("interrupted", interrupted, flush=True)
""")


def interrupted(profile: Profile, script: Path, release: Path) -> str:
    """A script that runs the campaign until it is interrupted; the last that it said."""
    command = [sys.executable, str(script), str(profile.home), str(release), "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run"):
                process.send_signal(signal.SIGINT)
                break
        said = process.stdout.read()
    return said.splitlines()[-1]


def test_an_interrupt_ends_what_this_script_does(profile: Profile, tmp_path: Path) -> None:
    script, release = tmp_path / "script.py", tmp_path / "release"
    script.write_text(SCRIPT)
    subprocess.run(
        [sys.executable, script, profile.home, release, "submit"], check=True, stdout=subprocess.DEVNULL
    )
    campaign = gr.Campaign("interrupted", profile)
    with dispatching(profile, campaign) as process:
        # of following: the dispatcher goes on
        said = interrupted(profile, script, release)
        assert f"0 of 3 calls done and recorded; process {process.pid} on " in said, said
        assert is_dispatched(profile, campaign)
    assert waiting(profile) == [campaign.id]
    # of running: nobody goes on, because somebody wanted it to end
    said = interrupted(profile, script, release)
    assert said.endswith("0 of 3 calls done and recorded; run it again to go on"), said
    assert waiting(profile) == []
    assert campaign.counts() == {(State.CREATED, False): 3}


def test_nothing_is_run_while_the_profile_is_locked(profile: Profile) -> None:
    campaign = gr.Campaign("locked", profile)
    campaign.map(square, x=[1])
    with profile.transaction() as cursor:
        lock(cursor, "maintenance", "somebody")
    with pytest.raises(ProfileLocked, match="maintenance"):
        campaign.run(progress=False)
    assert campaign.submit() == 1


def test_a_campaign_is_left_to_the_daemon_by_the_command_line(
    profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = gr.Campaign("left", profile)
    campaign.map(square, x=[3])
    campaign.run(progress=False)
    campaign.retry()
    home = ["--home", str(profile.home)]
    assert run([*home, "campaign", "show", "left"]) == 0
    assert "nobody now; grange campaign run left goes on with it" in capsys.readouterr().out
    assert run([*home, "campaign", "submit", "left"]) == 0
    assert capsys.readouterr().out == "1 call of left left to the daemon (grange daemon status)\n"
    assert run([*home, "campaign", "show", "left"]) == 0
    assert "it was submitted, so a daemon goes on with it" in capsys.readouterr().out
    assert waiting(profile) == [campaign.id]
    campaign.kill()
    assert run([*home, "campaign", "submit", "left"]) == 0
    assert capsys.readouterr().out == "nothing is left to run in left\n"
