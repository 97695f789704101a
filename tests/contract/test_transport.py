"""What every transport must do, tried on real programs, files and servers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from ssh_server import SshServer

from grange.farm.connection import open_transport
from grange.farm.connection_client import ConnectionClient
from grange.farm.connection_server import ConnectionServer
from grange.farm.control_master import close_master, control_master
from grange.farm.counting_transport import CountingTransport
from grange.farm.errors import (
    AuthenticationRefused,
    CommandRefused,
    CommandTimedOut,
    HostKeyRefused,
    RemoteFull,
    RemoteMissing,
    TransportFailed,
    TransportUnavailable,
)
from grange.farm.local_transport import LocalTransport
from grange.farm.openssh_transport import OpenSshTransport
from grange.farm.restricted_transport import RestrictedTransport, restricted_line
from grange.farm.ssh_transport import SshTransport
from grange.farm.transport import Transport

#: shared: by the socket of another process that holds the connection.
KINDS = ["local", "ssh", "openssh", "shared"]
#: restricted: files alone, of an account whose key runs a few commands only.
FILE_KINDS = [*KINDS, "restricted"]
SSH_KINDS = ["ssh", "openssh"]
HOSTILE = ["a b", "it's", '"', "$HOME", "`id`", "*", "é", "a\nb", "-n", ";", "\\", "!x", "#", "~", "", "%h"]


@dataclass
class Place:
    """A transport, a folder there that is ours, and the server behind it if there is one."""

    kind: str
    transport: Transport
    root: str
    server: SshServer | None = None

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"


@pytest.fixture(scope="module")
def ssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    server = SshServer(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """One that a test may stop, and cut the connections of."""
    server = SshServer(tmp_path / "sshd").start()
    yield server
    server.stop()


def reach(kind: str, server: SshServer, folder: Path, **changes: Any) -> Transport:
    """A transport of a kind to a server; folder: for sockets."""
    return open_transport(server.computer(transport=kind, **changes), folder / "masters")


@contextlib.contextmanager
def opened(kind: str, server: SshServer, folder: Path) -> Iterator[Place]:
    root = str(folder / "there")
    if kind == "local":
        yield Place(kind, LocalTransport(), root)
        return
    transport = reach("ssh" if kind == "shared" else kind, server, folder)
    if kind == "shared":
        held = transport
        lender = ConnectionServer(held, folder / "socket", "there")
        client = ConnectionClient(folder / "socket", "there", "this process")
        yield Place(kind, client, root, server)
        client.close()
        lender.close()
    else:
        yield Place(kind, transport, root, server)
    transport.close()


@pytest.fixture(params=FILE_KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place for files."""
    if request.param == "restricted":
        cluster: Cluster = request.getfixturevalue("cluster")
        transport = open_transport(cluster.restricted_computer("there"), tmp_path / "masters")
        root = f"{cluster.allowed_dir}/{request.node.name.partition('[')[0]}"
        transport.make_folders([root])
        yield Place(request.param, transport, root)
        transport.remove([root])
        transport.close()
        return
    with opened(request.param, request.getfixturevalue("ssh_server"), tmp_path) as place:
        place.transport.make_folders([place.root])
        yield place


@pytest.fixture(params=KINDS)
def shell(request: pytest.FixtureRequest, ssh_server: SshServer, tmp_path: Path) -> Iterator[Place]:
    """A place for commands, too."""
    with opened(request.param, ssh_server, tmp_path) as place:
        place.transport.make_folders([place.root])
        yield place


@pytest.fixture(params=["ssh", "openssh", "shared"])
def fragile(request: pytest.FixtureRequest, server: SshServer, tmp_path: Path) -> Iterator[Place]:
    """A place whose connections may be cut."""
    with opened(request.param, server, tmp_path) as place:
        place.transport.make_folders([place.root])
        yield place


# ---------------------------------------------------------------- commands


def test_output_is_bytes_as_they_are(shell: Place) -> None:
    everything = bytes(range(256)) * 3
    done = shell.transport.run(["cat"], stdin=everything)
    assert (done.status, done.stdout, done.stderr) == (0, everything, b"")
    done = shell.transport.run(["sh", "-c", "printf out; printf err >&2"])
    assert (done.stdout, done.stderr) == (b"out", b"err")


def test_arguments_arrive_as_they_are(shell: Place) -> None:
    done = shell.transport.run(["printf", "%s\\0", *HOSTILE])
    assert done.stdout.decode().split("\0")[:-1] == HOSTILE


@pytest.mark.parametrize("status", [0, 1, 3, 127, 254, 255])
def test_the_status_is_the_program_s(shell: Place, status: int) -> None:
    assert shell.transport.run(["sh", "-c", f"exit {status}"]).status == status


def test_a_signal_is_128_and_its_number(shell: Place) -> None:
    assert shell.transport.run(["sh", "-c", "kill -TERM $$"]).status == 143
    assert shell.transport.run(["sh", "-c", "kill -KILL $$"]).status == 137


def test_a_program_that_is_not_there(shell: Place) -> None:
    done = shell.transport.run(["grange-no-such-program", "x"])
    assert done.status == 127
    assert b"grange-no-such-program" in done.stderr


def test_a_command_runs_in_its_folder(shell: Place) -> None:
    folder = shell.path("a folder, it's ours")
    shell.transport.make_folders([folder])
    assert shell.transport.run(["pwd"], cwd=folder).stdout == folder.encode() + b"\n"
    done = shell.transport.run(["echo", "ran"], cwd=shell.path("none"))
    assert done.status != 0
    assert done.stdout == b""
    assert b"none" in done.stderr


def test_a_hundred_megabytes_go_through_in_both_directions(shell: Place) -> None:
    data = os.urandom(1 << 20) * 100
    done = shell.transport.run(["cat"], stdin=data)
    assert done.stdout == data
    done = shell.transport.run(["tee", "/dev/stderr"], stdin=data[: 30 << 20])
    assert done.stdout == done.stderr == data[: 30 << 20]


def test_a_program_need_not_read_its_input(shell: Place) -> None:
    assert shell.transport.run(["true"], stdin=bytes(20 << 20)).status == 0
    assert shell.transport.run(["head", "-c", "3"], stdin=b"abcdef" * (1 << 20)).stdout == b"abc"
    # Without input there is an end of it, at once.
    assert shell.transport.run(["cat"]).stdout == b""


def test_a_command_that_takes_too_long(shell: Place) -> None:
    began = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"0\.5 s"):
        shell.transport.run(["sleep", "20"], timeout_s=0.5)
    assert time.monotonic() - began < 5
    assert shell.transport.run(["echo", "on"]).stdout == b"on\n"


def test_many_threads_at_once(shell: Place, tmp_path: Path) -> None:
    def work(number: int) -> None:
        text = f"{number}".encode()
        for turn in range(4):
            path = shell.path(f"{number}/{turn}")
            shell.transport.put([(text, path)])
            assert shell.transport.run(["cat", path]).stdout == text
            assert shell.transport.read([path]) == [text]
            shell.transport.get([(path, tmp_path / "here" / f"{number}-{turn}")])
            assert (tmp_path / "here" / f"{number}-{turn}").read_bytes() == text

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))


# ---------------------------------------------------------------- files


def test_files_go_there_and_come_back(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    blocks = os.urandom(3 * 261_120 + 17)  # not a whole number of whatever blocks
    files = {"empty": b"", "small": b"x", "deep/er/still": b"y", "blocks": blocks, "a file": source}
    place.transport.put([(content, place.path(name)) for name, content in files.items()])
    expected = [b"", b"x", b"y", blocks, b"from a file"]
    assert place.transport.read([place.path(name) for name in files]) == expected
    place.transport.get([(place.path(name), tmp_path / "here" / name) for name in files])
    assert [(tmp_path / "here" / name).read_bytes() for name in files] == expected
    assert sorted(os.listdir(tmp_path / "here")) == sorted(["empty", "small", "deep", "blocks", "a file"])


def test_hostile_names(place: Place, tmp_path: Path) -> None:
    names = [name for name in HOSTILE if name]
    place.transport.put([(name.encode(), place.path(f"d/{name}")) for name in names])
    assert place.transport.read([place.path(f"d/{name}") for name in names]) == [n.encode() for n in names]
    (entries,) = place.transport.list([place.path("d")])
    assert entries is not None
    assert [entry.name for entry in entries] == sorted(names)
    place.transport.get([(place.path(f"d/{name}"), tmp_path / "here" / name) for name in names])
    assert sorted(os.listdir(tmp_path / "here")) == sorted(names)
    place.transport.remove([place.path(f"d/{name}") for name in names])
    assert place.transport.list([place.path("d")]) == [[]]


def test_a_thousand_small_files(place: Place, tmp_path: Path) -> None:
    contents = {f"{number}": os.urandom(number % 200) for number in range(1000)}
    place.transport.put([(content, place.path(f"many/{name}")) for name, content in contents.items()])
    (entries,) = place.transport.list([place.path("many")])
    assert entries is not None
    assert {entry.name: entry.size for entry in entries} == {n: len(c) for n, c in contents.items()}
    assert place.transport.read([place.path(f"many/{name}") for name in contents]) == [*contents.values()]
    place.transport.get([(place.path(f"many/{name}"), tmp_path / "here" / name) for name in contents])
    assert {p.name: p.read_bytes() for p in (tmp_path / "here").iterdir()} == contents
    place.transport.remove([place.path("many")])
    assert place.transport.list([place.path("many"), place.root]) == [None, []]


def test_a_large_file_needs_little_memory(place: Place, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    source = tmp_path / "large"
    with open(source, "wb") as file:
        for _ in range(200):
            file.write(block)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = memory("VmRSS")
    place.transport.put([(source, place.path("large"))])
    place.transport.get([(place.path("large"), tmp_path / "back")])
    assert memory("VmHWM") - before < 64 << 20
    assert subprocess.run(["cmp", source, tmp_path / "back"], check=False).returncode == 0


def memory(what: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(what)


def test_modes(place: Place, tmp_path: Path) -> None:
    place.transport.put([(b"x", place.path("d/private"))])
    place.transport.put([(b"x", place.path("d/program"))], mode=0o755)
    place.transport.make_folders([place.path("open")], mode=0o755)
    place.transport.make_folders([place.path("closed/within")])
    modes = {
        name: stat.S_IMODE(os.stat(place.path(name)).st_mode)
        for name in ("d", "d/private", "d/program", "open", "closed", "closed/within")
    }
    assert modes == {
        "d": 0o700,
        "d/private": 0o600,
        "d/program": 0o755,
        "open": 0o755,
        "closed": 0o700,
        "closed/within": 0o700,
    }
    place.transport.get([(place.path("d/program"), tmp_path / "here")])
    assert stat.S_IMODE(os.stat(tmp_path / "here").st_mode) == 0o600


def test_putting_replaces(place: Place, tmp_path: Path) -> None:
    path = place.path("f")
    place.transport.put([(b"a longer content", path)])
    place.transport.put([(b"new", path)])
    assert place.transport.read([path]) == [b"new"]
    (tmp_path / "here").write_text("old and long")
    place.transport.get([(path, tmp_path / "here")])
    assert (tmp_path / "here").read_bytes() == b"new"
    assert [entry.name for entry in place.transport.list([place.root])[0] or []] == ["f"]


def test_what_is_not_there(place: Place, tmp_path: Path) -> None:
    place.transport.put([(b"x", place.path("f"))])
    nothing = [place.path("none"), place.path("none/deep"), place.path("f/below a file")]
    assert place.transport.read([*nothing, place.path("f")]) == [None, None, None, b"x"]
    assert place.transport.list(nothing[:2]) == [None, None]
    place.transport.remove(nothing)
    with pytest.raises(RemoteMissing, match="none"):
        place.transport.get([(nothing[0], tmp_path / "a"), (place.path("f"), tmp_path / "b")])
    assert os.listdir(tmp_path).count("a") == 0
    with pytest.raises(FileNotFoundError):
        place.transport.put([(tmp_path / "not here", place.path("g"))])
    assert place.transport.read([place.path("g")]) == [None]
    assert (place.transport.read([]), place.transport.list([])) == ([], [])


def test_what_is_in_the_way(place: Place, tmp_path: Path) -> None:
    place.transport.put([(b"x", place.path("file"))])
    place.transport.make_folders([place.path("folder")])
    for call in (
        lambda: place.transport.put([(b"x", place.path("folder"))]),
        lambda: place.transport.put([(b"x", place.path("file/below"))]),
        lambda: place.transport.make_folders([place.path("file")]),
        lambda: place.transport.make_folders([place.path("file/below")]),
        lambda: place.transport.get([(place.path("folder"), tmp_path / "here")]),
        lambda: place.transport.read([place.path("folder")]),
    ):
        with pytest.raises(TransportFailed, match=r"file|folder"):
            call()
    left = [entry.name for entry in place.transport.list([place.root])[0] or []]
    assert left == ["file", "folder"]
    assert place.transport.list([place.path("folder")]) == [[]]
    assert not (tmp_path / "here").exists()


def test_folders_are_listed_by_name_and_links_followed(place: Place) -> None:
    place.transport.put([(b"12345", place.path("d/file")), (b"", place.path("d/folder/x"))])
    os.symlink("folder", place.path("d/to folder"))
    os.symlink("file", place.path("d/to file"))
    os.symlink("nothing", place.path("d/to nothing"))
    found, missing, empty = place.transport.list([place.path("d"), place.path("e"), place.path("d/folder")])
    assert missing is None
    assert found is not None
    assert [(entry.name, entry.is_folder) for entry in found] == [
        ("file", False),
        ("folder", True),
        ("to file", False),
        ("to folder", True),
        ("to nothing", False),
    ]
    assert [entry.name for entry in found if entry.is_link] == ["to file", "to folder", "to nothing"]
    assert found[0].size == found[2].size == 5
    assert abs(found[0].mtime - time.time()) < 60
    assert [entry.name for entry in empty or []] == ["x"]


def test_removing_takes_all_below_but_follows_no_link(place: Place) -> None:
    place.transport.put([(b"x", place.path(f"d/{a}/{b}/f")) for a in range(3) for b in range(40)])
    place.transport.put([(b"x", place.path("kept/f")), (b"x", place.path("file"))])
    os.symlink(place.path("kept"), place.path("d/link"))
    os.symlink(place.path("kept"), place.path("link"))
    place.transport.remove([place.path("d"), place.path("file"), place.path("link"), place.path("never")])
    assert [entry.name for entry in place.transport.list([place.root])[0] or []] == ["kept"]
    assert place.transport.read([place.path("kept/f")]) == [b"x"]


def test_folders_that_are_there_stay_as_they_are(place: Place) -> None:
    place.transport.make_folders([place.path("a/b"), place.path("a"), place.path("a/b/c/d")])
    os.chmod(place.path("a"), 0o750)
    place.transport.make_folders([place.path("a"), place.path("a/b")], mode=0o755)
    assert stat.S_IMODE(os.stat(place.path("a")).st_mode) == 0o750
    assert [entry.name for entry in place.transport.list([place.path("a/b")])[0] or []] == ["c"]


@contextlib.contextmanager
def no_room(path: str) -> Iterator[str]:
    """A folder that takes nothing: a full file system for root, else one that is not ours to write."""
    os.makedirs(path)
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "grange-test", path], check=True)
        try:
            yield path
        finally:
            subprocess.run(["umount", path], check=True)
    else:
        os.chmod(path, 0o500)
        yield path
        os.chmod(path, 0o700)


def test_no_room(shell: Place, tmp_path: Path) -> None:
    place = shell
    with no_room(place.path("tiny")) as folder:
        large = tmp_path / "large"
        large.write_bytes(bytes(20 << 20))
        for source in (large, large.read_bytes()):
            with pytest.raises(RemoteFull, match="tiny/large"):
                place.transport.put([(source, f"{folder}/large")])
        assert place.transport.list([folder]) == [[]]
        if os.geteuid() == 0:
            place.transport.put([(b"x", f"{folder}/small")])
            assert place.transport.read([f"{folder}/small"]) == [b"x"]
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            with pytest.raises(RemoteFull, match="tiny/d"):
                place.transport.make_folders([f"{folder}/d"])
            with pytest.raises(RemoteFull, match="tiny/f"):
                place.transport.put([(b"x", f"{folder}/f")])


def test_home_and_close(shell: Place) -> None:
    assert shell.transport.home() == os.path.expanduser("~")
    shell.transport.close()
    shell.transport.close()


def test_counting(shell: Place, tmp_path: Path) -> None:
    counting = CountingTransport(shell.transport)
    counting.run(["cat"], stdin=b"12345")
    before = counting.traffic
    counting.put([(b"abc", shell.path("d/a")), (b"de", shell.path("d/b"))])
    counting.read([shell.path("d/a"), shell.path("d/none")])
    counting.get([(shell.path("d/b"), tmp_path / "b")])
    counting.list([shell.root, shell.path("d")])
    counting.remove([shell.path("d")])
    counting.make_folders([shell.path("e")])
    counting.home()
    assert (before.commands, before.bytes_out, before.bytes_in) == (1, 5, 5)
    done = counting.traffic - before
    assert (done.commands, done.calls, done.files_out, done.files_in) == (0, 7, 2, 2)
    assert (done.bytes_out, done.bytes_in, done.folders_listed, done.removed) == (5, 5, 2, 1)


# ---------------------------------------------------------------- whole or not at all


def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def cut_when(server: SshServer, condition: Callable[[], bool]) -> threading.Thread:
    def cut() -> None:
        until(condition)
        server.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    return thread


def test_a_file_is_sent_whole_or_not_at_all(fragile: Place, tmp_path: Path) -> None:
    assert fragile.server is not None
    path = fragile.path("f")
    fragile.transport.put([(b"old", path)])
    large = tmp_path / "large"
    large.write_bytes(os.urandom(1 << 20) * 400)

    def is_under_way() -> bool:
        parts = [name for name in os.listdir(fragile.root) if name.endswith(".part")]
        return any(os.stat(fragile.path(name)).st_size > 1 << 20 for name in parts)

    cutter = cut_when(fragile.server, is_under_way)
    with pytest.raises(TransportUnavailable):
        fragile.transport.put([(large, path)])
    cutter.join()
    assert fragile.transport.read([path]) == [b"old"]
    fragile.transport.put([(large, path)])
    assert os.stat(path).st_size == 400 << 20


def test_a_file_is_fetched_whole_or_not_at_all(fragile: Place, tmp_path: Path) -> None:
    assert fragile.server is not None
    Path(fragile.path("f")).write_bytes(os.urandom(1 << 20) * 400)
    here = tmp_path / "here"
    here.mkdir()

    def is_under_way() -> bool:
        return any(path.stat().st_size > 1 << 20 for path in here.iterdir())

    cutter = cut_when(fragile.server, is_under_way)
    with pytest.raises(TransportUnavailable):
        fragile.transport.get([(fragile.path("f"), here / "f")])
    cutter.join()
    assert list(here.iterdir()) == []
    fragile.transport.get([(fragile.path("f"), here / "f")])
    assert [path.stat().st_size for path in here.iterdir()] == [400 << 20]


def test_a_command_whose_connection_is_cut(fragile: Place) -> None:
    assert fragile.server is not None
    assert fragile.transport.read([fragile.path("none")]) == [None]
    cutter = cut_when(fragile.server, lambda: os.path.exists(fragile.path("mark")))
    began = time.monotonic()
    with pytest.raises(TransportUnavailable) as raised:
        fragile.transport.run(["sh", "-c", f"touch {fragile.path('mark')}; sleep 30"])
    assert not isinstance(raised.value, CommandTimedOut)
    assert time.monotonic() - began < 10
    cutter.join()
    # It connects again.
    assert fragile.transport.run(["echo", "on"]).stdout == b"on\n"
    assert fragile.transport.read([fragile.path("mark")]) == [b""]


def test_a_server_that_is_away(fragile: Place) -> None:
    assert fragile.server is not None
    fragile.server.stop()
    for call in (
        lambda: fragile.transport.run(["true"]),
        lambda: fragile.transport.put([(b"", fragile.path("x"))]),
        lambda: fragile.transport.list([fragile.root]),
    ):
        with pytest.raises(TransportUnavailable):
            call()
    fragile.server.start()
    assert fragile.transport.run(["true"]).status == 0
    assert fragile.transport.list([fragile.root]) == [[]]


# ---------------------------------------------------------------- SSH: who is there, and who we are


@pytest.fixture(params=SSH_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def fingerprint(key: Path) -> str:
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", key.with_name(key.name + ".pub")],
        check=True,
        capture_output=True,
        text=True,
    )
    return shown.stdout.split()[1]


def test_one_connection_carries_everything(kind: str, server: SshServer, tmp_path: Path) -> None:
    transport = reach(kind, server, tmp_path)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda _: transport.run(["sleep", "0.05"]), range(20)))
        list(pool.map(lambda _: transport.list([str(tmp_path)]), range(20)))
    assert server.accepted() == 1
    transport.close()
    until(lambda: server.sessions() == [])


def test_a_host_that_is_not_known_is_refused(kind: str, server: SshServer, tmp_path: Path) -> None:
    server.known_hosts.write_text("")
    transport = reach(kind, server, tmp_path)
    with pytest.raises(HostKeyRefused, match="not known") as raised:
        transport.run(["true"])
    said = str(raised.value)
    if kind == "ssh":
        assert fingerprint(server.host_key) in said
        assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> {server.known_hosts}" in said
        command = said.partition("`")[2].partition("`")[0]
        subprocess.run(command, shell=True, check=True, stderr=subprocess.DEVNULL)
        assert transport.run(["echo", "in"]).stdout == b"in\n"
    else:
        assert "grange computer connect there" in said
    assert server.accepted() == (kind == "ssh")
    transport.close()


def test_a_host_with_another_key_is_refused(kind: str, server: SshServer, tmp_path: Path) -> None:
    server.know(server.make_key("former"))
    transport = reach(kind, server, tmp_path)
    with pytest.raises(HostKeyRefused, match="HAS CHANGED") as raised:
        transport.list(["/"])
    assert fingerprint(server.host_key) in str(raised.value)
    assert str(server.known_hosts) in str(raised.value)
    assert server.accepted() == 0
    transport.close()


def test_a_key_that_the_server_does_not_take(kind: str, server: SshServer, tmp_path: Path) -> None:
    wrong = server.make_key("wrong")
    transport = reach(kind, server, tmp_path, key_file=str(wrong))
    with pytest.raises(AuthenticationRefused) as raised:
        transport.run(["true"])
    assert (str(wrong) if kind == "ssh" else "grange computer connect there") in str(raised.value)
    transport.close()


def test_a_key_with_a_passphrase(kind: str, server: SshServer, tmp_path: Path) -> None:
    locked = server.make_key("locked", "open sesame")
    server.authorize(locked)
    computer = server.computer(transport=kind, key_file=str(locked))
    with pytest.raises(AuthenticationRefused) as raised:
        open_transport(computer, tmp_path / "masters").run(["true"])
    if kind == "openssh":
        assert "grange computer connect there" in str(raised.value)
        return
    assert f"ssh-add {locked}" in str(raised.value)
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return "wrong" if len(asked) == 1 else "open sesame"

    transport = open_transport(computer, tmp_path / "masters", ask=ask)
    assert transport.run(["echo", "in"]).stdout == b"in\n"
    assert len(asked) == 2
    assert str(locked) in asked[0]
    transport.close()


def test_a_server_that_wants_more_than_a_key(kind: str, tmp_path: Path) -> None:
    more = "AuthenticationMethods publickey,password\nPasswordAuthentication yes"
    server = SshServer(tmp_path / "sshd", more=more).start()
    try:
        transport = reach(kind, server, tmp_path)
        with pytest.raises(AuthenticationRefused, match="grange computer connect") as raised:
            transport.run(["true"])
        assert "password" in str(raised.value)
    finally:
        server.stop()


def test_a_key_of_the_agent(
    kind: str, server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = server.make_key("locked", "open sesame")
    server.authorize(locked)
    with agent(tmp_path, locked, "open sesame", monkeypatch):
        for changes in ({"key_file": str(locked)}, {"key_file": ""}):
            transport = reach(kind, server, tmp_path, **changes)
            assert transport.run(["echo", "in"]).stdout == b"in\n"
            transport.close()


@contextlib.contextmanager
def agent(folder: Path, key: Path, passphrase: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    address = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(address)], stdout=subprocess.DEVNULL)
    try:
        until(address.exists)
        answer = folder / "answer"
        answer.write_text(f"#!/bin/sh\necho '{passphrase}'\n")
        answer.chmod(0o700)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        asked = {**os.environ, "SSH_ASKPASS": str(answer), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": ":0"}
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=asked, stdin=subprocess.DEVNULL)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("hops", [1, 2])
def test_hosts_on_the_way(kind: str, server: SshServer, tmp_path: Path, hops: int) -> None:
    jump = f"{server.user}@127.0.0.1:{server.port}"
    transport = reach(kind, server, tmp_path, proxy_jump=",".join([jump] * hops))
    assert transport.run(["echo", "in"]).stdout == b"in\n"
    transport.put([(b"x" * 1_000_000, str(tmp_path / "there"))])
    assert (tmp_path / "there").stat().st_size == 1_000_000
    assert server.accepted() == hops + 1
    transport.close()
    until(lambda: server.sessions() == [])


def test_a_configuration_file(kind: str, server: SshServer, tmp_path: Path) -> None:
    included = tmp_path / "included.conf"
    included.write_text(
        f"Host cluster\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyCommand nc %h %p\n"
        f"  UserKnownHostsFile {server.known_hosts}\nHost *\n  IdentityFile {server.key}\n"
    )
    config = tmp_path / "config"
    config.write_text(f"Include {included}\nHost behind\n  HostName 127.0.0.1\n  ProxyJump cluster\n"
                      f"  Port {server.port}\n  UserKnownHostsFile {server.known_hosts}\n")  # fmt: skip
    # What carries the bytes: a program, as netcat is not everywhere.
    program = tmp_path / "nc"
    program.write_text(_NETCAT)
    program.chmod(0o755)
    included.write_text(included.read_text().replace(" nc ", f" {program} "))
    for number, host in enumerate(("cluster", "behind"), 1):
        transport = reach(
            kind,
            server,
            tmp_path,
            hostname=host,
            port=0,
            key_file="",
            known_hosts="",
            config_file=str(config),
        )
        assert transport.run(["echo", "in"]).stdout == b"in\n"
        transport.close()
        assert server.accepted() == (1 if number == 1 else 3)


_NETCAT = """\
#!/usr/bin/python3
import os, select, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
while True:
    for ready in select.select([0, peer], [], [])[0]:
        data = os.read(0, 65536) if ready == 0 else peer.recv(65536)
        if not data:
            sys.exit()
        peer.sendall(data) if ready == 0 else os.write(1, data)
"""


def test_a_server_that_takes_few_channels(kind: str, tmp_path: Path) -> None:
    server = SshServer(tmp_path / "sshd", more="MaxSessions 2").start()
    try:
        transport = reach(kind, server, tmp_path)

        def work(number: int) -> None:
            assert transport.run(["echo", str(number)]).stdout == b"%d\n" % number
            assert transport.list([str(tmp_path / "none")]) == [None]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(18)))
        assert server.accepted() == 1
        transport.close()
    finally:
        server.stop()


def test_a_start_up_file_that_prints_where_sftp_begins(kind: str, tmp_path: Path) -> None:
    chatty = tmp_path / "chatty"
    chatty.write_text("#!/bin/sh\necho Welcome to the cluster\nexec cat\n")
    chatty.chmod(0o755)
    server = SshServer(tmp_path / "sshd", sftp=str(chatty)).start()
    try:
        transport = reach(kind, server, tmp_path)
        with pytest.raises(TransportUnavailable, match="Welcome to the cluster"):
            transport.list(["/"])
        transport.close()
    finally:
        server.stop()


def test_nothing_listens(kind: str, server: SshServer, tmp_path: Path) -> None:
    server.stop()
    transport = reach(kind, server, tmp_path)
    with pytest.raises(TransportUnavailable, match=r"[Cc]onnection refused"):
        transport.run(["true"])


def test_something_else_listens(kind: str, server: SshServer, tmp_path: Path) -> None:
    """A host that takes the connection and says nothing."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        transport = reach(kind, server, tmp_path, port=silent.getsockname()[1], connect_timeout_s=1.0)
        began = time.monotonic()
        with pytest.raises(TransportUnavailable):
            transport.run(["true"])
        assert time.monotonic() - began < 10


# ---------------------------------------------------------------- the control master


def test_a_master_that_a_person_opened_stays(server: SshServer, tmp_path: Path) -> None:
    computer = server.computer(transport="openssh")
    master = control_master(computer, tmp_path / "masters")
    assert stat.S_IMODE(master.path.parent.stat().st_mode) == 0o700
    assert not master.is_alive()
    assert master.open_by_person()
    try:
        assert not master.open_by_person()
        for _ in range(2):
            transport = OpenSshTransport(computer, tmp_path / "masters")
            assert transport.run(["echo", "in"]).stdout == b"in\n"
            transport.close()
        assert master.is_alive()
        assert server.accepted() == 1
    finally:
        close_master(computer, tmp_path / "masters")
    until(lambda: not master.is_alive())


def test_a_person_types_what_is_asked(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ssh asks at a terminal comes by its askpass program here."""
    locked = server.make_key("locked", "open sesame")
    server.authorize(locked)
    server.known_hosts.write_text("")
    answer = tmp_path / "answer"
    answer.write_text('#!/bin/sh\ncase "$1" in *yes/no*) echo yes;; *) echo "open sesame";; esac\n')
    answer.chmod(0o700)
    monkeypatch.setenv("SSH_ASKPASS", str(answer))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    monkeypatch.setenv("DISPLAY", ":0")
    computer = server.computer(transport="openssh", key_file=str(locked))
    transport = OpenSshTransport(computer, tmp_path / "masters")
    with pytest.raises(HostKeyRefused):
        transport.run(["true"])
    assert control_master(computer, tmp_path / "masters").open_by_person()
    try:
        assert transport.run(["echo", "in"]).stdout == b"in\n"
        assert server.known_hosts.read_text().startswith(f"[127.0.0.1]:{server.port}")
    finally:
        close_master(computer, tmp_path / "masters")


def test_a_long_path_of_sockets(server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "masters"
    transport = OpenSshTransport(server.computer(transport="openssh"), folder)
    assert transport.run(["echo", "in"]).stdout == b"in\n"
    assert folder.is_symlink()
    transport.close()


# ---------------------------------------------------------------- restricted accounts


@pytest.mark.parametrize(
    ("argv", "folder", "line"),
    [
        (["sbatch", "--parsable", "job.sh"], "/p/w", "bash -l -c 'cd /p/w && ( sbatch --parsable job.sh )'"),
        (["sbatch", "a b"], "/p/w@x", """bash -l -c 'cd /p/w@x && ( sbatch '"'"'a b'"'"' )'"""),
        (
            ["squeue", "-h", "-o", "%i@%T"],
            "/home/u",
            """bash -l -c 'cd /home/u && ( SLURM_TIME_FORMAT='"'"'standard'"'"' squeue -h -o %i@%T )'""",
        ),
        (["whoami"], "/home/u", "bash -l -c 'cd /home/u && ( whoami )'"),
        (["echo", "-n"], "/home/u", "bash -l -c 'cd /home/u && ( echo -n )'"),
    ],
)
def test_how_restricted_commands_are_phrased(argv: list[str], folder: str, line: str) -> None:
    assert restricted_line("there", argv, folder) == line


@pytest.mark.parametrize("word", ["..", "a;b", "a|b", "a&&b", "a  b", "a\nb", "/p/../q"])
def test_what_cannot_be_said_to_a_restricted_account(word: str) -> None:
    with pytest.raises(CommandRefused, match="sbatch"):
        restricted_line("there", ["sbatch", word], "/p")


@pytest.fixture
def restricted(cluster: Cluster, tmp_path: Path) -> Iterator[Transport]:
    transport = open_transport(cluster.restricted_computer("there"), tmp_path / "masters")
    yield transport
    transport.close()


def test_a_restricted_account_runs_its_few_commands(restricted: Transport, cluster: Cluster) -> None:
    assert restricted.run(["whoami"]).stdout == cluster.user.encode() + b"\n"
    assert restricted.run(["echo", "-n"]).stdout == b""
    assert restricted.home() == cluster.home
    folder = f"{cluster.allowed_dir}/job"
    script = b"#!/bin/sh\necho ran > 'of the job'\n"
    cluster.cancel_all()  # what other tests have left there would be before it in the queue
    restricted.put([(script, f"{folder}/job.sh")], mode=0o700)
    submitted = restricted.run(["sbatch", "--parsable", "job.sh"], cwd=folder)
    assert submitted.status == 0, submitted
    number = submitted.stdout.decode().strip()
    queued = restricted.run(["squeue", "--noheader", "--states=all", "--format=%i@%T@%V"])
    (line,) = (line for line in queued.stdout.decode().splitlines() if line.startswith(f"{number}@"))
    assert "T" in line.rpartition("@")[2]  # a time, as SLURM_TIME_FORMAT=standard has it
    until(lambda: restricted.read([f"{folder}/of the job"]) == [b"ran\n"], timeout_s=60)
    restricted.run(["rm", "job.sh"], cwd=folder)
    assert restricted.read([f"{folder}/job.sh"]) == [None]
    restricted.remove([folder])


def test_what_a_forced_command_refuses(restricted: Transport, cluster: Cluster) -> None:
    """Its refusal ends with status 0."""
    with pytest.raises(CommandRefused, match=r"sbatch.*rejected"):
        restricted.run(["sbatch", "job.sh"], cwd="/tmp")
    with pytest.raises(CommandRefused, match=r"rm.*rejected"):
        restricted.run(["rm", "x"], cwd=cluster.home)
    # A transport that knows nothing of the restriction gets the refusal for output.
    plain = open_transport(
        dataclasses.replace(
            cluster.restricted_computer("there"),
            ssh=dataclasses.replace(cluster.restricted_computer("there").ssh, restricted=False),
        ),
        Path("/nowhere"),
    )
    assert b"rejected" in plain.run(["ls"]).stdout
    plain.close()


@pytest.mark.parametrize("folder", ["/p/it's", "/p/a b", "/p/../q"])
def test_a_folder_that_cannot_be_said_to_a_restricted_account(folder: str) -> None:
    with pytest.raises(CommandRefused, match=folder.replace(".", r"\.")):
        restricted_line("there", ["sbatch", "job.sh"], folder)


def test_programs_that_a_restricted_account_has_not(server: SshServer) -> None:
    """Refused here: the server is not even asked."""
    transport = RestrictedTransport(SshTransport(server.computer(restricted=True)), "there")
    for argv in (["scancel", "1"], ["hq", "server", "start"], ["mkdir", "x"], ["tar", "c"]):
        with pytest.raises(CommandRefused, match=argv[0]):
            transport.run(argv)
    with pytest.raises(CommandRefused, match="folder"):
        transport.run(["sbatch", "job.sh"])
    assert server.accepted() == 0
