"""Computers: where tasks run, how it is reached, and what it offers. Nothing here knows a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: local     this machine, or a folder that this machine and a cluster share
#: ssh       SSH by paramiko: agent, keys, jump hosts
#: openssh   the program ssh with a control master: a second factor is typed once
TransportKind = Literal["local", "ssh", "openssh"]
#: direct    processes of that machine, as many as it has cores
#: slurm     jobs of Slurm
SchedulerKind = Literal["direct", "slurm"]
#: none           chunks are processes (direct) or jobs (slurm)
#: hq             `hq server start` with keys and a journal, on the login node; workers in allocations
#: private-wheel  the server of the PyPI wheel, which has no authentication: whoever reaches its port runs
#:                commands as you. Only for machines and networks that nobody else can reach.
HyperQueueKind = Literal["none", "hq", "private-wheel"]
#: ssh    result packs and input files come and go as files do, through this machine
#: store  nodes put large result packs into the profile's store, and fetch large input files from there, by
#:        signed URLs; where the store is a folder, and where they do not get through, as with ssh
DeliveryKind = Literal["ssh", "store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SshSettings:
    """How a host is reached by SSH; never a secret.

    user: "" for the one of ~/.ssh/config, else our own name. port: 0 for the one of ~/.ssh/config, else 22.
    key_file: a private key ("" for the agent and the usual files). proxy_jump: hosts on the way, as in
    `ssh -J` ("" for the one of ~/.ssh/config). known_hosts: a file besides ~/.ssh/known_hosts ("" for none).
    config_file: "" for ~/.ssh/config, "none" for no configuration at all.
    restricted: a forced command lets through only what automation accounts may do
    (docs/cluster/restricted-accounts.md).
    """

    user: str = ""
    port: int = 0
    key_file: str = ""
    proxy_jump: str = ""
    known_hosts: str = ""
    config_file: str = ""
    restricted: bool = False
    connect_timeout_s: float = 30.0
    keepalive_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Computer:
    """One computer.

    work_dir: where our folder lies there; "~" and "{username}" are filled in. cores_per_node,
    memory_mb_per_node, gpus_per_node: what a node gives to tasks (None: not known, Slurm's own default).
    prepend_text, append_text: shell lines around every job script (modules for example). directives: further
    lines after "#SBATCH ". mpirun: a template with {tot_num_mpiprocs}, {nodes}, {procs_per_node}. python: the
    interpreter there, 3.9 or newer. hq_program: the program `hq` there (a path or a name on PATH after
    prepend_text); hq_binary: a file here that is sent instead. max_queued_jobs: how many jobs of ours may be
    in the queue of the scheduler at once, all processes together. connection_interval_s: the least time
    between the beginnings of two connections. slots: for direct, how many cores tasks may use together (0:
    all). delivery: how results come back; "store" is for computers whose nodes reach the store's server.
    """

    label: str
    hostname: str = "localhost"
    description: str = ""
    transport: TransportKind = "ssh"
    scheduler: SchedulerKind = "slurm"
    hyperqueue: HyperQueueKind = "none"
    work_dir: str = "~/grange"
    python: str = "python3"
    ssh: SshSettings = field(default_factory=SshSettings)
    cores_per_node: int | None = None
    memory_mb_per_node: int | None = None
    gpus_per_node: int = 0
    partition: str = ""
    account: str = ""
    qos: str = ""
    directives: tuple[str, ...] = ()
    shebang: str = "#!/bin/bash"
    prepend_text: str = ""
    append_text: str = ""
    mpirun: str = "mpirun -np {tot_num_mpiprocs}"
    hq_program: str = "hq"
    hq_binary: str = ""
    max_queued_jobs: int = 20
    max_allocations: int = 16
    connection_interval_s: float = 10.0
    slots: int = 0
    delivery: DeliveryKind = "ssh"
