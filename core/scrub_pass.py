"""A pass of scrubbing over all objects: how far it is, kept in the profile's folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grange.core.errors import RepositoryBusy
from grange.repository.key import is_key

_SAVE_EVERY_S = 5.0


@dataclass(slots=True)
class Pass:
    """How far a pass over all objects is, and what it has found.

    after: the id of the last object that was checked. damaged: reason by key, from this pass and earlier
    ones, until it is well again or taken out. malformed: packs whose own directory is damaged.
    Units: bytes as stored; seconds since the epoch.
    """

    store: str
    began_at_s: float
    after: int = 0
    objects: int = 0
    blobs: int = 0
    stored_bytes: int = 0
    complete: bool = False
    damaged: dict[str, str] = field(default_factory=dict)
    malformed: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def alone_on(home: Path) -> Iterator[Path]:
    """The file of the state; nobody else scrubs on this profile meanwhile."""
    lock = os.open(home / "scrub.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RepositoryBusy("another process scrubs: wait until it has ended") from None
        yield home / "scrub.json"
    finally:
        os.close(lock)


def load_pass(path: Path, store: str) -> Pass:
    """The pass that was begun; a new one where there is none, or where the files are in another store now."""
    fresh = Pass(store, time.time())
    try:
        found = json.loads(path.read_bytes())
        state = Pass(**found)
    except (FileNotFoundError, ValueError, TypeError):
        return fresh
    state.damaged = {key: reason for key, reason in state.damaged.items() if is_key(key)}
    return state if state.store == store else fresh


@contextlib.contextmanager
def saved(path: Path, state: Pass) -> Iterator[Callable[[], None]]:
    """A function that saves the state now and then; at the end, whatever it is, it is saved."""
    saved_s = time.monotonic()

    def save() -> None:
        nonlocal saved_s
        if time.monotonic() - saved_s > _SAVE_EVERY_S:
            saved_s = time.monotonic()
            _write(path, state)

    try:
        yield save
    finally:
        _write(path, state)


def _write(path: Path, state: Pass) -> None:
    fields: dict[str, Any] = {name: getattr(state, name) for name in state.__slots__}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(fields))
    os.replace(new, path)
