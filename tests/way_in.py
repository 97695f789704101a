"""A way into the test cluster's network namespace: a port of this host, under the same address inside.

Inside there is nothing but a loopback device of its own. The file system is shared, and so is a Unix socket
on it: a process inside listens on the port and passes each connection on to the socket, one outside passes it
on to the port of the host.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import PROGRAM, PYTHON, Cluster

#: Arguments: the address to listen on, the one to pass on to, a file for the process's id. An address is the
#: path of a Unix socket, or a port of 127.0.0.1.
PASS_ON = """
import os, socket, sys, threading

def at(text):
    if text.isdigit():
        return socket.AF_INET, ("127.0.0.1", int(text))
    return socket.AF_UNIX, text

def copy(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()

with open(sys.argv[3], "w") as file:
    file.write(str(os.getpid()))
family, address = at(sys.argv[1])
server = socket.socket(family)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(address)
if family == socket.AF_UNIX:
    os.chmod(address, 0o666)
server.listen(64)
while True:
    client, _ = server.accept()
    family, address = at(sys.argv[2])
    other = socket.socket(family)
    try:
        other.connect(address)
    except OSError:
        client.close()
        continue
    for pair in ((client, other), (other, client)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@contextlib.contextmanager
def way_in(cluster: Cluster, endpoint: str) -> Iterator[None]:
    """Inside, the endpoint of a server on this host can be reached as long as the block lasts."""
    if not cluster.confined:
        yield
        return
    port = endpoint.rpartition(":")[2]
    path = os.path.join(cluster.work_dir, f"way-{secrets.token_hex(4)}")
    outside = subprocess.Popen([PYTHON, "-c", PASS_ON, path, port, os.devnull])
    within = None
    try:
        _wait(Path(path).exists)
        command = shlex.join(["exec", PYTHON, "-c", PASS_ON, port, path, f"{path}.pid"])
        within = subprocess.Popen([PYTHON, "-sEB", PROGRAM, "run", cluster.folder, command])
        _wait(lambda: _answers(cluster, port))
        yield
    finally:
        if within is not None:
            cluster.shell(f"kill $(cat {path}.pid)")
            within.wait()
        outside.kill()
        outside.wait()
        Path(path).unlink(missing_ok=True)


def _answers(cluster: Cluster, port: str) -> bool:
    command = f"(: </dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo open || true"
    return "open" in cluster.shell(shlex.join(["bash", "-c", command]))


def _wait(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "there is no way in"
        time.sleep(0.05)
