"""Reading result packs: the manifest that a runner put at the end of its pack, or receipts of packs."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grange.farm import runner
from grange.farm.errors import ResultMalformed
from grange.farm.result import ResultPack, TaskResult
from grange.repository.delivered import DeliveredPack
from grange.repository.errors import PackMalformed

#: What says that it is longer is not read: a manifest; of a receipt, where the pack is, and its directory.
LARGEST_MANIFEST_BYTES = 512 << 20
_LARGEST_RECEIPT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json of a result pack."""

    format: int
    results: tuple[TaskResult, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """delivered.json of a receipt: where the pack is."""

    name: str
    size: int
    directory_at: int


@cache
def _decoder(kind: type[Manifest | Receipt]) -> Any:
    import msgspec

    return msgspec.json.Decoder(kind)


def read_result_pack(path: Path) -> ResultPack:
    """The pack with its manifest parsed; blobs stay where they are.

    What the file says of itself is bounded before anything of it is in memory. A receipt tells of a pack in
    the store; nobody has looked there yet.

    Errors: ResultMalformed, FileNotFoundError.
    """
    import msgspec

    try:
        pack = runner.ZipReader(str(path))
    except ValueError as problem:
        raise ResultMalformed(str(problem)) from problem
    try:
        content = _read(pack, "manifest.json", LARGEST_MANIFEST_BYTES)
        manifest = _decoder(Manifest).decode(content)
        if "delivered.json" in pack:
            delivered = _delivered(pack, content)
            return ResultPack(path, manifest.results, len(delivered.locations()), delivered)
        return ResultPack(path, manifest.results, len(pack.names) - 1)
    except (KeyError, ValueError, zlib.error, msgspec.MsgspecError, PackMalformed) as problem:
        raise ResultMalformed(f"{path} is not a result pack: {problem}") from problem
    finally:
        pack.close()


def _delivered(receipt: runner.ZipReader, manifest: bytes) -> DeliveredPack:
    """The pack that a receipt tells of. Errors: PackMalformed, ValueError if this is not its manifest."""
    told = _decoder(Receipt).decode(_read(receipt, "delivered.json", _LARGEST_RECEIPT_BYTES))
    directory = _read(receipt, "directory", runner.LARGEST_DIRECTORY)
    made = DeliveredPack(told.name, told.size, told.directory_at, directory)
    if made.reader().checksum("manifest.json") != (zlib.crc32(manifest), len(manifest)):
        raise ValueError(f"its manifest is not that of {told.name}")
    return made


def _read(pack: runner.ZipReader, name: str, limit_bytes: int) -> bytes:
    """A member. Errors: ValueError for one that says it is longer; KeyError."""
    if pack.size(name) > limit_bytes:
        raise ValueError(f"its {name} would have {pack.size(name)} bytes")
    return pack.read(name)


def set_aside(path: Path) -> Path:
    """Move a pack that is refused to where nobody reads it and it can be looked at; says where that is.

    path: SPOOL/<run>/<chunk>/<pack>; it goes to SPOOL/refused/.
    """
    run = path.parents[1]
    folder = run.parent / "refused"
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / f"{run.name}-{path.parent.name}-{path.name}"
    os.replace(path, place)
    return place
