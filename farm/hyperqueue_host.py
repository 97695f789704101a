"""Hosts a HyperQueue server with one worker, made by the PyPI wheel, in a process of its own.

    python hyperqueue_host.py PARENT_PID SERVER_FOLDER CORES confined|open

The wheel's server has no authentication. Confined, it lives in a network namespace that this process makes
for itself: nothing outside reaches its ports, and nothing inside reaches the network.

Reads requests as JSON lines, answers in JSON lines: {"ready": true}, {"refused": reason},
{"failed": {chunk folder: reason}}. Ends with its parent or its input; the worker ends its tasks then.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x41
#: A worker's orderly end counts as a crash of its tasks; tasks survive any number of them.
CRASH_LIMIT = 10000
#: How often the server is asked for tasks that failed; those that end well leave a mark of their own.
FAILURES_EVERY_S = 0.5


def confine() -> None:
    """Enter a network namespace of our own with nothing but a loopback device. Errors: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{uid} {uid} 1")
        write("/proc/self/gid_map", f"{gid} {gid} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


class Host:
    """The server, its worker, and a client that submits chunks as tasks."""

    def __init__(self, folder: str, cores: int) -> None:
        from hyperqueue.client import Client
        from hyperqueue.ffi.cluster import Cluster

        before = threads()
        self._cluster = Cluster(folder)
        self._server = min(threads() - before, key=int)
        before = threads()
        self._cluster.add_worker(cores)
        self._worker = min(threads() - before, key=int)
        self._client = Client(folder)
        self._jobs: dict[int, tuple[Any, list[str]]] = {}
        self._told: set[tuple[int, int]] = set()

    @property
    def lives(self) -> bool:
        """Whether server and worker run: nothing but the end of their first threads tells."""
        return {self._server, self._worker} <= threads()

    def stop(self) -> None:
        """End the worker in order, with its tasks, and then the server."""
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 1.0
        while self._worker in threads() and time.monotonic() < until:
            time.sleep(0.005)
        self._cluster.stop()

    def submit(self, request: dict[str, Any]) -> None:
        """One job for a batch, one task for a chunk."""
        from hyperqueue.ffi.protocol import ResourceRequest
        from hyperqueue.job import Job

        job = Job(max_fails=None)
        for folder, kind in zip(request["chunks"], request["kinds"], strict=True):
            job.program(
                [*request["start"][kind], folder],
                env={**request["environment"], "GRANGE_CHUNK": folder},
                stdout=None,
                stderr=None,
                resources=ResourceRequest(cpus=request["cpus"]),
                crash_limit=CRASH_LIMIT,
            )
        submitted = self._client.submit(job)
        self._jobs[submitted.id] = (submitted, request["chunks"])

    def failures(self) -> dict[str, str]:
        """Chunks whose runner failed since the last call, with what HyperQueue says of them."""
        found = {}
        for job, chunks in self._jobs.values():
            for number, failure in self._client.get_failed_tasks(job).items():
                if (job.id, number) not in self._told:
                    self._told.add((job.id, number))
                    found[chunks[number]] = failure.error
        return found

    def forget(self, done: list[str]) -> None:
        """These chunks are over: do not ask for jobs that have no others."""
        over = set(done)
        for number, (job, chunks) in list(self._jobs.items()):
            if over.issuperset(chunks):
                del self._jobs[number]
                self._client.forget(job)


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def serve(host: Host, reports: int, parent: int) -> None:
    heard = b""
    done: list[str] = []
    while host.lives and os.getppid() == parent:
        if select.select([0], [], [], FAILURES_EVERY_S)[0]:
            data = os.read(0, 1 << 20)
            if not data:
                return
            lines = (heard + data).split(b"\n")
            heard = lines.pop()
            for line in lines:
                request = json.loads(line)
                if "done" in request:
                    done += request["done"]
                else:
                    host.submit(request)
            continue
        if failures := host.failures():
            report(reports, {"failed": failures})
        if done:
            host.forget(done)


def report(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


def main() -> int:
    parent, folder, cores, mode = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    del sys.path[0]
    # The server prints a table; only our reports go to the parent.
    reports = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if mode == "confined":
        try:
            confine()
        except OSError as problem:
            report(reports, {"refused": f"no namespace: {problem.strerror}"})
            return 1
    try:
        # After the namespace: entering one takes the parent-death signal away.
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
        host = Host(folder, cores)
    except (OSError, ImportError) as problem:
        report(reports, {"refused": f"{type(problem).__name__}: {problem}"})
        return 1
    report(reports, {"ready": True})
    serve(host, reports, parent)
    host.stop()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
