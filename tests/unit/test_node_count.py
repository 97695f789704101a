"""How many nodes a task needs."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.farm.errors import TaskRefused
from grange.farm.local_pool import LocalPool
from grange.farm.node_count import node_count, require_one_machine
from grange.farm.task import Batch, CommandTask, Resources


@pytest.mark.parametrize(
    ("resources", "cores", "memory_mb", "gpus", "nodes"),
    [
        (Resources(), None, None, None, 1),
        (Resources(), 128, 256_000, 0, 1),
        (Resources(cpus=128), 128, None, None, 1),
        (Resources(cpus=129), 128, None, None, 2),
        (Resources(cpus=512), 128, None, None, 4),
        (Resources(cpus=512), None, None, None, 1),
        (Resources(memory_mb=1000), 4, 1000, None, 1),
        (Resources(memory_mb=1001), 4, 1000, None, 2),
        (Resources(cpus=5, memory_mb=3500), 4, 1000, None, 4),
        (Resources(cpus=20, memory_mb=1500), 4, 1000, None, 5),
        (Resources(cpus=8, mpi_procs=2), 4, None, None, 2),
        # A process stays on one node: four of three cores take a node of four each.
        (Resources(cpus=12, mpi_procs=4), 4, None, None, 4),
        (Resources(gpus=3), 4, None, 4, 1),
        (Resources(gpus=5), 4, None, 4, 2),
        (Resources(gpus=5), 4, None, None, 1),
        (Resources(cpus=2, nodes=2), 128, None, None, 2),
        (Resources(cpus=256, nodes=3), 128, None, None, 3),
        (Resources(nodes=7), None, None, None, 7),
    ],
)
def test_cpus_memory_and_gpus_decide(
    resources: Resources, cores: int | None, memory_mb: int | None, gpus: int | None, nodes: int
) -> None:
    assert node_count(resources, cores, memory_mb, gpus) == nodes


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(cpus=9, nodes=2), "9 cpus on 2 nodes, and a node has 4 cores, 1000 MiB: ask for 3 nodes"),
        (Resources(memory_mb=1500, nodes=1), "1500 MiB on 1 node, .* ask for 2 nodes"),
        (Resources(cpus=10, mpi_procs=2), "2 processes with 5 cpus each, and a node has 4 cores"),
        (Resources(cpus=8, mpi_procs=1), "one process with 8 cpus, more than a node has"),
        (Resources(memory_mb=1001, mpi_procs=1), "one process with 1 cpu, 1001 MiB, more than a node has"),
        (Resources(gpus=1), "asks for 1 GPU; the nodes there have none"),
        (Resources(nodes=0), "0 nodes"),
        (Resources(cpus=0), "0 cpus"),
        (Resources(gpus=-1), "-1 GPUs"),
        (Resources(mpi_procs=0), "0 processes"),
    ],
)
def test_what_cannot_be_is_refused(resources: Resources, message: str) -> None:
    with pytest.raises(TaskRefused, match=message):
        node_count(resources, 4, 1000, 0)


@given(
    cpus=st.integers(1, 5000),
    procs=st.none() | st.integers(1, 5000),
    memory_mb=st.none() | st.integers(1, 10**7),
    cores=st.integers(1, 256),
    memory_of_node=st.integers(1, 10**6),
)
def test_the_nodes_hold_the_task_and_one_less_does_not(
    cpus: int, procs: int | None, memory_mb: int | None, cores: int, memory_of_node: int
) -> None:
    resources = Resources(cpus=cpus, mpi_procs=procs, memory_mb=memory_mb)
    try:
        nodes = node_count(resources, cores, memory_of_node)
    except TaskRefused:
        assert procs is not None
        assert procs == 1 or ceil(cpus / procs) > cores
        return

    def holds(count: int) -> bool:
        each = ceil(cpus / (procs or cpus))
        enough = (cores // each) * count >= (procs or cpus)
        return enough and memory_of_node * count >= (memory_mb or 0)

    assert holds(nodes)
    assert nodes == 1 or not holds(nodes - 1)
    assert node_count(Resources(cpus, memory_mb, None, 0, nodes, procs), cores, memory_of_node) == nodes


def test_one_machine_hands_out_cores_and_memory() -> None:
    require_one_machine(Resources(cpus=4, memory_mb=100, nodes=1, mpi_procs=4), "the local pool")
    with pytest.raises(TaskRefused, match="asks for 2 GPUs; the local pool hands out cores and memory only"):
        require_one_machine(Resources(gpus=2), "the local pool")
    with pytest.raises(TaskRefused, match="asks for 2 nodes; the local pool is one machine"):
        require_one_machine(Resources(nodes=2), "the local pool")


def test_the_local_pool_refuses_what_it_has_not(tmp_path: Path) -> None:
    task = CommandTask("a", ("/bin/true",))
    with LocalPool(tmp_path) as pool:
        for resources in (Resources(gpus=1), Resources(nodes=2, cpus=2)):
            with pytest.raises(TaskRefused, match="the local pool"):
                pool.submit(Batch((task,), resources))
        assert pool.outstanding == 0
