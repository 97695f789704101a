"""A bucket and its settings: what there is, what is wanted, and the steps between."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from grange.repository.errors import StoreError
from grange.repository.s3_error import S3Failure, failure_of
from grange.repository.s3_session import S3Session
from grange.repository.s3_settings import S3Settings

#: An upload in parts that has not ended after so many days has lost its writer.
ABORTED_AFTER_DAYS = 7
_ABORT_RULE = "grange: uploads that never ended"
_VERSIONS_RULE = "grange: versions that were replaced or deleted"
_TLS_STATEMENT = "GrangeOnlyByTLS"
_EVERYBODY = frozenset(
    {
        "http://acs.amazonaws.com/groups/global/AllUsers",
        "http://acs.amazonaws.com/groups/global/AuthenticatedUsers",
    }
)
_OBJECT_ACTIONS = (
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)
_BUCKET_ACTIONS = ("s3:GetBucketLocation", "s3:ListBucket", "s3:ListBucketMultipartUploads")


@dataclass(frozen=True, slots=True)
class BucketState:
    """What is known of a bucket.

    server: how the server calls itself. minio: whether it is MinIO, which aborts uploads by itself.
    versioned: whether deleted and replaced objects go on to be kept. locked: whether objects cannot be
    deleted for a time. public: whether people without credentials may read or write. Where the server or our
    rights do not allow to look, a thing counts as not set.
    """

    exists: bool
    server: str = ""
    minio: bool = False
    versioned: bool = False
    locked: bool = False
    public: bool = False
    aborts_uploads: bool = False
    expires_versions: bool = False
    only_by_tls: bool = False


@dataclass(frozen=True, slots=True)
class BucketWishes:
    """What a bucket should be like, beside that it is there and uploads that never ended are aborted.

    version_days: of a bucket with versions, how long those that were replaced or deleted are kept; 0: as it
    is. only_by_tls: refuse requests that come without TLS.
    """

    version_days: int = 0
    only_by_tls: bool = False


@dataclass(frozen=True, slots=True)
class CreateBucket:
    def __str__(self) -> str:
        return "make the bucket, for this account alone"


@dataclass(frozen=True, slots=True)
class AbortUploads:
    def __str__(self) -> str:
        return f"have the server abort uploads that have not ended after {ABORTED_AFTER_DAYS} days"


@dataclass(frozen=True, slots=True)
class ExpireVersions:
    days: int

    def __str__(self) -> str:
        return f"have the server remove versions {self.days} days after they were replaced or deleted"


@dataclass(frozen=True, slots=True)
class RequireTls:
    def __str__(self) -> str:
        return "have the server refuse objects to whoever asks without TLS"


Step = CreateBucket | AbortUploads | ExpireVersions | RequireTls


def look_at(session: S3Session) -> BucketState:
    """What there is.

    Errors: StoreUnavailable; StoreError where it cannot be said whether there is a bucket.
    """
    asked: dict[str, Any] = {"Bucket": session.settings.bucket}
    try:
        with session.told("list"):
            answer = session.boto.list_objects_v2(**asked, MaxKeys=1)
    except StoreError as error:
        failure = failure_of(error)
        if failure.code != "NoSuchBucket":
            raise
        return BucketState(exists=False, server=failure.server, minio=_is_minio(failure.server))
    server = answer["ResponseMetadata"]["HTTPHeaders"].get("server", "")
    rules = _rules(session)
    return BucketState(
        exists=True,
        server=server,
        minio=_is_minio(server),
        versioned=_asked(session, "get_bucket_versioning").get("Status") == "Enabled",
        locked=_asked(session, "get_object_lock_configuration")
        .get("ObjectLockConfiguration", {})
        .get("ObjectLockEnabled")
        == "Enabled",
        public=_is_public(session),
        aborts_uploads=any(_aborts(rule, session.settings) for rule in rules),
        expires_versions=any("NoncurrentVersionExpiration" in rule for rule in rules),
        only_by_tls=any(statement.get("Sid") == _TLS_STATEMENT for statement in _statements(session)),
    )


def plan(state: BucketState, wishes: BucketWishes) -> list[Step]:
    """The steps from what there is to what is wanted; what others have set stays."""
    steps: list[Step] = []
    if not state.exists:
        steps.append(CreateBucket())
    # MinIO takes such a rule and forgets it, or refuses it: its server aborts them after a day by itself.
    if not state.aborts_uploads and not state.minio:
        steps.append(AbortUploads())
    if wishes.version_days and state.versioned and not state.expires_versions:
        steps.append(ExpireVersions(wishes.version_days))
    if wishes.only_by_tls and not state.only_by_tls:
        steps.append(RequireTls())
    return steps


def execute(session: S3Session, step: Step) -> None:
    """Make a step. It may be made again.

    Errors: StoreUnavailable; StoreReadOnly, StoreError where the server refuses it.
    """
    settings = session.settings
    below = f"{settings.prefix}/" if settings.prefix else ""
    if isinstance(step, CreateBucket):
        _create(session)
    elif isinstance(step, RequireTls):
        _put_statement(session, _only_by_tls(settings))
    elif isinstance(step, AbortUploads):
        _put_rule(
            session,
            {
                "ID": _ABORT_RULE,
                "Status": "Enabled",
                "Filter": {"Prefix": below},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORTED_AFTER_DAYS},
            },
        )
    else:
        _put_rule(
            session,
            {
                "ID": _VERSIONS_RULE,
                "Status": "Enabled",
                "Filter": {"Prefix": below},
                "NoncurrentVersionExpiration": {"NoncurrentDays": step.days},
            },
        )


def rights(settings: S3Settings) -> dict[str, object]:
    """The least that grange needs, as a policy: of IAM, and of MinIO."""
    bucket = f"arn:aws:s3:::{settings.bucket}"
    objects = f"{bucket}/{settings.prefix}/*" if settings.prefix else f"{bucket}/*"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": list(_BUCKET_ACTIONS), "Resource": [bucket]},
            {"Effect": "Allow", "Action": list(_OBJECT_ACTIONS), "Resource": [objects]},
        ],
    }


def _create(session: S3Session) -> None:
    asked: dict[str, Any] = {"Bucket": session.settings.bucket}
    host = urlsplit(session.boto.meta.endpoint_url).hostname or ""
    # Other servers know their own region, under whatever name.
    if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) and session.region != "us-east-1":
        asked["CreateBucketConfiguration"] = {"LocationConstraint": session.region}
    try:
        with session.told("set up"):
            session.boto.create_bucket(**asked)
    except StoreError as error:
        code = failure_of(error).code
        if code == "BucketAlreadyExists":
            raise StoreError(
                f"cannot make bucket {session.settings.bucket} at {session.settings.endpoint or 'AWS'}: "
                "somebody else has one of this name; choose another name"
            ) from error
        if code != "BucketAlreadyOwnedByYou":
            raise


def _put_rule(session: S3Session, rule: dict[str, Any]) -> None:
    rules = [kept for kept in _rules(session) if kept.get("ID") != rule["ID"]]
    with session.told("set up"):
        session.boto.put_bucket_lifecycle_configuration(
            Bucket=session.settings.bucket, LifecycleConfiguration={"Rules": [*rules, rule]}
        )
    if not any(kept.get("ID") == rule["ID"] for kept in _rules(session)):
        raise StoreError(
            f"bucket {session.settings.bucket} at {session.settings.endpoint or 'AWS'} has not kept the rule "
            f'"{rule["ID"]}": the server knows no such rules; have its operator see to it'
        )


def _put_statement(session: S3Session, statement: dict[str, Any]) -> None:
    statements = [kept for kept in _statements(session) if kept.get("Sid") != statement["Sid"]]
    policy = {"Version": "2012-10-17", "Statement": [*statements, statement]}
    with session.told("set up"):
        session.boto.put_bucket_policy(Bucket=session.settings.bucket, Policy=json.dumps(policy))


def remove_tls_statement(session: S3Session) -> None:
    """Take back RequireTls, where the server does not see that we come by TLS."""
    statements = [kept for kept in _statements(session) if kept.get("Sid") != _TLS_STATEMENT]
    with session.told("set up"):
        if statements:
            policy = {"Version": "2012-10-17", "Statement": statements}
            session.boto.put_bucket_policy(Bucket=session.settings.bucket, Policy=json.dumps(policy))
        else:
            session.boto.delete_bucket_policy(Bucket=session.settings.bucket)


def _only_by_tls(settings: S3Settings) -> dict[str, Any]:
    """Of objects only: the policy itself can still be taken back by whoever locks himself out."""
    return {
        "Sid": _TLS_STATEMENT,
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": [f"arn:aws:s3:::{settings.bucket}/*"],
        "Condition": {"BoolIfExists": {"aws:SecureTransport": "false"}},
    }


def _rules(session: S3Session) -> list[dict[str, Any]]:
    return list(_asked(session, "get_bucket_lifecycle_configuration").get("Rules", []))


def _aborts(rule: dict[str, Any], settings: S3Settings) -> bool:
    if rule.get("Status") != "Enabled" or "AbortIncompleteMultipartUpload" not in rule:
        return False
    found = rule.get("Filter", {})
    if set(found) - {"Prefix"}:  # only what has a tag or a size
        return False
    prefix: str = found.get("Prefix", rule.get("Prefix", ""))
    return (f"{settings.prefix}/" if settings.prefix else "").startswith(prefix)


def _statements(session: S3Session) -> list[dict[str, Any]]:
    policy = _asked(session, "get_bucket_policy").get("Policy")
    statements = json.loads(policy).get("Statement", []) if policy else []
    return [statements] if isinstance(statements, dict) else list(statements)


def _is_public(session: S3Session) -> bool:
    status = _asked(session, "get_bucket_policy_status").get("PolicyStatus", {})
    grants = _asked(session, "get_bucket_acl").get("Grants", [])
    return bool(status.get("IsPublic")) or any(
        grant.get("Grantee", {}).get("URI") in _EVERYBODY for grant in grants
    )


def _asked(session: S3Session, operation: str) -> dict[str, Any]:
    """What a server says; nothing where nothing is set, we may not look, or it does not know the question."""
    try:
        with session.told("look up"):
            answer: dict[str, Any] = getattr(session.boto, operation)(Bucket=session.settings.bucket)
            return answer
    except StoreError as error:
        if not _is_no(failure_of(error)):
            raise
        return {}


def _is_no(failure: S3Failure) -> bool:
    return failure.status in (400, 403, 404, 405, 501) and failure.code not in ("RequestTimeout", "SlowDown")


def _is_minio(server: str) -> bool:
    return server.lower().startswith("minio")
