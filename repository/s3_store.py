"""A bucket of an S3-compatible server as a store."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grange.repository.begun_file import BegunFile
from grange.repository.errors import ObjectMissing, ObjectNameInvalid, StoreError
from grange.repository.object_name import BLOBS, PACKS, check_name, check_prefix
from grange.repository.ranges import merge
from grange.repository.retries import Retries
from grange.repository.s3_error import failure_of
from grange.repository.s3_multipart import COPIED_AT_ONCE_BYTES, Multipart, parts_of, slices_of
from grange.repository.s3_session import S3Session
from grange.repository.s3_settings import S3Settings
from grange.repository.scratch import scratch_file, sweep
from grange.repository.source import CHUNK_BYTES, Content, Source
from grange.repository.store import Contents, ObjectInfo, Range

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import S3Store as Client

#: What is longer goes in parts: one PUT is in memory whole, and begins again whole.
SINGLE_PUT_BYTES = 40 << 20
# So much of a file of unknown length is read to see whether it is short.
_LOOKED_AT_BYTES = 8 << 20
# What is longer may take longer.
_SHORT_BYTES = 4 << 20
# A name that begins with a dot is not one of an object: never listed, never read.
_PROBE = ".grange-probe"
_LISTED_AT_ONCE = 1000
_LONGEST_SIGNED_S = 7 * 24 * 3600
_LEFTOVER_AGE_S = 3600.0
_UNBOUNDED = 1 << 62
# A copy may have begun a while before its answer.
_YOUNG_S = 60.0

Urls = list[str]


class S3Store:
    """A bucket, or what begins with a prefix in it.

    Objects of up to 40 MiB go by one PUT that the server refuses if the name is taken (If-None-Match). Longer
    ones go in parts, a few of them in memory at a time, each repeated alone as `retries` says; then of many
    who put the same name at once more than one may be told True where the server does not look at the end of
    a multipart upload (Ceph). A server that knows no If-None-Match at all is found out before the first put;
    there a HEAD goes first. Both are harmless: a name is random or says what the content is.

    Every request that carries bytes carries their SHA-256 (SigV4), which the server checks.

    Nothing is asked of the server before the first call. Many threads may share a store. After a fork it
    refuses to work where the parent has used it.

    Errors, beside those of Store: StoreError with what to mend for credentials, clocks, buckets, regions,
    certificates, host names; at once, for asking again is of no use.
    """

    # Of many at once a request costs Ceph on this machine 0.5 ms, in which it gives 250 KiB more. A server
    # that is ten times as far and as slow comes to the same.
    merge_gap_bytes = 256 << 10
    parallel = 16

    def __init__(
        self, settings: S3Settings, retries: Retries | None = None, scratch_folder: Path | None = None
    ) -> None:
        self.settings = settings
        self.retries = Retries() if retries is None else retries
        self._session = S3Session(settings)
        self._scratch_folder = scratch_folder
        self._lock = threading.Lock()
        self._refuses_second: bool | None = None
        self._bucket_seen = False
        self._deletes_many = True
        self._swept = False

    def __repr__(self) -> str:
        return f"S3Store({self.settings})"

    def __str__(self) -> str:
        return str(self.settings)

    def put_if_absent(self, name: str, source: Source) -> bool:
        check_name(name)
        if isinstance(source, Path):
            with source.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > SINGLE_PUT_BYTES:
                    return self._put_parts(name, parts_of(file))
                return self._put_single(name, memoryview(file.readall()))
        if isinstance(source, bytes | bytearray | memoryview):
            content = memoryview(source).cast("B")
            if len(content) > SINGLE_PUT_BYTES:
                return self._put_parts(name, slices_of(content))
            return self._put_single(name, content)
        begun = BegunFile(source, _LOOKED_AT_BYTES)
        if begun.ended:
            return self._put_single(name, memoryview(begun.content()))
        return self._put_parts(name, parts_of(begun))

    def _put_single(self, name: str, content: memoryview) -> bool:
        if not self._refuses(name):
            if self.head(name) is not None and self._rejuvenate(name):
                return False
            self._put(name, content, if_absent=False)
            return True
        while not self._put(name, content, if_absent=True):
            if self._rejuvenate(name):
                return False
        return True

    def _put_parts(self, name: str, parts: Iterator[Content]) -> bool:
        if self.head(name) is not None and self._rejuvenate(name):
            return False
        upload = Multipart(self._session, name, self._key(name), self.retries)
        if upload.put(parts, if_absent=self._refuses(name)):
            return True
        self._rejuvenate(name)
        return False

    def _put(self, name: str, content: memoryview, if_absent: bool, told_of: str = "") -> bool:
        """One PUT; False if the name is taken."""
        with self._session.told("write", told_of or name):
            import obstore
            from obstore.exceptions import AlreadyExistsError

            try:
                obstore.put(
                    self._session.writer if len(content) <= _SHORT_BYTES else self._session.slow_writer,
                    name,
                    content,
                    mode="create" if if_absent else "overwrite",
                    use_multipart=False,
                )
            except AlreadyExistsError:
                return False
        return True

    def refuses_second(self) -> bool:
        """Whether the server refuses a second object of a name: of many who put it one is told True."""
        return self._refuses(_PROBE)

    def try_parts(self, name: str, content: bytes) -> bool:
        """As put_if_absent(), in parts however short it is: to see whether the server lets us."""
        return self._put_parts(check_name(name), slices_of(memoryview(content)))

    def _refuses(self, name: str) -> bool:
        """Whether the server refuses a second object of a name when it is asked to: tried out once.

        name: of the object that is put, which an error is about.
        """
        if self._refuses_second is None:
            with self._lock:
                if self._refuses_second is None:
                    self._refuses_second = self._probe(name)
        return self._refuses_second

    def _probe(self, name: str) -> bool:
        content = memoryview(b"grange was here: does this server refuse a second object of a name?\n")
        try:
            return not all(self._put(_PROBE, content, if_absent=True, told_of=name) for _ in range(2))
        except StoreError as error:
            if failure_of(error).code not in ("NotImplemented", "InvalidArgument"):
                raise
            return False

    def _rejuvenate(self, name: str) -> bool:
        """Make the age of an object begin anew; False if there is none, after all.

        Each step is tried again by itself: a put whose answer was lost comes by here, too.
        """
        key = self._key(name)
        size = self.retries.run(lambda: self.head(name))
        if size is None:
            return False
        try:
            if size > COPIED_AT_ONCE_BYTES or not self.retries.run(lambda: self._copy_onto_itself(name, key)):
                if size:
                    Multipart(self._session, name, key, self.retries).copy_onto_itself(size)
                else:
                    self.retries.run(lambda: self._put(name, memoryview(b""), if_absent=False))
        except ObjectMissing:
            return False
        return True

    def _copy_onto_itself(self, name: str, key: str) -> bool:
        """One request; False where the server leaves the age as it was, as some versions of MinIO do."""
        place = {"Bucket": self.settings.bucket, "Key": key}
        with self._session.told("copy", name):
            # Servers refuse to copy onto itself what would not change; its metadata are set anew.
            answer = self._session.boto.copy_object(**place, CopySource=place, MetadataDirective="REPLACE")
        return _is_young(answer)

    def adopt(self, name: str, path: Path) -> bool:
        return self.put_if_absent(name, path)

    def scratch(self, chunks: Iterable[Content]) -> AbstractContextManager[Path]:
        folder = self._scratch_folder or _scratch_folder()
        if not self._swept:
            self._swept = True
            sweep(folder, _LEFTOVER_AGE_S)
        return scratch_file(folder, chunks)

    def sweep(self, older_than_s: float) -> int:
        """Abort uploads in parts that killed writers left, and remove their scratch files; says how many.

        An upload has no lock: call it while nobody puts.
        Units: older_than_s in seconds, since the upload was begun or the file was last written to.
        """
        count = sweep(self._scratch_folder or _scratch_folder(), older_than_s)
        limit = time.time() - older_than_s
        for prefix in (PACKS, BLOBS):
            with self._session.told("list"):
                pages = self._session.boto.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self.settings.bucket, Prefix=self._key(prefix)
                )
                uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            for upload in uploads:
                if upload["Initiated"].timestamp() <= limit:
                    with suppress(ObjectMissing), self._session.told("delete", upload["Key"]):
                        self._session.boto.abort_multipart_upload(
                            Bucket=self.settings.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        count += 1
        return count

    def get_ranges(self, name: str, ranges: Sequence[Range]) -> Contents:
        check_name(name)
        if not ranges:
            return []
        wanted = sorted({(offset, length) for offset, length in ranges if length > 0})
        if not wanted:
            if self.head(name) is None:
                raise ObjectMissing(name, str(self.settings))
            return [b""] * len(ranges)
        # Those that touch are one: the library would cut them apart, and fall over what is not there.
        merged = merge(wanted, 0, _UNBOUNDED)
        pieces = dict(zip(wanted, _cut(wanted, merged, self._get_apart(name, merged)), strict=True))
        return [pieces.get(wanted_range, b"") for wanted_range in ranges]

    def _get_apart(self, name: str, ranges: list[Range]) -> Contents:
        """Ranges that do not touch."""
        import obstore

        if len(ranges) > 1:
            try:
                with self._session.told("read", name):
                    parts = obstore.get_ranges(
                        self._session.reader,
                        name,
                        starts=[offset for offset, _ in ranges],
                        lengths=[length for _, length in ranges],
                        coalesce=0,
                    )
                    return [bytes(part) for part in parts]
            except StoreError as error:
                if not _begins_past_end(error):
                    raise
        return [self._get_range(name, offset, length) for offset, length in ranges]

    def _get_range(self, name: str, offset: int, length: int) -> bytes:
        import obstore

        try:
            with self._session.told("read", name):
                return bytes(obstore.get_range(self._session.reader, name, start=offset, length=length))
        except StoreError as error:
            if _begins_past_end(error):
                return b""
            raise

    def read(self, name: str) -> Iterator[bytes]:
        return self._read(check_name(name))

    def _read(self, name: str) -> Iterator[bytes]:
        import obstore

        with self._session.told("read", name):
            answer: GetResult = obstore.get(self._session.reader, name)
            pieces = iter(answer.stream(min_chunk_size=CHUNK_BYTES))
        while True:
            with self._session.told("read", name):
                piece = bytes(next(pieces, b""))
            if not piece:
                return
            for offset in range(0, len(piece), CHUNK_BYTES):
                yield piece[offset : offset + CHUNK_BYTES]

    def head(self, name: str) -> int | None:
        check_name(name)
        import obstore

        try:
            with self._session.told("look up", name):
                size: int = obstore.head(self._session.reader, name)["size"]
        except ObjectMissing:
            self._see_bucket(name)
            return None
        except StoreError as error:
            if failure_of(error).status == 403:
                self._get_range(name, 0, 1)  # it says why
            raise
        self._bucket_seen = True
        return size

    def _see_bucket(self, name: str) -> None:
        """A HEAD has no body, so it does not say whether there is a bucket at all."""
        if not self._bucket_seen:
            with suppress(ObjectMissing):
                self._get_range(name, 0, 1)
            self._bucket_seen = True

    def delete(self, names: Iterable[str]) -> None:
        all_names = [check_name(name) for name in names]
        if not all_names:
            return
        if self._deletes_many:
            try:
                self._delete(self._session.writer, all_names)
                return
            except StoreError as error:
                # Some servers do not know how; Ceph wants a right to the whole bucket for it.
                if failure_of(error).code not in ("AccessDenied", "NotImplemented", "MethodNotAllowed"):
                    raise
        self._delete(self._session.deleter, all_names)
        self._deletes_many = False

    def _delete(self, client: Client, names: Sequence[str]) -> None:
        with self._session.told("delete", names[0]):
            import obstore

            obstore.delete(client, names)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._list(check_prefix(prefix), None)

    def list_after(self, prefix: str, name: str) -> Iterator[ObjectInfo]:
        """As list(prefix), but only the objects whose names come after one; in the order of the names."""
        return self._list(check_prefix(prefix), check_name(name))

    def _list(self, prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        import obstore

        # The library lists folders.
        folder = prefix[: prefix.rfind("/") + 1]
        with self._session.told("list"):
            chunks = iter(
                obstore.list(self._session.reader, folder or None, offset=after, chunk_size=_LISTED_AT_ONCE)
            )
        while True:
            with self._session.told("list"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            for found in chunk:
                name = found["path"]
                if name.startswith(prefix) and _is_name(name):
                    yield ObjectInfo(name, found["size"], found["last_modified"].timestamp())

    def sign_get(self, names: Sequence[str], expires_s: float) -> Urls:
        paths = _signable(names, expires_s)
        if not paths:
            return []
        with self._session.told("look up"):
            import obstore

            signer = self._session.reader
            return Urls(obstore.sign(signer, "GET", paths, timedelta(seconds=int(expires_s))))

    def sign_put(self, names: Sequence[str], expires_s: float) -> Urls:
        """As Signer has it. The header is signed too: who leaves it out is refused, and so nothing that is
        there can be replaced."""
        paths = _signable(names, expires_s)
        with self._session.told("look up"):
            sign = self._session.boto.generate_presigned_url
            bucket = self.settings.bucket
            return [
                str(
                    sign(
                        "put_object",
                        Params={"Bucket": bucket, "Key": self._key(path), "IfNoneMatch": "*"},
                        ExpiresIn=int(expires_s),
                    )
                )
                for path in paths
            ]

    def _key(self, name: str) -> str:
        return f"{self.settings.prefix}/{name}" if self.settings.prefix else name


def _signable(names: Sequence[str], expires_s: float) -> list[str]:
    """Names that URLs may be signed for. Errors: ObjectNameInvalid, StoreError."""
    if not 1 <= expires_s <= _LONGEST_SIGNED_S:
        raise StoreError(f"a signed URL is good for 1 second to 7 days, not for {expires_s:g} s")
    return [check_name(name) for name in names]


def _cut(wanted: Sequence[Range], merged: Sequence[Range], pieces: Contents) -> Iterator[bytes]:
    at = 0
    for offset, length in wanted:
        while offset >= merged[at][0] + merged[at][1]:
            at += 1
        start = offset - merged[at][0]
        whole = start == 0 and length == merged[at][1]
        yield pieces[at] if whole else pieces[at][start : start + length]


def _is_young(answer: Mapping[str, Any]) -> bool:
    """Whether a copy is of now, by the server's own clock."""
    made = answer.get("CopyObjectResult", {}).get("LastModified")
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if made is None or date is None:
        return True
    return bool((parsedate_to_datetime(date) - made).total_seconds() < _YOUNG_S)


def _begins_past_end(error: StoreError) -> bool:
    return failure_of(error).status == 416


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ObjectNameInvalid:
        return False
    return True


def _scratch_folder() -> Path:
    """Where large files may lie: /tmp is often memory."""
    if os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK | os.X_OK):  # noqa: S108
        return Path(tempfile.gettempdir())
    return Path("/var/tmp")  # noqa: S108
