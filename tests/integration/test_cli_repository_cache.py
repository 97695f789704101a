"""`grange repository cache`, on a profile whose store is a bucket. Nothing is asked of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grange.cli.entry import run
from grange.repository import MemoryStore
from grange.repository.cached_store import CachedStore

BUCKET = """\
cache_gb = 0.5
[store]
endpoint = "https://127.0.0.1:1"
bucket = "somewhere"
"""


def say(capsys: pytest.CaptureFixture[str], home: Path, *words: str) -> str:
    status = run(["--home", str(home), "repository", "cache", *words])
    told = capsys.readouterr()
    assert status == 0, told.err
    return told.out


def fill(home: Path) -> None:
    far = MemoryStore()
    far.put_if_absent("packs/a", bytes(1_000_000))
    store = CachedStore(far, home / "cache", 500_000_000)
    for _ in range(4):
        store.get_ranges("packs/a", [(0, 1_000_000)])
    store.info()


def test_what_is_kept_is_shown_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.toml").write_text(BUCKET)
    assert "nothing is kept" in say(capsys, tmp_path, "show")
    assert "nothing is kept" in say(capsys, tmp_path, "clear")
    assert not (tmp_path / "cache").exists(), "looking made a folder"
    fill(tmp_path)
    shown = say(capsys, tmp_path, "show")
    for words in (
        str(tmp_path / "cache"),
        "1.0 MB of 500 MB",
        "4, 75.0% from here",
        "3.0 MB from here, 1.0 MB",
    ):
        assert words in shown
    assert "not used" not in shown
    document = json.loads(say(capsys, tmp_path, "show", "--json"))
    assert document["used"] is True
    assert (document["info"]["hits"], document["info"]["misses"], document["info"]["files"]) == (3, 1, 1)
    assert "1.0 MB removed" in say(capsys, tmp_path, "clear")
    document = json.loads(say(capsys, tmp_path, "show", "--json"))
    assert (document["info"]["hits"], document["info"]["kept_bytes"]) == (0, 0)


def test_a_cache_that_is_not_used_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.toml").write_text('store = "store"\n')
    fill(tmp_path)
    assert "It is not used" in say(capsys, tmp_path, "show")
    (tmp_path / "profile.toml").write_text(BUCKET.replace("0.5", "0"))
    assert "It is not used" in say(capsys, tmp_path, "show")


def test_a_cache_that_cannot_be_cleared_is_an_error_of_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile.toml").write_text(BUCKET)
    fill(tmp_path)
    (tmp_path / "cache" / "blocks-1" / "evicting").unlink(missing_ok=True)
    (tmp_path / "cache" / "blocks-1" / "evicting").mkdir()
    assert run(["--home", str(tmp_path), "repository", "cache", "clear"]) == 1
    assert "cannot delete" in capsys.readouterr().err
