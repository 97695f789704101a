"""Healing: contents that nodes name and the index does not know come back from a copy of the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grange.core.scrub import missing_contents
from grange.repository import (
    BlobCorrupt,
    BlobLocation,
    BlobMissing,
    Key,
    MemoryIndex,
    PackMalformed,
    Repository,
    Store,
)
from grange.repository.cached_store import truth_of
from grange.repository.checking import check_object
from grange.repository.object_file import ObjectFile
from grange.repository.quarantine import Note, notes, quarantined
from grange.repository.repository import BLOB_LIMIT_BYTES

if TYPE_CHECKING:
    from grange.core.profile import Profile

#: Contents that are stored in one transaction.
_AT_ONCE = 500
_AT_ONCE_BYTES = 64 << 20

#: (done, of how many) contents, and what is going on
Show = Callable[[int, int, str], None]


@dataclass(slots=True)
class Healed:
    """What healing has done. missing: contents that nodes name and that the copy has not, or damaged.

    Units: size in bytes.
    """

    healed: list[Key] = field(default_factory=list)
    missing: list[Key] = field(default_factory=list)
    size: int = 0


class _Wanted(MemoryIndex):
    """An index that keeps the places of certain keys only."""

    def __init__(self, wanted: Collection[Key]) -> None:
        super().__init__()
        self._wanted = wanted

    def add(self, rows: Mapping[Key, BlobLocation]) -> None:
        super().add({key: row for key, row in rows.items() if key in self._wanted})


def heal(profile: Profile, copy: Store, show: Show = lambda done, total, note: None) -> Healed:
    """Store again what nodes name and the index does not know, from a copy of the store: a backup.

    Where a quarantine's note says where a content lay, it is looked for there first; the others in the
    directories of all packs of the copy. Each is compared with its key before it counts. Killed in between,
    it is called again.

    Errors: those of both stores; DatabaseUnavailable.
    """
    done = Healed()
    wanted = missing_contents(profile.connection)
    places = _places(profile, copy, wanted, show)
    for lot in _lots([key for key in wanted if key in places.rows], places):
        stored = _store(profile, Repository(copy), lot, places)
        done.healed += stored
        done.size += sum(places.rows[key].size for key in stored)
        show(len(done.healed), len(wanted), "")
    done.missing = sorted(set(wanted) - set(done.healed))
    return done


def healed_notes(profile: Profile) -> list[Note]:
    """The notes of which every blob is known to the index again: their evidence is not needed.

    Errors: those of the store; DatabaseUnavailable.
    """
    found = list(notes(truth_of(profile.repository.store)))
    with profile.transaction() as cursor:
        known = profile.index(cursor).find({key for note in found for key in note.reasons})
    return [note for note in found if note.reasons.keys() <= known.keys()]


def clear(profile: Profile, done_with: Collection[Note]) -> None:
    """Remove notes, and the evidence that no other note names. Killed in between, it is called again.

    Errors: those of the store.
    """
    store = truth_of(profile.repository.store)
    names = {note.written_as for note in done_with}
    needed = {note.evidence for note in notes(store) if note.written_as not in names}
    store.delete({note.evidence for note in done_with if note.evidence} - needed)
    store.delete(names)


def _places(profile: Profile, copy: Store, wanted: Collection[Key], show: Show) -> MemoryIndex:
    """Where in the copy the contents lie; those that are seen to be damaged there, too, are left out."""
    places = _Wanted(set(wanted))
    by_object: dict[str, dict[Key, BlobLocation]] = {}
    for key, note in quarantined(truth_of(profile.repository.store), wanted).items():
        row = note.rows[key]
        by_object.setdefault(row.object_name, {})[key] = row
    for name, rows in by_object.items():
        wrong = check_object(copy, name, rows).wrong
        places.add({key: row for key, row in rows.items() if key not in wrong})
    if len(places.rows) < len(wanted):
        show(0, len(wanted), "looking through the copy")

        def pass_over(error: PackMalformed) -> None:
            """What cannot be read there is as good as not there."""

        Repository(copy).rebuild_index(places, pass_over)
    return places


def _lots(keys: Sequence[Key], places: MemoryIndex) -> Iterator[list[Key]]:
    lot: list[Key] = []
    size = 0
    for key in sorted(keys, key=lambda key: (places.rows[key].object_name, places.rows[key].offset)):
        lot.append(key)
        size += places.rows[key].size
        if len(lot) >= _AT_ONCE or size >= _AT_ONCE_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _store(profile: Profile, copy: Repository, lot: Sequence[Key], places: MemoryIndex) -> list[Key]:
    """Store contents of the copy; says which of them were right there."""
    short = [key for key in lot if places.rows[key].size <= BLOB_LIMIT_BYTES]
    contents: dict[Key, bytes] = {}
    try:
        contents = dict(zip(short, copy.read(short, places, verify=True), strict=True))
    except (BlobCorrupt, BlobMissing):  # one by one, so that it keeps back no other
        for key in short:
            with contextlib.suppress(BlobCorrupt, BlobMissing):
                contents |= {key: copy.read([key], places, verify=True)[0]}
    stored = list(contents)
    with profile.transaction() as cursor:
        index = profile.index(cursor)
        _, rows = profile.repository.put(contents.values(), index)
        for key in set(lot) - set(short):
            with contextlib.suppress(BlobCorrupt, BlobMissing):
                file = ObjectFile(lambda key=key: copy.stream(key, places))  # type: ignore[misc]
                rows |= profile.repository.put_stream(file, index)[1]
                stored.append(key)
        index.add(rows)
    return stored
