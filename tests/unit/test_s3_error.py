"""Answers of servers that are not here, and what they become."""

from __future__ import annotations

import errno
import os

import pytest
from botocore.exceptions import EndpointConnectionError

from grange.repository.errors import (
    ObjectMissing,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from grange.repository.s3_error import Action, S3Failure, failure_of_boto, failure_of_obstore, store_error
from grange.repository.s3_settings import S3Settings

SETTINGS = S3Settings("https://s3.example.org", "ada-files")


def error_of(status: int, code: str, action: Action = "write") -> StoreError:
    return store_error(S3Failure("answer", status, code, "what it says"), SETTINGS, action, "packs/a")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (503, "ServiceUnavailable"),
        (503, "XMinioServerNotInitialized"),
        (503, "SlowDownWrite"),
        (500, "InternalError"),
        (502, ""),
        (504, ""),
        (429, ""),
        (429, "TooManyRequests"),
        (408, ""),
        (400, "RequestTimeout"),
        (400, "IncompleteBody"),
        (400, "BadDigest"),
        (409, "OperationAborted"),
        (409, "ConditionalRequestConflict"),
        (200, "InternalError"),  # AWS says so at the end of an upload in parts
        (404, "NoSuchUpload"),
    ],
)
def test_what_passes_is_worth_another_try(status: int, code: str) -> None:
    error = error_of(status, code)
    assert isinstance(error, StoreUnavailable)
    assert "cannot write packs/a in bucket ada-files at https://s3.example.org: " in str(error)


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (507, "XMinioStorageFull", StoreFull, "no space is left (XMinioStorageFull: what it says)"),
        (400, "XMinioAdminBucketQuotaExceeded", StoreFull, "quota"),
        (403, "QuotaExceeded", StoreFull, "quota"),
        (507, "", StoreFull, "no space is left"),
        (403, "AccessDenied", StoreReadOnly, "right to write and delete objects"),
        (200, "AccessDenied", StoreReadOnly, "right to write and delete objects"),  # of one of many deletions
        (403, "", StoreReadOnly, "HTTP status 403"),
        (401, "", StoreReadOnly, "HTTP status 401"),
        (403, "RequestTimeTooSkewed", StoreError, "the clocks of this machine and of the server differ"),
        (400, "ExpiredToken", StoreError, "the credentials have expired (ExpiredToken)"),
        (400, "AuthorizationHeaderMalformed", StoreError, "in another region"),
        (301, "PermanentRedirect", StoreError, "in another region"),
        (301, "", StoreError, "in another region"),
        (404, "NoSuchBucket", StoreError, "there is no such bucket"),
        (501, "NotImplemented", StoreError, "NotImplemented: what it says"),
        (404, "NoSuchKey", ObjectMissing, "no object packs/a in s3://ada-files at https://s3.example.org"),
        (405, "", StoreError, "which is not how an S3 server answers"),
        (400, "EntityTooLarge", StoreError, "EntityTooLarge"),
    ],
)
def test_what_does_not_pass_ends_at_once(status: int, code: str, kind: type[StoreError], said: str) -> None:
    error = error_of(status, code)
    assert type(error) is kind
    assert said in str(error)


def test_whose_credentials_they_were_is_said() -> None:
    failure = S3Failure("answer", 403, "SignatureDoesNotMatch")
    said = str(store_error(failure, SETTINGS, "read", "a", "the environment"))
    assert said.endswith("correct the credentials, which came from the environment")


def test_only_a_head_may_say_missing_without_a_word() -> None:
    assert isinstance(error_of(404, "", "look up"), ObjectMissing)
    assert type(error_of(404, "", "read")) is StoreError
    assert type(error_of(404, "NoSuchBucket", "look up")) is StoreError


def test_what_obstore_says_is_read_by_its_structure() -> None:
    head = "Generic S3 error: Error performing GET https://s3.example.org/ada-files/SlowDown"
    debug = 'Debug source:\nGeneric {\n store: "S3",\n source: RetryError(\n inner: '
    status = 'Status {\n status: 503,\n body: Some("<Error><Code>SlowDown</Code><Message>a &amp; b</Message>"'
    assert failure_of_obstore(Exception(f"{head}\n\n{debug}{status}")) == S3Failure(
        "answer", 503, "SlowDown", "a & b"
    )
    for kind, cause in (("Timeout", "timeout"), ("Request", "connection"), ("Interrupted", "connection")):
        text = f"{head}\n\n{debug}Http(\n HttpError {{\n kind: {kind},\n source: reqwest::Error"
        assert failure_of_obstore(Exception(text)).cause == cause
    failed = 'DeleteFailed { path: "a", code: "AccessDenied", message: "Access Denied" }'
    assert failure_of_obstore(Exception(f"{head}\n\n{debug}{failed}")).code == "AccessDenied"
    assert failure_of_obstore(Exception("something else\n\nDebug source:\nX")) == S3Failure(
        "unknown", said="something else"
    )


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNRESET])
def test_a_connection_that_boto_cannot_make_may_be_made_later(number: int) -> None:
    why = OSError(number, os.strerror(number))
    failure = failure_of_boto(EndpointConnectionError(endpoint_url="https://s3.example.org", error=why))
    assert failure.cause == "connection"
    assert os.strerror(number) in failure.said
    assert isinstance(store_error(failure, SETTINGS, "copy", "packs/a"), StoreUnavailable)
