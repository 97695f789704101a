"""The embedded server: started, reused and stopped, whatever is killed and whoever runs it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from grange.core import keeper, postgres
from grange.core.errors import DatabaseUnavailable
from grange.core.postgres import Server, find_binaries, server_status, stop_server
from grange.core.postgres_account import account_of

OPEN = "import sys; from grange.core.profile import open_profile; profile = open_profile(sys.argv[1]);"


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path, so that the socket lies in it; the server is stopped at the end."""
    folder = Path(tempfile.mkdtemp(prefix="grange-pg-"))
    yield folder
    assert stop_server(folder / "postgres", force=True)
    if (folder / "postgres" / "data").is_symlink():
        shutil.rmtree((folder / "postgres" / "data").readlink().parent, ignore_errors=True)
    shutil.rmtree(folder)


@pytest.fixture
def folder(home: Path) -> Path:
    return home / "postgres"


def run(code: str, *arguments: object, before: tuple[str, ...] = ()) -> str:
    """Run Python in a process of its own."""
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start Python in a process of its own; wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    process.send_signal(number)
    process.communicate()


def pid_of(folder: Path) -> int:
    pid = server_status(folder).pid
    assert pid is not None
    return pid


def wait_until_stopped(folder: Path, seconds: float) -> float:
    began = time.monotonic()
    while server_status(folder).running:
        assert time.monotonic() - began < seconds, "the server goes on"
        time.sleep(0.02)
    return time.monotonic() - began


def answer(server: Server, database: str = "postgres") -> int:
    connection = psycopg2.connect(server.dsn(database))
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 42")
            return int((cursor.fetchone() or (0,))[0])
    finally:
        connection.close()


def keepers_of(folder: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(keeper.__file__) in words and os.fsencode(folder) in words:
                found.append(int(entry.name))
    return found


def test_started_reused_stopped(folder: Path) -> None:
    assert not server_status(folder).running
    with Server(folder) as server:
        assert answer(server) == 42
        first = pid_of(folder)
        with Server(folder):
            assert pid_of(folder) == first
    assert server_status(folder).running
    assert stop_server(folder)
    assert not server_status(folder).running
    assert stop_server(folder)
    with Server(folder) as server:
        assert answer(server) == 42
        assert pid_of(folder) != first


def test_not_stopped_while_in_use(folder: Path) -> None:
    with Server(folder) as server:
        assert not stop_server(folder)
        assert answer(server) == 42
        assert stop_server(folder, force=True)
        assert not server_status(folder).running


def test_a_server_that_does_not_end_in_order_is_ended_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(folder)
    server.hold()
    pid = pid_of(folder)
    helpers = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    checkpointer = next(
        child for child in helpers if b"checkpointer" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    os.kill(checkpointer, signal.SIGSTOP)
    monkeypatch.setattr(postgres, "PATIENCE_S", 6.5)
    assert stop_server(folder, force=True)
    assert not server_status(folder).running
    server.ensure_running()
    assert answer(server) == 42
    server.release()


def test_only_the_owner_may_come_in(folder: Path) -> None:
    with Server(folder) as server:
        for name, mode in (("", 0o700), ("socket", 0o700), ("data", 0o700), ("pgpass", 0o600)):
            found = (folder / name).stat()
            assert stat.S_IMODE(found.st_mode) == mode, name
            servers = name in ("socket", "data")
            assert found.st_uid == (account_of(folder / "data").uid if servers else os.geteuid())
        password = (folder / "pgpass").read_text().strip().rpartition(":")[2]
        assert len(password) >= 40
        for wrong in ("wrong", ""):
            with pytest.raises(psycopg2.OperationalError, match="password"):
                psycopg2.connect(server.dsn().replace("passfile=", "application_name="), password=wrong)
        with pytest.raises(psycopg2.OperationalError, match="password authentication"):
            psycopg2.connect(server.dsn(), user="postgres", password="wrong")
        connection = psycopg2.connect(server.dsn("postgres"))
        with connection.cursor() as cursor:
            for setting, value in (
                ("listen_addresses", ""),
                ("fsync", "on"),
                ("synchronous_commit", "on"),
                ("jit", "off"),
            ):
                cursor.execute(f"SHOW {setting}")
                assert cursor.fetchone() == (value,)
            cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'grange'")
            assert (cursor.fetchone() or ("",))[0].startswith("SCRAM-SHA-256$")
        connection.close()
        assert listening_ports(pid_of(folder)) == []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    assert password.encode() not in (process / "cmdline").read_bytes()
                except OSError:
                    continue
        assert password not in server_status(folder).log.read_text()


def listening_ports(pid: int) -> list[str]:
    """Lines of /proc/net/tcp and tcp6 of listening sockets that a process holds."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(descriptor)
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    assert inodes, "it holds its Unix socket at least"
    found = []
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        found += [line for line in lines if line.split()[9] in inodes]
    return found


def test_a_long_path_gets_a_short_private_socket_folder(home: Path) -> None:
    folder = home / ("long" * 25) / "postgres"
    folder.parent.mkdir()
    with Server(folder) as server:
        place = Path(os.readlink(folder / "socket"))
        assert len(str(place)) < 80
        found = place.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o700
        assert found.st_uid == account_of(folder / "data").uid
        assert answer(server) == 42
        # Others that start it agree on the place, wherever they would put it themselves.
        run(
            "import os, sys; os.environ['XDG_RUNTIME_DIR'] = '/nowhere'; from pathlib import Path;"
            "from grange.core.postgres import Server; Server(Path(sys.argv[1])).hold()",
            folder,
        )
        assert Path(os.readlink(folder / "socket")) == place
    assert stop_server(folder)
    assert not place.exists()


def test_a_stranger_in_the_place_of_the_short_folder_is_not_trusted(home: Path) -> None:
    folder = home / ("long" * 25) / "postgres"
    folder.parent.mkdir()
    with Server(folder) as server:
        place = Path(os.readlink(folder / "socket"))
        place.chmod(0o755)
        with pytest.raises(DatabaseUnavailable, match="is gone or not ours"):
            server.ensure_running()
    place.chmod(0o700)
    assert stop_server(folder)


def test_the_owner_is_killed_and_the_server_reused(home: Path, folder: Path) -> None:
    process = start(OPEN + "print('ready', flush=True); import time; time.sleep(60)", home)
    pid = pid_of(folder)
    end(process)
    assert server_status(folder).running
    with Server(folder) as server:
        assert answer(server, "grange") == 42
        assert pid_of(folder) == pid


def test_the_head_of_the_server_is_killed_and_it_starts_again(folder: Path) -> None:
    with Server(folder) as server:
        connection = psycopg2.connect(server.dsn("postgres"))
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT 1 AS a")
        os.kill(pid_of(folder), signal.SIGKILL)
        wait_until_stopped(folder, 5)
        server.ensure_running()
        connection.close()
        connection = psycopg2.connect(server.dsn("postgres"))
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT a FROM kept")
            assert cursor.fetchone() == (1,)
        connection.close()


def test_a_busy_process_of_a_killed_server_does_not_block_the_next_start(folder: Path) -> None:
    with Server(folder) as server:
        process = start(
            "import sys, psycopg2; connection = psycopg2.connect(sys.argv[1]); print('ready', flush=True);"
            "connection.cursor().execute('SELECT count(*) FROM generate_series(1, 1000000000)')",
            server.dsn("postgres"),
        )
        time.sleep(0.3)
        os.kill(pid_of(folder), signal.SIGKILL)
        wait_until_stopped(folder, 5)
        server.ensure_running()
        assert answer(server) == 42
        end(process)


def test_marks_of_a_server_that_is_gone(folder: Path) -> None:
    """After a reboot the pid in postmaster.pid can be anybody's, as here: ours."""
    with Server(folder):
        socket = (folder / "socket").resolve()
    text = (folder / "data" / "postmaster.pid").read_text()
    assert stop_server(folder)
    lines = text.split("\n")
    lines[0] = str(os.getpid())
    (folder / "data" / "postmaster.pid").write_text("\n".join(lines))
    socket.mkdir(exist_ok=True)
    (socket / ".s.PGSQL.5432").touch()
    (socket / ".s.PGSQL.5432.lock").write_text("\n".join(lines))
    assert not server_status(folder).running
    with Server(folder) as server:
        assert answer(server) == 42


def test_removed_while_it_ran_and_made_anew(folder: Path) -> None:
    """The old server would remove the new one's socket when it ends, the old keeper stop the new server."""
    with Server(folder):
        old, keepers = pid_of(folder), keepers_of(folder)
        place = (folder / "data").resolve()
    shutil.rmtree(place)
    shutil.rmtree(folder)
    with Server(folder, idle_s=8.0) as server:
        with pytest.raises(OSError, match="No such file"):
            os.readlink(f"/proc/{old}/exe")  # it has ended, if it is not reaped
        deadline = time.monotonic() + 15
        while set(keepers) & set(keepers_of(folder)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert keepers_of(folder), "the new one has a keeper of its own"
        assert answer(server) == 42


def test_killed_while_the_database_was_made(home: Path, folder: Path) -> None:
    """The whole group is killed at several moments, then only the one that started it."""
    code = (
        "import sys; from pathlib import Path; from grange.core.postgres import Server;"
        "print('ready', flush=True); Server(Path(sys.argv[1])).hold()"
    )
    for wait_s, group in ((0.1, True), (0.3, True), (0.2, False)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait_s)
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.communicate()
    assert not (folder / "data").exists(), "made too quickly to be killed: shorten the waits"
    with Server(folder) as server:
        assert answer(server) == 42
    assert not (folder / "data.new").exists()
    assert not (folder / "password.new").exists()


def test_eight_start_it_at_once(home: Path, folder: Path) -> None:
    code = OPEN + "profile.connection; print(profile.server and 1, profile.user_id)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (output, errors, process.returncode) == ("1 1\n", "", 0)
    assert server_status(folder).running
    assert len(keepers_of(folder)) == 1


def test_an_idle_server_is_stopped_and_one_in_use_is_not(folder: Path) -> None:
    with Server(folder, idle_s=1):
        time.sleep(1.6)
        assert server_status(folder).running
    assert wait_until_stopped(folder, 10) > 0.5
    deadline = time.monotonic() + 5
    while keepers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert keepers_of(folder) == []
    with Server(folder, idle_s=1) as server:
        assert answer(server) == 42


def test_a_server_whose_owner_was_killed_is_stopped_when_idle(home: Path, folder: Path) -> None:
    (home / "profile.toml").write_text("idle_s = 1\n")
    process = start(OPEN + "print('ready', flush=True); import time; time.sleep(60)", home)
    end(process)
    wait_until_stopped(folder, 10)


def test_a_killed_keeper_is_replaced(folder: Path) -> None:
    with Server(folder, idle_s=60):
        pass
    deadline = time.monotonic() + 5
    while not (keepers := keepers_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in keepers:
        os.kill(pid, signal.SIGKILL)
    while keepers_of(folder):
        time.sleep(0.01)
    with Server(folder, idle_s=1):
        pass
    wait_until_stopped(folder, 10)


def test_the_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * (keeper.LOG_LIMIT + 1))
    keeper._bound_log(str(log))
    assert log.stat().st_size == 0
    assert (tmp_path / "server.log.1").stat().st_size == keeper.LOG_LIMIT + 1
    log.write_bytes(b"y")
    keeper._bound_log(str(log))
    assert log.read_bytes() == b"y"


def test_a_lost_password_file(folder: Path) -> None:
    with Server(folder):
        pass
    assert stop_server(folder)
    (folder / "pgpass").unlink()
    with pytest.raises(DatabaseUnavailable, match="pgpass is gone"):
        Server(folder).hold()


def test_programs_of_another_version(folder: Path) -> None:
    with Server(folder):
        pass
    assert stop_server(folder)
    version = folder / "data" / "PG_VERSION"
    made_by = version.read_text()
    version.write_text("12\n")
    with pytest.raises(DatabaseUnavailable, match=r"was made by PostgreSQL 12, .*\n?.*pg_upgrade"):
        Server(folder).hold()
    version.write_text(made_by)


def test_programs_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match=r"none/postgres"):
        Server(folder, binaries=tmp_path / "none").hold()


def test_a_folder_that_others_own_or_enter(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with Server(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


NAMESPACE = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode == 0
SHOW = OPEN + "import os; print(os.geteuid(), profile.user_id, profile.server.folder)"


@pytest.mark.skipif(not NAMESPACE, reason="user namespaces are refused here")
@pytest.mark.parametrize("uid", [65534, 12345], ids=["with a name", "without a name"])
def test_as_an_ordinary_user(home: Path, folder: Path, uid: int) -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(12345)
    (home / "profile.toml").write_text("email = 'a@b'\n")
    shown = run(SHOW, home, before=("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", "--"))
    assert shown == f"{uid} 1 {folder}\n"
    assert server_status(folder).running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
@pytest.mark.skipif(not NAMESPACE, reason="refused here already: every test runs so")
def test_as_root_where_namespaces_are_refused(home: Path, folder: Path) -> None:
    """In a namespace of all our uids, in which no further namespace may be made."""
    # As under /root: a folder that nobody may not enter, so that the programs must be copied.
    package = find_binaries().parents[1]
    private = home / "private"
    private.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, private / name, symlinks=True)
    binaries = private / package.name / "pginstall" / "bin"
    (home / "profile.toml").write_text(f"email = 'a@b'\npostgres_bin = '{binaries}'\n")
    process = subprocess.Popen(
        [
            *("unshare", "--user", "--", "sh", "-c"),
            # Root's powers in the namespace come with the first program started after it has its uids.
            'read go; exec sh -c "$0" "$@"',
            'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@"',
            *(sys.executable, "-c", SHOW, str(home)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
        time.sleep(0.01)
    for table in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{table}").write_text("0 0 65536\n")
    shown, _ = process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert shown == f"0 1 {folder}\n"
    place = Path(os.readlink(folder / "data")).parent
    assert place.parent == Path("/var/lib")
    for path in (place, place / "socket", place / "data"):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o700, 65534)
    assert (folder / "pgpass").stat().st_uid == 0
    assert Path(f"/proc/{pid_of(folder)}").stat().st_uid == 65534
    programs = Path(os.readlink(f"/proc/{pid_of(folder)}/exe")).parents[3]
    assert programs.name.startswith("grange-programs-")
    assert programs.stat().st_uid == 0
    assert not (place / "password.new").exists()
    with Server(folder, binaries=binaries) as server:
        assert answer(server, "grange") == 42
    assert stop_server(folder, binaries=binaries)
    shutil.rmtree(place)
    shutil.rmtree(programs)
