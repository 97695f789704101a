"""Workflows that are Python functions: they call calculations and other workflows, and survive anything."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from grange.core.call_binding import bound, recording_profile
from grange.core.current_frame import Frame, current_frame
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.fingerprint import fingerprint
from grange.core.function_recipe import PICKLE_FILE, SOURCE_FILE
from grange.core.link import is_label
from grange.core.node import Data, WorkflowNode, WorkFunctionNode
from grange.core.port import flatten, is_namespace, ports_of_function, unflatten, validate
from grange.core.profile import Profile
from grange.core.workflow_recipe import Given, WorkflowEnd
from grange.farm.function import ship


class Workflow:
    """A Python function that is a workflow: made by @gr.workflow.

        @gr.workflow
        def equation_of_state(structure, strains):
            runs = [gr.submit(energy, structure=structure, strain=strain) for strain in strains.value]
            return fit(*[run.result() for run in runs])

        gr.run(equation_of_state, structure=bulk, strains=[0.98, 1.0, 1.02], profile=profile)

    The function gets data nodes, whatever plain values it is called with, and returns data nodes: those that
    its calls have made, or its inputs; a dict makes an output of each key. It may return a gr.ExitCode.
    Each call that it makes is recorded. When whoever runs it dies, it goes on from there: the function is
    called again, and what it has called already answers from the record. So it has to make the same calls in
    the same order for the same inputs: what depends on the time, on chance or on files belongs into a
    calcfunction.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self.__wrapped__ = function
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<workflow {self.__wrapped__.__qualname__}>"

    @functools.cached_property
    def _recipe(self) -> FunctionWorkflowRecipe:
        return FunctionWorkflowRecipe(self.__wrapped__)

    def __grange_recipe__(self) -> FunctionWorkflowRecipe:
        return self._recipe

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Inside a workflow a call of it; elsewhere run in the profile of `with gr.recording(profile)`."""
        frame = current_frame()
        if frame is not None:
            return frame.call(self, self._bound(args, kwargs)).result()
        return self.run(recording_profile(self.__wrapped__.__name__, "workflow"), *args, **kwargs)

    def run(self, profile: Profile, *args: object, **kwargs: object) -> Any:
        """Run the workflow here and now, recorded in a profile: gr.run(self, …, profile=profile)."""
        from grange.core.submit import run

        return run(self, self._bound(args, kwargs), profile=profile)

    def _bound(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        return bound(self._recipe.ports, self._recipe.label, args, kwargs)


def workflow(function: Callable[..., object]) -> Workflow:
    """Make a Python function a workflow. gr.workfunction is the same, for those who come from AiiDA."""
    return Workflow(function)


class FunctionWorkflowRecipe:
    """How the calls of a workflow function are run."""

    node_class: type[WorkflowNode] = WorkFunctionNode

    def __init__(self, function: Callable[..., object]) -> None:
        shipped = ship(function)
        self._function = function
        self.label = shipped.name
        self.process_type = f"{shipped.module}.{shipped.qualname.removesuffix('.__wrapped__')}"
        self.ports = ports_of_function(function)
        self.attributes: Mapping[str, Any] = {
            "process_label": shipped.name,
            "function_name": shipped.qualname,
            "function_namespace": shipped.module,
            "function_path": shipped.path,
            "fingerprint": fingerprint(function).hex(),
        }
        files = {}
        if shipped.source:
            files[SOURCE_FILE] = shipped.source.encode("utf-8", "replace")
        if shipped.pickle is not None:
            files[PICKLE_FILE] = shipped.pickle
        self.files: Mapping[str, bytes] = files

    def given(self, inputs: Mapping[str, object]) -> Given:
        """The inputs as data; defaults are filled in, what is None is left out.

        Errors: InputInvalid, InputMissing.
        """
        given = {**self.ports.defaults(), **inputs}
        self.ports.require(given, self.label)
        present = {name: value for name, value in given.items() if value is not None}
        return Given(validate(self.ports, present, self.label) if present else {})

    def body(self, frame: Frame, inputs: Mapping[str, Data], attributes: Mapping[str, Any]) -> WorkflowEnd:
        """Call the function."""
        values = unflatten(inputs)
        missing = {name: None for name in self.ports if name not in values}
        return end_of_return(self._function(**missing, **values), self.label)


def end_of_return(returned: object, label: str) -> WorkflowEnd:
    """What a workflow function returned, as outputs by link label.

    Errors: InputInvalid for what no call of it has made.
    """
    if returned is None:
        return WorkflowEnd()
    if isinstance(returned, ExitCode):
        return WorkflowEnd({}, returned if returned.status else None)
    by_name = returned if isinstance(returned, Mapping) else {"result": returned}
    outputs: dict[str, Data] = {}
    for name, value in by_name.items():
        where = f"{label}: output {name}"
        if not isinstance(name, str) or not is_label(name):
            raise InputInvalid(where, name, "a name: letters, digits, underscores, a letter first")
        if not (isinstance(value, Data) or is_namespace(value)):
            raise InputInvalid(where, value, NODES_ONLY)
        for key, node in flatten(name, value, where).items():
            if node.id is None:
                raise InputInvalid(where, node, NODES_ONLY)
            outputs[key] = node
    return WorkflowEnd(outputs)


#: What workflows return.
NODES_ONLY = (
    "a node that a call of the workflow has made, or one of its inputs: a workflow makes no data itself; "
    "let a @gr.calcfunction make it"
)
