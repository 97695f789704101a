"""Choosing the store of a profile that has no files yet, or leaves them behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grange.core.errors import InUse
from grange.core.file_store import open_store, store_place
from grange.core.profile_edit import set_store
from grange.core.profile_file import EMBEDDED, read_profile_file
from grange.repository.object_name import BLOBS, PACKS
from grange.repository.s3_settings import S3Settings

#: How long to wait for who has the files open.
_PATIENCE_S = 10.0


def is_store_of(home: Path, settings: S3Settings) -> bool:
    """Whether a profile keeps its files in this bucket, below this prefix. Errors: ProfileInvalid."""
    file = home / "profile.toml"
    if not file.exists():
        return False
    store = read_profile_file(file).store
    return isinstance(store, S3Settings) and _place(store) == _place(settings)


def refuse_other_files(home: Path, wanted: S3Settings) -> None:
    """See that a profile has no files in another store, where nobody would look for them any more.

    Errors: InUse; those of the store that it has.
    """
    file = home / "profile.toml"
    if not file.exists():
        return
    config = read_profile_file(file)
    if isinstance(config.store, S3Settings):
        if _place(config.store) == _place(wanted):
            return
    elif not (home / config.store).is_dir():
        return
    store = open_store(home, config)
    if any(next(iter(store.list(kind)), None) is not None for kind in (PACKS, BLOBS)):
        place = store_place(home, config)
        raise InUse(f"files of this profile lie in {place}: they would not be found any more")


def choose_store(home: Path, wanted: S3Settings, *, leave_files: bool = False) -> None:
    """Name a bucket in profile.toml as the place of all files; the folder is made where there is none.

    leave_files: also where there are files in another store, which are not found then any more.

    Errors: InUse; RepositoryBusy while others have the files open; ProfileInvalid, OSError.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _nobody_else(home):
        if not leave_files:
            refuse_other_files(home, wanted)
        set_store(home / "profile.toml", wanted)


@contextmanager
def _nobody_else(home: Path) -> Iterator[None]:
    """Nobody has the files of the profile open. Where there is no database, nobody can."""
    file = home / "profile.toml"
    if not file.exists() or (
        read_profile_file(file).database == EMBEDDED and not (home / "postgres" / "data").exists()
    ):
        yield
        return
    from grange.core import store_lock
    from grange.core.profile import open_profile

    with open_profile(home) as profile, store_lock.alone(profile.connection, _PATIENCE_S):
        yield


def _place(settings: S3Settings) -> tuple[str, str, str]:
    return settings.endpoint.rstrip("/"), settings.bucket, settings.prefix
