"""Packing: blobs come in one by one, packs go to a store as they fill."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from grange.repository.index import BlobLocation
from grange.repository.key import Key
from grange.repository.object_name import pack_name
from grange.repository.pack import PackWriter
from grange.repository.store import Store
from grange.repository.team import Team

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType

# Each is in memory whole while it goes out.
_LEAST_AT_ONCE, _MOST_AT_ONCE = 2, 4


class Packing:
    """Writes packs: one fills while those before it go to the store. Used in a `with`.

    rows: where everything added lies; valid once the block has ended without an error.
    """

    def __init__(self, store: Store, target_bytes: int) -> None:
        self.rows: dict[Key, BlobLocation] = {}
        self._store = store
        self._target_bytes = target_bytes
        self._writer: PackWriter | None = None
        # At least one beside the thread that packs: a disk, too, takes as long as packing does.
        self._team = Team(max(_LEAST_AT_ONCE, min(store.parallel, _MOST_AT_ONCE)))
        self._under_way: deque[Future[bool]] = deque()

    def __enter__(self) -> Packing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._team:
            if error is None:
                self._send_last()

    def add(self, key: Key, content: bytes) -> None:
        """Put a blob into the open pack; a pack that is full goes to the store."""
        if self._writer is None:
            # A name of its own for each pack: one named by its content could be an old orphan that is being
            # pruned while we rely on it.
            self._writer = PackWriter(pack_name(os.urandom(16).hex()), self._target_bytes)
        self.rows[key] = self._writer.add(key, content)
        if self._writer.full:
            writer, self._writer = self._writer, None
            if len(self._under_way) == self._team.size:
                self._under_way.popleft().result()
            pack = writer.finish()
            self._under_way.append(self._team.start(lambda: self._put(writer.object_name, pack)))

    def _send_last(self) -> None:
        if self._writer is not None:
            self._put(self._writer.object_name, self._writer.finish())
        while self._under_way:
            self._under_way.popleft().result()

    def _put(self, name: str, pack: bytearray) -> bool:
        # False is as good as True: nobody else can know the name, so an earlier try of this put made it.
        return self._store.put_if_absent(name, pack)
