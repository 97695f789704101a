"""Reading result packs: the manifest that a runner put at the end of its pack."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grange.farm import runner
from grange.farm.errors import ResultMalformed
from grange.farm.result import ResultPack, TaskResult


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

    Errors: ResultMalformed, FileNotFoundError.
    """
    import msgspec

    try:
        pack = runner.ZipReader(str(path))
    except ValueError as problem:
        raise ResultMalformed(str(problem)) from problem
    try:
        manifest = _decoder().decode(pack.read("manifest.json"))
        return ResultPack(path, manifest.results, len(pack.names) - 1)
    except (KeyError, ValueError, msgspec.MsgspecError) as problem:
        raise ResultMalformed(f"{path} is not a result pack: {problem}") from problem
    finally:
        pack.close()
