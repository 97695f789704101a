"""Names of objects in a store: which are allowed, and how packs and large blobs are called."""

from __future__ import annotations

import re

from grange.repository.errors import ObjectNameInvalid
from grange.repository.key import Key

PACKS = "packs/"
BLOBS = "blobs/"
#: Objects below it are named after the database that a store belongs to: of this store, and of no copy.
OWNERS = "owner/"

# No segment begins with a dot: ".." cannot leave the store, and stores have room for files of their own.
_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,15}}")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/){{0,15}}(?:{_SEGMENT})?")
_BLOB = re.compile(r"blobs/([0-9a-f]{2})/([0-9a-f]{2})/(\1\2[0-9a-f]{60})")


def check_name(name: str) -> str:
    """The name, if it is one that every store can keep.

    Errors: ObjectNameInvalid (fix the input).
    """
    if not _NAME.fullmatch(name):
        raise ObjectNameInvalid(name)
    return name


def check_prefix(prefix: str) -> str:
    """The prefix, if names can begin with it; the empty one is the beginning of all.

    Errors: ObjectNameInvalid (fix the input).
    """
    if not _PREFIX.fullmatch(prefix):
        raise ObjectNameInvalid(prefix)
    return prefix


def pack_name(digits: str) -> str:
    """The name of a pack: packs/ab/<32 hexadecimal digits>.zip."""
    return f"{PACKS}{digits[:2]}/{digits}.zip"


def blob_name(key: Key) -> str:
    """The name of a blob that stands alone: blobs/ab/cd/<key>."""
    return f"{BLOBS}{key[:2]}/{key[2:4]}/{key}"


def key_of_blob(name: str) -> Key | None:
    """The key of a blob that stands alone, by its name; None for any other object."""
    match = _BLOB.fullmatch(name)
    return Key(match[3]) if match else None
