"""What is said, and what kind of error it is, when a bucket cannot be used: on the real server."""

from __future__ import annotations

import datetime
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from object_store import ObjectStore

from grange.repository.errors import StoreError, StoreFull, StoreReadOnly, StoreUnavailable
from grange.repository.retries import Retries
from grange.repository.retrying_store import RetryingStore
from grange.repository.s3_bucket import look_at
from grange.repository.s3_session import S3Session
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store

Call = Callable[[S3Store], object]

READS: dict[str, Call] = {
    "head": lambda store: store.head("a"),
    "range": lambda store: store.get_ranges("a", [(0, 1)]),
    "ranges": lambda store: store.get_ranges("a", [(0, 1), (99, 1)]),
    "read": lambda store: list(store.read("a")),
    "list": lambda store: list(store.list()),
}
WRITES: dict[str, Call] = {
    "put": lambda store: store.put_if_absent("b", b"x"),
    "parts": lambda store: store.try_parts("c", b"x"),
    "delete": lambda store: store.delete(["b"]),
}
# By the other library.
SET_UP: dict[str, Call] = {
    "look": lambda store: look_at(S3Session(store.settings)),
    "sweep": lambda store: store.sweep(3600),
}
ALL = READS | WRITES | SET_UP


@pytest.fixture
def settings(object_store: ObjectStore, bucket: str) -> S3Settings:
    """Of a bucket with an object a."""
    made = object_store.settings(bucket)
    S3Store(made).put_if_absent("a", b"content")
    return made


def said_by(settings: S3Settings, call: Call) -> StoreError:
    """The error of a call that must fail at once, though it may be tried again."""
    store = S3Store(settings, Retries(tries=1))
    began = time.monotonic()
    with pytest.raises(StoreError) as raised:
        call(store)
    assert time.monotonic() - began < 10
    error = raised.value
    assert "Traceback" not in str(error)
    assert "Debug source" not in str(error)
    assert "\n" not in str(error)
    return error


def permanent(settings: S3Settings, call: Call) -> str:
    error = said_by(settings, call)
    assert not isinstance(error, StoreUnavailable), str(error)
    return str(error)


def credentials(folder: Path, access: str, secret: str) -> str:
    path = folder / "keys"
    path.write_text(f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")
    return str(path)


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_wrong_secret(object_store: ObjectStore, settings: S3Settings, tmp_path: Path, call: Call) -> None:
    access, secret = object_store.keys()
    wrong = secret[:-1] + ("x" if secret[-1] != "x" else "y")
    file = credentials(tmp_path, access, wrong)
    said = permanent(replace(settings, credentials_file=file), call)
    assert settings.bucket in said
    assert settings.endpoint in said
    assert "the secret key does not belong to the access key (SignatureDoesNotMatch)" in said
    assert f"correct the credentials, which came from {file}" in said
    assert wrong not in said
    assert access not in said


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_an_unknown_access_key(settings: S3Settings, tmp_path: Path, call: Call) -> None:
    said = permanent(replace(settings, credentials_file=credentials(tmp_path, "NOBODY", "x" * 40)), call)
    assert "the server does not know this access key (InvalidAccessKeyId)" in said


@pytest.mark.parametrize("call", (READS | WRITES).values(), ids=READS | WRITES)
def test_no_such_bucket(settings: S3Settings, call: Call) -> None:
    said = permanent(replace(settings, bucket="nobody-has-this-one"), call)
    assert (
        f"in bucket nobody-has-this-one at {settings.endpoint}" in said or "cannot list bucket nobody" in said
    )
    assert "there is no such bucket; correct its name, or make it by `grange repository init`" in said


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_no_right_to_read(object_store: ObjectStore, settings: S3Settings, call: Call) -> None:
    object_store.add_user("stranger")
    said = permanent(replace(settings, aws_profile="stranger"), call)
    assert "this user has not the right to (AccessDenied)" in said
    assert "give it the right to read objects and to list the bucket" in said


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_no_right_to_write(object_store: ObjectStore, settings: S3Settings, call: Call) -> None:
    object_store.add_user("reader")
    bucket = f"arn:aws:s3:::{settings.bucket}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["arn:aws:iam:::user/reader"]},
                "Action": ["s3:GetObject", "s3:ListBucket"],
                "Resource": [bucket, f"{bucket}/*"],
            }
        ],
    }
    object_store.client().put_bucket_policy(Bucket=settings.bucket, Policy=json.dumps(policy))
    reader = replace(settings, aws_profile="reader")
    for read in READS.values():
        read(S3Store(reader))
    error = said_by(reader, call)
    assert isinstance(error, StoreReadOnly)
    assert "give it the right to write and delete objects" in str(error)


def test_a_quota_that_is_used_up(object_store: ObjectStore, settings: S3Settings) -> None:
    object_store.set_quota(settings.bucket, max_bytes=4096)
    for call in (WRITES["put"], WRITES["parts"]):
        error = said_by(settings, call)
        assert isinstance(error, StoreFull)
        assert "no space is left (QuotaExceeded)" in str(error)
    assert S3Store(settings).get_ranges("a", [(0, 7)]) == [b"content"]


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_certificate_that_is_not_trusted(
    object_store: ObjectStore, settings: S3Settings, call: Call
) -> None:
    secure = object_store.settings(settings.bucket, https=True)
    said = permanent(replace(secure, ca_file=""), call)
    assert secure.endpoint in said
    assert "its certificate is not trusted" in said
    assert "`ca_file`" in said
    call(S3Store(secure))


def test_a_certificate_of_somebody_else(
    object_store: ObjectStore, settings: S3Settings, tmp_path: Path
) -> None:
    secure = object_store.settings(settings.bucket, https=True)
    assert "there is" not in permanent(replace(secure, ca_file=str(tmp_path / "absent")), READS["head"])
    (tmp_path / "empty.pem").write_text("")
    said = permanent(replace(secure, ca_file=str(tmp_path / "empty.pem")), READS["head"])
    assert "empty.pem (ca_file) holds no certificate in PEM form" in said


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_port_that_refuses(settings: S3Settings, call: Call) -> None:
    error = said_by(replace(settings, endpoint="http://127.0.0.1:1"), call)
    assert isinstance(error, StoreUnavailable)
    assert "at http://127.0.0.1:1: nobody listens there; if it lasts, is the server running?" in str(error)


def test_a_port_that_refuses_is_tried_again_within_a_bound(settings: S3Settings) -> None:
    store = S3Store(replace(settings, endpoint="http://127.0.0.1:1"))
    retrying = RetryingStore(store, Retries(patience_s=0.5, longest_pause_s=0.1))
    with pytest.raises(StoreUnavailable, match=r"nobody listens there.*tried \d+ times in 0\.\d s"):
        retrying.head("a")
    assert retrying.retries.retried > 3


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_name_that_does_not_resolve(settings: S3Settings, call: Call) -> None:
    said = permanent(replace(settings, endpoint="https://no.such.host.invalid"), call)
    assert "there is no host of the name no.such.host.invalid; correct `endpoint`" in said


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_tls_with_who_speaks_none(settings: S3Settings, call: Call) -> None:
    said = permanent(replace(settings, endpoint=settings.endpoint.replace("http:", "https:")), call)
    assert "it does not speak TLS as is needed" in said
    assert "is it an http:// endpoint?" in said


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_no_tls_with_who_wants_it(object_store: ObjectStore, settings: S3Settings, call: Call) -> None:
    insecure = object_store.https_endpoint.replace("https:", "http:")
    error = said_by(replace(settings, endpoint=insecure), call)
    assert isinstance(error, StoreUnavailable)
    assert "if it lasts, is it an https:// endpoint?" in str(error)


@pytest.fixture
def another_server() -> Iterator[str]:
    """A web server that knows nothing of S3."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b"<html>It works!</html>"
            self.send_response(404 if self.command in ("GET", "HEAD") else 405)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("call", ALL.values(), ids=ALL)
def test_a_server_that_is_not_of_s3(settings: S3Settings, another_server: str, call: Call) -> None:
    said = permanent(replace(settings, endpoint=another_server), call)
    assert "which is not how an S3 server answers; is the endpoint right?" in said
    assert "It works" not in said


def test_clocks_that_differ(settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own answer to a signature of yesterday; boto3's clock is the one that can be set."""
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: yesterday)
    said = permanent(settings, SET_UP["look"])
    assert f"cannot list bucket {settings.bucket} at {settings.endpoint}" in said
    assert "the clocks of this machine and of the server differ too much; set them" in said


def test_credentials_come_from_where_they_are_said_to(
    object_store: ObjectStore, settings: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, secret = object_store.keys()
    home = tmp_path / "aws"
    home.mkdir()
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    by_chain = replace(settings, credentials_file="", region="")

    def works(asked: S3Settings) -> bool:
        return S3Store(asked).head("a") == 7

    assert "put them into ~/.aws/credentials, or set AWS_ACCESS_KEY_ID" in permanent(by_chain, READS["head"])

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    assert works(by_chain)
    # of somebody else: it must not be mixed with what is said elsewhere
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another session")
    assert "which came from the environment (AWS_ACCESS_KEY_ID)" in permanent(
        replace(by_chain), READS["head"]
    )
    assert works(settings)

    (home / "credentials").write_text(
        f"[default]\naws_access_key_id = NOBODY\naws_secret_access_key = x\n"
        f"[ours]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n"
    )
    (home / "config").write_text("[profile ours]\nregion = eu-north-1\n")
    assert works(replace(by_chain, aws_profile="ours"))
    assert S3Session(replace(by_chain, aws_profile="ours")).region == "eu-north-1"
    assert "have none in the section nobody" in permanent(
        replace(by_chain, aws_profile="nobody"), READS["head"]
    )

    assert "has no section [nobody]" in permanent(replace(settings, aws_profile="nobody"), READS["head"])
    absent = str(tmp_path / "absent")
    assert f"there is no file {absent}" in permanent(
        replace(settings, credentials_file=absent), READS["head"]
    )


def test_the_environment_does_not_bend_requests(
    settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "AWS_BUCKET": "another",
        "AWS_REGION": "mars-1",
    }.items():
        monkeypatch.setenv(name, value)
    with FaultProxy(settings.endpoint) as proxy:
        store = S3Store(replace(settings, endpoint=proxy.endpoint))
        assert store.put_if_absent("b", b"x") is True
        assert store.put_if_absent("b", b"x") is False
        assert store.try_parts("c", b"y") is True
        assert sorted(info.name for info in store.list()) == ["a", "b", "c"]
        for request in proxy.requests:
            assert "authorization" in request.headers
            assert len(request.headers["x-amz-content-sha256"]) == 64


def test_a_bucket_in_the_name_of_the_host(settings: S3Settings) -> None:
    """No server here has such names: what is signed and asked for is looked at."""
    virtual = replace(settings, endpoint="https://s3.example.org:8443", addressing="virtual", prefix="p")
    store = S3Store(virtual)
    [url] = store.sign_get(["packs/a"], 60)
    assert url.startswith(f"https://{settings.bucket}.s3.example.org:8443/p/packs/a?X-Amz-")
    [theirs] = [
        S3Session(virtual).boto.generate_presigned_url(
            "get_object", Params={"Bucket": virtual.bucket, "Key": "p/packs/a"}
        )
    ]
    assert theirs.split("?")[0] == url.split("?")[0]
    aws = replace(virtual, endpoint="", region="eu-north-1")
    [url] = S3Store(aws).sign_get(["packs/a"], 60)
    assert url.startswith(f"https://{settings.bucket}.s3.eu-north-1.amazonaws.com/p/packs/a?X-Amz-")
