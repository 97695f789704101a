"""`grange repository init`: files into a bucket from now on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from grange.cli import words
from grange.cli.bucket_options import ask_for_bucket, bucket_options, settings_of
from grange.cli.opened import home_of
from grange.cli.refused import Refused
from grange.cli.span import Span

if TYPE_CHECKING:
    from grange.repository.s3_bucket import BucketState, Step
    from grange.repository.s3_session import S3Session
    from grange.repository.s3_settings import S3Settings


@click.command("init")
@bucket_options
@click.option(
    "--save-keys", is_flag=True,
    help="Keep the keys that were found in a file beside profile.toml (mode 0600).",
)  # fmt: skip
@click.option("--minio-keys", is_flag=True, help="Have MinIO make keys for this bucket only, and keep those.")
@click.option(
    "--only-tls", is_flag=True, help="Have the server refuse the objects to whoever asks without TLS."
)
@click.option(
    "--expire-versions", "version_age_s", type=Span(), metavar="SPAN",
    help="Of a bucket with versions: have the server remove replaced and deleted ones after, say, 30d.",
)  # fmt: skip
@click.option(
    "--bucket-only", is_flag=True,
    help="Leave profile.toml as it is: for `grange repository migrate`, which takes files along.",
)  # fmt: skip
@click.option(
    "--replace", is_flag=True, help="Also where files of this profile lie in another store already."
)
@click.option(
    "--rights", is_flag=True, help="Only print the least rights that grange needs there, as a policy."
)
@click.option("--dry-run", is_flag=True, help="Look, and say what would be done.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def command(
    ctx: click.Context,
    given: dict[str, Any],
    save_keys: bool,
    minio_keys: bool,
    only_tls: bool,
    version_age_s: int | None,
    bucket_only: bool,
    replace: bool,
    rights: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Keep files in a bucket of an S3-compatible server: make it, set it up, try it out, write it down.

    Credentials come from the environment (AWS_ACCESS_KEY_ID ...), from ~/.aws, or from --credentials-file;
    they are kept only where that is asked for. What is there already stays as it is: calling it again does
    no harm.

    \b
    Examples:
      grange repository init                                   # asks
      grange repository init --endpoint https://s3.example.org --bucket ada-files --dry-run
      grange repository init --endpoint http://127.0.0.1:9000 --bucket grange --minio-keys
      grange repository init --bucket ada-files --endpoint "" --region eu-north-1 --rights
    """
    from grange.cli.agreed import require_agreed
    from grange.repository.s3_bucket import BucketWishes, execute, look_at, plan
    from grange.repository.s3_bucket import rights as least_rights
    from grange.repository.s3_session import S3Session

    if not rights and not yes and sys.stdin.isatty():
        given = ask_for_bucket(given)
    settings = settings_of(given)
    if rights:
        from grange.cli.machine import emit

        emit(least_rights(settings))
        return
    settings = settings.below(Path.cwd())
    _warn_of_open_keys(settings)
    home = home_of(ctx)
    if not (replace or bucket_only):
        _refuse_to_leave_files(home, settings)
    session = S3Session(settings)
    if typed := _typed_keys(session):
        session = S3Session(_with_keys(settings, typed, ctx))
    state = look_at(session)
    days = 0 if version_age_s is None else max(1, round(version_age_s / 86_400))
    steps = plan(state, BucketWishes(version_days=days, only_by_tls=only_tls))
    _say_state(settings, state, days)
    if state.exists:
        _warn_of_others(home, session)
    saved = "MinIO's" if minio_keys else "those typed" if typed else "those found" if save_keys else ""
    _say_steps(steps, home, saved, bucket_only)
    if dry_run:
        return
    require_agreed(yes, "go on?")
    for step in steps:
        execute(session, step)
    _try_out(session, steps)
    if saved:
        settings = _keep_keys(home, settings, session, minio=minio_keys)
    if bucket_only:
        click.echo(f"{settings} can be used")
        return
    from grange.core.store_choice import choose_store

    choose_store(home, settings, leave_files=replace)
    click.echo(f"files are kept in {settings} from now on")


def _refuse_to_leave_files(home: Path, settings: S3Settings) -> None:
    from grange.core.errors import InUse
    from grange.core.store_choice import refuse_other_files

    try:
        refuse_other_files(home, settings)
    except InUse as error:
        raise Refused(
            str(error),
            "--bucket-only makes the bucket, then `grange repository migrate` takes the files there; "
            "--replace leaves them where they are",
        ) from None


def _warn_of_open_keys(settings: S3Settings) -> None:
    """Say where others can read the file of the keys."""
    import stat

    file = Path(settings.credentials_file)
    if settings.credentials_file and file.is_file() and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        click.secho(f"others can read the keys in {file}: chmod 600 {file}", fg="red", err=True)


def _typed_keys(session: S3Session) -> tuple[str, str] | None:
    """Keys from a person, where none are found and somebody is there."""
    from grange.repository.errors import StoreError

    try:
        _ = session.credentials
    except StoreError as error:
        if session.settings.credentials_file or session.settings.aws_profile or not sys.stdin.isatty():
            raise
        click.echo(f"{error}\nor type them; they are kept in a file that only you can read", err=True)
        return (
            click.prompt("Access key", err=True).strip(),
            click.prompt("Secret key", hide_input=True, err=True).strip(),
        )
    return None


def _with_keys(settings: S3Settings, keys: tuple[str, str], ctx: click.Context) -> S3Settings:
    """The settings with keys that lie in a folder of this command's."""
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from grange.core.store_keys import write_keys

    folder = ctx.with_resource(TemporaryDirectory(prefix="grange-"))
    return replace(settings, credentials_file=str(write_keys(Path(folder), *keys)))


def _say_state(settings: S3Settings, state: BucketState, days: int) -> None:
    what = "there is no such bucket yet" if not state.exists else "the bucket is there"
    by = f" ({state.server})" if state.server else ""
    click.echo(f"{settings}{by}: {what}")
    if state.public:
        click.secho("people without credentials may read or write there: close it to them", fg="red")
    if state.locked:
        click.echo("objects are locked for a time there: what is pruned goes on to cost space so long")
    if state.versioned and not state.expires_versions and not days:
        click.echo(
            "it keeps versions: what is replaced or deleted goes on to cost space; --expire-versions 30d "
            "ends that"
        )
    if state.minio and not state.aborts_uploads:
        click.echo("MinIO aborts uploads that never ended by itself, after a day")


def _warn_of_others(home: Path, session: S3Session) -> None:
    """Say where files lie that may be another profile's: whichever prunes takes the other's for leftovers."""
    from grange.core.store_choice import is_store_of
    from grange.repository.object_name import BLOBS, PACKS
    from grange.repository.retries import Retries
    from grange.repository.s3_store import S3Store

    settings = session.settings
    if is_store_of(home, settings):
        return
    store = S3Store(settings, Retries(tries=3, patience_s=10))
    if any(next(iter(store.list(kind)), None) is not None for kind in (PACKS, BLOBS)):
        click.secho(
            "files of grange lie there already. If they are another profile's, give this one a --prefix of "
            "its own: one of them would prune what the other stores",
            fg="red",
        )


def _say_steps(steps: list[Step], home: Path, saved: str, bucket_only: bool) -> None:
    click.echo("to be done:")
    for step in steps:
        click.echo(f"  {step}")
    click.echo("  write, read, list and delete objects of its own, to see that all works")
    if saved:
        click.echo(f"  keep keys in {home / 'store-keys'} (mode 0600): {saved}")
    if not bucket_only:
        click.echo(f"  name the bucket in {home / 'profile.toml'}")


def _try_out(session: S3Session, steps: list[Step]) -> None:
    from grange.repository.retries import Retries
    from grange.repository.s3_bucket import RequireTls, remove_tls_statement
    from grange.repository.s3_store import S3Store
    from grange.repository.s3_trial import trials

    for trial in trials(S3Store(session.settings, Retries(tries=3, patience_s=10))):
        sign, color = ("✓", "green") if not trial.problem else ("✗", "red") if trial.needed else ("-", None)
        said = trial.problem or words.duration(trial.duration_s)
        click.echo(f"{click.style(sign, fg=color)} {trial.name:<24} {said}")
        if trial.problem and trial.needed:
            advice = "nothing was written into profile.toml: mend that, then call it again"
            if any(isinstance(step, RequireTls) for step in steps):
                remove_tls_statement(session)
                advice = "the server may not see that we come by TLS, so --only-tls was taken back; " + advice
            raise Refused(f"{session.settings} cannot be used: {trial.name} failed", advice)


def _keep_keys(home: Path, settings: S3Settings, session: S3Session, *, minio: bool) -> S3Settings:
    """The settings with keys that lie beside profile.toml."""
    from dataclasses import replace

    from grange.core.store_keys import KEYS_FILE, write_keys
    from grange.repository.minio_keys import make_keys

    if minio:
        keys = make_keys(session)
    else:
        found = session.credentials.get_frozen_credentials()
        if found.token:
            raise Refused(
                "these credentials expire: there is nothing to keep",
                "leave --save-keys out, or use keys that last",
            )
        keys = (found.access_key or "", found.secret_key or "")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_keys(home, *keys)
    return replace(settings, credentials_file=KEYS_FILE, aws_profile="")
