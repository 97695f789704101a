"""The daemons as processes: started, found again, ended. Each is known by its pid and the time it began."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from layout import ObjectStore

PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
#: What a daemon may need to end in order, after which it is killed.
END_S = 10.0
#: In the order in which they are started.
PARTS = ("mon", "osd", "gateway", "spare")


def environment() -> dict[str, str]:
    return {"PATH": PATH, "LANG": "C.UTF-8", "CEPH_CONF": "/dev/null"}


def argv(store: ObjectStore, part: str) -> list[str]:
    """The command of a part, in the foreground."""
    known = {
        "mon": ["ceph-mon", "--id", "a"],
        "osd": ["ceph-osd", "--id", "0"],
        "gateway": ["radosgw", "--name", "client.gateway"],
        "spare": ["radosgw", "--name", "client.spare"],
    }
    return [*known[part], "--conf", str(store.conf), "-f"]


def start(store: ObjectStore, part: str) -> None:
    """Start a part in the background; what it says goes to log/PART.out."""
    with open(store.logs / f"{part}.out", "ab") as output:
        process = subprocess.Popen(
            argv(store, part),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=environment(),
            **account(store),
        )
    began = _began(process.pid)
    # It is not ours to wait for.
    process.returncode = 0
    _note(store, part, None if began is None else (process.pid, began))


def account(store: ObjectStore) -> dict[str, str | list[str]]:
    """As whom the daemons run, for subprocess: root gives its rights up."""
    return {"user": store.user, "group": store.user, "extra_groups": []} if os.getuid() == 0 else {}


def running(store: ObjectStore) -> dict[str, int]:
    """The pids of the parts that run."""
    return {
        part: pid
        for part, (pid, began) in _noted(store).items()
        if began is not None and _began(pid) == began
    }


def end(store: ObjectStore, parts: Iterable[str], number: int = signal.SIGTERM) -> None:
    """End parts, in this order; returns when they are gone. What does not end in time is killed."""
    for part in parts:
        pid = running(store).get(part)
        if pid is None:
            continue
        until = time.monotonic() + END_S
        send(pid, number)
        while running(store).get(part) == pid:
            if time.monotonic() > until:
                send(pid, signal.SIGKILL)
            time.sleep(0.01)


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _began(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine started; None when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name is in brackets and may hold brackets and blanks itself.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _noted(store: ObjectStore) -> dict[str, tuple[int, int | None]]:
    try:
        found: dict[str, tuple[int, int | None]] = json.loads(Path(store.folder, "daemons.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def _note(store: ObjectStore, part: str, process: tuple[int, int] | None) -> None:
    noted = {**_noted(store), part: process or (0, None)}
    new = Path(store.folder, "daemons.new")
    new.write_text(json.dumps(noted) + "\n")
    new.replace(Path(store.folder, "daemons.json"))
