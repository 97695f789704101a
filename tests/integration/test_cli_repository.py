"""`grange repository info, prune, repack, rebuild-index` on a real profile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

import grange as gr
from grange.cli.entry import run
from grange.core.profile import Profile
from grange.core.upkeep import upkeep

Say = Callable[..., str]


@pytest.fixture
def say(profile: Profile, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command below `grange repository` that must succeed; returns its standard output."""

    def run_it(*words: str) -> str:
        status = run(["--home", str(profile.home), "repository", *words])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    return run_it


@pytest.fixture
def told(say: Say) -> Callable[..., dict[str, Any]]:
    """The same with --json, as a document."""

    def run_it(*words: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(say(*words, "--json"))
        return document

    return run_it


@pytest.fixture
def ids(profile: Profile) -> list[int]:
    """Ten nodes in one pack with a file of their own of 1000 bytes and one that they share, of 10,000."""
    folders = [gr.Folder({"own": os.urandom(1000), "shared": b"shared so" * 1111}) for _ in range(10)]
    profile.store(*folders)
    return [folder.id or 0 for folder in folders]


def delete(profile: Profile, ids: list[int]) -> None:
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM node WHERE id = ANY (%s)", (ids,))


def test_info_counts(profile: Profile, ids: list[int], say: Say, told: Callable[..., dict[str, Any]]) -> None:
    document = told("info")
    assert (document["files"], document["contents"], document["packs"]) == (20, 11, 1)
    assert document["file_bytes"] == 10 * 10_999
    assert document["content_bytes"] == 10 * 1000 + 9999
    assert document["deduplication"] == pytest.approx(109_990 / 19_999)
    assert document["compression"] == pytest.approx(document["content_bytes"] / document["stored_bytes"])
    assert document["compression"] > 1.5
    assert document["dead_share"] == 0
    delete(profile, ids[:5])
    document = told("info")
    assert 0.35 < document["dead_share"] < 0.55
    assert document["dead_bytes"] == document["inside_bytes"] == pytest.approx(5 * 1204, abs=20)
    shown = say("info")
    for words in (
        "1 pack, 0 large files",
        "10, 55.0 kB",
        "6, 15.0 kB (1 : 3.7)",
        "inside packs that are needed",
    ):
        assert words in shown


def test_prune_says_what_it_will_do_and_does_it(
    profile: Profile, ids: list[int], say: Say, told: Callable[..., dict[str, Any]]
) -> None:
    size = told("info")["object_bytes"]
    assert "0 B can be freed now" in say("prune")
    delete(profile, ids)
    [spare] = [gr.Folder({"x": b"x"})]
    profile.store(spare)
    shown = say("prune", "--dry-run", "--grace", "0")
    assert "contents that no node names" in shown
    assert "objects in which nothing is needed" in shown
    assert told("info")["blobs"] == 12, "--dry-run has done something"
    document = told("prune", "--yes")
    assert (document["dead_blobs"], document["removed_blobs"], document["freed_bytes"]) == (11, 11, 0)
    assert (document["later"], document["later_bytes"]) == (1, size)
    assert told("info")["object_bytes"] > size
    assert "when they have been dead for 1 d: prune again then" in say("prune", "--yes")
    said = say("prune", "--yes", "--grace", "0")
    assert f"freed {size / 1000:.1f} kB: 1 object removed" in said
    assert told("info")["object_bytes"] < 1000
    assert profile.load(spare.id or 0)[0].read_files() == {"x": b"x"}


def test_prune_asks_first(profile: Profile, ids: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    delete(profile, ids[:1])
    assert run(["--home", str(profile.home), "repository", "prune"]) == 1
    said = capsys.readouterr()
    assert "nobody is there to answer: Take 1 content off the index, and remove 0 objects of 0 B?" in said.err
    assert "say --yes" in said.err
    with upkeep(profile) as index:
        index.mark()
        assert sum(use.dead_blobs for use in index.uses()) == 1


@pytest.mark.parametrize("grace", ["1", "-1d", "soon", ""])
def test_a_grace_that_is_no_duration(
    profile: Profile, grace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--home", str(profile.home), "repository", "prune", "--grace", grace]) == 2
    assert "expected 2h, 90m, 30s" in capsys.readouterr().err


def test_a_database_without_files_before_a_full_store(
    profile: Profile, ids: list[int], say: Say, told: Callable[..., dict[str, Any]]
) -> None:
    """As when the bucket was restored and the database was not."""
    with profile.transaction() as cursor:
        cursor.execute("DELETE FROM node")
        cursor.execute("TRUNCATE blob, pack")
    said = say("prune", "--grace", "0", "--yes")
    assert "No node in this database has files. Is it the right one?" in said
    assert told("info")["unknown_objects"] == 1
    assert told("prune", "--grace", "0", "--yes", "--unknown-too")["removed_objects"] == 1
    assert told("info")["object_bytes"] == 0


def test_a_lost_index(
    profile: Profile, ids: list[int], say: Say, told: Callable[..., dict[str, Any]]
) -> None:
    before = [node.read_files() for node in profile.load(*ids)]
    with profile.transaction() as cursor:
        cursor.execute("TRUNCATE blob, pack")
    said = say("prune", "--grace", "0", "--yes")
    assert "11 contents of nodes are not in the index: `grange repository rebuild-index`" in said
    assert "`grange repository rebuild-index --dry-run`" in say("info")
    assert told("rebuild-index", "--dry-run")["unread"] == 1
    assert told("info")["missing_contents"] == 11
    said = say("rebuild-index")
    assert "11 contents in 1 object are in the index, 0 were dropped" in said
    assert "all files of all nodes are in the index" in said
    assert [node.read_files() for node in profile.load(*ids)] == before
    assert "index and store agree on 1 object" in say("rebuild-index", "--yes")


def test_a_lost_store(
    profile: Profile,
    ids: list[int],
    told: Callable[..., dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = profile.repository.store
    store.delete([found.name for found in store.list()])
    assert run(["--home", str(profile.home), "repository", "rebuild-index"]) == 1
    asked = f"Drop 11 contents from the index, because they are not in {profile.home / 'store'}?"
    assert asked in capsys.readouterr().err
    document = told("rebuild-index", "--yes")
    assert (document["dropped_blobs"], document["missing"]) == (11, 11)


def test_repack(profile: Profile, ids: list[int], say: Say, told: Callable[..., dict[str, Any]]) -> None:
    before = profile.load(ids[9])[0].read_files()
    size = told("info")["object_bytes"]
    assert "nothing to do" in say("repack")
    delete(profile, ids[:9])
    assert "`grange repository repack` frees them" in say("prune", "--yes")
    assert told("repack", "--dry-run")["mostly_dead"] == 1
    assert told("repack", "--dry-run", "--dead-share", "0.99")["packs"] == 0
    said = say("repack", "--yes")
    assert f"2 contents of 1 pack ({size / 1000:.1f} kB) now lie in 1 pack" in said
    assert "`grange repository prune`, after its grace period" in said
    assert told("prune", "--yes", "--grace", "0")["freed_bytes"] == size
    assert profile.load(ids[9])[0].read_files() == before


def test_a_copy_of_a_database_does_not_prune_the_store_of_the_original(
    profile: Profile,
    ids: list[int],
    say: Say,
    capsys: pytest.CaptureFixture[str],
    new_database: Callable[..., str],
) -> None:
    say("prune", "--yes", "--grace", "0")
    copy = profile.home.parent / "copy"
    copy.mkdir()
    url, store = new_database(), profile.home / "store"
    (copy / "profile.toml").write_text(f'database = "{url}"\nstore = "{store}"\n')
    words = ["--home", str(copy), "repository", "prune", "--yes", "--grace", "0", "--unknown-too"]
    assert run(words) == 1
    said = capsys.readouterr().err
    assert "belongs to another database" in said
    assert "grange repository take-over" in said
    assert run(["--home", str(copy), "repository", "prune", "--dry-run"]) == 0
    for node in profile.load(*ids):
        node.read_files()
    assert run([*words, "--take-over"]) == 0
    assert "1 object removed" in capsys.readouterr().out
    assert run([*words]) == 0
    assert run(["--home", str(profile.home), "repository", "prune", "--yes"]) == 1
