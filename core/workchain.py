"""WorkChains: workflows of steps, with AiiDA's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from grange.core.attribute_dict import AttributeDict
from grange.core.call_metadata import asked
from grange.core.errors import InputInvalid
from grange.core.exit_codes import ExitCodes
from grange.core.exit_status import OUTPUT_INVALID, OUTPUT_MISSING, UNSPECIFIED
from grange.core.node import Data
from grange.core.process_builder import ProcessBuilder
from grange.core.process_spec import Exposable, ProcessSpec
from grange.core.spec_port import SEPARATOR
from grange.core.workchain_context import put_into
from grange.core.workchain_recipe import WorkChainRecipe

if TYPE_CHECKING:
    from grange.core.current_frame import Frame
    from grange.core.future import Future
    from grange.core.profile import Profile

_STANDARD = {
    "ERROR_UNSPECIFIED": UNSPECIFIED,
    "ERROR_INVALID_OUTPUT": OUTPUT_INVALID,
    "ERROR_MISSING_OUTPUT": OUTPUT_MISSING,
}


class _Made:
    """What is made once for a class; a class that travels by value leaves it behind."""

    def __init__(self) -> None:
        self.spec: ProcessSpec | None = None
        self.recipe: WorkChainRecipe | None = None

    def __reduce__(self) -> tuple[type[_Made], tuple[()]]:
        return _Made, ()


@dataclass(slots=True)
class Running:
    """What the engine knows of a WorkChain that is being run.

    outputs: by the label of the link. awaited: what the next step waits for.
    """

    frame: Frame
    outputs: dict[str, Data] = field(default_factory=dict)
    awaited: list[Future] = field(default_factory=list)


class _OfClass:
    """The exit codes of a class, from the class and from what it is made of."""

    def __get__(self, instance: object, owner: type[WorkChain]) -> ExitCodes:
        return owner.spec().exit_codes


class WorkChain:
    """A workflow of steps; derive from it.

        class MultiplyAdd(gr.WorkChain):
            @classmethod
            def define(cls, spec):
                super().define(spec)
                spec.input("x", valid_type=gr.Int)
                spec.input("y", valid_type=gr.Int, default=lambda: gr.Int(1))
                spec.output("result", valid_type=gr.Int)
                spec.exit_code(410, "ERROR_NEGATIVE", "the result is {result}")
                spec.outline(cls.multiply, gr.if_(cls.is_large)(cls.shrink), cls.result)

            def multiply(self):
                return gr.ToContext(product=self.submit(Multiply, x=self.inputs.x, y=self.inputs.y))
            …

    A step is a method without arguments. It returns nothing, and the next one follows; gr.ToContext(…), and
    the next one follows when that has ended; or an exit code (or its status), and the WorkChain ends.

    After a crash the steps are taken again, and what they submit is answered from the record: so a step
    does nothing but submit, call calcfunctions, look at what came of it, and report. What it remembers is in
    self.ctx. Inputs and outputs are data nodes.
    """

    version: ClassVar[str] = ""
    exit_codes: ClassVar[ExitCodes] = _OfClass()  # type: ignore[assignment]  # a descriptor that gives them

    def __init__(self, frame: Frame, inputs: AttributeDict) -> None:
        """Made by the worker that runs it."""
        self._grange_running = Running(frame)
        #: What it was given, by port: self.inputs.x.
        self.inputs = inputs
        #: What it remembers from step to step: self.ctx.energy.
        self.ctx = AttributeDict()

    # -- the class

    @classmethod
    def define(cls, spec: ProcessSpec) -> None:
        """Say what it takes and gives, its steps, how it may fail; begin with super().define(spec)."""
        for label, code in _STANDARD.items():
            spec.exit_code(code.status, label, code.message, code.invalidates_cache)

    @classmethod
    def spec(cls) -> ProcessSpec:
        """What define() says; asked once for each class. Errors: InputInvalid."""
        made = cls._made()
        if made.spec is None:
            spec = ProcessSpec(cls.__name__)
            cls.define(spec)
            if "ERROR_UNSPECIFIED" not in spec.exit_codes:
                raise InputInvalid(f"{cls.__name__}.define", spec, "super().define(spec) as its first line")
            made.spec = spec
        return made.spec

    @classmethod
    def get_builder(cls) -> ProcessBuilder:
        """A builder, to be filled in attribute by attribute and submitted."""
        return ProcessBuilder(cls)

    @classmethod
    def __grange_recipe__(cls) -> WorkChainRecipe:
        """How its calls are run. Errors: InputInvalid."""
        made = cls._made()
        if made.recipe is None:
            if cls is WorkChain:
                raise InputInvalid("WorkChain", cls, "a class that is derived from it")
            made.recipe = WorkChainRecipe(cls)
        return made.recipe

    @classmethod
    def _made(cls) -> _Made:
        found = vars(cls).get("_grange_made")
        if not isinstance(found, _Made):
            found = _Made()
            cls._grange_made = found  # type: ignore[attr-defined]
        return found

    # -- who it is

    @property
    def id(self) -> int:
        """The id of its process."""
        return self._grange_running.frame.process_id

    @property
    def pk(self) -> int:
        """The same, as AiiDA calls it."""
        return self._grange_running.frame.process_id

    @property
    def profile(self) -> Profile:
        """The profile that it is recorded in."""
        return self._grange_running.frame.profile

    # -- what steps do

    def submit(self, process: Any, /, inputs: Mapping[str, Any] | None = None, **named: Any) -> Future:
        """Submit a process; returns at once what it will have become.

        process: a CalcJob or WorkChain class, a builder, a ShellJob, a function. Inputs by name or in a dict;
        metadata = {"label": …, "call_link_label": …, "resources": gr.Resources(…), "computer": …}.
        Errors: InputInvalid.
        """
        call = asked(process, {**(inputs or {}), **named})
        return self._grange_running.frame.call(
            call.runnable,
            call.inputs,
            label=call.how.label,
            link_label=call.how.link_label,
            resources=call.how.resources,
            executor=call.how.executor,
            cache=call.how.cache,
        )

    def submit_many(
        self,
        process: Any,
        /,
        inputs: Mapping[str, Any] | None = None,
        *,
        product: bool = False,
        labels: Sequence[str] | None = None,
        **named: Any,
    ) -> list[Future]:
        """Submit a process for each of many inputs: lists are gone through in step, or all combinations.

        Arguments as of Campaign.map; gr.fixed([…]) is one value for all. Errors: InputInvalid.
        """
        call = asked(process, {**(inputs or {}), **named})
        return self._grange_running.frame.call_many(
            call.runnable,
            call.inputs,
            product=product,
            labels=labels,
            resources=call.how.resources,
            executor=call.how.executor,
            cache=call.how.cache,
        )

    def to_context(self, **awaited: Any) -> None:
        """Have the next step wait for what was submitted, as returning gr.ToContext(…) does."""
        for key, value in awaited.items():
            self._grange_running.awaited += put_into(
                self.ctx, key, value, f"{type(self).__name__}: to_context"
            )

    def report(self, message: str, *args: object) -> None:
        """Write a line into the log of the process (`grange process report`); args fill in its %s."""
        self._grange_running.frame.report(message % args if args else message)

    @property
    def logger(self) -> Logger:
        """Writes lines of other levels into the log of the process."""
        return Logger(self._grange_running.frame)

    def pause(self, reason: str) -> None:
        """Pause here: somebody looks into it, and it goes on behind this line when it is played."""
        self._grange_running.frame.pause(reason)

    def out(self, name: str, value: Any) -> None:
        """Give an output: data that is recorded already, or a dict of such for a namespace.

        "a.b" is b in the namespace a. A WorkChain makes no data: a calculation or a calcfunction does.
        Errors: InputInvalid for what is not promised, not data, not stored, or given already.
        """
        where = f"{type(self).__name__}: output {name}"
        if isinstance(value, Mapping):
            for item, one in value.items():
                self.out(f"{name}.{item}", one)
            return
        port = self.spec().outputs.port_for(name, where)
        if not isinstance(value, Data):
            raise InputInvalid(where, value, "data: what calculations and calcfunctions gave, or an input")
        if not value.is_stored:
            raise InputInvalid(
                where, value, "data that is recorded: a WorkChain makes none, let a calcfunction make it"
            )
        label = name.replace(".", SEPARATOR)
        if label in self._grange_running.outputs:
            raise InputInvalid(where, value, "an output that was not given before")
        port.check(value, where)
        self._grange_running.outputs[label] = value

    def out_many(self, outputs: Mapping[str, Any]) -> None:
        """Give several outputs: by name, as exposed_outputs() has them."""
        for name, value in outputs.items():
            self.out(name, value)

    def exposed_inputs(
        self, process: Exposable, namespace: str | None = None, agglomerate: bool = True
    ) -> AttributeDict:
        """What was given for the inputs of a process that are exposed here: a dict of one's own.

        agglomerate: those that are exposed further outside too. Errors: InputInvalid.
        """
        return self.spec().exposed_inputs(self.inputs, process, namespace, agglomerate)

    def exposed_outputs(
        self, future: Future, process: Exposable, namespace: str | None = None, agglomerate: bool = True
    ) -> dict[str, Any]:
        """What a process has given for its outputs that are exposed here, by the names for out_many().

        Errors: InputInvalid.
        """
        return self.spec().exposed_outputs(future.outputs, process, namespace, agglomerate)


class Logger:
    """Writes into the log of a process; args fill in the %s of a message."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def report(self, message: str, *args: object) -> None:
        """What people want to know."""
        self._write("REPORT", message, args)

    def info(self, message: str, *args: object) -> None:
        """What is worth a line."""
        self._write("INFO", message, args)

    def debug(self, message: str, *args: object) -> None:
        """What only its author wants to know."""
        self._write("DEBUG", message, args)

    def warning(self, message: str, *args: object) -> None:
        """What may be wrong."""
        self._write("WARNING", message, args)

    def error(self, message: str, *args: object) -> None:
        """What is wrong."""
        self._write("ERROR", message, args)

    def _write(self, level: str, message: str, args: tuple[object, ...]) -> None:
        self._frame.report(message % args if args else message, level)
