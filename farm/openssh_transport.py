"""The OpenSSH transport: commands and files by the program ssh, through a control master."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from grange.farm.computer import Computer
from grange.farm.control_master import control_master
from grange.farm.errors import CommandTimedOut, TransportUnavailable
from grange.farm.sftp import SftpSession
from grange.farm.sftp_transport import ANSWER_PATIENCE_S, COMMANDS, SftpTransport
from grange.farm.ssh_transport import Permit, shortened
from grange.farm.transport import Completed

#: Bytes read from a pipe at once; a pipe holds 64 KiB.
_BLOCK = 1 << 16
#: How long a server that takes no further session is asked again: others of ours may end meanwhile.
_SESSION_PATIENCE_S = 30.0
_REFUSED = b"Session open refused"
#: What our shell there says last on its standard error. ssh itself ends with 255 when it has no status,
#: which a program may end with, too.
_MARK = b"grange-status:"


class OpenSshTransport(SftpTransport):
    """A Transport by the program ssh. It uses the master of its computer, and opens one where there is none.

    Opening succeeds without a person only where keys suffice; else a person opens it once, by open_master().
    folder: where the sockets of masters lie. permit: is entered around each making of a connection.
    Errors: those of a Transport.
    """

    def __init__(self, computer: Computer, folder: Path, *, permit: Permit = contextlib.nullcontext) -> None:
        super().__init__(computer.label)
        self._master = control_master(computer, folder)
        self._permit = permit
        self._connecting = threading.Lock()
        self._commands = threading.BoundedSemaphore(COMMANDS)
        self._is_seen = False
        self._is_ours = False
        self._closed = False

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end. A signal's end has the status 128 and its number.

        Errors: TransportUnavailable also when it takes too long; it may go on there.
        """
        line = _marked_line(argv, cwd)
        with self._commands:
            deadline = time.monotonic() + timeout_s
            refused_until = time.monotonic() + _SESSION_PATIENCE_S
            while True:
                self._ensure_master()
                try:
                    done = subprocess.run(
                        self._master.client(line),
                        input=stdin,
                        capture_output=True,
                        timeout=max(0.001, deadline - time.monotonic()),
                        check=False,
                    )
                except subprocess.TimeoutExpired:
                    self._is_seen = False
                    raise CommandTimedOut(
                        self._label, f"this did not end within {timeout_s:g} s: {shortened(shlex.join(argv))}"
                    ) from None
                except OSError as error:
                    raise TransportUnavailable(
                        self._label, f"ssh could not be started: {error.strerror}"
                    ) from error
                head, mark, tail = done.stderr.rpartition(_MARK)
                status, _, after = tail.partition(b"\n")
                if mark and status.isdigit():
                    return Completed(int(status), done.stdout, head + after)
                if _REFUSED in done.stderr and time.monotonic() < min(refused_until, deadline):
                    self._close_sessions()  # the idle ones may be those that are too many (MaxSessions)
                    time.sleep(0.2)
                    continue
                self._is_seen = False
                words = done.stderr.decode(errors="replace").strip().splitlines()
                raise TransportUnavailable(
                    self._label, f"the connection was lost: {words[-1] if words else 'ssh gives no reason'}"
                )

    def close(self) -> None:
        """End what goes through the master; and it, too, if we opened it, not if a person did."""
        self._closed = True
        self._close_sessions()
        if self._is_ours:
            self._is_ours = False
            self._master.close()

    def _ensure_master(self) -> None:
        """See that the master lives: opened by one thread where it does not, the others wait."""
        with self._connecting:
            if self._closed:
                raise TransportUnavailable(self._label, "this transport is closed")
            if self._is_seen:
                return
            if not self._master.is_alive():
                with self._permit():
                    self._master.open()
                self._is_ours = True
            self._is_seen = True

    def _open_session(self) -> SftpSession:
        self._ensure_master()
        deadline = time.monotonic() + _SESSION_PATIENCE_S
        while True:
            stream = _PipeStream(self._master.client("sftp", subsystem=True), self._label)
            try:
                return _PipeSession(stream, self._label)
            except TransportUnavailable:
                said = stream.end()
                if _REFUSED in said and time.monotonic() < deadline:
                    self._close_sessions()
                    time.sleep(0.2)
                    continue
                self._is_seen = False
                if said.strip():
                    raise TransportUnavailable(
                        self._label, f"no SFTP: {said.decode(errors='replace').strip().splitlines()[-1]}"
                    ) from None
                raise

    def _doubt(self) -> None:
        self._is_seen = False

    def _is_current(self, session: SftpSession) -> bool:
        return isinstance(session, _PipeSession) and session.lives


class _PipeStream:
    """A Stream over the input and output of a program."""

    def __init__(self, command: Sequence[str], label: str) -> None:
        self._label = label
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise TransportUnavailable(label, f"ssh could not be started: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to = self._process.stdin.fileno()
        self._from = self._process.stdout.fileno()
        os.set_blocking(self._to, False)

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(self._to, select.POLLOUT)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise TransportUnavailable(self._label, "the connection was lost (ssh has ended)") from error

    def receive(self) -> bytes:
        self._wait(self._from, select.POLLIN)
        return os.read(self._from, _BLOCK)

    def close(self) -> None:
        self.end()

    def end(self) -> bytes:
        """End the program; what it said on its standard error."""
        if self._process.returncode is None:
            self._process.terminate()
        try:
            _, said = self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            self._process.kill()
            self._process.wait()
            return b""
        return said or b""

    def _wait(self, file: int, event: int) -> None:
        poll = select.poll()
        poll.register(file, event)
        if not poll.poll(ANSWER_PATIENCE_S * 1000):
            raise TransportUnavailable(
                self._label, f"SFTP has not answered for {ANSWER_PATIENCE_S:g} s: its file system may hang"
            )


class _PipeSession(SftpSession):
    """A session that knows its program."""

    def __init__(self, stream: _PipeStream, label: str) -> None:
        self._pipes = stream
        super().__init__(stream, label)

    @property
    def lives(self) -> bool:
        return self._pipes.lives


def _marked_line(argv: Sequence[str], cwd: str | None) -> str:
    """As shell_line(), and the status goes along with the standard error."""
    there = f"cd {shlex.quote(cwd)} && " if cwd is not None else ""
    said = f"s=$?; echo {_MARK.decode()}$s >&2; exit $s"
    return f"exec /bin/sh -c {shlex.quote(f'{there}{shlex.join(argv)}; {said}')}"
