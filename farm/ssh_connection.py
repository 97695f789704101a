"""One connection to a computer by paramiko: through the hosts on the way, the keys of all checked."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grange.farm import known_hosts
from grange.farm.computer import Computer
from grange.farm.errors import HostKeyRefused, TransportUnavailable
from grange.farm.ssh_authentication import Ask, authenticate
from grange.farm.ssh_route import Hop, route

if TYPE_CHECKING:
    from paramiko import Channel, Transport

#: A peer that does not answer for so many keep-alives is gone.
_MISSED_KEEPALIVES = 3
#: How long an answer to "are you there?" may take: it comes behind whatever is on its way already.
_PING_PATIENCE_S = 30.0
#: Bytes that may be on their way to us in one channel.
_WINDOW = 4 << 20


class SshConnection:
    """A connection, made when this is made; several threads may open channels on it.

    Errors: TransportUnavailable, HostKeyRefused, AuthenticationRefused.
    """

    def __init__(self, computer: Computer, ask: Ask | None = None) -> None:
        self._computer = computer
        self._transports: list[Transport] = []
        self._proxy: subprocess.Popen[bytes] | None = None
        self._ping_lock = threading.Lock()
        try:
            for hop in route(computer):
                self._transports.append(self._reach(hop, ask))
        except BaseException:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it has not been lost, as far as is known."""
        return all(transport.is_active() for transport in self._transports)

    def ping(self) -> bool:
        """Whether the other side answers; ends the connection when it does not."""
        returned = threading.Event()
        answered = []

        def ask() -> None:
            with contextlib.suppress(Exception), self._ping_lock:  # paramiko waits for one answer at a time
                self._transports[-1].global_request("keepalive@openssh.com", wait=True)
                answered.append(self.is_alive)
            returned.set()

        threading.Thread(target=ask, daemon=True).start()
        if returned.wait(_PING_PATIENCE_S) and any(answered):
            return True
        self.close()
        return False

    def channel(self, timeout_s: float) -> Channel:
        """A new session channel. Errors: those of paramiko, EOFError."""
        return self._transports[-1].open_session(window_size=_WINDOW, timeout=timeout_s)

    def close(self) -> None:
        from paramiko import SSHException

        for transport in reversed(self._transports):
            # What is lost already may not be told that it ends.
            with contextlib.suppress(EOFError, OSError, SSHException):
                transport.close()
        if self._proxy is not None:
            self._proxy.terminate()
            try:
                self._proxy.wait(2)
            except subprocess.TimeoutExpired:
                self._proxy.kill()
                self._proxy.wait()

    # ------------------------------------------------------------ one hop

    def _reach(self, hop: Hop, ask: Ask | None) -> Transport:
        from paramiko import SSHException, Transport

        settings = self._computer.ssh
        known = known_hosts.read_known_hosts(hop.known_hosts)
        place = f"{hop.host} port {hop.port}"
        carrier = self._carrier(hop)
        transport = None
        try:
            transport = Transport(carrier)
            # Whoever wants to see what paramiko says listens to this logger; else it is silent.
            transport.set_log_channel(_LOGGER.name)
            transport.banner_timeout = transport.auth_timeout = settings.connect_timeout_s
            _prefer(transport, known_hosts.types_for(known, hop.key_name))
            transport.start_client(timeout=settings.connect_timeout_s)
            if not transport.initial_kex_done:
                raise TransportUnavailable(
                    self._computer.label, f"{place} did not answer within {settings.connect_timeout_s:g} s"
                )
            self._check_key(hop, known, transport)
            authenticate(transport, hop, self._computer.label, ask)
            if settings.keepalive_s > 0:
                transport.set_keepalive(max(1, round(settings.keepalive_s)))
        except BaseException as error:
            if transport is not None:
                transport.close()
            with contextlib.suppress(OSError):
                carrier.close()
            if isinstance(error, SSHException | EOFError | OSError):
                reason = str(error) or "the connection was closed"
                raise TransportUnavailable(
                    self._computer.label, f"no connection to {place}: {reason}"
                ) from error
            raise
        return transport

    def _carrier(self, hop: Hop) -> Any:
        """What carries the bytes: a socket, a command's input and output, or a channel of the hop before."""
        from paramiko import SSHException

        timeout_s = self._computer.ssh.connect_timeout_s
        if self._transports:
            try:
                return self._transports[-1].open_channel(
                    "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=timeout_s
                )
            except (SSHException, EOFError, OSError) as error:
                raise TransportUnavailable(
                    self._computer.label,
                    f"the host on the way does not reach {hop.host} port {hop.port}: {error or 'lost'}",
                ) from error
        if hop.proxy_command:
            ours, theirs = socket.socketpair()
            with theirs:
                self._proxy = subprocess.Popen(
                    ("/bin/sh", "-c", f"exec {hop.proxy_command}"),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            return ours
        try:
            carrier = socket.create_connection((hop.host, hop.port), timeout_s)
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            raise TransportUnavailable(
                self._computer.label, f"no connection to {hop.host} port {hop.port}: {reason}"
            ) from error
        carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carrier.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._computer.ssh.keepalive_s > 0:
            patience_ms = round(self._computer.ssh.keepalive_s * _MISSED_KEEPALIVES * 1000)
            carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(patience_ms, 10_000))
        return carrier

    def _check_key(self, hop: Hop, known: list[known_hosts.KnownKey], transport: Transport) -> None:
        key = transport.get_remote_server_key()
        verdict, where = known_hosts.judge(known, hop.key_name, key.asbytes())
        if verdict == "known":
            return
        shown = f"{hop.key_name} shows a key {key.get_name()} {known_hosts.fingerprint(key.asbytes())}"
        if verdict == "unknown":
            raise HostKeyRefused(
                self._computer.label, f"{shown}, which is not known here. {self._advice(hop)}"
            )
        if verdict == "revoked":
            raise HostKeyRefused(
                self._computer.label,
                f"WARNING: {shown}, WHICH IS REVOKED ({where}). Somebody may be listening in. Ask the "
                "operators of that computer.",
            )
        raise HostKeyRefused(
            self._computer.label,
            f"WARNING: THE KEY OF THE HOST HAS CHANGED. {shown}; {where} has another one. Somebody may be "
            "listening in, or the host was installed anew. Ask its operators; only if they confirm this "
            f"fingerprint, remove the old key by `ssh-keygen -R '{hop.key_name}' -f "
            f"{where.rpartition(':')[0]}` and accept the new one.",
        )

    def _advice(self, hop: Hop) -> str:
        """How a person accepts a key that is not known."""
        file = hop.known_hosts[0] if hop.known_hosts else Path("~/.ssh/known_hosts").expanduser()
        port = f" -p {hop.port}" if hop.port != 22 else ""
        compare = "Compare the fingerprint with the one that its operators publish"
        if self._transports or hop.proxy_command:  # ssh-keyscan does not go through others
            return f"{compare}, then accept it by connecting once: `ssh{port} {hop.user}@{hop.name}`"
        return (
            f"{compare}, then accept it: `ssh-keyscan{port} {hop.host} >> {file}`, or connect once by "
            f"`ssh{port} {hop.user}@{hop.name}`"
        )


def _prefer(transport: Transport, types: list[str]) -> None:
    """Ask for the host's key of a type that is known here; encrypt and authenticate in one pass."""
    security = transport.get_security_options()
    wanted = []
    for name in types:
        wanted += ["rsa-sha2-512", "rsa-sha2-256"] if name == "ssh-rsa" else [name]
    offered = tuple(security.key_types)
    first = [name for name in wanted if name in offered]
    security.key_types = (*first, *(name for name in offered if name not in first))
    ciphers = tuple(security.ciphers)
    fast = [name for name in ciphers if "gcm" in name]
    security.ciphers = (*fast, *(name for name in ciphers if name not in fast))


_LOGGER = logging.getLogger("grange.farm.ssh")
_LOGGER.addHandler(logging.NullHandler())
