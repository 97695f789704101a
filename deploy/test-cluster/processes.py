"""Processes, as /proc shows them: who lives, who descends from whom, who is in a network namespace."""

from __future__ import annotations

import os
from typing import NamedTuple

#: The environment variable by which a cluster's processes are known where they have no namespace.
MARK = "GRANGE_TEST_CLUSTER"


class Process(NamedTuple):
    """One line of /proc/PID/stat. start: clock ticks since the machine started."""

    pid: int
    name: str
    state: str
    parent: int
    start: int


def look_up(pid: int) -> Process | None:
    """The process, or None when it is gone. A zombie is one: its state is "Z"."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            text = file.read()
    except OSError:
        return None
    # The name is in brackets and may hold brackets and blanks itself.
    front, _, rest = text.rpartition(")")
    fields = rest.split()
    return Process(pid, front.partition("(")[2], fields[0], int(fields[1]), int(fields[19]))


def lives(pid: int, start: int) -> bool:
    """Whether the process that began then still runs; its number may be another's by now."""
    process = look_up(pid)
    return process is not None and process.start == start and process.state != "Z"


def everyone() -> dict[int, Process]:
    found = (look_up(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(ancestor: int) -> list[Process]:
    """All that descend from a process, zombies too, without itself."""
    processes = everyone()
    below: dict[int, list[Process]] = {}
    for process in processes.values():
        below.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [ancestor]
    while waiting:
        children = below.get(waiting.pop(), [])
        found += children
        waiting += [child.pid for child in children]
    return found


def namespace(pid: int | str) -> str | None:
    """The network namespace of a process, as "net:[4026532201]"; None when it is gone or not ours to see."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None


def members(of_namespace: str) -> list[Process]:
    """All living processes in a network namespace that we may see."""
    return [
        process
        for process in everyone().values()
        if process.state != "Z" and namespace(process.pid) == of_namespace
    ]


def marked(value: str) -> list[Process]:
    """All living processes that carry the mark in their environment, with what descends from them."""
    mark = f"{MARK}={value}".encode()
    found: dict[int, Process] = {}
    for process in everyone().values():
        try:
            with open(f"/proc/{process.pid}/environ", "rb") as file:
                carries = mark in file.read().split(b"\0")
        except OSError:
            continue
        if carries and process.state != "Z":
            found[process.pid] = process
            found.update((below.pid, below) for below in descendants(process.pid) if below.state != "Z")
    return list(found.values())
