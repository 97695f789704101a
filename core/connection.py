"""The connection of an installation to a computer: one, whatever the number of its processes.

Whoever needs the computer first takes its lease, a session advisory lock, and connects. It lends the
connection to the other processes of its host through a Unix socket. When it ends, in whatever way, PostgreSQL
drops the lock with its session, and the next one that needs the computer takes over. The table connection
says who that is and how the last attempts went: the interval between connections, the backoff and the pause
hold for all processes together.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from grange.core import database
from grange.core.database import Connection, Cursor
from grange.core.errors import DatabaseUnavailable
from grange.farm.backoff import Backoff, pauses, wait_s
from grange.farm.computer import Computer
from grange.farm.connection import open_transport
from grange.farm.connection_client import ConnectionClient
from grange.farm.connection_server import ConnectionServer
from grange.farm.errors import (
    CommandTimedOut,
    ComputerPaused,
    ConnectionNotYet,
    FarmError,
    TransportFailed,
    TransportUnavailable,
)
from grange.farm.local_transport import LocalTransport
from grange.farm.socket_folder import leave_socket_folder, socket_folder
from grange.farm.transport import Completed, Entry, Transport

if TYPE_CHECKING:
    from types import TracebackType

    from grange.core.profile import Profile
    from grange.farm.ssh_authentication import Ask

T = TypeVar("T")
Tell = Callable[[str], None]

#: First key of the lease; the second is the id of the computer. (Others: grange.core.worker.)
CONNECTION_LOCK = 0x67_72_61_21
#: How often the holder looks whether its session, and with it the lease, is still there.
_WATCH_S = 1.0
#: Between two looks for a connection that somebody else is about to have.
_LOOK_AGAIN_S = (0.02, 1.0)
#: How long a name our sockets have, at most.
_SOCKET_NAME_BYTES = 40


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """What is known of a computer's connection. host, pid: of its holder, None where nobody holds it."""

    host: str | None
    pid: int | None
    failures: int
    last_error: str | None
    paused: bool


def open_connection(
    profile: Profile,
    computer: Computer,
    computer_id: int,
    *,
    patience_s: float = 60.0,
    ask: Ask | None = None,
    backoff: Backoff | None = None,
    tell: Tell | None = None,
) -> Transport:
    """The transport to a computer, by the one connection that all processes of this installation share.

    It connects when it is first used. Close it, or have it closed when the interpreter ends.

    patience_s: how long a call goes on trying while the computer cannot be reached; a command that took too
    long is not run again. ask: asks a person for a secret where this process is the one that connects. tell:
    is told why a call waits, and "" when it waits no more; by whichever thread calls.
    Errors: none here; those of a Transport, and ComputerPaused, from its methods.
    """
    if computer.transport == "local":
        return LocalTransport(computer.label)
    return SharedConnection(
        profile,
        computer,
        computer_id,
        patience_s=patience_s,
        ask=ask,
        backoff=backoff or Backoff(interval_s=computer.connection_interval_s),
        tell=tell or (lambda _: None),
    )


def master_folder(profile: Profile) -> Path:
    """Where the sockets of the profile's control masters lie (grange.farm.control_master)."""
    return profile.home / "ssh"


def connection_state(cursor: Cursor, computer_id: int) -> ConnectionState:
    """How a computer's connection is, as far as the database knows."""
    cursor.execute(
        "SELECT host, pid, failures, last_error, paused FROM connection WHERE computer_id = %s",
        (computer_id,),
    )
    return ConnectionState(*(cursor.fetchone() or (None, None, 0, None, False)))


def resume(cursor: Cursor, computer_id: int) -> bool:
    """Let a paused computer be connected to again; whether it was paused."""
    cursor.execute("SELECT paused FROM connection WHERE computer_id = %s FOR UPDATE", (computer_id,))
    (paused,) = cursor.fetchone() or (False,)
    cursor.execute(
        "UPDATE connection SET paused = false, failures = 0, last_error = NULL WHERE computer_id = %s",
        (computer_id,),
    )
    return bool(paused)


def pause(cursor: Cursor, computer_id: int) -> None:
    """Let a computer be connected to no more, until somebody resumes it."""
    cursor.execute("UPDATE connection SET paused = true WHERE computer_id = %s", (computer_id,))


@dataclass(slots=True)
class _Lease:
    """What the holder has: the session with the lock, the real transport, and the socket for the others."""

    session: Connection
    transport: Transport
    server: ConnectionServer
    ended: threading.Event = field(default_factory=threading.Event)


class SharedConnection:
    """A Transport by the connection of the installation, held by this process or by another one.

    It repeats calls whose connection was lost, for patience_s; all of them may be repeated.
    """

    def __init__(
        self,
        profile: Profile,
        computer: Computer,
        computer_id: int,
        *,
        patience_s: float,
        ask: Ask | None,
        backoff: Backoff,
        tell: Tell,
    ) -> None:
        self._profile = profile
        self._computer = computer
        self._id = computer_id
        self._patience_s = patience_s
        self._ask = ask
        self._backoff = backoff
        self._tell = tell
        self._lock = threading.RLock()
        self._lease: _Lease | None = None
        self._client: ConnectionClient | None = None
        self._closing = threading.Event()
        self._owner = os.getpid()
        atexit.register(self.close)

    def __enter__(self) -> SharedConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_holder(self) -> bool:
        """Whether this process holds the connection."""
        return self._lease is not None

    # ------------------------------------------------------------ a Transport

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end. One that took too long is not run again."""
        return self._persist(lambda way: way.run(argv, stdin=stdin, cwd=cwd, timeout_s=timeout_s))

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents), each whole or not at all."""
        self._persist(lambda way: way.put(files, mode=mode))

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files, each whole or not at all, on our disk when this returns. Errors: RemoteMissing."""
        self._persist(lambda way: way.get(files))

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        return self._persist(lambda way: way.read(paths))

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        return self._persist(lambda way: way.list(folders))

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them; those that are there stay as they are."""
        self._persist(lambda way: way.make_folders(paths, mode=mode))

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them; what is not there is no error."""
        self._persist(lambda way: way.remove(paths))

    def home(self) -> str:
        """Our home folder there."""
        return self._persist(lambda way: way.home())

    def close(self) -> None:
        """Leave the connection; another process takes it over when it needs it."""
        atexit.unregister(self.close)
        self._closing.set()
        if os.getpid() != self._owner:
            return  # a forked child must not end what its parent uses
        with self._lock:
            self._leave()
            if self._client is not None:
                self._client.close()
                self._client = None

    # ------------------------------------------------------------ trying

    def _persist(self, call: Callable[[Transport], T]) -> T:
        """Make a call by whatever way there is, again and again while patience lasts."""
        until: float | None = None
        look_s, longest_s = _LOOK_AGAIN_S
        told = False
        while True:
            try:
                result = call(self._way())
            except CommandTimedOut:
                raise
            except TransportUnavailable as error:
                now = time.monotonic()
                until = now + self._patience_s if until is None else until
                pause_s = error.retry_after_s if isinstance(error, ConnectionNotYet) else look_s
                look_s = min(2 * look_s, longest_s)
                if now + pause_s > until:
                    raise
                if pause_s >= longest_s:
                    told = True
                    self._tell(str(error))
                if self._closing.wait(pause_s):
                    raise
            else:
                if told:
                    self._tell("")
                return result

    def _way(self) -> Transport:
        """The transport: our own if we hold the lease or can have it now, else the holder's."""
        with self._lock:
            if os.getpid() != self._owner:
                raise TransportFailed(
                    self._computer.label,
                    "this connection was opened by the process that this one was forked from: open it again",
                )
            if self._closing.is_set():
                raise TransportFailed(self._computer.label, "this connection was closed: open it again")
            if self._lease is not None:
                return self._lease.transport
            if self._client is not None and not self._client.lost:
                return self._client
            self._client = None
            try:
                session = self._profile.connect()
                try:
                    if self._try_lock(session):
                        self._lease = self._hold(session)
                        return self._lease.transport
                    self._client = self._join(session)
                    return self._client
                finally:
                    if self._lease is None or self._lease.session is not session:
                        session.close()
            except DatabaseUnavailable as error:
                raise TransportUnavailable(
                    self._computer.label, f"the database, which knows who holds the connection: {error}"
                ) from error

    def _try_lock(self, session: Connection) -> bool:
        with database.transaction(session) as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s, %s)", (CONNECTION_LOCK, self._id))
            return bool((cursor.fetchone() or (False,))[0])

    def _join(self, session: Connection) -> ConnectionClient:
        """The holder's transport. Errors: TransportUnavailable where it cannot be had, now or from here."""
        label = self._computer.label
        with database.transaction(session) as cursor:
            cursor.execute("SELECT host, pid, socket FROM connection WHERE computer_id = %s", (self._id,))
            host, pid, path = cursor.fetchone() or (None, None, None)
        if host is None or path is None:
            raise TransportUnavailable(label, "another process is about to take the connection")
        holder = f"process {pid} on {host}"
        if host != socket.gethostname():
            raise TransportUnavailable(
                label,
                f"the one connection to it is held by {holder}, and this is {socket.gethostname()}: run this "
                "there, or end that process",
            )
        return ConnectionClient(Path(path), label, holder)

    # ------------------------------------------------------------ holding

    def _hold(self, session: Connection) -> _Lease:
        """Become the holder, with the lock in hand: open the socket, say where it is, watch the lease."""
        try:
            folder = socket_folder(self._sockets, _SOCKET_NAME_BYTES)
            for left in folder.glob(f"{self._id}-*.sock"):  # nobody else holds it: these are of the dead
                left.unlink(missing_ok=True)
            path = folder / f"{self._id}-{os.getpid()}-{os.urandom(4).hex()}.sock"
            transport = open_transport(
                self._computer, master_folder(self._profile), ask=self._ask, permit=self._permit
            )
            try:
                server = ConnectionServer(transport, path, self._computer.label)
            except FileNotFoundError:  # the last holder of another computer was just leaving
                path = socket_folder(self._sockets, _SOCKET_NAME_BYTES) / path.name
                server = ConnectionServer(transport, path, self._computer.label)
        except OSError as error:
            raise TransportFailed(
                self._computer.label,
                f"no socket for other processes below {self._profile.home}: {error.strerror or error}",
            ) from error
        lease = _Lease(session, transport, server)
        try:
            self._tell_holder(session, str(path))
        except BaseException:
            server.close()
            raise
        threading.Thread(target=self._watch, args=(lease,), daemon=True).start()
        return lease

    @property
    def _sockets(self) -> Path:
        """Where the sockets of this profile's holders lie."""
        return self._profile.home / "connections"

    def _tell_holder(self, session: Connection, path: str) -> None:
        with database.transaction(session) as cursor:
            cursor.execute(
                "INSERT INTO connection (computer_id, host, pid, socket) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (computer_id) DO UPDATE"
                " SET host = EXCLUDED.host, pid = EXCLUDED.pid, socket = EXCLUDED.socket",
                (self._id, socket.gethostname(), os.getpid(), path),
            )

    def _leave(self) -> None:
        """End the connection, then give the lease back: there are never two."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        lease.ended.set()
        lease.server.close()
        leave_socket_folder(self._sockets)
        lease.transport.close()
        with contextlib.suppress(Exception), database.transaction(lease.session) as cursor:
            cursor.execute(
                "UPDATE connection SET host = NULL, pid = NULL, socket = NULL"
                " WHERE computer_id = %s AND host = %s AND pid = %s",
                (self._id, socket.gethostname(), os.getpid()),
            )
        lease.session.close()

    def _watch(self, lease: _Lease) -> None:
        """See that the lease is ours while we hold the connection: the server may restart, and drop it."""
        while not lease.ended.wait(_WATCH_S):
            # While the database is away, nobody else can take the lease either.
            with contextlib.suppress(DatabaseUnavailable), self._lock:
                if self._lease is not lease:
                    return
                if database.is_lost(lease.session) and not self._take_again(lease):
                    self._leave()  # somebody else has it now
                    return

    def _take_again(self, lease: _Lease) -> bool:
        session = self._profile.connect()
        if not self._try_lock(session):
            session.close()
            return False
        lease.session = session
        return True

    @contextlib.contextmanager
    def _permit(self) -> Iterator[None]:
        """Around each making of a connection: not too soon, not when paused; how it went is recorded."""
        self._begin_attempt()
        try:
            yield
        except FarmError as error:
            self._record_failure(error)
            raise
        self._record_success()

    def _begin_attempt(self) -> None:
        label = self._computer.label
        with self._recording() as cursor:
            cursor.execute(
                "SELECT extract(epoch FROM clock_timestamp() - attempted_at)::float8,"
                " (extract(microseconds FROM attempted_at)::bigint %% 1000000)::float8 / 1000000,"
                " failures, last_error, paused FROM connection WHERE computer_id = %s FOR UPDATE",
                (self._id,),
            )
            since_s, luck, failures, last_error, paused = cursor.fetchone() or (None, None, 0, None, False)
            if paused:
                raise ComputerPaused(
                    label,
                    f"it is paused, nothing is tried: {last_error or 'somebody paused it'}. When that is "
                    f"mended, run `grange computer resume {label}`",
                )
            # The clock of the database may have been set back.
            since_s = None if since_s is None or since_s < 0 else since_s
            # What a moment has below the second is as good as a die, and is the same for all who ask.
            wait = wait_s(self._backoff, failures, since_s, luck or 0.0)
            if wait > 0:
                reason = last_error or "a connection was begun just now"
                raise ConnectionNotYet(label, f"{reason}; not tried again before {_clock(wait)}", wait)
            cursor.execute(
                "UPDATE connection SET attempted_at = clock_timestamp() WHERE computer_id = %s", (self._id,)
            )

    def _record_failure(self, error: FarmError) -> None:
        with self._recording() as cursor:
            cursor.execute(
                "UPDATE connection SET failures = failures + 1, last_error = %s WHERE computer_id = %s"
                " RETURNING failures",
                (getattr(error, "reason", str(error)), self._id),
            )
            (failures,) = cursor.fetchone() or (0,)
            if pauses(self._backoff, failures, error):
                cursor.execute("UPDATE connection SET paused = true WHERE computer_id = %s", (self._id,))

    def _record_success(self) -> None:
        with self._recording() as cursor:
            cursor.execute(
                "UPDATE connection SET connected_at = clock_timestamp(), failures = 0, last_error = NULL"
                " WHERE computer_id = %s",
                (self._id,),
            )

    @contextlib.contextmanager
    def _recording(self) -> Iterator[Cursor]:
        """A transaction in the holder's session; without the database no connection is made."""
        lease = self._lease
        if lease is None:
            raise TransportUnavailable(self._computer.label, "the connection was given up meanwhile")
        try:
            with database.transaction(lease.session) as cursor:
                yield cursor
        except DatabaseUnavailable as error:
            raise TransportUnavailable(
                self._computer.label, f"the database, which keeps count of connections: {error}"
            ) from error


def _clock(seconds: float) -> str:
    """The time of day in so many seconds, never too early: unlike them it stays right while it is read."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + seconds + 1.0))
