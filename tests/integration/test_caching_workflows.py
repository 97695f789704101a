"""Equal calls of workflows, of scripts and of campaigns answer each other, and calcfunctions where asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import grange as gr
from grange.core.dispatcher_thread import DispatcherThreads
from grange.core.profile import Profile
from grange.core.queues import Queues

PATIENCE_S = 60


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; what it gave."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.02)
    return found


def query(profile: Profile, statement: str, *values: object) -> list[tuple[Any, ...]]:
    with profile.transaction() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


def marked(x: int, folder: str) -> int:
    """Leave a mark that it ran."""
    import uuid
    from pathlib import Path

    (Path(folder) / f"ran-{x}-{uuid.uuid4().hex}").touch()
    return x * x


def ran(folder: Path) -> int:
    return len(list(folder.glob("ran-*")))


@gr.workflow
def twice(x: int, folder: str) -> Any:
    """Two equal calls at once, and a third when they have ended."""
    futures = [gr.submit(marked, x=x, folder=folder) for _ in range(2)]
    first, second = (future.result() for future in futures)
    third = gr.run(marked, x=x, folder=folder)
    return {"first": first, "second": second, "third": third}


@gr.workflow
def of_two(folder: str) -> Any:
    """A workflow in another, with a setting of its own."""
    with gr.disable_caching("twice"):  # means nothing: workflows are never answered by others
        outer = gr.submit(twice, x=3, folder=folder)
    with gr.enable_caching("*marked"):
        inner = gr.submit(twice, x=3, folder=folder)
    outer.wait()
    inner.wait()
    return None


def test_equal_calls_of_a_workflow_are_computed_once(profile: Profile, tmp_path: Path) -> None:
    given, future = gr.run_get_node(twice, x=3, folder=str(tmp_path), profile=profile, progress=False)
    assert future.is_finished_ok
    assert {name: node.value for name, node in given.items()} == {"first": 9, "second": 9, "third": 9}
    assert ran(tmp_path) == 1
    found = query(
        profile,
        "SELECT sequence, cached_from - first_value(node_id) OVER (ORDER BY sequence), attempt FROM process"
        " WHERE parent_id = %s ORDER BY sequence",
        future.id,
    )
    assert [(sequence, answered) for sequence, answered, _ in found] == [(1, None), (2, 0), (3, 0)]
    # each has outputs of its own, made by itself
    assert query(
        profile,
        "SELECT count(DISTINCT target_id) FROM link JOIN process ON node_id = source_id"
        " WHERE type = 'create' AND parent_id = %s",
        future.id,
    ) == [(3,)]
    # a campaign is answered by what a workflow has computed
    campaign = gr.Campaign("later", profile)
    campaign.map(marked, x=[3], folder=str(tmp_path))
    assert campaign.run(progress=False).reused == 1
    assert ran(tmp_path) == 1


def test_many_equal_calculations_submitted_together_are_computed_once(
    profile: Profile, tmp_path: Path
) -> None:
    futures = gr.submit_many(marked, x=[1, 2, 1, 2, 1], folder=str(tmp_path), profile=profile)
    with DispatcherThreads(profile) as dispatchers:
        dispatchers.serve([Queues(profile).id_of(None)])
        assert [node.value for node in futures.results(progress=False)] == [1, 4, 1, 4, 1]
    assert ran(tmp_path) == 2
    first, second = futures.ids[:2]
    assert query(
        profile, "SELECT kind::text FROM event WHERE process_id = %s ORDER BY id", futures.ids[2]
    ) == [("created",), ("claimed",), ("follows",), ("reused",)]
    assert query(profile, "SELECT cached_from FROM process ORDER BY node_id") == [
        (None,), (None,), (first,), (second,), (first,),
    ]  # fmt: skip
    assert query(profile, "SELECT count(*) FROM process WHERE open_children <> 0 OR finished_at IS NULL") == [
        (0,)
    ]


def test_a_queue_waits_for_what_a_campaign_computes(profile: Profile, tmp_path: Path) -> None:
    """A call in the queue follows one of a campaign, and the queue goes on with what comes meanwhile."""

    def slow(x: int, folder: str) -> int:
        import time
        import uuid
        from pathlib import Path

        (Path(folder) / f"ran-{x}-{uuid.uuid4().hex}").touch()
        while x == 1 and not (Path(folder) / "go").exists():
            time.sleep(0.02)
        return x

    import threading

    from grange.core.profile import open_profile

    def campaign() -> None:
        with open_profile(profile.home) as own:
            first = gr.Campaign("first", own)
            first.map(slow, x=[1], folder=str(tmp_path))
            first.run(progress=False)

    thread = threading.Thread(target=campaign)
    thread.start()
    try:
        until(lambda: ran(tmp_path), "the campaign begins")
        follower = gr.submit(slow, x=1, folder=str(tmp_path), profile=profile)
        with DispatcherThreads(profile) as dispatchers:
            dispatchers.serve([Queues(profile).id_of(None)])
            until(
                lambda: (
                    query(profile, "SELECT cached_from FROM process WHERE node_id = %s", follower.id)
                    != [(None,)]
                ),
                "it follows",
            )
            assert gr.submit(slow, x=2, folder=str(tmp_path), profile=profile).result(PATIENCE_S).value == 2
            assert not follower.done()
            (tmp_path / "go").touch()
            assert follower.result(PATIENCE_S).value == 1
    finally:
        (tmp_path / "go").touch()
        thread.join(PATIENCE_S)
    assert ran(tmp_path) == 2


def test_a_block_around_a_workflow_holds_for_all_that_it_calls(profile: Profile, tmp_path: Path) -> None:
    folder = str(tmp_path)
    gr.run(twice, x=3, folder=folder, profile=profile, progress=False)
    assert ran(tmp_path) == 1
    with gr.disable_caching():
        future = gr.submit(of_two, folder=folder, profile=profile)
    # whoever runs it, in no block
    from grange.core.local_run import go_on_here

    go_on_here(profile, [future.id], progress=False)
    # the calls of the one are computed, those of the other are answered
    assert ran(tmp_path) == 4


calls: list[int] = []


@gr.calcfunction
def counted(x: int) -> int:
    calls.append(x)
    return gr.ExitCode(310, "three") if x == 3 else x + 1  # type: ignore[return-value]


@gr.calcfunction
def both(x: int) -> dict[str, int]:
    calls.append(x)
    return {"less": x - 1, "more": x + 1}


@gr.workflow
def of_calcfunctions(x: int) -> Any:
    one = counted(x)
    two = counted(x)
    pair = both(x)
    return {"sum": gr.run(total, x=[one, two, pair["less"]])}


def total(x: list[int]) -> int:
    return sum(x)


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    calls.clear()


def test_calcfunctions_are_answered_where_somebody_asks_for_it(profile: Profile) -> None:
    with gr.recording(profile):
        assert [counted(1).value, counted(1).value] == [2, 2]
        assert calls == [1, 1]
        with gr.enable_caching():
            again = counted(1)
            assert (again.value, calls) == (2, [1, 1])
            assert {name: node.value for name, node in both(1).items()} == {"less": 0, "more": 2}
            assert {name: node.value for name, node in both(1).items()} == {"less": 0, "more": 2}
            assert calls == [1, 1, 1]
            for _ in range(2):
                with pytest.raises(gr.CalculationFailed, match="310"):
                    counted(3)
            assert calls == [1, 1, 1, 3]
        counted.caching = True  # type: ignore[attr-defined]
        counted(1)
        counted.caching = False  # type: ignore[attr-defined]
        counted(1)
        del counted.caching  # type: ignore[attr-defined]
        assert calls == [1, 1, 1, 3, 1]
    creators = query(
        profile,
        "SELECT source_id, cached_from FROM link JOIN process ON node_id = source_id"
        " WHERE type = 'create' AND target_id = %s",
        again.id,
    )
    assert creators[0][1] is not None
    # that it has nothing to do with others means that it answers none either
    assert query(profile, "SELECT count(*) FROM process WHERE key IS NULL") == [(1,)]


def test_calcfunctions_in_workflows_are_answered_where_somebody_asks_for_it(profile: Profile) -> None:
    def run() -> gr.Future:
        given, future = gr.run_get_node(of_calcfunctions, x=5, profile=profile, progress=False)
        assert future.is_finished_ok
        assert given["sum"].value == 16
        return future

    run()
    assert calls == [5, 5, 5]
    with gr.enable_caching("*counted"):
        future = run()
    assert calls == [5, 5, 5, 5]
    found = query(
        profile,
        "SELECT label, cached_from IS NOT NULL FROM process WHERE parent_id = %s ORDER BY sequence",
        future.id,
    )
    assert found == [("counted", True), ("counted", True), ("both", False), ("total", True)]


def test_workflows_themselves_are_never_answered(profile: Profile, tmp_path: Path) -> None:
    with gr.enable_caching():
        for _ in range(2):
            gr.run(twice, x=2, folder=str(tmp_path), profile=profile, progress=False)
    assert ran(tmp_path) == 1
    assert query(profile, "SELECT count(*), count(cached_from), count(key) FROM process WHERE workflow") == [
        (2, 0, 0)
    ]


def moody(folder: str) -> int:
    """Fails in a way that it declares, until it has run three times."""
    import uuid
    from pathlib import Path

    (Path(folder) / f"ran-{uuid.uuid4().hex}").touch()
    if len(list(Path(folder).glob("ran-*"))) < 3:
        return gr.ExitCode(310, "not yet")  # type: ignore[return-value]
    return 7


@gr.workflow
def patient(folder: str) -> Any:
    """Makes a call again for as long as it fails."""
    for _ in range(5):
        future = gr.submit(moody, folder=folder)
        future.wait()
        if future.is_finished_ok:
            return future.outputs.result
    return gr.ExitCode(400, "in vain")


def test_a_workflow_that_makes_a_call_again_has_it_computed_again(profile: Profile, tmp_path: Path) -> None:
    folder = str(tmp_path)
    campaign = gr.Campaign("first", profile)
    campaign.map(moody, folder=folder)
    assert campaign.run(progress=False).failed == 1
    # the first try of the workflow is answered by that failure, those after it are its own
    given, future = gr.run_get_node(patient, folder=folder, profile=profile, progress=False)
    assert future.is_finished_ok
    assert given.value == 7
    assert query(
        profile,
        "SELECT exit_status, cached_from IS NULL FROM process WHERE parent_id = %s AND label = 'moody'"
        " ORDER BY sequence",
        future.id,
    ) == [(310, False), (310, True), (0, True)]
    # and another workflow is answered by what went well
    gr.run(patient, folder=folder, profile=profile, progress=False)
    assert ran(tmp_path) == 3
