"""Corners of the hub: several hubs at once, workflows that leave a worker, and what records say."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import workflow_site as site
from test_workflows import FULL_DISK
from workflow_site import rows_of

import grange as gr
from grange.core import hub as hub_module
from grange.core import process as rows
from grange.core import process_control
from grange.core.client_waiter import future_of
from grange.core.future import Future
from grange.core.hub import Hub
from grange.core.process import End
from grange.core.profile import Profile
from grange.core.transition import State
from grange.core.worker import free_dead
from grange.repository import StoreUnavailable


def submitted(profile: Profile, runnable: object, **inputs: object) -> int:
    return gr.submit(runnable, profile=profile, **inputs).id


def calls_of(profile: Profile, process_id: int) -> list[int]:
    found = rows_of(profile, "SELECT node_id FROM process WHERE parent_id = %s ORDER BY sequence", process_id)
    return [row[0] for row in found]  # type: ignore[misc]


def finish(profile: Profile, ids: Sequence[int]) -> None:
    """End calculations as if somebody had run them."""
    found = rows_of(
        profile, "SELECT node_id, attempt, parent_id FROM process WHERE node_id = ANY(%s)", list(ids)
    )
    with profile.transaction() as cursor:
        ends = [
            End(id_, attempt, State.FINISHED, 0, None, None, None, None, None, None, parent)  # type: ignore[arg-type]
            for id_, attempt, parent in found
        ]
        assert rows.end(cursor, ends) == set(ids)


def step_until(hubs: Sequence[Hub], over: Callable[[], bool], *, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not over():
        assert time.monotonic() < until, "it does not go on"
        for hub in hubs:
            hub.step(0.01)


# -- several hubs


def test_hubs_in_two_threads_share_a_profile(profile: Profile) -> None:
    """What one has ended with is given back; what the other one is at is not."""
    first, second = Hub(profile, alone=True), Hub(profile, alone=True)
    short = site.begin(profile, site.collatz, first, start=2)
    long = site.begin(profile, site.doubled, second, x=1)
    step_until([second], lambda: len(calls_of(profile, long.id)) == 1)
    first.run(lambda: short.is_terminated)
    assert rows_of(profile, "SELECT worker_id FROM process WHERE node_id = %s", long.id) == [
        (profile.worker_id,)
    ]
    third = Hub(profile, alone=True)
    other = site.begin(profile, site.doubled, third, x=2)
    finish(profile, calls_of(profile, long.id))
    step_until([third], lambda: len(calls_of(profile, other.id)) == 1)  # sees what is not its own
    step_until([second], lambda: long.is_terminated)


# -- workflows that leave a worker


@gr.workflow
def waits_for_the_first(x: int) -> gr.Data:
    one = gr.submit(paused_once, x=x)
    gr.submit(site.double, x=x)
    return one.result()  # type: ignore[no-any-return]


@gr.workflow
def paused_once(x: int) -> gr.Data:
    from grange.core.current_frame import current_frame

    frame = current_frame()
    assert frame is not None
    frame.pause("look at it")
    return x  # type: ignore[return-value]


def test_a_call_that_another_worker_goes_on_with_wakes_its_caller(profile: Profile) -> None:
    with site.another(profile) as own, site.another(profile) as other:
        ours = Hub(own, alone=True)
        future = site.begin(own, waits_for_the_first, ours, x=1)
        paused = "SELECT count(*) FROM process WHERE paused AND parent_id = %s"
        step_until([ours], lambda: rows_of(profile, paused, future.id) == [(1,)])
        ours.step(0.0)
        called = calls_of(profile, future.id)[0]
        process_control.play(profile, [called])
        theirs = Hub(other)
        step_until([theirs], lambda: site.ended(profile, [called]))
        step_until([ours], lambda: future.is_terminated)


def test_what_was_played_while_it_was_being_set_aside_goes_on(profile: Profile) -> None:
    process_id = submitted(profile, site.doubled, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 1)
        process_control.pause(profile, [process_id])
        hub._control()
        process_control.play(profile, [process_id])
        hub._commit()
        assert rows_of(profile, "SELECT paused FROM process WHERE node_id = %s", process_id) == [(False,)]
        finish(profile, calls_of(profile, process_id))
        step_until([hub], lambda: site.ended(profile, [process_id]))


@gr.workflow
def catches_all(x: int) -> gr.Data:
    try:
        return gr.run(site.double, x=x)  # type: ignore[no-any-return]
    except:  # noqa: E722
        return x  # type: ignore[return-value]


@gr.workflow
def catches_for_ever(x: int) -> gr.Data:
    one = gr.submit(site.double, x=x)
    while True:
        try:
            one.wait()
            return x  # type: ignore[return-value]
        except:  # noqa: E722
            pass


@pytest.mark.parametrize("workflow", [catches_all, catches_for_ever])
def test_code_that_catches_whatever_there_is_can_be_paused(workflow: gr.Workflow, profile: Profile) -> None:
    process_id = submitted(profile, workflow, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 1)
        process_control.pause(profile, [process_id])
        hub._controlled = True
        hub.step(0.0)
        assert rows_of(
            profile, "SELECT state::text, paused, worker_id FROM process WHERE node_id = %s", process_id
        ) == [("waiting", True, None)]
        process_control.play(profile, [process_id])
        finish(profile, calls_of(profile, process_id))
        step_until([hub], lambda: site.ended(profile, [process_id]))


# -- records


@gr.workflow
def as_they_come(x: int) -> gr.Data:
    """Goes on with what has ended, whichever that is."""
    left = [gr.submit(site.double, x=x), gr.submit(site.double, x=x, label="second")]
    total = site.add(x, 0)
    while left:
        gr.wait(left, any_of_them=True)
        for number, future in [(n, f) for n, f in enumerate(left) if f.is_terminated]:
            total = site.add(total, 10 * number + len(left))
            left.remove(future)
    return total


def test_a_replay_sees_ends_in_the_order_in_which_they_came(profile: Profile) -> None:
    process_id = submitted(profile, as_they_come, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 3)
        step_until([hub], lambda: process_id in hub._frames and not hub._runnable)
        first, second = calls_of(profile, process_id)[:2]
        finish(profile, [second])
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 4)
    free_dead(profile)
    finish(profile, [first])
    with site.another(profile) as own:
        step_until([Hub(own)], lambda: site.ended(profile, [process_id]), seconds=5.0)
    assert rows_of(
        profile, "SELECT state::text, exit_status FROM process WHERE node_id = %s", process_id
    ) == [("finished", 0)]


@gr.workflow
def tries_elsewhere(x: int) -> gr.Data:
    with contextlib.suppress(gr.GrangeError):
        gr.submit(site.double, x=x, executor="nowhere")
    one = site.add(x, 1)
    return gr.run(site.double, x=one)  # type: ignore[no-any-return]


def test_a_call_that_was_refused_leaves_no_gap_in_the_record(profile: Profile) -> None:
    process_id = submitted(profile, tries_elsewhere, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 2, seconds=5.0)
    free_dead(profile)
    finish(profile, calls_of(profile, process_id)[1:])
    with site.another(profile) as own:
        step_until([Hub(own)], lambda: site.ended(profile, [process_id]), seconds=5.0)


@gr.workflow
def first_of_many(count: int) -> gr.Data:
    calls = gr.submit_many(site.double, x=list(range(count.value)))  # type: ignore[attr-defined]
    gr.wait(list(calls), any_of_them=True)
    return site.add(count, 0)  # type: ignore[no-any-return]


def test_the_last_of_many_may_be_the_first_to_end(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LOOKED_AT", 3)
    process_id = submitted(profile, first_of_many, count=20)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 20)
        finish(profile, calls_of(profile, process_id)[-1:])
        step_until([hub], lambda: site.ended(profile, [process_id]), seconds=5.0)


def test_threads_may_run_workflows_of_one_profile_at_once(profile: Profile) -> None:
    given: list[Future] = []
    raised: list[BaseException] = []

    def run(start: int) -> None:
        try:
            _, future = gr.run_get_node(site.collatz, start=start, profile=profile, progress=False)
            given.append(future)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(start,)) for start in (5, 6, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not raised
    assert [future.is_finished_ok for future in given] == [True] * 3


# -- code that cannot be had, and others who die


CHAIN = """
import grange as gr

class Chain(gr.WorkChain):
    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("x", valid_type=gr.Int)
        spec.outline(cls.step)

    def step(self):
        return None
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("spec.outline(cls.step)", "spec.outline(cls.stop)", "has no attribute 'stop'"),
        ("import grange as gr\n", "import grange as gr\nraise SystemExit(3)\n", "SystemExit"),
        ("import grange as gr\n", "import grange as gr\nclass B(BaseException): pass\nraise B\n", "B"),
    ],
)
def test_a_class_that_is_broken_now_sets_its_processes_aside_and_no_worker(
    old: str, new: str, said: str, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "grange_test_chain.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(text: str) -> None:
        module.write_text(text)
        sys.modules.pop(module.stem, None)
        importlib.invalidate_caches()

    loaded(CHAIN)
    broken = submitted(profile, importlib.import_module(module.stem).Chain, x=1)
    other = submitted(profile, site.add_mul, x=1, y=2, z=3)
    assert old in CHAIN
    loaded(CHAIN.replace(old, new))
    site.work(profile, [other])
    ((paused, message),) = rows_of(
        profile, "SELECT paused, exit_message FROM process WHERE node_id = %s", broken
    )
    assert paused
    assert said in str(message)


def test_code_whose_file_is_lost_sets_its_process_aside_and_no_worker(profile: Profile) -> None:
    @gr.workflow
    def by_value(x: int) -> gr.Data:
        return site.add(x, 1)  # type: ignore[no-any-return]

    lost = submitted(profile, by_value, x=1)
    for path in [path for path in (profile.home / "store").rglob("*") if path.is_file()]:
        path.unlink()
    other = submitted(profile, site.add_mul, x=1, y=2, z=3)
    site.work(profile, [other])
    assert rows_of(profile, "SELECT paused FROM process WHERE node_id = %s", lost) == [(True,)]


def test_of_two_scripts_at_the_same_workflows_one_dies(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("SWEEP_S", "REGAIN_S"):
        monkeypatch.setattr(hub_module, setting, 0.05)
    ids = gr.submit_many(site.tree, depth=[2, 2, 2], width=2, profile=profile).ids
    undisturbed = site.shape(profile, site.run(profile, site.tree, depth=2, width=2).id)
    ours = Hub(profile, alone=True)
    with site.another(profile) as own:
        theirs = Hub(own, alone=True)
        theirs.regain([future_of(own, id_) for id_ in ids])
        step_until([theirs], lambda: len(theirs._frames) > len(ids))
        futures = [future_of(profile, id_) for id_ in ids]
        ours.regain(futures)
        ours.step(0.0)
        assert not ours._frames
    ours.run(lambda: all(future.is_terminated for future in futures))
    assert all(site.shape(profile, id_) == undisturbed for id_ in ids)


def test_what_could_not_be_recorded_can_be_submitted_again(profile: Profile) -> None:
    """The very nodes: they have no ids that nobody has stored."""
    number = gr.Int(4)
    rows_of(profile, FULL_DISK)
    with pytest.raises(gr.GrangeError, match="disk"):
        submitted(profile, site.collatz, start=number)
    assert number.id is None
    rows_of(profile, "DROP TRIGGER full_disk ON process; SELECT 1")
    site.work(profile, [submitted(profile, site.collatz, start=number)])


def test_what_ended_while_its_caller_was_being_let_go_of_is_seen(profile: Profile) -> None:
    process_id = submitted(profile, site.doubled, x=1)
    with site.another(profile) as own:
        hub = Hub(own)
        step_until([hub], lambda: len(calls_of(profile, process_id)) == 1)
        hub._evict()
        finish(profile, calls_of(profile, process_id))  # as while the store is away
        hub._wake()
        hub._commit()
        step_until([hub], lambda: site.ended(profile, [process_id]), seconds=5.0)


@gr.workflow
def reads(x: int, file: str) -> gr.Data:
    one = site.add(x, 1)
    gr.submit(site.double, x=one)
    if not Path(file.value).exists():  # type: ignore[attr-defined]
        raise StoreUnavailable("the store is away")
    return site.add(one, 1)  # type: ignore[no-any-return]


def test_code_that_reads_while_the_store_is_away_begins_again(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "there"
    process_id = submitted(profile, reads, x=1, file=str(file))
    hub = Hub(profile)
    step_until([hub], lambda: "the store is away" in hub.note)
    step_until([hub], lambda: not hub._frames)
    file.touch()
    step_until([hub], lambda: site.ended(profile, [process_id]))
    found = rows_of(profile, "SELECT label FROM process WHERE parent_id = %s ORDER BY sequence", process_id)
    assert found == [("add",), ("double",), ("add",)]
