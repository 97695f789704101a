"""How many nodes a task needs, where it does not say so itself."""

from __future__ import annotations

from math import ceil

from grange.farm.errors import TaskRefused
from grange.farm.task import Resources


def node_count(
    resources: Resources,
    cores_per_node: int | None,
    memory_mb_per_node: int | None,
    gpus_per_node: int | None = None,
) -> int:
    """The nodes of a task: as many as it says, else as many as its cpus, memory and GPUs need.

    What a node has is None where it is not known; then that decides nothing. A process of MPI stays on one
    node, with all cpus that are its own.

    Errors: TaskRefused for what nodes like these cannot give, however many there are, or not the number
    that was asked for.
    """
    procs = resources.tot_num_mpiprocs
    if resources.cpus < 1 or procs < 1 or resources.gpus < 0:
        raise TaskRefused(
            f"a task asks for {resources.cpus} cpus, {procs} processes and {resources.gpus} GPUs:"
            " expected cpus and mpi_procs from 1 on, gpus from 0 on"
        )
    if resources.gpus and gpus_per_node == 0:
        raise TaskRefused(f"a task asks for {_count(resources.gpus, 'GPU')}; the nodes there have none")
    needed = max(
        _by_cpus(resources.cpus, procs, cores_per_node),
        ceil(resources.memory_mb / memory_mb_per_node) if resources.memory_mb and memory_mb_per_node else 1,
        ceil(resources.gpus / gpus_per_node) if gpus_per_node else 1,
    )
    if resources.nodes is None:
        if needed > 1 and resources.mpi_procs == 1:
            raise TaskRefused(
                f"a task is one process with {_wanted(resources)}, more than a node has"
                f" ({_offered(cores_per_node, memory_mb_per_node, gpus_per_node)}):"
                " ask for less, or for more mpi_procs"
            )
        return needed
    if resources.nodes < 1:
        raise TaskRefused(f"a task asks for {resources.nodes} nodes: expected 1 or more")
    if resources.nodes < needed:
        raise TaskRefused(
            f"a task asks for {_wanted(resources)} on {_count(resources.nodes, 'node')}, and a node has"
            f" {_offered(cores_per_node, memory_mb_per_node, gpus_per_node)}:"
            f" ask for {needed} nodes, or for none, and they are counted"
        )
    return resources.nodes


def require_one_machine(resources: Resources, executor: str) -> None:
    """Errors: TaskRefused for what an executor that hands out one machine's cores and memory cannot give."""
    if resources.gpus:
        raise TaskRefused(
            f"a task asks for {_count(resources.gpus, 'GPU')}; {executor} hands out cores and memory only:"
            " run it on a computer with gpus_per_node"
        )
    if resources.nodes is not None and resources.nodes != 1:
        raise TaskRefused(f"a task asks for {resources.nodes} nodes; {executor} is one machine")


def _by_cpus(cpus: int, procs: int, cores_per_node: int | None) -> int:
    if cores_per_node is None:
        return 1
    each = ceil(cpus / procs)
    if each > cores_per_node:
        if procs == 1:
            return ceil(cpus / cores_per_node)
        raise TaskRefused(
            f"a task asks for {procs} processes with {_count(each, 'cpu')} each, and a node has"
            f" {_count(cores_per_node, 'core')}: ask for more mpi_procs, or for fewer cpus"
        )
    return ceil(procs / (cores_per_node // each))


def _wanted(resources: Resources) -> str:
    memory = "" if resources.memory_mb is None else f", {resources.memory_mb} MiB"
    gpus = f", {_count(resources.gpus, 'GPU')}" if resources.gpus else ""
    return _count(resources.cpus, "cpu") + memory + gpus


def _offered(cores: int | None, memory_mb: int | None, gpus: int | None) -> str:
    offered = [] if cores is None else [_count(cores, "core")]
    offered += [] if memory_mb is None else [f"{memory_mb} MiB"]
    offered += [_count(gpus, "GPU")] if gpus else []
    return ", ".join(offered)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
