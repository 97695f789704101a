"""The hash of data: what is equal has an equal hash, in every database and in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from grange.repository.key import Key


def hash_of_content(node_type: str, attributes: bytes, files: Mapping[str, Key]) -> bytes:
    """SHA-256 (32 bytes) of a type, its attributes as canonical JSON, and the keys of its files by path."""
    text = b"%b\0%b\0" % (node_type.encode(), attributes)
    if files:
        text += b"".join(f"{path}\0{files[path]}\0".encode() for path in sorted(files))
    return hashlib.sha256(text).digest()
