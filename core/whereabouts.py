"""What a worker is at, known to its supervisor also when the worker dies of it.

A few bytes of memory that both share: telling costs no more than writing a number, so it is done each time
that code of a workflow is run.
"""

from __future__ import annotations

import math
import mmap
import os
import struct

#: Seconds after which the code of one process is said to keep its worker.
KEPT_S = 60.0
# the process whose code is run, 0 for none; how often that was told
_PLACE = struct.Struct("<qq")


class Whereabouts:
    """The worker's end: tell() says which process's code is run from now on, 0 for none."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _PLACE.size)
        self._told = 0
        os.close(descriptor)

    def tell(self, process_id: int) -> None:
        """Note it."""
        self._told += 1
        _PLACE.pack_into(self._memory, 0, process_id, self._told)


class Watched:
    """The supervisor's end. descriptor: is handed on to the worker. Errors: OSError."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("whereabouts", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, _PLACE.size)
        self._told = self._looked = -1
        self._since_s = self._at_since_s = 0.0

    @property
    def process_id(self) -> int:
        """The process whose code is run, or was when the worker died; 0 for none."""
        return self._read()[0]

    def kept_by(self, now_s: float) -> int:
        """The process whose code has been run for KEPT_S without a pause, told once; else 0.

        now_s: seconds of a clock that only goes on; to be asked now and then.
        """
        process_id, told = self._read()
        if told != self._told:
            self._told, self._since_s = told, now_s
        elif process_id and now_s - self._since_s >= KEPT_S:
            self._since_s = math.inf
            return process_id
        return 0

    def at_for(self, now_s: float, seconds: float) -> int:
        """The process whose code has been run for so many seconds without a pause; else 0."""
        process_id, told = self._read()
        if told != self._looked:
            self._looked, self._at_since_s = told, now_s
        return process_id if now_s - self._at_since_s >= seconds else 0

    def close(self) -> None:
        """Look no more."""
        os.close(self.descriptor)

    def _read(self) -> tuple[int, int]:
        process_id, told = _PLACE.unpack(os.pread(self.descriptor, _PLACE.size, 0))
        return process_id, told
