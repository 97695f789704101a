"""What starts MPI inside of a job of Slurm: the lines before it, run by bash with a job's variables."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from grange.farm.mpi_start import around_mpi
from grange.farm.task import Resources

#: As a task finds them in a worker on the third of four nodes.
WORKER = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HQ_TASK_ID": "7",
    "GRANGE_CHUNK": "/work/chunk-000001",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURMD_NODENAME": "n3",
    "SLURM_JOB_ID": "12",
    "SLURM_JOBID": "12",
    "SLURM_JOB_NODELIST": "n[1-4]",
    "SLURM_NODELIST": "n[1-4]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
    "SLURM_CPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_LABELIO": "1",
}
UNBOUND = {
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "I_MPI_PIN": "off",
    "MV2_ENABLE_AFFINITY": "0",
}


def bash(script: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def told(resources: Resources, environment: dict[str, str], mpirun: str = "env") -> dict[str, str]:
    """The variables of Slurm and of bindings that what starts MPI finds."""
    before, prefix = around_mpi(mpirun, resources)
    done = subprocess.run(
        ["/bin/bash", "-c", f"{before}exec -- {prefix}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return {name: value for name, value in found.items() if name.startswith("SLURM_") or name in UNBOUND}


def told_srun(resources: Resources, environment: dict[str, str], folder: Path, mpirun: str) -> list[str]:
    """The arguments that a program srun gets."""
    program = folder / "srun"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    before, prefix = around_mpi(mpirun, resources)
    environment = {**environment, "PATH": f"{folder}:{environment['PATH']}"}
    script = f"{before}exec -- {prefix} program"
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def nodefile(folder: Path, *names: str) -> dict[str, str]:
    path = folder / "hq-nodefile"
    path.write_text("".join(f"{name}\n" for name in names))
    return {"HQ_NODE_FILE": str(path), "HQ_NUM_NODES": str(len(names))}


class TestInWorkers:
    def test_on_one_node_mpirun_does_not_know_of_the_job(self) -> None:
        assert told(Resources(cpus=4), WORKER) == {"SLURM_CONF": "/etc/slurm.conf", **UNBOUND}

    def test_processes_that_have_the_node_are_bound_as_ever(self) -> None:
        assert told(Resources(cpus=8), WORKER) == {"SLURM_CONF": "/etc/slurm.conf"}

    def test_what_somebody_has_said_of_binding_stays(self) -> None:
        found = told(Resources(), {**WORKER, "I_MPI_PIN": "on"})
        assert found["I_MPI_PIN"] == "on"

    @pytest.mark.parametrize("domain", ["", ".cluster.example.org"])
    def test_on_several_nodes_it_knows_of_those_of_the_task(self, tmp_path: Path, domain: str) -> None:
        nodes = nodefile(tmp_path, f"n3{domain}", f"n1{domain}")
        found = told(Resources(cpus=16, nodes=2, mpi_procs=8), {**WORKER, **nodes})
        assert found == {
            "SLURM_CONF": "/etc/slurm.conf",
            "SLURM_JOB_ID": "12",
            "SLURM_JOBID": "12",
            "SLURM_JOB_NODELIST": "n3,n1",
            "SLURM_NODELIST": "n3,n1",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NNODES": "2",
            "SLURM_TASKS_PER_NODE": "4(x2)",
            "SLURM_JOB_CPUS_PER_NODE": "8(x2)",
            "SLURM_OVERLAP": "1",
        }

    def test_where_nodes_have_other_names_it_knows_of_all_of_the_job(self, tmp_path: Path) -> None:
        found = told(Resources(cpus=16, nodes=2), {**WORKER, **nodefile(tmp_path, "vm", "vm")})
        assert (found["SLURM_NODELIST"], found["SLURM_NNODES"]) == ("n[1-4]", "4")
        assert found["SLURM_TASKS_PER_NODE"] == "8(x4)"

    @pytest.mark.parametrize("before", ["", "env A=1 B= ", "/usr/bin/env "])
    def test_srun_starts_beside_the_worker_on_its_node(self, tmp_path: Path, before: str) -> None:
        found = told_srun(Resources(cpus=4), WORKER, tmp_path, f"{before}srun -n 4")
        assert found == ["--cpu-bind=none", "--overlap", "--nodelist=n3", "-n", "4", "program"]

    def test_srun_starts_on_all_nodes_of_the_task(self, tmp_path: Path) -> None:
        environment = {**WORKER, **nodefile(tmp_path, "n3", "n4")}
        found = told_srun(Resources(cpus=16, nodes=2), environment, tmp_path, "srun -n 16")
        assert found == ["--overlap", "--nodelist=n3,n4", "-n", "16", "program"]


class TestElsewhere:
    def test_a_job_of_the_chunks_own_has_room_for_all_processes(self) -> None:
        job = {name: value for name, value in WORKER.items() if not name.startswith("HQ_")}
        found = told(Resources(cpus=16, nodes=2, mpi_procs=8), {**job, "SLURM_CPUS_ON_NODE": "8"})
        assert found["SLURM_TASKS_PER_NODE"] == "4(x2)"
        assert found["SLURM_JOB_NODELIST"] == "n[1-4]"
        assert "SLURM_NTASKS" not in found
        assert "SLURM_CPUS_PER_TASK" not in found

    def test_without_slurm_nothing_is_told_but_what_is_not_bound(self) -> None:
        path = {"PATH": WORKER["PATH"]}
        assert told(Resources(cpus=10_000), path) == {}
        assert told(Resources(cpus=1, mpi_procs=1), {**path, "SLURM_CPUS_ON_NODE": "2"}) == {
            "SLURM_CPUS_ON_NODE": "2",
            **UNBOUND,
        }

    def test_a_program_that_is_only_called_like_srun_gets_no_more(self) -> None:
        _, prefix = around_mpi("srunner -n 2", Resources())
        assert prefix == "srunner -n 2"
