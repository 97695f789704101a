"""The courier: carries result packs into the store, and input files out of it, by signed URL.

One file, standard library only, Python 3.9 or newer: it travels with runner.py, which loads it where a chunk
folder has a file delivery.json (farm.delivery writes it):

    put     [[name of an object, URL], …]: for the result packs of this chunk, by their numbers
    get     {key: {"url", "offset", "stored_size", "codec", "size"}}: where input files lie
    ca      certificates that are trusted beside the system's (PEM), or ""

A URL is a secret for as long as it holds: none is ever in a message, a log or an argument. Proxies are those
of the environment (http_proxy, https_proxy, no_proxy).
"""

# ruff: noqa: B904
from __future__ import annotations

import base64
import hashlib
import http.client
import os
import random
import re
import socket
import threading
import time
import zlib
from typing import Any, Callable, Dict, Iterator, Optional, Tuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

try:
    import ssl
except ImportError:  # a Python that was built without it
    ssl = None  # type: ignore[assignment]

#: Bytes that are sent or read at a time.
BLOCK = 1 << 20
#: How long it may take to connect, and how long nothing may go or come on a connection. Seconds.
CONNECT_S, SILENCE_S = 10.0, 60.0
#: A request is repeated so often at most, for so long at most; pauses grow from the first to the last number,
#: each by chance between nothing and that much. Seconds.
TRIES, PATIENCE_S = 6, 120.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
#: What one PUT may hold with S3.
LARGEST_PUT = 5 << 30
#: An object of that name is there: an earlier PUT of ours has come to its end, though we did not hear of it.
IS_THERE = 412

Json = Dict[str, Any]


class Undelivered(Exception):
    """It was not done, for the reason that the text gives; to be done in another way."""


class Refused(Undelivered):
    """The other side does not want it, and will not in a while."""


class Passing(Exception):
    """It was not done, and may be done in a while."""


class Stopped(Exception):
    """Somebody wants us to end."""


class Courier:
    """Requests of one chunk to the store. One thread uses it.

    stopped: is asked often; true ends what is under way (Stopped). gate: held while names are looked up and
    connections are made, which no process should be forked in the midst of. patient: false where others have
    just tried in vain: the first request is made once.
    """

    def __init__(
        self,
        ca: str,
        stopped: Callable[[], bool] = bool,
        gate: Optional[threading.Lock] = None,
        patient: bool = True,
    ) -> None:
        self._ca = ca
        self._stopped = stopped
        self._gate = gate or threading.Lock()
        self._context: Any = None
        self._away_until = 0.0 if patient else time.monotonic() + PATIENCE_S
        self._refused = ""
        self._open: Optional[http.client.HTTPConnection] = None

    def abort(self) -> None:
        """Break off what is under way; called by another thread, once stopped() is true."""
        connection = self._open
        sock = connection.sock if connection is not None else None
        try:
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has just come to its end

    def put(self, url: str, path: str) -> None:
        """Put a file into the store, whole, by one request, or by another should that fail.

        Done too if an object of that name is there: the caller gives a URL to one file only. The bytes are
        compared with their MD5 by the server.
        Errors: Undelivered, Stopped; OSError of reading the file.
        """
        if self._refused:
            raise Undelivered(self._refused)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size > LARGEST_PUT:
                raise Undelivered("%d bytes are more than one PUT may hold" % size)
            headers = {"If-None-Match": "*", "Content-Length": str(size)}
            digest = self._md5(fd)
            if digest:
                headers["Content-MD5"] = digest
            try:
                self._repeated(url, lambda: self._put_once(url, fd, headers))
            except Refused as problem:
                self._refused = str(problem)  # so will be all that were signed with it
                raise
        finally:
            os.close(fd)

    def get(self, place: Json, key: str, write: Callable[[bytes], object]) -> None:
        """Read a blob, piece by piece; what is written is sure once this has returned.

        A request that breaks off is repeated for what is missing.
        Errors: Undelivered, Stopped; what write raises.
        """
        digest = hashlib.sha256()
        inflate = zlib.decompressobj(-15) if place["codec"] == "deflate" else None
        at, end, left = place["offset"], place["offset"] + place["stored_size"], place["size"]

        def take(piece: bytes) -> None:
            nonlocal at, left
            at += len(piece)
            while piece:
                made = inflate.decompress(piece, BLOCK) if inflate else piece
                piece = inflate.unconsumed_tail if inflate else b""
                left -= len(made)
                if left < 0:
                    raise Undelivered("the content %s is longer than it should be" % key)
                digest.update(made)
                write(made)

        if at < end:
            self._repeated(place["url"], lambda: self._get_once(place["url"], lambda: (at, end), take))
        if inflate is not None:
            rest = inflate.flush()
            left -= len(rest)
            digest.update(rest)
            write(rest)
        if left or digest.hexdigest() != key:
            raise Undelivered("what the store gave is not the content %s" % key)

    # -- one request -----------------------------------------------------------------------------

    def _put_once(self, url: str, fd: int, headers: Dict[str, str]) -> None:
        def body() -> Iterator[bytes]:
            at = 0
            while True:
                self._look()
                piece = os.pread(fd, BLOCK, at)
                if not piece:
                    return
                at += len(piece)
                yield piece

        connection, target, more = self._connect(url)
        try:
            answer, code = self._asked(connection, "PUT", target, {**headers, **more}, body())
            if answer.status not in (200, 201, 204, IS_THERE):
                raise self._failure(answer.status, code)
        finally:
            connection.close()

    def _get_once(
        self, url: str, missing: Callable[[], Tuple[int, int]], take: Callable[[bytes], None]
    ) -> None:
        start, end = missing()
        connection, target, headers = self._connect(url)
        try:
            headers["Range"] = "bytes=%d-%d" % (start, end - 1)
            answer, code = self._asked(connection, "GET", target, headers)
            if answer.status not in (200, 206):
                raise self._failure(answer.status, code)
            # who knows no ranges gives all of it
            skip = start if answer.status == 200 else 0
            while start < end:
                self._look()
                try:
                    piece = answer.read(min(BLOCK, skip or end - start))
                except (OSError, http.client.HTTPException) as problem:
                    raise Passing(named(problem))
                if not piece:
                    raise Passing("the answer ended early")
                if skip:
                    skip -= len(piece)
                    continue
                start += len(piece)
                take(piece)
        finally:
            connection.close()

    def _asked(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Dict[str, str],
        body: Optional[Iterator[bytes]] = None,
    ) -> Tuple[http.client.HTTPResponse, str]:
        """The answer, and the code of S3 if it is an error. Errors: Passing."""
        lost: Optional[OSError] = None
        try:
            try:
                connection.request(method, target, body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError) as problem:
                lost = problem  # a server that refuses need not read all: it may have said why
            try:
                answer = connection.getresponse()
                return answer, code_of(answer.read(4096)) if answer.status >= 300 else ""
            except (OSError, http.client.HTTPException):
                if lost is not None:
                    raise lost
                raise
        except (OSError, http.client.HTTPException) as problem:
            raise Passing(named(problem))

    def _connect(self, url: str) -> Tuple[http.client.HTTPConnection, str, Dict[str, str]]:
        """A connection, what to ask it for, and headers that a proxy wants."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        target = parts.path + ("?" + parts.query if parts.query else "")
        proxies = getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and proxy_bypass(parts.netloc):
            proxy = None
        headers: Dict[str, str] = {}
        at, port = host, parts.port
        authorization = {}
        if proxy:
            via = urlsplit(proxy if "://" in proxy else "http://" + proxy)
            at, port = via.hostname or "", via.port or 80
            if via.username:
                word = "%s:%s" % (unquote(via.username), unquote(via.password or ""))
                authorization["Proxy-Authorization"] = (
                    "Basic " + base64.b64encode(word.encode("utf-8", "surrogateescape")).decode()
                )
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            if ssl is None:
                raise Refused("the Python there has no module ssl")
            if self._context is None:
                self._context = ssl.create_default_context()
                if self._ca:
                    self._context.load_verify_locations(cadata=self._ca)
            connection = http.client.HTTPSConnection(at, port, timeout=CONNECT_S, context=self._context)
            if proxy:
                connection.set_tunnel(host, parts.port or 443, authorization)
        else:
            connection = http.client.HTTPConnection(at, port, timeout=CONNECT_S)
            if proxy:
                headers.update(authorization)
                target = "%s://%s%s" % (parts.scheme, parts.netloc, target)
        headers["Host"] = parts.netloc.rpartition("@")[2]
        try:
            with self._gate:
                self._look()
                connection.connect()
            connection.sock.settimeout(SILENCE_S)
            self._open = connection
        except (OSError, http.client.HTTPException) as problem:
            connection.close()
            mistrust = getattr(problem, "verify_message", "")
            if mistrust:
                raise Refused("its certificate is not trusted: %s" % mistrust)
            raise Passing(named(problem))
        return connection, target, headers

    def _md5(self, fd: int) -> str:
        """The MD5 of a file as HTTP has it; "" where this Python has no MD5."""
        try:
            digest = hashlib.md5(usedforsecurity=False)
        except ValueError:
            return ""
        at = 0
        while True:
            self._look()
            piece = os.pread(fd, BLOCK, at)
            if not piece:
                return base64.b64encode(digest.digest()).decode()
            digest.update(piece)
            at += len(piece)

    # -- again and again -------------------------------------------------------------------------

    def _repeated(self, url: str, once: Callable[[], None]) -> None:
        """Make a request until it is done. Where nobody answered for long, it is not tried for long again."""
        began = time.monotonic()
        tries = 1 if began < self._away_until else TRIES
        pause = FIRST_PAUSE_S
        while True:
            try:
                once()
                self._away_until = 0.0
                return
            except Refused as problem:
                raise Refused("%s: %s" % (place_of(url), problem))
            except Passing as problem:
                tries -= 1
                pause_s = random.random() * pause
                pause = min(LONGEST_PAUSE_S, 2 * pause)
                if tries <= 0 or time.monotonic() + pause_s > began + PATIENCE_S:
                    self._away_until = time.monotonic() + PATIENCE_S
                    raise Undelivered("%s: %s" % (place_of(url), problem))
            until = time.monotonic() + pause_s
            while time.monotonic() < until:
                self._look()
                time.sleep(min(0.1, max(0.0, until - time.monotonic())))

    def _look(self) -> None:
        if self._stopped():
            raise Stopped

    @staticmethod
    def _failure(status: int, code: str) -> Exception:
        text = "status %d%s" % (status, " (%s)" % code if code else "")
        # 409: two PUTs of a name at once; BadDigest: damaged on the way
        if status in (408, 409, 425, 429, 500, 502, 503, 504) or code in ("RequestTimeout", "BadDigest"):
            return Passing(text)
        if code in ("AccessDenied", "ExpiredToken", "ExpiredRequest") or status == 403:
            text += "; the signed URL may have expired"
        return Refused(text)


def code_of(body: bytes) -> str:
    """The code of an error of S3. Nothing else of it: it may repeat what was signed."""
    found = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", body)
    return found.group(1).decode() if found else ""


def place_of(url: str) -> str:
    """What may be said of a URL."""
    parts = urlsplit(url)
    return "%s://%s" % (parts.scheme, parts.hostname) + (":%d" % parts.port if parts.port else "")


def named(problem: Exception) -> str:
    """An error in words, without what was asked for."""
    if isinstance(problem, OSError):
        return problem.strerror or str(problem) or type(problem).__name__
    return type(problem).__name__
