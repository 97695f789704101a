"""The local transport: this machine's programs and files, as another computer's are reached."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from grange.farm.errors import (
    CommandTimedOut,
    RemoteFull,
    RemoteMissing,
    TransportFailed,
    TransportUnavailable,
)
from grange.farm.transport import Completed, Entry
from grange.farm.whole_file import WholeFile, sync_folders

_NOT_OURS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMLINK}
)
_PASSING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class LocalTransport:
    """A Transport to this machine: programs are started, files are copied.

    label: the computer's, for messages.
    """

    def __init__(self, label: str = "localhost") -> None:
        self._label = label

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program and wait for its end. Errors: TransportUnavailable when it takes too long.

        As in a shell, a program that is not there ends with 127, and one that a signal ended with 128 and
        its number.
        """
        if cwd is not None and not os.path.isdir(cwd):
            return Completed(1, b"", f"cd: {cwd}: there is no such folder\n".encode())
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=cwd,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            return Completed(127, b"", f"{argv[0]}: not found\n".encode())
        except PermissionError:
            # Also said where a folder on PATH may not be entered, which shells do not mind.
            if shutil.which(argv[0]) is None and "/" not in argv[0]:
                return Completed(127, b"", f"{argv[0]}: not found\n".encode())
            return Completed(126, b"", f"{argv[0]}: may not be run\n".encode())
        except OSError as error:
            raise TransportUnavailable(self._label, f"could not start {argv[0]}: {error.strerror}") from error
        with process:
            try:
                stdout, stderr = process.communicate(stdin or None, timeout_s)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CommandTimedOut(
                        self._label, f"{argv[0]} did not end within {timeout_s:g} s and was killed"
                    ) from None
                raise
        status = process.returncode
        return Completed(status if status >= 0 else 128 - status, stdout, stderr)

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Copy files (or write contents), each whole or not at all."""
        folders = set()
        for source, path in files:
            target = Path(path)
            # What cannot be read here is the caller's mistake, and comes out as it is.
            with open(source, "rb") if isinstance(source, Path) else contextlib.nullcontext() as opened:
                with self._said("write", path):
                    file = self._new(target, mode)
                    try:
                        if opened is None:
                            assert isinstance(source, bytes)
                            file.write_at(source, 0)
                        else:
                            file.copy_from(opened.fileno())
                        file.commit()
                    finally:
                        file.abandon()
            folders.add(target.parent)
        sync_folders(folders)

    def _new(self, target: Path, mode: int) -> WholeFile:
        try:
            return WholeFile(target, mode)
        except FileNotFoundError:
            os.makedirs(target.parent, mode=0o700, exist_ok=True)
            return WholeFile(target, mode)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Copy files, each whole or not at all, on the disk when this returns. Errors: RemoteMissing."""
        folders = set()
        for path, target in files:
            with self._said("read", path):
                source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                with self._said("read", path):
                    if stat.S_ISDIR(os.fstat(source).st_mode):
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                target.parent.mkdir(parents=True, exist_ok=True)
                file = WholeFile(target)
                try:
                    file.copy_from(source)
                    file.commit()
                finally:
                    file.abandon()
            finally:
                os.close(source)
            folders.add(target.parent)
        sync_folders(folders)

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        contents: list[bytes | None] = []
        for path in paths:
            with self._said("read", path):
                try:
                    contents.append(Path(path).read_bytes())
                except (FileNotFoundError, NotADirectoryError):
                    contents.append(None)
        return contents

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        found: list[list[Entry] | None] = []
        for folder in folders:
            with self._said("list", folder):
                try:
                    found.append(_entries(folder))
                except FileNotFoundError:
                    found.append(None)
        return found

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them; those that are there stay as they are."""
        for path in paths:
            with self._said("make", path):
                if os.path.isdir(path):
                    continue
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path, mode)
                    os.chmod(path, mode)
                if not os.path.isdir(path):
                    raise NotADirectoryError(errno.ENOTDIR, "there is a file in its place")

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them; what is not there is no error."""
        for path in paths:
            with self._said("remove", path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)

    def home(self) -> str:
        """Our home folder."""
        return str(Path.home())

    def close(self) -> None:
        """Nothing is open."""

    @contextlib.contextmanager
    def _said(self, action: str, path: str) -> Iterator[None]:
        """Let what the operating system refuses out in the words of transports."""
        try:
            yield
        except OSError as error:
            reason = f"cannot {action} {path}: {error.strerror or error}"
            if action == "read" and error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise RemoteMissing(self._label, reason) from error
            if action not in ("read", "list") and error.errno in _NOT_OURS:
                raise RemoteFull(
                    self._label, f"{reason}; make room, or have it written by its owner"
                ) from error
            if error.errno in _PASSING:
                raise TransportUnavailable(self._label, reason) from error
            raise TransportFailed(self._label, reason) from error


def _entries(folder: str) -> list[Entry]:
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            try:
                status = entry.stat()
            except OSError:
                try:
                    status = entry.stat(follow_symlinks=False)  # a link to nothing
                except OSError:
                    continue  # gone meanwhile
            is_folder = stat.S_ISDIR(status.st_mode)
            entries.append(Entry(entry.name, status.st_size, status.st_mtime, is_folder, entry.is_symlink()))
    return sorted(entries, key=lambda entry: entry.name)
