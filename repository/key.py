"""Keys: a blob is named by the SHA-256 of its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NewType

from grange.repository.errors import KeyInvalid

#: 64 lower-case hexadecimal digits.
Key = NewType("Key", str)

_IS_KEY = re.compile(r"[0-9a-f]{64}").fullmatch


def key_of(content: bytes | bytearray | memoryview) -> Key:
    """The key of a content."""
    return Key(hashlib.sha256(content).hexdigest())


def is_key(key: object) -> bool:
    """Whether something has the form of a key."""
    return isinstance(key, str) and _IS_KEY(key) is not None


def check_keys(keys: Iterable[str]) -> None:
    """See that these are keys; before any of them gets into a statement or a name.

    Errors: KeyInvalid.
    """
    for key in keys:
        if not is_key(key):
            raise KeyInvalid(key)
