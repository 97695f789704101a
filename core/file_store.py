"""The store of a profile: a folder, or a bucket with retries and a cache before it."""

from __future__ import annotations

from pathlib import Path

from grange.core.profile_file import ProfileFile
from grange.repository.retries import Retries
from grange.repository.s3_settings import S3Settings
from grange.repository.store import Store


def open_store(home: Path, config: ProfileFile, retries: Retries | None = None) -> Store:
    """The store that profile.toml names. Nothing is asked of a server yet.

    retries: how patient to be with a server.

    Errors: StoreError, StoreReadOnly, StoreFull where a folder cannot be used.
    """
    if isinstance(config.store, S3Settings):
        cache_bytes = int(config.cache_gb * 1e9)
        return open_bucket(config.store.below(home), home / config.cache, cache_bytes, retries)
    from grange.repository.local_store import LocalStore

    return LocalStore(home / config.store)


def open_bucket(settings: S3Settings, cache: Path, cache_bytes: int, retries: Retries | None = None) -> Store:
    """A bucket: passing faults are tried again, and what was read is kept in a folder.

    Units: cache_bytes in bytes; 0: nothing is kept.
    """
    from grange.repository.cached_store import CachedStore
    from grange.repository.retrying_store import RetryingStore
    from grange.repository.s3_store import S3Store

    retries = retries or Retries()
    store = RetryingStore(S3Store(settings, retries), retries)
    return CachedStore(store, cache, cache_bytes) if cache_bytes else store


def store_place(home: Path, config: ProfileFile) -> str:
    """Where the files of a profile are, for people."""
    return str(home / config.store) if isinstance(config.store, str) else str(config.store)
