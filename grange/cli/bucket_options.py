"""What names a bucket on the command line: options, and questions for what is missing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from grange.repository.s3_settings import S3Settings

#: Option, key of the table [store], type, help.
_OPTIONS: tuple[tuple[str, str, Any, str], ...] = (
    ("--endpoint", "endpoint", str, 'Of the server: https://host[:port]; "" for AWS.'),
    ("--bucket", "bucket", str, "Its name."),
    ("--prefix", "prefix", str, "Names of objects begin with it and /, where others use the bucket too."),
    ("--region", "region", str, "Of the bucket; where it is not said, us-east-1 or that of --aws-profile."),
    (
        "--addressing", "addressing", click.Choice(("path", "virtual")),
        "path: https://host/bucket, which every server but AWS understands. virtual: https://bucket.host.",
    ),
    ("--aws-profile", "aws_profile", str, "A section of ~/.aws/credentials and ~/.aws/config."),
    ("--credentials-file", "credentials_file", str, "A file of that form instead of ~/.aws/credentials."),
    ("--ca-file", "ca_file", str, "Certificates (PEM) that are trusted beside those of the system."),
)  # fmt: skip
#: What is asked where it was not said.
_QUESTIONS = (
    ("endpoint", "Endpoint of the server, https://...; nothing for AWS", ""),
    ("bucket", "Bucket", None),
    ("prefix", "Prefix of all names, where others use the bucket too", ""),
)


def bucket_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a bucket; the command gets them as `given`, by the keys of the table [store]."""

    @functools.wraps(command)
    def collected(*args: Any, allow_http: bool, **kwargs: Any) -> Any:
        names = [name for _, name, _, _ in _OPTIONS]
        given = {name: value for name in names if (value := kwargs.pop(name)) is not None}
        if allow_http:
            given["allow_http"] = True
        return command(*args, given=given, **kwargs)

    wrapped: Callable[..., Any] = click.option(
        "--allow-http",
        is_flag=True,
        help="An http:// endpoint elsewhere: all on the way there can read and change everything.",
    )(collected)
    for option, name, kind, text in reversed(_OPTIONS):
        wrapped = click.option(option, name, type=kind, help=text)(wrapped)
    return wrapped


def ask_for_bucket(given: dict[str, Any]) -> dict[str, Any]:
    """The values with answers for what is missing."""
    answers = {
        key: click.prompt(question, default=default, show_default=bool(default), err=True).strip()
        for key, question, default in _QUESTIONS
        if key not in given
    }
    return {**answers, **given}


def settings_of(given: dict[str, Any]) -> S3Settings:
    """The settings that options say.

    Errors: click.UsageError, which names what is missing or wrong.
    """
    from grange.repository.s3_settings import S3Settings

    for key in ("endpoint", "bucket"):
        if key not in given:
            raise click.UsageError(f"Missing option '--{key}'.")
    try:
        return S3Settings.from_table(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
