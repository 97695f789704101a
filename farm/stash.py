"""Stashes: files that a calculation leaves on the computer that it ran on, in place of bringing them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: copy     a folder of the files
#: tar …    an archive of them, perhaps compressed
StashMode = Literal["copy", "tar", "tar.gz", "tar.bz2", "tar.xz"]
STASH_MODES: tuple[StashMode, ...] = ("copy", "tar", "tar.gz", "tar.bz2", "tar.xz")


@dataclass(frozen=True, slots=True)
class Stash:
    """Files that stay on the computer: wave functions, trajectories, what restarts need.

        gr.Command([…], stash=gr.Stash(["wfc*", "restart/**"], "$SCRATCH/stash"))

    paths: glob patterns in the program's directory ("**" allowed). to: a folder there; ~ and $NAME are
    filled in there. Each calculation has a folder or archive of its own below it, which appears when it is
    complete. mode: "copy" for a folder, or "tar", "tar.gz", "tar.bz2", "tar.xz" for an archive.

    Files are stashed whenever the program has run, also when it failed or was stopped at a limit; not when
    it was killed. The output "remote_stash" says where they are. Where nothing is matched, there is none.
    """

    paths: tuple[str, ...]
    to: str
    mode: StashMode = "copy"


@dataclass(frozen=True, slots=True)
class Stashed:
    """Where the files of a task are now: a folder, or an archive, as the mode says.

    patterns: what was asked for. count: how many files that was.
    """

    path: str
    mode: StashMode
    patterns: tuple[str, ...]
    count: int
