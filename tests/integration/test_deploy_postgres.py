"""What deploy/postgres says to a real server: settings, who may connect, the database of a profile."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg2
import pytest

from grange.core import database
from grange.core.postgres import Server, find_binaries, stop_server
from grange.core.profile import open_profile

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """The folder of an embedded server of its own: its settings are changed here."""
    home = Path(tempfile.mkdtemp(prefix="grange-deploy-"))
    folder = home / "postgres"
    with Server(folder):
        yield folder
    assert stop_server(folder, force=True)
    if (folder / "data").is_symlink():  # root without namespaces
        shutil.rmtree((folder / "data").readlink().parent)
    shutil.rmtree(home)


@pytest.fixture
def administrator(server: Path) -> Iterator[database.Connection]:
    connection = database.connect(Server(server).dsn("template1"))
    connection.autocommit = True
    yield connection
    connection.close()


def create(server: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{find_binaries()}:{os.environ['PATH']}",
        "PGHOST": str(server / "socket"),
        "PGUSER": "grange",
        "PGPASSFILE": str(server / "pgpass"),
    }
    command = ["sh", str(DEPLOY / "create-database.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def url(server: Path, role: str, name: str, passfile: Path) -> str:
    return f"postgresql://{role}@/{name}?host={quote(str(server / 'socket'))}&passfile={quote(str(passfile))}"


def test_every_setting_is_taken_by_the_server(administrator: database.Connection) -> None:
    lines = re.sub(r"^#(?=\w+ = )", "", (DEPLOY / "grange.conf").read_text("utf-8"), flags=re.MULTILINE)
    settings = dict(re.findall(r"^(\w+) = (.+)$", lines, re.MULTILINE))
    assert settings["synchronous_commit"] == "on"
    assert "ssl_min_protocol_version" in settings  # those that are to be uncommented, too
    with administrator.cursor() as cursor:
        for name, value in settings.items():
            if name == "ssl":  # the embedded build has no TLS
                continue
            value = value if value.startswith("'") else f"'{value}'"
            cursor.execute(f"ALTER SYSTEM SET {name} = {value}")
        cursor.execute("ALTER SYSTEM RESET ALL")


def test_every_line_of_pg_hba_is_understood(server: Path, administrator: database.Connection) -> None:
    rules = server / "data" / "pg_hba.conf"
    before = rules.read_text("utf-8")
    ours = re.sub(r"^#(?=hostssl)", "", (DEPLOY / "pg_hba.conf").read_text("utf-8"), flags=re.MULTILINE)
    rules.write_text(ours, "utf-8")
    try:
        with administrator.cursor() as cursor:
            cursor.execute("SELECT type, auth_method, error FROM pg_hba_file_rules")
            found = cursor.fetchall()
    finally:
        rules.write_text(before, "utf-8")
    # the embedded build has no TLS
    assert {error for kind, _, error in found if kind != "hostssl"} == {None}
    assert {kind: {row[1] for row in found if row[0] == kind} for kind in ("local", "host", "hostssl")} == {
        "local": {"peer", "scram-sha-256"},
        "host": {"scram-sha-256"},
        "hostssl": {"scram-sha-256"},
    }


def test_a_profile_uses_what_the_script_made(server: Path, tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    for _ in range(2):  # the second time changes nothing
        done = create(server, "ada", str(passfile))
        assert (done.returncode, done.stderr) == (0, "")
        assert passfile.read_text().split(":")[-1].strip() not in done.stdout
    assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
    home = tmp_path / "home"
    home.mkdir()
    (home / "profile.toml").write_text(f'database = "{url(server, "ada", "ada", passfile)}"\n')
    with open_profile(home) as profile, profile.transaction() as cursor:
        cursor.execute("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = 'ada'")
        assert cursor.fetchone() == (False,)
        cursor.execute("SELECT count(*) FROM process")
        assert cursor.fetchone() == (0,)


def test_the_collation_is_that_of_the_embedded_database(
    server: Path, administrator: database.Connection, tmp_path: Path
) -> None:
    assert create(server, "bea", str(tmp_path / "pgpass"), "bea_data").returncode == 0
    columns = "datcollate, datctype, datlocprovider, datlocale, pg_encoding_to_char(encoding)"
    with administrator.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT {columns} FROM pg_database WHERE datname IN ('grange', 'bea_data')")
        assert len(cursor.fetchall()) == 1


def test_nobody_else_enters(server: Path, tmp_path: Path) -> None:
    for role in ("cem", "dan"):
        assert create(server, role, str(tmp_path / role)).returncode == 0
    stranger = tmp_path / "stranger"
    stranger.write_text((tmp_path / "dan").read_text().replace(":dan:dan:", ":*:dan:"))
    stranger.chmod(0o600)
    psycopg2.connect(url(server, "dan", "dan", stranger)).close()
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(url(server, "dan", "cem", stranger))


def test_a_new_file_brings_a_new_password(server: Path, tmp_path: Path) -> None:
    passfile, old = tmp_path / "pgpass", tmp_path / "old"
    assert create(server, "eve", str(passfile)).returncode == 0
    passfile.rename(old)
    assert create(server, "eve", str(passfile)).returncode == 0
    assert passfile.read_text() != old.read_text()
    psycopg2.connect(url(server, "eve", "eve", passfile)).close()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(url(server, "eve", "eve", old))


@pytest.mark.parametrize("arguments", [(), ("ada",), ("Ada", "f"), ("ada", "f", "a;b"), ("postgres", "f")])
def test_bad_names_are_refused_before_anything_is_made(
    server: Path, tmp_path: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = create(server, *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_refused(server: Path, tmp_path: Path) -> None:
    passfile = tmp_path / "pgpass"
    passfile.write_text("db.example.org:5432:other:other:secret\n")
    done = create(server, "fay", str(passfile))
    assert done.returncode == 1
    assert "no line for the database fay and the role fay" in done.stderr
    assert "secret" not in done.stderr + done.stdout
