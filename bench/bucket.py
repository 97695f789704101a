"""A bucket of a real S3 server for benches: the test object store, a Ceph RGW on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import object_store  # noqa: E402 - it lies among the tests

from grange.repository.s3_settings import S3Settings  # noqa: E402


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket. Its keys are in settings.credentials_file, and nowhere else."""

    server: object_store.ObjectStore
    settings: S3Settings

    @property
    def environment(self) -> dict[str, str]:
        """For processes that ask it by boto3, as for instance this bench's peers."""
        return {**os.environ, "AWS_SHARED_CREDENTIALS_FILE": self.settings.credentials_file}

    def profile_text(self, cache_gb: float = 0.0) -> str:
        """A profile.toml whose files are in the bucket."""
        table = self.settings.to_table()
        lines = [
            f"{key} = {str(value).lower() if value is True else repr(value)}" for key, value in table.items()
        ]
        return "\n".join([f"cache_gb = {cache_gb}", "[store]", *lines, ""])


@contextlib.contextmanager
def open_bucket() -> Iterator[Bucket]:
    """A server of this bench's own with a bucket; it ends with the block."""
    with object_store.shared() as server:
        yield Bucket(server, server.settings(server.new_bucket()))
