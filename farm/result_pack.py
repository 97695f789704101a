"""Reading result packs: the manifest that a runner put at the end of its pack."""

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

#: A manifest that says it is longer is not read.
LARGEST_MANIFEST_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json of a result pack."""

    format: int
    results: tuple[TaskResult, ...]


@cache
def _decoder() -> Any:
    import msgspec

    return msgspec.json.Decoder(Manifest)


def read_result_pack(path: Path) -> ResultPack:
    """The pack with its manifest parsed; blobs stay where they are.

    What the file says of itself is bounded before anything of it is in memory.

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
        manifest = _decoder().decode(pack.read("manifest.json"))
        return ResultPack(path, manifest.results, len(pack.names) - 1)
    except (KeyError, ValueError, zlib.error, msgspec.MsgspecError) as problem:
        raise ResultMalformed(f"{path} is not a result pack: {problem}") from problem
    finally:
        pack.close()


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
