"""Keys: a blob is named by the SHA-256 of its content."""

from __future__ import annotations

import hashlib
from typing import NewType

#: 64 lower-case hexadecimal digits.
Key = NewType("Key", str)


def key_of(content: bytes | bytearray | memoryview) -> Key:
    """The key of a content."""
    return Key(hashlib.sha256(content).hexdigest())
