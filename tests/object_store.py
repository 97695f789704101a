"""The test object store (deploy/test-object-store), as tests and benches use it: a real S3 server here."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grange.repository.s3_settings import S3Settings

PROGRAM = Path(__file__).resolve().parent.parent / "deploy" / "test-object-store" / "object_store.py"
#: The system's own, as the programs beside object_store.py take it.
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
#: object_store.py's exit statuses.
PROGRAMS_MISSING, RUNS_ALREADY = 3, 4
#: The folder of one that runs already, for who runs a few tests again and again.
VARIABLE = "GRANGE_TEST_OBJECT_STORE"
REGION = "us-east-1"


class ObjectStoreFailed(Exception):
    """object_store.py has failed; what it said. status: its exit status."""

    def __init__(self, said: str, status: int) -> None:
        super().__init__(said)
        self.status = status


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """One that runs.

    It has two gateways over the same objects: that of the endpoints, which everybody uses and nobody stops,
    and a spare one, for whoever wants to stop it (spare_gateway()).
    """

    folder: Path
    endpoint: str
    https_endpoint: str
    spare_endpoint: str
    spare_https_endpoint: str
    credentials_file: str
    ca_file: str

    @staticmethod
    def start(folder: Path, *options: str) -> ObjectStore:
        """Start one, as `deploy/test-object-store/up FOLDER OPTIONS` does. Errors: ObjectStoreFailed."""
        invoke("up", str(folder), *options)
        return ObjectStore.attach(folder)

    @staticmethod
    def attach(folder: Path) -> ObjectStore:
        """The object store that was started in a folder."""
        content = json.loads((folder / "object-store.json").read_text())
        content["folder"] = folder
        return ObjectStore(**{field.name: content[field.name] for field in dataclasses.fields(ObjectStore)})

    def stop(self, *, remove: bool = True) -> None:
        """End all of it."""
        invoke("down", str(self.folder), *(["--rm"] if remove else []))

    def settings(
        self, bucket: str, *, https: bool = False, endpoint: str = "", user: str = "", prefix: str = ""
    ) -> S3Settings:
        """How a bucket is reached. endpoint: another way to it, a proxy's. user: one of add_user()."""
        return S3Settings(
            endpoint=endpoint or (self.https_endpoint if https else self.endpoint),
            bucket=bucket,
            prefix=prefix,
            region=REGION,
            aws_profile=user,
            credentials_file=self.credentials_file,
            ca_file=self.ca_file if https else "",
        )

    def keys(self, user: str = "default") -> tuple[str, str]:
        """The access key and the secret key of a user."""
        lines = Path(self.credentials_file).read_text().splitlines()
        start = lines.index(f"[{user}]")
        access, secret = (line.split(" = ")[1] for line in lines[start + 1 : start + 3])
        return access, secret

    def client(self, user: str = "default", endpoint: str = "", ca_file: str = "") -> Any:
        """A boto3 client, for what a test has to look at or to break."""
        import boto3
        from botocore.config import Config

        access, secret = self.keys(user)
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            region_name=REGION,
            verify=ca_file or None,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": 1},
            ),
        )

    def new_bucket(self) -> str:
        """A bucket that nobody has; its name."""
        name = f"test-{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"
        self.client().create_bucket(Bucket=name)
        return name

    def add_user(self, name: str) -> None:
        """Another user, without a right to what others have; the keys are a section of the same file."""
        invoke("user", str(self.folder), name)

    def set_quota(self, bucket: str, *, max_bytes: int) -> None:
        """Limit what a bucket may hold."""
        self.admin("quota", "set", "--quota-scope=bucket", f"--bucket={bucket}", f"--max-size={max_bytes}B")
        self.admin("quota", "enable", "--quota-scope=bucket", f"--bucket={bucket}")

    def admin(self, *words: str) -> str:
        """What radosgw-admin prints. Errors: ObjectStoreFailed."""
        return invoke("admin", str(self.folder), "--", *words)

    @contextlib.contextmanager
    def spare_gateway(self) -> Iterator[Gateway]:
        """The spare gateway, started, for one user at a time."""
        with open(self.folder / "spare.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            gateway = Gateway(self)
            gateway.kill()
            gateway.start()
            try:
                yield gateway
            finally:
                gateway.kill()

    def status(self) -> dict[str, Any]:
        """parts: the process of each daemon that runs."""
        found: dict[str, Any] = json.loads(invoke("status", str(self.folder), "--json"))
        return found


@dataclass(frozen=True, slots=True)
class Gateway:
    """A server of S3 that may be stopped, killed and started."""

    store: ObjectStore

    @property
    def endpoint(self) -> str:
        return self.store.spare_endpoint

    @property
    def https_endpoint(self) -> str:
        return self.store.spare_https_endpoint

    def start(self) -> None:
        """It answers on the same ports as before when this returns."""
        invoke("start", str(self.store.folder), "spare")

    def stop(self) -> None:
        """In order."""
        invoke("stop", str(self.store.folder), "spare")

    def kill(self) -> None:
        """kill -9; the ports refuse."""
        invoke("kill", str(self.store.folder), "spare")


_numbers = itertools.count(1)


def invoke(*arguments: str) -> str:
    """What object_store.py prints. Errors: ObjectStoreFailed."""
    done = subprocess.run(
        [PYTHON, "-sEB", str(PROGRAM), *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise ObjectStoreFailed(done.stderr.strip(), done.returncode)
    return done.stdout


@contextlib.contextmanager
def shared(session: str = "") -> Iterator[ObjectStore]:
    """One object store for all processes that name the same session; it ends with the last of them.

    However they end: each holds a shared lock, which the kernel takes from the dead, too. Without a session
    it is this process's alone; with GRANGE_TEST_OBJECT_STORE it is the one that runs there.
    """
    if folder := os.environ.get(VARIABLE):
        yield ObjectStore.attach(Path(folder))
        return
    # Not below pytest's folders: those of root are closed to the account.
    name = f"grange-object-store-{os.getuid()}-{session or f'{os.getpid()}-{os.urandom(4).hex()}'}"
    place = Path(tempfile.gettempdir(), name)
    with _locked(place):
        try:
            store = ObjectStore.start(place / "store", f"--while-locked={place}", "--rm")
        except ObjectStoreFailed as failed:
            if failed.status == PROGRAMS_MISSING:
                raise AssertionError(f"{failed}\n`make test` installs them.") from None
            if failed.status != RUNS_ALREADY:
                raise
            store = ObjectStore.attach(place / "store")
        yield store


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold a shared lock on a folder; one that was removed while we waited is made again."""
    while True:
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o755)
        with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
            folder = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(folder), place.stat()):
                continue
            if os.fstat(folder).st_uid != os.getuid():
                raise PermissionError(f"{place} belongs to somebody else")
            stack.pop_all()
            break
    try:
        yield
    finally:
        os.close(folder)
