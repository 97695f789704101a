"""Frames between the process that holds a connection and those that use it: a JSON header, then plain bytes.

    4 bytes   length of the header
    header    JSON; under "sizes" the lengths of the parts that follow
    parts     bytes as they are

Both sides are of one host, one user and one version of grange; nothing of this is kept.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from grange.farm import errors
from grange.farm.errors import ConnectionNotYet, FarmError, TransportFailed, TransportUnavailable

Header = dict[str, Any]
Frame = tuple[Header, list[bytes]]

_LENGTH = struct.Struct(">I")
#: What else could be meant by a longer header is no frame of ours.
_LONGEST_HEADER = 1 << 28
_BLOCK = 1 << 20


class PeerGone(Exception):
    """The other process has ended, or does not speak."""


def send_frame(peer: socket.socket, header: Header, parts: Sequence[bytes] = ()) -> None:
    """Errors: PeerGone."""
    encoded = json.dumps({**header, "sizes": [len(part) for part in parts]}).encode()
    try:
        peer.sendall(_LENGTH.pack(len(encoded)) + encoded)
        for part in parts:
            peer.sendall(part)
    except OSError as error:
        raise PeerGone(str(error)) from error


def receive_frame(peer: socket.socket) -> tuple[Header, list[bytes]]:
    """Errors: PeerGone, also when the peer's timeout passes without a byte."""
    try:
        (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size))
        if length > _LONGEST_HEADER:
            raise PeerGone("what it says is no frame")
        header = json.loads(_exactly(peer, length))
        return header, [_exactly(peer, size) for size in header["sizes"]]
    except TimeoutError as error:
        raise PeerGone("it does not answer") from error
    except (OSError, ValueError) as error:
        raise PeerGone(str(error)) from error


def is_ours(peer: socket.socket) -> bool:
    """Whether the process at the other end is the same user's."""
    packed = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", packed)
    return bool(uid == os.geteuid())


def error_header(error: Exception, computer: str) -> Header:
    """An error as a header; what no transport raises counts as a lost connection."""
    if isinstance(error, TransportFailed):
        header: Header = {"error": type(error).__name__, "computer": error.computer, "reason": error.reason}
        if isinstance(error, ConnectionNotYet):
            header["retry_after_s"] = error.retry_after_s
        return header
    if isinstance(error, FarmError):
        return {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, OSError):
        return {"error": "OSError", "of": [error.errno, error.strerror, str(error.filename or "")]}
    return {"error": "TransportUnavailable", "computer": computer, "reason": f"unexpected: {error!r}"}


def error_of(header: Header) -> Exception:
    """The error that a header tells of."""
    name = header["error"]
    if name == "OSError":
        number, words, file = header["of"]
        return OSError(number, words, file or None)
    kind = getattr(errors, name, TransportUnavailable)
    if "message" in header:
        return FarmError(header["message"]) if issubclass(kind, TransportFailed) else _made(kind, header)
    if kind is ConnectionNotYet:
        return ConnectionNotYet(header["computer"], header["reason"], header["retry_after_s"])
    return _made(kind, header)


def _made(kind: type[Exception], header: Header) -> Exception:
    if "message" in header:
        return kind(header["message"])
    return kind(header["computer"], header["reason"])


def _exactly(peer: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        got = peer.recv_into(view[at : at + _BLOCK])
        if not got:
            raise PeerGone("it has ended")
        at += got
    del view
    return bytes(data)
