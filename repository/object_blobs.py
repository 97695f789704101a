"""The blobs in an object: a pack is its own index, a blob that stands alone says by its name what it is."""

from __future__ import annotations

from functools import partial

from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_name import key_of_blob
from grange.repository.pack import PackReader
from grange.repository.store import Store


def alone(name: str, size: int) -> BlobLocation:
    """Where a blob lies that is an object by itself. Units: size in bytes."""
    return BlobLocation(name, 0, size, "stored", size)


def blobs_in(store: Store, name: str, size: int) -> dict[Key, BlobLocation]:
    """Where the blobs in an object lie; of a pack its directory and headers are read, not the contents.

    Units: size, that of the object, in bytes.
    Errors: PackMalformed; ObjectMissing for a pack that is not there; those of the store.
    """
    key = key_of_blob(name)
    if key is not None:
        return {key: alone(name, size)}
    return PackReader(name, size, partial(store.get_ranges, name), store.merge_gap_bytes).locations(name)
