"""Quarantine: damaged objects are kept as evidence where nothing takes their bytes for good ones.

quarantine/<name of the object>            its bytes, as they were found
quarantine/<name of the object>.<...>.json a note: which blobs, why, when

The notes are in the store, so that they outlive the database. Who rebuilds the index or prunes looks at
packs/ and blobs/ only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from grange.repository.errors import BlobMissing, BlobQuarantined, ObjectMissing, StoreError
from grange.repository.index import BlobLocation
from grange.repository.key import Key, is_key
from grange.repository.object_file import ObjectFile
from grange.repository.store import ObjectInfo, Store

QUARANTINE = "quarantine/"
_NOTE = ".json"
_LARGEST_NOTE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of a damaged object.

    evidence: where its bytes are kept; "" where there were none. reasons: by key. rows: where the blobs lay.
    written_as: the name of the note itself.
    Units: found_at_s in seconds since the epoch.
    """

    name: str
    evidence: str
    found_at_s: float
    reasons: Mapping[Key, str]
    rows: Mapping[Key, BlobLocation]
    written_as: str


def keep_evidence(
    store: Store, name: str, reasons: Mapping[Key, str], rows: Mapping[Key, BlobLocation]
) -> Note:
    """Copy a damaged object, and write down what is wrong with it. The object itself stays where it is.

    May be repeated: a copy that is there is not made again.

    Errors: as Store.
    """
    written_as = f"{QUARANTINE}{name}.{os.urandom(4).hex()}{_NOTE}"
    note = Note(name, _copied(store, name), time.time(), reasons, rows, written_as)
    content = json.dumps(
        {
            "format": 1,
            "object": note.name,
            "evidence": note.evidence,
            "found_at_s": note.found_at_s,
            "blobs": {key: {"reason": reason, **asdict(rows[key])} for key, reason in reasons.items()},
        },
        indent=1,
    ).encode()
    store.put_if_absent(written_as, content)
    return note


def notes(store: Store) -> Iterator[Note]:
    """All notes of a store. One that cannot be read is passed over.

    Errors: as Store.
    """
    for info in store.list(QUARANTINE):
        if info.name.endswith(_NOTE) and info.size <= _LARGEST_NOTE_BYTES:
            note = _note(store, info.name)
            if note is not None:
                yield note


def quarantined(store: Store, keys: Collection[Key]) -> dict[Key, Note]:
    """Which of these blobs were found damaged, as the notes of a store have it."""
    wanted = set(keys)
    return {key: note for note in notes(store) for key in note.reasons if key in wanted}


def evidence_of(store: Store) -> list[ObjectInfo]:
    """The damaged objects that are kept. Errors: as Store."""
    return [found for found in store.list(QUARANTINE) if not found.name.endswith(_NOTE)]


def missing_error(store: Store, keys: Sequence[Key]) -> BlobMissing:
    """What to raise for blobs that are not in the repository: it says which of them are in quarantine."""
    try:
        found = quarantined(store, keys)
    except StoreError:
        found = {}
    if not found:
        return BlobMissing(keys)
    key, note = next(iter(found.items()))
    when = time.strftime("%Y-%m-%d", time.gmtime(note.found_at_s))
    kept = f"; what there is of it is kept as {note.evidence}" if note.evidence else ""
    return BlobQuarantined(
        keys, list(found), f"{key} was found damaged in {note.name} on {when}: {note.reasons[key]}{kept}"
    )


def _note(store: Store, name: str) -> Note | None:
    try:
        found = json.loads(b"".join(store.read(name)))
        blobs = {Key(key): entry for key, entry in found["blobs"].items() if is_key(key)}
        reasons = {key: str(entry.pop("reason")) for key, entry in blobs.items()}
        rows = {key: BlobLocation(**entry) for key, entry in blobs.items()}
        return Note(found["object"], found["evidence"], float(found["found_at_s"]), reasons, rows, name)
    except (ObjectMissing, ValueError, KeyError, TypeError, AttributeError):
        return None


def _copied(store: Store, name: str) -> str:
    """The name of a copy of an object; "" where the object is not there."""
    try:
        digest = _digest(store, name)
    except ObjectMissing:
        return ""
    number = 1
    while True:
        copy = f"{QUARANTINE}{name}" + (f".{number}" if number > 1 else "")
        if store.head(copy) is None:
            store.put_if_absent(copy, ObjectFile(lambda: store.read(name)))
        if _digest(store, copy) == digest:
            return copy
        number += 1
        if number > 100:
            raise StoreError(f"{name} does not stay what it is while it is copied to {QUARANTINE}{name}")


def _digest(store: Store, name: str) -> bytes:
    digest = hashlib.sha256()
    for piece in store.read(name):
        digest.update(piece)
    return digest.digest()
