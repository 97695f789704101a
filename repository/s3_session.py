"""A session with an S3 server: who we are, whom we trust, and the clients made of that."""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from grange.repository.errors import StoreError
from grange.repository.s3_error import Action, failure_of_boto, failure_of_obstore, store_error
from grange.repository.s3_settings import S3Settings

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import ClientConfig, S3Credential, S3Store

Made = TypeVar("Made")

CONNECT_TIMEOUT_S = 5.0
# How long nothing may come from a server that should answer.
ANSWER_TIMEOUT_S = 30.0
# How long it may take to send something of at most 4, 8 and 40 MiB: the libraries know no time-out of work
# done for what is sent. So a line has to carry 1 Mbit/s.
PUT_TIMEOUT_S = 60.0
PART_TIMEOUT_S = 90.0
LONG_PUT_TIMEOUT_S = 400.0
# How many connections boto3 keeps.
_CONNECTIONS = 16
_DEFAULT_REGION = "us-east-1"
# Where credentials expire without a date, they are asked for again after this time.
_LOOK_AGAIN = timedelta(minutes=10)


class S3Session:
    """The clients of one bucket, made when they are first asked for, for use by many threads.

    Neither library survives a fork: in a child of a process that had used them every call is refused.
    """

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}

    @contextmanager
    def told(self, action: Action, name: str = "") -> Iterator[None]:
        """Raise errors of the libraries as errors of the store."""
        self.check_process()
        from botocore.exceptions import BotoCoreError, ClientError
        from obstore.exceptions import BaseError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise store_error(failure_of_boto(error), self.settings, action, name, self.who) from error
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise store_error(failure_of_obstore(error), self.settings, action, name, self.who) from error

    def check_process(self) -> None:
        """Refuse a fork of a process that had used a server.

        Errors: StoreError.
        """
        if _used_by.setdefault("pid", os.getpid()) != os.getpid():
            raise StoreError(
                f"cannot use {self.settings}: this process is a fork of one that had used a server, and its "
                "connections did not come along; start processes afresh, for instance by "
                'multiprocessing.get_context("spawn")'
            )

    def _once(self, what: str, make: Callable[[], Made]) -> Made:
        """What was made for this session already, or is made now."""
        self.check_process()
        with self._lock:
            if what not in self._made:
                self._made[what] = make()
            made: Made = self._made[what]
            return made

    @property
    def who(self) -> str:
        """Where the credentials came from, for people; "" while that is not known."""
        credentials = self._made.get("credentials")
        if credentials is None:
            return ""
        if self.settings.credentials_file:
            return self.settings.credentials_file
        places = {
            "env": "the environment (AWS_ACCESS_KEY_ID)",
            "shared-credentials-file": "~/.aws/credentials",
        }
        return str(places.get(credentials.method, credentials.method))

    @property
    def credentials(self) -> Credentials:
        """Who we are.

        Errors: StoreError where there are none, or where the chain that looks for them fails.
        """
        return self._once("credentials", self._find_credentials)

    def _find_credentials(self) -> Credentials:
        from botocore.exceptions import BotoCoreError, ProfileNotFound

        try:
            found: Credentials | None = self._chain.get_credentials()
        except ProfileNotFound:
            found = None
        except BotoCoreError as error:
            raise StoreError(f"no credentials for {self.settings}: {error}") from error
        if found is None:
            raise StoreError(f"no credentials for {self.settings}: {_advice(self.settings)}")
        return found

    @property
    def _chain(self) -> Any:
        return self._once("chain", self._make_chain)

    def _make_chain(self) -> Any:
        import botocore.session

        settings = self.settings
        # Of a profile that is named the environment is not asked: of a file that is named neither.
        profile = settings.aws_profile or ("default" if settings.credentials_file else None)
        chain = botocore.session.Session(profile=profile)
        if settings.credentials_file:
            if not Path(settings.credentials_file).is_file():
                raise StoreError(
                    f"no credentials for {settings}: there is no file {settings.credentials_file}"
                )
            chain.set_config_variable("credentials_file", settings.credentials_file)
        return chain

    @property
    def region(self) -> str:
        return self.settings.region or self._chain.get_config_variable("region") or _DEFAULT_REGION

    @property
    def boto(self) -> Any:
        """A client of boto3 for S3: administration, and what obstore has no means for.

        It sends SHA-256 of what it sends, and repeats nothing by itself.
        """
        return self._once("boto", self._make_boto)

    def _make_boto(self) -> Any:
        import boto3
        from botocore.config import Config

        # Asked first: a client without credentials would fail with each call.
        _ = self.credentials
        return boto3.Session(botocore_session=self._chain).client(
            "s3",
            endpoint_url=self.settings.endpoint or None,
            region_name=self.region,
            verify=None if self.settings.endpoint.startswith("http://") else self.trusted_file(),
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=PART_TIMEOUT_S,
                max_pool_connections=_CONNECTIONS,
                retries={"total_max_attempts": 1, "mode": "standard"},
                # Else URLs would be signed in the old way, which signs no headers.
                signature_version="s3v4",
                s3={"addressing_style": self.settings.addressing, "payload_signing_enabled": True},
                # The additional checksums are not understood by every server (Ceph); the SHA-256 is.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @property
    def reader(self) -> S3Store:
        """A client of obstore for what is answered soon."""
        timeouts: ClientConfig = {
            "read_timeout": timedelta(seconds=ANSWER_TIMEOUT_S),
            "timeout": timedelta(days=7),
        }
        return self._once("reader", lambda: self._make_obstore(timeouts))

    @property
    def writer(self) -> S3Store:
        """A client of obstore for what is sent."""
        timeouts: ClientConfig = {"timeout": timedelta(seconds=PUT_TIMEOUT_S)}
        return self._once("writer", lambda: self._make_obstore(timeouts))

    @property
    def slow_writer(self) -> S3Store:
        """A client of obstore for what is sent and long."""
        timeouts: ClientConfig = {"timeout": timedelta(seconds=LONG_PUT_TIMEOUT_S)}
        return self._once("slow writer", lambda: self._make_obstore(timeouts))

    @property
    def deleter(self) -> S3Store:
        """A client of obstore that deletes objects one by one."""
        timeouts: ClientConfig = {"timeout": timedelta(seconds=PUT_TIMEOUT_S)}
        return self._once("deleter", lambda: self._make_obstore(timeouts, one_by_one=True))

    def _make_obstore(self, timeouts: ClientConfig, one_by_one: bool = False) -> S3Store:
        from obstore.store import S3Store

        settings = self.settings
        _ = self.credentials
        endpoint = settings.endpoint.rstrip("/") or self.boto.meta.endpoint_url
        if settings.addressing == "virtual":
            scheme, _, host = endpoint.partition("://")
            endpoint = f"{scheme}://{settings.bucket}.{host}"
        options: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            **timeouts,
        }
        if not options["allow_http"] and (more := self._own_authorities()):
            options["root_certificate"] = more
        # It looks into the environment too: whatever changes how we ask is said here.
        return S3Store(
            settings.bucket,
            prefix=settings.prefix or None,
            endpoint=endpoint,
            aws_endpoint_url_s3=endpoint,
            region=self.region,
            virtual_hosted_style_request=settings.addressing == "virtual",
            conditional_put="etag",
            disable_bulk_delete=one_by_one,
            skip_signature=False,
            unsigned_payload=False,
            s3_express=False,
            client_options=options,
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
            credential_provider=self._frozen,
        )

    def _frozen(self) -> S3Credential:
        """The credentials of now, for obstore."""
        credentials = self.credentials
        now = credentials.get_frozen_credentials()
        expires = getattr(credentials, "_expiry_time", None)
        if expires is None and now.token:
            expires = datetime.now(UTC) + _LOOK_AGAIN
        return {
            "access_key_id": now.access_key or "",
            "secret_access_key": now.secret_key or "",
            "token": now.token,
            "expires_at": expires,
        }

    def _own_authorities(self) -> bytes:
        """Certificates that are trusted beside the system's."""
        named = {"ca_file": self.settings.ca_file, "AWS_CA_BUNDLE": os.environ.get("AWS_CA_BUNDLE", "")}
        return b"\n".join(_certificates(Path(file), name) for name, file in named.items() if file)

    def trusted_file(self) -> str | None:
        """A file of all certificates that are trusted: the system's and ours. None: as libraries do it."""
        return self._once("trusted", self._write_trusted)

    def _write_trusted(self) -> str | None:
        roots = ssl.get_default_verify_paths().cafile
        own = self._own_authorities()
        if not own:
            return roots
        from botocore.httpsession import where

        trusted = os.memfd_create("grange-trusted")
        with open(trusted, "wb", closefd=False) as file:
            file.write(Path(roots or where()).read_bytes() + b"\n" + own)
        # Kept open as long as the session lives, which is mostly as long as the process.
        weakref.finalize(self, os.close, trusted)
        return f"/proc/self/fd/{trusted}"


# The process that first used a server.
_used_by: dict[str, int] = {}


def _certificates(path: Path, name: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read the certificates of {name}, {path}: {error.strerror}") from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise StoreError(f"{path} ({name}) holds no certificate in PEM form")
    return content


def _advice(settings: S3Settings) -> str:
    section = settings.aws_profile or "default"
    if settings.credentials_file:
        return (
            f"{settings.credentials_file} has no section [{section}] with aws_access_key_id and "
            "aws_secret_access_key"
        )
    if settings.aws_profile:
        return f"~/.aws/credentials and ~/.aws/config have none in the section {section}"
    return (
        "put them into ~/.aws/credentials, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a "
        "file by credentials_file"
    )
