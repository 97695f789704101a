"""What a call says beside its inputs: metadata, with AiiDA's names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grange.core.errors import InputInvalid
from grange.core.json_value import checked
from grange.core.link import is_label
from grange.core.port import ports_of_function
from grange.core.resources import attributes_of_resources, checked_resources, resources_of_attributes
from grange.core.spec_port import PortNamespace, SpecPort
from grange.farm.task import Resources

#: The input that holds it.
METADATA = "metadata"
#: Of AiiDA's options, those that say what a task needs.
_OPTIONS = ("resources", "max_wallclock_seconds", "max_memory_kb")
_CALL = "CALL"


@dataclass(frozen=True, slots=True)
class CallMetadata:
    """How a process is called: what the methods of a frame take beside its inputs."""

    label: str = ""
    link_label: str = _CALL
    resources: Resources | None = None
    executor: str | None = None
    cache: bool | None = None


def metadata_ports(*, workflow: bool) -> PortNamespace:
    """The namespace `metadata` that every process has; nothing of it is data.

    workflow: then without what only calculations can be told.
    """
    ports = PortNamespace(
        METADATA,
        help="How it is called: nothing of this is data.",
        required=False,
        populate_defaults=False,  # there are none: nobody looks for them in each call
        non_db=True,
    )
    for name, valid_type, said in (
        ("label", str, "Of the process, for people."),
        ("call_link_label", str, "Of the link from the workflow that calls it."),
        ("computer", str, "Label of the computer that it, or what it calls, is run on, or 'local'."),
        ("disable_cache", bool, "Whether it is computed although an equal one is recorded."),
    ):
        ports[name] = SpecPort(name, valid_type=valid_type, help=said, required=False)
    if workflow:
        del ports["disable_cache"]
        return ports
    ports["resources"] = SpecPort(
        "resources", help="gr.Resources: what a task needs.", required=False, serializer=_recorded_resources
    )
    ports["options"] = PortNamespace(
        "options", help=f"The same with AiiDA's names: {', '.join(_OPTIONS)}.", required=False, dynamic=True
    )
    return ports


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody asked for: what is to be called, with what, and how."""

    runnable: Any
    inputs: Mapping[str, object]
    how: CallMetadata


def asked(
    runnable: Any,
    inputs: Mapping[str, object],
    *,
    label: str = "",
    resources: Resources | None = None,
    executor: str | None = None,
    cache: bool | None = None,
) -> Asked:
    """What is asked for, with what stands in a builder and in the input `metadata`; arguments count more.

    A function that has a parameter of that name takes it as an input like others.
    Errors: InputInvalid.
    """
    builder = getattr(runnable, "__grange_call__", None)
    if builder is not None:
        runnable, built = builder()
        inputs = {**built, **inputs}
    said = CallMetadata()
    name = getattr(runnable, "__name__", None) or type(runnable).__name__
    workflow = hasattr(runnable, "__grange_recipe__")
    if METADATA in inputs and _takes_metadata(runnable):
        inputs = dict(inputs)
        given: Any = inputs.pop(METADATA)
        if given is not None:
            if not isinstance(given, Mapping):
                raise InputInvalid(f"{name}: {METADATA}", given, "a dict")
            said = _metadata(given, f"{name}: {METADATA}", metadata_ports(workflow=workflow))
    how = CallMetadata(
        label or said.label,
        said.link_label,
        said.resources if resources is None else resources,
        said.executor if executor is None else executor,
        said.cache if cache is None else cache,
    )
    if not isinstance(how.label, str):
        raise InputInvalid(f"{name}: label", how.label, "a text")
    if not isinstance(how.executor, str | None):
        raise InputInvalid(
            f"{name}: executor", how.executor, 'the label of a computer, "local" or "hyperqueue"'
        )
    if workflow and how.resources is not None:
        raise InputInvalid(f"{name}: resources", how.resources, f"none for a workflow: {_ITS_CALLS}")
    if workflow and how.cache is not None:
        raise InputInvalid(f"{name}: cache", how.cache, f"nothing for a workflow: {_ITS_CALLS}")
    return Asked(runnable, inputs, how)


_ITS_CALLS = "it is said where it submits its calculations"


def _takes_metadata(runnable: Any) -> bool:
    function = getattr(runnable, "__wrapped__", runnable)
    return not inspect.isfunction(function) or METADATA not in ports_of_function(function)


def _metadata(given: Mapping[str, Any], where: str, known: PortNamespace) -> CallMetadata:
    for name in given:
        if name not in known:
            raise InputInvalid(f"{where}.{name}", given[name], f"one of {', '.join(known)}")
    label = _text(given, "label", where) or ""
    link_label = _text(given, "call_link_label", where) or _CALL
    if not is_label(link_label):
        raise InputInvalid(f"{where}.call_link_label", link_label, "a label of a link: letters, digits, _")
    disable_cache = given.get("disable_cache")
    if disable_cache is not None and not isinstance(disable_cache, bool):
        raise InputInvalid(f"{where}.disable_cache", disable_cache, "bool")
    return CallMetadata(
        label,
        link_label,
        _resources(given, where),
        _text(given, "computer", where),
        False if disable_cache else None,
    )


def _text(given: Mapping[str, Any], name: str, where: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise InputInvalid(f"{where}.{name}", value, "str")
    return value


def _resources(given: Mapping[str, Any], where: str) -> Resources | None:
    """What the task needs, said either way."""
    asked, options = given.get("resources"), given.get("options")
    if asked is not None and options:
        raise InputInvalid(f"{where}.options", options, "resources or options, not both")
    if isinstance(asked, Resources):
        return checked_resources(asked, where)
    said = options or asked
    if not said:
        return None
    if not isinstance(said, Mapping):
        raise InputInvalid(f"{where}.resources", said, "gr.Resources(…)")
    for name in said:
        if name not in _OPTIONS:
            raise InputInvalid(
                f"{where}.options.{name}",
                said[name],
                f"one of {', '.join(_OPTIONS)} (what else AiiDA has there is said by the computer, the code, "
                "or the gr.Command of the job)",
            )
    try:
        resources = resources_of_attributes(said)
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputInvalid(f"{where}.options", said, f"numbers ({error})") from None
    return checked_resources(resources, where)


def _recorded_resources(value: Any) -> Any:
    """Resources as they are recorded with a WorkChain that passes them on."""
    if isinstance(value, Resources):
        return attributes_of_resources(checked_resources(value, "resources"))
    return checked(value, "resources")
