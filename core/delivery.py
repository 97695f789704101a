"""The store of a profile, as the chunks of a campaign have to do with it by signed URLs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from grange.core.profile import Profile
from grange.farm.delivery import Delivery
from grange.repository import BlobLocation, Key, key_of
from grange.repository.cached_store import CachedStore
from grange.repository.object_name import blob_name
from grange.repository.s3_settings import S3Settings
from grange.repository.signer import Signer


def delivery_of(profile: Profile, campaign_id: int) -> Delivery | None:
    """How nodes put packs into the profile's store and read from it; None where it signs no URLs.

    Errors: OSError where the file of its certificates cannot be read.
    """
    store = profile.repository.store
    # What is looked at once need not be kept, and its neighbours need not come along.
    store = store.store if isinstance(store, CachedStore) else store
    if not isinstance(store, Signer):
        return None
    profile.repository.begin_writing()

    def locate(keys: Collection[Key]) -> dict[Key, BlobLocation]:
        with profile.transaction() as cursor:
            return profile.index(cursor).find(keys)

    def promise(names: Collection[str]) -> None:
        with profile.transaction() as cursor:
            profile.index(cursor).promise(names, campaign_id)

    return Delivery(store, store, locate, promise, certificates(profile))


@dataclass(frozen=True, slots=True)
class Trial:
    """What one task needs to try it out: everything goes through the store, and nothing is recorded.

    key, content: of an object that is there to be fetched.
    """

    delivery: Delivery
    key: Key
    content: bytes


@contextmanager
def trial(profile: Profile) -> Iterator[Trial | None]:
    """A trial of delivering into the profile's store, None where it signs no URLs; it leaves nothing there.

    Errors: those of the store.
    """
    found = delivery_of(profile, 0)
    if found is None:
        yield None
        return
    content = b"grange-" + os.urandom(16).hex().encode()
    key = key_of(content)
    names = [blob_name(key)]
    place = BlobLocation(names[0], 0, len(content), "stored", len(content))

    def locate(keys: Collection[Key]) -> dict[Key, BlobLocation]:
        return {key: place} if key in keys else {}

    found.store.put_if_absent(names[0], content)
    try:
        yield Trial(
            Delivery(found.store, found.signer, locate, names.extend, found.ca, 86400.0, 1), key, content
        )
    finally:
        found.store.delete(names)


def certificates(profile: Profile) -> str:
    """The certificates that the profile's store is trusted by, beside the system's (PEM); "" for none."""
    settings = profile.config.store
    if not isinstance(settings, S3Settings) or not settings.ca_file:
        return ""
    return Path(settings.below(profile.home).ca_file).read_text()
