"""The store of a profile, as the chunks of a campaign have to do with it by signed URLs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from grange.core.profile import Profile
from grange.farm.delivery import Delivery
from grange.repository import BlobLocation, Key
from grange.repository.cached_store import CachedStore
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

    def locate(keys: Collection[Key]) -> dict[Key, BlobLocation]:
        with profile.transaction() as cursor:
            return profile.index(cursor).find(keys)

    def promise(names: Collection[str]) -> None:
        with profile.transaction() as cursor:
            profile.index(cursor).promise(names, campaign_id)

    return Delivery(store, store, locate, promise, certificates(profile))


def certificates(profile: Profile) -> str:
    """The certificates that the profile's store is trusted by, beside the system's (PEM); "" for none."""
    settings = profile.config.store
    if not isinstance(settings, S3Settings) or not settings.ca_file:
        return ""
    return Path(settings.below(profile.home).ca_file).read_text()
