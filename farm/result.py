"""Results: what became of a task, as the runner's manifest tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grange.farm.stash import Stashed
from grange.repository.delivered import DeliveredPack
from grange.repository.key import Key

#: finished            the program ended by itself (any return code), or the function returned
#: raised              the function raised; message is the exception, the traceback is kept as a file
#: not_recordable      the function returned something that is no data; message names it
#: program_missing     no such program, or not executable
#: input_missing       an input file could not be made
#: walltime_exceeded   ended by us at its walltime
#: memory_exceeded     ended by us at its memory limit
#: stopped             ended by us because a monitor wanted that; message is what the monitor said
#: node_lost           the node was lost with all that ran on it, every time that this was tried
#: account_refused     the scheduler takes no jobs for the account that was named
#: stash_failed        the program ran, but files could not be put where they were to stay
#: crashed             the interpreter or program died of a signal that we did not send
#: cancelled           ended by us because it was asked
#: retrieve_failed     the program ran, but its output could not be read or kept
#: input_unreachable   an input file that lies in the store could not be fetched from there; executors send
#:                     such tasks again, with their input files, so that nobody else gets to see it
Outcome = Literal[
    "finished",
    "raised",
    "not_recordable",
    "program_missing",
    "input_missing",
    "walltime_exceeded",
    "memory_exceeded",
    "stopped",
    "node_lost",
    "account_refused",
    "stash_failed",
    "crashed",
    "cancelled",
    "retrieve_failed",
    "input_unreachable",
]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one attempt of one task.

    outputs: for functions, name → typed value (docs/design.md, "Typed values"); a function's single
    return value is named "result". files: path → key of its content; the bytes are in the pack of
    this result or in an earlier one of the same repository. invalidates_cache: of the exit code that a
    function returned. stash: where files are that stayed there.
    Units: seconds since the epoch (started_at), seconds (wall_s, cpu_s), mebibytes (peak_memory_mb).
    """

    id: str
    attempt: int
    outcome: Outcome
    return_code: int | None
    signal: int | None
    message: str
    outputs: Mapping[str, list[Any]]
    files: Mapping[str, Key]
    started_at: float
    wall_s: float
    cpu_s: float
    peak_memory_mb: float
    host: str
    invalidates_cache: bool = False
    stash: Stashed | None = None


@dataclass(frozen=True, slots=True)
class ResultPack:
    """A pack that a runner delivered: a ZIP file with a manifest and blobs, and the parsed manifest.

    blobs: how many members besides the manifest; a pack with none need not be kept. delivered: where the pack
    is, if it was put into the store already and the file is its receipt.
    """

    path: Path
    results: tuple[TaskResult, ...]
    blobs: int
    delivered: DeliveredPack | None = None
