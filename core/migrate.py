"""The tables: made in a new database, checked in an old one, brought up to date when asked.

A migration is a plain SQL file with a thin Alembic revision beside it. A new database runs the SQL files
directly, because importing Alembic takes longer than everything else at first contact; a test holds
both ways to the same tables.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from psycopg2 import errors as driver

from grange.core.database import Connection, Cursor, connect, transaction, translated
from grange.core.errors import DatabaseOutdated, ProfileInvalid

#: Of the advisory lock that is held while tables are made.
MIGRATION_LOCK = 0x6772616E6765


def revisions() -> list[str]:
    """The names of all revisions, oldest first."""
    folder = resources.files("grange.core.migrations.versions")
    return sorted(
        entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql")
    )


def revision_sql(revision: str) -> str:
    """The SQL of one revision."""
    return resources.files("grange.core.migrations.versions").joinpath(f"{revision}.sql").read_text("utf-8")


def ensure_tables(connection: Connection) -> None:
    """Make the tables in an empty database; in another, see with one query that they are of this version.

    Errors: DatabaseOutdated, ProfileInvalid when the database holds something else.
    """
    found = _stamp(connection)
    if found is None:
        with transaction(connection) as cursor:
            _make_tables(cursor)
        return
    newest = revisions()[-1]
    if found == newest:
        return
    if found in revisions():
        raise DatabaseOutdated(
            f"the database has the tables of {found}, this grange needs {newest}: make a backup, then run "
            "`grange database migrate`"
        )
    raise DatabaseOutdated(
        f"the database has the tables of {found or 'no version'}, which this grange does not know "
        f"(its newest is {newest}): install a newer grange"
    )


def _stamp(connection: Connection) -> str | None:
    """The revision that the database says it has; None without tables of grange."""
    with translated():
        try:
            with transaction(connection) as cursor:
                cursor.execute("SELECT version_num FROM alembic_version")
                row = cursor.fetchone()
                return row[0] if row else ""
        except driver.UndefinedTable:
            return None


def _make_tables(cursor: Cursor) -> None:
    # Held until the commit: of two that open an empty database at once, the second finds the tables.
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
    cursor.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')"
        " AND relnamespace = current_schema()::regnamespace"
        " ORDER BY relname <> 'alembic_version', relname LIMIT 1"
    )
    present = cursor.fetchone()
    if present and present[0] == "alembic_version":
        return
    if present:
        raise ProfileInvalid(
            f"the database {cursor.connection.info.dbname} holds tables of something else ({present[0]}): "
            "give grange a database of its own"
        )
    for revision in revisions():
        cursor.execute(revision_sql(revision))
    cursor.execute(
        "CREATE TABLE alembic_version (version_num varchar(32) NOT NULL,"
        " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    cursor.execute("INSERT INTO alembic_version VALUES (%s)", (revisions()[-1],))


def migrate(dsn: str) -> None:
    """Bring the tables of a database to this version with Alembic.

    dsn: a postgresql:// URL or libpq's keywords.
    Errors: DatabaseUnavailable, DatabaseOutdated when the tables are of a version that is not known here.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connect"] = lambda: connect(dsn)
    with translated():
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise DatabaseOutdated(
                f"the tables of this database are of a version that this grange does not know: {error}"
            ) from error
