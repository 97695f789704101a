"""A small text from the web: over http or https and nothing else, bounded in size and in time."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from grange.core.errors import InputInvalid

_BLOCK = 1 << 14


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where a server sends us, but not from an encrypted connection to one that is not."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it leads from https to {urlsplit(newurl).scheme or 'nowhere'}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, *, largest: int, timeout_s: float) -> str:
    """The text at a URL.

    Units: largest in bytes; timeout_s in seconds, for the whole call.
    Errors: InputInvalid, for another scheme, and when it is not there, too large, too slow, or no text.
    """
    try:
        parts = urlsplit(url)
        scheme, host, credentials = parts.scheme, parts.hostname, parts.username or parts.password
    except ValueError as error:
        raise InputInvalid("config", url, f"a URL: {error}") from None
    if scheme not in ("http", "https") or not host:
        raise InputInvalid("config", url, "a file, or an http:// or https:// address")
    if credentials:  # not repeated: it may be a password
        raise InputInvalid("config", f"{scheme}://…@{host}", "an address without a user and password")
    # build_opener would also open ftp:, file: and data: addresses that a server redirects to.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "grange"), ("Accept", "text/*, application/*;q=0.9")]
    deadline = time.monotonic() + timeout_s
    try:
        with opener.open(url, timeout=timeout_s) as answer:
            content = _read(answer, largest, deadline)
    except urllib.error.HTTPError as error:
        raise InputInvalid(
            "config", url, f"a file there; the server says {error.code} {error.reason}"
        ) from None
    except TimeoutError:
        raise InputInvalid("config", url, f"an answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputInvalid("config", url, f"an address that can be reached: {reason}") from None
    if len(content) > largest:
        raise InputInvalid("config", url, f"a text of at most {largest // 1024} KiB")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputInvalid("config", url, "a text in UTF-8") from None


def _read(answer: Any, largest: int, deadline: float) -> bytes:
    """What is there, a byte more than is wanted at most. read1: a server that drips is seen as one."""
    content = bytearray()
    while len(content) <= largest:
        if time.monotonic() > deadline:
            raise TimeoutError
        block = answer.read1(_BLOCK)
        if not block:
            break
        content += block
    return bytes(content)
