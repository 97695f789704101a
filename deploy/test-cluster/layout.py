"""What lies where in a cluster's folder, and what is known of the cluster.

cluster.json       this page's Cluster, for programs
computer.toml      for `grange computer add`; restricted.toml: by the restricted key
client/   0700     keys, known hosts and an ssh_config of whoever started it
cluster/  0700     of the account: daemons' configuration, keys, state and logs
work/     0700     of the account: the work directory for grange
allowed/  0700     of the account: what the restricted key may use
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import processes

#: A Unix socket's path holds 107 bytes; ours end in /cluster/munge/socket.
LONGEST_FOLDER = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One cluster. Units: memory_mb in MiB of one node. confined: it has a network namespace of its own."""

    folder: str
    user: str
    home: str
    host: str = "127.0.0.1"
    port: int
    restricted_port: int
    nodes: int
    cpus: int
    memory_mb: int
    confined: bool
    slurm_port: int

    @property
    def own(self) -> Path:
        """The account's part."""
        return Path(self.folder, "cluster")

    @property
    def client(self) -> Path:
        return Path(self.folder, "client")

    @property
    def logs(self) -> Path:
        return self.own / "log"

    @property
    def work_dir(self) -> Path:
        return Path(self.folder, "work")

    @property
    def allowed_dir(self) -> Path:
        return Path(self.folder, "allowed")

    @property
    def key_file(self) -> Path:
        return self.client / "id_ed25519"

    @property
    def restricted_key(self) -> Path:
        return self.client / "id_restricted"

    @property
    def known_hosts(self) -> Path:
        return self.client / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        return self.client / "ssh_config"

    @property
    def environment(self) -> dict[str, str]:
        """What sshd puts into each of its logins besides HOME, USER, LOGNAME and SHELL."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "SLURM_CONF": str(self.own / "slurm.conf"),
            # Open MPI looks for a network that is no loopback.
            "OMPI_MCA_oob_tcp_if_include": "lo",
            processes.MARK: self.folder,
        }

    @property
    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    def public(self) -> dict[str, Any]:
        """What cluster.json holds."""
        paths = ("work_dir", "allowed_dir", "key_file", "restricted_key", "known_hosts", "ssh_config")
        found = {**asdict(self), **{name: str(getattr(self, name)) for name in paths}}
        if not self.restricted_port:
            del found["restricted_key"], found["allowed_dir"]
        return found


def read(folder: Path) -> Cluster | None:
    """The cluster whose folder this is, or None. Errors: RuntimeError."""
    file = folder / "cluster.json"
    try:
        content = json.loads(file.read_text())
        return Cluster(**{name: content[name] for name in Cluster.__slots__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, OSError) as problem:
        raise RuntimeError(f"{file} cannot be read as a cluster's: {problem!r}") from None


def checked_folder(text: str) -> Path:
    """The folder, absolute. Errors: RuntimeError."""
    folder = Path(text).absolute()
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", str(folder)) or ".." in folder.parts:
        raise RuntimeError(
            f"The path {folder} holds characters that Slurm's and sshd's configuration cannot carry; "
            "take one of letters, digits and _ . / + -"
        )
    if len(str(folder)) > LONGEST_FOLDER:
        raise RuntimeError(
            f"The path {folder} is too long for Unix sockets ({LONGEST_FOLDER} characters at most)."
        )
    return folder
