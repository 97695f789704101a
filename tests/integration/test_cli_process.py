"""`grange process …` on real rows: lists, trees, reports, events, watching; pause, play, kill, repair."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from process_site import Tree, tree_of

import grange as gr
from grange.cli.entry import run
from grange.core.activity import activity
from grange.core.process_list import STATES, ProcessFilter, processes
from grange.core.profile import Profile


@pytest.fixture
def tree(profile: Profile) -> Tree:
    """R calls A and b; A calls c and D; D calls e. S calls f. e went well, b failed, f runs on."""
    tree = tree_of(profile)
    tree.end("e", "b")
    tree.set("b", "exit_status = 120, exit_message = 'no time left', wall_s = 61")
    tree.set("f", "state = 'running'")
    tree.set("R A D S", "state = 'waiting'")
    return tree


Say = Callable[..., str]


@pytest.fixture
def say(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs `grange process …`, which must succeed; returns its standard output."""

    def run_it(*words: object) -> str:
        status = run(["--home", str(profile.home), "process", *map(str, words)])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return run_it


@pytest.fixture
def refused(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `grange process …`, which must fail; returns what it says of it."""

    def run_it(*words: object) -> str:
        assert run(["--home", str(profile.home), "process", *map(str, words)]) == 1
        return capsys.readouterr().err

    return run_it


def log(profile: Profile, process_id: int, level: str, message: str, number: int | None = None) -> None:
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO log (node_id, loggername, levelname, message, number) VALUES (%s, 'w', %s, %s, %s)",
            (process_id, level, message, number),
        )


# -- list


LISTS = {
    "": "f S e D c b A R",
    "-S running": "f",
    "-S failed": "b",
    "-S ok -S finished": "e b",
    "-S running -S ok": "f e",
    "--failed": "b",
    "--roots": "S R",
    "--called-by A": "D c",
    "-L D": "D",
    "--paused": "c",
    "-S waiting --roots": "S R",
    "-C another": "",
    "-n 2": "f S",
}


def test_lists(tree: Tree, profile: Profile, say: Say) -> None:
    gr.Campaign("another", profile)
    tree.set("c", "paused = true")
    listed = {}
    for asked in LISTS:
        words = [tree.ids[word] if word == "A" else word for word in asked.split()]
        lines = say("list", "--json", *words).splitlines()
        listed[asked] = " ".join(json.loads(line)["process_label"] for line in lines)
    assert listed == LISTS


def test_a_list_says_what_is_to_become_of_processes(tree: Tree, say: Say) -> None:
    tree.set("c", "paused = true, exit_message = 'look at it'")
    tree.set("f", "to_kill = true")
    tree.set("D", f"cached_from = {tree.ids['A']}")
    lines = {line.split()[1]: line for line in say("list").splitlines()[1:]}
    assert re.search(r"created, paused +\d+ .* look at it$", lines["c"])
    assert "running, to be killed" in lines["f"]
    assert re.search(r"failed 120 .* 1 min 1 s +no time left$", lines["b"])
    assert "2 open calls" in lines["A"]
    assert "waiting for an equal one" in lines["D"]
    assert f"equal to {tree.ids['A']}" in lines["D"]


def test_each_state_alone_and_all_together(tree: Tree, profile: Profile) -> None:
    with profile.transaction() as cursor:
        alone = {state: processes(cursor, ProcessFilter((state,)), 10) for state in STATES}
        together = processes(cursor, ProcessFilter(STATES), 10)
        older = processes(cursor, ProcessFilter(("waiting",)), 10, before=tree.ids["S"])
    assert {state: len(rows) for state, rows in alone.items() if rows} == {
        "ok": 1, "failed": 1, "finished": 2, "running": 1, "waiting": 4, "created": 1,
    }  # fmt: skip
    assert [row.id for row in together] == tree.of("f S e D c b A R")
    assert [row.id for row in older] == tree.of("D A R")


def test_lists_read_no_more_than_they_show(profile: Profile) -> None:
    """Each list comes from an index in its order: what is rare among many is found at once."""
    tree = Tree(profile)
    tree.add({"R": [f"c{number}" for number in range(3000)]})
    tree.end(*(f"c{number}" for number in range(3000)))
    tree.set("c10", "exit_status = 3")
    with profile.transaction() as cursor:
        cursor.execute("ANALYZE process")
        for which in (ProcessFilter(), ProcessFilter(("ok",)), ProcessFilter(("failed",)),
                      ProcessFilter(failed=True), ProcessFilter(("running",)),
                      ProcessFilter(("created", "failed")), ProcessFilter(("killed",))):  # fmt: skip
            from grange.core import process_list

            query = process_list._newest(which)
            cursor.execute(
                f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) {query}", process_list._values(which, 5, 2**62)
            )
            (plan,) = cursor.fetchone() or ({},)
            assert _rows_read(plan[0]["Plan"]) <= 20, which


def _rows_read(plan: dict[str, object]) -> int:
    own = int(plan.get("Rows Removed by Filter", 0)) + int(plan["Actual Rows"])  # type: ignore[call-overload]
    return max([own, *(_rows_read(below) for below in plan.get("Plans", []))])  # type: ignore[attr-defined]


# -- show, status


def test_a_process_shows_who_has_it_and_what_it_waits_for(tree: Tree, profile: Profile, say: Say) -> None:
    tree.set("A", f"worker_id = {profile.worker_id}")
    text = say("show", tree.ids["A"])
    assert f"has it     client {profile.worker_id} (process " in text
    assert "waits for  2 calls" in text
    tree.set("A", "paused = true, exit_message = 'wait'")
    assert "waiting, paused" in say("show", tree.ids["A"])


def test_a_tree_of_calls(tree: Tree, say: Say) -> None:
    r, a, b, c, d, e = tree.of("R A b c D e")
    assert say("status", r) == "\n".join(
        [
            f"R ({r})  waiting  1 of 2 calls open",
            f"├── A ({a})  waiting  2 of 2 calls open",
            f"│   ├── c ({c})  created",
            f"│   └── D ({d})  waiting",
            f"│       └── e ({e})  finished",
            f"└── b ({b})  failed 120  1 min 1 s  no time left",
            "",
        ]
    )
    assert say("status", r, "--max-depth", "0") == (
        f"R ({r})  waiting  1 of 2 calls open\n└── 2 calls: 1 failed · 1 waiting\n"
    )
    lines = say("status", r, "--width", "1").splitlines()
    assert lines[1].startswith(f"├── b ({b})  failed")
    assert lines[-1] == "└── … 1 more: 1 waiting"
    document = json.loads(say("status", r, "--json"))
    assert document["shown"][0]["shown"][1]["shown"][0]["id"] == e


def test_a_node_that_is_no_process_has_no_tree(profile: Profile, refused: Callable[..., str]) -> None:
    node = gr.Int(3)
    profile.store(node)
    assert f"node {node.id} is no process" in refused("status", node.id)


# -- report


def test_a_report_is_of_the_whole_tree(tree: Tree, profile: Profile, say: Say) -> None:
    log(profile, tree.ids["R"], "REPORT", "begins", 1)
    log(profile, tree.ids["D"], "REPORT", "step 1\nof 2", 1)
    log(profile, tree.ids["A"], "DEBUG", "quietly")
    log(profile, tree.ids["S"], "REPORT", "of another tree", 1)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    r, a, b, d = tree.of("R A b D")
    lines = say("report", r).splitlines()
    patterns = {
        rf"{time} \[{r} R\] begins",
        rf"    {time} \[{d} D\] step 1",
        "      of 2",
        rf"  {time} \[{b} b\] error: failed with exit status 120: no time left",
    }
    assert len(lines) == len(patterns)
    assert all(any(re.fullmatch(pattern, line) for line in lines) for pattern in patterns)
    assert "quietly" in say("report", a, "--levelname", "debug")
    assert say("report", r, "-l", "error").count("\n") == 1
    assert "step 1" not in say("report", r, "--max-depth", "1")
    assert say("report", tree.ids["e"]) == "nothing was reported\n"
    found = [json.loads(line) for line in say("report", r, "--json", "-n", "2").splitlines()]
    assert [(one["id"], one["depth"]) for one in found] == [(r, 0), (d, 2)]


def test_an_exception_is_reported_once(tree: Tree, profile: Profile, say: Say) -> None:
    tree.set("D", "state = 'excepted', finished_at = now(), exit_message = 'ValueError: 3'")
    tree.set("c", "state = 'excepted', finished_at = now(), exit_message = 'KeyError: 4'")
    log(profile, tree.ids["D"], "ERROR", "Traceback …\nValueError: 3")
    text = say("report", tree.ids["A"])
    assert text.count("ValueError: 3") == 1
    assert "error: excepted: KeyError: 4" in text


# -- events, watch


def test_events_of_processes_trees_and_campaigns(tree: Tree, profile: Profile, say: Say) -> None:
    a, c = tree.of("A c")
    assert [line.split()[4] for line in say("events", c).splitlines()[1:]] == ["created"]
    kinds = [json.loads(line)["kind"] for line in say("events", a, "--tree", "--json").splitlines()]
    assert sorted(kinds) == ["created"] * 4 + ["finished", "waiting", "waiting"]
    last = [json.loads(line) for line in say("events", a, "--tree", "--json", "-n", "1").splitlines()]
    assert [one["kind"] for one in last] == ["waiting"]
    tree.set("c", f"campaign_id = {tree.queue_id}")
    assert [
        json.loads(line)["process_id"] for line in say("events", "-C", "a queue", "--json").splitlines()
    ] == [c]


def test_events_of_nothing_are_refused(refused: Callable[..., str]) -> None:
    assert "--campaign NAME" in refused("events")
    assert "--plot draws a campaign" in refused("events", "1", "--plot", "x.svg")


def test_watching_ends_with_the_processes(tree: Tree, profile: Profile, say: Say) -> None:
    written: list[str] = []
    watching = threading.Thread(target=lambda: written.append(say("watch", tree.ids["A"])))
    watching.start()
    try:
        tree.end("D", "c")
        assert watching.is_alive()
    finally:
        tree.end("A")
        watching.join(60)
    lines = written[0].splitlines()
    a, c, e = tree.of("A c e")
    assert re.fullmatch(rf"\d\d:\d\d:\d\d  A \({a}\)  created", lines[0])
    assert lines[-1].endswith(f"A ({a})  finished")
    assert any(line.endswith(f"c ({c})  finished") for line in lines)
    assert any(f"e ({e})" in line for line in lines)
    alone = [json.loads(line) for line in say("watch", "--alone", "--json", a).splitlines()]
    assert [one["kind"] for one in alone] == ["created", "waiting", "finished"]


# -- activity


def test_the_activity_of_a_campaign(profile: Profile) -> None:
    """Two calculations overlap, one of them failed; one more was answered by an equal one."""
    tree = Tree(profile)
    tree.add({"W": ["a", "b"], "V": ["c"]})
    tree.set("a b c", f"campaign_id = {tree.queue_id}")
    ends = {
        "a": ("2026-01-01 00:00:00", 40, 0),
        "b": ("2026-01-01 00:00:20", 60, 3),
    }
    for name, (begin, wall_s, status) in ends.items():
        tree.set(
            name,
            f"state = 'finished', exit_status = {status}, started_at = '{begin}+00',"
            f" finished_at = timestamptz '{begin}+00' + interval '{wall_s} s'",
        )
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM event WHERE kind = 'created'")  # those happened just now
        found = activity(cursor, tree.queue_id, points=8)
    assert list(found.running) == [1, 1, 2, 2, 1, 1, 1, 0]
    assert list(found.finished) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert list(found.failed) == [0, 0, 0, 0, 0, 0, 0, 1]
    assert list(found.workflows) == [0] * 8
    assert [round((time - found.times[0]).total_seconds()) for time in found.times[:3]] == [0, 10, 20]


def test_a_campaign_of_workflows_counts_what_they_call(profile: Profile) -> None:
    tree = Tree(profile)
    tree.add({"W": ["a"]})
    tree.set("W", f"campaign_id = {tree.queue_id}, state = 'running', worker_id = 1")
    tree.set("W", "state = 'waiting'")
    tree.set("W", "worker_id = NULL")  # let go; the next worker goes on
    tree.set("a", "state = 'running'")
    tree.set("a", "state = 'finished', exit_status = 0, finished_at = clock_timestamp()")
    tree.set("W", "state = 'running', worker_id = 2")
    tree.set("W", "state = 'finished', exit_status = 0, finished_at = clock_timestamp()")
    with profile.transaction() as cursor:
        found = activity(cursor, tree.queue_id, points=200)
    assert max(found.running) <= 1
    begun = list(found.workflows).index(1)
    assert set(found.workflows[begun:-1]) == {1}
    assert (found.running[-1], found.workflows[-1], found.finished[-1]) == (0, 0, 1)


def test_a_picture_of_a_campaign(
    tmp_path: Path, profile: Profile, say: Say, refused: Callable[..., str]
) -> None:
    pytest.importorskip("matplotlib")
    tree = Tree(profile)
    picture = tmp_path / "running.svg"
    assert "nothing has happened in a queue yet" in refused("events", "-C", "a queue", "--plot", picture)
    tree.add({"W": ["a"]})
    tree.set("W a", f"campaign_id = {tree.queue_id}")
    tree.end("a")
    say("events", "-C", "a queue", "--plot", picture)
    assert picture.read_text().startswith("<?xml")
    assert "cannot be written" in refused("events", "-C", "a queue", "--plot", tmp_path / "no" / "x.svg")


# -- pause, play, kill, repair


def test_pausing_and_playing(tree: Tree, say: Say, refused: Callable[..., str]) -> None:
    r, a = tree.of("R A")
    assert say("pause", a, "--tree", "--dry-run") == "3 processes would be paused\n"
    assert tree.where("paused") == ""
    assert say("pause", a, "--tree", "-r", "wrong cell") == "3 processes paused\n"
    assert tree.where("exit_message = 'wrong cell'") == "A c D"
    assert say("pause", a) == "nothing is left to pause\n"
    assert "wrong cell" in say("list", "--paused")
    assert say("play", a, "--dry-run") == "1 process would go on\n"
    assert say("play", a) == "1 process played\n"
    assert say("play", r) == "nothing is paused there\n"
    assert "--all" in refused("play")
    assert say("play", "--all") == "2 processes played\n"
    assert say("list", "--paused") == "nothing is paused\n"


def test_pausing_and_playing_a_campaign(tree: Tree, say: Say, refused: Callable[..., str]) -> None:
    tree.set("A b f", f"campaign_id = {tree.queue_id}")
    assert say("pause", "-C", "a queue", "--dry-run") == "2 processes would be paused\n"
    assert say("pause", "-C", "a queue", "--tree") == "4 processes paused\n"
    assert tree.where("paused") == "A c D f"
    assert say("play", "-C", "a queue") == "2 processes played\n"
    assert tree.where("paused") == "c D"
    assert "--campaign NAME" in refused("pause")
    assert "--campaign NAME" in refused("play", "1", "--campaign", "a queue")


def test_killing_a_tree(tree: Tree, say: Say) -> None:
    a = tree.ids["A"]
    assert say("kill", a, "--dry-run") == "3 processes would be ended\n"
    assert tree.where("to_kill") == ""
    assert say("kill", a) == "3 processes ended or about to end\n"
    assert tree.where("state = 'killed'") == "A c D"
    assert say("kill", a) == "nothing is left to end\n"


def test_killing_what_an_earlier_run_left(tree: Tree, say: Say) -> None:
    """Nobody holds its queue, and it may be under way somewhere: who kills looks there, and ends it."""
    tree.set("c", "attempt = 2")
    say("kill", tree.ids["A"])
    assert tree.where("state = 'killed'") == "A c D"


def test_repairing(tree: Tree, say: Say) -> None:
    tree.set("c", "worker_id = 999999")
    assert "belong to a worker that is gone" in say("repair", "--dry-run")
    assert tree.where("worker_id = 999999") == "c"
    [fault] = json.loads(say("repair", "--json"))
    assert fault["ids"] == tree.of("c")
    assert say("repair") == "nothing is wrong\n"
