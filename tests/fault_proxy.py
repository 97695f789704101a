"""Proxies between an S3 client and its server that inject faults: the tests' own.

They stand on 127.0.0.1. A *plan* says of each request, or of each connection, what goes wrong with it. So the
server is real, and so is what the client sees; only the way between them is bad.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from fault_plan import Answer, Corrupt, Cut, Delay, Fault, Lose, Plan, Request, Reset, Stall, nothing

PIECE = 1 << 17
#: A head that is longer is nobody's.
LONGEST_HEAD = 1 << 16


class _GoneWrong(Exception):
    """The connection is to end. reset: not in order."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


class _Proxy(ABC):
    """Listens on a port of its own, and serves each connection in a thread; a context manager."""

    SCHEME = ""

    def __init__(self, server: str) -> None:
        """server: the URL of an endpoint."""
        address = urlsplit(server)
        assert address.scheme == self.SCHEME, server
        assert address.port, server
        self._server = (str(address.hostname), address.port)
        #: How often each kind of fault was.
        self.injected: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._port = 0
        self.accept()

    @property
    def endpoint(self) -> str:
        return f"{self.SCHEME}://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._ended.set()
        self.refuse()

    def refuse(self) -> None:
        """Connections are refused from now on, and those that are open are reset."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is not None:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept()
                listener.close()
            for connection in self._open:
                _reset(connection)

    def accept(self) -> None:
        """Connections are accepted again, on the same port."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
        self._port = listener.getsockname()[1]
        with self._lock:
            self._listener = listener
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        self.refuse()
        try:
            yield
        finally:
            self.accept()

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                if self._listener is not listener:
                    _reset(client)
                    return
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with socket.create_connection(self._server, timeout=60) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._relay(client, server)
        except _GoneWrong as end:
            self._forget(client, reset=end.reset)
        except (OSError, ValueError):
            self._forget(client, reset=True)  # one of the two has gone
        else:
            self._forget(client, reset=False)

    def _forget(self, client: socket.socket, *, reset: bool) -> None:
        with self._lock:
            self._open.discard(client)
            if reset:
                _reset(client)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)  # close() waits for who reads from it
            client.close()

    def _inject(self, fault: Fault | None) -> None:
        if fault is not None:
            with self._lock:
                self.injected[type(fault).__name__] += 1

    @abstractmethod
    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Serve a connection until one of both ends it. Errors: _GoneWrong, OSError."""


class FaultProxy(_Proxy):
    """In front of an endpoint by HTTP. Its plan may be changed at any time."""

    SCHEME = "http"

    def __init__(self, server: str, plan: Plan = nothing) -> None:
        self.plan = plan
        #: What the server gets in place of a request's head, for a server of another kind.
        self.rewrite: Callable[[bytes], bytes] = bytes
        #: All that came.
        self.requests: list[Request] = []
        super().__init__(server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        self._exchange(_Stream(client), _Stream(server))

    def _exchange(self, client: _Stream, server: _Stream) -> None:
        while (head := client.head()) is not None:
            first_line, headers = _parsed(head)
            method, target, _ = first_line.split(" ", 2)
            with self._lock:
                request = Request(len(self.requests), method, target, headers)
                self.requests.append(request)
            fault = self.plan(request)
            self._inject(fault)
            if isinstance(fault, Delay):
                self._ended.wait(fault.seconds)
            if "expect" in headers:
                client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                head = _without(head, b"expect")
            if isinstance(fault, Answer):
                for _piece in client.body(headers):
                    pass
                client.send(_answer(fault, method))
                continue
            server.send(self.rewrite(head))
            self._pass_on(client.body(headers), server, fault, "up", request.size)
            self._answer(client, server, method, fault)

    def _answer(self, client: _Stream, server: _Stream, method: str, fault: Fault | None) -> None:
        head = server.head()
        if head is None:
            raise _GoneWrong(reset=True)
        status_line, headers = _parsed(head)
        empty = method == "HEAD" or status_line.split(" ")[1] in ("204", "304")
        body = iter(()) if empty else server.body(headers, to_the_end=True)
        if isinstance(fault, Lose):
            for _piece in body:
                pass
            if fault.instead is None:
                raise _GoneWrong(reset=True)
            client.send(_answer(fault.instead, method))
            return
        size = 0 if empty else int(headers.get("content-length", -1))
        if size < 0:  # of chunks: a listing
            whole = b"".join(body)
            body, size = iter([whole]), len(whole)
        if size == 0 and isinstance(fault, Reset | Cut | Stall) and _way(fault) == "down":
            # There is no body to break off.
            self._pass_on(iter([head]), client, replace(fault, after=len(head) // 2), "down")
        client.send(head)
        self._pass_on(body, client, fault, "down", size)
        if headers.get("connection", "").lower() == "close":
            raise _GoneWrong(reset=False)

    def _pass_on(
        self, pieces: Iterator[bytes], to: _Stream, fault: Fault | None, way: str, size: int = 1 << 62
    ) -> None:
        """Pass on a body of that size, with what goes wrong with it: before its end, if it breaks off."""
        if _way(fault) != way:
            fault = None
        after = max(0, min(fault.after, size - 1)) if isinstance(fault, Reset | Cut | Stall) else size
        sent = 0
        for piece in pieces:
            if isinstance(fault, Corrupt) and sent <= min(fault.at, size - 1) < sent + len(piece):
                changed = bytearray(piece)
                changed[min(fault.at, size - 1) - sent] ^= 0xFF
                piece = bytes(changed)
            if sent + len(piece) > after:
                to.send(piece[: after - sent])
                break
            to.send(piece)
            sent += len(piece)
        if isinstance(fault, Stall):
            self._ended.wait()
        if isinstance(fault, Reset | Cut | Stall):
            raise _GoneWrong(reset=not isinstance(fault, Cut))


class TlsProxy(_Proxy):
    """In front of an endpoint by HTTPS, of which it sees encrypted bytes only.

    The plan says what goes wrong with the nth connection, from 0; bytes are counted as the server sends them.
    """

    SCHEME = "https"

    def __init__(self, server: str, plan: Callable[[int], Reset | Cut | Stall | None]) -> None:
        self.plan = plan
        self.connections = 0
        super().__init__(server)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            number = self.connections
            self.connections += 1
        fault = self.plan(number)
        threading.Thread(target=self._up, args=(client, server), daemon=True).start()
        sent = 0
        while data := server.recv(PIECE):
            if fault is not None and sent + len(data) > fault.after:
                client.sendall(data[: fault.after - sent])
                self._inject(fault)
                if isinstance(fault, Stall):
                    self._ended.wait()
                raise _GoneWrong(reset=not isinstance(fault, Cut))
            client.sendall(data)
            sent += len(data)

    @staticmethod
    def _up(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(PIECE):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)


class _Stream:
    """One side of a connection: heads and bodies of HTTP/1.1 messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._read = b""

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def head(self) -> bytes | None:
        """A message's head with the empty line at its end; None where the other side has ended."""
        while b"\r\n\r\n" not in self._read:
            more = self._connection.recv(PIECE)
            if not more or len(self._read) > LONGEST_HEAD:
                return None
            self._read += more
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def body(self, headers: Mapping[str, str], *, to_the_end: bool = False) -> Iterator[bytes]:
        """A message's body, piece by piece, as it was sent: of chunks, with their lengths.

        to_the_end: where neither is said, it goes on until the connection ends.
        """
        if "chunked" in headers.get("transfer-encoding", ""):
            while True:
                line = self._line()
                yield line
                size = int(line.split(b";")[0], 16)
                yield from self._exactly(size + 2)
                if size == 0:
                    return
        elif "content-length" in headers:
            yield from self._exactly(int(headers["content-length"]))
        elif to_the_end:
            while data := self._some(PIECE):
                yield data

    def _line(self) -> bytes:
        while b"\r\n" not in self._read:
            more = self._connection.recv(PIECE)
            if not more:
                raise ConnectionError("ended within a line")
            self._read += more
        line, _, self._read = self._read.partition(b"\r\n")
        return line + b"\r\n"

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            data = self._some(min(size, PIECE))
            if not data:
                raise ConnectionError("ended within a body")
            size -= len(data)
            yield data

    def _some(self, size: int) -> bytes:
        if self._read:
            data, self._read = self._read[:size], self._read[size:]
            return data
        return self._connection.recv(size)


def _way(fault: Fault | None) -> str:
    """To the server ("up") or back ("down")."""
    return "down" if isinstance(fault, Cut) else getattr(fault, "way", "")


def _parsed(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the headers by their names in small letters."""
    first_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    pairs = (line.partition(":") for line in lines)
    return first_line, {name.strip().lower(): value.strip() for name, _, value in pairs}


def _without(head: bytes, name: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(name + b":"))


def _answer(answer: Answer, method: str) -> bytes:
    """An error as S3 says it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{answer.code}</Code></Error>".encode()
    lines = [f"HTTP/1.1 {answer.status} {answer.code}", f"Content-Length: {len(body)}"]
    lines += [
        "Content-Type: application/xml",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body)


def _reset(connection: socket.socket) -> None:
    """End a connection by RST, also one that another thread reads from: close() would wait for that.

    By connect() to an address of no family.
    """
    with contextlib.suppress(OSError):
        nowhere = struct.pack("H14x", socket.AF_UNSPEC)
        ctypes.CDLL(None).connect(connection.fileno(), nowhere, len(nowhere))
