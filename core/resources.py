"""What tasks ask for: checked, and kept at process nodes under AiiDA's names."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from grange.core.errors import InputInvalid
from grange.farm.task import Resources

DEFAULT = Resources()


def checked_resources(resources: object, where: str) -> Resources:
    """Resources that a task can ask for.

    Errors: InputInvalid.
    """
    if not isinstance(resources, Resources):
        raise InputInvalid(
            f"{where}: resources", resources, "gr.Resources(cpus=…, memory_mb=…, walltime_s=…)"
        )
    if type(resources.cpus) is not int or resources.cpus < 1:
        raise InputInvalid(f"{where}: cpus", resources.cpus, "an int from 1 on")
    for name, limit in (("memory_mb", resources.memory_mb), ("walltime_s", resources.walltime_s)):
        if limit is not None and (type(limit) not in (int, float) or not 0 < limit < inf):
            raise InputInvalid(f"{where}: {name}", limit, "a number above 0, or None for no limit")
    return resources


def attributes_of_resources(resources: Resources) -> dict[str, Any]:
    """What a process node keeps of them, for whoever goes on with it; nothing of what is the default."""
    attributes: dict[str, Any] = {}
    if resources.cpus != DEFAULT.cpus:
        attributes["resources"] = {"num_machines": 1, "num_cores_per_mpiproc": resources.cpus}
    if resources.memory_mb is not None:
        attributes["max_memory_kb"] = resources.memory_mb * 1024
    if resources.walltime_s is not None:
        attributes["max_wallclock_seconds"] = resources.walltime_s
    return attributes


def resources_of_attributes(attributes: Mapping[str, Any]) -> Resources:
    """The inverse."""
    memory_kb = attributes.get("max_memory_kb")
    return Resources(
        cpus=attributes.get("resources", {}).get("num_cores_per_mpiproc", DEFAULT.cpus),
        memory_mb=None if memory_kb is None else memory_kb // 1024,
        walltime_s=attributes.get("max_wallclock_seconds"),
    )
