"""Workflows: the right graph, and going on from the record wherever a worker was cut off."""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import workflow_site as site
from workflow_site import rows_of

import grange as gr
from grange.core import process_control
from grange.core.exit_status import CALL_FAILED
from grange.core.hub import Hub
from grange.core.profile import Profile
from grange.core.worker import free_dead


def submitted(profile: Profile, runnable: object, **inputs: object) -> int:
    return gr.submit(runnable, profile=profile, **inputs).id


# -- the graph


def test_three_functions_give_the_graph_of_aiida(profile: Profile) -> None:
    future = site.run(profile, site.add_mul, x=3, y=4, z=5)
    assert future.is_finished_ok
    assert future.outputs.result.value == 35
    assert site.links_of(profile) == sorted(
        [
            ("3", "input_work", "x", "add_mul"),
            ("4", "input_work", "y", "add_mul"),
            ("5", "input_work", "z", "add_mul"),
            ("3", "input_calc", "x", "add"),
            ("4", "input_calc", "y", "add"),
            ("7", "input_calc", "x", "multiply"),
            ("5", "input_calc", "y", "multiply"),
            ("add_mul", "call_calc", "CALL", "add"),
            ("add_mul", "call_calc", "CALL", "multiply"),
            ("add", "create", "result", "7"),
            ("multiply", "create", "result", "35"),
            ("add_mul", "return", "result", "35"),
        ]
    )
    # one node each: what the workflow was given is what its calls were given
    assert rows_of(profile, "SELECT count(*) FROM node WHERE kind = 'data'") == [(5,)]


def test_loops_and_branches_on_results(profile: Profile) -> None:
    future = site.run(profile, site.collatz, start=6)
    assert future.outputs.last.value == 1
    labels = [row[1] for row in site.shape(profile, future.id)]
    assert labels == ["collatz", "halve", *["multiply", "add", "halve"], *["multiply", "add"], *["halve"] * 4]


def test_a_default_is_an_input(profile: Profile) -> None:
    future = site.run(profile, site.collatz, start=1)
    assert rows_of(
        profile,
        "SELECT l.label, n.attributes ->> 'value' FROM link l JOIN node n ON n.id = l.source_id"
        " WHERE l.target_id = %s ORDER BY 1",
        future.id,
    ) == [("most", "30"), ("start", "1")]


@pytest.mark.parametrize(
    ("which", "state", "status", "said"),
    [
        ("refused", "finished", CALL_FAILED.status, "failed with exit status 310: 3 is refused"),
        ("stumbled", "finished", CALL_FAILED.status, "excepted: ValueError: 4 is a stone"),
        ("caught", "finished", 0, None),
        ("code", "finished", 401, "said so"),
        ("value", "excepted", None, "a workflow makes no data itself"),
        ("new", "excepted", None, "a workflow makes no data itself"),
        ("error", "excepted", None, "KeyError: 'nowhere'"),
        ("nothing", "finished", 0, None),
    ],
)
def test_how_workflows_end(
    which: str, state: str, status: int | None, said: str | None, profile: Profile
) -> None:
    future = site.run(profile, site.careless, which=which)
    assert (future.state, future.exit_status) == (state, status)
    assert said in future.exit_message if said else future.exit_message is None
    assert rows_of(profile, "SELECT state::text, exit_status FROM process WHERE node_id = %s", future.id) == [
        (state, status)
    ]
    if state == "excepted":
        ((level, text),) = rows_of(
            profile, "SELECT levelname, message FROM log WHERE node_id = %s", future.id
        )
        assert level == "ERROR"
        assert "Traceback" in str(text)


def test_bad_input_is_refused_before_anything_is_stored(profile: Profile) -> None:
    with pytest.raises(gr.GrangeError, match="add_mul: z"):
        gr.submit(site.add_mul, x=1, y=2, profile=profile)
    with pytest.raises(gr.GrangeError, match="did you mean"):
        gr.submit(site.collatz, strat=1, profile=profile)
    with pytest.raises(gr.GrangeError, match="int"):
        gr.submit(site.collatz, start="six", profile=profile)
    with pytest.raises(gr.GrangeError, match="no profile"):
        gr.submit(site.collatz, start=6)
    assert rows_of(profile, "SELECT count(*) FROM node") == [(0,)]


def test_a_workflow_in_a_workflow_and_calls_from_elsewhere(profile: Profile) -> None:
    @gr.workflow
    def outer(x: int) -> gr.Data:
        return site.add_mul(site.add_mul(x, 1, 2), 1, 2)

    with gr.recording(profile):
        assert outer(1).value == 10
    assert [row[1] for row in site.shape(profile, 2)] == [
        "outer",
        *["add_mul", "add", "multiply"] * 2,
    ]


def test_what_a_calcfunction_calls_is_no_call_of_the_workflow(profile: Profile) -> None:
    @gr.calcfunction
    def nested(x: int) -> int:
        return int(site.add(x, 1))

    @gr.workflow
    def outer(x: int) -> gr.Data:
        return nested(x)

    future = site.run(profile, outer, x=1)
    assert future.outputs.result.value == 2
    assert [row[1] for row in site.shape(profile, future.id)] == ["outer", "nested"]


def test_calls_from_another_thread_are_refused(profile: Profile) -> None:
    @gr.workflow
    def outer(x: int) -> None:
        from grange.core.current_frame import current_frame

        frame = current_frame()
        assert frame is not None
        said: list[str] = []

        def call() -> None:
            try:
                frame.run_here(site.add, {"x": 1, "y": 1})
            except gr.GrangeError as error:
                said.append(str(error))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert "another thread" in said[0]

    assert site.run(profile, outer, x=1).is_finished_ok


# -- going on from the record


@pytest.mark.parametrize(
    ("workflow", "inputs"),
    [
        (site.add_mul, {"x": 1, "y": 2, "z": 3}),
        (site.collatz, {"start": 7}),
        (site.tree, {"depth": 2, "width": 3}),
        (site.first_of, {"count": 4}),
    ],
)
def test_whoever_is_cut_off_whenever_the_graph_is_the_same(
    workflow: gr.Workflow, inputs: dict[str, object], profile: Profile
) -> None:
    undisturbed = site.shape(profile, site.run(profile, workflow, **inputs).id)
    made: list[int] = []

    def submit() -> int:
        made.append(submitted(profile, workflow, **inputs))
        return made[0]

    workers = site.cut_off_everywhere(profile, submit)
    assert workers > 2
    cut_off = site.shape(profile, made[0])
    if workflow is site.first_of:  # in which order they end is nobody's promise
        assert sorted(map(str, cut_off))[0] == sorted(map(str, undisturbed))[0]
        assert len(cut_off) == len(undisturbed)
    else:
        assert cut_off == undisturbed
    assert {row[2] for row in cut_off} == {"finished"}
    assert {row[7] for row in cut_off} == {0}
    # reports are made once, in order
    reports = rows_of(profile, "SELECT node_id, number FROM log ORDER BY node_id, number")
    assert len(reports) == len(set(reports))
    numbers = [number for node_id, number in reports if node_id == made[0]]
    assert numbers == list(range(1, len(numbers) + 1))


def test_live_and_let_go(profile: Profile) -> None:
    """Far more workflows than may be live: they are let go while they wait, and go on when they can."""
    ids = [submitted(profile, site.tree, depth=2, width=2) for _ in range(6)]
    before = len(site.CALLED)
    site.work(profile, ids, live=4)
    calls = len(site.CALLED) - before
    undisturbed = site.shape(profile, site.run(profile, site.tree, depth=2, width=2).id)
    assert all(site.shape(profile, id_) == undisturbed for id_ in ids)
    assert calls == 6 * sum(row[1] == "add" for row in undisturbed)  # none was made twice
    assert rows_of(profile, "SELECT count(*) FROM event WHERE kind = 'released'") != [(0,)]


def test_two_workers_share_and_one_dies(profile: Profile) -> None:
    ids = gr.submit_many(site.collatz, start=range(2, 40), profile=profile).ids
    with site.another(profile) as first, site.another(profile) as second:
        ours, theirs = Hub(first), Hub(second, live=10)
        theirs.step(0.0)
        ours.step(0.0)
        owners = rows_of(profile, "SELECT worker_id, count(*) FROM process WHERE workflow GROUP BY 1")
        assert len(owners) == 2
        second.close()
        while not site.ended(profile, ids):
            free_dead(profile)
            ours.step(0.02)
    assert rows_of(profile, "SELECT DISTINCT state::text FROM process") == [("finished",)]
    made = rows_of(profile, "SELECT parent_id, sequence FROM process WHERE parent_id IS NOT NULL")
    assert len(made) == len(set(made))


def test_what_a_living_worker_has_is_its_own(profile: Profile) -> None:
    process_id = submitted(profile, site.collatz, start=27, most=100)
    with site.another(profile) as own:
        Hub(own).step(0.0)
        assert free_dead(profile) == 0
        assert site.work(profile, [process_id], steps=3) == 3
        assert rows_of(profile, "SELECT worker_id FROM process WHERE node_id = %s", process_id) == [
            (own.worker_id,)
        ]


def test_a_worker_whose_session_was_ended_writes_nothing_of_what_others_have_claimed(
    profile: Profile,
) -> None:
    process_id = submitted(profile, site.collatz, start=27, most=60)
    with site.another(profile) as own:
        lost = Hub(own)
        lost.step(0.0)
        lost.step(0.0)
        first = own.worker_id
        own.connection.poll()
        end_session(profile, own)
        while not free_dead(profile):  # its lock goes with its session
            time.sleep(0.01)
        assert site.work(profile, [process_id], steps=3) == 3
        for _ in range(4):
            lost.step(0.0)
        assert own.worker_id != first
        assert site.ended(profile, [process_id]) is False
        assert rows_of(profile, "SELECT worker_id FROM process WHERE node_id = %s", process_id) == [
            (profile.worker_id,)
        ]
    undisturbed = site.shape(profile, site.run(profile, site.collatz, start=27, most=60).id)
    site.work(profile, [process_id])
    assert site.shape(profile, process_id) == undisturbed


def test_a_worker_that_could_not_even_give_back_what_it_had_does_so_later(profile: Profile) -> None:
    """As with a full disk: every write is refused for a while, and the session lives on."""
    ids = [submitted(profile, site.tree, depth=1, width=2), submitted(profile, site.collatz, start=27)]
    asked = itertools.count()
    deadline = time.monotonic() + 30

    def stopping() -> bool:
        number = next(asked)
        assert time.monotonic() < deadline, "it does not go on"
        if number == 1:
            rows_of(profile, FULL_DISK)
        if number == 30:
            rows_of(profile, "DROP TRIGGER full_disk ON process; SELECT 1")
        return number > 30 and site.ended(profile, ids)

    with site.another(profile) as own:
        hub = Hub(own)
        for _ in range(3):
            hub.step(0.0)
        worker_id = own.worker_id
        hub.run(stopping)
        assert own.worker_id == worker_id
    assert rows_of(profile, "SELECT count(*) FROM event WHERE kind = 'released'") != [(0,)]


FULL_DISK = """
CREATE FUNCTION disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON process
FOR EACH STATEMENT EXECUTE FUNCTION disk_is_full();
SELECT 1
"""


def end_session(profile: Profile, other: Profile) -> None:
    """End the session of another profile, as PostgreSQL's administrator may."""
    rows_of(profile, "SELECT pg_terminate_backend(%s)", other.connection.info.backend_pid)


# -- other code than that of the record

MODULE = """
import grange as gr

@gr.calcfunction
def add(x: int, y: int) -> int:
    return x + y

@gr.calcfunction
def multiply(x: int, y: int) -> int:
    return x * y

@gr.workflow
def steps(x: int):
    one = add(x, 1)
    two = multiply(one, 2)
    three = add(two, 3)
    return multiply(three, 4)
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("two = multiply(one, 2)", "two = add(one, 2)", "call 2 differs .* was multiply .* calls add"),
        ("two = multiply(one, 2)", "two = multiply(one, 5)", "call 2 differs .* multiply .* other inputs"),
        ("two = multiply(one, 2)", "return one", "call 2 differs .* was multiply .* ends without it"),
        ("def steps", "def paces", "cannot be imported here"),
        ("@gr.workflow\n", "", "cannot be imported here"),
        ("return multiply(three, 4)", "return multiply(three, 7)", None),
    ],
)
def test_code_that_changed(
    old: str, new: str, said: str | None, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the record fits, it goes on; else it is paused, and says which call differs."""
    module = tmp_path / "grange_test_steps.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(text: str) -> object:
        module.write_text(text)
        sys.modules.pop(module.stem, None)
        importlib.invalidate_caches()
        return importlib.import_module(module.stem)

    process_id = submitted(profile, loaded(MODULE).steps, x=1)  # type: ignore[attr-defined]
    with site.another(profile) as own:
        hub = Hub(own)
        while rows_of(profile, "SELECT count(*) FROM process WHERE parent_id = %s", process_id) != [(3,)]:
            hub.step(0.0)
    free_dead(profile)
    loaded(MODULE.replace(old, new))
    site.work(profile, [process_id], steps=8)
    ((state, paused, message),) = rows_of(
        profile, "SELECT state::text, paused, exit_message FROM process WHERE node_id = %s", process_id
    )
    if said is None:
        assert (state, paused) == ("finished", False)
        return
    assert paused
    assert state in ("created", "waiting", "running")
    import re

    assert re.search(said, str(message)), message
    assert rows_of(profile, "SELECT count(*) FROM process WHERE parent_id = %s", process_id) == [(3,)]
    # the code comes back: it goes on
    loaded(MODULE)
    process_control.play(profile, [process_id])
    site.work(profile, [process_id])
    assert rows_of(
        profile, "SELECT state::text, exit_message FROM process WHERE node_id = %s", process_id
    ) == [("finished", None)]


def test_an_except_of_the_code_does_not_hide_that_it_differs(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [1, 2]

    @gr.workflow
    def greedy(x: int) -> gr.Data:
        try:
            return site.add(site.add(x, inputs[0]), 1)
        except Exception:
            return site.add(0, 0)

    process_id = submitted(profile, greedy, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        # by value: the code that is run is that of the record, so what it reads from outside is changed
        while rows_of(profile, "SELECT count(*) FROM process WHERE parent_id = %s", process_id) != [(1,)]:
            hub.step(0.0)
    free_dead(profile)
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET call_hash = '\\x00' WHERE parent_id = %s", (process_id,))
    site.work(profile, [process_id], steps=4)
    assert rows_of(profile, "SELECT paused FROM process WHERE node_id = %s", process_id) == [(True,)]


# -- pause, play, kill


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], gr.Workflow]:
    @gr.workflow
    def gated(x: int) -> gr.Data:
        from grange.core.current_frame import current_frame

        one = site.add(x, 1)
        frame = current_frame()
        assert frame is not None
        frame.pause("look at it")
        return site.add(one, 1)

    return lambda: gated


def test_a_workflow_that_pauses_itself_goes_on_behind_that_line(
    profile: Profile, gate: Callable[[], gr.Workflow]
) -> None:
    process_id = submitted(profile, gate(), x=1)
    site.work(profile, [process_id], steps=6)
    status = "SELECT state::text, paused, exit_message FROM process WHERE node_id = %s"
    ((_, paused, message),) = rows_of(profile, status, process_id)
    assert (paused, message) == (True, "look at it")
    assert process_control.play(profile, [process_id]) == 1
    site.work(profile, [process_id])
    assert rows_of(profile, status, process_id) == [("finished", False, None)]
    assert len(site.shape(profile, process_id)) == 3


def test_a_tree_is_paused_played_and_killed_while_a_worker_has_it(profile: Profile) -> None:
    process_id = submitted(profile, site.tree, depth=3, width=3)
    with site.another(profile) as own:
        hub = Hub(own)
        hub.step(0.0)
        hub.step(0.0)
        assert process_control.pause(profile, [process_id], tree=True) >= 1
        hub._controlled = True
        hub.step(0.0)
        assert rows_of(profile, "SELECT count(*) FROM process WHERE worker_id IS NOT NULL AND paused") == [
            (0,)
        ]
        counted = rows_of(profile, "SELECT count(*) FROM process")
        for _ in range(3):
            hub.step(0.0)
        assert rows_of(profile, "SELECT count(*) FROM process WHERE NOT paused AND workflow") == [(0,)]
        assert rows_of(profile, "SELECT count(*) FROM process") == counted
        process_control.play(profile, [process_id], tree=True)
        hub.step(0.0)
        process_control.kill(profile, [process_id])
        while not site.ended(profile, [process_id]):
            hub._controlled = True
            hub.step(0.02)
        for _ in range(3):
            hub._controlled = True
            hub.step(0.0)
    assert rows_of(profile, "SELECT DISTINCT state::text FROM process WHERE workflow") == [("killed",)]


def test_a_lost_connection_loses_nothing(profile: Profile) -> None:
    process_id = submitted(profile, site.tree, depth=2, width=3)
    with site.another(profile) as own:
        hub = Hub(own)
        cut = 0

        def stopping() -> bool:
            nonlocal cut
            cut += 1
            if cut % 3 == 0:
                with profile.transaction() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(%s)", (own.connection.info.backend_pid,))
            free_dead(profile)
            return site.ended(profile, [process_id]) or cut > 60

        hub.run(stopping)
    site.work(profile, [process_id])
    undisturbed = site.shape(profile, site.run(profile, site.tree, depth=2, width=3).id)
    assert site.shape(profile, process_id) == undisturbed


def test_a_script_runs_far_more_workflows_than_it_may_keep_live(profile: Profile) -> None:
    hub = Hub(profile, alone=True, live=5)
    future = site.begin(profile, site.tree, hub, depth=3, width=3)
    hub.run(lambda: future.is_terminated)
    undisturbed = site.shape(profile, site.run(profile, site.tree, depth=3, width=3).id)
    assert site.shape(profile, future.id) == undisturbed
    assert rows_of(profile, "SELECT count(*) FROM event WHERE kind = 'released'") != [(0,)]


def test_run_takes_a_calcfunction_too(profile: Profile) -> None:
    assert gr.run(site.add, x=1, y=2, profile=profile).value == 3
    given, future = gr.run_get_node(site.refuse, x=1, profile=profile)
    assert (given, future.exit_status) == ({}, 310)
    with pytest.raises(gr.ProcessFailed, match="1 is a stone"):
        gr.run(site.stumble, x=1, profile=profile)
    assert len(rows_of(profile, "SELECT FROM process")) == 3


def test_who_waits_outlives_a_lost_session_and_does_not_listen_afterwards(profile: Profile) -> None:
    future = gr.submit(site.add_mul, x=1, y=2, z=3, profile=profile)
    assert not future.wait(0.0)
    backend = profile.connection.info.backend_pid

    def cut_and_work() -> None:
        with site.another(profile) as own:
            with own.transaction() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", (backend,))
            site.work(own, [future.id])

    worker = threading.Thread(target=cut_and_work)
    worker.start()
    assert future.wait()
    worker.join()
    assert future.result().value == 9
    assert rows_of(profile, "SELECT count(*) FROM pg_listening_channels()") == [(0,)]
