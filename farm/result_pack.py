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

#: A manifest that says it is longer is not read.
LARGEST_MANIFEST_BYTES = 512 << 20


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
        size = pack.size("manifest.json")
        if size > LARGEST_MANIFEST_BYTES:
            raise ValueError(f"its manifest would have {size} bytes")
        content = pack.read("manifest.json")
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
    told = _decoder(Receipt).decode(receipt.read("delivered.json"))
    made = DeliveredPack(told.name, told.size, told.directory_at, receipt.read("directory"))
    if made.reader().checksum("manifest.json") != (zlib.crc32(manifest), len(manifest)):
        raise ValueError(f"its manifest is not that of {told.name}")
    return made


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
