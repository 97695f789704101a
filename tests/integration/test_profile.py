"""The profile: made on first use, found again, refused with a reason; and what it hands out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grange.core import database
from grange.core.errors import CampaignBusy, DatabaseUnavailable, ProfileInvalid
from grange.core.postgres import Server, stop_server
from grange.core.profile import Profile, embedded_status, home_folder, open_profile
from grange.core.worker import WORKER_LOCK, lock_campaign, unlock_campaign


def test_first_use_makes_everything_and_the_second_finds_it(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    assert embedded_status(home) is None
    try:
        with open_profile(home) as profile:
            assert oct(home.stat().st_mode)[-3:] == "700"
            assert profile.user_id == 1
            assert profile.config.database == "embedded"
            assert 'database = "embedded"' in (home / "profile.toml").read_text()
            info = profile.describe_database()
            assert (info.kind, info.name, info.user, info.sessions) == ("embedded", "grange", "grange", 1)
            assert profile.repository is profile.repository
            assert profile.spool == home / "spool"
            assert oct(profile.spool.stat().st_mode)[-3:] == "700"
        status = embedded_status(home)
        assert status is not None
        assert status.running
        with open_profile(home) as profile:
            assert profile.user_id == 1
    finally:
        assert stop_server(home / "postgres", force=True)


def test_the_template_explains_every_key_and_reads_as_the_defaults(tmp_path: Path) -> None:
    from grange.core.profile_file import ProfileFile, read_profile_file

    written = read_profile_file(tmp_path / "profile.toml")
    assert written == ProfileFile(email=written.email)
    assert "@" in written.email
    (tmp_path / "profile.toml").write_text("")
    assert read_profile_file(tmp_path / "profile.toml") == written
    assert [path.name for path in tmp_path.iterdir()] == ["profile.toml"]


def test_grange_home_and_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRANGE_HOME", str(tmp_path / "a"))
    assert home_folder() == tmp_path / "a"
    assert home_folder(tmp_path / "b") == tmp_path / "b"
    monkeypatch.setenv("GRANGE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_folder() == tmp_path / ".grange"
    assert home_folder("~/c") == tmp_path / "c"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("datebase = 'embedded'", "unknown key datebase; did you mean database?"),
        ("caching = false", "expected a table [caching]"),
        ("[caching]\nenable = []", "unknown key enable; known are default, enabled, disabled"),
        ("[caching]\ndefault = 'no'", "default = 'no': expected true or false"),
        ("[caching]\nenabled = 'x'", "enabled = 'x': expected a list, each a process type"),
        ("[caching]\ndisabled = [1]", "disabled = [1]: expected a list"),
        ("[caching]\nenabled = ['a.*']\ndisabled = ['a.*']", "'a.*' is both in enabled and in disabled"),
        ("zzz = 1", "unknown key zzz; known are email, database"),
        ("slots = -1", "slots = -1: expected a whole number from 0"),
        ("slots = true", "slots = True: expected a whole number"),
        ("idle_s = 'x'", "idle_s = 'x': expected seconds"),
        ("idle_s = nan", "idle_s = nan: expected seconds"),
        ("email = ''", "email = '': expected"),
        ("store = 3", "store = 3: expected a folder"),
        ("database = 'mysql://a/b'", 'expected "embedded" or postgresql://'),
        ("database = 'postgresql://[a/b'", "database is not a URL"),
        ("database = ", "is not TOML"),
    ],
)
def test_a_profile_file_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "profile.toml").write_text(text + "\n")
    with pytest.raises(ProfileInvalid) as caught:
        open_profile(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path / "profile.toml") in str(caught.value)
    assert not (tmp_path / "postgres").exists()


@pytest.mark.parametrize(
    "url",
    ["postgresql://a:s3cret@h/d", "postgresql://a@h/d?password=s3cret", "postgres://a@h/d?pass%77ord=s3cret"],
)
def test_a_password_in_the_profile_file_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    (tmp_path / "profile.toml").write_text(f"database = '{url}'\n")
    with pytest.raises(ProfileInvalid, match="holds a password") as caught:
        open_profile(tmp_path)
    assert "s3cret" not in str(caught.value)


def test_a_profile_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileInvalid, match="not text in UTF-8"):
        open_profile(tmp_path)


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "postgres").touch()
    for home, blocked in (("file", "file"), ("file/below", "file"), ("home", "home/postgres")):
        with pytest.raises(ProfileInvalid, match="a file in the place of a folder") as caught:
            open_profile(tmp_path / home)
        assert str(tmp_path / blocked) in str(caught.value)


def test_a_home_that_everyone_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ProfileInvalid, match="can be written by everyone"):
        open_profile(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_somebody_else(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(ProfileInvalid, match="belongs to another user"):
        open_profile(tmp_path)


MOUNTS = ("unshare", "--user", "--map-root-user", "--mount", "--")
MAY_MOUNT = subprocess.run([*MOUNTS, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not MAY_MOUNT, reason="user namespaces are refused here")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ro", "Read-only file system"),
        ("size=4k,nr_inodes=2", "No space left on device"),
        ("size=20m", "no space for a database"),
    ],
)
def test_a_home_that_is_full_or_read_only(tmp_path: Path, options: str, words: str) -> None:
    code = (
        "import sys; from grange.core.profile import open_profile\n"
        "from grange.core.errors import ProfileInvalid\n"
        "try: open_profile(sys.argv[1])\n"
        "except ProfileInvalid as error: print(error)"
    )
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@" "$0/home"'
    done = subprocess.run(
        [*MOUNTS, "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code],
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert words in done.stdout
    assert str(tmp_path) in done.stdout


def test_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_text(f"database = 'postgresql://a@/b?host={tmp_path}'\n")
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        open_profile(tmp_path)


def test_a_given_url(profile: Profile, database_url: str) -> None:
    """The fixture's profile is one of a PostgreSQL URL."""
    assert profile.config.database == database_url == profile.dsn
    assert profile.server is None
    assert not (profile.home / "postgres").exists()
    info = profile.describe_database()
    assert info.kind == "server"
    assert info.name in database_url


def test_transactions(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute("INSERT INTO \"user\" (email) VALUES ('kept')")
        with pytest.raises(RuntimeError, match="not nested"), profile.transaction():
            pass

    def fail() -> None:
        with profile.transaction() as cursor:
            cursor.execute("INSERT INTO \"user\" (email) VALUES ('lost')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with profile.transaction() as cursor:
        cursor.execute("SELECT email FROM \"user\" WHERE email IN ('kept', 'lost')")
        assert cursor.fetchall() == [("kept",)]


def test_a_lost_connection(profile: Profile) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"), profile.transaction() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with profile.transaction() as cursor:  # another one is made
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_closed(profile: Profile) -> None:
    profile.close()
    with pytest.raises(DatabaseUnavailable, match="is closed"):
        _ = profile.connection
    profile.close()


def test_a_forked_child_leaves_the_session_to_its_parent(profile: Profile) -> None:
    child = os.fork()
    if child == 0:
        profile.close()
        os._exit(0)
    os.waitpid(child, 0)
    with profile.transaction() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


# ---------------------------------------------------------------- workers and campaigns


def living(profile: Profile) -> set[int]:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT objid::integer FROM pg_locks"
            " WHERE locktype = 'advisory' AND classid::bigint = %s AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            (WORKER_LOCK,),
        )
        return {worker_id for (worker_id,) in cursor.fetchall()}


WORK = (
    "import sys, time; from grange.core.profile import open_profile;"
    "from grange.core.worker import lock_campaign;"
    "profile = open_profile(sys.argv[1]); profile.worker_id; lock_campaign(profile.connection, 7);"
    "print(profile.worker_id, flush=True); time.sleep(60)"
)


def test_a_killed_worker_is_dead_and_its_campaign_free(profile: Profile) -> None:
    own = profile.worker_id
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(profile.home)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    other = int(process.stdout.readline())
    assert own != other
    assert living(profile) == {own, other}
    with pytest.raises(CampaignBusy, match=rf"campaign 7 is being run by process {process.pid} on "):
        lock_campaign(profile.connection, 7, wait_s=0.1)
    process.kill()
    process.communicate()
    lock_campaign(profile.connection, 7)
    assert living(profile) == {own}
    unlock_campaign(profile.connection, 7)
    with profile.connect() as further:
        lock_campaign(further, 7, wait_s=0)
    further.close()


def test_a_holder_that_is_no_worker(profile: Profile) -> None:
    further = profile.connect()
    lock_campaign(further, 1)
    lock_campaign(further, 2)
    with pytest.raises(CampaignBusy, match=f"the database session {further.info.backend_pid}"):
        lock_campaign(profile.connection, 1, wait_s=0)
    further.close()
    began = time.monotonic()
    lock_campaign(profile.connection, 1)
    assert time.monotonic() - began < 1.5


def test_a_server_that_ended_meanwhile_is_started_again(tmp_path: Path) -> None:
    try:
        with open_profile(tmp_path):
            assert stop_server(tmp_path / "postgres", force=True)
            with open_profile(tmp_path) as profile:
                assert profile.user_id == 1
    finally:
        assert stop_server(tmp_path / "postgres", force=True)


def test_the_dsn_names_the_password_file_only(postgres_home: Path) -> None:
    server = Server(postgres_home / "postgres")
    password = (postgres_home / "postgres" / "pgpass").read_text().strip().rpartition(":")[2]
    assert password not in server.dsn()
    database.connect(server.dsn("template1")).close()
