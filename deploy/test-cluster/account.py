"""The account that the cluster runs as: one of its own when root starts it, else whoever starts it."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

NAME = "grange-cluster"
HOME = "/var/lib/grange-cluster"


def ours() -> pwd.struct_passwd:
    """The account, made where it is missing. Errors: RuntimeError."""
    if os.getuid() != 0:
        try:
            return pwd.getpwuid(os.getuid())
        except KeyError:
            raise RuntimeError(
                f"The user id {os.getuid()} has no account (/etc/passwd): sshd lets only accounts in. "
                "Start the cluster as a user with an account, or as root."
            ) from None
    try:
        found = pwd.getpwnam(NAME)
    except KeyError:
        found = make()
    if found.pw_uid == 0 or found.pw_shell != "/bin/bash" or not Path(found.pw_dir).is_dir():
        raise RuntimeError(
            f"The account {NAME} is not as this cluster needs it (an ordinary user, /bin/bash, a home): "
            f"remove it (userdel {NAME}) and start again."
        )
    return found


def make() -> pwd.struct_passwd:
    argv = ["useradd", "--create-home", "--home-dir", HOME, "--shell", "/bin/bash", "--user-group"]
    argv += ["--comment", "grange test cluster", NAME]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    try:
        return pwd.getpwnam(NAME)  # another cluster that starts now may have made it
    except KeyError:
        raise RuntimeError(f"The account {NAME} cannot be made: {done.stderr.strip()}") from None


def become(account: pwd.struct_passwd) -> None:
    """Give up root's rights for good."""
    if os.getuid() == 0:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)


def may_enter(account: pwd.struct_passwd, folder: Path) -> bool:
    """Whether the account can reach a folder: those above it may be closed to it."""
    child = os.fork()
    if child == 0:
        try:
            become(account)
            os.chdir(folder)
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0
