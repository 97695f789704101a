"""The control master: a connection of the program ssh that stays, and that other calls of it go through.

A person opens it once and types what the computer asks for; whoever has the right to its socket uses it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from grange.farm.computer import Computer
from grange.farm.errors import AuthenticationRefused, HostKeyRefused, TransportFailed, TransportUnavailable
from grange.farm.socket_folder import socket_folder

#: While ssh makes the socket it adds a dot and 16 letters to its name.
_NAME_BYTES = 16 + 17
#: How long a master that we opened stays without anybody who uses it: we may have been killed.
_PERSIST_S = 60


@dataclass(frozen=True, slots=True)
class ControlMaster:
    """The master of one computer. path: its socket."""

    computer: Computer
    path: Path

    def is_alive(self) -> bool:
        """Whether it runs and answers."""
        if not self.path.exists():
            return False
        return self._control("check") == 0

    def open(self) -> None:
        """Open it without a person, by keys that need none.

        Errors: AuthenticationRefused, HostKeyRefused, TransportUnavailable.
        """
        self.path.unlink(missing_ok=True)  # of a master that was killed
        batch = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")
        with tempfile.TemporaryFile() as said:  # a pipe would be held open by the master
            status = self._start(
                (*batch, "-o", f"ControlPersist={_PERSIST_S}"),
                said.fileno(),
                self.computer.ssh.connect_timeout_s + 30,
            )
            said.seek(0)
            words = said.read(65536).decode(errors="replace").strip()
        if status != 0:
            raise _refusal(self.computer.label, words)

    def open_by_person(self) -> bool:
        """Open it at a terminal, where ssh asks its questions; False when it was open already.

        Errors: AuthenticationRefused when ssh does not get through; it has said why on the terminal.
        """
        if self.is_alive():
            return False
        self.path.unlink(missing_ok=True)
        status = self._start(
            ("-o", "StrictHostKeyChecking=ask", "-o", "ControlPersist=yes"), None, timeout_s=None
        )
        if status != 0:
            raise AuthenticationRefused(
                self.computer.label, "ssh did not get through; what it said above tells why"
            )
        return True

    def close(self) -> None:
        """End it, and all that goes through it."""
        self._control("exit")

    def client(self, *words: str, subsystem: bool = False) -> list[str]:
        """A call of ssh that goes through the master, and never makes a connection of its own."""
        through = ("-o", "ControlMaster=no", "-o", "ProxyCommand=false", "-o", "LogLevel=ERROR")
        ask_for = ("-s",) if subsystem else ()
        return [
            *("ssh", *through, *_PLAIN, *self._socket(), *_names(self.computer), "-T", *ask_for),
            *("--", self.computer.hostname, *words),
        ]

    def _start(self, more: tuple[str, ...], stderr: int | None, timeout_s: float | None) -> int:
        settings = self.computer.ssh
        command = [
            *("ssh", "-M", "-N", "-f", *more, *_PLAIN, *self._socket(), *_names(self.computer)),
            *("-o", f"ConnectTimeout={max(1, round(settings.connect_timeout_s))}"),
            *("-o", f"ServerAliveInterval={max(0, round(settings.keepalive_s))}"),
            *("-o", "ServerAliveCountMax=3", "-o", "TCPKeepAlive=yes"),
            *_way(self.computer, "BatchMode=yes" in more),
            *("--", self.computer.hostname),
        ]
        quiet = None if stderr is None else subprocess.DEVNULL
        try:
            return subprocess.run(
                command, stdin=quiet, stdout=quiet, stderr=stderr, timeout=timeout_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise TransportUnavailable(
                self.computer.label, f"ssh did not connect within {timeout_s:g} s"
            ) from None
        except OSError as error:
            raise _not_started(self.computer.label, error) from error

    def _control(self, what: str) -> int:
        try:
            return subprocess.run(
                ["ssh", "-O", what, *_PLAIN, *self._socket(), "-F", "none", "--", self.computer.hostname],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return 255  # stopped, or hanging: no use to anybody
        except OSError as error:
            raise _not_started(self.computer.label, error) from error

    def _socket(self) -> tuple[str, ...]:
        # A percent sign would begin a token.
        return ("-o", f"ControlPath={_quoted(str(self.path).replace('%', '%%'))}")


#: Whatever ~/.ssh/config says: commands and files, no terminals, tunnels or windows.
_PLAIN = tuple(
    word
    for option in (
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
    )
    for word in ("-o", option)
)


def control_master(computer: Computer, folder: Path) -> ControlMaster:
    """The master of a computer, whether or not it runs. folder: where our sockets lie."""
    # The same for all that would be the same connection.
    identity = repr((computer.label, computer.hostname, computer.ssh))
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return ControlMaster(computer, socket_folder(folder, _NAME_BYTES) / name)


def open_master(computer: Computer, folder: Path) -> bool:
    """Open the master of a computer at this terminal, where ssh asks what there is to ask.

    Returns False when it was open already. Errors: AuthenticationRefused.
    """
    return control_master(computer, folder).open_by_person()


def close_master(computer: Computer, folder: Path) -> None:
    """End the master of a computer, whoever opened it; it is no error that there is none."""
    control_master(computer, folder).close()


# ---------------------------------------------------------------- the words of a call


def _names(computer: Computer) -> list[str]:
    """Where, and as whom."""
    settings = computer.ssh
    words = []
    if settings.config_file:
        file = settings.config_file
        words += ["-F", "none" if file.lower() == "none" else str(Path(file).expanduser())]
    if settings.port:
        words += ["-p", str(settings.port)]
    if settings.user:
        words += ["-l", settings.user]
    return words


def _way(computer: Computer, batch: bool) -> list[str]:
    """By which keys and hosts a connection is made."""
    settings = computer.ssh
    words = _keys(computer)
    jumps = [jump.strip() for jump in settings.proxy_jump.split(",") if jump.strip()]
    if not jumps or settings.proxy_jump.lower() == "none":
        return words
    if not settings.key_file and not settings.known_hosts:
        return [*words, "-J", ",".join(jumps)]
    # -J would hand the hosts on the way neither our key nor our file of known keys.
    carry = ""
    for jump in jumps:
        command = ["ssh", *_PLAIN, *_names_of_jump(computer), *_keys(computer)]
        command += ["-o", f"BatchMode={'yes' if batch else 'no'}"]
        command += ["-o", f"StrictHostKeyChecking={'yes' if batch else 'ask'}"]
        if carry:
            command += ["-o", f"ProxyCommand={carry}"]
        user, _, place = jump.removeprefix("ssh://").rstrip("/").rpartition("@")
        found = re.fullmatch(
            r"\[(?P<ipv6>.*)\](?::(?P<port6>\d+))?|(?P<host>[^:]*)(?::(?P<port>\d+))?", place
        )
        if found is None:
            raise TransportFailed(computer.label, f"proxy_jump: expected [user@]host[:port], got {jump!r}")
        if port := found["port6"] or found["port"]:
            command += ["-p", port]
        if user:
            command += ["-l", user]
        # ssh fills in %h and %p, once for each that is nested in another.
        words_of_it = shlex.join([*command, "-W"]).replace("%", "%%")
        carry = f"{words_of_it} '[%h]:%p' {shlex.quote(found['ipv6'] or found['host'])}"
    return [*words, "-o", f"ProxyCommand={carry}"]


def _names_of_jump(computer: Computer) -> list[str]:
    file = computer.ssh.config_file
    if not file:
        return []
    return ["-F", "none" if file.lower() == "none" else str(Path(file).expanduser())]


def _keys(computer: Computer) -> list[str]:
    settings = computer.ssh
    words = []
    if settings.key_file:
        words += ["-i", str(Path(settings.key_file).expanduser())]
    if settings.known_hosts:
        known = Path(settings.known_hosts).expanduser()
        files = " ".join((_quoted(str(known)), "~/.ssh/known_hosts", "~/.ssh/known_hosts2"))
        words += ["-o", f"UserKnownHostsFile={files}"]
    return words


def _quoted(path: str) -> str:
    return f'"{path}"' if any(letter in path for letter in " \t'#") else path


# ---------------------------------------------------------------- refusals


def _refusal(label: str, words: str) -> TransportFailed:
    """What ssh means by what it says on its standard error."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    last = lines[-1] if lines else "ssh gives no reason"
    if "IDENTIFICATION HAS CHANGED" in words:
        shown = re.search(r"SHA256:\S+", words)
        return HostKeyRefused(
            label,
            "WARNING: THE KEY OF THE HOST HAS CHANGED"
            + (f"; it shows {shown[0].rstrip('.')}" if shown else "")
            + ". Somebody may be listening in, or the host was installed anew. Ask its operators; only if "
            f"they confirm this fingerprint, remove the old key ({_offending(words)}) and accept the new one "
            f"by `grange computer connect {label}`",
        )
    if "Host key verification failed" in words or "REVOKED HOST KEY" in words:
        return HostKeyRefused(
            label,
            f"the key of the host is not known here ({lines[0]}): run `grange computer connect {label}`, "
            "where ssh shows its fingerprint and asks; compare it with the one that the operators publish",
        )
    if "Permission denied" in words or "Too many authentication failures" in words:
        return AuthenticationRefused(
            label,
            f"it does not let us in without a person ({last}): run `grange computer connect {label}`, and "
            "type there what it asks for",
        )
    return TransportUnavailable(label, f"no connection: {last}")


def _offending(words: str) -> str:
    found = re.search(r"Offending \S+ key in (\S+)", words)
    return found[1] if found else "`ssh-keygen -R HOST`"


def _not_started(label: str, error: OSError) -> TransportFailed:
    return TransportFailed(
        label, f"the program ssh cannot be started ({error.strerror}): install the client of OpenSSH"
    )
