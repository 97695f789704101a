"""profile.toml: where the database and the files of one installation are, and a few habits.

Written with its defaults and an explanation of each on first use; read with every key checked.
"""

from __future__ import annotations

import contextlib
import difflib
import getpass
import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from grange.core.caching import PATTERN, CachingRules, is_pattern
from grange.core.daemon_settings import DaemonSettings
from grange.core.errors import ProfileInvalid
from grange.repository.s3_settings import S3Settings

EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """What profile.toml says.

    database: "embedded", or a postgresql:// URL without a password.
    store: a folder, or the bucket of a server. cache: the folder for copies of what a server was asked for.
    These and postgres_bin are relative to the folder of profile.toml; postgres_bin "" means the wheel's.
    slots: runner processes of the local pool, 0 for one a core. caching: which equal calculations answer each
    other. daemon: habits of `grange daemon`.
    Units: idle_s in seconds, cache_gb in 10^9 bytes (0: no copies).
    """

    email: str
    database: str = EMBEDDED
    store: str | S3Settings = "store"
    slots: int = 0
    idle_s: float = 600.0
    postgres_bin: str = ""
    cache: str = "cache"
    cache_gb: float = 10.0
    caching: CachingRules = field(default_factory=CachingRules)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)


_TEMPLATE = """\
# The profile of this grange installation. A key that is left out has the value shown here.

# Where the provenance graph is kept: "embedded" (a private PostgreSQL that starts and stops by itself),
# or the URL of a server, postgresql://user@host/database. A password does not belong here: put it into
# ~/.pgpass, a file named by ?passfile=..., a service (?service=...), or the environment variable PGPASSWORD.
database = "embedded"

# Where files are kept: a folder, relative to this one; or, in place of this line, a table [store] at the end
# of the file that names a bucket of an S3-compatible server: `grange repository init` makes and writes both.
store = "store"

# You, as the author of every node.
email = {email}

# Calculations at the same time on this machine; 0: one for each core.
slots = 0

# The embedded PostgreSQL stops when nobody has used it for so many seconds.
idle_s = 600

# The folder of initdb, pg_ctl and postgres; "": those that were installed with grange.
postgres_bin = ""

# Copies of what was read from a server: in this folder, of at most so many gigabytes; 0: none.
cache = "cache"
cache_gb = 10

# Equal calculations are computed once. Which are not to be asked, and which are where the default is false:
# process types or names, * for anything. (`grange caching show` tells what follows for one.)
# [caching]
# default = true
# enabled = []
# disabled = ["my_package.*", "draw_sample"]

# `grange daemon`: workers where nobody says how many; seconds that calls wait for it, and that its processes
# have to bring to an end what they are at before they are killed.
# [daemon]
# default_workers = 1
# timeout = 60
# grace_s = 30
"""


def read_profile_file(path: Path) -> ProfileFile:
    """Read profile.toml; write it first where there is none.

    Errors: ProfileInvalid, with path, key, and what was expected; OSError when it cannot be read or written.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        _write_defaults(path)
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ProfileInvalid(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from None
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileInvalid(f"{path} is not TOML: {error}") from None
    return _checked(found, path)


def _checked(found: dict[str, object], path: Path) -> ProfileFile:
    known = [known_field.name for known_field in fields(ProfileFile)]
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ProfileInvalid(f"{path}: unknown key {key}; {advice}")

    def text(key: str, default: str, expected: str, *, empty: bool = False) -> str:
        value = found.get(key, default)
        if not isinstance(value, str) or not (value or empty) or "\0" in value:
            raise ProfileInvalid(f"{path}: {key} = {value!r}: expected {expected}")
        return value

    slots = found.get("slots", 0)
    if type(slots) is not int or not 0 <= slots <= 4096:
        raise ProfileInvalid(
            f"{path}: slots = {slots!r}: expected a whole number from 0 (one a core) to 4096"
        )
    idle_s = found.get("idle_s", 600.0)
    if type(idle_s) not in (int, float) or not 0.1 <= float(idle_s) <= 1e9:  # type: ignore[arg-type]
        raise ProfileInvalid(f"{path}: idle_s = {idle_s!r}: expected seconds, at least 0.1")
    cache_gb = found.get("cache_gb", 10.0)
    if type(cache_gb) not in (int, float) or not 0 <= float(cache_gb) <= 1e6:  # type: ignore[arg-type]
        raise ProfileInvalid(f"{path}: cache_gb = {cache_gb!r}: expected gigabytes, 0 for no copies")
    database = text("database", EMBEDDED, f'"{EMBEDDED}" or postgresql://user@host/database')
    _check_database(database, path)
    return ProfileFile(
        email=text("email", _default_email(), "an e-mail address or another name of yours"),
        database=database,
        store=_store(found.get("store", "store"), path),
        slots=slots,
        idle_s=float(idle_s),  # type: ignore[arg-type]
        postgres_bin=text("postgres_bin", "", 'a folder, or ""', empty=True),
        cache=text("cache", "cache", "a folder"),
        cache_gb=float(cache_gb),  # type: ignore[arg-type]
        caching=_caching(found.get("caching", {}), path),
        daemon=_daemon(found.get("daemon", {}), path),
    )


def _daemon(value: object, path: Path) -> DaemonSettings:
    if not isinstance(value, Mapping):
        raise ProfileInvalid(f"{path}: daemon = {value!r}: expected a table [daemon]")
    try:
        return DaemonSettings.from_table(value)
    except ValueError as error:
        raise ProfileInvalid(f"{path}: [daemon]: {error}") from None


def _caching(value: object, path: Path) -> CachingRules:
    if not isinstance(value, Mapping):
        raise ProfileInvalid(f"{path}: caching = {value!r}: expected a table [caching]")
    known = ("default", "enabled", "disabled")
    for key in value:
        if key not in known:
            raise ProfileInvalid(f"{path}: [caching]: unknown key {key}; known are {', '.join(known)}")
    default = value.get("default", True)
    if not isinstance(default, bool):
        raise ProfileInvalid(f"{path}: [caching]: default = {default!r}: expected true or false")

    def patterns(key: str) -> tuple[str, ...]:
        given = value.get(key, [])
        if not isinstance(given, list) or not all(map(is_pattern, given)):
            raise ProfileInvalid(f"{path}: [caching]: {key} = {given!r}: expected a list, each {PATTERN}")
        return tuple(given)

    enabled, disabled = patterns("enabled"), patterns("disabled")
    if both := sorted(set(enabled) & set(disabled)):
        raise ProfileInvalid(f"{path}: [caching]: {both[0]!r} is both in enabled and in disabled")
    return CachingRules(default, enabled, disabled)


def _store(value: object, path: Path) -> str | S3Settings:
    if isinstance(value, Mapping):
        try:
            return S3Settings.from_table(value)
        except ValueError as error:
            raise ProfileInvalid(f"{path}: [store]: {error}") from None
    if not isinstance(value, str) or not value or "\0" in value:
        raise ProfileInvalid(f"{path}: store = {value!r}: expected a folder, or a table [store]")
    return value


def _check_database(database: str, path: Path) -> None:
    """The value is not repeated in messages: it may hold a password."""
    if database == EMBEDDED:
        return
    try:
        url = urlsplit(database)
        password = bool(url.password) or "password" in parse_qs(unquote(url.query), keep_blank_values=True)
    except ValueError as error:
        raise ProfileInvalid(f"{path}: database is not a URL: {error}") from None
    if url.scheme not in ("postgresql", "postgres"):
        raise ProfileInvalid(f'{path}: database: expected "{EMBEDDED}" or postgresql://user@host/database')
    if password:
        raise ProfileInvalid(
            f"{path}: database holds a password, which does not belong in this file: take it out, and put "
            "it into ~/.pgpass, a file named by ?passfile=..., a service (?service=...), or the environment "
            "variable PGPASSWORD"
        )


def _default_email() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"uid{os.getuid()}"
    return f"{name}@{socket.gethostname() or 'localhost'}"


def _write_defaults(path: Path) -> None:
    """Whole or not at all, and never over a file that somebody else has just written."""
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    email = '"' + _default_email().replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        new.write_text(_TEMPLATE.format(email=email), "utf-8")
        try:
            os.link(new, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
