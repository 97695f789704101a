"""WorkChains of tests that run in workers: what they call is run by the worker itself."""

from __future__ import annotations

from typing import Any

import workflow_site as site

import grange as gr
from grange.core.process_spec import ProcessSpec

NOT_CONVERGED = gr.ExitCode(410, "not converged")


class MultiplyAdd(gr.WorkChain):
    """AiiDA's own example, with calcfunctions in its steps."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.input("x", valid_type=gr.Int)
        spec.input("y", valid_type=gr.Int)
        spec.input("z", valid_type=gr.Int, default=lambda: gr.Int(1))
        spec.input("note", valid_type=str, non_db=True, default="of use")
        spec.output("result", valid_type=gr.Int)
        spec.exit_code(400, "ERROR_NEGATIVE", "the result is negative")
        spec.outline(cls.multiply, cls.add, cls.validate_result, cls.result)

    def multiply(self) -> None:
        self.ctx.product = site.multiply(self.inputs.x, self.inputs.y)

    def add(self) -> None:
        self.ctx.sum = site.add(self.ctx.product, self.inputs.z)

    def validate_result(self) -> gr.ExitCode | None:
        self.report("%d is %s", self.ctx.sum.value, self.inputs.note)
        return self.exit_codes.ERROR_NEGATIVE if self.ctx.sum.value < 0 else None

    def result(self) -> None:
        self.out("result", self.ctx.sum)


class Many(gr.WorkChain):
    """Loops, branches, and waits for many at once, WorkChains and workflow functions."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.expose_inputs(MultiplyAdd, namespace="each", exclude=["x"])
        spec.input("rounds", valid_type=gr.Int)
        spec.output_namespace("sums", dynamic=True, valid_type=gr.Int)
        spec.outline(
            cls.setup,
            gr.while_(cls.goes_on)(cls.submit_some, gr.if_(cls.is_odd)(cls.submit_more), cls.add_up),
            cls.results,
        )

    def setup(self) -> None:
        self.ctx.round = 0
        self.ctx.totals = []
        self.ctx.shared = gr.Int(7)

    def goes_on(self) -> bool:
        return bool(self.ctx.round < self.inputs.rounds.value)

    def submit_some(self) -> gr.ToContext:
        self.ctx.round += 1
        self.ctx.children = []
        for number in range(self.ctx.round):
            inputs = self.exposed_inputs(MultiplyAdd, "each")
            inputs.x = gr.Int(number)
            self.to_context(children=gr.append_(self.submit(MultiplyAdd, inputs)))
        label = {"label": f"round {self.ctx.round}", "call_link_label": "other"}
        return gr.ToContext(
            **{"other.one": self.submit(site.add_mul, x=1, y=2, z=self.ctx.shared, metadata=label)}
        )

    def is_odd(self) -> bool:
        return bool(self.ctx.round % 2)

    def submit_more(self) -> None:
        self.to_context(more=self.submit_many(MultiplyAdd, x=[1, 2], y=[3, 4]))

    def add_up(self) -> None:
        total = self.ctx.other.one.outputs.result
        for child in self.ctx.children:
            total = site.add(total, child.outputs.result)
        self.ctx.totals.append(total)
        self.report("round %d: %d", self.ctx.round, total.value)

    def results(self) -> None:
        self.out("sums", {f"round_{number}": total for number, total in enumerate(self.ctx.totals, 1)})


@gr.calcfunction
def converge(steps: int, needed: int) -> int | gr.ExitCode:
    return steps if steps >= needed else NOT_CONVERGED


class Converging(gr.WorkChain):
    """What is restarted: ends with the exit code of what it calls."""

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.input("steps", valid_type=gr.Int)
        spec.input("needed", valid_type=gr.Int)
        spec.output("steps", valid_type=gr.Int)
        spec.outline(cls.step)

    def step(self) -> gr.ExitCode | None:
        try:
            self.out("steps", converge(self.inputs.steps, self.inputs.needed))
        except gr.ProcessFailed:
            return NOT_CONVERGED
        return None


class Restarted(gr.BaseRestartWorkChain):
    """Doubles the steps until it converges."""

    _process_class = Converging

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        super().define(spec)
        spec.expose_inputs(Converging, namespace="converging")
        spec.expose_outputs(Converging)
        spec.outline(
            cls.setup, gr.while_(cls.should_run_process)(cls.run_process, cls.inspect_process), cls.results
        )

    def setup(self) -> None:
        super().setup()
        self.ctx.inputs = self.exposed_inputs(Converging, "converging")

    @gr.process_handler(exit_codes=NOT_CONVERGED)
    def more_steps(self, process: Any) -> gr.ProcessHandlerReport:
        self.ctx.inputs.steps = site.add(self.ctx.inputs.steps, self.ctx.inputs.steps)
        return gr.ProcessHandlerReport()
