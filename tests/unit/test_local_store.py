"""The local folder when things go wrong: killed writers, full disks, folders that may not be written."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grange.repository import LocalStore, ObjectNameInvalid, StoreError, StoreFull, StoreReadOnly

NOBODY = 65534

WRITER = """
import sys, time
from pathlib import Path
from grange.repository import LocalStore

class Slow:
    left = 3
    def read(self, size):
        if not self.left:
            print("written", flush=True)
            time.sleep(60)
        self.left -= 1
        return b"x" * 1000

LocalStore(Path(sys.argv[1])).put_if_absent("packs/aa/a", Slow())
"""


def scratch_files(root: Path) -> list[Path]:
    return list((root / ".scratch").iterdir())


def namespace() -> list[str] | None:
    """A command that runs another where file systems can be mounted; None where that is not allowed."""
    command = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None:
        return None
    probe = [*command, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return command if subprocess.run(probe, capture_output=True, check=False).returncode == 0 else None


def in_child(action: Callable[[], None], as_nobody: bool) -> None:
    """Run a check in a forked child, whose rights are those of an ordinary user."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if as_nobody:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_writer_killed_half_way_leaves_nothing_visible(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with subprocess.Popen([sys.executable, "-c", WRITER, root], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        store = LocalStore(root)
        assert store.sweep(older_than_s=0) == 0, "the file of a living writer was taken away"
        writer.send_signal(signal.SIGKILL)
    [leftover] = scratch_files(root)
    assert leftover.stat().st_size == 3000
    assert list(store.list()) == []
    assert store.head("packs/aa/a") is None
    assert store.put_if_absent("packs/aa/a", b"another writer") is True
    assert scratch_files(root) == [leftover], "it is young: it could be that its writer has no lock yet"
    hour_ago = time.time() - 3700
    os.utime(leftover, (hour_ago, hour_ago))
    assert LocalStore(root).put_if_absent("packs/aa/b", b"a later process") is True
    assert scratch_files(root) == []
    assert [info.name for info in store.list("packs/aa/a")] == ["packs/aa/a"]


def test_a_writer_killed_between_link_and_unlink_has_put(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    script = """
import os, sys
from pathlib import Path
from grange.repository import LocalStore
store = LocalStore(Path(sys.argv[1]))
with store.scratch([b"content"]) as path:
    store.adopt("a", path)
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -signal.SIGKILL
    assert [info.name for info in store.list()] == ["a"]
    assert store.sweep(older_than_s=0) == 1
    assert b"".join(store.read("a")) == b"content"


def test_only_its_owner_may_enter(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = LocalStore(tmp_path / "deep" / "store")
        store.put_if_absent("packs/aa/a", b"x")
    finally:
        os.umask(before)
    for folder in ("deep", "deep/store", "deep/store/packs", "deep/store/packs/aa", "deep/store/.scratch"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700, folder
    assert stat.S_IMODE((store.root / "packs/aa/a").stat().st_mode) == 0o400


def test_adopting_links(tmp_path: Path) -> None:
    path = tmp_path / "result-1.zip"
    path.write_bytes(b"pack")
    store = LocalStore(tmp_path / "store")
    assert store.adopt("packs/aa/a", path) is True
    assert (store.root / "packs/aa/a").stat().st_ino == path.stat().st_ino
    link = tmp_path / "link.zip"
    link.symlink_to(path)
    assert store.adopt("packs/aa/b", link) is True
    assert not (store.root / "packs/aa/b").is_symlink()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no second file system at hand")
def test_adopting_from_another_file_system_copies(tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"grange-test-{os.getpid()}"
    if source.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm and the temporary folder are one file system")
    source.write_bytes(b"pack")
    try:
        store = LocalStore(tmp_path / "store")
        assert store.adopt("packs/aa/a", source) is True
        assert store.adopt("packs/aa/a", source) is False
        assert b"".join(store.read("packs/aa/a")) == b"pack"
        assert scratch_files(store.root) == []
    finally:
        source.unlink()


def test_a_file_that_is_no_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file is not a folder"):
        LocalStore(tmp_path / "file")
    with pytest.raises(StoreError, match="Not a directory"):
        LocalStore(tmp_path / "file" / "store")


def test_a_name_is_an_object_or_a_folder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a/b", b"x")
    with pytest.raises(ObjectNameInvalid, match="folder of the store"):
        store.put_if_absent("a", b"x")
    with pytest.raises(ObjectNameInvalid, match="name of an object"):
        store.put_if_absent("a/b/c", b"x")
    store.delete(["a", "a/b/c"])
    assert b"".join(store.read("a/b")) == b"x"


def test_a_link_out_of_the_store_is_no_object(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    (tmp_path / "secret").write_bytes(b"secret")
    (store.root / "link").symlink_to(tmp_path / "secret")
    assert list(store.list()) == []


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    root = tmp_path / "store"
    store = LocalStore(root)
    store.put_if_absent("packs/aa/a", b"content")
    pack = tmp_path / "pack.zip"
    pack.write_bytes(b"pack")
    as_nobody = os.geteuid() == 0
    folders = [root, *(folder for folder in root.rglob("*") if folder.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    (root / "packs/aa/a").chmod(0o444)
    # pytest keeps its folders to their owner: without the right to pass through, nothing below can be seen.
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in closed}

    def check() -> None:
        store = LocalStore(root)
        assert b"".join(store.read("packs/aa/a")) == b"content"
        assert store.put_if_absent("packs/aa/a", b"content") is False
        for attempt in (
            lambda: store.put_if_absent("packs/aa/b", b"x"),
            lambda: store.adopt("packs/aa/b", pack),
            lambda: store.delete(["packs/aa/a"]),
            lambda: LocalStore(root / "deeper"),
        ):
            with pytest.raises(StoreReadOnly, match=str(root)) as caught:
                attempt()
            assert "Permission denied" in str(caught.value)
        assert [info.name for info in store.list()] == ["packs/aa/a"]

    try:
        for folder in closed:
            folder.chmod(modes[folder] | 0o001)
        in_child(check, as_nobody)
    finally:
        for folder in closed:
            folder.chmod(modes[folder])
        for folder in folders:
            folder.chmod(0o700)


def test_a_file_size_limit_is_a_full_store(tmp_path: Path) -> None:
    """The kernel's limit stands in for a full disk where nothing can be mounted."""
    import resource

    def check() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        store = LocalStore(tmp_path)
        store.put_if_absent("small", b"x" * 100_000)
        with pytest.raises(StoreFull, match=str(tmp_path)):
            store.put_if_absent("large", b"x" * 100_001)
        assert [info.name for info in store.list()] == ["small"]
        assert scratch_files(tmp_path) == []

    in_child(check, as_nobody=False)


MOUNTED = """
import sys
from pathlib import Path
from grange.repository import LocalStore, MemoryIndex, Repository, StoreFull, StoreReadOnly

kind, root = sys.argv[1], Path(sys.argv[2])
index = MemoryIndex()
contents = [bytes([i]) * 5000 + b"%d" % i for i in range(20)]
if kind == "full":
    store = LocalStore(root)
    repository = Repository(store, blob_limit_bytes=300_000)
    keys, rows = repository.put(contents, index)
    index.add(rows)
    noise = [open("/dev/urandom", "rb").read(200_000) for _ in range(10)]
    before = sorted(info.name for info in store.list())
    for attempt in (
        lambda: repository.put(noise, index),
        lambda: repository.put([b"".join(noise)], index),
        lambda: repository.put_stream(open("/dev/zero", "rb"), index),
    ):
        try:
            attempt()
        except StoreFull as error:
            assert str(root) in str(error) and "No space left" in str(error), error
        else:
            sys.exit("it fitted")
        assert sorted(info.name for info in store.list()) == before
        assert not list((root / ".scratch").iterdir())
    assert repository.read(keys, index) == contents
    more, rows = repository.put([b"there is room for a little"], index)
else:
    store = LocalStore(root)
    repository = Repository(store)
    assert store.put_if_absent("there", b"x") is False
    for attempt in (
        lambda: repository.put(contents, index),
        lambda: store.delete(["there"]),
        lambda: LocalStore(root / "deeper"),
    ):
        try:
            attempt()
        except StoreReadOnly as error:
            assert str(root) in str(error) and "Read-only file system" in str(error), error
        else:
            sys.exit("it was written")
    assert b"".join(store.read("there")) == b"x"
"""


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_is_full_or_read_only_is_named(tmp_path: Path, kind: str) -> None:
    private = namespace()
    if private is None:
        pytest.skip("file systems cannot be mounted here (unshare -m is not allowed)")
    LocalStore(tmp_path).put_if_absent("there", b"x")
    mount = {
        "full": 'mount -t tmpfs -o size=1m tmpfs "$3"',
        "read-only": 'mount --bind "$3" "$3" && mount -o remount,ro,bind "$3"',
    }[kind]
    script = f'{mount} && exec "$0" -c "$1" "$2" "$3"'
    done = subprocess.run(
        [*private, "sh", "-c", script, sys.executable, MOUNTED, kind, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
