"""The file half of transports over SSH: a few SFTP sessions that threads take turns with."""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from grange.farm import sftp_files
from grange.farm.errors import SpoolUnwritable, TransportFailed, TransportUnavailable
from grange.farm.sftp import SftpSession
from grange.farm.transport import Entry

#: sshd lets 10 channels of one connection be open at once (MaxSessions): 8 for us, the rest for nobody.
SFTP_SESSIONS = 3
COMMANDS = 5
#: An answer to a single request takes longer only where the file system there hangs.
ANSWER_PATIENCE_S = 120.0


class SftpTransport:
    """What transports over SSH share. A subclass opens sessions, and runs commands.

    Errors, of all methods: those of a Transport; SpoolUnwritable when files cannot be written here.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._free: list[SftpSession] = []
        self._turns = threading.BoundedSemaphore(SFTP_SESSIONS)
        self._pool_lock = threading.Lock()
        self._home = ""

    @abstractmethod
    def _open_session(self) -> SftpSession:
        """A new SFTP session, on the connection that all share; made where there is none."""

    @abstractmethod
    def _is_current(self, session: SftpSession) -> bool:
        """Whether a session belongs to a connection that lives."""

    def _doubt(self) -> None:
        """A session was lost: see to the connection before the next use of it."""

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents), each whole or not at all: under a temporary name, then renamed."""
        if files:
            with self._session() as session:
                sftp_files.put(session, self._label, files, mode)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files, each whole or not at all, on our disk when this returns. Errors: RemoteMissing."""
        if files:
            with self._session() as session:
                try:
                    sftp_files.get(session, self._label, files)
                except OSError as error:
                    session.broken = True
                    raise SpoolUnwritable(
                        f"cannot write {error.filename or 'here'}, which comes from {self._label}: "
                        f"{error.strerror}"
                    ) from error

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        if not paths:
            return []
        with self._session() as session:
            return sftp_files.read(session, self._label, paths)

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        if not folders:
            return []
        with self._session() as session:
            return sftp_files.list_folders(session, self._label, folders)

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them; those that are there stay as they are."""
        if paths:
            with self._session() as session:
                sftp_files.make_folders(session, self._label, paths, mode)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them; what is not there is no error."""
        if paths:
            with self._session() as session:
                sftp_files.remove(session, self._label, paths)

    def home(self) -> str:
        """Our home folder there."""
        if not self._home:
            with self._session() as session:
                self._home = sftp_files.home(session, self._label)
        return self._home

    @contextmanager
    def _session(self) -> Iterator[SftpSession]:
        """A session for this thread alone; one whose answers are in doubt is not used again."""
        with self._turns:
            session = self._idle_session() or self._open_session()
            try:
                yield session
            except TransportUnavailable:
                session.broken = True
                self._doubt()
                raise
            except TransportFailed:
                raise
            except (struct.error, IndexError, KeyError, UnicodeError) as error:
                session.broken = True
                raise TransportUnavailable(
                    self._label, f"its SFTP server sends what is no SFTP ({error!r})"
                ) from error
            except BaseException:
                session.broken = True
                raise
            finally:
                if session.broken:
                    session.close()
                else:
                    with self._pool_lock:
                        self._free.append(session)

    def _idle_session(self) -> SftpSession | None:
        with self._pool_lock:
            while self._free:
                session = self._free.pop()
                if self._is_current(session):
                    return session
                session.close()
        return None

    def _close_sessions(self) -> None:
        with self._pool_lock:
            for session in self._free:
                session.close()
            self._free.clear()
