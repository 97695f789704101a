"""The owner of a store: the one database that may remove objects from it.

A copy of a database, restored beside the original for a try, names the objects of the original; what is
dead to the copy may be needed by the original, and what has been stored since the copy was made is unknown
to it. So the first database that prunes a store writes its name there, and any other is refused until
somebody says that the store is its own now.
"""

from __future__ import annotations

from grange.core.database import Cursor
from grange.core.errors import InUse
from grange.repository.store import Store

#: Objects below it are named after their owners. A name, not a content, because contents are kept in caches.
OWNERS = "owner/"

_IDENTITY = """
SELECT system_identifier || '-' || (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()
"""


def identity(cursor: Cursor) -> str:
    """What tells this database from all others, and from its own copies."""
    cursor.execute(_IDENTITY)
    return str((cursor.fetchone() or ("",))[0])


def require_owner(cursor: Cursor, store: Store, *, take_over: bool = False) -> None:
    """See that this database owns the store; a store without an owner gets this one.

    take_over: whoever owned it does not any more.
    Errors: InUse, where another database does; those of the store.
    """
    own = f"{OWNERS}{identity(cursor)}"
    others = {found.name for found in store.list(OWNERS)} - {own}
    if others and not take_over:
        raise InUse(
            f"{store} belongs to another database than this one, which may need what is dead here; is this "
            "a copy of it? Give the copy a store of its own (`grange repository migrate`). Where the other "
            "one is gone for good, say --take-over"
        )
    store.put_if_absent(own, b"This database prunes this store.\n")
    store.delete(others)
