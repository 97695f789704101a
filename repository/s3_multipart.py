"""Multipart uploads: a long object goes in parts, several at a time, each repeated alone if it must be."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from grange.repository.errors import StoreError
from grange.repository.retries import Retries
from grange.repository.s3_session import S3Session
from grange.repository.source import CHUNK_BYTES, Content, Readable
from grange.repository.team import Team

PART_BYTES = 8 << 20
# So many parts at once, each in memory, while they are of PART_BYTES; fewer of longer ones.
_PARTS_AT_ONCE = 5
# S3's own limit is 10,000 parts: after so many the next ones are twice as long, up to 128 MiB for 496 GiB.
_PARTS_OF_A_SIZE = 2_000
# What one request may copy is 5 GiB on AWS.
COPIED_AT_ONCE_BYTES = 4 << 30


class Multipart:
    """One upload in parts. What is left of it if the process is killed, no object shows."""

    def __init__(self, session: S3Session, name: str, key: str, retries: Retries) -> None:
        self._session = session
        self._name = name
        self._where = {"Bucket": session.settings.bucket, "Key": key}
        self._retries = retries

    def put(self, parts: Iterator[Content], if_absent: bool) -> bool:
        """Make an object of parts; False if there was one and the server says so.

        if_absent: ask the server to refuse a second object of the name.

        Errors: StoreUnavailable, of a part that has been tried often enough; StoreReadOnly, StoreFull; what
        reading the parts raises. Nothing is left of the upload then.
        """
        upload = self._ask("create_multipart_upload")["UploadId"]
        try:
            tags = self._send(upload, parts)
            return self._complete(upload, tags, if_absent)
        except BaseException:
            self._abort(upload)
            raise

    def copy_onto_itself(self, size: int) -> None:
        """Make an object anew of its own bytes, on the server."""
        upload = self._ask("create_multipart_upload")["UploadId"]
        try:
            tags = []
            for number, offset in enumerate(range(0, size, COPIED_AT_ONCE_BYTES), 1):
                answer = self._ask(
                    "upload_part_copy",
                    UploadId=upload,
                    PartNumber=number,
                    CopySource=self._where,
                    CopySourceRange=f"bytes={offset}-{min(offset + COPIED_AT_ONCE_BYTES, size) - 1}",
                )
                tags.append(answer["CopyPartResult"]["ETag"])
            self._complete(upload, tags, if_absent=False)
        except BaseException:
            self._abort(upload)
            raise

    def _send(self, upload: str, parts: Iterator[Content]) -> list[str]:
        under_way: deque[Future[str]] = deque()
        tags: list[str] = []

        def send(number: int, part: Content) -> str:
            answer = self._ask("upload_part", UploadId=upload, PartNumber=number, Body=part)
            return str(answer["ETag"])

        with Team(_PARTS_AT_ONCE) as team:
            for number, part in enumerate(parts, 1):
                at_once = max(1, _PARTS_AT_ONCE * PART_BYTES // max(len(part), PART_BYTES))
                while len(under_way) >= at_once:
                    tags.append(under_way.popleft().result())
                under_way.append(team.start(lambda number=number, part=part: send(number, part)))  # type: ignore[misc]
            while under_way:
                tags.append(under_way.popleft().result())
        return tags

    def _complete(self, upload: str, tags: list[str], if_absent: bool) -> bool:
        parts = {"Parts": [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]}
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        tries = 0

        def complete() -> bool:
            nonlocal tries
            tries += 1
            from botocore.exceptions import ClientError

            with self._session.told("write", self._name):
                try:
                    self._session.boto.complete_multipart_upload(
                        **self._where, UploadId=upload, MultipartUpload=parts, **condition
                    )
                except ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code in ("PreconditionFailed", "412"):
                        self._abort(upload)
                        return False
                    # The answer to an earlier try was lost, and that one has done it.
                    if code != "NoSuchUpload" or tries == 1:
                        raise
            return True

        return self._retries.run(complete)

    def _abort(self, upload: str) -> None:
        with suppress(StoreError):
            self._ask_once("abort_multipart_upload", UploadId=upload)

    def _ask(self, operation: str, **arguments: Any) -> Any:
        return self._retries.run(lambda: self._ask_once(operation, **arguments))

    def _ask_once(self, operation: str, **arguments: Any) -> Any:
        with self._session.told("write", self._name):
            return getattr(self._session.boto, operation)(**self._where, **arguments)


def parts_of(file: Readable) -> Iterator[bytearray]:
    """Cut what a file gives into parts."""
    number = 0
    while True:
        size = _part_size(number)
        part = bytearray()
        while len(part) < size and (more := file.read(min(CHUNK_BYTES, size - len(part)))):
            part += more
        if not part:
            return
        yield part
        number += 1


def slices_of(content: memoryview) -> Iterator[bytearray]:
    """Cut into parts what is in memory already."""
    number = 0
    while content:
        size = _part_size(number)
        yield bytearray(content[:size])
        content = content[size:]
        number += 1


def _part_size(number: int) -> int:
    return PART_BYTES << (number // _PARTS_OF_A_SIZE)
