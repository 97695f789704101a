"""Settings of an S3-compatible store: which bucket, and how it is reached. Never its secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Addressing = Literal["path", "virtual"]


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is and who asks.

    endpoint: https://host[:port]; http:// is for this machine and for networks that are trusted with every byte.
    "" means AWS. prefix: names of objects begin with it, and "/". ca_file: a PEM file with the certificates that
    are trusted beside the system's. Credentials come by boto3's chain: environment, ~/.aws, instance;
    aws_profile: a section of ~/.aws/credentials and ~/.aws/config; credentials_file: another file of that form,
    whose section aws_profile (or "default") is used.
    """

    endpoint: str
    bucket: str
    prefix: str = ""
    region: str = ""
    addressing: Addressing = "path"
    aws_profile: str = ""
    credentials_file: str = ""
    ca_file: str = ""
