"""Bytes and keys: contents by their SHA-256, many to a pack, over any store."""

from grange.repository.counting_store import CountingStore
from grange.repository.errors import (
    BlobCorrupt,
    BlobMissing,
    BlobQuarantined,
    ContentChanged,
    KeyInvalid,
    ObjectMissing,
    ObjectNameInvalid,
    PackMalformed,
    RepositoryError,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from grange.repository.index import BlobLocation, Codec, Index, MemoryIndex
from grange.repository.key import Key, key_of
from grange.repository.local_store import LocalStore
from grange.repository.memory_store import MemoryStore
from grange.repository.pack import PackReader, PackWriter
from grange.repository.repository import Repository
from grange.repository.store import ObjectInfo, Range, Store

__all__ = [
    "BlobCorrupt",
    "BlobLocation",
    "BlobMissing",
    "BlobQuarantined",
    "Codec",
    "ContentChanged",
    "CountingStore",
    "Index",
    "Key",
    "KeyInvalid",
    "LocalStore",
    "MemoryIndex",
    "MemoryStore",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectNameInvalid",
    "PackMalformed",
    "PackReader",
    "PackWriter",
    "Range",
    "Repository",
    "RepositoryError",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
    "key_of",
]
