"""A transport that another process of this host has: it does what is asked, through its socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from grange.farm.connection_frame import Frame, Header, PeerGone, error_of, is_ours, receive_frame, send_frame
from grange.farm.connection_server import HEARTBEAT_S
from grange.farm.errors import TransportUnavailable
from grange.farm.transport import Completed, Entry

#: A holder that is at work says so; one that is silent for this long is stopped, or hangs.
SILENCE_S = 15 * HEARTBEAT_S


class ConnectionClient:
    """A Transport by the holder's. Each call that is under way has a socket of its own.

    holder: who holds the connection, in words.
    Errors: those of a Transport; TransportUnavailable also when the holder ends, after which lost is true.
    """

    def __init__(self, path: Path, computer: str, holder: str) -> None:
        self._path = path
        self._computer = computer
        self._holder = holder
        self._free: list[socket.socket] = []
        self._lock = threading.Lock()
        self.lost = False
        self._keep(self._open())

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run a program there and wait for its end."""
        asked = {"call": "run", "argv": list(argv), "cwd": cwd, "timeout_s": timeout_s}
        header, (stdout, stderr) = self._call(asked, [stdin])
        return Completed(header["status"], stdout, stderr)

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents); files are read by the holder, who is on this host."""
        names = [
            [None if isinstance(source, bytes) else os.path.abspath(source), there] for source, there in files
        ]
        contents = [source for source, _ in files if isinstance(source, bytes)]
        self._call({"call": "put", "files": names, "mode": mode}, contents)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files; they are written by the holder."""
        self._call({"call": "get", "files": [[there, os.path.abspath(here)] for there, here in files]})

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        header, parts = self._call({"call": "read", "paths": list(paths)})
        contents = iter(parts)
        return [next(contents) if there else None for there in header["there"]]

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        header, _ = self._call({"call": "list", "folders": [*folders]})
        return [
            None if entries is None else [Entry(*entry) for entry in entries] for entries in header["entries"]
        ]

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them."""
        self._call({"call": "make_folders", "paths": [*paths], "mode": mode})

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them."""
        self._call({"call": "remove", "paths": [*paths]})

    def home(self) -> str:
        """Our home folder there."""
        return str(self._call({"call": "home"})[0]["home"])

    def close(self) -> None:
        """Leave the holder."""
        with self._lock:
            self.lost = True
            for peer in self._free:
                peer.close()
            self._free.clear()

    def _call(self, header: Header, parts: Sequence[bytes] = ()) -> Frame:
        with self._lock:
            peer = self._free.pop() if self._free else None
        if peer is None:
            peer = self._open()
        try:
            send_frame(peer, header, parts)
            answer, received = receive_frame(peer)
            while "working" in answer:
                answer, received = receive_frame(peer)
        except PeerGone as gone:
            self.lost = True
            peer.close()
            raise TransportUnavailable(
                self._computer, f"the connection is held by {self._holder}, and {gone}"
            ) from gone
        except BaseException:
            peer.close()  # the answer to this call would be taken for that to the next
            raise
        self._keep(peer)
        if "error" in answer:
            raise error_of(answer)
        return answer, received

    def _open(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.settimeout(SILENCE_S)
            peer.connect(str(self._path))
            if not is_ours(peer):
                raise PermissionError("the process there is another user's")
        except OSError as error:
            peer.close()
            self.lost = True
            raise TransportUnavailable(
                self._computer,
                f"the connection is held by {self._holder}, whose socket {self._path} does not answer: "
                f"{error.strerror or error}",
            ) from error
        return peer

    def _keep(self, peer: socket.socket) -> None:
        with self._lock:
            if self.lost:
                with suppress(OSError):
                    peer.close()
            else:
                self._free.append(peer)
