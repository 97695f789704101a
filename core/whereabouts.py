"""What a worker is at, known to its supervisor also when the worker dies of it.

A few bytes of memory that both share: telling costs no more than writing a number, so it is done each time
that code of a workflow is run.
"""

from __future__ import annotations

import mmap
import os
import struct

_PLACE = struct.Struct("<q")


class Whereabouts:
    """The worker's end: tell() says which process's code is run from now on, 0 for none."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _PLACE.size)
        os.close(descriptor)

    def tell(self, process_id: int) -> None:
        """Note it."""
        _PLACE.pack_into(self._memory, 0, process_id)


def make_whereabouts() -> int:
    """A descriptor of such memory, for the supervisor to hand on; the caller closes it. Errors: OSError."""
    descriptor = os.memfd_create("whereabouts", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _PLACE.size)
    return descriptor


def read_whereabouts(descriptor: int) -> int:
    """The process whose code was run, 0 for none."""
    return int(_PLACE.unpack(os.pread(descriptor, _PLACE.size, 0))[0])
