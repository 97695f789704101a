"""Lends a transport to other processes of this host and user, through a Unix socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

from grange.farm.connection_frame import Header, PeerGone, error_header, is_ours, receive_frame, send_frame
from grange.farm.transport import Transport

#: While a call takes its time, the caller hears this often that somebody is at it.
HEARTBEAT_S = 2.0


class ConnectionServer:
    """Serves a transport at a path until it is closed; a thread for each socket of a client.

    Whatever a call or a client does wrong ends that call, or that client's socket; nothing ends the server.
    Errors: OSError when the socket cannot be made.
    """

    def __init__(self, transport: Transport, path: Path, computer: str) -> None:
        self._transport = transport
        self._path = path
        self._computer = computer
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, threading.Lock] = {}
        self._busy: set[socket.socket] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(str(path))
            os.chmod(path, 0o600)
            self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise
        for loop in (self._accept, self._beat):
            threading.Thread(target=loop, name=f"connection {computer}", daemon=True).start()

    def close(self) -> None:
        """Serve nobody any more; calls that are under way are lost to their callers."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._socket.close()
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                peer, _ = self._socket.accept()
            except OSError:
                if self._closed.wait(0.05):  # too many files are open, for example
                    return
                continue
            if not is_ours(peer):
                peer.close()
                continue
            with self._lock:
                self._peers[peer] = threading.Lock()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        speaking = self._peers[peer]
        try:
            while not self._closed.is_set():
                header, parts = receive_frame(peer)
                with self._lock:
                    self._busy.add(peer)
                try:
                    answer, sent = _answer(self._transport, header, parts)
                except Exception as error:
                    answer, sent = error_header(error, self._computer), []
                finally:
                    with self._lock:
                        self._busy.discard(peer)
                with speaking:
                    send_frame(peer, answer, sent)
        except PeerGone:
            pass
        finally:
            with self._lock:
                self._peers.pop(peer, None)
            peer.close()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            with self._lock:
                busy = [(peer, self._peers[peer]) for peer in self._busy if peer in self._peers]
            for peer, speaking in busy:
                # Whoever is being answered needs no heartbeat.
                if speaking.acquire(blocking=False):
                    try:
                        with contextlib.suppress(PeerGone):
                            if peer in self._busy:
                                send_frame(peer, {"working": True})
                    finally:
                        speaking.release()


def _answer(transport: Transport, header: Header, parts: list[bytes]) -> tuple[Header, list[bytes]]:
    """Do what a frame asks for."""
    call = header["call"]
    if call == "run":
        completed = transport.run(
            header["argv"], stdin=parts[0], cwd=header["cwd"], timeout_s=header["timeout_s"]
        )
        return {"status": completed.status}, [completed.stdout, completed.stderr]
    if call == "put":
        contents = iter(parts)
        files = [(next(contents) if here is None else Path(here), there) for here, there in header["files"]]
        transport.put(files, mode=header["mode"])
        return {}, []
    if call == "get":
        transport.get([(there, Path(here)) for there, here in header["files"]])
        return {}, []
    if call == "read":
        found = transport.read(header["paths"])
        there = [content is not None for content in found]
        return {"there": there}, [content for content in found if content is not None]
    if call == "list":
        listed = transport.list(header["folders"])
        return {
            "entries": [None if entries is None else list(map(_packed, entries)) for entries in listed]
        }, []
    if call == "make_folders":
        transport.make_folders(header["paths"], mode=header["mode"])
        return {}, []
    if call == "remove":
        transport.remove(header["paths"])
        return {}, []
    if call == "home":
        return {"home": transport.home()}, []
    raise ValueError(f"no such call: {call!r}")


def _packed(entry: Any) -> list[Any]:
    return [entry.name, entry.size, entry.mtime, entry.is_folder, entry.is_link]
