"""Our folder on a computer: the code that is sent there once, and the agent that answers there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import threading
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from grange.farm import agent, courier, lookout, runner, stower
from grange.farm.computer import Computer
from grange.farm.errors import CommandRefused, ExecutorUnavailable, RemoteFull, TransportFailed
from grange.farm.transport import Transport

#: Written last into the folder of our code: who finds it need not send anything.
COMPLETE = "complete"
#: Pure-Python packages that go along: functions that travel by value need the first.
LIBRARIES = ("cloudpickle",)
WHEEL_LIBRARIES = ("tqdm",)
_CODE: tuple[Any, ...] = (agent, runner, courier, lookout, stower)


class Remote:
    """A computer with our code on it.

    transport: is shared, and closed by whoever made it. Several threads may use a Remote at once.
    """

    def __init__(self, transport: Transport, computer: Computer) -> None:
        self.transport = transport
        self.computer = computer
        self._lock = threading.Lock()
        self._prepared: dict[str, Any] | None = None

    @cached_property
    def work_dir(self) -> str:
        """The work directory there, W. Errors: those of Transport."""
        path = self.computer.work_dir
        if "{username}" in path:
            path = path.replace("{username}", self._username())
        if path == "~" or path.startswith("~/"):
            path = self.transport.home() + path[1:]
        return path.rstrip("/") or "/"

    @property
    def code_dir(self) -> str:
        """Where our code of this version lies there."""
        return f"{self.work_dir}/bin/{self._version}"

    @property
    def agent(self) -> list[str]:
        """The command line of the agent, up to its command."""
        return [self.computer.python, f"{self.code_dir}/agent.py"]

    @property
    def restricted(self) -> bool:
        """Whether the account may run next to nothing: our agent is at work in allocations only."""
        return self.computer.ssh.restricted and self.computer.transport != "local"

    def spool_dir(self, run: str) -> str:
        """The folder of a run there."""
        return f"{self.work_dir}/spool/{run}"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the agent has to know of the computer."""
        computer = self.computer
        directives = [*computer.directives]
        for name in ("partition", "account", "qos"):
            if value := getattr(computer, name):
                directives.append(f"--{name}={value}")
        return {
            "dispatcher": computer.scheduler if computer.hyperqueue == "none" else computer.hyperqueue,
            "python": computer.python,
            "hq_program": computer.hq_program,
            "prepend_text": computer.prepend_text,
            "append_text": computer.append_text,
            "shebang": computer.shebang,
            "sbatch": directives,
            "slots": computer.slots,
            "max_queued_jobs": computer.max_queued_jobs,
        }

    def prepare(self) -> dict[str, Any]:
        """Send our code if it is not there, and ask what there is (agent.hello). Does nothing the second
        time.

        Errors: those of Transport; ExecutorUnavailable where Python or HyperQueue is missing.
        """
        with self._lock:
            if self._prepared is None:
                (complete,) = self.transport.read([f"{self.code_dir}/{COMPLETE}"])
                if complete is None:
                    self._send()
                if self.restricted:
                    self._prepared = {}  # nobody there may be asked
                    return self._prepared
                self._prepared = self._ask("hello", {"settings": self.settings}, 60.0)
                if problem := self._prepared.get("hq_problem"):
                    raise ExecutorUnavailable(f"{self.computer.label}: {problem}")
            return self._prepared

    def ask(self, command: str, request: Mapping[str, Any], timeout_s: float = 120.0) -> dict[str, Any]:
        """One request to the agent, which is put there if need be.

        Errors: those of Transport; ExecutorUnavailable with what the agent says, or where it does not answer.
        """
        self.prepare()
        return self._ask(command, request, timeout_s)

    def _ask(self, command: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        label = self.computer.label
        asked = json.dumps({"work": self.work_dir, **request}).encode()
        done = self.transport.run([*self.agent, command], stdin=asked, timeout_s=timeout_s)
        lines = [line for line in done.stdout.split(b"\n") if line.startswith(agent.ANSWER.encode())]
        if not lines:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-500:] or "nothing"
            if done.status in (126, 127):
                raise ExecutorUnavailable(
                    f"{label}: {self.computer.python} cannot be run there ({said}); name a Python from 3.9 "
                    f"on: grange computer edit {label} --python PATH"
                )
            raise ExecutorUnavailable(
                f"{label}: our agent ended with status {done.status} instead of an answer; it said: {said}"
            )
        answer = json.loads(lines[-1][len(agent.ANSWER) :])
        if "refused" in answer:
            if answer.get("errno") in (13, 28, 30, 122):
                raise RemoteFull(label, f"cannot write there: {answer['refused']}")
            raise ExecutorUnavailable(f"{label}: {answer['refused']}")
        reply: dict[str, Any] = answer["ok"]
        return reply

    def _username(self) -> str:
        if self.computer.ssh.user:
            return self.computer.ssh.user
        try:
            done = self.transport.run(["whoami"])
        except CommandRefused:
            return os.path.basename(self.transport.home())
        return done.stdout.decode().strip().splitlines()[-1]

    def _send(self) -> None:
        files = [(path, f"{self.code_dir}/{name}") for name, path in self._files.items()]
        self.transport.put(files)
        programs = [f"{self.code_dir}/hq"] if "hq" in self._files else []
        if programs:
            self.transport.put([(Path(self.computer.hq_binary).expanduser(), programs[0])], mode=0o700)
        self.transport.put([(b"ok\n", f"{self.code_dir}/{COMPLETE}")])

    @cached_property
    def _files(self) -> dict[str, Path]:
        """What is sent: path below code_dir → file here. Errors: ExecutorUnavailable."""
        files = {f"{code.__name__.rpartition('.')[2]}.py": Path(code.__file__) for code in _CODE}
        libraries = [*LIBRARIES]
        if self.computer.hyperqueue == "private-wheel":
            libraries += WHEEL_LIBRARIES
            files.update({f"wheel/{name}": path for name, path in _installed("hyperqueue")})
        for library in libraries:
            files.update({f"lib/{name}": path for name, path in _installed(library)})
        if self.computer.hyperqueue == "hq" and self.computer.hq_binary:
            files["hq"] = Path(self.computer.hq_binary).expanduser()
        return files

    @cached_property
    def _version(self) -> str:
        """Names what is sent by its contents."""
        digest = hashlib.sha256()
        for name, path in sorted(self._files.items()):
            digest.update(f"{name}\n".encode())
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise TransportFailed(
                    self.computer.label, f"{path} cannot be read: {error.strerror}"
                ) from error
        return digest.hexdigest()[:12]


def _installed(name: str) -> Iterator[tuple[str, Path]]:
    """The files of an installed package. Errors: ExecutorUnavailable."""
    try:
        listed = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ExecutorUnavailable(
            f"the package {name} is not installed here: pip install grange[{name}]"
        ) from None
    for file in listed:
        if file.parts[0] == name and "__pycache__" not in file.parts:
            yield str(file), Path(str(file.locate()))
