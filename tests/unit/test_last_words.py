"""What a failed program said last: not at the price of reading gigabytes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from grange.core.job_recipe import LARGEST_READ_FOR_WORDS, _last_words
from grange.core.output_files import OutputFiles
from grange.repository import BlobLocation, Key, key_of

SAID = b"first\nlast\n"


@pytest.mark.parametrize(
    ("size", "words"),
    [(LARGEST_READ_FOR_WORDS, "; last line of stderr.txt: last"),
     (LARGEST_READ_FOR_WORDS + 1, "; stderr.txt says more")],
)  # fmt: skip
def test_a_large_file_is_not_read(size: int, words: str) -> None:
    key, asked = key_of(SAID), []

    def read(keys: Sequence[Key]) -> list[bytes]:
        asked.extend(keys)
        return [SAID]

    place = BlobLocation("packs/ab/cd", 0, size, "stored", size)
    files = OutputFiles({"stderr.txt": key}, read, {}, 1, {key: place})
    assert _last_words(files) == words
    assert asked == ([key] if size <= LARGEST_READ_FOR_WORDS else [])
