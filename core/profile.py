"""A profile: one installation's database, files and habits, below one folder.

The folder is GRANGE_HOME, else ~/.grange.
"""

from __future__ import annotations

import atexit
import os
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg2 import errors as driver
from psycopg2 import extensions

from grange.core import database, migrate, worker
from grange.core.blob_index import PostgresIndex
from grange.core.database import Connection, Cursor
from grange.core.errors import DatabaseUnavailable, ProfileInvalid
from grange.core.postgres import PATIENCE_S, Server, ServerStatus, server_status
from grange.core.profile_file import EMBEDDED, ProfileFile, read_profile_file
from grange.repository.retries import Retries

if TYPE_CHECKING:
    from types import TracebackType

    from grange.core.data import Code
    from grange.core.group import Group
    from grange.core.link import Link
    from grange.core.node import Node
    from grange.repository import BlobLocation, Key, Repository


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What `grange status` tells of a database.

    Units: size_bytes in bytes.
    """

    kind: str
    where: str
    name: str
    user: str
    version: str
    size_bytes: int
    sessions: int


class Profile:
    """An open profile. Threads take turns, a transaction each; connect() gives a connection of one's own.

    A connection that was lost is made again, except under a running campaign: the campaign's lock went with
    it, so that run ends, and the next one goes on.
    Close it, or use it in a `with`; what is left open is closed when the interpreter ends.
    """

    def __init__(self, home: Path, config: ProfileFile) -> None:
        self.home = home
        self.config = config
        self.server: Server | None = None
        self._owner = os.getpid()
        self._connection: Connection | None = None
        self._renewing = threading.RLock()
        self._user_id: int | None = None
        self._worker_id: int | None = None
        #: As what this process is known once it has a worker_id, and the daemon whose process it is.
        self.role = worker.CLIENT
        self.daemon_id: int | None = None
        #: The campaigns and queues that this profile's connection holds.
        self.held: set[int] = set()
        self._repository: Repository | None = None
        #: Told of each connection that is made in place of one that was lost.
        self.on_renewal: list[Callable[[Connection], None]] = []
        #: How patient it is with an object store that does not answer, and who is told.
        self.retries = Retries()

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Profile {self.home}>"

    @property
    def is_open(self) -> bool:
        """Whether it was not closed; its connection may be lost all the same."""
        return self._connection is not None

    def close(self) -> None:
        """End the connection, and with it this worker's locks; stop being a user of the embedded server."""
        atexit.unregister(self.close)
        # A forked child must not end its parent's session.
        if os.getpid() == self._owner and self._connection is not None and not self._connection.closed:
            self._connection.close()
        self._connection = None
        self._worker_id = self._repository = None
        if self.server is not None:
            self.server.release()

    # ------------------------------------------------------------ database

    @property
    def dsn(self) -> str:
        """How libpq reaches the database; without any password, so that it can be passed on."""
        return self.config.database if self.server is None else self.server.dsn()

    @property
    def connection(self) -> Connection:
        """The connection of this profile.

        Errors: DatabaseUnavailable.
        """
        if self._connection is None:
            raise DatabaseUnavailable(f"the profile {self.home} is closed: open it again")
        if os.getpid() != self._owner:
            raise DatabaseUnavailable(
                f"the profile {self.home} was opened by the process that this one was forked from, and two "
                "cannot share a connection: open it again here"
            )
        lost = self._connection
        if not self.held and database.is_lost(lost):
            with self._renewing:
                if self._connection is lost:  # no other thread was quicker
                    self._worker_id = self._repository = None  # their locks went with the connection
                    self._connection = _connect(self)
                    for tell in tuple(self.on_renewal):
                        tell(self._connection)
        return self._connection

    @contextmanager
    def transaction(self) -> Iterator[Cursor]:
        """A cursor in a transaction: committed at the end, rolled back by an exception. Not nested.

        Errors: those of grange.core.database.translate.
        """
        with database.transaction(self.connection) as cursor:
            yield cursor

    @contextmanager
    def transaction_as(self, worker_id: int) -> Iterator[Cursor]:
        """A transaction of this process as that worker: on the connection that holds the worker's lock.

        Errors: as transaction(); DatabaseUnavailable where that connection was lost: others may have claimed
        what the worker had.
        """
        with self.transaction() as cursor:
            if self._worker_id != worker_id:
                raise DatabaseUnavailable(
                    f"the connection was lost on which this process was worker {worker_id}"
                )
            yield cursor

    def connect(self) -> Connection:
        """A further connection to the database; the caller closes it."""
        return database.connect(self.dsn)

    def describe_database(self) -> DatabaseInfo:
        """What there is to tell about the database, in one query."""
        with self.transaction() as cursor:
            cursor.execute(
                "SELECT current_setting('server_version'), pg_database_size(current_database()),"
                " (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())"
            )
            version, size, sessions = cursor.fetchone() or ("", 0, 0)
        info = self.connection.info
        return DatabaseInfo(
            kind=EMBEDDED if self.server else "server",
            where=info.host if info.host.startswith("/") else f"{info.host}:{info.port}",
            name=info.dbname,
            user=info.user,
            version=version.split()[0],
            size_bytes=size,
            sessions=sessions,
        )

    # ------------------------------------------------------------ who

    @property
    def user_id(self) -> int:
        """The id of the profile's user; the row is made on first use."""
        if self._user_id is None:
            with self.transaction() as cursor:
                self._user_id = _user_id(cursor, self.config.email)
        return self._user_id

    @property
    def worker_id(self) -> int:
        """The id of this process as a worker.

        It becomes one the first time that it is asked for, which must not be inside a transaction.
        """
        connection = self.connection
        with connection.turn:
            if self._worker_id is None:
                self._worker_id = worker.register_worker(connection, self.role, self.daemon_id)
            return self._worker_id

    # ------------------------------------------------------------ nodes and groups

    def store(self, *nodes: Node, links: Iterable[Link] = ()) -> None:
        """Store nodes and links, all or nothing: inputs before calculations, these before their outputs.

            x, y = gr.Int(1), gr.Str("one")
            profile.store(x, y)

        Errors: LinkInvalid, InputInvalid; nothing is stored then. StoreFull, DatabaseUnavailable.
        """
        from grange.core.graph import forgotten_on_error, store

        with forgotten_on_error(nodes), self.transaction() as cursor:
            store(
                cursor,
                nodes,
                links,
                user_id=self.user_id,
                repository=self.repository,
                index=self.index(cursor),
                reader=self.read_files,
            )

    def load(self, *references: int | str) -> list[Node]:
        """Nodes by id, uuid (or how it begins), or campaign/number, in that order, in a few queries.

        Errors: NotFound; InputInvalid for what names no node, or several.
        """
        from grange.core.graph import load
        from grange.core.reference import node_ids

        with self.transaction() as cursor:
            return load(cursor, node_ids(cursor, list(map(str, references))), self.read_files)

    def load_code(self, name: int | str) -> Code:
        """A code by its name (pw@lumi, or pw where that is only one), its id or its uuid.

        Errors: NotFound; InputInvalid for a name of several codes, and for a node that is no code.
        """
        from grange.core import codes

        with self.transaction() as cursor:
            return codes.load(cursor, str(name), self.read_files)

    def update(self, *nodes: Node) -> None:
        """Write label, description and extras of stored nodes: what may change of them."""
        from grange.core.graph import update

        with self.transaction() as cursor:
            update(cursor, nodes)

    def groups(self) -> list[Group]:
        """All groups that people made, by label; campaigns are not among them."""
        from grange.core import group

        with self.transaction() as cursor:
            return group.list_groups(cursor, group.CORE)

    def create_group(self, label: str, nodes: Iterable[Node | int] = (), *, description: str = "") -> Group:
        """A new group of these stored nodes. Errors: NameExists, InputInvalid, NotFound."""
        from grange.core import group

        with self.transaction() as cursor:
            made = group.create(cursor, label, user_id=self.user_id, description=description)
            group.add_nodes(cursor, made, nodes)
            return group.load(cursor, label)

    def add_to_group(self, label: str, nodes: Iterable[Node | int]) -> int:
        """Put stored nodes into a group; returns how many were not in it. Errors: NotFound."""
        from grange.core import group

        with self.transaction() as cursor:
            return group.add_nodes(cursor, group.load(cursor, label), nodes)

    def remove_from_group(self, label: str, nodes: Iterable[Node | int]) -> int:
        """Take nodes out of a group; the nodes stay. Returns how many were in it. Errors: NotFound."""
        from grange.core import group

        with self.transaction() as cursor:
            return group.remove_nodes(cursor, group.load(cursor, label), nodes)

    def group_nodes(self, label: str) -> list[Node]:
        """The nodes of a group, oldest first. Errors: NotFound."""
        from grange.core import group
        from grange.core.graph import load

        with self.transaction() as cursor:
            return load(cursor, group.node_ids(cursor, group.load(cursor, label)), self.read_files)

    def delete_group(self, label: str) -> None:
        """Delete a group; its nodes stay. Errors: NotFound."""
        from grange.core import group

        with self.transaction() as cursor:
            group.delete(cursor, [group.load(cursor, label)])

    # ------------------------------------------------------------ files

    @property
    def repository(self) -> Repository:
        """The files of this profile, in the store that profile.toml names when they are first asked for.

        Errors: RepositoryBusy while they are being moved to another store.
        """
        if self._repository is None:
            from grange.core import store_lock
            from grange.core.file_store import open_store
            from grange.repository import Repository

            connection = self.connection
            with connection.turn, _reasons(self.home):
                store_lock.share(connection)
                self.config = replace(self.config, store=read_profile_file(self.home / "profile.toml").store)
                self._repository = Repository(
                    open_store(self.home, self.config, self.retries), before_writing=self._claim_store
                )
        return self._repository

    def _claim_store(self) -> None:
        """Two databases must not share a store: what is dead to one may be needed by the other.

        Errors: InUse where the store belongs to another database.
        """
        from grange.core.store_owner import require_owner

        store = self.repository.store
        connection = self.connection
        with connection.turn:
            if connection.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE:
                with self.transaction() as cursor:
                    require_owner(cursor, store)
            else:
                with connection.cursor() as cursor:
                    require_owner(cursor, store)

    def forget_store(self) -> None:
        """Open the store anew when files are next asked for: profile.toml names another one."""
        self._repository = None

    def index(self, cursor: Cursor) -> PostgresIndex:
        """The index of the files, in the transaction of a cursor."""
        return PostgresIndex(cursor)

    def read_files(self, keys: Sequence[Key]) -> list[bytes]:
        """The contents of keys, in one go: what loaded nodes read their files with.

        Inside a transaction or outside of any; then no transaction lasts while bytes come.
        """
        return self.repository.read(keys, ReadingIndex(self))

    def read_each(self, keys: Sequence[Key]) -> Iterator[bytes]:
        """The contents of any number of keys, one after the other, in bounded memory."""
        return self.repository.read_each(keys, ReadingIndex(self))

    @property
    def spool(self) -> Path:
        """The folder through which chunks go out and result packs come back."""
        path = self.home / "spool"
        with _reasons(path):
            path.mkdir(mode=0o700, exist_ok=True)
        return path


class ReadingIndex:
    """The index for who only reads: each look is in the transaction of this thread, or in one of its own."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def hold(self) -> None:
        """Errors: RuntimeError; who relies on blobs needs Profile.index(), in its own transaction."""
        raise RuntimeError("an index for reading cannot be held: use Profile.index() in a transaction")

    def find(self, keys: Collection[Key]) -> dict[Key, BlobLocation]:
        """The locations of those of the keys that are known."""
        connection = self._profile.connection
        with connection.turn:
            if connection.info.transaction_status == extensions.TRANSACTION_STATUS_IDLE:
                with self._profile.transaction() as cursor:
                    return PostgresIndex(cursor).find(keys)
            with connection.cursor() as cursor:
                return PostgresIndex(cursor).find(keys)

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        """Errors: RuntimeError."""
        raise RuntimeError("an index for reading takes nothing in: use Profile.index() in a transaction")


def open_profile(home: Path | str | None = None) -> Profile:
    """Open the profile of a folder (GRANGE_HOME, else ~/.grange); make and start what is not there yet.

    Errors: ProfileInvalid when the folder or its profile.toml cannot be used; DatabaseUnavailable,
    DatabaseOutdated.
    """
    folder = home_folder(home)
    with _reasons(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open_folder(folder)
        config = read_profile_file(folder / "profile.toml")
        profile = Profile(folder, config)
        try:
            if config.database == EMBEDDED:
                profile.server = Server(
                    folder / "postgres",
                    idle_s=config.idle_s,
                    binaries=folder / config.postgres_bin if config.postgres_bin else None,
                )
                profile.server.hold()
            profile._connection = _connect(profile)
            profile._user_id = _prepare(profile._connection, config.email)
        except BaseException:
            profile.close()
            raise
    atexit.register(profile.close)
    return profile


def home_folder(home: Path | str | None = None) -> Path:
    """The folder of a profile: the one given, else GRANGE_HOME, else ~/.grange."""
    given = home or os.environ.get("GRANGE_HOME") or "~/.grange"
    try:
        return Path(os.path.abspath(Path(given).expanduser()))
    except RuntimeError:
        raise ProfileInvalid("no home folder is known: set GRANGE_HOME to a folder of yours") from None


def embedded_status(home: Path | str | None = None) -> ServerStatus | None:
    """What can be seen of a profile's embedded server without starting it; None where there is none."""
    folder = home_folder(home)
    if not (folder / "postgres").is_dir():
        return None
    return server_status(folder / "postgres")


def _prepare(connection: Connection, email: str) -> int:
    """See to the tables and the user; two round trips where both are there."""
    migrate.ensure_tables(connection)
    with database.transaction(connection) as cursor:
        return _user_id(cursor, email)


def _user_id(cursor: Cursor, email: str) -> int:
    cursor.execute('SELECT id FROM "user" WHERE email = %s', (email,))
    row = cursor.fetchone()
    if row is None:
        # By an update that changes nothing, so that a row which somebody has just added gives its id.
        cursor.execute(
            'INSERT INTO "user" (email) VALUES (%s)'
            " ON CONFLICT (email) DO UPDATE SET email = EXCLUDED.email RETURNING id",
            (email,),
        )
        row = cursor.fetchone() or (0,)
    return int(row[0])


def _connect(profile: Profile) -> Connection:
    if profile.server is None:
        return database.connect(profile.config.database)
    return connect_embedded(profile.server)


def connect_embedded(server: Server) -> Connection:
    """A connection to the database of an embedded server; the first of all makes it.

    Errors: DatabaseUnavailable.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return database.connect(server.dsn())
        except DatabaseUnavailable as error:
            if 'database "grange" does not exist' in str(error):
                break
            if "the database system is" not in str(error) or time.monotonic() > deadline:
                # It ended between our look and our call: once more, with a start.
                server.ensure_running()
                return database.connect(server.dsn())
            time.sleep(0.02)  # it starts, ends, or recovers from a crash
    # The first of all connections. initdb's empty database is renamed: cheaper than making another.
    first = database.connect(server.dsn("template1"))
    try:
        first.autocommit = True
        with first.cursor() as cursor:
            cursor.execute("ALTER DATABASE postgres RENAME TO grange")
    except (driver.DuplicateDatabase, driver.InvalidCatalogName):
        pass  # another process was quicker
    finally:
        first.close()
    return database.connect(server.dsn())


def _refuse_open_folder(folder: Path) -> None:
    status = os.stat(folder)
    if status.st_uid not in (0, os.geteuid()):
        raise ProfileInvalid(
            f"{folder} belongs to another user, who could run programs as you through it: "
            "set GRANGE_HOME to a folder of your own"
        )
    if status.st_mode & stat.S_IWOTH:
        raise ProfileInvalid(
            f"{folder} can be written by everyone, who could then run programs as you: chmod o-w {folder}"
        )


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Let what the file system refuses out as ProfileInvalid, with path and reason."""
    try:
        yield
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "there is a file in the place of a folder" if blocked else error.strerror or str(error)
        raise ProfileInvalid(
            f"{error.filename or path}: {reason}. A profile needs a folder that can be written and has space "
            "left; GRANGE_HOME names another one"
        ) from error
