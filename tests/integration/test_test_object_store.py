"""The test object store itself: what the other tests stand on."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import object_store as object_stores
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, SSLError
from object_store import PROGRAM, PROGRAMS_MISSING, ObjectStore, ObjectStoreFailed, invoke

LISTENS = "0A"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every account can enter: pytest's are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="grange-object-store-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def arguments(store: ObjectStore) -> dict[str, list[str]]:
    """The command lines of what runs."""
    return {
        part: Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        for part, pid in store.status()["parts"].items()
    }


def test_objects_by_http_and_https_for_the_owner_alone(object_store: ObjectStore, bucket: str) -> None:
    plain = object_store.client()
    plain.put_object(Bucket=bucket, Key="a", Body=b"content")
    secure = object_store.client(endpoint=object_store.https_endpoint, ca_file=object_store.ca_file)
    assert secure.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    with pytest.raises(SSLError):
        object_store.client(endpoint=object_store.https_endpoint).head_object(Bucket=bucket, Key="a")
    object_store.add_user("reader")
    with pytest.raises(ClientError, match="AccessDenied"):
        object_store.client("reader").get_object(Bucket=bucket, Key="a")


def test_a_taken_name_and_a_wrong_content_are_refused(object_store: ObjectStore, bucket: str) -> None:
    client = object_store.client()
    client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="b", Body=b"1", ContentMD5="1B2M2Y8AsgTpgAmY7PhCfg==")
    assert [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["a"]


def test_a_full_bucket_refuses(object_store: ObjectStore, bucket: str) -> None:
    object_store.set_quota(bucket, max_bytes=1_000_000)
    client = object_store.client()
    for number in range(9):
        client.put_object(Bucket=bucket, Key=str(number), Body=b"x" * 100_000)
    with pytest.raises(ClientError, match="QuotaExceeded"):
        client.put_object(Bucket=bucket, Key="more", Body=b"x" * 200_000)


def test_the_spare_gateway_is_killed_and_comes_back_with_what_was_written(
    object_store: ObjectStore, bucket: str
) -> None:
    with object_store.spare_gateway() as gateway:
        client = object_store.client(endpoint=gateway.endpoint)
        client.put_object(Bucket=bucket, Key="a", Body=b"content")
        for end in (gateway.kill, gateway.stop):
            end()
            with pytest.raises(EndpointConnectionError):
                client.head_object(Bucket=bucket, Key="a")
            assert object_store.client().head_object(Bucket=bucket, Key="a")["ContentLength"] == 7
            gateway.start()
            assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    assert "spare" not in object_store.status()["parts"]


def test_everything_listens_on_this_machine_only(object_store: ObjectStore) -> None:
    inodes = set()
    for pid in object_store.status()["parts"].values():
        for file in Path(f"/proc/{pid}/fd").iterdir():
            inodes.add(os.readlink(file))
    listening = [
        words[1]
        for kind in ("tcp", "tcp6")
        for words in map(str.split, Path(f"/proc/net/{kind}").read_text().splitlines()[1:])
        if words[3] == LISTENS and f"socket:[{words[9]}]" in inodes
    ]
    assert len(listening) >= 4
    assert {address.partition(":")[0] for address in listening} == {"0100007F"}


def test_keys_are_closed_to_others_and_in_no_argument(object_store: ObjectStore) -> None:
    for path in (object_store.folder / "client", object_store.folder / "server"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    secrets = [*object_store.keys()]
    for path in [Path(object_store.credentials_file), *(object_store.folder / "server").rglob("*key*")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        secrets += [line.split(" = ")[1] for line in path.read_text().splitlines() if "key = " in line]
    assert len(secrets) > 6
    said = json.dumps(arguments(object_store)) + json.dumps(object_store.status())
    assert not [secret for secret in secrets if secret in said]


def test_nothing_runs_as_root(object_store: ObjectStore) -> None:
    for pid in object_store.status()["parts"].values():
        assert Path(f"/proc/{pid}").stat().st_uid != 0


def test_stopped_and_started_again_with_objects_keys_and_ports(open_folder: Path) -> None:
    store = ObjectStore.start(open_folder / "store", "--size=1")
    try:
        bucket = store.new_bucket()
        store.client().put_object(Bucket=bucket, Key="a", Body=b"content")
        with pytest.raises(ObjectStoreFailed, match="runs already"):
            ObjectStore.start(store.folder)
        began = time.monotonic()
        store.stop(remove=False)
        assert time.monotonic() - began < 9  # none had to be killed
        assert store.status()["parts"] == {}
        again = ObjectStore.start(store.folder)
        assert again == store
        assert again.client().get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    finally:
        store.stop()
    assert not store.folder.exists()


def test_it_is_shared_and_ends_with_the_last_who_uses_it_even_if_killed(open_folder: Path) -> None:
    program = (
        "import sys, object_store\n"
        "with object_store.shared('together') as store:\n"
        "    print(store.folder, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    environment = {**os.environ, "TMPDIR": str(open_folder), "PYTHONPATH": str(PROGRAM.parents[2] / "tests")}
    environment.pop(object_stores.VARIABLE, None)
    users = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(3)
    ]
    folders = {user.stdout.readline().strip() for user in users if user.stdout is not None}
    assert len(folders) == 1
    store = ObjectStore.attach(Path(folders.pop()))
    for user in users[:2]:
        user.communicate()
    time.sleep(0.3)
    assert store.status()["parts"].keys() == {"mon", "osd", "gateway"}
    users[2].kill()
    users[2].communicate()
    until = time.monotonic() + 10
    while list(open_folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_missing_programs_are_named_with_the_packages(tmp_path: Path) -> None:
    said = subprocess.run(
        [
            object_stores.PYTHON, "-sEB", "-c",
            "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
            "import daemons, object_store; daemons.PATH = '/nonexistent'; sys.exit(object_store.main())",
            str(PROGRAM.parent), "up", str(tmp_path / "store"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == PROGRAMS_MISSING
    assert "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common" in said.stderr
    assert not (tmp_path / "store").exists()


def test_folders_that_cannot_be_are_refused_and_left_alone(open_folder: Path) -> None:
    (open_folder / "mine").write_text("x")
    for folder, why in (
        (str(open_folder), "not empty"),
        (f"{open_folder}/a b", "characters"),
        (f"{open_folder}/../a", "characters"),
    ):
        with pytest.raises(ObjectStoreFailed, match=why):
            ObjectStore.start(Path(folder))
    with pytest.raises(ObjectStoreFailed, match="not the folder of an object store"):
        invoke("down", str(open_folder), "--rm")
    assert (open_folder / "mine").read_text() == "x"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_root_is_told_of_a_folder_that_the_account_cannot_enter(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(ObjectStoreFailed, match="The account ceph cannot enter"):
        ObjectStore.start(tmp_path / "store")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_starts_one(open_folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(open_folder, nobody.pw_uid, nobody.pw_gid)
    # The checkout may be closed to that user.
    program = shutil.copytree(PROGRAM.parent, open_folder / "program") / PROGRAM.name
    folder = open_folder / "store"
    for verb in ("up", "down"):
        subprocess.run(
            [object_stores.PYTHON, "-sEB", program, verb, folder],
            check=True,
            capture_output=True,
            user="nobody",
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
        )
        if verb == "up":
            store = ObjectStore.attach(folder)
            assert {Path(f"/proc/{pid}").stat().st_uid for pid in store.status()["parts"].values()} == {
                nobody.pw_uid
            }
            store.new_bucket()
