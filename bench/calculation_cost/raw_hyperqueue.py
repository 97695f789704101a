"""Raw HyperQueue: COUNT times /bin/true, one task each. Prints the seconds from submission to the end.

Its server lets in whoever reaches it, so it refuses to start outside a network namespace of its own.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    count, cores = int(sys.argv[1]), int(sys.argv[2])
    if set(os.listdir("/sys/class/net")) > {"lo"} and len(socket.if_nameindex()) > 1:
        raise SystemExit("not in a network namespace of its own: start it as measure.py does")
    loopback_up()
    os.environ["RUST_BACKTRACE"] = "0"
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with LocalCluster() as cluster:
            cluster.start_worker(WorkerConfig(cores=cores))
            client = cluster.client()
            job = Job(Path(folder) / "job", max_fails=None)
            for _ in range(count):
                job.program(["/bin/true"], stdout=None, stderr=None)
            began = time.perf_counter()
            client.wait_for_jobs([client.submit(job)])
            print(time.perf_counter() - began, flush=True)
            os._exit(0)


def loopback_up() -> None:
    """Bring up the loopback of a new namespace: SIOCGIFFLAGS, SIOCSIFFLAGS."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack("16sh14x", fcntl.ioctl(control, 0x8913, request))
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", flags | 1))


if __name__ == "__main__":
    main()
