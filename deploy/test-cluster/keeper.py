"""The process that keeps a cluster: everything of the cluster descends from it and ends with it.

    python3 keeper.py FOLDER confined|open REPORT_FD [PID]

It enters a network namespace of its own (confined), becomes the account, and then does what it is asked
through the Unix socket FOLDER/cluster/control: start and stop the daemons, run commands, and keep sshd.
HyperQueue's server from the PyPI wheel has no authentication, so nothing but sshd may be reachable from
outside: its listening sockets are opened outside the namespace by whoever starts sshd, and handed over. A
socket stays in the namespace that it was made in; the logins, which `sshd -i` makes on accepted connections,
are inside.

A request is one JSON line, its answer another:

    {"do": "spawn", "part": name, "argv": [...]}     → {"pid": number}
    {"do": "signal", "part": name, "signal": number} → {"pid": number or null}
    {"do": "listen", "configurations": [...]}, with a socket for each → {}
    {"do": "silence"}                                → {}: no port, no sessions
    {"do": "run", "command": text}, with stdin, stdout and stderr → {"status": number} when it has ended
    {"do": "status"}               → {"parts": {name: pid}, "listening": bool, "sessions": n}

SIGTERM ends the cluster, and so does the end of process PID.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import selectors
import signal
import socket
import struct
import sys
import time
from typing import Any

import account
import layout
import processes

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWUTS = 0x04000000
SIOCSIFFLAGS = 0x8914
SIOCSIFADDR = 0x8916
IFF_UP_RUNNING = 0x41
#: Slurm asks getaddrinfo for kinds of addresses that the host has besides loopback's: give it one, from the
#: block that is kept for documentation.
SECOND_ADDRESS = "192.0.2.1"
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
SSHD = "/usr/sbin/sshd"
#: How long daemons may take to end in order before they are killed.
ORDERLY_END_S = 3.0

libc = ctypes.CDLL(None, use_errno=True)


def confine(who: pwd.struct_passwd) -> None:
    """Enter a network namespace of our own with nothing but a loopback device.

    Who may not do so as he is (root in a container may not, either) does so in a user namespace, as the
    account. Errors: OSError.
    """
    if os.getuid() != 0 or libc.unshare(CLONE_NEWNET | CLONE_NEWUTS) != 0:
        account.become(who)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWUTS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        user, group = f"{who.pw_uid} {who.pw_uid} 1", f"{who.pw_gid} {who.pw_gid} 1"
        for name, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))
        address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(SECOND_ADDRESS))
        fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16s16s", b"lo:1", address))
    if not resolves_to_loopback(socket.gethostname()):
        # Programs that announce themselves by the host's name (HyperQueue does) would not be reached.
        socket.sethostname("localhost")


def resolves_to_loopback(name: str) -> bool:
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return False


class Keeper:
    """The loop: one thread, one selector."""

    def __init__(self, cluster: layout.Cluster) -> None:
        self._cluster = cluster
        self._parts: dict[str, int] = {}
        self._runs: dict[int, socket.socket] = {}
        self._sessions: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._ending = False
        self._environment = {
            "HOME": cluster.home,
            "USER": cluster.user,
            "LOGNAME": cluster.user,
            "SHELL": "/bin/bash",
            **cluster.environment,
        }
        woken, waker = socket.socketpair()
        for end in (woken, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        self._waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        self._selector.register(woken, selectors.EVENT_READ, self._wake)
        control = socket.socket(socket.AF_UNIX)
        path = str(cluster.own / "control")
        if os.path.lexists(path):
            os.unlink(path)
        control.bind(path)
        control.listen(64)
        self._selector.register(control, selectors.EVENT_READ, self._answer)

    def _end(self, *_: object) -> None:
        self._ending = True

    def serve(self) -> None:
        """Until SIGTERM; then end everything that descends from us."""
        while not self._ending:
            for key, _ in self._selector.select():
                try:
                    key.data(key.fileobj)
                except OSError as problem:  # no more processes or files, for now
                    log(f"something failed: {problem}")
                    time.sleep(0.1)
            self._reap()
        self._end_all()

    def end_with(self, pid: int) -> None:
        """End when that process does."""
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, self._end)

    def _wake(self, woken: socket.socket) -> None:
        woken.recv(4096)

    # Children

    def _spawn(self, argv: list[str], stdin: int, stdout: int, stderr: int) -> int:
        """Start a program in a session of its own that gets SIGTERM when we die."""
        child = os.fork()
        if child:
            return child
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            signal.set_wakeup_fd(-1)
            # What Python ignores would stay ignored in the program.
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            # Above 2 first: one of them may be in another's place.
            ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (stdin, stdout, stderr)]
            for place, end in enumerate(ends):
                os.dup2(end, place)
            os.execve(argv[0], argv, self._environment)  # noqa: S606
        except BaseException as problem:
            os.write(2, f"{argv[0]}: {problem}\n".encode())
        finally:
            os._exit(127)

    def _reap(self) -> None:
        while True:
            try:
                pid, raw = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            status = os.waitstatus_to_exitcode(raw)
            self._sessions.discard(pid)
            if pid in self._runs:
                self._reply(self._runs.pop(pid), {"status": status})
            for part, its_pid in list(self._parts.items()):
                if its_pid == pid:
                    del self._parts[part]
                    log(f"{part} ({pid}) ended with status {status}")

    # Requests

    def _answer(self, control: socket.socket) -> None:
        connection, _ = control.accept()
        connection.settimeout(5.0)
        fds: list[int] = []
        try:
            heard = b""
            while not heard.endswith(b"\n"):
                data, more, _, _ = socket.recv_fds(connection, 1 << 16, 8)
                fds += more
                if not data:
                    raise ConnectionError("the request has no end")
                heard += data
            request = json.loads(heard)
            answer = getattr(self, "_do_" + request.pop("do"))(fds=fds, connection=connection, **request)
        except Exception as problem:
            log(f"a request failed: {problem!r}")
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            self._reply(connection, answer)

    def _reply(self, connection: socket.socket, answer: dict[str, Any]) -> None:
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        with contextlib.suppress(OSError):  # whoever asked may have gone
            connection.sendall(json.dumps(answer).encode() + b"\n")
        connection.close()

    def _do_spawn(self, part: str, argv: list[str], **_: Any) -> dict[str, Any]:
        if part in self._parts:
            raise RuntimeError(f"{part} runs already (process {self._parts[part]})")
        with open(os.devnull) as nothing, open(self._cluster.logs / f"{part}.out", "ab") as output:
            self._parts[part] = self._spawn(argv, nothing.fileno(), output.fileno(), output.fileno())
        return {"pid": self._parts[part]}

    def _do_signal(self, part: str, signal: int, **_: Any) -> dict[str, Any]:
        self._reap()
        pid = self._parts.get(part)
        if pid is not None:
            os.kill(pid, signal)
        return {"pid": pid}

    def _do_run(
        self, command: str, fds: list[int], connection: socket.socket, **_: Any
    ) -> dict[str, Any] | None:
        if len(fds) != 3:
            raise ValueError("run takes three file descriptors")
        pid = self._spawn(["/bin/bash", "-c", f"cd; {command}"], *fds)
        self._runs[pid] = connection

        def gone(connection: socket.socket) -> None:
            self._selector.unregister(connection)
            os.killpg(pid, signal.SIGTERM)

        self._selector.register(connection, selectors.EVENT_READ, gone)
        return None

    def _do_status(self, **_: Any) -> dict[str, Any]:
        self._reap()
        return {
            "parts": dict(self._parts),
            "listening": bool(self._listeners),
            "sessions": len(self._sessions),
        }

    # sshd

    def _do_listen(self, configurations: list[str], fds: list[int], **_: Any) -> dict[str, Any]:
        if self._listeners:
            raise RuntimeError("sshd runs already")
        for configuration, fd in zip(configurations, fds, strict=True):
            outside = socket.socket(fileno=os.dup(fd))
            self._listen(outside, configuration)
            if self._cluster.confined:
                # The same port inside, so that a login can be the way to another (ProxyJump).
                inside = socket.create_server(outside.getsockname(), backlog=4096)
                self._listen(inside, configuration)
        return {}

    def _listen(self, listener: socket.socket, configuration: str) -> None:
        listener.setblocking(False)

        def accept(listener: socket.socket) -> None:
            try:
                connection, _ = listener.accept()
            except OSError as problem:
                log(f"a connection was not accepted: {problem}")
                return
            with connection, open(os.devnull, "ab") as nothing:
                connection.setblocking(True)
                argv = [SSHD, "-i", "-f", configuration, "-E", str(self._cluster.logs / "sshd.log")]
                self._sessions.add(
                    self._spawn(argv, connection.fileno(), connection.fileno(), nothing.fileno())
                )

        self._selector.register(listener, selectors.EVENT_READ, accept)
        self._listeners.append(listener)

    def _do_silence(self, **_: Any) -> dict[str, Any]:
        """Close the ports and kill the sessions' sshd. What was started in them lives on, as after a lost
        connection, unless it ends by itself for want of input."""
        for listener in self._listeners:
            self._selector.unregister(listener)
            listener.close()
        self._listeners.clear()
        while found := [
            process.pid
            for process in processes.descendants(os.getpid())
            if process.name.startswith("sshd") or process.pid in self._sessions
        ]:
            for pid in found:
                kill(pid, signal.SIGKILL)
            time.sleep(0.005)
            self._reap()
        return {}

    # The end

    def _end_all(self) -> None:
        self._do_silence()
        for part, pid in self._parts.items():
            if part != "munged":
                kill(pid, signal.SIGTERM)
        until = time.monotonic() + ORDERLY_END_S
        while set(self._parts) - {"munged"} and time.monotonic() < until:
            time.sleep(0.02)
            self._reap()
        while found := processes.descendants(os.getpid()):
            for process in found:
                kill(process.pid, signal.SIGKILL)
            time.sleep(0.01)
            self._reap()
        os.unlink(self._cluster.own / "control")
        log("the cluster has ended")


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main() -> int:
    folder, mode, reports = sys.argv[1], sys.argv[2], int(sys.argv[3])
    cluster = layout.read(layout.checked_folder(folder))
    assert cluster is not None
    who = account.ours()
    os.umask(0o022)
    try:
        if mode == "confined":
            confine(who)
    except OSError as problem:
        os.write(reports, json.dumps({"refused": problem.strerror}).encode())
        return 1
    account.become(who)
    # After the change of account, which takes such settings away.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.chdir("/")
    keeper = Keeper(cluster)
    for pid in sys.argv[4:]:
        keeper.end_with(int(pid))
    ready = {"ready": True, "namespace": processes.namespace("self"), "hostname": socket.gethostname()}
    os.write(reports, json.dumps(ready).encode())
    os.close(reports)
    log("ready")
    keeper.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
