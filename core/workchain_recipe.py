"""Recipes of WorkChain classes: how their calls are checked, recorded and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grange.core.attribute_dict import nested
from grange.core.current_frame import Frame
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.exit_status import OUTPUT_INVALID, OUTPUT_MISSING
from grange.core.fingerprint import fingerprint
from grange.core.node import Data, WorkChainNode, WorkflowNode
from grange.core.outline import Stop, name_of
from grange.core.spec_port import Gathered
from grange.core.workchain_context import ToContext
from grange.core.workflow_recipe import Given, WorkflowEnd
from grange.farm.function import ship

if TYPE_CHECKING:
    from grange.core.workchain import WorkChain

SOURCE_FILE = "source_file"
PICKLE_FILE = "workchain.pickle"
#: Of a process: what it was given that is no data, nested by port; AiiDA's name.
SETTINGS = "metadata_inputs"
#: After so many steps others have their turn, so that one which goes in circles stops nobody, and can be
#: killed.
ALONE = 1000


class WorkChainRecipe:
    """How the calls of a WorkChain class are run."""

    node_class: type[WorkflowNode] = WorkChainNode

    def __init__(self, chain_class: type[WorkChain]) -> None:
        """Errors: InputInvalid for a class without outline; FunctionNotShippable."""
        self.chain_class = chain_class
        self.label = chain_class.__name__
        self.process_type = f"{chain_class.__module__}.{chain_class.__qualname__}"
        chain_class.spec().get_outline()
        shipped = ship(chain_class)
        self.attributes: Mapping[str, Any] = {
            "process_label": self.label,
            "class_path": shipped.path,
            "fingerprint": fingerprint(chain_class).hex(),
        }
        files = {}
        if shipped.source:
            files[SOURCE_FILE] = shipped.source.encode("utf-8", "replace")
        if shipped.pickle is not None:
            files[PICKLE_FILE] = shipped.pickle
        self.files: Mapping[str, bytes] = files

    def given(self, inputs: Mapping[str, object]) -> Given:
        """Check the inputs of a call, with defaults for the rest. Errors: InputInvalid, InputMissing."""
        found = Gathered()
        self.chain_class.spec().inputs.gather(inputs, self.label, "", found)
        return Given(found.nodes, {SETTINGS: found.settings} if found.settings else {})

    def body(self, frame: Frame, inputs: Mapping[str, Data], attributes: Mapping[str, Any]) -> WorkflowEnd:
        """Take the steps. Errors: whatever they raise."""
        given = self.chain_class.spec().inputs.nested(inputs, attributes.get(SETTINGS, {}))
        chain = self.chain_class(frame, nested(given))
        code = _take_steps(chain)
        if code is None:
            code = _wrong_outputs(chain)
        return WorkflowEnd(chain._grange_running.outputs, code)


def _take_steps(chain: WorkChain) -> ExitCode | None:
    """Take one step after the other, waiting for what each has submitted."""
    running = chain._grange_running
    alone = 0
    try:
        for step in chain.spec().get_outline().steps(chain):
            try:
                returned = step(chain)
                if isinstance(returned, ToContext):
                    chain.to_context(**returned)
                    returned = None
                code = _exit_code(chain, returned, name_of(step))
            except Exception as error:
                error.add_note(f"in step {name_of(step)} of {type(chain).__name__}")
                raise
            if code is not None:
                return code
            alone += 1
            if alone == ALONE:
                alone = 0
                running.frame.let_others()
            if running.awaited:
                awaited, running.awaited = running.awaited, []
                running.frame.wait(awaited)
    except Stop as stop:
        return _exit_code(chain, stop.returned, "return_")
    return None


def _exit_code(chain: WorkChain, returned: object, step: str) -> ExitCode | None:
    """What a step returned as an exit code; None for going on. Errors: InputInvalid."""
    if returned is None or isinstance(returned, ExitCode):
        return returned
    if type(returned) is int and returned >= 0:
        if returned == 0:
            return None
        try:
            return chain.exit_codes(returned)
        except KeyError:
            return ExitCode(returned, "")
    raise InputInvalid(
        f"{type(chain).__name__}: what the step {step} returned",
        returned,
        "nothing, gr.ToContext(…), an exit code or its status",
    )


def _wrong_outputs(chain: WorkChain) -> ExitCode | None:
    """What is wrong with the outputs as a whole."""
    outputs = chain.spec().outputs
    given = outputs.nested(chain._grange_running.outputs, {})
    missing = outputs.missing(given)
    if missing:
        return replace(OUTPUT_MISSING, message=f"{OUTPUT_MISSING.message}: {', '.join(missing)}")
    try:
        outputs.check_namespaces(given, f"{type(chain).__name__}: outputs")
    except InputInvalid as error:
        return replace(OUTPUT_INVALID, message=f"{OUTPUT_INVALID.message}: {error}")
    return None
