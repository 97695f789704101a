"""Fixtures for everyone: a session's PostgreSQL, cluster, object store; a database and home for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import object_store as object_stores
import pytest
from cluster import Cluster, start_for_tests

from grange.core import database
from grange.core.postgres import Server, stop_server
from grange.core.profile import Profile, open_profile

# Tables are as wide as they like in a pipe: how wide somebody's terminal is, or that of pytest-xdist, is
# nothing to the tests.
os.environ.pop("COLUMNS", None)
# What a shell starts in the background ignores Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# They assert for tests: what they found is to be told.
pytest.register_assert_rewrite("fault_campaign", "fault_site")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """HyperQueue's open server is confined to a network namespace, or not started: skip what needs one."""
    ours = [item for item in items if "hyperqueue" in item.keywords or "[hyperqueue" in item.name]
    if ours and not _namespaces():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="network namespaces are refused here"))


def _namespaces() -> bool:
    return any(
        subprocess.run(["unshare", flags, "true"], capture_output=True, check=False).returncode == 0
        for flags in ("-n", "-rn")
    )


@pytest.fixture(scope="session")
def postgres_home() -> Iterator[Path]:
    """A home with a running embedded server; its database `grange` has the tables and no session."""
    home = Path(tempfile.mkdtemp(prefix="grange-test-"))
    (home / "profile.toml").write_text("idle_s = 60\n")
    with open_profile(home) as profile:
        connection = profile.connection
        connection.autocommit = True
        with connection.cursor() as cursor:
            # Tests of crashes have servers of their own; this one need not wait for the disk.
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                cursor.execute(f"ALTER SYSTEM SET {setting} = off")
            cursor.execute("SELECT pg_reload_conf()")
        with Server(home / "postgres"):
            profile.close()
            yield home
    assert stop_server(home / "postgres", force=True)
    data = home / "postgres" / "data"
    if data.is_symlink():  # root without namespaces
        shutil.rmtree(data.readlink().parent)
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def _administrator(postgres_home: Path) -> Iterator[database.Connection]:
    connection = database.connect(Server(postgres_home / "postgres").dsn("template1"))
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def _names() -> Iterator[str]:
    return (f"test_{number}" for number in itertools.count(1))


@pytest.fixture(scope="session")
def _left_over() -> list[str]:
    """Databases of tests that have ended. Dropping one at once would wait for its last session to end."""
    return []


@pytest.fixture
def new_database(
    postgres_home: Path, _administrator: database.Connection, _names: Iterator[str], _left_over: list[str]
) -> Iterator[Callable[..., str]]:
    """Makes databases that vanish after the test: new_database(template="grange") → URL.

    "grange" is one with the tables, "template0" an empty one.
    """
    made = []

    def make(template: str = "grange") -> str:
        name = next(_names)
        with _administrator.cursor() as cursor:
            while _left_over:
                cursor.execute(f"DROP DATABASE {_left_over.pop()} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        made.append(name)
        server = postgres_home / "postgres"
        place, password_file = (quote(str(server / part)) for part in ("socket", "pgpass"))
        return f"postgresql://grange@/{name}?host={place}&passfile={password_file}"

    yield make
    _left_over.extend(made)


@pytest.fixture
def database_url(new_database: Callable[..., str]) -> str:
    """The URL of a fresh database with the tables."""
    return new_database()


@pytest.fixture
def profile(tmp_path: Path, database_url: str) -> Iterator[Profile]:
    """An open profile of a home and a database of its own."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "profile.toml").write_text(f'database = "{database_url}"\n')
    with open_profile(home) as opened:
        yield opened


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real sshd and Slurm with four nodes of four CPUs, for all tests of the session."""
    running = start_for_tests()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def object_store() -> Iterator[object_stores.ObjectStore]:
    """A real S3 server, for all tests of the session and all workers of pytest-xdist."""
    with object_stores.shared(os.environ.get("PYTEST_XDIST_TESTRUNUID", "")) as running:
        yield running


@pytest.fixture
def new_bucket(object_store: object_stores.ObjectStore) -> Callable[[], str]:
    """Makes buckets that nobody else has: new_bucket() → its name."""
    return object_store.new_bucket


@pytest.fixture
def bucket(new_bucket: Callable[[], str]) -> str:
    """A bucket of this test's own."""
    return new_bucket()


@pytest.fixture
def bucket_profile(
    tmp_path: Path, database_url: str, object_store: object_stores.ObjectStore, bucket: str
) -> Iterator[Profile]:
    """An open profile whose files are in a bucket of its own."""
    home = tmp_path / "bucket-home"
    home.mkdir()
    table = [f"{key} = {value!r}" for key, value in object_store.settings(bucket).to_table().items()]
    (home / "profile.toml").write_text(
        "\n".join([f'database = "{database_url}"', "cache_gb = 0.1", "[store]", *table, ""])
    )
    with open_profile(home) as opened:
        yield opened
