"""The public names of the repository, as a list that changes on purpose."""

from __future__ import annotations

import subprocess
import sys

import grange.repository


def test_the_public_names_are_these() -> None:
    assert grange.repository.__all__ == [
        "BlobCorrupt",
        "BlobLocation",
        "BlobMissing",
        "BlobQuarantined",
        "Codec",
        "ContentChanged",
        "CountingStore",
        "Index",
        "Key",
        "KeyInvalid",
        "LocalStore",
        "MemoryIndex",
        "MemoryStore",
        "ObjectInfo",
        "ObjectMissing",
        "ObjectNameInvalid",
        "PackMalformed",
        "PackReader",
        "PackWriter",
        "Range",
        "Repository",
        "RepositoryError",
        "Store",
        "StoreError",
        "StoreFull",
        "StoreReadOnly",
        "StoreUnavailable",
        "key_of",
    ]
    assert all(hasattr(grange.repository, name) for name in grange.repository.__all__)


def test_importing_it_brings_in_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules); import grange.repository; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} "
        "- set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["grange"]
