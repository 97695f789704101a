"""What can go wrong with bytes and keys.

RepositoryError
├── KeyInvalid           not 64 hexadecimal digits (fix the input)
├── BlobMissing          no index row, or the store has not the bytes (permanent)
│   └── BlobQuarantined  it was found damaged and taken out (store the same content again)
├── BlobCorrupt          the bytes do not hash to their key (permanent)
├── ContentChanged       a file was written to while it was stored (retry when it is at rest)
├── PackMalformed        not a ZIP file that grange wrote (permanent)
└── StoreError
    ├── ObjectNameInvalid  not a name that stores keep (fix the input)
    ├── ObjectMissing    no object of that name (permanent)
    ├── StoreReadOnly    the store refuses writes: rights, read-only mount (permanent until mended)
    ├── StoreFull        no space left (permanent until mended)
    └── StoreUnavailable did not answer, may answer later (retry)
"""

from __future__ import annotations

from collections.abc import Sequence


class RepositoryError(Exception):
    """Something is wrong with stored bytes."""


class KeyInvalid(RepositoryError):
    """Not the key of a blob."""

    def __init__(self, key: object) -> None:
        self.key = key
        shown = repr(key)
        shown = shown if len(shown) < 80 else f"{shown[:77]}..."
        super().__init__(f"no key of a blob: expected 64 digits of 0-9a-f, got {shown}")


class BlobMissing(RepositoryError):
    """A blob is not in the repository."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = list(keys)
        shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        super().__init__(f"not in the repository: {shown}")


class BlobQuarantined(BlobMissing):
    """A blob was found damaged and taken out of the repository; storing the same content again heals it.

    quarantined: those of the keys; the others are missing for another reason.
    """

    def __init__(self, keys: Sequence[str], quarantined: Sequence[str], detail: str) -> None:
        super().__init__(keys)
        self.quarantined = list(quarantined)
        count = len(quarantined)
        shown = f"{count} of these blobs are in quarantine" if count > 1 else "in quarantine"
        self.args = (f"{shown}: {detail}; storing the same content again heals it",)


class BlobCorrupt(RepositoryError):
    """Stored bytes do not hash to their key."""

    def __init__(self, key: str, pack: str) -> None:
        self.key = key
        self.pack = pack
        super().__init__(f"the bytes of blob {key} in {pack} are not what was stored: their SHA-256 differs")


class ContentChanged(RepositoryError):
    """A file was written to while it was being stored; nothing of it was kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"{path} changed while it was being stored and was not kept: store it when nobody writes to it"
        )


class PackMalformed(RepositoryError):
    """A file that should be a pack is not one."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name} is not a pack: {reason}")


class StoreError(RepositoryError):
    """The object store did not do what it was asked."""


class ObjectNameInvalid(StoreError):
    """Not a name under which stores keep objects."""

    def __init__(self, name: str, reason: str = "") -> None:
        self.name = name
        expected = (
            "expected segments of ASCII letters, digits, '.', '_' and '-' that do not begin with '.' or '-', "
            "separated by '/'"
        )
        super().__init__(f"{name!r} is no name for an object: {reason or expected}")


class ObjectMissing(StoreError):
    """No object of that name is in the store."""

    def __init__(self, name: str, store: str) -> None:
        self.name = name
        super().__init__(f"no object {name} in {store}")


class StoreReadOnly(StoreError):
    """The store refuses to be written to."""


class StoreFull(StoreError):
    """No space is left in the store."""


class StoreUnavailable(StoreError):
    """The store did not answer; the same call may succeed later.

    tries: how often it was asked.
    """

    def __init__(self, message: str, tries: int = 1) -> None:
        self.tries = tries
        super().__init__(message)
