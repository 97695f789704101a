"""The hash of data: what is equal has an equal hash, in every database and in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from grange.repository.key import Key


def hash_of_content(
    node_type: str, attributes: bytes, files: Mapping[str, Key], computer_id: int | None = None
) -> bytes:
    """SHA-256 (32 bytes) of a type, its attributes as canonical JSON, and the keys of its files by path.

    What is on a computer (a code, a folder) is not what has the same path on another; computers count by
    their id, which is of this database.
    """
    text = b"%b\0%b\0" % (node_type.encode(), attributes)
    if computer_id is not None:
        text += b"computer %d\0" % computer_id
    if files:
        text += b"".join(f"{path}\0{files[path]}\0".encode() for path in sorted(files))
    return hashlib.sha256(text).digest()
