"""The database as one file, and back: by pg_dump and pg_restore, for embedded and other servers alike."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from grange.core import database
from grange.core.database import Connection
from grange.core.errors import DatabaseUnavailable, InputInvalid, InUse
from grange.core.migrate import revisions
from grange.core.postgres import Server, find_binaries
from grange.core.profile import connect_embedded
from grange.core.profile_file import EMBEDDED, ProfileFile, read_profile_file

# Tables of ours that are not empty, but for what every opening writes.
_IN_USE = """
SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM "group"), (SELECT count(*) FROM blob),
       (SELECT count(*) FROM computer)
"""

# What makes a schema empty: statements in an order that works.
_OURS = """
SELECT statement FROM (
    SELECT 1, format('DROP TABLE %I CASCADE', tablename) FROM pg_tables WHERE schemaname = current_schema()
    UNION ALL
    SELECT 2, format('DROP SEQUENCE IF EXISTS %I CASCADE', sequencename) FROM pg_sequences
    WHERE schemaname = current_schema()
    UNION ALL
    SELECT 3, format('DROP FUNCTION %s CASCADE', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = current_schema()::regnamespace AND prokind = 'f'
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_proc.oid AND deptype = 'e')
    UNION ALL
    SELECT 4, format('DROP TYPE %I CASCADE', typname) FROM pg_type
    WHERE typnamespace = current_schema()::regnamespace AND typtype = 'e'
) AS ours (step, statement) ORDER BY step
"""


def dump(home: Path, file: Path) -> int:
    """Write the database of a profile to a file that only this user can read; says how many bytes it has.

    It is one moment of the database, whatever others do meanwhile, and has its name when it is whole and on
    the disk. Nobody is kept from working.

    Errors: InputInvalid for a file that is there; DatabaseUnavailable with what pg_dump said.
    """
    if file.exists():
        raise InputInvalid("file", str(file), "a name that is not taken: a dump never replaces another")
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        with _reached(home) as (dsn, programs):
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            _run(
                programs, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={part}", dsn
            )
        with part.open("rb") as written:
            os.fsync(written.fileno())
        try:
            os.link(part, file)
        except FileExistsError:
            raise InputInvalid("file", str(file), "a name that is not taken; it was made meanwhile") from None
        return file.stat().st_size
    finally:
        part.unlink(missing_ok=True)


def restore(home: Path, file: Path) -> None:
    """Fill the database of a profile from a dump; all of it or nothing.

    The profile, and its embedded server, are made where there are none. The tables are those of the grange
    that wrote the dump: `grange database migrate` brings older ones up to date.

    Errors: InUse for a database that has anything in it; InputInvalid for a file that is no dump;
    DatabaseUnavailable.
    """
    if not file.is_file():
        raise InputInvalid("file", str(file), "a file that `grange database dump` or pg_dump has written")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _reached(home) as (dsn, programs):
        with contextlib.closing(database.connect(dsn)) as connection:
            _empty(connection)
        options = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
        _run(programs, "pg_restore", *options, f"--dbname={dsn}", str(file))


def _empty(connection: Connection) -> None:
    """Take away the tables of a new profile.

    Errors: InUse where anything is in them, or in others.
    """
    with database.transaction(connection) as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        tables = {row[0] for row in cursor.fetchall()}
        if not tables:
            return
        name = connection.info.dbname
        if "alembic_version" not in tables:
            raise InUse(
                f"the database {name} holds tables of something else: give the profile one of its own"
            )
        cursor.execute("SELECT version_num FROM alembic_version")
        counts = (1,)
        if cursor.fetchone() == (revisions()[-1],):
            cursor.execute(_IN_USE)
            counts = cursor.fetchone() or (1,)
        if any(counts):
            raise InUse(
                f"the database {name} is in use: a dump is restored into an empty one; name another home, or "
                "another database in its profile.toml"
            )
        cursor.execute(_OURS)
        for (statement,) in cursor.fetchall():
            cursor.execute(statement)


@contextlib.contextmanager
def _reached(home: Path) -> Iterator[tuple[str, Path]]:
    """How the database is reached, and the folder of the programs for it. Its server runs meanwhile."""
    config: ProfileFile = read_profile_file(home / "profile.toml")
    binaries = home / config.postgres_bin if config.postgres_bin else None
    if config.database != EMBEDDED:
        with contextlib.closing(database.connect(config.database)) as connection:
            major = connection.server_version // 10_000
        yield config.database, _programs(major, binaries)
        return
    with Server(home / "postgres", idle_s=config.idle_s, binaries=binaries) as server:
        connect_embedded(server).close()  # the database is there from the first connection on
        yield server.dsn(), binaries or find_binaries()


def _programs(major: int, named: Path | None) -> Path:
    """The folder of pg_dump and pg_restore for a server of this version.

    Of its own version if there are such: older ones refuse it, and it may not understand what newer ones say.

    Errors: DatabaseUnavailable where there are only older ones.
    """
    on_path = shutil.which("pg_dump")
    places = [named, Path(on_path).parent if on_path else None, Path(f"/usr/lib/postgresql/{major}/bin")]
    with contextlib.suppress(DatabaseUnavailable):
        places.append(find_binaries())
    found = {version: place for place in reversed(places) if place and (version := _version(place)) >= major}
    if not found:
        raise DatabaseUnavailable(
            f"the server is PostgreSQL {major}, and no pg_dump of that version or a newer one is here: "
            "install it, or name its folder in profile.toml (postgres_bin)"
        )
    return found[min(found)]


def _version(folder: Path) -> int:
    """The version of the programs in a folder; 0 where there are none."""
    try:
        said = subprocess.run(
            [folder / "pg_dump", "--version"], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    digits = re.search(r"\d+", said.partition(")")[2])
    return int(digits[0]) if digits else 0


def _run(programs: Path, name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL. The password is in no argument: libpq reads it where it lies.

    Errors: DatabaseUnavailable with what it said.
    """
    done = subprocess.run([programs / name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = "; ".join(done.stderr.strip().splitlines()[-3:])
        raise DatabaseUnavailable(f"{name} has failed: {said or f'exit status {done.returncode}'}")
