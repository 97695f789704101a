"""Settings of an S3-compatible store: which bucket, and how it is reached. Never its secrets."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from grange.repository.errors import ObjectNameInvalid
from grange.repository.object_name import check_prefix

Addressing = Literal["path", "virtual"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is and who asks.

    endpoint: https://host[:port]; "" means AWS. http:// is for this machine; elsewhere everybody on the way
    reads every byte, so it has to be asked for by allow_http. prefix: names of objects begin with it and "/".
    region: "" means us-east-1, or that of the aws_profile. ca_file: a PEM file with the certificates that
    are trusted beside the system's.

    Credentials come by boto3's chain: environment, ~/.aws, instance. aws_profile: a section of
    ~/.aws/credentials and ~/.aws/config; credentials_file: another file of that form, of which the section
    aws_profile (or "default") is used and nothing else is asked.

    Errors: ValueError, which names the setting and what was expected.
    """

    endpoint: str
    bucket: str
    prefix: str = ""
    region: str = ""
    addressing: Addressing = "path"
    aws_profile: str = ""
    credentials_file: str = ""
    ca_file: str = ""
    allow_http: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "allow_http":
                if type(value) is not bool:
                    raise ValueError(f"allow_http = {value!r}: expected true or false")
            elif not isinstance(value, str) or not value.isprintable():
                raise ValueError(f"{field.name} = {value!r}: expected a line of text")
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError(
                f"bucket = {self.bucket!r}: expected 3 to 63 small letters, digits, hyphens and dots"
            )
        if self.addressing not in ("path", "virtual"):
            raise ValueError(f'addressing = {self.addressing!r}: expected "path" or "virtual"')
        try:
            check_prefix(self.prefix)
        except ObjectNameInvalid as error:
            raise ValueError(f"prefix: {error}") from None
        if self.prefix.endswith("/"):
            raise ValueError(f'prefix = {self.prefix!r}: expected it without a "/" at its end')
        if self.endpoint:
            self._check_endpoint()

    def _check_endpoint(self) -> None:
        """The value is not repeated where it may hold a password."""
        try:
            url = urlsplit(self.endpoint)
            secret = "@" in url.netloc
            port = url.port
        except ValueError as error:
            raise ValueError(f"endpoint is not a URL: {error}") from None
        if secret:
            raise ValueError(
                "endpoint holds credentials, which do not belong there: put them into ~/.aws/credentials"
            )
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.path not in ("", "/")
            or url.query
            or url.fragment
            or port == 0
        ):
            raise ValueError(f"endpoint = {self.endpoint!r}: expected https://host or https://host:port")
        if url.scheme == "http" and not self.allow_http and not _is_this_machine(url.hostname):
            raise ValueError(
                f"endpoint = {self.endpoint!r}: without https everybody between here and there can read the "
                "files; use https (ca_file for certificates of one's own), or say allow_http = true"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> S3Settings:
        """The settings of a table of profile.toml.

        Errors: ValueError, which names the key and what was expected.
        """
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                secret = "; keys do not belong in this file" if "key" in key or "secret" in key else ""
                raise ValueError(f"unknown key {key}; {advice}{secret}")
        for key in ("endpoint", "bucket"):
            if key not in table:
                raise ValueError(f"the key {key} is missing")
        return cls(**table)  # type: ignore[arg-type]

    def to_table(self) -> dict[str, str | bool]:
        """As a table of profile.toml: endpoint, bucket, and what is not its default."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name in ("endpoint", "bucket") or getattr(self, field.name) != field.default
        }

    def below(self, folder: Path) -> S3Settings:
        """The same, its files being named from a folder and from the user's home ("~")."""
        files = {
            name: str(folder / Path(value).expanduser())
            for name in ("credentials_file", "ca_file")
            if (value := getattr(self, name))
        }
        return replace(self, **files)  # type: ignore[arg-type]

    def __str__(self) -> str:
        where = f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
        return f"{where} at {self.endpoint}" if self.endpoint else where


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
