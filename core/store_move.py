"""Moving the files of a profile to another store: copied while everybody works, then named in profile.toml.

Objects are copied as they are; names and packs are the same in every store, so the index stays as it is.
Until the last step the profile uses the old store, and nothing is ever removed from that. In the last step
nobody has the store open (store_lock): what has come since is copied, everything is there, and profile.toml
is replaced at once. So whichever of the two it names, killed in whatever moment, that one is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from grange.core import store_lock
from grange.core.database import Connection, transaction
from grange.core.errors import InputInvalid, RepositoryBusy
from grange.core.file_store import open_bucket
from grange.core.profile_edit import set_store
from grange.core.profile_file import read_profile_file
from grange.core.store_owner import require_owner
from grange.core.upkeep import UPKEEP_LOCK
from grange.repository import ObjectInfo, Store
from grange.repository.copying import Copied, CopyJournal, CopyPlan, copy_objects, plan_copy
from grange.repository.retries import Retries
from grange.repository.s3_settings import S3Settings

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: Rounds of copying while others write; what is left for the last step shrinks with each.
_MOST_ROUNDS = 8
_FEW_BYTES = 64 << 20

# Packs that runners may deliver yet, by a URL that they have: known, without any blob, not given up.
_PROMISED = """
SELECT pack.name, "group".label FROM pack JOIN "group" ON "group".id = pack.campaign_id
WHERE pack.dead_since IS NULL AND NOT EXISTS (SELECT FROM blob WHERE pack_id = pack.id)
  AND EXISTS (SELECT FROM process WHERE queue_id = "group".id AND NOT workflow AND attempt > 0
              AND state IN ('created', 'waiting', 'running'))
"""

# Objects that have blobs.
_NEEDED = "SELECT name FROM pack WHERE EXISTS (SELECT FROM blob WHERE pack_id = pack.id)"

#: (done, of how many) bytes, and what is going on
Show = Callable[[int, int, str], None]


@dataclass(slots=True)
class Moved:
    """What moving has done. old, new: the stores, for people. lost: objects of the index that neither has.

    switched: whether profile.toml names the new one now. copied: of all rounds together.
    """

    old: str
    new: str
    switched: bool = False
    copied: Copied = field(default_factory=Copied)
    plan: CopyPlan = field(default_factory=CopyPlan)
    lost: list[str] = field(default_factory=list)


def open_bare(home: Path, setting: str | S3Settings, retries: Retries | None = None) -> Store:
    """A store without a cache: what is copied and compared must come from there.

    retries: how patient to be with a server.
    """
    if isinstance(setting, S3Settings):
        return open_bucket(setting.below(home), home, 0, retries)
    from grange.repository.local_store import LocalStore

    return LocalStore(home / setting)


def plan_move(profile: Profile, target: str | S3Settings) -> Moved:
    """What moving would do; nothing is written.

    target: a folder, relative to the profile's, or a bucket.
    Errors: InputInvalid for a target that is, holds or lies in the store that is used now; those of both
    stores.
    """
    moved = _begun(profile, target)
    there = _listed(profile.home, target)
    with _journal(profile.home, moved) as journal:
        moved.plan = plan_copy(
            open_bare(profile.home, _current(profile), profile.retries).list(), there, journal
        )
    return moved


def move(
    profile: Profile,
    target: str | S3Settings,
    *,
    copy_only: bool = False,
    patience_s: float = store_lock.PATIENCE_S,
    despite_deliveries: bool = False,
    show: Show = lambda done, total, note: None,
) -> Moved:
    """Copy all objects to another store, and let the profile use that one.

    Killed or stopped, it is called again and goes on. Others may compute and store meanwhile; for the last
    step it waits until none of them has the files open.

    copy_only: without the last step, as for a backup. patience_s: for the last step. despite_deliveries: also
    while runners have URLs to deliver packs to the old store with; what comes there after the last step is
    computed again.

    Errors: InputInvalid as plan_move(); InUse where another database has the new store; RepositoryBusy when
    others have files open; CopyDiffers; those of both stores. The profile uses the old store then, and what
    was copied stays copied.
    """
    moved = _begun(profile, target)
    source, there = (
        open_bare(profile.home, setting, profile.retries) for setting in (_current(profile), target)
    )
    if not copy_only:
        with transaction(profile.connection) as cursor:
            require_owner(cursor, there)
    with _journal(profile.home, moved) as journal:
        for _ in range(_MOST_ROUNDS):
            plan = plan_copy(source.list(), there.list(), journal)
            _add(moved, _round(source, there, plan, journal, show, "copying"))
            if copy_only or plan.todo_bytes + plan.compare_bytes < _FEW_BYTES:
                break
        if copy_only:
            moved.lost = _lost(profile.connection, there)
            return moved
        show(1, 1, "waiting until nobody has files open")
        # On the profile's own connection, for this very profile may have its store open.
        connection = profile.connection
        with store_lock.alone(connection, patience_s), _no_upkeep(connection):
            if not despite_deliveries:
                _refuse_deliveries(connection, source)
            plan = plan_copy(source.list(), there.list(), journal)
            _add(moved, _round(source, there, plan, journal, show, "copying what is new"))
            moved.plan = plan_copy(source.list(), there.list(), journal)
            if moved.plan.todo or moved.plan.compare or moved.plan.differ:
                raise RepositoryBusy(
                    f"somebody who is no process of this profile goes on writing to {moved.old}: end that"
                )
            moved.lost = _lost(connection, there)
            set_store(profile.home / "profile.toml", target)
            moved.switched = True
            profile.forget_store()
        journal.remove()
    return moved


def folder_setting(home: Path, folder: Path) -> str:
    """A folder as profile.toml names it: relative to the profile's own where it lies in there."""
    absolute = Path(os.path.abspath(folder))
    try:
        return str(absolute.relative_to(home))
    except ValueError:
        return str(absolute)


def _begun(profile: Profile, target: str | S3Settings) -> Moved:
    current = _current(profile)
    _check_apart(profile.home, current, target)
    return Moved(_shown(profile.home, current), _shown(profile.home, target))


def _current(profile: Profile) -> str | S3Settings:
    return read_profile_file(profile.home / "profile.toml").store


def _shown(home: Path, setting: str | S3Settings) -> str:
    return str(home / setting) if isinstance(setting, str) else str(setting)


def _check_apart(home: Path, current: str | S3Settings, target: str | S3Settings) -> None:
    """Errors: InputInvalid where one of the two is the other, or holds it."""
    if isinstance(current, str) and isinstance(target, str):
        here, there = (home / current).resolve(), (home / target).resolve()
        if here == there or here in there.parents or there in here.parents:
            raise InputInvalid(
                "target", str(there), f"another folder than {here}, neither in it nor around it"
            )
        if (home / target).exists() and not (home / target).is_dir():
            raise InputInvalid("target", str(there), "a folder")
    if isinstance(current, S3Settings) and isinstance(target, S3Settings):
        same_bucket = (current.endpoint, current.bucket) == (target.endpoint, target.bucket)
        old, new = f"{current.prefix}/".lstrip("/"), f"{target.prefix}/".lstrip("/")
        if same_bucket and (old.startswith(new) or new.startswith(old)):
            raise InputInvalid("target", str(target), f"another bucket or prefix than {current}, not in it")


def _listed(home: Path, target: str | S3Settings) -> Iterator[ObjectInfo]:
    """What a target has; a folder that is not there has nothing, and is not made."""
    if isinstance(target, str) and not (home / target).is_dir():
        return iter(())
    return open_bare(home, target).list()


def _journal(home: Path, moved: Moved) -> CopyJournal:
    pair = hashlib.sha256(f"{moved.old}\0{moved.new}".encode()).hexdigest()[:12]
    return CopyJournal(home / f"copied-{pair}.jsonl", moved.old, moved.new)


def _round(
    source: Store, there: Store, plan: CopyPlan, journal: CopyJournal, show: Show, note: str
) -> Copied:
    show(plan.done_bytes, plan.size, note)
    return copy_objects(
        source, there, plan, journal, lambda size, objects: show(plan.done_bytes + size, plan.size, note)
    )


def _add(moved: Moved, more: Copied) -> None:
    moved.copied.objects += more.objects
    moved.copied.size += more.size
    moved.copied.compared += more.compared
    moved.copied.gone += more.gone
    moved.copied.damaged += more.damaged


def _lost(connection: Connection, there: Store) -> list[str]:
    """Objects that the index needs and the new store has not, because the old one had them no more."""
    has = {found.name for found in there.list()}
    with transaction(connection) as cursor:
        cursor.execute(_NEEDED)
        return sorted(name for (name,) in cursor.fetchall() if name not in has)


def _refuse_deliveries(connection: Connection, source: Store) -> None:
    with transaction(connection) as cursor:
        cursor.execute(_PROMISED)
        promised = dict(cursor.fetchall())
    waiting = sorted({label for name, label in promised.items() if source.head(name) is None})
    if waiting:
        raise RepositoryBusy(
            f"runners of {', '.join(waiting)} may still deliver results to the old store: let them end, or "
            "say --despite-deliveries, and what they deliver after the move is computed again"
        )


@contextlib.contextmanager
def _no_upkeep(connection: Connection) -> Iterator[None]:
    """Nobody prunes, repacks or rebuilds until the block ends."""
    deadline_s = time.monotonic() + store_lock.PATIENCE_S
    while True:
        with transaction(connection) as cursor:
            cursor.execute("SELECT pg_try_advisory_lock(%s)", (UPKEEP_LOCK,))
            if (cursor.fetchone() or (False,))[0]:
                break
        if time.monotonic() >= deadline_s:
            raise RepositoryBusy(
                "another process prunes, repacks or rebuilds the index: wait until it has ended"
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        with transaction(connection) as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", (UPKEEP_LOCK,))
