"""Runners that put their result packs into a real S3 server, and fetch input files there, by signed URL."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from object_store import ObjectStore

from grange.farm import FunctionTask, TaskResult, read_result_pack, runner, ship
from grange.farm.chunk_folder import write_chunk
from grange.farm.delivery import Delivery, pack_names
from grange.farm.function import by_value
from grange.farm.result import ResultPack
from grange.farm.runner_command import runner_command
from grange.farm.task import CommandTask, Resources
from grange.repository import Key, MemoryIndex, Repository, key_of
from grange.repository.s3_store import S3Store
from grange.repository.signer import Signer

RUN = "run-1"
CHUNK = "chunk-000001"
SOME = 300_000


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks work in a scratch of the test's own."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


class Site:
    """A bucket, and a run's folder as it is on a node."""

    def __init__(self, object_store: ObjectStore, bucket: str, folder: Path) -> None:
        self.server = object_store
        self.bucket = bucket
        self.store = S3Store(object_store.settings(bucket))
        self.repository = Repository(self.store)
        self.index = MemoryIndex()
        self.run = folder / RUN
        self.folder = self.run / CHUNK
        self.promised: list[str] = []

    def delivery(self, **changes: Any) -> Delivery:
        given = {
            "store": self.store, "signer": self.store, "locate": self.index.find,
            "promise": self.promised.extend, "least_bytes": 1000, **changes,
        }  # fmt: skip
        return Delivery(**given)

    def chunk(
        self,
        *tasks: CommandTask,
        delivery: Delivery | None = None,
        packs: int = 8,
        change: Callable[[dict[str, Any]], object] = bool,
        flush_s: float = 60.0,
        **more: Any,
    ) -> Path:
        """A chunk folder, as the agent makes it of what was sent."""
        delivery = delivery or self.delivery()
        self.folder.mkdir(parents=True)
        (self.run / "done").mkdir()
        assert not write_chunk(
            self.folder, tasks, Resources(), scratch=f"grange-test-{self.run.parent.name}-{os.getpid()}",
            fetch=None, flush_s=flush_s, delivery=delivery, more=more,
        )  # fmt: skip
        spec = json.loads(zipfile.ZipFile(self.folder / "chunk.zip").read("chunk.json"))
        urls = delivery.urls(RUN, CHUNK, packs, spec.get("away", ()))
        change(urls)
        (self.folder / "delivery.json").write_bytes(runner.dump(urls))
        (self.folder / "delivery.json").chmod(0o600)
        return self.folder

    def start(self, python: str = sys.executable, **environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [python, "-I", "-S", runner.__file__, "run", str(self.folder)],
            start_new_session=True,
            env={**os.environ, **environment},
        )

    def work(self, **options: Any) -> None:
        assert self.start(**options).wait(60) == 0
        assert (self.run / "done" / f"{CHUNK}.end").exists()

    def packs(self) -> list[ResultPack]:
        paths = sorted(self.folder.glob("result-*.zip"), key=lambda path: int(path.stem[7:]))
        return [read_result_pack(path) for path in paths]

    def results(self) -> list[TaskResult]:
        return [result for pack in self.packs() for result in pack.results]

    def objects(self) -> list[str]:
        return sorted(info.name for info in self.store.list())

    def log(self) -> str:
        return (self.run / "log").read_text()

    def put(self, *contents: bytes) -> list[Key]:
        keys, rows = self.repository.put(contents, self.index)
        self.index.add(rows)
        return keys

    def read(self, pack: ResultPack, keys: Collection[Key]) -> list[bytes]:
        """Contents of a pack that was delivered, by the rows that it gives."""
        index = MemoryIndex()
        assert pack.delivered is not None
        index.add(pack.delivered.locations())
        return self.repository.read(list(keys), index, verify=True)


@pytest.fixture
def site(object_store: ObjectStore, bucket: str, tmp_path: Path) -> Site:
    return Site(object_store, bucket, tmp_path)


def shell(task_id: object, script: str, **more: Any) -> CommandTask:
    return CommandTask(str(task_id), ("/bin/sh", "-c", script), **more)


def noise(task_id: object, size: int = SOME) -> CommandTask:
    """A task that prints so much of what cannot be deflated."""
    return shell(task_id, f"head -c {size} /dev/urandom")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def bytes_of(n: int) -> Path:
    """A function that returns a large file."""
    import os
    from pathlib import Path

    path = Path(f"{n}.dat")
    path.write_bytes(os.urandom(300_000))
    return path


def wait_until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.01)


def secrets_of(delivery_file: Path) -> list[str]:
    """What of URLs must be nowhere."""
    return [url.partition("?")[2] for _, url in json.loads(delivery_file.read_text())["put"]]


class Through:
    """A server on a port of its own that passes bytes on to another, and breaks off when it is told to.

    break_after: a connection is reset after so many bytes from the client; so many connections (breaks).
    """

    def __init__(self, endpoint: str, *, break_after: int = 0, breaks: int = 0, slow_s: float = 0.0) -> None:
        host, _, port = endpoint.rpartition("/")[2].partition(":")
        self._to = (host, int(port))
        self._break_after, self._breaks, self._slow_s = break_after, breaks, slow_s
        self._answer_limit, self._answers_broken = 0, 0
        self.answered = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def slow(self, seconds: float) -> None:
        """How long each piece is held back from now on."""
        self._slow_s = seconds

    def break_answers(self, *, after: int, times: int) -> None:
        """Cut that many answers after so many bytes."""
        self._answer_limit, self._answers_broken = after, times

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._to)
            broken = self.connections <= self._breaks
            limits = (
                self._break_after if broken else 0,
                self._answer_limit if self.connections <= self._answers_broken else 0,
            )
            for source, sink, limit in zip((client, server), (server, client), limits, strict=True):
                threading.Thread(
                    target=self._pass, args=(source, sink, limit, source is server), daemon=True
                ).start()

    def _pass(self, source: socket.socket, sink: socket.socket, limit: int, answers: bool) -> None:
        with contextlib.suppress(OSError):
            self._pass_on(source, sink, limit, answers)

    def _pass_on(self, source: socket.socket, sink: socket.socket, limit: int, answers: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                passed += len(data)
                self.answered += len(data) if answers else 0
                if limit and passed > limit:
                    source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    break
                time.sleep(self._slow_s)
                sink.sendall(data)
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@pytest.fixture
def through(object_store: ObjectStore) -> Iterator[Callable[..., Through]]:
    made: list[Through] = []

    def make(**options: Any) -> Through:
        made.append(Through(object_store.endpoint, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def signer_at(site: Site, endpoint: str) -> Signer:
    """Signs URLs of another way to the same bucket."""
    return S3Store(site.server.settings(site.bucket, endpoint=endpoint))


# Delivered


def test_a_large_pack_goes_into_the_store_and_its_receipt_comes_back(site: Site) -> None:
    site.chunk(noise("a"), noise("b"), shell("c", "echo small"))
    secrets = secrets_of(site.folder / "delivery.json")
    site.work()
    [pack] = site.packs()
    assert [result.id for result in pack.results] == ["a", "b", "c"]
    assert pack.path.stat().st_size < 5000
    assert pack.delivered is not None
    assert site.objects() == [pack.delivered.object_name] == [site.promised[0]]
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)
    keys = [key for result in pack.results for key in result.files.values()]
    contents = site.read(pack, keys)
    assert [key_of(content) for content in contents] == keys
    assert sorted({len(content) for content in contents}) == [0, 6, SOME]
    # the same rows as by reading all of it
    index = MemoryIndex()
    assert site.repository.rebuild_index(index) == pack.blobs
    assert index.rows == pack.delivered.locations()
    # and no secret is left
    assert not (site.folder / "delivery.json").exists()
    for path in site.run.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in secrets), path


def test_small_packs_and_those_beyond_the_urls_stay_in_the_folder(site: Site) -> None:
    site.chunk(
        *(shell(name, f"sleep 0.2; head -c {SOME} /dev/urandom") for name in "ab"),
        *(shell(name, "sleep 0.2; echo small") for name in "cd"), shell("e", f"head -c {SOME} /dev/urandom"),
        packs=3, flush_s=0.0,
    )  # fmt: skip
    site.work()
    large = [any(result.id in "abe" for result in pack.results) for pack in site.packs()]
    assert len(large) > 3
    delivered = [pack.delivered is not None for pack in site.packs()]
    assert delivered == [one and number < 3 for number, one in enumerate(large)]


def test_https_by_a_ca_of_ones_own(site: Site) -> None:
    settings = site.server.settings(site.bucket, https=True)
    signer = S3Store(settings)
    site.chunk(noise("a"), delivery=site.delivery(signer=signer, ca=Path(settings.ca_file).read_text()))
    site.work()
    assert site.packs()[0].delivered is not None


def test_a_certificate_that_is_not_trusted_is_told_and_the_pack_stays(site: Site) -> None:
    signer = S3Store(site.server.settings(site.bucket, https=True))
    site.chunk(noise("a"), delivery=site.delivery(signer=signer))
    site.work()
    assert site.packs()[0].delivered is None
    assert "its certificate is not trusted" in site.log()


def test_the_old_interpreter_does_it_too(site: Site, tmp_path: Path) -> None:
    done = subprocess.run(
        ["python3.9", "-c", "import sys; print(sys.executable)"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYENV_VERSION": "3.9.18"},
    )  # fmt: skip
    if done.returncode:
        pytest.skip("no Python 3.9")
    [key] = site.put(os.urandom(SOME))
    site.chunk(shell("a", "cat in; cat in", files={"in": key}))
    site.work(python=done.stdout.strip())
    [pack] = site.packs()
    assert pack.delivered is not None
    assert pack.results[0].outcome == "finished"


# What goes wrong


def test_a_second_delivery_is_answered_412_and_is_none(site: Site) -> None:
    """The runner dies after the PUT and before it knows of it: the next one finds the pack in the store."""
    site.chunk(noise("a"))
    before = site.folder / "delivery.json"
    spec = json.loads(before.read_text())
    site.folder.joinpath("delivery.json").unlink()
    site.work()
    # as it was before the runner was told that it is in the store
    marks = bytearray((site.folder / "marks").read_bytes())
    assert marks[8:12] == (1).to_bytes(4, sys.byteorder)
    marks[8:12] = (1 | runner.PENDING).to_bytes(4, sys.byteorder)
    (site.folder / "marks").write_bytes(marks)
    (site.run / "done" / f"{CHUNK}.end").rename(site.folder / "chunk.zip")
    whole = (site.folder / "result-1.zip").read_bytes()
    assert not runner.all_done(str(site.folder))
    assert site.store.put_if_absent(spec["put"][0][0], whole)
    before.write_bytes(runner.dump(spec))
    site.work()
    [pack] = site.packs()
    assert pack.delivered is not None
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)
    assert len(site.objects()) == 1
    assert not (site.run / "undelivered").exists()


@pytest.mark.parametrize("cut", [2000, 200_000])
def test_a_put_that_breaks_off_is_repeated(site: Site, through: Callable[..., Through], cut: int) -> None:
    way = through(break_after=cut, breaks=2)
    site.chunk(noise("a"), delivery=site.delivery(signer=signer_at(site, way.endpoint)))
    site.work()
    [pack] = site.packs()
    assert pack.delivered is not None
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)
    assert way.connections == 3


def test_an_expired_url_leaves_the_pack_in_the_folder(site: Site) -> None:
    site.chunk(noise("a"), noise("b"), flush_s=0.0, delivery=site.delivery(expires_s=1.0))
    time.sleep(2.5)
    began = time.monotonic()
    site.work()
    assert time.monotonic() - began < 10, "nothing is gained by trying again"
    assert [pack.delivered for pack in site.packs()] == [None, None]
    assert [result.id for result in site.results()] == ["a", "b"]
    assert site.objects() == []
    assert "403" in site.log()
    assert "X-Amz" not in site.log()
    assert "expired" in (site.run / "undelivered").read_text()


def test_what_was_told_is_taken_back_when_packs_get_through_again(site: Site) -> None:
    site.chunk(noise("a"))
    (site.run / "undelivered").write_text("nobody answers\n")
    site.work()
    assert site.packs()[0].delivered is not None
    assert not (site.run / "undelivered").exists()


def test_a_url_that_is_none_leaves_the_pack_in_the_folder(site: Site) -> None:
    def spoil(urls: dict[str, Any]) -> None:
        urls["put"] = [[name, "http://[::1"] for name, _ in urls["put"]]

    site.chunk(noise("a"), change=spoil)
    site.work()
    assert [pack.delivered for pack in site.packs()] == [None]
    assert "ValueError" in site.log()


def test_a_server_that_is_away_is_tried_for_a_while_and_once_more_for_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    closed.close()
    site.chunk(noise("a"), noise("b"), flush_s=0.0, delivery=site.delivery(signer=signer_at(site, endpoint)))
    began = time.monotonic()
    site.work()
    assert time.monotonic() - began < 40
    assert [pack.delivered for pack in site.packs()] == [None, None]
    assert site.log().count("Connection refused") == 1


def test_an_object_that_is_not_what_was_put_is_no_delivery(site: Site) -> None:
    """Somebody else's bytes under the name that the runner was to use."""
    name = pack_names(RUN, CHUNK, 1)[0]
    site.store.put_if_absent(name, b"x" * SOME)
    site.chunk(noise("a"))
    site.work()
    [pack] = site.packs()
    assert pack.delivered is not None, "412 is taken for success by the runner"
    assert not site.delivery().has(pack.delivered, RUN, CHUNK, 1), "and not by us"


def test_a_receipt_of_another_object_is_not_believed(site: Site) -> None:
    site.chunk(noise("a"))
    site.work()
    [pack] = site.packs()
    assert pack.delivered is not None
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)
    for run, chunk, number in (("run-2", CHUNK, 1), (RUN, "chunk-000002", 1), (RUN, CHUNK, 2)):
        assert not site.delivery().has(pack.delivered, run, chunk, number)


def test_a_runner_that_is_killed_while_it_delivers_loses_nothing(
    site: Site, through: Callable[..., Through]
) -> None:
    way = through(slow_s=0.3)
    site.chunk(noise("a", 5_000_000), delivery=site.delivery(signer=signer_at(site, way.endpoint)))
    first = site.start()
    wait_until(lambda: way.connections)
    assert not runner.all_done(str(site.folder)), "the chunk is not done before its pack is delivered"
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert (site.folder / "result-1.zip").exists()
    way.slow(0.0)
    site.work()
    [pack] = site.packs()
    assert pack.delivered is not None
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)
    assert len(pack.results) == 1, "it was not run again"


def test_a_runner_that_is_told_to_end_leaves_what_it_could_not_deliver(
    site: Site, through: Callable[..., Through]
) -> None:
    way = through(slow_s=1.0)
    site.chunk(noise("a", 20_000_000), delivery=site.delivery(signer=signer_at(site, way.endpoint)))
    first = site.start()
    wait_until(lambda: way.connections)
    first.send_signal(signal.SIGTERM)
    assert first.wait(2) == 0, "all that was to be done is done"
    [pack] = site.packs()
    assert pack.delivered is None
    assert (site.run / "done" / f"{CHUNK}.end").exists()


def test_results_are_told_while_others_are_on_their_way(site: Site, through: Callable[..., Through]) -> None:
    way = through(slow_s=0.05)
    site.chunk(
        noise("a", 5_000_000), *(shell(number, "sleep 0.2") for number in range(10)), flush_s=0.1,
        delivery=site.delivery(signer=signer_at(site, way.endpoint)),
    )  # fmt: skip
    first = site.start()
    wait_until(lambda: (site.run / "done" / f"{CHUNK}.2").exists())
    assert not (site.run / "done" / f"{CHUNK}.1").exists(), "tasks go on while a pack is put"
    assert first.wait(60) == 0
    assert len(site.results()) == 11


def test_a_runner_that_is_stopped_while_it_delivers_is_gone_around(
    site: Site, through: Callable[..., Through]
) -> None:
    """Another one goes on beside it; should the first wake, both have delivered, and nothing is mixed up."""
    way = through(slow_s=0.3)
    site.chunk(
        noise("a", 5_000_000),
        noise("b"),
        twin_s=0.5,
        delivery=site.delivery(signer=signer_at(site, way.endpoint)),
    )
    first = site.start()
    wait_until(lambda: way.connections)
    for pid in [first.pid, *children(first.pid)]:
        os.kill(pid, signal.SIGSTOP)
    second = site.start()
    assert second.wait(30) == 0
    assert any((site.run / "done").glob(f"{CHUNK}*.end"))
    assert [result.id for result in site.results()] == ["a", "b"], "in its place, whole"
    assert site.packs()[0].delivered is None
    way.slow(0.0)
    for pid in [*children(first.pid), first.pid]:
        os.kill(pid, signal.SIGCONT)
    assert first.wait(30) == 0
    [pack] = site.packs()
    assert pack.delivered is not None
    assert site.delivery().has(pack.delivered, RUN, CHUNK, 1)


def test_calls_with_limits_are_forked_while_packs_are_put(
    site: Site, through: Callable[..., Through]
) -> None:
    way = through(slow_s=0.02)
    site.folder.mkdir(parents=True)
    (site.run / "done").mkdir()
    tasks = [FunctionTask(str(number), by_value(ship(bytes_of)), {"n": number}) for number in range(8)]
    assert not write_chunk(
        site.folder, tasks, Resources(walltime_s=30.0), scratch=f"grange-test-{os.getpid()}", fetch=None,
        flush_s=0.0,
    )  # fmt: skip
    urls = site.delivery(signer=signer_at(site, way.endpoint)).urls(RUN, CHUNK, 8, ())
    (site.folder / "delivery.json").write_bytes(runner.dump(urls))
    done = subprocess.run(
        [*runner_command(sys.executable, commands=False), "run", str(site.folder)], timeout=60
    )
    assert done.returncode == 0
    packs = site.packs()
    assert sorted(result.id for pack in packs for result in pack.results) == [task.id for task in tasks]
    assert [result.outcome for result in site.results()] == ["finished"] * 8
    assert sum(pack.delivered is not None for pack in packs) > 2


class Proxy(http.server.BaseHTTPRequestHandler):
    """A proxy of a site: it passes requests on, and makes tunnels."""

    seen: ClassVar[list[str]] = []

    def do_PUT(self) -> None:
        self.seen.append(f"PUT {self.headers.get('Proxy-Authorization')}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urlsplit(self.path)
        there = http.client.HTTPConnection(parts.netloc)
        headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
        there.request("PUT", f"{parts.path}?{parts.query}", body, headers)
        answer = there.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_CONNECT(self) -> None:
        self.seen.append("CONNECT")
        host, _, port = self.path.partition(":")
        there = socket.create_connection((host, int(port)))
        self.send_response(200)
        self.end_headers()
        back = threading.Thread(target=copy_bytes, args=(there, self.connection), daemon=True)
        back.start()
        copy_bytes(self.connection, there)

    def log_message(self, *_: object) -> None:
        pass


def copy_bytes(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("https", [False, True])
def test_by_the_proxy_of_a_site(site: Site, https: bool) -> None:
    settings = site.server.settings(site.bucket, https=https)
    ca = Path(settings.ca_file).read_text() if https else ""
    site.chunk(noise("a"), delivery=site.delivery(signer=S3Store(settings), ca=ca))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        Proxy.seen.clear()
        at = f"http://ada:secret@127.0.0.1:{proxy.server_address[1]}"
        assert site.start(http_proxy=at, https_proxy=at, no_proxy="").wait(30) == 0
        proxy.shutdown()
    assert Proxy.seen == (["CONNECT"] if https else ["PUT Basic YWRhOnNlY3JldA=="])
    assert site.packs()[0].delivered is not None


# Input files


def test_input_files_are_fetched_from_the_store(site: Site) -> None:
    large, deflated, alone = os.urandom(SOME), b"text " * 100_000, os.urandom(9 << 20)
    keys = site.put(b"small", large, deflated, alone)
    script = "sha256sum < large; sha256sum < text; sha256sum < alone; echo changed > large"
    files = dict(zip(("large", "text", "alone"), keys[1:], strict=True))
    tasks = [shell(number, script, files=files) for number in range(3)]
    site.chunk(*tasks, least=10**9)
    with zipfile.ZipFile(site.folder / "chunk.zip") as file:
        assert file.namelist() == ["chunk.json"]
    site.work()
    results = site.results()
    assert [result.outcome for result in results] == ["finished"] * 3
    want = "".join(f"{key}  -\n" for key in keys[1:]).encode()
    assert {result.files["stdout.txt"] for result in results} == {key_of(want)}


def test_a_get_that_breaks_off_goes_on_where_it_was(site: Site, through: Callable[..., Through]) -> None:
    way = through()
    content = os.urandom(6 << 20)
    [key] = site.put(content)
    way.break_answers(after=1_000_000, times=3)
    site.chunk(
        shell("a", "sha256sum < in", files={"in": key}),
        delivery=site.delivery(signer=signer_at(site, way.endpoint)),
    )
    site.work()
    [result] = site.results()
    assert result.outcome == "finished"
    assert result.files["stdout.txt"] == key_of(f"{key}  -\n".encode())
    assert way.connections == 4
    assert way.answered < 8 << 20, "what had come is not asked for again"


def test_an_input_file_that_cannot_be_had_is_told_apart(site: Site) -> None:
    [key] = site.put(os.urandom(SOME))
    site.chunk(shell("a", "cat in", files={"in": key}), noise("b"), delivery=site.delivery(expires_s=1.0))
    time.sleep(2.5)
    site.work()
    first, second = site.results()
    assert first.outcome == "input_unreachable"
    assert "X-Amz" not in first.message
    assert second.outcome == "finished"


def test_an_input_file_that_was_damaged_is_not_used(site: Site) -> None:
    [key] = site.put(os.urandom(SOME))
    row = site.index.rows[key]
    other = site.put(os.urandom(SOME + 5000))[0]
    site.index.rows[key] = type(row)(
        site.index.rows[other].object_name, row.offset, row.stored_size, row.codec, row.size
    )
    site.chunk(shell("a", "cat in", files={"in": key}))
    site.work()
    assert site.results()[0].outcome == "input_unreachable"
    assert "is not the content" in site.results()[0].message


# Who may do what with a URL


def test_a_url_puts_one_object_once(site: Site) -> None:
    """Whoever has the URL can neither replace what is there nor put another object."""
    name = pack_names(RUN, CHUNK, 1)[0]
    [url] = site.store.sign_put([name], 60.0)

    def put(path: str, query: str, content: bytes, **headers: str) -> int:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request("PUT", f"{path}?{query}", content, {"If-None-Match": "*", **headers})
        return connection.getresponse().status

    parts = urlsplit(url)
    assert put(parts.path, parts.query, b"first") == 200
    assert put(parts.path, parts.query, b"second") == 412
    assert put(parts.path + "x", parts.query, b"third") == 403
    connection = http.client.HTTPConnection(parts.netloc)
    connection.request("PUT", f"{parts.path}?{parts.query}", b"fourth")
    assert connection.getresponse().status == 403, "without the condition it is not what was signed"
    assert b"".join(site.store.read(name)) == b"first"


def test_the_files_of_a_chunk_are_its_owners_alone(site: Site) -> None:
    site.chunk(noise("a"))
    assert (site.folder / "delivery.json").stat().st_mode & 0o077 == 0
