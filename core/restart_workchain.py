"""The restart workflow: runs a process again and again, dealing with its failures, until it is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from grange.core.data.bool import Bool
from grange.core.data.dict import Dict
from grange.core.data.int import Int
from grange.core.data.str import Str
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.future import Future
from grange.core.process_handler import HandlerRule, ProcessHandlerReport, rule_of
from grange.core.process_spec import ProcessSpec, name_of_process
from grange.core.workchain import WorkChain
from grange.core.workchain_context import ToContext, append_

#: What may be done about a failure that no handler knows.
UNHANDLED = ("abort", "pause", "restart_once", "restart_and_pause")


class BaseRestartWorkChain(WorkChain):
    """Runs a process until it has finished well, with handlers that know what to do when it has not.

        class EnergyRestarted(gr.BaseRestartWorkChain):
            _process_class = Energy

            @classmethod
            def define(cls, spec):
                super().define(spec)
                spec.expose_inputs(Energy, namespace="energy")
                spec.expose_outputs(Energy)
                spec.outline(
                    cls.setup,
                    gr.while_(cls.should_run_process)(cls.run_process, cls.inspect_process),
                    cls.results,
                )

            def setup(self):
                super().setup()
                self.ctx.inputs = self.exposed_inputs(Energy, "energy")

            @gr.process_handler(exit_codes=Energy.NO_CONVERGENCE)
            def more_steps(self, process):
                self.ctx.inputs.steps = gr.Int(2 * self.ctx.inputs.steps.value)
                return gr.ProcessHandlerReport()

    The process gets self.ctx.inputs. What becomes of it:

        the process  handlers            then
        well         None                done: results() gives its outputs
        well         a report            run again, or end with the report's exit code
        failed       a report            run again, or end with the report's exit code
        failed       None                on_unhandled_failure: abort, pause, restart_once, restart_and_pause
        excepted     are not asked       ends with 301
        killed       are not asked       ends with 302
    """

    #: What is run: a CalcJob or WorkChain class, or a function.
    _process_class: ClassVar[Any] = None

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        """Its inputs, exit codes, and an outline that may be replaced."""
        super().define(spec)
        spec.input(
            "max_iterations",
            valid_type=Int,
            default=5,
            validator=_validate_iterations,
            help="How many times the process is run at most.",
        )
        spec.input(
            "handler_overrides",
            valid_type=Dict,
            required=False,
            validator=partial(_validate_overrides, cls),
            help="By the name of a handler, {'enabled': …, 'priority': …} in place of what it declares.",
        )
        spec.input(
            "on_unhandled_failure",
            valid_type=Str,
            required=False,
            validator=_validate_unhandled,
            help=f"What to do about a failure that no handler knows: {', '.join(UNHANDLED)}; else abort.",
        )
        spec.input(
            "pause_on_max_iterations",
            valid_type=Bool,
            required=False,
            help="Whether to pause when max_iterations are reached, and begin to count anew, and not to end.",
        )
        spec.exit_code(301, "ERROR_SUB_PROCESS_EXCEPTED", "the process that is restarted excepted")
        spec.exit_code(302, "ERROR_SUB_PROCESS_KILLED", "the process that is restarted was killed")
        spec.exit_code(401, "ERROR_MAXIMUM_ITERATIONS_EXCEEDED", "the most iterations were reached")
        spec.exit_code(402, "ERROR_UNHANDLED_FAILURE", "the process failed in a way that no handler knows")

    @property
    def process_class(self) -> Any:
        """What is run. Errors: InputInvalid where the class does not say so."""
        if type(self)._process_class is None:
            raise InputInvalid(type(self).__name__, None, "_process_class = what is to be run, in the class")
        return type(self)._process_class

    # -- steps of the outline

    def setup(self) -> None:
        """Begin to count; in a derived class call it first, then set self.ctx.inputs."""
        self.ctx.process_name = name_of_process(self.process_class)
        self.ctx.unhandled_failure = False
        self.ctx.is_finished = False
        self.ctx.iteration = 0
        self.ctx.children = []

    def should_run_process(self) -> bool:
        """Whether it has not been run well yet."""
        return not self.ctx.is_finished

    def run_process(self) -> ToContext:
        """Run it with self.ctx.inputs. Errors: InputInvalid where these were not set."""
        if "inputs" not in self.ctx:
            raise InputInvalid(type(self).__name__, None, "inputs of the process in self.ctx.inputs")
        self.ctx.iteration += 1
        inputs = dict(self.ctx.inputs)
        inputs["metadata"] = {
            **(inputs.get("metadata") or {}),
            "call_link_label": f"iteration_{len(self.ctx.children) + 1:02d}",
        }
        future = self.submit(self.process_class, inputs)
        self.report("launching %s, iteration %d", self.ctx.process_name, self.ctx.iteration)
        return ToContext(children=append_(future))

    def inspect_process(self) -> ExitCode | None:
        """Look at what became of it: done, to be run again, or the end. Errors: InputInvalid."""
        process: Future = self.ctx.children[-1]
        if process.is_excepted:
            return _because(self.exit_codes.ERROR_SUB_PROCESS_EXCEPTED, process)
        if process.is_killed:
            return _because(self.exit_codes.ERROR_SUB_PROCESS_KILLED, process)
        report = self._asked(process)
        if report is None and process.is_failed:
            return self._unhandled(process)
        self.ctx.unhandled_failure = False
        if report is None:
            self.ctx.is_finished = True
            return None
        if self.ctx.is_finished:  # a handler has found that it is well enough
            return report.exit_code
        how = "finished well" if process.is_finished_ok else "failed"
        if report.exit_code is not None:
            self.report("%s %s, and a handler says that it cannot be helped", self._shown(process), how)
            return report.exit_code
        return self._again(process, how)

    def results(self) -> ExitCode | None:
        """Give the outputs of the last process, those that are promised."""
        process: Future = self.ctx.children[-1]
        self.report("completed after %d iterations", len(self.ctx.children))
        promised = self.spec().outputs
        for name, value in self.get_outputs(process).items():
            if name.partition(".")[0] in promised or promised.dynamic:
                self.out(name, value)
        return None

    def get_outputs(self, process: Future) -> Mapping[str, Any]:
        """The outputs to be given: those of the process that are exposed. May be overridden."""
        return self.exposed_outputs(process, self.process_class)

    # -- handlers

    @classmethod
    def get_process_handlers(cls) -> dict[str, HandlerRule]:
        """The handlers of the class, by name."""
        rules = {name: rule_of(getattr(cls, name, None)) for name in dir(cls)}
        return {name: rule for name, rule in rules.items() if rule is not None}

    def get_process_handlers_by_priority(self) -> list[str]:
        """The names of the handlers that are enabled, in the order in which they are asked."""
        overrides = self.inputs["handler_overrides"].value if "handler_overrides" in self.inputs else {}
        found: list[tuple[int, str]] = []
        for name, rule in self.get_process_handlers().items():
            said = overrides.get(name) or {}
            if said.get("enabled", rule.enabled):
                found.append((-said.get("priority", rule.priority), name))
        return [name for _, name in sorted(found)]

    def _asked(self, process: Future) -> ProcessHandlerReport | None:
        """What the last handler said that knew what to do."""
        last: ProcessHandlerReport | None = None
        for name in self.get_process_handlers_by_priority():
            handler: Callable[[Future], object] = getattr(self, name)
            said = handler(process)
            if said is None:
                continue
            if not isinstance(said, ProcessHandlerReport):
                raise InputInvalid(
                    f"{type(self).__name__}.{name}",
                    said,
                    "a gr.ProcessHandlerReport, or None, as what it returns",
                )
            self.logger.info("handler %s has dealt with %s", name, self._shown(process))
            last = said
            if said.do_break:
                break
        return last

    # -- what follows

    def _again(self, process: Future, how: str) -> ExitCode | None:
        most = self.inputs.max_iterations.value
        if self.ctx.iteration < most:
            self.report("%s %s, and a handler has dealt with it: running it again", self._shown(process), how)
            return None
        self.report("%s %s, and %d iterations were all there may be", self._shown(process), how, most)
        pauses = self.inputs.get("pause_on_max_iterations")
        if pauses is None or not pauses.value:
            return self.exit_codes.ERROR_MAXIMUM_ITERATIONS_EXCEEDED
        self.ctx.iteration = 0
        self._pause("the most iterations were reached")
        return None

    def _unhandled(self, process: Future) -> ExitCode | None:
        """What to do about a failure that no handler knows; None for running it again."""
        said = self.inputs.get("on_unhandled_failure")
        action = "abort" if said is None else said.value
        again = self.ctx.unhandled_failure
        if action == "abort" or (action == "restart_once" and again):
            self.report("%s failed in a way that no handler knows: ending", self._shown(process))
            return _because(self.exit_codes.ERROR_UNHANDLED_FAILURE, process)
        if self.ctx.iteration >= self.inputs.max_iterations.value and action != "pause" and not again:
            self.report("%s failed, and it may not be run again", self._shown(process))
            return self.exit_codes.ERROR_MAXIMUM_ITERATIONS_EXCEEDED
        if action in ("restart_once", "restart_and_pause") and not again:
            self.ctx.unhandled_failure = True
            self.report(
                "%s failed in a way that no handler knows: running it once more", self._shown(process)
            )
            return None
        self.ctx.unhandled_failure = False
        self._pause(f"{self._shown(process)} failed in a way that no handler knows")
        return None

    def _pause(self, why: str) -> None:
        self.pause(
            f"{why}; to run it again: grange process play {self.pk}; to end it: grange process kill {self.pk}"
        )

    def _shown(self, process: Future) -> str:
        return f"{self.ctx.process_name} (process {process.id})"


def _because(code: ExitCode, process: Future) -> ExitCode:
    """The exit code, with how the process that is to blame ended."""
    return replace(code, message=f"{code.message}: {process.said()}")


def _validate_iterations(value: Int, _: object) -> str | None:
    return None if value.value > 0 else "at least 1"


def _validate_unhandled(value: Str, _: object) -> str | None:
    return None if value.value in UNHANDLED else f"one of {', '.join(UNHANDLED)}"


def _validate_overrides(chain_class: type[BaseRestartWorkChain], value: Dict, _: object) -> str | None:
    handlers = chain_class.get_process_handlers()
    for name, said in value.value.items():
        if name not in handlers:
            return (
                f"{name} is no handler of {chain_class.__name__}; there are: {', '.join(handlers) or 'none'}"
            )
        if not isinstance(said, dict) or not said.keys() <= {"enabled", "priority"}:
            return f"{name}: a dict with enabled, priority, or both"
        if not isinstance(said.get("enabled", True), bool):
            return f"{name}: enabled is True or False"
        if type(said.get("priority", 0)) is not int:
            return f"{name}: priority is an int"
    return None
