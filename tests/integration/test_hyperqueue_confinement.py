"""HyperQueue's server from the wheel has no authentication: who reaches it, and who is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from grange.farm import Batch, CommandTask
from grange.farm.hyperqueue_executor import HyperQueueExecutor, OpenServerWarning


def ports(spool: Path) -> list[int]:
    (access,) = spool.glob("run-*/server-1/hq-current/access.json")
    content = json.loads(access.read_text())
    return [content["client"]["port"], content["worker"]["port"]]


def reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def output(executor: HyperQueueExecutor, *argv: str) -> str:
    executor.submit(Batch((CommandTask("a", argv),)))
    packs = []
    while executor.outstanding:
        packs += executor.poll(1.0)
    from zipfile import ZipFile

    with ZipFile(packs[0].path) as pack:
        text = pack.read(packs[0].results[0].files["stdout.txt"]).decode()
    executor.acknowledge(packs)
    return text


@pytest.mark.hyperqueue
def test_confined_nobody_outside_reaches_it_and_tasks_have_no_network(tmp_path: Path) -> None:
    # Its ports are numbers in a network of its own: somebody out here may have the same one by chance.
    for number in range(3):
        with HyperQueueExecutor(tmp_path / str(number), slots=1):
            if not any(reachable(port) for port in ports(tmp_path / str(number))):
                break
    else:
        pytest.fail("it is reached from outside, three times")
    with HyperQueueExecutor(tmp_path / "devices", slots=1) as executor:
        devices = output(executor, "cat", "/proc/net/dev")
        assert "lo:" in devices
        assert devices.count(":") == 1


def test_open_it_is_reached_and_the_user_is_warned(tmp_path: Path) -> None:
    with pytest.warns(OpenServerWarning, match="without authentication"):
        executor = HyperQueueExecutor(tmp_path, slots=1, allow_open_server=True)
    with executor:
        assert all(reachable(port) for port in ports(tmp_path))
        assert output(executor, "echo", "yes") == "yes\n"


def test_without_namespaces_it_is_refused(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-r", "true"], check=False).returncode:
        pytest.skip("needs unshare and user namespaces")
    script = (
        "from pathlib import Path; from grange.farm.hyperqueue_executor import HyperQueueExecutor; "
        f"HyperQueueExecutor(Path({str(tmp_path)!r}), slots=1)"
    )
    forbid = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    done = subprocess.run(
        ["unshare", "-r", "sh", "-c", forbid, "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ExecutorUnavailable" in done.stderr
    assert "cannot be confined" in done.stderr
    assert "allow_open_server=True" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.hyperqueue
def test_it_survives_the_loss_of_the_server(tmp_path: Path) -> None:
    with HyperQueueExecutor(tmp_path / "spool", slots=2) as executor:
        tally = tmp_path / "tally"
        script = f"sleep 0.05; echo x >> {tally}"
        executor.submit(Batch(tuple(CommandTask(str(n), ("sh", "-c", script)) for n in range(40))))
        seen: list[str] = []
        while len(seen) < 5:
            seen += take(executor)
        (folder,) = (tmp_path / "spool").glob("run-*")
        pid = int((folder / "runners").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        while executor.outstanding:
            seen += take(executor)
    assert sorted(seen, key=int) == [str(n) for n in range(40)]
    # At most the two tasks that ran when the server was killed have run twice.
    assert 40 <= tally.read_text().count("x") <= 42


def take(executor: HyperQueueExecutor) -> list[str]:
    packs = executor.poll(1.0)
    ids = [result.id for pack in packs for result in pack.results]
    assert all(result.outcome == "finished" for pack in packs for result in pack.results)
    executor.acknowledge(packs)
    return ids
