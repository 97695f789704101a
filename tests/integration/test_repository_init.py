"""`grange repository init`, and the bucket that it makes, on the real server."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fault_plan import Answer, Fault, Request
from fault_proxy import FaultProxy
from minio.crypto import decrypt, encrypt
from object_store import ObjectStore
from urllib3 import HTTPResponse

from grange.cli.entry import run
from grange.core.errors import ProfileInvalid, RepositoryBusy
from grange.core.file_store import open_store
from grange.core.profile import Profile
from grange.core.profile_file import read_profile_file
from grange.core.store_choice import choose_store
from grange.core.store_keys import write_keys
from grange.repository.errors import StoreError
from grange.repository.local_store import LocalStore
from grange.repository.minio_keys import make_keys
from grange.repository.retries import Retries
from grange.repository.s3_bucket import BucketState, BucketWishes, RequireTls, execute, look_at, plan, rights
from grange.repository.s3_session import S3Session
from grange.repository.s3_settings import S3Settings
from grange.repository.s3_store import S3Store
from grange.repository.s3_trial import trials

Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def name() -> str:
    """Of a bucket that nobody has made."""
    return f"init-{os.urandom(6).hex()}"


@pytest.fixture
def init(object_store: ObjectStore, home: Path, name: str, capsys: pytest.CaptureFixture[str]) -> Init:
    """Runs `grange repository init` with more words: its status, what it says, what it warns of."""

    def run_it(*words: str, yes: bool = True) -> tuple[int, str, str]:
        given = {"--endpoint": object_store.endpoint, "--bucket": name}
        given["--credentials-file"] = object_store.credentials_file
        rest = [word for option, value in given.items() if option not in words for word in (option, value)]
        if "--keys-from-elsewhere" in words:
            words = tuple(word for word in words if word != "--keys-from-elsewhere")
            rest = rest[:-2]
        status = run(["--home", str(home), "repository", "init", *rest, *words, *(["-y"] if yes else [])])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run_it


def store_of(home: Path) -> dict[str, Any]:
    found = tomllib.loads((home / "profile.toml").read_text())["store"]
    assert isinstance(found, dict)
    return found


def rules(object_store: ObjectStore, bucket: str) -> list[dict[str, Any]]:
    found = object_store.client().get_bucket_lifecycle_configuration(Bucket=bucket)
    return list(found["Rules"])


def session_of(object_store: ObjectStore, bucket: str) -> S3Session:
    return S3Session(object_store.settings(bucket))


def test_a_bucket_is_made_set_up_tried_out_and_written_down(
    object_store: ObjectStore, home: Path, name: str, init: Init
) -> None:
    home.mkdir()
    (home / "profile.toml").write_text('# mine\nemail = "ada@example.org"\nstore = "store"\n\nslots = 3\n')
    status, said, _ = init("--prefix", "ada")
    assert status == 0
    assert "there is no such bucket yet" in said
    assert said.count("✓") == 9
    assert "✗" not in said
    assert said.endswith(f"files are kept in s3://{name}/ada at {object_store.endpoint} from now on\n")
    text = (home / "profile.toml").read_text()
    assert text.startswith('# mine\nemail = "ada@example.org"\n')
    assert "slots = 3" in text
    assert store_of(home) == {
        "endpoint": object_store.endpoint,
        "bucket": name,
        "prefix": "ada",
        "credentials_file": object_store.credentials_file,
    }
    [rule] = rules(object_store, name)
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rule["Filter"] == {"Prefix": "ada/"}
    # nothing of the trial is left
    store = open_store(home, read_profile_file(home / "profile.toml"))
    assert list(store.list()) == []
    assert store.put_if_absent("packs/a", b"x") is True

    status, said, _ = init("--prefix", "ada")
    assert status == 0
    assert "the bucket is there" in said
    assert "abort uploads" not in said
    assert rules(object_store, name) == [rule]


def test_a_dry_run_changes_nothing(object_store: ObjectStore, home: Path, name: str, init: Init) -> None:
    status, said, _ = init("--dry-run", yes=False)
    assert status == 0
    assert "make the bucket, for this account alone" in said
    assert "from now on" not in said
    assert not home.exists()
    assert name not in [found["Name"] for found in object_store.client().list_buckets()["Buckets"]]


def test_keys_that_others_can_read_are_pointed_at(
    object_store: ObjectStore, tmp_path: Path, init: Init
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(Path(object_store.credentials_file).read_text())
    for mode, warned in ((0o644, True), (0o600, False)):
        keys.chmod(mode)
        status, _, warning = init("--credentials-file", str(keys), "--dry-run")
        assert status == 0
        assert (f"chmod 600 {keys}" in warning) == warned


def test_nobody_to_ask(home: Path, init: Init) -> None:
    status, _, warned = init(yes=False)
    assert status == 1
    assert "say --yes" in warned
    assert not home.exists()


def test_what_others_have_set_stays(object_store: ObjectStore, bucket: str, init: Init) -> None:
    client = object_store.client()
    theirs = {
        "ID": "theirs",
        "Status": "Enabled",
        "Filter": {"Prefix": "tmp/"},
        "Expiration": {"Days": 3},
    }
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [theirs]})
    statement = {
        "Sid": "theirs",
        "Effect": "Allow",
        "Principal": {"AWS": ["arn:aws:iam:::user/somebody"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    words = ["--bucket", bucket, "--endpoint", object_store.https_endpoint, "--ca-file", object_store.ca_file]
    status, said, warned = init(*words, "--only-tls")
    assert status == 0, said + warned
    assert {rule["ID"] for rule in rules(object_store, bucket)} == {
        "theirs",
        "grange: uploads that never ended",
    }
    kept = json.loads(client.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert [found["Sid"] for found in kept] == ["theirs", "GrangeOnlyByTLS"]
    with pytest.raises(StoreError, match="AccessDenied"):
        S3Store(object_store.settings(bucket)).put_if_absent("a", b"x")
    assert S3Store(object_store.settings(bucket, https=True)).put_if_absent("a", b"x") is True
    # an own rule of theirs that does the same is enough
    assert not plan(look_at(session_of(object_store, bucket)), BucketWishes(only_by_tls=True))


def test_only_tls_is_taken_back_where_we_come_without(
    object_store: ObjectStore, home: Path, name: str, init: Init
) -> None:
    status, said, warned = init("--only-tls")
    assert status == 1
    assert "✗ write an object" in said
    assert "--only-tls was taken back" in warned
    assert not home.exists()
    assert S3Store(object_store.settings(name)).put_if_absent("a", b"x") is True


def test_versions_are_looked_at(object_store: ObjectStore, bucket: str, init: Init) -> None:
    client = object_store.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    status, said, _ = init("--bucket", bucket)
    assert status == 0
    assert "it keeps versions" in said
    assert not look_at(session_of(object_store, bucket)).expires_versions
    status, said, _ = init("--bucket", bucket, "--expire-versions", "30d")
    assert status == 0
    assert "remove versions 30 days after" in said
    [days] = [
        rule["NoncurrentVersionExpiration"]
        for rule in rules(object_store, bucket)
        if "NoncurrentVersionExpiration" in rule
    ]
    assert days == {"NoncurrentDays": 30}
    assert look_at(session_of(object_store, bucket)).expires_versions


def test_an_open_bucket_is_pointed_at(object_store: ObjectStore, bucket: str, init: Init) -> None:
    assert "people without credentials" not in init("--bucket", bucket)[1]
    object_store.client().put_bucket_acl(Bucket=bucket, ACL="public-read")
    assert "people without credentials may read or write there" in init("--bucket", bucket)[1]


def test_a_bucket_of_somebody_else(object_store: ObjectStore, bucket: str, home: Path, init: Init) -> None:
    object_store.add_user("stranger")
    status, _, warned = init("--bucket", bucket, "--aws-profile", "stranger")
    assert status == 1
    assert f"cannot list bucket {bucket} at {object_store.endpoint}" in warned
    assert "AccessDenied" in warned
    assert not home.exists()


def test_files_that_may_be_of_another_profile_are_pointed_at(
    object_store: ObjectStore, home: Path, bucket: str, init: Init
) -> None:
    warning = "files of grange lie there already"
    status, said, _ = init("--bucket", bucket)
    assert status == 0
    assert warning not in said
    S3Store(object_store.settings(bucket)).put_if_absent("packs/ab/abcdef.zip", b"of somebody")
    status, said, _ = init("--bucket", bucket)
    assert status == 0
    assert warning not in said, "our own"
    (home / "profile.toml").unlink()
    status, said, _ = init("--bucket", bucket, "--prefix", "mine")
    assert status == 0
    assert warning not in said
    (home / "profile.toml").unlink()
    status, said, _ = init("--bucket", bucket)
    assert status == 0
    assert warning in said


def test_a_trial_that_fails_writes_nothing_down(
    object_store: ObjectStore, home: Path, bucket: str, init: Init
) -> None:
    def plan_(request: Request) -> Fault | None:
        deletes = request.method == "DELETE" or "?delete" in request.target
        return Answer(403, "AccessDenied") if deletes else None

    with FaultProxy(object_store.endpoint, plan_) as proxy:
        status, said, warned = init("--bucket", bucket, "--endpoint", proxy.endpoint)
    assert status == 1
    assert "✗ delete them" in said
    assert "give it the right to write and delete objects" in said
    assert "delete them failed" in warned
    assert "mend that, then call it again" in warned
    assert not home.exists()


def test_a_server_that_refuses_no_second_object_is_good_enough(
    object_store: ObjectStore, bucket: str
) -> None:
    with FaultProxy(
        object_store.endpoint,
        lambda request: Answer(501, "NotImplemented") if "if-none-match" in request.headers else None,
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), Retries(tries=1))
        made = {trial.name: trial for trial in trials(store)}
    assert [trial.name for trial in made.values() if trial.problem] == ["refuse a second one"]
    assert not made["refuse a second one"].needed
    assert list(store_names(object_store, bucket)) == []


def test_a_trial_that_ends_in_its_midst_leaves_nothing(object_store: ObjectStore, bucket: str) -> None:
    with FaultProxy(
        object_store.endpoint,
        lambda request: Answer(403, "AccessDenied") if request.target.endswith("?uploads") else None,
    ) as proxy:
        store = S3Store(object_store.settings(bucket, endpoint=proxy.endpoint), Retries(tries=1))
        *well, last = trials(store)
    assert [trial.problem for trial in well] == [""] * 4
    assert (last.name, last.needed) == ("write one in parts", True)
    assert "this user has not the right to (AccessDenied)" in last.problem
    assert list(store_names(object_store, bucket)) == []


def store_names(object_store: ObjectStore, bucket: str) -> Iterator[str]:
    return (info.name for info in S3Store(object_store.settings(bucket)).list())


def test_files_are_not_left_behind(object_store: ObjectStore, home: Path, name: str, init: Init) -> None:
    home.mkdir()
    (home / "profile.toml").write_text('email = "ada@example.org"\n')
    LocalStore(home / "store").put_if_absent("packs/a", b"x")
    status, _, warned = init()
    assert status == 1
    assert f"files of this profile lie in {home / 'store'}" in warned
    assert "grange repository migrate" in warned
    status, said, _ = init("--bucket-only")
    assert status == 0
    assert said.endswith(f"s3://{name} at {object_store.endpoint} can be used\n")
    assert "store" not in tomllib.loads((home / "profile.toml").read_text())
    assert init("--replace")[0] == 0
    S3Store(object_store.settings(name)).put_if_absent("packs/b", b"x")
    status, _, warned = init("--bucket", f"{name}-2")
    assert status == 1
    assert f"files of this profile lie in s3://{name} at {object_store.endpoint}" in warned
    assert init()[0] == 0


def test_not_while_others_have_files_open(
    profile: Profile, object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grange.core.store_choice._PATIENCE_S", 0.5)
    wanted = object_store.settings(bucket)
    assert profile.repository is not None
    with pytest.raises(RepositoryBusy, match="files of this profile"):
        choose_store(profile.home, wanted)
    profile.close()
    choose_store(profile.home, wanted)
    assert store_of(profile.home)["bucket"] == bucket


def test_keys_are_kept_only_where_that_is_asked_for(
    object_store: ObjectStore, home: Path, init: Init, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    access, secret = object_store.keys()
    for variable, value in {
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-such-file"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    assert init("--keys-from-elsewhere")[0] == 0
    assert "credentials_file" not in store_of(home)
    assert sorted(found.name for found in home.iterdir()) == ["profile.toml"]

    status, said, warned = init("--keys-from-elsewhere", "--save-keys")
    assert status == 0
    assert f"keep keys in {home / 'store-keys'} (mode 0600): those found" in said
    assert secret not in said + warned + (home / "profile.toml").read_text()
    assert store_of(home)["credentials_file"] == "store-keys"
    assert stat.S_IMODE((home / "store-keys").stat().st_mode) == 0o600
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = open_store(home, read_profile_file(home / "profile.toml"))
    assert store.put_if_absent("packs/a", b"x") is True

    status, _, warned = init("--keys-from-elsewhere")
    assert status == 1
    assert "no credentials for s3://" in warned


def test_keys_that_expire_are_not_kept(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grange.cli.refused import Refused
    from grange.cli.repository_init import _keep_keys

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "C")
    settings = replace(object_store.settings(bucket), credentials_file="")
    with pytest.raises(Refused, match="expire"):
        _keep_keys(Path("/nowhere"), settings, S3Session(settings), minio=False)


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "ä", "a\0"])
def test_what_is_no_key_is_not_written(tmp_path: Path, key: str) -> None:
    for pair in ((key, "good"), ("good", key)):
        with pytest.raises(ProfileInvalid, match="characters that no key has") as raised:
            write_keys(tmp_path, *pair)
        assert not key or key not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_wrong_options(init: Init, home: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--bucket", "Not_A_Bucket"], "bucket = 'Not_A_Bucket'"),
        (["--endpoint", "http://s3.example.org"], "without https everybody"),
        (["--endpoint", "ftp://x"], "expected https://host"),
        (["--prefix", "../up"], "prefix"),
    ):
        status, _, warned = init(*words)
        assert status == 2
        assert said in warned
    assert run(["--home", str(home), "repository", "init", "--bucket", name, "-y"]) == 2
    assert "Missing option '--endpoint'" in capsys.readouterr().err
    assert not home.exists()


def test_the_least_rights_are_enough(object_store: ObjectStore, bucket: str, init: Init) -> None:
    status, said, _ = init("--bucket", bucket, "--prefix", "ada", "--rights")
    assert status == 0
    policy = json.loads(said)
    settings = object_store.settings(bucket, prefix="ada")
    assert policy == rights(settings)
    object_store.add_user("least")
    for statement in policy["Statement"]:
        statement["Principal"] = {"AWS": ["arn:aws:iam:::user/least"]}
    object_store.client().put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    least = S3Store(object_store.settings(bucket, prefix="ada", user="least"), Retries(tries=1))
    assert [trial for trial in trials(least) if trial.problem] == []
    least.put_if_absent("a", b"x")
    assert least.sweep(3600) == 0
    with pytest.raises(StoreError, match="AccessDenied"):
        S3Store(object_store.settings(bucket, user="least")).put_if_absent("a", b"x")


def answered(words: list[str], answers: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """What a command prints on a terminal where somebody answers each question in turn."""
    ours, theirs = pty.openpty()
    said = b""
    command = [sys.executable, "-m", "grange", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        asked, until = 0, time.monotonic() + 60
        while time.monotonic() < until:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    said += os.read(ours, 4096)
                except OSError:  # the other end is closed
                    break
            elif asked < len(answers) and said.endswith(b": "):
                os.write(ours, answers[asked].encode() + b"\n")
                asked += 1
        status = child.wait(timeout=30)
    os.close(ours)
    assert asked == len(answers), said.decode()
    return status, said.decode()


def test_questions(object_store: ObjectStore, home: Path, name: str, tmp_path: Path) -> None:
    access, secret = object_store.keys()
    hidden = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    answers = [object_store.endpoint, name, "", access, secret, "y"]
    status, said = answered(["--home", str(home), "repository", "init"], answers, environment)
    assert status == 0, said
    assert secret not in said
    assert "or type them" in said
    assert store_of(home) == {
        "endpoint": object_store.endpoint,
        "bucket": name,
        "credentials_file": "store-keys",
    }
    assert S3Store(object_store.settings(name)).head("absent") is None


def test_of_minio_no_rule_is_asked_that_it_forgets() -> None:
    minio = BucketState(exists=True, server="MinIO", minio=True)
    assert plan(minio, BucketWishes(only_by_tls=True)) == [RequireTls()]
    assert [str(step) for step in plan(BucketState(exists=True), BucketWishes())] == [
        "have the server abort uploads that have not ended after 7 days"
    ]


def test_a_rule_that_the_server_forgets_is_an_error(object_store: ObjectStore, bucket: str) -> None:
    """As MinIO does with some rules: it says well, and keeps nothing."""

    def plan_(request: Request) -> Fault | None:
        forgotten = request.method == "GET" and "lifecycle" in request.target
        return Answer(404, "NoSuchLifecycleConfiguration") if forgotten else None

    with FaultProxy(object_store.endpoint, plan_) as proxy:
        session = S3Session(object_store.settings(bucket, endpoint=proxy.endpoint))
        [step] = plan(look_at(session), BucketWishes())
        with pytest.raises(StoreError, match="has not kept the rule"):
            execute(session, step)


class _Administration(BaseHTTPRequestHandler):
    """The other end of MinIO's administration, as its client knows it: no server of MinIO can be had here."""

    secret = ""
    asked: dict[str, Any] | None = None

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.path == "/minio/admin/v3/add-service-account"
        if known and self.server.answer:  # type: ignore[attr-defined]
            sealed = HTTPResponse(body=io.BytesIO(body), preload_content=False)
            self.server.asked = json.loads(decrypt(sealed, self.server.secret))  # type: ignore[attr-defined]
            answer = encrypt(b'{"credentials": {}}', self.server.secret)  # type: ignore[attr-defined]
        else:
            answer = b'{"Code": "AccessDenied", "Message": "Access Denied."}'
        self.send_response(200 if known and self.server.answer else 403)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def administration() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), _Administration)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_minio_is_asked_for_keys_of_one_bucket(administration: Any, tmp_path: Path) -> None:
    write_keys(tmp_path, "ROOT", "the-secret-of-root")
    administration.secret, administration.answer = "the-secret-of-root", True
    settings = S3Settings(
        f"http://127.0.0.1:{administration.server_port}",
        "ada-files",
        credentials_file=str(tmp_path / "store-keys"),
    )
    access, secret = make_keys(S3Session(settings))
    asked = administration.asked
    assert (asked["accessKey"], asked["secretKey"]) == (access, secret)
    assert asked["policy"] == rights(settings)
    assert len(access) == 20
    assert len(secret) == 40
    assert make_keys(S3Session(settings)) != (access, secret)
    administration.answer = False
    with pytest.raises(StoreError, match=r"cannot make keys for bucket ada-files at .*Access Denied"):
        make_keys(S3Session(settings))


@pytest.mark.parametrize("https", [False, True])
def test_who_is_not_minio_makes_no_keys(object_store: ObjectStore, bucket: str, https: bool) -> None:
    with pytest.raises(StoreError, match="the server has not MinIO's administration"):
        make_keys(S3Session(object_store.settings(bucket, https=https)))
