"""A real sshd of one's own on loopback, for tests that stop it, cut its connections or change its key."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from grange.farm.computer import Computer, SshSettings

_CONFIGURATION = """\
{more}
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/{host_key}
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
LogLevel VERBOSE
MaxStartups 100
Subsystem sftp {sftp}
"""


class SshServer:
    """sshd, run by and for the account of the tests. Its log tells what reached it."""

    def __init__(self, folder: Path, *, more: str = "", sftp: str = "internal-sftp") -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.port = _free_port()
        self.user = getpass.getuser()
        self._more = more
        self._sftp = sftp
        self._process: subprocess.Popen[bytes] | None = None
        self.key = self.make_key("key")
        self.host_key = self.make_key("host_key")
        self.known_hosts = folder / "known_hosts"
        self.authorize(self.key)
        self.know()

    def make_key(self, name: str, passphrase: str = "") -> Path:
        path = self.folder / name
        path.unlink(missing_ok=True)
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
        subprocess.run(command, check=True)
        return path

    def authorize(self, *keys: Path) -> None:
        public = "".join(key.with_name(key.name + ".pub").read_text() for key in keys)
        (self.folder / "authorized_keys").write_text(public)

    def know(self, key: Path | None = None) -> None:
        """Write the host's key (or another one) down as known."""
        public = (key or self.host_key).with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")

    def computer(self, label: str = "there", **changes: Any) -> Computer:
        """This server as a computer; changes: fields of SshSettings, or of Computer."""
        names = {field.name for field in dataclasses.fields(SshSettings)}
        settings = SshSettings(
            port=self.port, key_file=str(self.key), known_hosts=str(self.known_hosts), config_file="none"
        )
        settings = dataclasses.replace(settings, **{k: v for k, v in changes.items() if k in names})
        computer = Computer(label=label, hostname="127.0.0.1", ssh=settings, connection_interval_s=0.0)
        return dataclasses.replace(computer, **{k: v for k, v in changes.items() if k not in names})

    def start(self) -> SshServer:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        configuration = self.folder / "sshd_config"
        configuration.write_text(
            _CONFIGURATION.format(
                port=self.port,
                folder=self.folder,
                host_key=self.host_key.name,
                sftp=self._sftp,
                more=self._more,
            )
        )
        with open(self.folder / "sshd.log", "ab") as log:
            self._process = subprocess.Popen(
                ["/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Whatever the accounts of this machine have in their start-up files.
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """The port refuses, and all connections are cut."""
        if self._process is None:
            return
        sessions = self.sessions()
        self._process.kill()
        self._process.wait()
        self._process = None
        _kill(sessions)

    def cut(self) -> None:
        """Kill the processes of all connections, and what runs in them; the port goes on listening."""
        _kill(self.sessions())

    def sessions(self) -> list[int]:
        """All processes below the one that listens."""
        if self._process is None:
            return []
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                    children.setdefault(parent, []).append(int(entry.name))
        found: list[int] = []
        level = [self._process.pid]
        while level:
            level = [child for pid in level for child in children.get(pid, [])]
            found += level
        return found

    def log(self) -> str:
        path = self.folder / "sshd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def accepted(self) -> int:
        """How many connections were let in so far."""
        return len(re.findall(r"^Accepted publickey", self.log(), re.MULTILINE))


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
