"""Access keys of MinIO that open one bucket only: its own administration, which S3 has not."""

from __future__ import annotations

import json
import re
import secrets
import string
from urllib.parse import urlsplit

from grange.repository.errors import StoreError, StoreUnavailable
from grange.repository.s3_bucket import rights
from grange.repository.s3_session import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, S3Session


def make_keys(session: S3Session) -> tuple[str, str]:
    """Have MinIO make an access key that may do what grange needs in the bucket, and nothing else.

    The key belongs to the account that we are, and ends with it. Returns the access key and its secret.

    Errors: StoreError where the server is not MinIO or we may not; StoreUnavailable.
    """
    import urllib3
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider
    from minio.error import MinioAdminException

    settings = session.settings
    url = urlsplit(session.boto.meta.endpoint_url)
    ours = session.credentials.get_frozen_credentials()
    trusted = session.trusted_file() if url.scheme == "https" else None
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=ANSWER_TIMEOUT_S),
        retries=False,
        cert_reqs="CERT_REQUIRED",
        ca_certs=trusted,
    )
    administration = MinioAdmin(
        endpoint=url.netloc,
        credentials=StaticProvider(ours.access_key or "", ours.secret_key or "", ours.token),
        region=session.region,
        secure=url.scheme == "https",
        http_client=pool,
    )
    access = "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(20))
    secret = secrets.token_urlsafe(30)
    cannot = f"cannot make keys for bucket {settings.bucket} at {settings.endpoint}"
    try:
        administration.add_service_account(
            access_key=access,
            secret_key=secret,
            name=f"grange-{settings.bucket}"[:32],
            policy=rights(settings),
        )
    except MinioAdminException as error:
        raise StoreError(f"{cannot}: {_said(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        raise StoreUnavailable(f"{cannot}: {error}") from error
    except ValueError as error:  # what it answered is not encrypted with our secret key
        raise StoreError(f"{cannot}: its answer cannot be read; is it MinIO?") from error
    return access, secret


def _said(error: Exception) -> str:
    """What MinIO answered; another server answers in XML or not at all."""
    parts = re.search(r"Status: (\d+), Body: (.*)", str(error), re.DOTALL)
    status, body = parts.groups() if parts else ("?", "")
    try:
        found = json.loads(body)
        return f"{found['Message']} ({found['Code']})"
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}: the server has not MinIO's administration, or this user may not use it"
