"""Equal calculations answer each other: across campaigns, at the same time, whoever is killed meanwhile."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import grange as gr
from grange.cli.entry import run as run_command
from grange.core import equal_rows, following, process_control
from grange.core.engine import Progress
from grange.core.profile import Profile, open_profile
from grange.core.transition import State

#: Longer than anything takes on a busy machine.
PATIENCE_S = 60


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)
    return found


def gated(x: int, folder: str) -> int:
    """Leave a mark that it began, and wait for the gate to open; it fails where the gate says so."""
    import time
    import uuid
    from pathlib import Path

    place = Path(folder)
    (place / f"began-{x}-{uuid.uuid4().hex}").touch()
    gate = place / "gate"
    while not gate.exists():
        time.sleep(0.02)
    if gate.read_text() == "fail" and not (place / "mended").exists():
        raise RuntimeError("the gate says so")
    return x * x


def numbered(x: int) -> int:
    return gr.ExitCode(300 + x, f"no {x}") if x else 0  # type: ignore[return-value]


@dataclass
class Gate:
    """The folder of the calls of gated()."""

    folder: Path

    def open(self, says: str = "go") -> None:
        new = self.folder / "new"
        new.write_text(says)
        new.rename(self.folder / "gate")

    def began(self, x: int | None = None) -> int:
        """How many calls have begun, of a number or of all."""
        return len(list(self.folder.glob("began-*" if x is None else f"began-{x}-*")))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    folder = tmp_path / "gate"
    folder.mkdir()
    found = Gate(folder)
    yield found
    if not (folder / "gate").exists():
        found.open()  # nothing is left waiting


@dataclass
class Run:
    """A campaign that is run by a thread, with a profile of its own."""

    name: str
    campaign: gr.Campaign
    progress: list[Progress] = field(default_factory=list)
    error: list[BaseException] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    thread: threading.Thread | None = None

    def finish(self) -> Progress:
        assert self.thread is not None
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), f"{self.name} does not end: {self.notes}"
        if self.error:
            raise self.error[0]
        return self.progress[0]


@contextmanager
def running(home: Path, name: str, *maps: dict[str, Any], executor: str | None = None) -> Iterator[Run]:
    """Run a campaign of gated() in a thread."""
    with open_profile(home) as own:
        campaign = gr.Campaign(name, own)
        for inputs in maps:
            campaign.map(gated, **inputs)
        run = Run(name, campaign)

        def work() -> None:
            try:
                run.progress.append(
                    campaign.run(progress=lambda progress: run.notes.add(progress.note), executor=executor)
                )
            except BaseException as error:
                run.error.append(error)

        run.thread = threading.Thread(target=work)
        run.thread.start()
        yield run
        run.thread.join(PATIENCE_S)


def query(profile: Profile, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with profile.transaction() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def following_of(profile: Profile, name: str) -> list[tuple[int, int]]:
    """The followers of a campaign, each with the one that it waits for."""
    return query(
        profile,
        'SELECT node_id, cached_from FROM process p JOIN "group" g ON g.id = p.campaign_id'
        " WHERE g.label = %s AND cached_from IS NOT NULL AND finished_at IS NULL ORDER BY 1",
        name,
    )


def nothing_left(profile: Profile) -> None:
    """No process is open, none is held, and all who were answered have the outputs of their source."""
    assert query(profile, "SELECT count(*) FROM process WHERE finished_at IS NULL") == [(0,)]
    assert query(
        profile,
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s",
        equal_rows.KEY_LOCK,
    ) == [(0,)]
    assert (
        query(
            profile,
            """
        SELECT p.node_id FROM process p
        WHERE p.cached_from IS NOT NULL AND
            (SELECT array_agg((l.label, n.hash) ORDER BY l.label)
             FROM link l JOIN node n ON n.id = l.target_id
             WHERE l.source_id = p.node_id AND l.type = 'create')
            IS DISTINCT FROM
            (SELECT array_agg((l.label, n.hash) ORDER BY l.label)
             FROM link l JOIN node n ON n.id = l.target_id
             WHERE l.source_id = p.cached_from AND l.type = 'create')
        """,
        )
        == []
    )


def test_equal_calls_of_two_campaigns_at_the_same_time_are_computed_once(
    profile: Profile, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1, 2], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with running(profile.home, "second", {"x": [2, 1, 3, 2], "folder": folder}) as second:
            found = until(
                lambda: len(following_of(profile, "second")) == 2 and following_of(profile, "second"),
                "two calls of the second follow",
            )
            assert run_command(["--home", str(profile.home), "process", "list", "-C", "second"]) == 0
            lines = capsys.readouterr().out.splitlines()
            assert [
                f"equal to {leader}" in line and "created for an equal one" in line
                for (follower, leader) in found
                for line in lines
                if line.split()[0] == str(follower)
            ] == [True, True]
            leaders = {
                row[0] for row in query(profile, "SELECT node_id FROM process WHERE cached_from IS NULL")
            }
            assert {leader for _, leader in found} <= leaders
            until(
                lambda: "2 calls wait for equal ones that are under way elsewhere" in second.notes,
                "it is told",
            )
            gate.open()
            done = second.finish()
            assert (done.total, done.done, done.failed, done.reused) == (4, 4, 0, 3)
            assert first.finish().reused == 0
            assert second.campaign.results()["result"].tolist() == [4, 1, 9, 4]
    assert {x: gate.began(x) for x in (1, 2, 3)} == {1: 1, 2: 1, 3: 1}
    nothing_left(profile)
    kinds = query(profile, "SELECT kind::text FROM event WHERE process_id = %s ORDER BY id", found[0][0])
    assert kinds == [("follows",), ("reused",)]


def test_followers_of_one_that_excepts_run_themselves(profile: Profile, gate: Gate) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with (
            running(profile.home, "second", {"x": [1], "folder": folder}) as second,
            running(profile.home, "third", {"x": [1], "folder": folder}) as third,
        ):
            until(lambda: following_of(profile, "second") and following_of(profile, "third"), "both follow")
            gate.open("fail")
            assert first.finish().failed == 1
            for run in (second, third):
                done = run.finish()
                assert (done.done, done.failed, done.reused) == (1, 1, 0)
    assert gate.began() == 3
    assert query(profile, "SELECT DISTINCT state::text, cached_from FROM process") == [("excepted", None)]
    # what has failed once they do not wait for again, one after the other
    assert query(profile, "SELECT count(*) FROM process WHERE NOT use_cache") == [(2,)]
    (gate.folder / "mended").touch()
    with running(profile.home, "fourth", {"x": [1], "folder": folder}) as fourth:
        assert fourth.finish().failed == 0
    nothing_left(profile)


def test_one_that_was_killed_is_replaced_by_one_follower_and_the_others_follow_that(
    profile: Profile, gate: Gate
) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with (
            running(profile.home, "second", {"x": [1], "folder": folder}) as second,
            running(profile.home, "third", {"x": [1], "folder": folder}) as third,
        ):
            until(lambda: following_of(profile, "second") and following_of(profile, "third"), "both follow")
            gr.Campaign("first", profile).kill()
            assert first.finish().failed == 1
            until(lambda: gate.began() == 2, "another one begins")
            until(
                lambda: len(following_of(profile, "second") + following_of(profile, "third")) == 1,
                "one follows the other",
            )
            gate.open()
            assert sorted(run.finish().reused for run in (second, third)) == [0, 1]
    assert gate.began() == 2
    nothing_left(profile)


def test_a_follower_that_is_killed_ends_and_the_other_goes_on(profile: Profile, gate: Gate) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1, 2], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with running(profile.home, "second", {"x": [1, 2], "folder": folder}) as second:
            until(lambda: len(following_of(profile, "second")) == 2, "both calls follow")
            gr.Campaign("second", profile).kill()
            done = second.finish()
            assert (done.done, done.failed, done.reused) == (2, 2, 0)
        gate.open()
        assert first.finish().failed == 0
    assert query(
        profile, "SELECT state::text, count(*), count(cached_from) FROM process GROUP BY 1 ORDER BY 1"
    ) == [
        ("finished", 2, 0),
        ("killed", 2, 0),
    ]


def test_a_follower_that_was_paused_is_not_waited_for(profile: Profile, gate: Gate) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with running(profile.home, "second", {"x": [1], "folder": folder}) as second:
            ((follower, _),) = until(lambda: following_of(profile, "second"), "it follows")
            process_control.pause(profile, [follower])
            second.finish()
        gate.open()
        first.finish()
    process_control.play(profile, [follower])
    assert gr.Campaign("second", profile).run(progress=False).reused == 1
    assert gate.began() == 1
    nothing_left(profile)


SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr
    sys.path.insert(0, sys.argv[4])
    from gated_module import gated
    campaign = gr.Campaign(sys.argv[2], gr.open(sys.argv[1]))
    campaign.map(gated, x=[1, 2], folder=sys.argv[3])
    campaign.run(progress=False)
""")


@pytest.fixture
def elsewhere(
    profile: Profile, gate: Gate, tmp_path: Path
) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Runs a campaign of x = 1, 2 in a process of its own: elsewhere(name)."""
    import inspect

    code = tmp_path / "code"
    code.mkdir()
    (code / "gated_module.py").write_text(
        "from __future__ import annotations\n\n\n" + inspect.getsource(gated)
    )
    started = []

    def start(name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", SCRIPT, profile.home, name, gate.folder, code]
        started.append(subprocess.Popen(words, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_who_follows_a_process_whose_worker_is_killed_computes_it(
    profile: Profile, gate: Gate, elsewhere: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    first = elsewhere("first")
    until(gate.began, "the first campaign begins")
    second = elsewhere("second")
    until(lambda: len(following_of(profile, "second")) == 2, "both calls follow")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    until(lambda: not following_of(profile, "second"), "they follow no more")
    # the first one is run again while the second computes: now it is the one that follows
    first = elsewhere("first")
    until(lambda: len(following_of(profile, "first")) == 2, "the calls of the first follow")
    gate.open()
    assert second.wait(PATIENCE_S) == 0
    assert first.wait(PATIENCE_S) == 0
    assert [
        row[:2]
        for row in query(
            profile,
            'SELECT g.label, count(p.cached_from) FROM process p JOIN "group" g ON g.id = p.campaign_id'
            " GROUP BY 1 ORDER BY 1",
        )
    ] == [("first", 2), ("second", 0)]
    nothing_left(profile)


def test_a_killed_run_goes_on_following_when_it_is_started_again(
    profile: Profile, gate: Gate, elsewhere: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    first = elsewhere("first")
    until(gate.began, "the first campaign begins")
    second = elsewhere("second")
    followers = until(
        lambda: len(following_of(profile, "second")) == 2 and following_of(profile, "second"),
        "both calls follow",
    )
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    gate.open()
    assert first.wait(PATIENCE_S) == 0
    assert following_of(profile, "second") == followers
    assert elsewhere("second").wait(PATIENCE_S) == 0
    assert gate.began() == 2
    assert query(
        profile, "SELECT node_id, cached_from FROM process WHERE cached_from IS NOT NULL ORDER BY 1"
    ) == (followers)
    nothing_left(profile)


def test_who_claims_equal_calculations_at_the_same_moment_lets_one_lead(profile: Profile) -> None:
    """The second one is stopped by the lock of the key until the first one is committed, and sees it then."""
    for name in ("one", "two"):
        campaign = gr.Campaign(name, profile)
        campaign.map(numbered, x=[0])
        campaign.submit()
    (one,), (two,) = query(profile, "SELECT node_id FROM process ORDER BY 1")
    found: list[dict[int, int]] = []
    with open_profile(profile.home) as other:
        worker_id = other.worker_id

        def claim_two() -> None:
            with other.transaction() as cursor:
                following.rows.claim(cursor, [two], worker_id)
                found.append(following.sort_out(cursor, [two]))

        thread = threading.Thread(target=claim_two)
        own = profile.worker_id
        with profile.transaction() as cursor:
            following.rows.claim(cursor, [one], own)
            assert following.sort_out(cursor, [one]) == {}
            thread.start()
            with open_profile(profile.home) as looking:
                until(
                    lambda: (
                        query(
                            looking,
                            "SELECT 1 FROM pg_locks WHERE classid = %s AND NOT granted",
                            equal_rows.KEY_LOCK,
                        )
                        or found
                    ),
                    "the other one waits for the key",
                )
            assert not found
        thread.join(PATIENCE_S)
    assert found == [{two: one}]


def test_a_failure_that_a_function_declares_answers_equal_calls(profile: Profile) -> None:
    first = gr.Campaign("first", profile)
    first.map(numbered, x=[0, 1])
    first.run(progress=False)
    second = gr.Campaign("second", profile)
    second.map(numbered, x=[0, 1])
    done = second.run(progress=False)
    assert (done.done, done.reused, done.failed) == (2, 2, 1)
    frame = second.results()
    assert frame["exit_status"].tolist() == [0, 301]
    assert frame["exit_message"].tolist()[1] == "no 1"
    # made again it is computed, whatever others have
    again = gr.Campaign("second", profile)
    assert again.retry() == 1
    assert again.run(progress=False).reused == 0
    assert query(profile, "SELECT count(*) FROM process WHERE cached_from IS NOT NULL") == [(2,)]


def test_failures_that_tell_of_this_one_run_answer_nobody(profile: Profile) -> None:
    def lost(x: int) -> int:
        return gr.ExitCode(301, "no license", invalidates_cache=True)  # type: ignore[return-value]

    class Failing(gr.CalcJob):
        class Inputs:
            how: str

        parse_failed = True
        FOR_EVER = gr.ExitCode(310, "it cannot work")
        THIS_TIME = gr.ExitCode(311, "it did not work", invalidates_cache=True)

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["sh", "-c", "exit 1" if inputs.how == "non-zero" else "true"])

        def parse(self, files: Any) -> Any:
            return {"for ever": self.FOR_EVER, "this time": self.THIS_TIME}.get(self.inputs.how)

    reused = []
    for name in ("first", "second"):
        campaign = gr.Campaign(name, profile)
        campaign.map(lost, x=[1])
        campaign.map(Failing, how=["for ever", "this time", "non-zero"])
        done = campaign.run(progress=False)
        assert done.failed == 4
        reused.append(done.reused)
        assert campaign.results()["exit_status"].tolist() == [301, 310, 311, 171]
    assert reused == [0, 1]
    assert query(
        profile, "SELECT exit_status, valid_cache FROM process WHERE cached_from IS NULL ORDER BY 1, 2"
    )[:2] == [(171, False), (171, False)]
    assert query(profile, "SELECT DISTINCT exit_status FROM process WHERE cached_from IS NOT NULL") == [
        (310,)
    ]


def test_blocks_profile_and_code_say_who_is_answered(profile: Profile) -> None:
    def drawn(x: int) -> float:
        import random

        return random.random()

    def counted(name: str, **how: Any) -> tuple[int, list[float]]:
        campaign = gr.Campaign(name, profile)
        campaign.map(drawn, x=[1], **how)
        return campaign.run(progress=False).reused, campaign.results()["result"].tolist()

    reused, first = counted("first")
    assert reused == 0
    assert counted("again") == (1, first)
    with gr.disable_caching():
        reused, fresh = counted("fresh")
        assert (reused, fresh != first) == (0, True)
        # what a campaign has recorded itself it is not asked to compute again
        assert counted("fresh") == (1, fresh)
        with gr.enable_caching("*.drawn"):
            assert counted("but this one") == (1, first)
    drawn.caching = False  # type: ignore[attr-defined]
    reused, own = counted("own")
    assert (reused, own != first) == (0, True)
    assert counted("asked for", cache=True) == (1, first)
    del drawn.caching  # type: ignore[attr-defined]
    assert counted("last", cache=False)[0] == 0
    assert counted("end") == (1, first)


def test_profile_toml_says_what_is_cached(profile: Profile) -> None:
    text = (profile.home / "profile.toml").read_text()
    (profile.home / "profile.toml").write_text(
        f'{text}\n[caching]\ndefault = false\nenabled = ["numbered"]\n'
    )

    def other(x: int) -> int:
        return x

    reused = {}
    for name in ("first", "second"):
        with open_profile(profile.home) as own:
            for function in (numbered, other):
                campaign = gr.Campaign(f"{name} {function.__name__}", own)
                campaign.map(function, x=[0])
                reused[campaign.name] = campaign.run(progress=False).reused
    assert reused == {"first numbered": 0, "first other": 0, "second numbered": 1, "second other": 0}
    # what is not answered may answer others all the same, where somebody wants it
    with open_profile(profile.home) as own, gr.enable_caching():
        campaign = gr.Campaign("third", own)
        campaign.map(other, x=[0])
        assert campaign.run(progress=False).reused == 1


def test_private_calls_never_follow(profile: Profile, gate: Gate) -> None:
    folder = str(gate.folder)
    with running(profile.home, "first", {"x": [1], "folder": folder}) as first:
        until(gate.began, "the first campaign begins")
        with running(profile.home, "second", {"x": [1, 1], "folder": folder, "cache": False}) as second:
            until(lambda: gate.began() == 3, "both calls of the second begin")
            gate.open()
            assert (second.finish().reused, first.finish().reused) == (0, 0)
    assert query(
        profile, "SELECT count(*) FROM process WHERE state = %s AND cached_from IS NULL", State.FINISHED
    ) == [(3,)]


@pytest.mark.hyperqueue
def test_what_another_executor_computes_is_waited_for_and_run_here_if_it_does_not_come(
    profile: Profile, gate: Gate
) -> None:
    folder = str(gate.folder)
    with running(profile.home, "here", {"x": [1, 2], "folder": folder}) as here:
        until(gate.began, "it begins on the cores of this process")
        with running(profile.home, "there", {"x": [1, 2], "folder": folder}, executor="hyperqueue") as there:
            until(lambda: len(following_of(profile, "there")) == 2, "both calls follow")
            with profile.transaction() as cursor:
                cursor.execute(
                    "SELECT min(node_id) FROM process WHERE cached_from IS NULL AND worker_id IS NOT NULL"
                )
                ((first,),) = cursor.fetchall()
            process_control.kill(profile, [first])
            until(lambda: len(following_of(profile, "there")) == 1, "one of them is run by HyperQueue")
            until(lambda: gate.began(1) == 2, "it has begun")
            until(
                lambda: query(
                    profile, "SELECT 1 FROM process WHERE node_id = %s AND state = 'killed'", first
                ),
                "the other one is killed",
            )
            gate.open()
            done = there.finish()
            assert (done.done, done.failed, done.reused) == (2, 0, 1)
            assert here.finish().failed == 1
    nothing_left(profile)


def test_what_is_looked_at_does_not_grow_with_the_number_of_equal_processes(profile: Profile) -> None:
    """A workflow that makes one call ten thousand times must not read all of them each time."""
    (node,) = mapped_once(profile)
    with profile.transaction() as cursor:
        cursor.execute("ALTER TABLE process DISABLE TRIGGER USER")
        cursor.execute(
            "INSERT INTO process (node_id, state, attempt, key, label, exit_status, finished_at, cached_from)"
            " SELECT %s + number, 'finished', 0, key, label, 0, now(), node_id"
            " FROM process, generate_series(1, 3000) AS number WHERE node_id = %s RETURNING key",
            (node, node),
        )
        key = bytes((cursor.fetchone() or (b"",))[0])
        cursor.execute("ALTER TABLE process ENABLE TRIGGER USER")
    with profile.transaction() as cursor:
        read = "SELECT coalesce(sum(idx_tup_fetch + seq_tup_read), 0) FROM pg_stat_xact_user_tables"
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(read)
        (before,) = cursor.fetchone() or (0,)
        assert equal_rows.find_reusable(cursor, [key]).keys() == {key}
        cursor.execute(read)
        (after,) = cursor.fetchone() or (0,)
        assert 0 < after - before <= 2 * equal_rows.LOOKED_AT


def mapped_once(profile: Profile) -> list[int]:
    campaign = gr.Campaign("once", profile)
    campaign.map(numbered, x=[0])
    campaign.run(progress=False)
    return campaign.results()["process"].tolist()  # type: ignore[no-any-return]
