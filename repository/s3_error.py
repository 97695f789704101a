"""What an S3 server refuses, said in the words of the repository."""

from __future__ import annotations

import html
import re
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from grange.repository.errors import (
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from grange.repository.s3_settings import S3Settings

Action = Literal["read", "write", "delete", "list", "copy", "look up", "set up"]
Cause = Literal["answer", "refused", "name", "certificate", "tls", "timeout", "connection", "unknown"]

_PASSING = frozenset(
    {
        "BadDigest",  # the bytes were damaged on their way
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "ConcurrentModification",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
        "XMinioServerNotInitialized",
    }
)
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "StorageFull"})
_CREDENTIALS = {
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "InvalidAccessKeyId": "the server does not know this access key",
    "InvalidClientTokenId": "the server does not know this access key",
    "UnrecognizedClientException": "the server does not know this access key",
    "ExpiredToken": "the credentials have expired",
    "TokenRefreshRequired": "the credentials have expired",
    "InvalidToken": "the session token is not valid",
    "UserSuspended": "this user is suspended",
    "AccountProblem": "there is a problem with this account",
}
_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


@dataclass(frozen=True, slots=True)
class S3Failure:
    """What came instead of what was asked for.

    cause: "answer": the server answered with this HTTP status and this code of S3 ("" if it said none); else
    what became of the connection. said: the server's own words, or the library's. server: how it calls
    itself, where the library tells.
    """

    cause: Cause
    status: int = 0
    code: str = ""
    said: str = ""
    server: str = ""


def failure_of_obstore(error: Exception) -> S3Failure:
    """What an error of obstore says: all it has is a text, which ends in the structure it was made of."""
    text = str(error)
    code = _found(r"<Code>(\w+)</Code>", text) or _found(r'\bcode: "(\w+)"', text)
    said = html.unescape(_found(r"<Message>(.*?)</Message>", text))
    status = _found(r"\bstatus: (\d{3})\b", text) or _found(r"status code: (\d{3})\b", text)
    if status or code:
        return S3Failure("answer", int(status or 0), code, said)
    kind = _found(r"HttpError \{\s*kind: (\w+)", text)
    if "InvalidCertificate(" in text:
        return S3Failure("certificate", said=_found(r"InvalidCertificate\(\s*([A-Za-z]+)", text))
    if kind == "Connect":
        if "InvalidMessage(" in text or "AlertReceived(" in text:
            return S3Failure("tls", said=_found(r"(?:InvalidMessage|AlertReceived)\(\s*(\w+)", text))
        if "ConnectionRefused" in text:
            return S3Failure("refused")
        if '"dns error"' in text:
            return S3Failure("name")
    if kind == "Timeout" or "TimedOut" in text:
        return S3Failure("timeout")
    if kind or "reqwest::Error" in text or "hyper::Error" in text:
        return S3Failure("connection", said=_found(r'\bmessage: "([^"]+)"', text))
    return S3Failure("unknown", said=text.partition("\n\nDebug source:")[0])


def failure_of_boto(error: Exception) -> S3Failure:
    """What an error of botocore says."""
    import ssl

    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        said = error.response.get("Error", {})
        about = error.response.get("ResponseMetadata", {})
        code = said.get("Code") or ""
        return S3Failure(
            "answer",
            status=about.get("HTTPStatusCode", 0),
            code="" if code.isdigit() else code,  # of an answer without a body it is the status
            said=said.get("Message") or "",
            server=about.get("HTTPHeaders", {}).get("server", ""),
        )
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return S3Failure("certificate", said=cause.verify_message)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return S3Failure("tls", said=cause.reason or "")
        if isinstance(cause, ConnectionRefusedError):
            return S3Failure("refused")
        if isinstance(cause, socket.gaierror):
            return S3Failure("name")
    if isinstance(error, boto.ConnectTimeoutError | boto.ReadTimeoutError):
        return S3Failure("timeout")
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return S3Failure("connection", said=str(causes[-1]) if len(causes) > 1 else "")
    return S3Failure("unknown", said=str(error))


def failure_of(error: StoreError) -> S3Failure:
    """What an error of the store was made of."""
    from botocore.exceptions import BotoCoreError, ClientError

    cause = error.__cause__
    if isinstance(cause, BotoCoreError | ClientError):
        return failure_of_boto(cause)
    return failure_of_obstore(cause) if isinstance(cause, Exception) else S3Failure("unknown")


def store_error(
    failure: S3Failure, settings: S3Settings, action: Action, name: str = "", who: str = ""
) -> StoreError:
    """The error of the store for what a server said when something was done to an object.

    who: where the credentials came from, for people.
    """
    if failure.cause != "answer":
        return _not_answered(failure, settings, action, name)
    code, status = failure.code, failure.status
    if code == "NoSuchKey" or (status == 404 and not code and action == "look up"):
        return ObjectMissing(name, str(settings))
    head = _head(settings, action, name)
    if code == "NoSuchUpload":
        if action != "write":
            return ObjectMissing(name, str(settings))
        return StoreUnavailable(f"{head}: somebody has aborted its upload in parts")
    reason = ": ".join(filter(None, [code or f"HTTP status {status}", failure.said]))
    if code in _FULL or status == 507:
        return StoreFull(
            f"{head}: no space is left ({reason}); free some or have the quota raised, then again"
        )
    if code in _PASSING or status in (408, 429) or (status >= 500 and status not in (501, 505)):
        return StoreUnavailable(f"{head}: the server is busy or in trouble ({reason})")
    if code == "NoSuchBucket":
        return StoreError(
            f"{head}: there is no such bucket; correct its name, or make it by `grange repository init`"
        )
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{head}: the clocks of this machine and of the server differ too much; set them")
    if code in _CREDENTIALS:
        whose = f", which came from {who}" if who else ""
        return StoreError(f"{head}: {_CREDENTIALS[code]} ({code}); correct the credentials{whose}")
    if code in _REGION or status == 301:
        return StoreError(f"{head}: the bucket is in another region ({reason}); set `region`")
    if status in (401, 403) or code in ("AccessDenied", "AllAccessDisabled"):
        refused = f"{head}: this user has not the right to ({reason})"
        if action in ("read", "look up", "list"):
            whose = "" if name else ". Where the bucket is somebody else's, choose another name"
            return StoreError(f"{refused}; give it the right to read objects and to list the bucket{whose}")
        return StoreReadOnly(f"{refused}; give it the right to write and delete objects")
    if not code:
        reason += ", which is not how an S3 server answers; is the endpoint right?"
    return StoreError(f"{head}: {reason}")


def _not_answered(failure: S3Failure, settings: S3Settings, action: Action, name: str) -> StoreError:
    head = _head(settings, action, name)
    said = f" ({failure.said})" if failure.said else ""
    host = urlsplit(settings.endpoint).hostname or ""
    if failure.cause == "refused":
        return StoreUnavailable(f"{head}: nobody listens there; if it lasts, is the server running?")
    if failure.cause == "name":
        if host and _is_unknown(host):
            return StoreError(f"{head}: there is no host of the name {host}; correct `endpoint`")
        return StoreUnavailable(f"{head}: its name is not resolved now; if it lasts, is there a network?")
    if failure.cause == "certificate":
        return StoreError(
            f"{head}: its certificate is not trusted{said}; if it is by an authority of your own, name that "
            "one's certificate by `ca_file`"
        )
    if failure.cause == "tls":
        return StoreError(f"{head}: it does not speak TLS as is needed{said}; is it an http:// endpoint?")
    if failure.cause == "timeout":
        return StoreUnavailable(f"{head}: no answer in time")
    if failure.cause == "connection":
        if settings.endpoint.startswith("http://"):
            said += "; if it lasts, is it an https:// endpoint?"
        return StoreUnavailable(f"{head}: the connection was lost{said}")
    return StoreError(f"{head}: {failure.said}")


def _head(settings: S3Settings, action: Action, name: str) -> str:
    where = f"bucket {settings.bucket} at {settings.endpoint or 'AWS'}"
    return f"cannot {action} {name} in {where}" if name else f"cannot {action} {where}"


def _is_unknown(host: str) -> bool:
    """Whether it is known that there is no such host; not to know it passes."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    except (OSError, UnicodeError):
        return False
    return False


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    return match[1] if match else ""


def _causes(error: BaseException) -> list[BaseException]:
    """An error and those it was made of: libraries hide them in different places."""
    found: list[BaseException] = []
    ahead: list[object] = [error]
    while ahead:
        cause = ahead.pop(0)
        if not isinstance(cause, BaseException) or cause in found:
            continue
        found.append(cause)
        kwargs = getattr(cause, "kwargs", None)
        ahead += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
        if isinstance(kwargs, dict):
            ahead.append(kwargs.get("error"))
    return found
