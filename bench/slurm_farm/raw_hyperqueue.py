"""One HyperQueue task per program, on the server and workers that are there; prints the seconds to the end.

    raw_hyperqueue.py AGENT SERVER COUNT PROGRAM [ARGUMENT ...]

Runs inside the test cluster, with the wheel that lies beside our agent; "{index}" in arguments is the number
of the task. Nothing is recorded, nothing is kept of what the programs print.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


class Seen(Exception):
    """What was asked is answered; without it the client would look once a second."""


def main() -> None:
    agent, server, count, argv = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    sys.path.append(str(agent.parent))
    from agent import use_wheel  # it lies there

    use_wheel()
    from hyperqueue.client import Client
    from hyperqueue.job import Job

    client = Client(server)
    began = time.perf_counter()
    job = Job(max_fails=None)
    for number in range(count):
        words = [word.replace("{index}", str(number)) for word in argv]
        job.program(words, cwd="/tmp", stdout=None, stderr=None)
    submitted = client.submit(job)
    state: dict[str, Any] = {}

    def look(jobs: Any) -> None:
        state.update(jobs[submitted.id])
        raise Seen

    while not state.get("completed"):
        try:
            client.connection.wait_for_jobs((submitted.id,), look)
            break
        except Seen:
            time.sleep(0.02)
    print(time.perf_counter() - began)
    assert not client.get_failed_tasks(submitted)


main()
