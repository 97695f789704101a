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
            f"{where}: resources",
            resources,
            "gr.Resources(cpus=…, memory_mb=…, walltime_s=…, gpus=…, nodes=…, mpi_procs=…)",
        )
    if type(resources.cpus) is not int or resources.cpus < 1:
        raise InputInvalid(f"{where}: cpus", resources.cpus, "an int from 1 on")
    for name, limit in (("memory_mb", resources.memory_mb), ("walltime_s", resources.walltime_s)):
        if limit is not None and (type(limit) not in (int, float) or not 0 < limit < inf):
            raise InputInvalid(f"{where}: {name}", limit, "a number above 0, or None for no limit")
    if type(resources.gpus) is not int or resources.gpus < 0:
        raise InputInvalid(f"{where}: gpus", resources.gpus, "an int from 0 on")
    _check_nodes(resources, where)
    return resources


def _check_nodes(resources: Resources, where: str) -> None:
    nodes, procs, cpus = resources.nodes, resources.mpi_procs, resources.cpus
    for name, count in (("nodes", nodes), ("mpi_procs", procs)):
        if count is not None and (type(count) is not int or count < 1):
            raise InputInvalid(f"{where}: {name}", count, "an int from 1 on, or None")
    if procs is not None and cpus % procs:
        raise InputInvalid(
            f"{where}: mpi_procs", procs, f"a divisor of cpus ({cpus}), so that all processes have as many"
        )
    if nodes is not None and cpus < nodes:
        raise InputInvalid(
            f"{where}: cpus",
            cpus,
            f"at least {nodes}, one for each node: cpus are those of all nodes together",
        )


def attributes_of_resources(resources: Resources) -> dict[str, Any]:
    """What a process node keeps of them, for whoever goes on with it; nothing of what is the default."""
    attributes: dict[str, Any] = {}
    kept: dict[str, int] = {}
    nodes, procs = resources.nodes, resources.mpi_procs
    if nodes is not None:
        kept["num_machines"] = nodes
    if procs is not None:
        kept["tot_num_mpiprocs"] = procs
        if nodes is not None and procs % nodes == 0:
            kept["num_mpiprocs_per_machine"] = procs // nodes
    if resources.cpus != (procs or DEFAULT.cpus):
        kept["num_cores_per_mpiproc"] = resources.cpus // (procs or 1)
    if resources.gpus:
        kept["num_gpus"] = resources.gpus
    if kept:
        attributes["resources"] = kept
    if resources.memory_mb is not None:
        attributes["max_memory_kb"] = resources.memory_mb * 1024
    if resources.walltime_s is not None:
        attributes["max_wallclock_seconds"] = resources.walltime_s
    return attributes


def resources_of_attributes(attributes: Mapping[str, Any]) -> Resources:
    """The inverse; of what AiiDA wrote, the same cpus, processes and nodes."""
    kept = attributes.get("resources") or {}
    nodes, procs = kept.get("num_machines"), kept.get("tot_num_mpiprocs")
    per_node = kept.get("num_mpiprocs_per_machine")
    if procs is None and per_node is not None:
        procs = per_node * (nodes or 1)
    if nodes is None and procs is not None and per_node is not None:
        nodes = -(-procs // per_node)
    per_proc = kept.get("num_cores_per_mpiproc")
    cores = kept.get("num_cores_per_machine")
    if per_proc is None and cores is not None:
        per_proc = max(1, cores * (nodes or 1) // (procs or 1))
    cpus = (per_proc or 1) * (procs or 1)
    if procs is None and nodes is not None:
        cpus = max(cpus, nodes)
    memory_kb = attributes.get("max_memory_kb")
    return Resources(
        cpus=cpus,
        memory_mb=None if memory_kb is None else _whole(memory_kb / 1024),
        walltime_s=attributes.get("max_wallclock_seconds"),
        gpus=kept.get("num_gpus", 0),
        nodes=nodes,
        mpi_procs=procs,
    )


def _whole(number: float) -> Any:
    """An int where it is one."""
    return int(number) if number == int(number) else number
