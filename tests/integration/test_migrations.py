"""The tables: made directly or by Alembic, the same; of another version, refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from grange.core import database, migrate
from grange.core.errors import DatabaseOutdated, ProfileInvalid
from grange.core.postgres import find_binaries
from grange.core.profile import open_profile


def dump(url: str) -> str:
    """The tables as pg_dump writes them, without what names the run."""
    done = subprocess.run(
        [find_binaries() / "pg_dump", "--schema-only", "--no-owner", url],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/"},
        check=True,
    )
    return "\n".join(line for line in done.stdout.splitlines() if not re.match(r"\\(un)?restrict ", line))


def execute(url: str, statement: str) -> None:
    connection = database.connect(url)
    with database.transaction(connection) as cursor:
        cursor.execute(statement)
    connection.close()


def ensure(url: str) -> None:
    connection = database.connect(url)
    try:
        migrate.ensure_tables(connection)
    finally:
        connection.close()


def test_alembic_and_the_direct_way_make_the_same(new_database: Callable[..., str]) -> None:
    direct, by_alembic = new_database("template0"), new_database("template0")
    ensure(direct)
    migrate.migrate(by_alembic)
    tables = dump(direct)
    assert "CREATE TABLE public.alembic_version" in tables
    assert "CREATE TRIGGER link_ends" in tables
    assert dump(by_alembic) == tables
    ensure(by_alembic)
    migrate.migrate(direct)
    assert dump(direct) == tables


def test_alembic_knows_the_same_revisions() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    script = ScriptDirectory.from_config(config)
    assert [revision.revision for revision in script.walk_revisions()][::-1] == migrate.revisions()


def test_opening_imports_no_alembic(tmp_path: Path, new_database: Callable[..., str]) -> None:
    (tmp_path / "profile.toml").write_text(f"database = '{new_database('template0')}'\n")
    code = (
        "import sys; from grange.core.profile import open_profile; open_profile(sys.argv[1]);"
        "print(sorted({'alembic', 'sqlalchemy', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("ways", [(ensure, ensure, ensure), (ensure, migrate.migrate)])
def test_two_that_open_an_empty_database_at_once(
    new_database: Callable[..., str], ways: tuple[Callable[[str], None], ...]
) -> None:
    url = new_database("template0")
    barrier = threading.Barrier(len(ways))
    errors: list[BaseException] = []

    def run(way: Callable[[str], None]) -> None:
        try:
            barrier.wait()
            way(url)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    ensure(url)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE alembic_version SET version_num = '9999_later'", "of 9999_later, .* install a newer grange"),
        ("DELETE FROM alembic_version", "of no version"),
    ],
)
def test_tables_of_another_version(tmp_path: Path, database_url: str, change: str, words: str) -> None:
    (tmp_path / "profile.toml").write_text(f"database = '{database_url}'\n")
    execute(database_url, change)
    with pytest.raises(DatabaseOutdated, match=words):
        open_profile(tmp_path)


def test_tables_of_an_older_version(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    known = migrate.revisions()
    monkeypatch.setattr(migrate, "revisions", lambda: [*known, "9999_later"])
    with pytest.raises(
        DatabaseOutdated, match=rf"has the tables of {known[-1]}, .* `grange database migrate`"
    ):
        ensure(database_url)


def test_tables_of_each_older_version_are_brought_up_to_date(
    monkeypatch: pytest.MonkeyPatch, new_database: Callable[..., str], database_url: str
) -> None:
    known = migrate.revisions()
    for count in range(1, len(known)):
        url = new_database("template0")
        with monkeypatch.context() as patched:
            patched.setattr(migrate, "revisions", lambda count=count: known[:count])
            ensure(url)
        with pytest.raises(DatabaseOutdated, match=f"of {known[count - 1]}, this grange needs {known[-1]}"):
            ensure(url)
        migrate.migrate(url)
        ensure(url)
        assert dump(url) == dump(database_url)


def test_alembic_on_tables_of_another_version(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '9999_later'")
    with pytest.raises(DatabaseOutdated, match="9999_later"):
        migrate.migrate(database_url)


def test_a_database_of_something_else(new_database: Callable[..., str]) -> None:
    url = new_database("template0")
    execute(url, "CREATE TABLE theirs ()")
    with pytest.raises(ProfileInvalid, match=r"holds tables of something else \(theirs\)"):
        ensure(url)


def test_nothing_is_left_of_tables_that_failed(
    monkeypatch: pytest.MonkeyPatch, new_database: Callable[..., str]
) -> None:
    url = new_database("template0")
    monkeypatch.setattr(migrate, "revision_sql", lambda _: "CREATE TABLE node (); SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        ensure(url)
    monkeypatch.undo()
    ensure(url)
