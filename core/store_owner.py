"""The owner of a store: the one database that may add objects to it and remove some.

What one database needs is dead to another: two profiles in one bucket and prefix would prune each other's
files, and so would a copy of a database, restored beside the original for a try, which names the objects of
the original and does not know what has been stored since. So the first database that stores files somewhere
writes its name there. Any other may read, and is refused the rest until somebody says that the store is its
own now.
"""

from __future__ import annotations

from grange.core.database import Cursor
from grange.core.errors import InUse
from grange.repository.object_name import OWNERS
from grange.repository.store import Store

_IDENTITY = """
SELECT system_identifier || '-' || (SELECT oid FROM pg_database WHERE datname = current_database())
FROM pg_control_system()
"""


def identity(cursor: Cursor) -> str:
    """What tells this database from all others, and from its own copies."""
    cursor.execute(_IDENTITY)
    return str((cursor.fetchone() or ("",))[0])


def owners_of(store: Store) -> set[str]:
    """The identities of the databases that a store belongs to: none, one, or two after a kill."""
    return {found.name.removeprefix(OWNERS) for found in store.list(OWNERS)}


def require_owner(cursor: Cursor, store: Store, *, take_over: bool = False) -> None:
    """See that this database owns the store; a store without an owner gets this one.

    take_over: whoever owned it does not any more.
    Errors: InUse, where another database does; those of the store.
    """
    own = identity(cursor)
    others = owners_of(store)
    if others == {own}:
        return
    others.discard(own)
    if others and not take_over:
        raise InUse(
            f"{store} belongs to another database than this one, which may need what is dead here: two "
            "profiles need a bucket or a prefix each (`grange repository init --prefix`, `grange repository "
            "migrate`). Where the other one is gone for good, as after a backup was restored: `grange "
            "repository take-over`"
        )
    store.put_if_absent(OWNERS + own, b"This database stores files here, and prunes them.\n")
    store.delete(OWNERS + other for other in others)
