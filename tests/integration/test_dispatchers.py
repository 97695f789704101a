"""Dispatchers: whatever is put into a queue is run, by whoever holds it; real processes, killed and ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import grange as gr
from grange.core import computer as computers
from grange.core import dispatcher, profile_lock
from grange.core.database import Connection, transaction
from grange.core.dispatcher import dispatch
from grange.core.dispatcher_thread import DispatcherThreads
from grange.core.errors import CampaignBusy, ComputerDisabled, DatabaseUnavailable, NotFound
from grange.core.exit_status import OUTPUT_INVALID
from grange.core.profile import Profile, open_profile
from grange.core.queue_hold import find_holder, hold
from grange.core.queues import Queues, find_waiting
from grange.core.worker import CAMPAIGN_LOCK, DISPATCHER
from grange.farm.computer import Computer

PATIENCE_S = 60.0


def until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def square(x: int) -> int:
    return x * x


def put(
    profile: Profile,
    runnable: object,
    queue: int | None = None,
    resources: gr.Resources = gr.Resources(),  # noqa: B008
    **inputs: object,
) -> list[int]:
    """Record calls that belong to no campaign in the queue of this host; returns their ids, growing."""
    queue = queue or Queues(profile).id_of(None)
    campaign = gr.Campaign("recorded", profile)
    campaign.map(runnable, inputs, cache=False, resources=resources)  # type: ignore[arg-type]
    campaign.submit()
    with profile.transaction() as cursor:
        cursor.execute(
            "UPDATE process SET campaign_id = NULL, queue_id = %s, key = NULL WHERE campaign_id = %s"
            " RETURNING node_id",
            (queue, campaign.id),
        )
        ids = sorted(row[0] for row in cursor.fetchall())
        cursor.execute("SELECT pg_notify('grange', %s)", (f"queue:{queue}",))
    return ids


def states(profile: Profile, ids: Sequence[int]) -> list[tuple[str, int | None]]:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT state::text, exit_status FROM process WHERE node_id = ANY (%s) ORDER BY node_id",
            (list(ids),),
        )
        return list(cursor.fetchall())


def message(profile: Profile, id_: int) -> str:
    with profile.transaction() as cursor:
        cursor.execute("SELECT exit_message FROM process WHERE node_id = %s", (id_,))
        return str((cursor.fetchone() or ("",))[0])


def have_ended(profile: Profile, ids: Sequence[int]) -> bool:
    return all(state in ("finished", "excepted", "killed") for state, _ in states(profile, ids))


def wait_for(profile: Profile, ids: Sequence[int]) -> None:
    until(lambda: have_ended(profile, ids), f"{states(profile, ids)}")


def outputs(profile: Profile, ids: Sequence[int]) -> list[int]:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT (attributes->>'value')::int FROM link JOIN node ON node.id = target_id"
            " WHERE source_id = ANY (%s) AND type = 'create' AND link.label = 'result' ORDER BY source_id",
            (list(ids),),
        )
        return [row[0] for row in cursor.fetchall()]


def holder(profile: Profile, queue: int) -> object:
    with profile.transaction() as cursor:
        return find_holder(cursor, queue)


def begun(profile: Profile) -> int:
    """How many dispatchers there have been."""
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM worker WHERE role = %s", (DISPATCHER,))
        return int((cursor.fetchone() or (0,))[0])


@contextmanager
def dispatching(profile: Profile, queue: int) -> Iterator[subprocess.Popen[bytes]]:
    """A dispatcher in a process of its own, ended by SIGTERM."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "grange.core.dispatch", str(profile.home), str(queue), "--lifeline",
         str(reading)],
        pass_fds=[reading], stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    try:
        until(lambda: process.poll() is not None or holder(profile, queue), "it has not begun")
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        assert process.stderr is not None
        sys.stderr.buffer.write(process.stderr.read())
        process.wait(PATIENCE_S)
        os.close(writing)


# -- in a thread of this process


def test_what_comes_later_is_run_too(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    first = put(profile, square, x=range(30))
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        dispatchers.serve([queue])
        wait_for(profile, first)
        held_by = holder(profile, queue)
        assert held_by is not None
        assert (held_by.role, held_by.pid) == (DISPATCHER, os.getpid())  # type: ignore[attr-defined]
        second = put(profile, square, x=range(30, 40))
        wait_for(profile, second)
        dispatchers.raise_errors()
    assert holder(profile, queue) is None
    assert states(profile, first + second) == [("finished", 0)] * 40
    assert outputs(profile, first + second) == [x * x for x in range(40)]
    # nothing is left in the spool, nor with anybody
    assert list((profile.spool / f"campaign-{queue}").iterdir()) == []
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM process WHERE worker_id IS NULL")
        assert cursor.fetchone() == (0,)
        assert find_waiting(cursor, str(profile.home)) == []


def test_a_queue_that_somebody_else_runs_is_taken_over_when_they_are_gone(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    with DispatcherThreads(profile) as dispatchers, open_profile(profile.home) as other:
        with hold(other, queue, "queue"):
            dispatchers.serve([queue])
            ids = put(profile, square, x=[1, 2])
            with pytest.raises(CampaignBusy):
                dispatch(profile, queue, stopping=lambda: True)
            assert states(profile, ids) == [("created", None)] * 2
        wait_for(profile, ids)


def test_one_that_cannot_be_run_ends_by_itself_and_no_other_with_it(profile: Profile) -> None:
    def stubborn(x: int) -> int:
        raise ValueError(f"no {x}")

    queue = Queues(profile).id_of(None)
    job = gr.ShellJob("echo {n}")
    too_large = put(profile, square, resources=gr.Resources(cpus=4096), x=[1])
    raising = put(profile, stubborn, x=[1])
    fine = put(profile, square, x=[3]) + put(profile, job, n=[1])
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        wait_for(profile, too_large + raising + fine)
        dispatchers.raise_errors()
    assert states(profile, too_large) == [("excepted", None)]
    assert "4096 cpus" in message(profile, too_large[0])
    assert states(profile, raising) == [("excepted", None)]
    assert states(profile, fine) == [("finished", 0)] * 2


def test_an_input_that_is_lost_ends_its_own_calculation(profile: Profile, tmp_path: Path) -> None:
    def size(file: Path) -> int:
        return len(file.read_bytes())

    queue = Queues(profile).id_of(None)
    paths = []
    for n in range(3):
        paths.append(tmp_path / f"{n}.txt")
        paths[-1].write_text("x" * (1000 + n))
    ids = put(profile, size, file=gr.fixed(paths[0])) + put(profile, size, file=gr.fixed(paths[1]))
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM blob WHERE size = 1000")
        assert cursor.rowcount == 1
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        wait_for(profile, ids)
        dispatchers.raise_errors()
    assert states(profile, ids)[1] == ("finished", 0), message(profile, ids[1])
    assert states(profile, ids)[0] != ("finished", 0)
    assert "not in the repository" in message(profile, ids[0])


def test_somebody_wants_them_to_end(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    ids = put(profile, gr.ShellJob("sleep {s}"), s=[600, 601, 602])
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        until(lambda: ("waiting", None) in states(profile, ids), "nothing was claimed")
        with profile.transaction() as cursor:
            cursor.execute("UPDATE process SET to_kill = true WHERE node_id = ANY (%s)", (ids,))
            cursor.execute("NOTIFY grange, 'control'")
        wait_for(profile, ids)
    assert states(profile, ids) == [("killed", None)] * 3


def test_what_is_to_end_in_a_queue_that_nobody_holds_is_ended_by_whoever_wants_it(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    ids = put(profile, square, x=[1, 2, 3])
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET to_kill = true WHERE node_id = ANY (%s)", (ids[:2],))
    assert dispatcher.end_killed(profile, queue) == 2
    assert states(profile, ids) == [("killed", None), ("killed", None), ("created", None)]
    with open_profile(profile.home) as other, hold(other, queue, "queue"):
        assert dispatcher.end_killed(profile, queue) == 0
    with pytest.raises(NotFound, match="12345"):
        dispatcher.end_killed(profile, 12345)


def test_a_full_disk_of_the_database_is_waited_for(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    with profile.transaction() as cursor:
        # as PostgreSQL says it: nothing but the real thing could fill the disk of this test's server alone
        cursor.execute("CREATE TABLE filled (what text)")
        cursor.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF EXISTS (SELECT FROM filled WHERE what = NEW.state::text) THEN"
            " RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END IF; RETURN NEW; END $$"
        )
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON process FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    for state in ("waiting", "finished", "killed"):
        job = gr.ShellJob("sleep {s}") if state == "killed" else square
        ids = put(profile, job, **({"s": [600]} if state == "killed" else {"x": [1, 2]}))
        with DispatcherThreads(profile) as dispatchers:
            if state == "killed":
                dispatchers.serve([queue])
                until(lambda ids=ids: states(profile, ids) == [("waiting", None)], "not claimed")
            with profile.transaction() as cursor:
                cursor.execute("INSERT INTO filled VALUES (%s)", (state,))
                if state == "killed":
                    cursor.execute("UPDATE process SET to_kill = true WHERE node_id = ANY (%s)", (ids,))
            dispatchers.serve([queue])
            until(lambda: "could not extend file" in dispatchers.note, state)
            assert not have_ended(profile, ids)
            with profile.transaction() as cursor:
                cursor.execute("DELETE FROM filled")
            wait_for(profile, ids)
            dispatchers.raise_errors()
        with profile.transaction() as cursor:
            cursor.execute("SELECT max(attempt) FROM process WHERE node_id = ANY (%s)", (ids,))
            assert cursor.fetchone() == (1,), state
    assert begun(profile) == 3


def test_two_who_wait_for_each_other_end_by_one_of_them_doing_it_again(
    profile: Profile, tmp_path: Path
) -> None:
    queue = Queues(profile).id_of(None)
    release = tmp_path / "release"
    (id_,) = put(
        profile, gr.ShellJob(f"sh -c 'while [ ! -e {release} ]; do sleep 0.05; done; echo {{n}}'"), n=[1]
    )
    (parent,) = put(profile, square, x=[1])
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET parent_id = %s, sequence = 1 WHERE node_id = %s", (parent, id_))
        cursor.execute("UPDATE process SET workflow = true, open_children = 1 WHERE node_id = %s", (parent,))
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        until(lambda: states(profile, [id_]) == [("waiting", None)], "not claimed")
        watching = profile.connect()
        # PostgreSQL ends the one whose wait it looks at first: on a slow machine that may be this one
        with suppress(DatabaseUnavailable), profile.transaction() as cursor:
            # somebody who breaks the rule: the call first, then the one that has called it
            cursor.execute("SELECT FROM process WHERE node_id = %s FOR UPDATE", (id_,))
            release.touch()
            until(lambda: _blocked(watching), "nobody waits")
            cursor.execute("SELECT FROM process WHERE node_id = %s FOR UPDATE", (parent,))
        watching.close()
        wait_for(profile, [id_])
        dispatchers.raise_errors()
    assert states(profile, [id_]) == [("finished", 0)]
    with profile.transaction() as cursor:
        cursor.execute("SELECT attempt FROM process WHERE node_id = %s", (id_,))
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT open_children FROM process WHERE node_id = %s", (parent,))
        assert cursor.fetchone() == (0,)
    assert begun(profile) == 1


def test_a_connection_that_is_lost_is_made_anew(profile: Profile, tmp_path: Path) -> None:
    queue = Queues(profile).id_of(None)
    log = tmp_path / "log"
    ids = put(profile, sleeping, log=str(log), x=range(60), seconds=0.05)
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        until(lambda: ("finished", 0) in states(profile, ids), "nothing has come")
        with profile.transaction() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                " AND classid::bigint = %s AND objid::bigint = %s",
                (CAMPAIGN_LOCK, queue),
            )
            assert cursor.fetchall() == [(True,)]
        wait_for(profile, ids)
        dispatchers.raise_errors()
    assert states(profile, ids) == [("finished", 0)] * 60
    assert sorted(outputs(profile, ids)) == list(range(60))
    assert begun(profile) == 2
    # what was finished is not done again, whether it was recorded before or not
    assert 60 <= len(log.read_text().splitlines()) <= 60 + 2 * (os.cpu_count() or 1)


def _blocked(connection: Connection) -> bool:
    with transaction(connection) as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        return cursor.fetchone() != (0,)


def test_what_a_person_has_to_mend_is_said(profile: Profile) -> None:
    with profile.transaction() as cursor:
        computers.add(
            cursor, Computer(label="here", transport="local", scheduler="direct"), user_id=profile.user_id
        )
    queue = Queues(profile).id_of("here")
    with profile.transaction() as cursor:
        computers.enable(cursor, ["here"], user_id=profile.user_id, enabled=False)
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])

        def raises() -> bool:
            try:
                dispatchers.raise_errors()
            except ComputerDisabled:
                return True
            return False

        until(raises, "no error has come")


def test_paused_calculations_wait_until_they_are_played(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    ids = put(profile, square, x=[1, 2])
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET paused = true WHERE node_id = %s", (ids[0],))
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([queue])
        wait_for(profile, ids[1:])
        assert states(profile, ids[:1]) == [("created", None)]
        with profile.transaction() as cursor:
            cursor.execute("UPDATE process SET paused = false WHERE node_id = %s", (ids[0],))
        wait_for(profile, ids)


# -- in a process of its own


def sleeping(log: str, x: int, seconds: float) -> int:
    import time

    with open(log, "a") as file:
        file.write(f"{x}\n")
    time.sleep(seconds)
    return x


def test_a_dispatcher_that_is_killed_is_followed_by_the_next(profile: Profile, tmp_path: Path) -> None:
    queue = Queues(profile).id_of(None)
    log = tmp_path / "log"
    ids = put(profile, sleeping, log=str(log), x=range(60), seconds=0.05)
    with dispatching(profile, queue) as first:
        until(lambda: ("finished", 0) in states(profile, ids), "nothing has come")
        first.kill()
        first.wait()
    assert not have_ended(profile, ids)
    with dispatching(profile, queue):
        wait_for(profile, ids)
    assert states(profile, ids) == [("finished", 0)] * 60
    assert sorted(outputs(profile, ids)) == list(range(60))
    # what was finished before is not done again; only what was running is
    assert 60 <= len(log.read_text().splitlines()) <= 60 + 2 * (os.cpu_count() or 1)


def test_what_was_sent_to_a_computer_goes_on_while_dispatchers_come_and_go(
    profile: Profile, tmp_path: Path
) -> None:
    tally, release = tmp_path / "tally", tmp_path / "release"
    tally.mkdir()
    with profile.transaction() as cursor:
        computers.add(
            cursor,
            Computer(
                label="here", transport="local", scheduler="direct", work_dir=str(tmp_path / "there"),
                slots=2, python=sys.executable, connection_interval_s=0.1,
            ),
            user_id=profile.user_id,
        )  # fmt: skip
    queue = Queues(profile).id_of("here")
    waits = f"printf x >> {tally}/{{n}}; while [ ! -e {release} ]; do sleep 0.05; done; echo {{n}}"
    ids = put(profile, gr.ShellJob(f"sh -c '{waits}'"), queue, n=[1, 2])
    for how in (signal.SIGKILL, signal.SIGTERM):
        with dispatching(profile, queue) as process:
            until(lambda: len(list(tally.iterdir())) == 2, "nothing has begun")
            process.send_signal(how)
            process.wait(PATIENCE_S)
    assert not have_ended(profile, ids)
    with dispatching(profile, queue):
        release.touch()
        wait_for(profile, ids)
    assert states(profile, ids) == [("finished", 0)] * 2
    assert [path.read_text() for path in tally.iterdir()] == ["x", "x"]
    with profile.transaction() as cursor:
        cursor.execute("SELECT max(attempt) FROM process")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("how", ["SIGTERM", "lifeline", "profile lock"])
def test_a_dispatcher_ends_in_order(profile: Profile, how: str) -> None:
    queue = Queues(profile).id_of(None)
    ids = put(profile, gr.ShellJob("sleep {s}"), s=[600, 601, 602])
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "grange.core.dispatch", str(profile.home), str(queue), "--lifeline",
         str(reading), "--daemon", "17"],
        pass_fds=[reading],
    )  # fmt: skip
    os.close(reading)
    until(lambda: ("waiting", None) in states(profile, ids), "nothing was claimed")
    with profile.transaction() as cursor:
        cursor.execute("SELECT role, daemon_id FROM worker WHERE pid = %s", (process.pid,))
        assert cursor.fetchone() == (DISPATCHER, 17)
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    elif how == "lifeline":
        os.close(writing)
    else:
        with profile.transaction() as cursor:
            profile_lock.lock(cursor, "maintenance", "somebody")
    assert process.wait(PATIENCE_S) == 0
    if how != "lifeline":
        os.close(writing)
    assert states(profile, ids) == [("created", None)] * 3
    assert holder(profile, queue) is None


def test_a_dispatcher_does_nothing_in_a_locked_profile_or_where_another_one_is(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    ids = put(profile, square, x=[1])
    command = [sys.executable, "-m", "grange.core.dispatch", str(profile.home), str(queue)]
    with open_profile(profile.home) as other, hold(other, queue, "queue"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "queue local@" in done.stderr) == (0, True), done.stderr
        assert "is being run by process" in done.stderr
    with profile.transaction() as cursor:
        profile_lock.lock(cursor, "maintenance", "somebody")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "maintenance" in done.stderr) == (0, True), done.stderr
    assert states(profile, ids) == [("created", None)]
    done = subprocess.run([*command[:-1], "12345"], capture_output=True, text=True, check=False)
    assert done.returncode == 0  # locked: it does not even look
    with profile.transaction() as cursor:
        profile_lock.unlock(cursor)
    done = subprocess.run([*command[:-1], "12345"], capture_output=True, text=True, check=False)
    assert (done.returncode, "12345" in done.stderr) == (1, True), done.stderr


def test_a_dispatcher_ends_when_nothing_comes(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "QUEUE_IDLE_S", 0.2)
    queue = Queues(profile).id_of(None)
    ids = put(profile, square, x=range(5))
    done = dispatch(profile, queue, stopping=lambda: False, ends_when_idle=True)
    assert (done.done, done.failed) == (5, 0)
    assert states(profile, ids) == [("finished", 0)] * 5


def test_stopping_is_seen_soon(profile: Profile) -> None:
    queue = Queues(profile).id_of(None)
    ended = threading.Event()
    with open_profile(profile.home) as own:
        thread = threading.Thread(target=dispatch, args=(own, queue), kwargs={"stopping": ended.is_set})
        thread.start()
        until(lambda: holder(profile, queue), "it has not begun")
        ended.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


MODULE = """
import grange as gr
from helpers import FACTOR

def scaled(x: int) -> int:
    return {plus} + x * FACTOR

class Job(gr.CalcJob):
    class Inputs:
        x: int

    class Outputs:
        scaled: int

    def prepare(self, inputs):
        return gr.Command(["echo", str(inputs.x)])

    def parse(self, files):
        return {{"scaled": {plus} + int(files["stdout.txt"])}}
"""

SUBMITS = """
import sys
import grange as gr
import edited

with gr.open(sys.argv[1]) as profile:
    futures = [gr.submit(code, x=2, cache=False, profile=profile) for code in (edited.scaled, edited.Job)]
    for future in futures:
        if not future.wait(60.0):
            with profile.transaction() as cursor:
                cursor.execute("SELECT paused, exit_message FROM process WHERE node_id = %s", (future.id,))
                print(cursor.fetchone())
    print(futures[0].result().value, futures[1].outputs.scaled.value)
"""


def test_code_that_was_edited_is_run_as_it_is_now(profile: Profile, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "submits.py").write_text(SUBMITS)
    queue = Queues(profile).id_of(None)
    answers = []
    with dispatching(profile, queue) as process:
        for plus, factor in ((100, 3), (200, 3), (200, 5)):
            (folder / "edited.py").write_text(MODULE.format(plus=plus))
            (folder / "helpers.py").write_text(f"FACTOR = {factor}\n")
            # Byte code of the version before: of the same second and size, it would pass for this one's
            shutil.rmtree(folder / "__pycache__", ignore_errors=True)
            done = subprocess.run(
                [sys.executable, "submits.py", profile.home], cwd=folder, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            answers.append(done.stdout.strip() or done.stderr)
        assert process.poll() is None
    assert answers == ["106 102", "206 202", "210 202"]
    assert begun(profile) == 1


FLOW = """
import grange as gr

@gr.calcfunction
def plus(x: int) -> int:
    return x + {plus}

@gr.workflow
def flow(x: int):
    return plus(x)
"""

SUBMITS_FLOW = """
import sys
import grange as gr
import edited_flow

with gr.open(sys.argv[1]) as profile:
    print(gr.submit(edited_flow.flow, x=2, profile=profile).result(60.0).value)
"""


def test_workflows_that_were_edited_are_run_as_they_are_now(profile: Profile, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "submits.py").write_text(SUBMITS_FLOW)
    answers = []
    worker = subprocess.Popen([sys.executable, "-m", "grange.core.work", str(profile.home)])
    try:
        for number in (100, 2000):
            (folder / "edited_flow.py").write_text(FLOW.format(plus=number))
            shutil.rmtree(folder / "__pycache__", ignore_errors=True)
            done = subprocess.run(
                [sys.executable, "submits.py", profile.home], cwd=folder, capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            answers.append(done.stdout.strip() or done.stderr)
        assert worker.poll() is None
    finally:
        worker.terminate()
        worker.wait(PATIENCE_S)
    assert answers == ["102", "2002"]


def test_a_parser_that_ends_its_process_ends_its_own_calculation(profile: Profile) -> None:
    class Deadly(gr.CalcJob):
        class Inputs:
            n: int

        class Outputs:
            n: int

        def prepare(self, inputs):  # type: ignore[no-untyped-def]
            return gr.Command(["echo", str(inputs.n)])

        def parse(self, files):  # type: ignore[no-untyped-def]
            import os

            if int(files["stdout.txt"]) == 3:
                os._exit(9)
            return {"n": int(files["stdout.txt"])}

    queue = Queues(profile).id_of(None)
    ids = put(profile, Deadly, n=range(6))
    ends = []
    with dispatching(profile, queue) as process:
        process.wait(PATIENCE_S)
        ends.append(process.returncode)
    while not have_ended(profile, ids):
        assert len(ends) < 10
        with dispatching(profile, queue) as process:
            until(lambda: process.poll() is not None or have_ended(profile, ids), "nothing happens")
        ends.append(process.returncode)
    assert ends[0] == 9
    assert [status for _, status in states(profile, ids)] == [0, 0, 0, OUTPUT_INVALID.status, 0, 0]
    assert "parse() has ended the process" in message(profile, ids[3])
    assert ends.count(9) == len(ends) - 1 == 2 + 3
    with profile.transaction() as cursor:  # its files are kept
        cursor.execute("SELECT count(*) FROM link WHERE type = 'create' AND label = 'retrieved'")
        assert cursor.fetchone() == (6,)
    assert not list(profile.spool.glob("intake-*"))
