"""Writing blobs anew: out of the objects in which they lie, into new ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from grange.repository.cached_store import truth_of
from grange.repository.index import BlobLocation, MemoryIndex
from grange.repository.key import Key
from grange.repository.object_file import ObjectFile
from grange.repository.pack import TARGET_BYTES
from grange.repository.packing import Packing
from grange.repository.repository import BLOB_LIMIT_BYTES, Repository
from grange.repository.store import Store


def rewritten(
    store: Store, rows: Mapping[Key, BlobLocation], target_bytes: int = TARGET_BYTES
) -> dict[Key, BlobLocation]:
    """Write blobs anew: short ones into packs in the order of rows, long ones alone. Gives where they lie.

    Each is compared with its key on the way, as it lies in the store: a cache is neither believed nor filled.
    A pack that a runner wrote may have long ones in it. The caller sees to it that nothing is pruned.

    Units: target_bytes, of a new pack; in memory are some packs, and of a long blob some pieces.
    Errors: BlobCorrupt, BlobMissing; those of the store. What was written then is an orphan.
    """
    repository = Repository(truth_of(store))
    here, nowhere = MemoryIndex(), MemoryIndex()
    here.rows.update(rows)
    short = [key for key, row in rows.items() if row.size <= BLOB_LIMIT_BYTES]
    with Packing(repository.store, target_bytes) as packing:
        for key, content in zip(short, repository.read_each(short, here, verify=True), strict=True):
            packing.add(key, content)
    now = packing.rows
    for key, row in rows.items():
        if row.size > BLOB_LIMIT_BYTES:
            _, alone = repository.put_stream(ObjectFile(partial(repository.stream, key, here)), nowhere)
            now |= alone
    return now
