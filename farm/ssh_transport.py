"""The SSH transport by paramiko: one connection, on which many threads run commands and move files."""

from __future__ import annotations

import contextlib
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from grange.farm.computer import Computer
from grange.farm.errors import CommandTimedOut, TransportUnavailable
from grange.farm.sftp import SftpSession
from grange.farm.sftp_transport import ANSWER_PATIENCE_S, COMMANDS, SftpTransport
from grange.farm.ssh_authentication import Ask
from grange.farm.ssh_connection import SshConnection
from grange.farm.transport import Completed

if TYPE_CHECKING:
    from paramiko import Channel

#: Bytes handed to a channel at once; it cuts them into packets.
_BLOCK = 1 << 18
#: How long a server that takes no further channels is asked again: others of ours may end meanwhile.
_CHANNEL_PATIENCE_S = 30.0

Permit = Callable[[], AbstractContextManager[None]]


class SshTransport(SftpTransport):
    """A Transport by paramiko. It connects when it is first used, and again after a loss.

    ask: asks a person for a passphrase or a second factor; None where nobody is there. permit: is entered
    around each making of a connection: it may refuse, and learns how it went.
    Errors: those of a Transport.
    """

    def __init__(
        self, computer: Computer, *, ask: Ask | None = None, permit: Permit = contextlib.nullcontext
    ) -> None:
        super().__init__(computer.label)
        self._computer = computer
        self._ask = ask
        self._permit = permit
        self._connection: SshConnection | None = None
        self._connecting = threading.Lock()
        self._commands = threading.BoundedSemaphore(COMMANDS)
        self._closed = False

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end. A signal's end has the status 128 and its number.

        Errors: TransportUnavailable also when it takes too long; it may go on there.
        """
        return self.run_line(shell_line(argv, cwd), stdin=stdin, timeout_s=timeout_s)

    def run_line(self, line: str, *, stdin: bytes = b"", timeout_s: float = 120.0) -> Completed:
        """Run a line of shell as it stands, and wait for its end."""
        with self._commands:
            connection = self._connected()
            channel = self._channel(connection)
            try:
                return self._run(channel, line, stdin, time.monotonic() + timeout_s)
            except TimeoutError:
                _end(channel)
                lives = connection.ping()
                raise CommandTimedOut(
                    self._label,
                    f"this did not end within {timeout_s:g} s: {shortened(line)}"
                    + ("" if lives else "; the connection is lost"),
                ) from None
            except (EOFError, OSError) as error:
                raise self._lost(error) from error
            finally:
                _end(channel)

    def close(self) -> None:
        """End the connection; it is no error to close twice."""
        self._closed = True
        self._close_sessions()
        if self._connection is not None:
            self._connection.close()

    # ------------------------------------------------------------ channels

    def _connected(self) -> SshConnection:
        """The connection, made if there is none that lives: by one thread, the others wait for it."""
        with self._connecting:
            if self._closed:
                raise TransportUnavailable(self._label, "this transport is closed")
            if self._connection is None or not self._connection.is_alive:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                with self._permit():
                    self._connection = SshConnection(self._computer, self._ask)
            return self._connection

    def _channel(self, connection: SshConnection) -> Channel:
        """A channel; a server that has none left now is asked again."""
        from paramiko import SSHException

        deadline = time.monotonic() + _CHANNEL_PATIENCE_S
        while True:
            try:
                return connection.channel(ANSWER_PATIENCE_S)
            except SSHException as error:
                # Of several refusals at once, paramiko tells one thread which it was.
                if not connection.is_alive:
                    raise self._lost(error) from error
                # The idle sessions of ours may be those that are too many (MaxSessions).
                self._close_sessions()
                if time.monotonic() > deadline:
                    raise TransportUnavailable(
                        self._label, f"the server takes no further channel ({error}): see its MaxSessions"
                    ) from error
                time.sleep(0.2)
            except (EOFError, OSError) as error:
                raise self._lost(error) from error

    def _run(self, channel: Channel, line: str, stdin: bytes, deadline: float) -> Completed:
        from paramiko import SSHException

        channel.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            channel.exec_command(line.encode())
        except SSHException as error:
            raise self._lost(error) from error
        stderr: list[bytes] = []
        # Whoever does not read one of them makes the program wait, and with it the others.
        threads = [threading.Thread(target=_hear_errors, args=(channel, stderr), daemon=True)]
        if stdin:
            threads.append(threading.Thread(target=_tell, args=(channel, stdin), daemon=True))
        else:
            channel.shutdown_write()
        for thread in threads:
            thread.start()
        stdout = []
        while data := channel.recv(_BLOCK):
            stdout.append(data)
            channel.settimeout(max(0.001, deadline - time.monotonic()))
        if not channel.status_event.wait(max(0.001, deadline - time.monotonic())):
            raise TimeoutError
        if channel.exit_status < 0:
            raise self._lost(None)
        threads[0].join()
        return Completed(channel.exit_status, b"".join(stdout), b"".join(stderr))

    def _open_session(self) -> SftpSession:
        from paramiko import SSHException

        connection = self._connected()
        channel = self._channel(connection)
        try:
            channel.settimeout(ANSWER_PATIENCE_S)
            channel.invoke_subsystem("sftp")
            return _ChannelSession(_ChannelStream(channel, self._label), self._label, connection)
        except (SSHException, EOFError, OSError) as error:
            _end(channel)
            if connection.ping():
                raise TransportUnavailable(
                    self._label, "the server refuses SFTP: see `Subsystem sftp` in its sshd_config"
                ) from error
            raise self._lost(error) from error
        except BaseException:
            _end(channel)
            raise

    def _is_current(self, session: SftpSession) -> bool:
        return isinstance(session, _ChannelSession) and session.lives

    def _doubt(self) -> None:
        """Have the connection known as lost, if it is, before anybody uses it again."""
        if self._connection is not None:
            self._connection.ping()

    def _lost(self, error: BaseException | None) -> TransportUnavailable:
        self._doubt()
        reason = str(error) if error is not None and str(error) else "it was closed"
        return TransportUnavailable(self._label, f"the connection was lost: {reason}")


class _ChannelStream:
    """A Stream over a channel of paramiko."""

    def __init__(self, channel: Channel, label: str) -> None:
        self._channel = channel
        self._label = label

    def send(self, data: bytes) -> None:
        with self._said():
            view = memoryview(data)
            for at in range(0, len(view), _BLOCK):
                self._channel.sendall(bytes(view[at : at + _BLOCK]))

    def receive(self) -> bytes:
        with self._said():
            return self._channel.recv(_BLOCK)

    def close(self) -> None:
        _end(self._channel)

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise TransportUnavailable(
                self._label, f"SFTP has not answered for {ANSWER_PATIENCE_S:g} s: its file system may hang"
            ) from error
        except (EOFError, OSError) as error:
            raise TransportUnavailable(self._label, f"the connection was lost: {error}") from error


class _ChannelSession(SftpSession):
    """A session that knows its connection."""

    def __init__(self, stream: _ChannelStream, label: str, connection: SshConnection) -> None:
        self._connection = connection
        super().__init__(stream, label)

    @property
    def lives(self) -> bool:
        return self._connection.is_alive


def _end(channel: Channel) -> None:
    """Close a channel, which has not to be told where the connection is lost."""
    from paramiko import SSHException

    with contextlib.suppress(EOFError, OSError, SSHException):
        channel.close()


def _hear_errors(channel: Channel, heard: list[bytes]) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := channel.recv_stderr(_BLOCK):
            heard.append(data)


def _tell(channel: Channel, stdin: bytes) -> None:
    """Hand a program its input; one that ends without having read it does as it likes."""
    with contextlib.suppress(OSError, EOFError):
        view = memoryview(stdin)
        for at in range(0, len(view), _BLOCK):
            channel.sendall(bytes(view[at : at + _BLOCK]))
        channel.shutdown_write()


def shell_line(argv: Sequence[str], cwd: str | None) -> str:
    """A line for any login shell: the program under /bin/sh, which tells a signal's end by the status."""
    program = shlex.join(argv)
    there = f"cd {shlex.quote(cwd)} && " if cwd is not None else ""
    return f"exec /bin/sh -c {shlex.quote(f'{there}{program}; exit $?')}"


def shortened(line: str) -> str:
    return line if len(line) <= 120 else line[:117] + "..."
