"""Recipes of workflows: how the calls of a workflow function or WorkChain class are run by a worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from grange.core.current_frame import Frame
from grange.core.exit_code import ExitCode
from grange.core.node import Data, WorkflowNode


@dataclass(frozen=True, slots=True)
class Given:
    """The checked inputs of a call of a workflow.

    nodes: link label → data, stored or not, defaults filled in. attributes: what is recorded at the process's
    node because it is no data (AiiDA's non_db ports, metadata).
    """

    nodes: Mapping[str, Data]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkflowEnd:
    """How the body of a workflow ended: outputs by link label, and an exit code where it failed."""

    outputs: Mapping[str, Data] = field(default_factory=dict)
    exit_code: ExitCode | None = None


class WorkflowRecipe(Protocol):
    """How the calls of one workflow are run."""

    label: str
    process_type: str
    node_class: type[WorkflowNode]
    #: of every process node of this recipe; class_path or function_path say where it is imported from
    attributes: Mapping[str, Any]
    files: Mapping[str, bytes]

    def given(self, inputs: Mapping[str, object]) -> Given:
        """Check the inputs of a call. Errors: InputInvalid, InputMissing."""
        ...

    def body(self, frame: Frame, inputs: Mapping[str, Data], attributes: Mapping[str, Any]) -> WorkflowEnd:
        """Run the code, in its frame. inputs: data by link label; attributes: those of the process's node.

        Errors: whatever the code raises; the process is excepted then (ProcessFailed: it finishes with the
        exit status of exit_status.CALL_FAILED).
        """
        ...
