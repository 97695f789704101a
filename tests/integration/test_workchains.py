"""WorkChains in workers: the right graph, and going on from the record wherever a worker was cut off."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import workchain_site as chains
import workflow_site as site
from workflow_site import rows_of

import grange as gr
from grange.core import process_control
from grange.core.hub import Hub
from grange.core.profile import Profile
from grange.core.worker import free_dead

# -- the graph


def test_multiply_add_gives_the_graph_of_aiida(profile: Profile) -> None:
    future = site.run(profile, chains.MultiplyAdd, x=2, y=3)
    assert future.is_finished_ok
    assert future.outputs.result.value == 7
    assert site.links_of(profile) == sorted(
        [
            ("2", "input_work", "x", "MultiplyAdd"),
            ("3", "input_work", "y", "MultiplyAdd"),
            ("1", "input_work", "z", "MultiplyAdd"),
            ("2", "input_calc", "x", "multiply"),
            ("3", "input_calc", "y", "multiply"),
            ("6", "input_calc", "x", "add"),
            ("1", "input_calc", "y", "add"),
            ("MultiplyAdd", "call_calc", "CALL", "multiply"),
            ("MultiplyAdd", "call_calc", "CALL", "add"),
            ("multiply", "create", "result", "6"),
            ("add", "create", "result", "7"),
            ("MultiplyAdd", "return", "result", "7"),
        ]
    )
    ((node_type, attributes),) = rows_of(
        profile, "SELECT node_type, attributes FROM node WHERE id = %s", future.id
    )
    assert node_type == "process.workflow.workchain.WorkChainNode."
    assert attributes["process_label"] == "MultiplyAdd"
    assert attributes["metadata_inputs"] == {"note": "of use"}
    assert rows_of(profile, "SELECT levelname, message FROM log") == [("REPORT", "7 is of use")]


def test_how_it_ends_is_recorded(profile: Profile) -> None:
    future = site.run(profile, chains.MultiplyAdd, x=-2, y=3)
    assert (future.exit_status, future.exit_message) == (400, "the result is negative")
    assert rows_of(profile, "SELECT exit_status, exit_message FROM process WHERE workflow") == [
        (400, "the result is negative")
    ]


def test_namespaces_labels_and_loops(profile: Profile) -> None:
    future = site.run(profile, chains.Many, each={"y": 2, "note": "small"}, rounds=3)
    assert future.is_finished_ok, future.said()
    # 21, and of each round the sum of 2 n + 1
    sums = {name: node.value for name, node in future.outputs.sums.items()}
    assert sums == {"round_1": 22, "round_2": 25, "round_3": 30}
    inputs = rows_of(profile, "SELECT label FROM link WHERE target_id = %s ORDER BY 1", future.id)
    assert inputs == [("each__y",), ("each__z",), ("rounds",)]
    labels = rows_of(
        profile,
        "SELECT n.label, l.label FROM node n JOIN link l ON l.target_id = n.id"
        " WHERE l.label = 'other' ORDER BY n.id",
    )
    assert labels == [("round 1", "other"), ("round 2", "other"), ("round 3", "other")]
    notes = rows_of(
        profile,
        "SELECT DISTINCT attributes #>> '{metadata_inputs,note}' FROM node WHERE node_type LIKE '%%work%%'",
    )
    assert {note for (note,) in notes if note} == {"small", "of use"}


def test_a_restart_until_it_is_well(profile: Profile) -> None:
    future = site.run(profile, chains.Restarted, converging={"steps": 3, "needed": 20})
    assert future.is_finished_ok, future.said()
    assert future.outputs.steps.value == 24
    calls = rows_of(
        profile,
        "SELECT l.label, p.exit_status FROM process p JOIN link l ON l.target_id = p.node_id"
        " AND l.type = 'call_work' WHERE p.parent_id = %s ORDER BY p.node_id",
        future.id,
    )
    assert calls == [("iteration_01", 410), ("iteration_02", 410), ("iteration_03", 410), ("iteration_04", 0)]
    future = site.run(profile, chains.Restarted, converging={"steps": 1, "needed": 99}, max_iterations=2)
    assert future.exit_status == 401


def test_what_a_class_is_wrong_about_ends_its_process_alone(profile: Profile) -> None:
    class Silent(gr.WorkChain):
        @classmethod
        def define(cls, spec: Any) -> None:
            super().define(spec)
            spec.output("energy")
            spec.outline(cls.nothing)

        def nothing(self) -> None: ...

    class Broken(Silent):
        def nothing(self) -> None:
            raise KeyError("nowhere")

    assert site.run(profile, Silent).exit_status == 11
    future = site.run(profile, Broken)
    assert future.is_excepted
    assert "KeyError: 'nowhere'" in str(future.exit_message)
    ((details,),) = rows_of(profile, "SELECT message FROM log WHERE node_id = %s", future.id)
    assert "in step nothing of Broken" in details


# -- going on from the record


@pytest.mark.parametrize(
    ("chain", "inputs"),
    [
        (chains.MultiplyAdd, {"x": 1, "y": 2, "note": "mine"}),
        (chains.Many, {"each": {"y": 2}, "rounds": 2}),
        (chains.Restarted, {"converging": {"steps": 1, "needed": 6}}),
    ],
)
def test_whoever_is_cut_off_whenever_the_graph_is_the_same(
    chain: Any, inputs: dict[str, object], profile: Profile
) -> None:
    undisturbed_id = site.run(profile, chain, **inputs).id
    undisturbed = site.shape(profile, undisturbed_id)
    count = "SELECT kind::text, count(*) FROM node WHERE id > %s GROUP BY 1 ORDER BY 1"
    nodes = rows_of(profile, count, 0)
    ((highest,),) = rows_of(profile, "SELECT max(id) FROM node")
    made: list[int] = []

    def submit() -> int:
        made.append(gr.submit(chain, profile=profile, **inputs).id)
        return made[0]

    assert site.cut_off_everywhere(profile, submit) > 2
    assert site.shape(profile, made[0]) == undisturbed
    assert rows_of(profile, count, highest) == nodes
    reports = "SELECT message FROM log WHERE node_id = %s ORDER BY number"
    assert [message.partition(" (")[0] for (message,) in rows_of(profile, reports, made[0])] == [
        message.partition(" (")[0] for (message,) in rows_of(profile, reports, undisturbed_id)
    ]


MODULE = """
import grange as gr
from workflow_site import add, multiply

class Steps(gr.WorkChain):
    @classmethod
    def define(cls, spec):
        super().define(spec)
        spec.input("x", valid_type=gr.Int)
        spec.output("result", valid_type=gr.Int)
        spec.outline(cls.first, cls.second, cls.third)

    def first(self):
        self.ctx.one = add(self.inputs.x, 1)

    def second(self):
        self.ctx.two = multiply(self.ctx.one, 2)

    def third(self):
        self.out("result", add(self.ctx.two, 3))
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("multiply(self.ctx.one, 2)", "multiply(self.ctx.one, 4)", "call 2 differs"),
        ("cls.first, cls.second", "cls.second, cls.first", "no 'one'"),
        ('spec.input("x"', 'spec.input("z", required=False); spec.input("x"', None),
        ("class Steps", "class Paces", "cannot be imported here"),
    ],
)
def test_a_class_that_changed(
    old: str, new: str, said: str | None, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the record fits, it goes on; else it is paused, and says which call differs."""
    module = tmp_path / "grange_test_chains.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(text: str) -> Any:
        module.write_text(text)
        sys.modules.pop(module.stem, None)
        importlib.invalidate_caches()
        return importlib.import_module(module.stem)

    process_id = gr.submit(loaded(MODULE).Steps, profile=profile, x=1).id
    with site.another(profile) as own:
        hub = Hub(own)
        while rows_of(profile, "SELECT count(*) FROM process WHERE parent_id = %s", process_id) != [(2,)]:
            hub.step(0.0)
    free_dead(profile)
    loaded(MODULE.replace(old, new))
    site.work(profile, [process_id], steps=8)
    ((state, paused, message),) = rows_of(
        profile, "SELECT state::text, paused, exit_message FROM process WHERE node_id = %s", process_id
    )
    if said is None:
        assert (state, paused) == ("finished", False)
    else:
        assert said in str(message)
        assert paused or state == "excepted"


def test_a_class_of_a_script_is_run_by_a_worker_that_has_it_from_the_record(profile: Profile) -> None:
    class Local(chains.MultiplyAdd):
        def result(self) -> None:
            self.out("result", site.multiply(self.ctx.sum, 10))

    process_id = gr.submit(Local, profile=profile, x=2, y=3, metadata=None).id
    files = rows_of(profile, "SELECT repository_metadata::text FROM node WHERE id = %s", process_id)
    assert "workchain.pickle" in files[0][0]
    site.work(profile, [process_id])
    outputs = rows_of(
        profile,
        "SELECT n.attributes ->> 'value' FROM link l JOIN node n ON n.id = l.target_id"
        " WHERE l.source_id = %s AND l.type = 'return'",
        process_id,
    )
    assert outputs == [("70",)]


def test_one_that_goes_in_circles_stops_nobody_and_can_be_killed(profile: Profile) -> None:
    class Circle(gr.WorkChain):
        @classmethod
        def define(cls, spec: Any) -> None:
            super().define(spec)
            spec.outline(gr.while_(cls.always)(cls.nothing))

        def always(self) -> bool:
            return True

        def nothing(self) -> None: ...

    process_id = gr.submit(Circle, profile=profile).id
    other_id = gr.submit(chains.MultiplyAdd, profile=profile, x=1, y=2).id
    with site.another(profile) as own:
        hub = Hub(own)
        while not site.ended(profile, [other_id]):
            hub.step(0.0)
        assert not site.ended(profile, [process_id])
        process_control.kill(profile, [process_id])
        while not site.ended(profile, [process_id]):
            hub.step(0.0)
    assert rows_of(profile, "SELECT state::text FROM process WHERE node_id = %s", process_id) == [("killed",)]


def test_a_pause_for_inspection_is_played(profile: Profile) -> None:
    process_id = gr.submit(
        chains.Restarted,
        profile=profile,
        converging={"steps": 1, "needed": 4},
        handler_overrides={"more_steps": {"enabled": False}},
        on_unhandled_failure="pause",
    ).id
    site.work(profile, [process_id], steps=12)
    ((paused, message),) = rows_of(
        profile, "SELECT paused, exit_message FROM process WHERE node_id = %s", process_id
    )
    assert paused
    assert f"grange process play {process_id}" in message
    assert process_control.play(profile, [process_id]) == 1
    site.work(profile, [process_id], steps=12)
    assert rows_of(profile, "SELECT count(*) FROM process WHERE parent_id = %s", process_id) == [(2,)]


# -- with programs, by the farm


class Add(gr.CalcJob):
    """Adds two numbers with a shell."""

    class Inputs:
        x: int
        y: int = 1

    class Outputs:
        sum: int

    TOO_LARGE = gr.ExitCode(320, "the sum is over 100")

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command(["sh", "-c", f"echo $(({inputs.x} + {inputs.y}))"])

    def parse(self, files: Any) -> Any:
        total = int(files.text("stdout.txt"))
        return self.TOO_LARGE if total > 100 else {"sum": total}


class Adding(gr.BaseRestartWorkChain):
    """Runs Add, with less where it was too much."""

    _process_class = Add

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.expose_inputs(Add, namespace="add")
        spec.expose_outputs(Add)
        spec.outline(
            cls.setup, gr.while_(cls.should_run_process)(cls.run_process, cls.inspect_process), cls.results
        )

    def setup(self) -> None:
        super().setup()
        self.ctx.inputs = self.exposed_inputs(Add, "add")

    @gr.process_handler(exit_codes=Add.TOO_LARGE)
    def less(self, process: Any) -> gr.ProcessHandlerReport:
        self.ctx.inputs.x = site.add(self.ctx.inputs.x, -50)
        return gr.ProcessHandlerReport()


def test_programs_in_workchains(profile: Profile) -> None:
    builder = Adding.get_builder()
    builder.add.x = 190
    builder.add.y = 2
    builder.add.metadata.label = "sum"
    builder.add.metadata.options.max_wallclock_seconds = 60
    builder.metadata.label = "all of it"
    outputs, future = gr.run_get_node(builder, profile=profile, progress=False)
    assert future.is_finished_ok, future.said()
    assert outputs["sum"].value == 92
    assert outputs["retrieved"].read_file("stdout.txt") == b"92\n"
    rows = rows_of(
        profile,
        "SELECT n.label, l.label, p.exit_status, n.attributes -> 'max_wallclock_seconds'"
        " FROM process p JOIN node n ON n.id = p.node_id"
        " LEFT JOIN link l ON l.target_id = n.id AND l.type IN ('call_calc', 'call_work')"
        " WHERE p.label IN ('Add', 'Adding') ORDER BY n.id",
    )
    assert rows == [
        ("all of it", None, 0, None),
        ("sum", "iteration_01", 320, 60),
        ("sum", "iteration_02", 320, 60),
        ("sum", "iteration_03", 0, 60),
    ]
