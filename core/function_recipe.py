"""Recipes of Python functions: each call is one recorded calculation, run by the farm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from grange.core.caching import declared_caching
from grange.core.data.convert import from_typed, to_data
from grange.core.data.folder import Folder
from grange.core.errors import InputInvalid
from grange.core.exit_code import ExitCode
from grange.core.exit_status import OF_OUTCOME, PROGRAM_MISSING, exit_code_of
from grange.core.fingerprint import fingerprint
from grange.core.link import is_label
from grange.core.node import CalcFunctionNode, Data, ProcessNode
from grange.core.output_files import OutputFiles
from grange.core.port import Ports, ports_of_function
from grange.core.recipe import Conclusion, Draft, failed, succeeded
from grange.core.transition import State
from grange.farm.function import ship
from grange.farm.result import TaskResult
from grange.farm.task import FunctionTask, ShippedFunction

SOURCE_FILE = "source_file"
PICKLE_FILE = "function.pickle"
FUNCTION_MISSING = replace(PROGRAM_MISSING, message="the function cannot be had where it was to run")
OUTPUT_NAME = "letters, digits, underscores, a letter first, no underscore last, and not 'retrieved'"


class FunctionRecipe:
    """How the calls of a Python function are run.

    Made from a function, or again from what its process nodes hold (from_record).
    """

    node_class: type[ProcessNode] = CalcFunctionNode
    parses = False

    def __init__(
        self, shipped: ShippedFunction, ports: Ports, code_hash: bytes, *, caching: bool = True
    ) -> None:
        self.shipped = shipped
        self.caching = caching
        self.label = shipped.name
        self.process_type = f"{shipped.module}.{shipped.qualname}"
        self.ports = ports
        self.fingerprint = code_hash
        self.attributes: Mapping[str, Any] = {
            "process_label": shipped.name,
            "function_name": shipped.qualname,
            "function_namespace": shipped.module,
            "function_path": shipped.path,
            "fingerprint": code_hash.hex(),
        }
        files = {}
        if shipped.source:
            files[SOURCE_FILE] = shipped.source.encode("utf-8", "replace")
        if shipped.pickle is not None:
            files[PICKLE_FILE] = shipped.pickle
        self.files: Mapping[str, bytes] = files

    @classmethod
    def of(cls, function: Callable[..., object]) -> FunctionRecipe:
        """The recipe of a function. Errors: FunctionNotShippable, InputInvalid for *args."""
        caching = declared_caching(function)
        function = getattr(function, "__wrapped__", function)
        return cls(
            ship(function),
            ports_of_function(function),
            fingerprint(function),
            caching=caching and declared_caching(function),
        )

    @classmethod
    def from_record(cls, attributes: Mapping[str, Any], files: Mapping[str, bytes]) -> FunctionRecipe:
        """The recipe of recorded calls; their ports and keys are in the record already."""
        shipped = ShippedFunction(
            name=attributes["process_label"],
            module=attributes["function_namespace"],
            qualname=attributes["function_name"],
            path=attributes["function_path"],
            pickle=files.get(PICKLE_FILE),
            source=files.get(SOURCE_FILE, b"").decode("utf-8", "replace"),
        )
        return cls(shipped, Ports.anything(), bytes.fromhex(attributes["fingerprint"]))

    def draft(self, values: Mapping[str, object]) -> Draft:
        return Draft(values)

    def task(self, process_id: int, attempt: int, draft: Draft) -> FunctionTask:
        return FunctionTask(str(process_id), self.shipped, draft.payload, attempt)

    def conclude(self, result: TaskResult, values: Mapping[str, object], files: OutputFiles) -> Conclusion:
        kept: dict[str, Data] = {}
        if result.files:
            kept["retrieved"] = Folder.of_keys(result.files)
        if result.outcome == "finished":
            if result.return_code:
                code = ExitCode(result.return_code, result.message, result.invalidates_cache)
                return failed(code, outputs=kept)
            for name, typed in result.outputs.items():
                if not is_label(name) or name in kept:
                    raise InputInvalid(f"{self.label}: name of an output", name, OUTPUT_NAME)
                kept[name] = from_typed(typed, f"{self.label}: output {name}")
            return succeeded(kept)
        if result.outcome == "cancelled":
            return Conclusion(State.KILLED, None, result.message, kept)
        if result.outcome in OF_OUTCOME:
            code = exit_code_of(result.outcome, bool(result.files))
            if code is PROGRAM_MISSING:
                code = FUNCTION_MISSING
            return failed(code, result.message, kept)
        return Conclusion(State.EXCEPTED, None, result.message, kept)


def outputs_of_return(returned: object, label: str) -> dict[str, Data] | ExitCode:
    """What a function returned in this process, as data by name: the same rules as the runner's.

    A dict with text keys makes one output per key, anything else is the output "result".
    Errors: InputInvalid for what is no data.
    """
    if isinstance(returned, ExitCode):
        return returned
    if returned is None:
        return {}
    if isinstance(returned, dict) and all(isinstance(key, str) for key in returned):
        for key, value in returned.items():
            if not is_label(key) or key == "retrieved":
                raise InputInvalid(f"{label}: name of an output", key, OUTPUT_NAME)
            if value is None:
                raise InputInvalid(
                    f"{label}: output {key}", value, "a value; leave out an output that is not there"
                )
        return {key: to_data(value, f"{label}: output {key}") for key, value in returned.items()}
    return {"result": to_data(returned, f"{label}: output result")}
