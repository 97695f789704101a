"""Specs: what a WorkChain takes and gives, in which order it works, and its known ways to fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from grange.core.attribute_dict import AttributeDict, nested
from grange.core.calcjob import CalcJob
from grange.core.call_metadata import METADATA, metadata_ports
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.exit_codes import ExitCodes
from grange.core.job_recipe import RETRIEVED
from grange.core.outline import Instruction, Outline, Step
from grange.core.port import Ports, ports_of_class, ports_of_function
from grange.core.shell_job import CODE, ShellJob, ShellRecipe
from grange.core.spec_port import PortNamespace, SpecPort

#: Whose ports can be exposed: a WorkChain or CalcJob class, a ShellJob, or a function of any kind.
Exposable = Any


class ProcessSpec:
    """What define(cls, spec) of a WorkChain class fills in; methods and arguments have AiiDA's names."""

    def __init__(self, label: str) -> None:
        self.label = label
        #: The ports of what is given, in namespaces: spec.inputs["x"].default = …
        self.inputs = PortNamespace()
        self.outputs = PortNamespace()
        self._exit_codes: dict[str, ExitCode] = {}
        self._outline: Outline | None = None
        #: By namespace ("" for none) and what was exposed there: the names of its ports.
        self._exposed_inputs: dict[tuple[str, int], tuple[str, ...]] = {}
        self._exposed_outputs: dict[tuple[str, int], tuple[str, ...]] = {}
        # Keeps what was exposed alive, so that its id stays its own.
        self._exposed: list[Exposable] = []
        self.inputs[METADATA] = metadata_ports(workflow=True)

    # -- what define() says

    def input(self, name: str, **options: Any) -> None:
        """A port for something that is given; "a.b" is b in the namespace a. options: those of SpecPort."""
        _add(self.inputs, name, SpecPort, options, f"{self.label}: input")

    def output(self, name: str, **options: Any) -> None:
        """A port for something that it gives."""
        _add(self.outputs, name, SpecPort, options, f"{self.label}: output")

    def input_namespace(self, name: str, **options: Any) -> None:
        """A namespace of inputs. options: those of PortNamespace (dynamic=True takes any names)."""
        _add(self.inputs, name, PortNamespace, options, f"{self.label}: input_namespace")

    def output_namespace(self, name: str, **options: Any) -> None:
        """A namespace of outputs."""
        _add(self.outputs, name, PortNamespace, options, f"{self.label}: output_namespace")

    def exit_code(self, status: int, label: str, message: str, invalidates_cache: bool = False) -> None:
        """A known way to fail: self.exit_codes.LABEL. The message may have {places}.

        Errors: InputInvalid for a label that is no name, or a status that another label has.
        """
        where = f"{self.label}: exit_code"
        if not isinstance(label, str) or not label.isidentifier() or label.startswith("_"):
            raise InputInvalid(where, label, "a label that is a name, as ERROR_NO_ENERGY")
        if not isinstance(message, str):
            raise InputInvalid(f"{where} {label}", message, "a message")
        try:
            code = ExitCode(status, message, invalidates_cache)
        except ValueError:
            expected = "a status above 0, which means success, and below 2**31"
            raise InputInvalid(f"{where} {label}", status, expected) from None
        for other, known in self._exit_codes.items():
            if known.status == status and other != label:
                raise InputInvalid(f"{where} {label}", status, f"a status that {other} does not have")
        self._exit_codes[label] = code

    def outline(self, *instructions: Instruction | Step) -> None:
        """The steps, in their order; said again (by a derived class) it replaces what was said before.

        Errors: InputInvalid for what is no step.
        """
        if not instructions:
            raise InputInvalid(f"{self.label}: outline", instructions, "at least one step")
        self._outline = Outline(instructions)

    def expose_inputs(
        self,
        process: Exposable,
        namespace: str | None = None,
        exclude: Collection[str] | None = None,
        include: Collection[str] | None = None,
        namespace_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the inputs of another process too, as they are or below a namespace ("a.b": b in a).

        exclude, include: names of ports, "a.b" for one in a namespace; one of the two.
        namespace_options: of the namespace that is made (required, populate_defaults, help …).
        Errors: InputInvalid.
        """
        self._expose(
            inputs_of(process),
            self.inputs,
            self._exposed_inputs,
            process,
            namespace,
            exclude,
            include,
            namespace_options,
        )

    def expose_outputs(
        self,
        process: Exposable,
        namespace: str | None = None,
        exclude: Collection[str] | None = None,
        include: Collection[str] | None = None,
        namespace_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Give the outputs of another process too; arguments as of expose_inputs."""
        self._expose(
            outputs_of(process),
            self.outputs,
            self._exposed_outputs,
            process,
            namespace,
            exclude,
            include,
            namespace_options,
        )

    def _expose(
        self,
        source: PortNamespace,
        target: PortNamespace,
        memory: dict[tuple[str, int], tuple[str, ...]],
        process: Exposable,
        namespace: str | None,
        exclude: Collection[str] | None,
        include: Collection[str] | None,
        namespace_options: Mapping[str, Any] | None,
    ) -> None:
        where = f"{self.label}: exposing {name_of_process(process)}"
        left_out, alone = _names(exclude, where) or (), _names(include, where)
        if left_out and alone is not None:
            raise InputInvalid(where, exclude, "exclude or include, not both")
        for name in alone or ():
            source.get_port(name)
        chosen = source.chosen(left_out, alone)
        if namespace:
            target = target.namespace_of(namespace)
            for option in _INHERITED:
                setattr(target, option, getattr(chosen, option))
        else:
            chosen.pop(METADATA, None)  # there is one of its own
            target.dynamic = target.dynamic or chosen.dynamic
            target.spread = target.spread or chosen.spread
        for option, value in (namespace_options or {}).items():
            if not hasattr(target, option) or option.startswith("_"):
                raise InputInvalid(where, option, f"one of {', '.join(_INHERITED)}")
            setattr(target, option, value)
        for name, member in chosen.items():
            target[name] = member
        memory[namespace or "", id(process)] = tuple(chosen)
        self._exposed.append(process)

    # -- what it says

    @property
    def exit_codes(self) -> ExitCodes:
        """The known ways to fail."""
        return ExitCodes(self._exit_codes)

    def get_outline(self) -> Outline:
        """The steps. Errors: InputInvalid where there are none."""
        if self._outline is None:
            raise InputInvalid(self.label, None, "an outline: spec.outline(cls.step, …) in define()")
        return self._outline

    def exposed_inputs(
        self, given: Mapping[str, Any], process: Exposable, namespace: str | None, agglomerate: bool
    ) -> AttributeDict:
        """What is given for the exposed inputs of a process in a namespace, and, where agglomerate is true,
        in those that it lies in; what lies further inside counts more.

        Errors: InputInvalid where nothing of it was exposed.
        """
        found: dict[str, Any] = {}
        known = False
        for place in _places(namespace, agglomerate):
            names = self._exposed_inputs.get((place, id(process)))
            if names is None:
                continue
            known = True
            level: Any = given
            for part in place.split(".") if place else ():
                level = level.get(part, {})
            found |= {name: level[name] for name in names if name in level}
        if not known:
            self._refuse(process, namespace, "inputs")
        return nested(found)

    def exposed_outputs(
        self, given: Mapping[str, Any], process: Exposable, namespace: str | None, agglomerate: bool
    ) -> dict[str, Any]:
        """What a process gave for its exposed outputs, by the names that they have here ("namespace.name").

        Errors: InputInvalid where nothing of it was exposed.
        """
        places: dict[str, str] = {}
        known = False
        for place in _places(namespace, agglomerate):
            names = self._exposed_outputs.get((place, id(process)))
            if names is None:
                continue
            known = True
            source = outputs_of(process)
            for name in given:
                if name in names or (name not in source and source.dynamic):
                    places[name] = place
        if not known:
            self._refuse(process, namespace, "outputs")
        return {f"{place}.{name}" if place else name: given[name] for name, place in places.items()}

    def _refuse(self, process: Exposable, namespace: str | None, what: str) -> None:
        there = f" in the namespace {namespace!r}" if namespace else ""
        raise InputInvalid(
            self.label,
            name_of_process(process),
            f"a process whose {what} are exposed{there}: spec.expose_{what}(…) in define()",
        )


#: What a namespace takes over from the one that is exposed in it.
_INHERITED = (
    "help",
    "required",
    "validator",
    "valid_type",
    "default",
    "dynamic",
    "populate_defaults",
    "serializer",
    "spread",
)


def inputs_of(process: Exposable) -> PortNamespace:
    """The inputs of a process as a namespace. Errors: InputInvalid for what has none."""
    if isinstance(process, type) and issubclass(process, CalcJob):
        return _with_metadata(PortNamespace.of_ports(ports_of_class(process.Inputs)))
    if isinstance(process, ShellJob):
        recipe = ShellRecipe(process)
        ports = PortNamespace.of_ports(recipe.ports)
        ports[CODE].required = not recipe.implied()
        return _with_metadata(ports)
    if hasattr(process, "spec"):
        spec: ProcessSpec = process.spec()
        return spec.inputs
    ports = PortNamespace.of_ports(_ports_of_function(process))
    return _with_metadata(ports, workflow=hasattr(process, "__grange_recipe__"))


def outputs_of(process: Exposable) -> PortNamespace:
    """The outputs of a process as a namespace; those of functions and shell jobs are any.

    Errors: InputInvalid.
    """
    if isinstance(process, ShellJob):
        return PortNamespace(dynamic=True)
    if isinstance(process, type) and issubclass(process, CalcJob):
        ports = PortNamespace.of_ports(ports_of_class(process.Outputs))
        ports[RETRIEVED] = SpecPort(RETRIEVED, required=False, help="All files that the program left.")
        ports.dynamic = len(ports) == 1
        return ports
    if hasattr(process, "spec"):
        spec: ProcessSpec = process.spec()
        return spec.outputs
    _ports_of_function(process)
    return PortNamespace(dynamic=True)


def name_of_process(process: Exposable) -> str:
    """The name of a process, for people."""
    return getattr(process, "__name__", None) or type(process).__name__


def _ports_of_function(process: Exposable) -> Ports:
    function: Any = getattr(process, "__wrapped__", process)
    if isinstance(function, type) or not callable(function):
        raise InputInvalid("expose", process, "a WorkChain class, a CalcJob class or a function")
    return ports_of_function(function)


def _with_metadata(ports: PortNamespace, *, workflow: bool = False) -> PortNamespace:
    if METADATA not in ports:
        ports[METADATA] = metadata_ports(workflow=workflow)
    return ports


def _add(
    ports: PortNamespace,
    name: str,
    kind: type[SpecPort | PortNamespace],
    options: Mapping[str, Any],
    where: str,
) -> None:
    if not isinstance(name, str):
        raise InputInvalid(where, name, "a name")
    above, _, last = name.rpartition(".")
    target = ports.namespace_of(above) if above else ports
    try:
        target[last] = kind(last, **options)
    except TypeError as error:
        raise InputInvalid(f"{where} {name}", sorted(options), f"options that a port has ({error})") from None


def _names(given: Collection[str] | None, where: str) -> tuple[str, ...] | None:
    if isinstance(given, str):
        raise InputInvalid(where, given, "a list of names")
    return None if given is None else tuple(given)


def _places(namespace: str | None, agglomerate: bool) -> list[str]:
    """The namespaces to look into, the outermost first; "" for none."""
    if not namespace:
        return [""]
    if not agglomerate:
        return [namespace]
    parts = namespace.split(".")
    return ["", *(".".join(parts[: depth + 1]) for depth in range(len(parts)))]
