"""Scrub: stored blobs are hashed again now and then; what is damaged is told with the nodes that have it.

A pass goes through the objects in the order of their ids, and may stop and go on anywhere: packs that are
written meanwhile, or into which repacking moves blobs, have higher ids and come later. Where it is lies in
scrub.json in the profile's folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from grange.core import database
from grange.core.blob_index import PostgresIndex
from grange.core.database import Connection
from grange.core.file_store import store_place
from grange.core.files import files_of
from grange.core.json_value import decoded
from grange.core.scrub_pass import Pass, alone_on, load_pass, saved
from grange.core.store_owner import require_owner
from grange.core.upkeep import Upkeep, upkeep
from grange.repository import BlobLocation, Key, Store, StoreUnavailable
from grange.repository.cached_store import truth_of
from grange.repository.checking import GONE, UNREADABLE, Checked, begin_check, check_object
from grange.repository.key import is_key
from grange.repository.quarantine import Note, keep_evidence, quarantined
from grange.repository.rewriting import rewritten
from grange.repository.team import Team

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: Twice as many packs are in memory.
_AT_ONCE = 2
_PAGE = 1000
_ROWS_AT_ONCE = 20_000
#: Of nodes that have a damaged blob, so many are named.
NAMED_NODES = 10_000

# Objects in the order of their ids: how many blobs lie in each, and what they take.
_OBJECTS = """
SELECT page.id, page.name, count(blob.key), coalesce(sum(blob.stored_size), 0)::bigint
FROM (SELECT id, name FROM pack WHERE id > %s ORDER BY id LIMIT %s) page
LEFT JOIN blob ON blob.pack_id = page.id GROUP BY 1, 2 ORDER BY 1
"""

# All that there is to check, and how much of it a pass has behind it.
_TOTALS = """
SELECT count(DISTINCT pack_id), count(*), coalesce(sum(stored_size), 0)::bigint,
       coalesce(sum(stored_size) FILTER (WHERE pack_id <= %s), 0)::bigint
FROM blob
"""

# The nodes that have files of these keys.
_HIT = """
SELECT id, uuid::text, node_type, label, repository_metadata::text FROM node
WHERE repository_metadata <> '{}' AND EXISTS (
    SELECT FROM jsonb_path_query(repository_metadata, 'strict $.** ? (@.type() == "string")') AS file
    WHERE file #>> '{}' = ANY (%s))
ORDER BY id
"""

# What nodes name and the index does not know.
_UNKNOWN = """
SELECT DISTINCT file #>> '{}' FROM node,
    jsonb_path_query(repository_metadata, 'strict $.** ? (@.type() == "string")') AS file
WHERE repository_metadata <> '{}'
  AND NOT EXISTS (SELECT FROM blob WHERE encode(blob.key, 'hex') = file #>> '{}')
ORDER BY 1 LIMIT %s
"""


@dataclass(frozen=True, slots=True)
class Damage:
    """A blob that is damaged or missing: why, and where it should be."""

    key: Key
    name: str
    reason: str
    size: int

    @property
    def missing(self) -> bool:
        """Whether there is nothing at all of it."""
        return self.reason == GONE


@dataclass(frozen=True, slots=True)
class Hit:
    """A node that has a damaged file. path: of the first such file; count: how many it has."""

    id: int
    uuid: str
    node_type: str
    label: str
    path: str
    count: int


@dataclass(slots=True)
class Scrubbed:
    """What scrubbing has done. went_on: whether it went on with a pass that was begun before.

    objects, blobs, stored_bytes: that were checked by this call. total_bytes: of all blobs. found: what is
    damaged or missing now; hits: the nodes that have such files, hit_count: how many there are.
    unknown: contents that nodes name and the index does not know, looked for at the end of a pass; their
    nodes are among the hits. quarantined: why and since when those of them are, that are in quarantine.
    taken_out: what was put into quarantine, by object; left: objects that could not be, and why. well: that
    was found damaged earlier and is not now.
    """

    state: Pass
    went_on: bool = False
    objects: int = 0
    blobs: int = 0
    stored_bytes: int = 0
    total_bytes: int = 0
    found: list[Damage] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    hit_count: int = 0
    unknown: list[Key] = field(default_factory=list)
    quarantined: dict[Key, Note] = field(default_factory=dict)
    taken_out: list[Note] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    well: int = 0


_Object = tuple[int, str, dict[Key, BlobLocation]]
#: (done, of how many) bytes of this call, and what was found so far
Show = Callable[[int, int, str], None]


def scrub(
    profile: Profile,
    *,
    share: float = 1.0,
    restart: bool = False,
    known_only: bool = False,
    quarantine: bool = False,
    take_over: bool = False,
    show: Show = lambda done, total, note: None,
) -> Scrubbed:
    """Check blobs, from where the last call has stopped: all that are left, or a share of all.

    known_only: only what was found damaged before. quarantine: take what is damaged out of the index, so that
    storing the same content again heals it; its bytes are kept. take_over: whatever other database owned the
    store does not any more.

    Errors: RepositoryBusy when another process scrubs; InUse when quarantine is asked for in a store of
    another database; StoreUnavailable, and all that ends it: what was checked stays checked.
    """
    store = truth_of(profile.repository.store)
    with alone_on(profile.home) as state_file:
        state = load_pass(state_file, store_place(profile.home, profile.config))
        done = Scrubbed(state)
        if restart or (state.complete and not known_only):
            damaged, malformed = state.damaged, state.malformed
            done.state = state = Pass(state.store, time.time(), damaged=damaged, malformed=malformed)
        done.went_on = bool(state.after) and not known_only
        with (
            contextlib.closing(profile.connect()) as connection,
            upkeep(profile, alone=False) as index,
            saved(state_file, state) as save,
        ):
            known = {Key(key) for key in state.damaged}
            found = {one.key: one for one in _check_again(connection, store, state, known)}
            done.well = len(known) - len(found)
            if not known_only:
                _go_on(connection, index, store, done, found, share, save, show)
            if quarantine:
                _look_at_neighbours(index, store, state, found)
            done.found = sorted(found.values(), key=lambda one: (one.name, one.key))
            if state.complete and not known_only:
                done.unknown = missing_contents(connection, NAMED_NODES)
                done.quarantined = quarantined(store, done.unknown) if done.unknown else {}
            done.hits, done.hit_count = hits(connection, {*found, *done.unknown})
            if quarantine and (done.found or state.malformed):
                with database.transaction(connection) as cursor:
                    require_owner(cursor, store, take_over=take_over)
                with upkeep(profile) as only:
                    _take_out(only, store, done)
    return done


def hits(connection: Connection, keys: Collection[Key]) -> tuple[list[Hit], int]:
    """The nodes that have files of these keys, by id: the first of them, and how many there are."""
    found: list[Hit] = []
    count = 0
    if not keys:
        return found, count
    with database.transaction(connection) as cursor:
        cursor.execute("SET LOCAL jit = off")
        cursor.execute("DECLARE hit NO SCROLL CURSOR FOR " + _HIT, (list(keys),))
        while True:
            cursor.execute("FETCH 1000 FROM hit")
            rows = cursor.fetchall()
            if not rows:
                return found, count
            count += len(rows)
            for node_id, uuid, node_type, label, metadata in rows[: NAMED_NODES - len(found)]:
                paths = [path for path, key in files_of(decoded(metadata)).items() if key in keys]
                found.append(Hit(node_id, uuid, node_type, label, paths[0], len(paths)))


def missing_in_quarantine(connection: Connection, store: Store) -> int:
    """How many contents that nodes name and the index does not know are in quarantine: their bytes are known.

    Errors: as Store; DatabaseUnavailable.
    """
    return len(quarantined(truth_of(store), missing_contents(connection)))


def missing_contents(connection: Connection, limit: int | None = None) -> list[Key]:
    """The contents that nodes name and the index does not know: all, or so many.

    Errors: DatabaseUnavailable.
    """
    with database.transaction(connection) as cursor:
        cursor.execute("SET LOCAL jit = off")
        cursor.execute(_UNKNOWN, (limit,))
        return [Key(key) for (key,) in cursor.fetchall() if is_key(key)]


# ---------------------------------------------------------------- checking


def _go_on(
    connection: Connection,
    index: Upkeep,
    store: Store,
    done: Scrubbed,
    found: dict[Key, Damage],
    share: float,
    save: Callable[[], None],
    show: Show,
) -> None:
    state = done.state
    with database.transaction(connection) as cursor:
        cursor.execute(_TOTALS, (state.after,))
        _, _, done.total_bytes, behind = cursor.fetchone() or (0, 0, 0, 0)
    left = done.total_bytes - behind
    wanted = left if share >= 1 else min(left, max(1, round(share * done.total_bytes)))
    show(0, wanted, "")
    with Team(_AT_ONCE) as team:

        def begin(one: _Object) -> tuple[int, Callable[[], Checked]]:
            number, name, rows = one
            try:
                return number, begin_check(store, name, rows)
            except StoreUnavailable:
                return number, partial(_checked, store, name, rows)

        for number, check in team.map(begin, _objects(connection, index, state.after)):
            checked = check()
            if checked.wrong:
                for damage in _confirmed(connection, store, checked):
                    found[damage.key] = damage
                    state.damaged[damage.key] = damage.reason
            if checked.malformed:
                state.malformed[checked.name] = checked.malformed
            else:
                state.malformed.pop(checked.name, None)
            state.after = number
            for count in (state, done):
                count.objects += 1
                count.blobs += checked.blobs
                count.stored_bytes += checked.stored_bytes
            save()
            note = f"{len(found):,} damaged" if found else ""
            show(min(done.stored_bytes, wanted), wanted, note)
            if wanted < left and done.stored_bytes >= wanted:
                return
    state.complete = True


def _objects(connection: Connection, index: Upkeep, after: int) -> Iterator[_Object]:
    """Objects with the blobs that lie in them, from an id on."""
    while True:
        with database.transaction(connection) as cursor:
            cursor.execute(_OBJECTS, (after, _PAGE))
            page = cursor.fetchall()
        if not page:
            return
        after = page[-1][0]
        group: list[tuple[int, str]] = []
        size = 0
        for number, name, blobs, _ in page:
            if blobs:
                group.append((number, name))
                size += blobs
            if size >= _ROWS_AT_ONCE:
                yield from _with_rows(index, group)
                group, size = [], 0
        yield from _with_rows(index, group)


def _with_rows(index: Upkeep, group: Sequence[tuple[int, str]]) -> Iterator[_Object]:
    rows: dict[str, dict[Key, BlobLocation]] = {}
    for key, row in index.locations([name for _, name in group]).items():
        rows.setdefault(row.object_name, {})[key] = row
    for number, name in group:
        if name in rows:  # else emptied meanwhile
            yield number, name, rows[name]


def _checked(store: Store, name: str, rows: Mapping[Key, BlobLocation]) -> Checked:
    """An object of which nothing can be read is damaged, if the store does answer: a bad block of a disk.

    Errors: StoreUnavailable, where the store does not answer.
    """
    try:
        return check_object(store, name, rows)
    except StoreUnavailable:
        store.head(name)
        next(iter(store.list()), None)
    try:
        return check_object(store, name, rows)
    except StoreUnavailable as error:
        wrong = dict.fromkeys(rows, f"{UNREADABLE}: {error}")
        return Checked(name, len(rows), sum(row.stored_size for row in rows.values()), wrong)


def _confirmed(connection: Connection, store: Store, checked: Checked) -> list[Damage]:
    """What is wrong still when it is looked at once more: in its place of now, if it was moved or pruned."""
    with database.transaction(connection) as cursor:
        now = PostgresIndex(cursor).find(checked.wrong)
    by_object: dict[str, dict[Key, BlobLocation]] = {}
    for key, row in now.items():
        by_object.setdefault(row.object_name, {})[key] = row
    found = []
    for name, wrong in by_object.items():
        for key, reason in _checked(store, name, wrong).wrong.items():
            found.append(Damage(key, name, reason, wrong[key].size))
    return found


def _check_again(connection: Connection, store: Store, state: Pass, keys: Collection[Key]) -> list[Damage]:
    """What of these blobs, found damaged before, is damaged still; the others are forgotten."""
    if not keys:
        return []
    found = _confirmed(connection, store, Checked("", wrong=dict.fromkeys(keys, "")))
    state.damaged = {one.key: one.reason for one in found}
    return found


# ---------------------------------------------------------------- quarantine


def _look_at_neighbours(index: Upkeep, store: Store, state: Pass, found: dict[Key, Damage]) -> None:
    """Check all blobs of the objects in which something is damaged: those that are well will be moved."""
    for name in {damage.name for damage in found.values()} | state.malformed.keys():
        rows = index.locations([name])
        for key, reason in _checked(store, name, rows).wrong.items() if rows else ():
            found[key] = Damage(key, name, reason, rows[key].size)
            state.damaged[key] = reason


def _take_out(session: Upkeep, store: Store, done: Scrubbed) -> None:
    """Each damaged object: evidence first, then what is well in it moves, then the rest leaves the index.

    One that cannot be read has none, and stays: whoever repairs disks may get at it yet.
    """
    by_object: dict[str, dict[Key, str]] = {name: {} for name in done.state.malformed}
    for one in done.found:
        by_object.setdefault(one.name, {})[one.key] = one.reason
    for name, reasons in by_object.items():
        rows = session.locations([name])
        reasons = {key: reason for key, reason in reasons.items() if key in rows}
        try:
            note = keep_evidence(store, name, reasons, rows)
        except StoreUnavailable as error:
            if not any(reason.startswith(UNREADABLE) for reason in reasons.values()):
                raise
            done.left[name] = str(error)
            continue
        well = {key: row for key, row in rows.items() if key not in reasons}
        if well:
            session.move(rewritten(store, well), [name])
        session.take_out(name, list(reasons), lambda name=name: store.delete([name]))  # type: ignore[misc]
        done.taken_out.append(note)
        done.state.malformed.pop(name, None)
        for key in reasons:
            done.state.damaged.pop(key, None)
