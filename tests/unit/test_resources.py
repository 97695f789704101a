"""What tasks ask for: refused or kept, and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grange.core.errors import InputInvalid
from grange.core.resources import attributes_of_resources, checked_resources, resources_of_attributes
from grange.farm.task import Resources


@st.composite
def asked(draw: st.DrawFn) -> Resources:
    procs = draw(st.none() | st.integers(1, 512))
    cpus = draw(st.integers(1, 128)) * (procs or 1)
    return Resources(
        cpus=cpus,
        memory_mb=draw(st.none() | st.integers(1, 10**7)),
        walltime_s=draw(st.none() | st.integers(1, 10**6) | st.floats(0.001, 1e6)),
        gpus=draw(st.integers(0, 8)),
        nodes=draw(st.none() | st.integers(1, min(cpus, 64))),
        mpi_procs=procs,
    )


@given(asked())
def test_what_is_kept_is_read_again(resources: Resources) -> None:
    assert checked_resources(resources, "x") is resources
    kept = json.loads(json.dumps(attributes_of_resources(resources)))
    assert resources_of_attributes(kept) == resources


def test_nothing_is_kept_of_the_default() -> None:
    assert attributes_of_resources(Resources()) == {}
    assert resources_of_attributes({}) == Resources()


def test_the_names_are_aiidas() -> None:
    assert attributes_of_resources(
        Resources(cpus=24, memory_mb=2, walltime_s=3600, nodes=2, mpi_procs=6)
    ) == {
        "resources": {
            "num_machines": 2,
            "num_mpiprocs_per_machine": 3,
            "tot_num_mpiprocs": 6,
            "num_cores_per_mpiproc": 4,
        },
        "max_memory_kb": 2048,
        "max_wallclock_seconds": 3600,
    }


@pytest.mark.parametrize(
    ("kept", "resources"),
    [
        ({"num_machines": 1, "num_mpiprocs_per_machine": 1}, Resources(nodes=1, mpi_procs=1)),
        ({"num_machines": 2, "num_mpiprocs_per_machine": 8}, Resources(cpus=16, nodes=2, mpi_procs=16)),
        (
            {"num_machines": 2, "tot_num_mpiprocs": 4, "num_cores_per_machine": 8},
            Resources(cpus=16, nodes=2, mpi_procs=4),
        ),
        (
            {"num_mpiprocs_per_machine": 4, "tot_num_mpiprocs": 6, "num_cores_per_mpiproc": 2},
            Resources(cpus=12, nodes=2, mpi_procs=6),
        ),
        ({"parallel_env": "mpi", "tot_num_mpiprocs": 5}, Resources(cpus=5, mpi_procs=5)),
        ({"num_machines": 1, "num_cores_per_mpiproc": 4}, Resources(cpus=4, nodes=1)),
        ({"num_machines": 3}, Resources(cpus=3, nodes=3)),
    ],
)
def test_what_aiida_kept_is_understood(kept: dict[str, Any], resources: Resources) -> None:
    assert resources_of_attributes({"resources": kept, "withmpi": True}) == resources


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpus": 2}, "gr.Resources"),
        (Resources(cpus=0), "x: cpus"),
        (Resources(cpus=True), "x: cpus"),
        (Resources(memory_mb=0), "x: memory_mb"),
        (Resources(walltime_s=float("inf")), "x: walltime_s"),
        (Resources(gpus=-1), "x: gpus"),
        (Resources(gpus=1.5), "x: gpus"),  # type: ignore[arg-type]
        (Resources(nodes=0), "x: nodes"),
        (Resources(nodes=2), "at least 2, one for each node"),
        (Resources(mpi_procs=0), "x: mpi_procs"),
        (Resources(cpus=4, mpi_procs=3), "a divisor of cpus"),
        (Resources(cpus=4, mpi_procs=8), "a divisor of cpus"),
    ],
)
def test_what_no_task_can_ask_for_is_refused(resources: object, message: str) -> None:
    with pytest.raises(InputInvalid, match=message):
        checked_resources(resources, "x")
