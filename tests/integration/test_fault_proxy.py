"""The tests' own proxy: each fault is what it says, on the way to the real server."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from fault_plan import Answer, Corrupt, Cut, Delay, Fault, Lose, Request, Reset, Stall, every, first, nothing
from fault_proxy import FaultProxy, TlsProxy
from object_store import ObjectStore

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[FaultProxy]:
    with FaultProxy(object_store.endpoint) as running:
        yield running


@pytest.fixture
def link(object_store: ObjectStore, bucket: str) -> Callable[[str], str]:
    """Signed URLs of the server: link("put_object")."""

    def sign(verb: str) -> str:
        url: str = object_store.client().generate_presigned_url(verb, Params={"Bucket": bucket, "Key": "a"})
        return url.removeprefix(object_store.endpoint)

    object_store.client().put_object(Bucket=bucket, Key="a", Body=CONTENT)
    return sign


class Client:
    """A connection to the proxy. The signature is of the server's address, so that is what it says."""

    def __init__(self, endpoint: str, host: str, timeout_s: float = 10.0) -> None:
        self.connection = http.client.HTTPConnection(str(urlsplit(endpoint).netloc), timeout=timeout_s)
        self.host = urlsplit(host).netloc

    def ask(self, verb: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
        self.connection.request(verb, target, body=body, headers={"Host": self.host})
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def test_without_a_plan_all_is_as_without_a_proxy(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]
) -> None:
    client = Client(proxy.endpoint, object_store.endpoint)
    for _ in range(2):  # on one connection
        assert client.ask("GET", link("get_object")) == (200, CONTENT)
        assert client.ask("HEAD", link("head_object")) == (200, b"")
        assert client.ask("PUT", link("put_object"), b"other")[0] == 200
        assert client.ask("GET", link("get_object")) == (200, b"other")
        assert client.ask("PUT", link("put_object"), CONTENT)[0] == 200
    assert [request.method for request in proxy.requests[:3]] == ["GET", "HEAD", "PUT"]
    assert proxy.requests[2].size == 5
    assert not proxy.injected


def test_a_client_that_waits_for_100_continue(proxy: FaultProxy, object_store: ObjectStore) -> None:
    bucket = object_store.new_bucket()
    client = object_store.client(endpoint=proxy.endpoint)
    client.put_object(Bucket=bucket, Key="a", Body=CONTENT)  # boto3 does
    assert "expect" in proxy.requests[0].headers
    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == CONTENT


def test_the_server_is_not_asked(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]
) -> None:
    proxy.plan = first(1, Answer(503, "SlowDown"), where=lambda request: request.method == "PUT")
    client = Client(proxy.endpoint, object_store.endpoint)
    status, said = client.ask("PUT", link("put_object"), b"other")
    assert status == 503
    assert b"<Code>SlowDown</Code>" in said
    assert client.ask("GET", link("get_object")) == (200, CONTENT)  # on the same connection
    assert client.ask("PUT", link("put_object"), b"other")[0] == 200
    assert proxy.injected == {"Answer": 1}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (Reset(100_000), ConnectionResetError),
        (Reset(0, "up"), ConnectionResetError),
        (Lose(), ConnectionResetError),
        (Cut(100_000), http.client.IncompleteRead),
        (Stall(100_000), TimeoutError),
        (Stall(0, "up"), TimeoutError),
    ],
)
def test_an_answer_that_breaks_off(
    proxy: FaultProxy,
    object_store: ObjectStore,
    link: Callable[[str], str],
    fault: Fault,
    problem: type[Exception],
) -> None:
    proxy.plan = lambda _: fault
    client = Client(proxy.endpoint, object_store.endpoint, timeout_s=0.5)
    with pytest.raises(problem) as raised:
        client.ask("GET", link("get_object"))
    if isinstance(raised.value, http.client.IncompleteRead):
        assert raised.value.partial == CONTENT[:100_000]
    assert proxy.injected == {type(fault).__name__: 1}


@pytest.mark.parametrize("fault", [Reset(300_000, "up"), Stall(300_000, "up")])
def test_a_request_that_breaks_off_changes_nothing(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str], fault: Fault
) -> None:
    proxy.plan = first(1, fault)
    client = Client(proxy.endpoint, object_store.endpoint, timeout_s=0.5)
    with pytest.raises(OSError):  # noqa: PT011 - of one kind or another
        client.ask("PUT", link("put_object"), b"x" * 500_000)
    assert Client(proxy.endpoint, object_store.endpoint).ask("GET", link("get_object")) == (200, CONTENT)


def test_an_answer_that_is_lost_has_been_done(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]
) -> None:
    for fault, said in ((Lose(), None), (Lose(Answer(500, "InternalError")), 500)):
        content = repr(fault).encode()
        proxy.plan = first(1, fault)
        client = Client(proxy.endpoint, object_store.endpoint)
        if said is None:
            with pytest.raises(ConnectionResetError):
                client.ask("PUT", link("put_object"), content)
        else:
            assert client.ask("PUT", link("put_object"), content)[0] == said
        again = Client(proxy.endpoint, object_store.endpoint)
        assert again.ask("GET", link("get_object")) == (200, content)


def test_a_byte_is_another_one(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]
) -> None:
    client = Client(proxy.endpoint, object_store.endpoint)
    proxy.plan = first(1, Corrupt(200_000))
    changed = bytearray(CONTENT)
    changed[200_000] ^= 0xFF
    assert client.ask("GET", link("get_object")) == (200, bytes(changed))
    proxy.plan = first(1, Corrupt(200_000, "up"))
    assert client.ask("PUT", link("put_object"), CONTENT)[0] == 200
    assert client.ask("GET", link("get_object")) == (200, bytes(changed))


def test_a_delay(proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]) -> None:
    proxy.plan = lambda _: Delay(0.3)
    began = time.monotonic()
    assert Client(proxy.endpoint, object_store.endpoint).ask("HEAD", link("head_object"))[0] == 200
    assert time.monotonic() - began >= 0.3


def test_refusing_resets_what_is_open(
    proxy: FaultProxy, object_store: ObjectStore, link: Callable[[str], str]
) -> None:
    proxy.plan = lambda _: Stall(10)
    client = Client(proxy.endpoint, object_store.endpoint)
    told: list[type] = []

    def wait() -> None:
        try:
            client.ask("GET", link("get_object"))
        except OSError as problem:
            told.append(type(problem))

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not proxy.injected:
        time.sleep(0.01)
    with proxy.refusing():
        waiter.join(timeout=2)
        assert told == [ConnectionResetError]
        with pytest.raises(ConnectionRefusedError):
            Client(proxy.endpoint, object_store.endpoint).ask("GET", "/")
    proxy.plan = nothing
    assert Client(proxy.endpoint, object_store.endpoint).ask("GET", link("get_object"))[0] == 200


def test_every_nth_in_turn() -> None:
    plan = every(3, Answer(), Cut(1), where=lambda request: request.method == "PUT")
    put, get = (Request(0, method, "/", {}) for method in ("PUT", "GET"))
    assert [plan(put) for _ in range(9)] == [None, None, Answer(), None, None, Cut(1), None, None, Answer()]
    assert [plan(get) for _ in range(9)] == [None] * 9


def test_through_tls(object_store: ObjectStore) -> None:
    trusted = ssl.create_default_context(cafile=object_store.ca_file)

    def ask(proxy: TlsProxy) -> int:
        address = str(urlsplit(proxy.endpoint).netloc)
        connection = http.client.HTTPSConnection(address, context=trusted, timeout=0.5)
        connection.request("GET", "/")
        return connection.getresponse().status

    faults: list[Reset | Cut | Stall | None] = [None, Reset(1000), Cut(1000), Stall(1000), None]
    with TlsProxy(object_store.https_endpoint, plan=lambda number: faults[number]) as proxy:
        assert ask(proxy) == 200
        # Who writes to a connection that was reset is told of its end.
        with pytest.raises((ConnectionResetError, ssl.SSLEOFError)):
            ask(proxy)
        with pytest.raises((ssl.SSLEOFError, http.client.RemoteDisconnected)):
            ask(proxy)
        with pytest.raises(TimeoutError):
            ask(proxy)
        assert ask(proxy) == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(urlsplit(proxy.endpoint).port or 0)))
