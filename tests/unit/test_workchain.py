"""WorkChains: steps, ctx, what is waited for, outputs, exit codes, and going on from a record."""

from __future__ import annotations

from typing import Any

import pytest
from memory_frame import MemoryFrame, Record, run

from grange.core.data import Dict, Float, Int, Str
from grange.core.errors import InputInvalid, InputMissing
from grange.core.exit_code import ExitCode
from grange.core.node import WorkChainNode
from grange.core.outline import if_, return_, while_
from grange.core.process_spec import ProcessSpec
from grange.core.workchain import WorkChain
from grange.core.workchain_context import ToContext, append_
from grange.core.workflow_recipe import WorkflowEnd
from grange.farm.task import Resources


def multiply(x: int, y: int) -> int:
    return x * y


def add(x: int, y: int) -> int | ExitCode:
    return x + y


def fails() -> ExitCode:
    return ExitCode(310, "no luck")


def value_of(end: WorkflowEnd, name: str = "result") -> Any:
    return end.outputs[name].value


class MultiplyAdd(WorkChain):
    """AiiDA's own example."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.input("x", valid_type=Int)
        spec.input("y", valid_type=Int)
        spec.input("z", valid_type=Int, default=lambda: Int(1))
        spec.output("result", valid_type=Int)
        spec.exit_code(400, "ERROR_NEGATIVE_NUMBER", message="The result is negative.")
        spec.outline(cls.multiply, cls.add, cls.validate_result, cls.result)

    def multiply(self) -> ToContext:
        return ToContext(product=self.submit(multiply, x=self.inputs.x, y=self.inputs.y))

    def add(self) -> None:
        self.to_context(addition=self.submit(add, x=self.ctx.product.outputs.result, y=self.inputs.z))

    def validate_result(self) -> ExitCode | None:
        if self.ctx.addition.outputs.result.value < 0:
            return self.exit_codes.ERROR_NEGATIVE_NUMBER
        return None

    def result(self) -> None:
        self.out("result", self.ctx.addition.outputs.result)


def chain(*names: str, **members: Any) -> type[WorkChain]:
    """A WorkChain of these steps, each a function of self; `more` adds to the spec."""
    more = members.pop("more", lambda spec: None)

    def define(cls: Any, spec: ProcessSpec) -> None:
        super(made, cls).define(spec)  # type: ignore[misc]
        spec.outputs.dynamic = True
        spec.outline(*(getattr(cls, name) for name in names or members))
        more(spec)

    steps = {name: named(name, step) for name, step in members.items()}
    made = type("Chain", (WorkChain,), {"define": classmethod(define), **steps})
    return made


def named(name: str, function: Any) -> Any:
    function.__name__ = name
    return function


# ---------------------------------------------------------------- steps


def test_steps_wait_for_each_other_and_the_last_gives_the_result() -> None:
    frame = MemoryFrame()
    end = run(MultiplyAdd, x=2, y=3, frame=frame)
    assert value_of(end) == 7
    assert end.exit_code is None
    assert frame.waits == [1, 1]


def test_an_exit_code_ends_it() -> None:
    end = run(MultiplyAdd, x=-2, y=3)
    assert end.exit_code == ExitCode(400, "The result is negative.")
    assert not end.outputs


def test_a_status_is_the_exit_code_that_has_it() -> None:
    more = lambda spec: spec.exit_code(410, "ERROR_COLD", "too cold")  # noqa: E731
    assert run(chain(step=lambda self: 410, more=more)).exit_code == ExitCode(410, "too cold")
    assert run(chain(step=lambda self: 411, more=more)).exit_code == ExitCode(411, "")
    assert run(chain(step=lambda self: 0)).exit_code is None


@pytest.mark.parametrize("returned", [True, -1, {"a": 1}, "well", 1.0])
def test_a_step_that_returns_anything_else_is_an_error_that_names_it(returned: object) -> None:
    with pytest.raises(InputInvalid, match="step first returned"):
        run(chain(first=lambda self: returned))


def test_an_exception_says_in_which_step() -> None:
    def careless(self: WorkChain) -> None:
        raise ZeroDivisionError("by nothing")

    with pytest.raises(ZeroDivisionError) as raised:
        run(chain(careless=careless))
    assert raised.value.__notes__ == ["in step careless of Chain"]


def test_all_that_a_step_submits_is_waited_for_at_once() -> None:
    def many(self: WorkChain) -> None:
        for number in range(5):
            self.to_context(sums=append_(self.submit(add, x=number, y=1)))
        self.to_context(**{"nested.one": self.submit(add, x=1, y=1)})
        self.to_context(listed=self.submit_many(add, x=[1, 2], y=[3, 4]))

    def look(self: WorkChain) -> None:
        assert [one.outputs.result.value for one in self.ctx.sums] == [1, 2, 3, 4, 5]
        assert self.ctx.nested.one.outputs.result.value == 2
        assert [one.result().value for one in self.ctx.listed] == [4, 6]

    frame = MemoryFrame()
    run(chain(many=many, look=look), frame=frame)
    assert frame.waits == [8]


def test_what_is_waited_for_has_to_be_submitted() -> None:
    with pytest.raises(InputInvalid, match="to_context: energy"):
        run(chain(step=lambda self: ToContext(energy=Int(1))))

    def step(self: WorkChain) -> None:
        self.ctx.energy = 1
        self.to_context(energy=append_(self.submit(fails)))

    with pytest.raises(InputInvalid, match="a list, to append"):
        run(chain(step=step))


def test_failed_calls_are_looked_at_by_the_next_step() -> None:
    def step(self: WorkChain) -> ToContext:
        return ToContext(child=self.submit(fails))

    def look(self: WorkChain) -> None:
        child = self.ctx.child
        assert not child.is_finished_ok
        assert (child.exit_status, child.exit_message, child.is_failed) == (310, "no luck", True)

    run(chain(step=step, look=look))


# ---------------------------------------------------------------- outline


class Looping(WorkChain):
    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.output("result", valid_type=Int)
        spec.outline(cls.setup, while_(cls.below_ten)(cls.step, cls.note), cls.finish)

    def setup(self) -> None:
        self.ctx.total = 0

    def below_ten(self) -> bool:
        return bool(self.ctx.total < 10)

    def step(self) -> ToContext:
        return ToContext(last=self.submit(add, x=self.ctx.total, y=3))

    def note(self) -> None:
        self.ctx.total = self.ctx.last.outputs.result.value

    def finish(self) -> None:
        self.out("result", self.ctx.last.outputs.result)


def test_a_loop_counts_in_ctx() -> None:
    frame = MemoryFrame()
    assert value_of(run(Looping, frame=frame)) == 12
    assert frame.ran == 4


@pytest.mark.parametrize("body", [if_(lambda self: False)(lambda self: None), lambda self: None])
def test_one_that_goes_in_circles_lets_others_have_their_turn(body: Any) -> None:
    class Circle(WorkChain):
        @classmethod
        def define(cls, spec: ProcessSpec) -> None:
            super().define(spec)
            spec.outline(while_(cls.goes_on)(body))

        def goes_on(self) -> bool:
            self.ctx.rounds = self.ctx.get("rounds", 0) + 1
            return bool(self.ctx.rounds < 3500)

    frame = MemoryFrame()
    run(Circle, frame=frame)
    assert frame.waits == [0, 0, 0]


class Branching(WorkChain):
    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.input("n", valid_type=Int)
        spec.exit_code(420, "ERROR_ODD", "odd")
        spec.outline(
            if_(cls.is_zero)(return_)
            .elif_(cls.is_one)(return_(ExitCode(421, "one")))
            .elif_(cls.is_two)(cls.say_two, return_(420))
            .elif_(cls.is_odd)(cls.say_odd)
            .elif_(cls.is_large)(cls.say_large)
            .else_(cls.say_many),
            cls.say_end,
        )

    def is_zero(self) -> bool:
        return bool(self.inputs.n.value == 0)

    def is_one(self) -> bool:
        return bool(self.inputs.n.value == 1)

    def is_two(self) -> bool:
        return bool(self.inputs.n.value == 2)

    def say_two(self) -> None:
        self.report("two")

    def is_odd(self) -> bool:
        return bool(self.inputs.n.value % 2)

    def say_odd(self) -> None:
        self.report("odd")

    def is_large(self) -> bool:
        return bool(self.inputs.n.value > 10)

    def say_large(self) -> None:
        self.report("large")

    def say_many(self) -> None:
        self.report("%d are many", self.inputs.n.value)

    def say_end(self) -> None:
        self.logger.warning("the end")


@pytest.mark.parametrize(
    ("n", "status", "reports"),
    [
        (0, None, []),
        (1, 421, []),
        (2, 420, [("REPORT", "two")]),
        (4, None, [("REPORT", "4 are many"), ("WARNING", "the end")]),
        (12, None, [("REPORT", "large"), ("WARNING", "the end")]),
        (13, None, [("REPORT", "odd"), ("WARNING", "the end")]),
    ],
)
def test_branches_and_returns(n: int, status: int | None, reports: list[tuple[str, str]]) -> None:
    frame = MemoryFrame()
    end = run(Branching, n=n, frame=frame)
    assert (end.exit_code.status if end.exit_code else None) == status
    assert frame.record.reports == reports


def test_a_class_without_outline_or_super_says_so() -> None:
    class Empty(WorkChain):
        pass

    class Rude(WorkChain):
        @classmethod
        def define(cls, spec: ProcessSpec) -> None:
            spec.outline(cls.step)

        def step(self) -> None: ...

    with pytest.raises(InputInvalid, match="outline"):
        Empty.__grange_recipe__()
    with pytest.raises(InputInvalid, match=r"super\(\)\.define\(spec\)"):
        Rude.spec()
    with pytest.raises(InputInvalid, match="derived"):
        WorkChain.__grange_recipe__()


# ---------------------------------------------------------------- outputs


def test_outputs_that_are_missing_end_it_with_11() -> None:
    def more(spec: ProcessSpec) -> None:
        spec.outputs.dynamic = False
        spec.output("a.energy", valid_type=Float)
        spec.output("b.energy", valid_type=Float, required=False)
        spec.output_namespace("c", required=False)
        spec.output("c.energy")

    end = run(chain(step=lambda self: None, more=more))
    assert end.exit_code is not None
    assert end.exit_code.status == 11
    assert end.exit_code.message.endswith(": a.energy")


def test_outputs_in_namespaces() -> None:
    def step(self: WorkChain) -> ToContext:
        return ToContext(one=self.submit(add, x=1, y=2), two=self.submit(multiply, x=1, y=2))

    def give(self: WorkChain) -> None:
        self.out("sums.first", self.ctx.one.outputs.result)
        self.out_many({"products": {"deep": dict(self.ctx.two.outputs)}, "all": self.ctx.one.outputs})

    end = run(chain(step=step, give=give))
    assert sorted(end.outputs) == ["all__result", "products__deep__result", "sums__first"]


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda self: self.out("result", 3), "data"),
        (lambda self: self.out("result", Int(3)), "recorded"),
        (lambda self: self.out("energy", self.inputs.n), "there are: result"),
        (lambda self: self.out("result", self.inputs.text), "int"),
        (lambda self: [self.out("result", self.inputs.n) for _ in range(2)], "not given before"),
    ],
)
def test_outputs_that_cannot_be(give: Any, said: str) -> None:
    def more(spec: ProcessSpec) -> None:
        spec.outputs.dynamic = False
        spec.input("n", valid_type=Int, default=1)
        spec.input("text", valid_type=Str, default="a")
        spec.output("result", valid_type=Int)

    def step(self: WorkChain) -> None:
        give(self)

    with pytest.raises(InputInvalid, match=said):
        run(chain(step=step, more=more))


def test_outputs_are_kept_when_it_fails() -> None:
    def step(self: WorkChain) -> int:
        self.out("n", self.inputs.n)
        return 300

    end = run(chain(step=step, more=lambda spec: spec.input("n", valid_type=Int)), n=4)
    assert value_of(end, "n") == 4
    assert end.exit_code == ExitCode(300, "")


# ---------------------------------------------------------------- inputs


def test_inputs_are_checked_before_anything_is_run() -> None:
    with pytest.raises(InputMissing, match="MultiplyAdd: y"):
        run(MultiplyAdd, x=1)
    with pytest.raises(InputInvalid, match="MultiplyAdd: x: expected int"):
        run(MultiplyAdd, x="one", y=2)
    with pytest.raises(InputInvalid, match="did you mean 'x'"):
        run(MultiplyAdd, x=1, y=2, xx=3)


def test_settings_are_recorded_at_the_process_and_come_back() -> None:
    def more(spec: ProcessSpec) -> None:
        spec.input("options.depth", valid_type=int, non_db=True, default=2)
        spec.input_namespace("notes", dynamic=True, non_db=True)

    def step(self: WorkChain) -> None:
        self.report("%s %s", self.inputs.options.depth, self.inputs.notes.who)

    cls = chain(step=step, more=more)
    given = cls.__grange_recipe__().given({"notes": {"who": ["me"]}})
    assert given.attributes == {"metadata_inputs": {"options": {"depth": 2}, "notes": {"who": ["me"]}}}
    assert not given.nodes
    frame = MemoryFrame()
    cls.__grange_recipe__().body(frame, {}, given.attributes)
    assert frame.record.reports == [("REPORT", "2 ['me']")]


def test_metadata_says_how_a_process_is_called() -> None:
    def step(self: WorkChain) -> None:
        self.submit(
            add,
            x=1,
            y=2,
            metadata={
                "label": "sum",
                "call_link_label": "the_sum",
                "computer": "lumi",
                "disable_cache": True,
                "options": {
                    "resources": {"num_machines": 2, "num_mpiprocs_per_machine": 4},
                    "max_wallclock_seconds": 60,
                },
            },
        )

    frame = MemoryFrame()
    run(chain(step=step), frame=frame)
    call = frame.record.calls[0]
    assert (call.label, call.link_label) == ("sum", "the_sum")
    assert call.options == {
        "executor": "lumi",
        "cache": False,
        "resources": Resources(cpus=8, nodes=2, mpi_procs=8, walltime_s=60),
    }


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"lable": "x"}, "lable"),
        ({"call_link_label": "no blanks"}, "call_link_label"),
        ({"options": {"queue_name": "debug"}}, "queue_name"),
        ({"resources": 4}, "gr.Resources"),
        ({"computer": 4}, "computer"),
        ({"disable_cache": 1}, "disable_cache"),
        ("fast", "a dict"),
        ({"resources": Resources(), "options": {"max_memory_kb": 1}}, "not both"),
        ({"options": {"resources": {"num_machines": "two"}}}, "options|nodes"),
    ],
)
def test_metadata_that_cannot_be(metadata: object, said: str) -> None:
    with pytest.raises(InputInvalid, match=said):
        run(chain(step=lambda self: self.submit(add, x=1, y=2, metadata=metadata)))


# ---------------------------------------------------------------- going on from a record


def test_a_second_frame_goes_on_from_the_record() -> None:
    """Killed behind any step: the calls that are there answer, the rest is run, reports are not repeated."""

    def first(self: WorkChain) -> None:
        self.report("first")
        self.to_context(a=append_(self.submit(add, x=1, y=1)))
        self.to_context(a=append_(self.submit(add, x=2, y=2)))

    def second(self: WorkChain) -> ToContext:
        self.report("second")
        return ToContext(
            b=self.submit(multiply, x=self.ctx.a[0].outputs.result, y=self.ctx.a[1].outputs.result)
        )

    def third(self: WorkChain) -> None:
        self.report("third")
        self.out("result", self.ctx.b.outputs.result)

    cls = chain(first=first, second=second, third=third)
    whole = MemoryFrame()
    assert value_of(run(cls, frame=whole)) == 8
    for known in range(4):
        calls = [*whole.record.calls[:known]]
        frame = MemoryFrame(Record(calls, whole.record.reports[:1]))
        assert value_of(run(cls, frame=frame)) == 8
        assert frame.ran == 3 - known
        assert frame.record.reports == whole.record.reports


# ---------------------------------------------------------------- the recipe


def test_what_is_recorded_of_a_class() -> None:
    recipe = MultiplyAdd.__grange_recipe__()
    assert recipe is MultiplyAdd.__grange_recipe__()
    assert recipe.label == recipe.attributes["process_label"] == "MultiplyAdd"
    assert recipe.process_type == f"{__name__}.MultiplyAdd"
    assert recipe.node_class is WorkChainNode
    assert b"class MultiplyAdd(WorkChain)" in recipe.files["source_file"]


def test_a_class_of_a_function_travels_by_value() -> None:
    import pickle

    cls = chain(
        step=lambda self: self.out("n", self.inputs.n), more=lambda spec: spec.input("n", valid_type=Int)
    )
    cls.spec()
    again = pickle.loads(cls.__grange_recipe__().files["workchain.pickle"])
    assert value_of(run(again, n=5), "n") == 5


def test_a_derived_class_has_a_spec_of_its_own() -> None:
    class Derived(MultiplyAdd):
        @classmethod
        def define(cls, spec: ProcessSpec) -> None:
            super().define(spec)
            spec.inputs["z"].default = lambda: Int(10)

        def result(self) -> None:
            self.report("derived")
            super().result()

    frame = MemoryFrame()
    assert value_of(run(Derived, x=1, y=1, frame=frame)) == 11
    assert frame.record.reports == [("REPORT", "derived")]
    assert value_of(run(MultiplyAdd, x=1, y=1)) == 2


def test_workchains_in_workchains() -> None:
    class Outer(WorkChain):
        @classmethod
        def define(cls, spec: ProcessSpec) -> None:
            super().define(spec)
            spec.expose_inputs(MultiplyAdd, namespace="first")
            spec.expose_inputs(MultiplyAdd, namespace="second", exclude=["x"])
            spec.expose_outputs(MultiplyAdd)
            spec.input("parameters", valid_type=Dict, default=lambda: {"a": 1})
            spec.outline(cls.first, cls.second, cls.finish)

        def first(self) -> ToContext:
            return ToContext(first=self.submit(MultiplyAdd, **self.exposed_inputs(MultiplyAdd, "first")))

        def second(self) -> ToContext:
            inputs = self.exposed_inputs(MultiplyAdd, "second")
            inputs.x = self.ctx.first.outputs.result
            return ToContext(second=self.submit(MultiplyAdd, inputs))

        def finish(self) -> None:
            self.out_many(self.exposed_outputs(self.ctx.second, MultiplyAdd))

    end = run(Outer, first={"x": 1, "y": 2}, second={"y": 3, "z": 100})
    assert value_of(end) == 109
