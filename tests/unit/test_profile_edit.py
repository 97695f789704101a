"""Editing profile.toml: another store, and nothing else."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest

from grange.core.errors import ProfileInvalid
from grange.core.profile_edit import set_store, with_store
from grange.core.profile_file import read_profile_file
from grange.repository.s3_settings import S3Settings

BUCKET = S3Settings("https://s3.example.org", "files", prefix="ours", ca_file="ca.pem")

TEXTS = [
    "",
    'store = "store"\n',
    '# mine\nemail = "a@b"\n# where\nstore = "here"  # for now\nslots = 2',
    '[store]\nendpoint = "https://old.example.org"\nbucket = "old"\n# the end\n',
    'slots = 3\n\n["store"]\nbucket = "old"\nendpoint = ""\n',
    'store = { endpoint = "", bucket = "old" }\nidle_s = 5\n',
    'store.endpoint = ""\nstore.bucket = "old"\nemail = "store = no"\n',
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("store", ['elsewhere/ä "quoted"', BUCKET])
def test_only_the_store_changes(text: str, store: str | S3Settings) -> None:
    edited = with_store(text, store)
    before, after = tomllib.loads(text), tomllib.loads(edited)
    assert after.pop("store") == (store if isinstance(store, str) else store.to_table())
    before.pop("store", None)
    assert after == before
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in edited.splitlines() if line.startswith("#")
    ]
    # and back again
    assert tomllib.loads(with_store(edited, "store")) == {**before, "store": "store"}


def test_what_cannot_be_edited_by_lines_is_left_to_people() -> None:
    text = 'email = """\nstore = 1\n"""\nstore = "x"\n'
    with pytest.raises(ProfileInvalid, match="by hand"):
        with_store(text, "y")


def test_the_file_is_replaced_and_keeps_its_rights(tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    path = tmp_path / "profile.toml"
    path.symlink_to(real)
    real.write_text('store = "a"\nslots = 4\n')
    real.chmod(0o640)
    set_store(path, BUCKET)
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert read_profile_file(path).store == BUCKET
    assert read_profile_file(path).slots == 4
    set_store(path, "b")
    assert read_profile_file(path).store == "b"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["profile.toml", "real.toml"]


def test_a_file_that_is_wrong_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "profile.toml"
    path.write_text("slotz = 1\n")
    with pytest.raises(ProfileInvalid, match="slotz"):
        set_store(path, "b")
    assert path.read_text() == "slotz = 1\n"
