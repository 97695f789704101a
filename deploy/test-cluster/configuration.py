"""The daemons' and the client's configuration, as texts."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from layout import Cluster

RESTRICTED_SUBSYSTEM = "/usr/libexec/openssh/sftp-server"


def slurm_conf(cluster: Cluster, hostname: str) -> str:
    """Slurm as quick as it can be: it schedules at once, and forgets a dead node after seconds.

    Every node is a slurmd of this host that declares what it is told to (config_overrides). A job that does
    not say how much memory it needs gets an even share of its node's.
    """
    own, logs = cluster.own, cluster.logs
    first = cluster.slurm_port + 1
    last = cluster.slurm_port + cluster.nodes
    return f"""\
ClusterName=grange
SlurmctldHost={hostname}(127.0.0.1)
SlurmctldPort={cluster.slurm_port}
SlurmUser={cluster.user}
SlurmdUser={cluster.user}
AuthType=auth/munge
AuthInfo=socket={own}/munge/socket
CredType=cred/munge
StateSaveLocation={own}/state
SlurmdSpoolDir={own}/spool/%n
SlurmctldPidFile={own}/slurmctld.pid
SlurmdPidFile={own}/slurmd-%n.pid
SlurmctldLogFile={logs}/slurmctld.log
SlurmdLogFile={logs}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={logs}/jobcomp.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
InactiveLimit=0
KillWait=5
MinJobAge=300
MaxJobCount=20000
DefMemPerCPU={max(1, cluster.memory_mb // cluster.cpus)}
NodeName=node[1-{cluster.nodes}] NodeHostname={hostname} NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs={cluster.cpus} RealMemory={cluster.memory_mb} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def cgroup_conf(slurm_version: tuple[int, ...]) -> str:
    """No control groups: an ordinary user has none to give. Before 24.05 the word for it was missing."""
    plugin = "disabled" if slurm_version >= (24, 5) else "cgroup/v1"
    return f"CgroupPlugin={plugin}\n"


def sshd_config(cluster: Cluster, *, restricted: bool) -> str:
    """sshd for one login by key; its sessions find Slurm without a profile.

    The restricted login has an sshd of its own: automation accounts know the SFTP server by one literal path,
    which the forced command maps to where it is here. StrictModes: in a user namespace root's folders
    seem to be nobody's.
    """
    kind = "restricted" if restricted else "login"
    environment = " ".join(f"{name}={value}" for name, value in cluster.environment.items())
    return f"""\
HostKey {cluster.own}/ssh/host_key
AuthorizedKeysFile {cluster.own}/ssh/authorized_keys_{kind}
AllowUsers {cluster.user}
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PidFile none
PrintMotd no
PrintLastLog no
X11Forwarding no
AllowTcpForwarding {"no" if restricted else "yes"}
SetEnv {environment}
Subsystem sftp {RESTRICTED_SUBSYSTEM if restricted else "/usr/lib/openssh/sftp-server"}
LogLevel VERBOSE
"""


def authorized_key(cluster: Cluster, public_key: str, *, restricted: bool) -> str:
    if not restricted:
        return public_key
    # The system's own, which every account can run.
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    command = f"{python} -I {cluster.own}/bin/forced_command.py {cluster.allowed_dir}"
    return f'restrict,command="{command}" {public_key}'


def known_hosts(cluster: Cluster, public_host_key: str) -> str:
    kind, key = public_host_key.split()[:2]
    return "".join(f"[{cluster.host}]:{port} {kind} {key}\n" for port in ports(cluster))


def ports(cluster: Cluster) -> list[int]:
    return [cluster.port] + ([cluster.restricted_port] if cluster.restricted_port else [])


def ssh_config(cluster: Cluster) -> str:
    """For the program ssh: `ssh -F FOLDER/client/ssh_config test-cluster`."""
    hosts = [("test-cluster", cluster.port, cluster.key_file)]
    if cluster.restricted_port:
        hosts.append(("test-cluster-restricted", cluster.restricted_port, cluster.restricted_key))
    # By way of itself, to try ProxyJump.
    hosts.append(("test-cluster-by-itself", cluster.port, cluster.key_file))
    entries = "".join(
        f"""\
Host {name}
    HostName {cluster.host}
    Port {port}
    User {cluster.user}
    IdentityFile {key}
    IdentitiesOnly yes
    UserKnownHostsFile {cluster.known_hosts}
    StrictHostKeyChecking yes
"""
        for name, port, key in hosts
    )
    return f"{entries}    ProxyJump test-cluster\n"


def computer_toml(cluster: Cluster, *, restricted: bool) -> str:
    """A computer for `grange computer add`; with the open server of HyperQueue's wheel where confined."""
    port, key = cluster.port, cluster.key_file
    label, work = "test-cluster", cluster.work_dir
    if restricted:
        port, key = cluster.restricted_port, cluster.restricted_key
        label, work = "test-cluster-restricted", cluster.allowed_dir
    computer: dict[str, Any] = {
        "label": label,
        "hostname": cluster.host,
        "description": f"test cluster in {cluster.folder}",
        "transport": "ssh",
        "scheduler": "slurm",
        "hyperqueue": "private-wheel" if cluster.confined else "none",
        "work_dir": str(work),
        "python": "python3",
        "cores_per_node": cluster.cpus,
        "memory_mb_per_node": cluster.memory_mb,
        "connection_interval_s": 0.0,
    }
    ssh: dict[str, Any] = {
        "user": cluster.user,
        "port": port,
        "key_file": str(key),
        "known_hosts": str(cluster.known_hosts),
        "config_file": "none",
        "restricted": restricted,
    }
    return toml(computer) + "\n[ssh]\n" + toml(ssh)


def toml(table: dict[str, Any]) -> str:
    # JSON's texts, numbers and truth values are TOML's, too.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())
