"""Keys of a store, kept in a file of their own beside profile.toml, for this user alone."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from grange.core.errors import ProfileInvalid

#: The file in the folder of a profile, as `credentials_file` names it.
KEYS_FILE = "store-keys"
_TEXT = """\
# Keys of the bucket that profile.toml names. Whoever has them can read and delete all files.
[default]
aws_access_key_id = {access}
aws_secret_access_key = {secret}
"""


def write_keys(home: Path, access: str, secret: str) -> Path:
    """Write keys into the folder of a profile, for this user alone, in place of those that were there.

    Errors: ProfileInvalid for what is no key; OSError.
    """
    for what, key in (("access key", access), ("secret key", secret)):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ProfileInvalid(f"the {what} is empty or has characters that no key has: copy it once more")
    path = home / KEYS_FILE
    new = path.with_name(f".{KEYS_FILE}.{os.getpid()}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(_TEXT.format(access=access, secret=secret))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        with suppress(FileNotFoundError):
            new.unlink()
    return path
