"""What this machine has: cores and memory that we may use."""

from __future__ import annotations

import os
from pathlib import Path


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_mb() -> int:
    """The memory that this process may use, in mebibytes: the machine's, or less where a cgroup bounds it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for bound in _cgroup_bounds():
        total = min(total, bound)
    return total >> 20


def _cgroup_bounds() -> list[int]:
    found = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            base, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = base / group.lstrip("/")
        for place in (folder, *folder.parents):
            try:
                text = (place / name).read_text().strip()
            except OSError:
                text = "max"
            if text.isdigit():
                found.append(int(text))
            if place == base:
                break
    return found
