"""MPI inside of a job of Slurm: what starts its processes is told of the task, not of the job.

HyperQueue's workers are one step of a job that has all of its nodes and cores. What starts MPI there finds
the whole job in its environment: mpirun asks Slurm for a step of its own on every node, and waits for ever
for cores that the workers have; srun does the same. Where a chunk is a job of its own, that is one task
for Slurm, in which mpirun finds room for one process.
"""

from __future__ import annotations

import re

from grange.farm.task import Resources

#: `srun` as the program that starts MPI, behind what is set for it.
_SRUN = re.compile(r"\s*(?:\S*env\s+)?(?:[A-Za-z_]\w*=\S*\s+)*(?:\S*/)?srun(?!\S)")

# Beside other tasks on a node all would be bound to the same first cores; a task that has the node to itself
# is bound as ever.
_BINDING = """\
grange_srun=() grange_cores=${{SLURM_CPUS_ON_NODE:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 0)}}
if [ "$grange_cores" -gt {cpus_per_node} ]; then
  grange_srun=(--cpu-bind=none)
  export OMPI_MCA_hwloc_base_binding_policy="${{OMPI_MCA_hwloc_base_binding_policy-none}}"
  export PRTE_MCA_hwloc_default_binding_policy="${{PRTE_MCA_hwloc_default_binding_policy-none}}"
  export I_MPI_PIN="${{I_MPI_PIN-off}}" MV2_ENABLE_AFFINITY="${{MV2_ENABLE_AFFINITY-0}}"
fi
"""
# grange_nodes: the nodes of the task, as Slurm calls them. Where the worker has other names for them, all of
# the job's. Nothing else of Slurm's is left but what finds the job.
_IN_WORKER = """\
if [ -n "${HQ_TASK_ID-}" ] && [ -n "${SLURM_JOB_ID-}" ]; then
  grange_nodes=${SLURMD_NODENAME-}
  if [ -n "${HQ_NODE_FILE-}" ]; then
    grange_count=$HQ_NUM_NODES grange_all=$SLURM_JOB_NODELIST
    case $'\\n'$(cat "$HQ_NODE_FILE")$'\\n' in
      *$'\\n'"$grange_nodes"$'\\n'*) grange_nodes=$(paste -sd, "$HQ_NODE_FILE") ;;
      *$'\\n'"$grange_nodes".*) grange_nodes=$(sed 's/[.].*//' "$HQ_NODE_FILE" | paste -sd, -) ;;
      *) grange_nodes=$grange_all grange_count=$SLURM_JOB_NUM_NODES ;;
    esac
  fi
  for grange_name in ${!SLURM_@}; do
    case $grange_name in SLURM_CONF|SLURM_JOB_ID) ;; *) unset "$grange_name" ;; esac
  done
"""
# Without a job, processes are started by mpirun itself, on this node.
_ON_ONE_NODE = "  unset SLURM_JOB_ID\n"
# With one, by Slurm, beside the workers.
_ON_SEVERAL = """\
  export SLURM_JOBID=$SLURM_JOB_ID SLURM_OVERLAP=1
  export SLURM_JOB_NODELIST=$grange_nodes SLURM_NODELIST=$grange_nodes
  export SLURM_JOB_NUM_NODES=$grange_count SLURM_NNODES=$grange_count
  export SLURM_TASKS_PER_NODE="{procs_per_node}(x$grange_count)"
  export SLURM_JOB_CPUS_PER_NODE="{cpus_per_node}(x$grange_count)"
"""
_SRUN_BESIDE = '  grange_srun+=(--overlap "--nodelist=$grange_nodes")\n'
# In a job that is the chunk's own.
_OWN_JOB = """\
elif [ -n "${{GRANGE_CHUNK-}}" ] && [ -n "${{SLURM_JOB_ID-}}" ]; then
  unset SLURM_CPUS_PER_TASK SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE
  export SLURM_TASKS_PER_NODE="{procs_per_node}(x{nodes})"
"""


def around_mpi(prefix: str, resources: Resources) -> tuple[str, str]:
    """Lines for bash before the program, and what starts MPI, as it is behind them.

    prefix: the command that starts MPI, filled in. Outside of Slurm's jobs the lines say only what the
    processes are not bound to.
    """
    nodes = resources.nodes or 1
    numbers = {
        "nodes": nodes,
        "cpus_per_node": -(-resources.cpus // nodes),
        "procs_per_node": -(-resources.tot_num_mpiprocs // nodes),
    }
    found = _SRUN.match(prefix)
    if found:
        told = _SRUN_BESIDE
        prefix = f'{found[0]} "${{grange_srun[@]}}"{prefix[found.end() :]}'
    else:
        told = _ON_ONE_NODE if nodes == 1 else _ON_SEVERAL.format(**numbers)
    lines = _BINDING.format(**numbers) + _IN_WORKER + told + _OWN_JOB.format(**numbers) + "fi\n"
    return lines, prefix
