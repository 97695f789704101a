"""A server that knows no If-None-Match, as some are: it overwrites.

The real one, behind a proxy that takes the header away and signs the request anew.
"""

from __future__ import annotations

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from fault_proxy import FaultProxy
from object_store import REGION, ObjectStore

#: What a new signature replaces, and what is to go.
_NOT_KEPT = ("authorization", "x-amz-date", "if-none-match")


class _Signer(S3SigV4Auth):
    """Signs a request whose body is not at hand: the client has said its SHA-256."""

    def payload(self, request: AWSRequest) -> str:
        return str(request.context["sha256"])


def old_server(server: ObjectStore) -> FaultProxy:
    """A proxy in front of a server."""
    signer = _Signer(Credentials(*server.keys()), "s3", REGION)

    def rewrite(head: bytes) -> bytes:
        first_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if "if-none-match" not in headers:
            return head
        method, target, version = first_line.split(" ")
        kept = {name: value for name, value in headers.items() if name not in _NOT_KEPT}
        request = AWSRequest(method, f"http://{headers['host']}{target}", headers=kept)
        request.context["sha256"] = headers["x-amz-content-sha256"]
        signer.add_auth(request)
        signed = [f"{name}: {value}" for name, value in request.headers.items()]
        return "\r\n".join([f"{method} {target} {version}", *signed, "", ""]).encode("latin-1")

    proxy = FaultProxy(server.endpoint)
    proxy.rewrite = rewrite
    return proxy
