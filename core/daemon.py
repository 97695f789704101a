"""The process of a daemon: opens the profile, supervises until somebody ends it, begins anew when asked to.

python -m grange.core.daemon HOME --workers N
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from grange.core.daemon_log import begin_logging
from grange.core.errors import DatabaseUnavailable, GrangeError
from grange.core.profile import Profile, open_profile
from grange.core.stopping import Stopping
from grange.core.supervisor import AGAIN_S, Supervisor, tell_systemd


def supervise(home: Path, workers: int | None, *, foreground: bool, tell: int | None = None) -> None:
    """Be the daemon of a home until somebody ends it; in the main thread.

    workers: how many; None: as many as profile.toml says. tell: a descriptor to which it is written that the
    daemon has begun ("ready"), or why it could not.
    In the foreground a database that is away at first is waited for.

    Errors: DaemonException, DatabaseUnavailable, ProfileInvalid …: why it could not begin.
    """
    stopping = Stopping()
    try:
        profile = _open(home, stopping, patient=foreground)
        if profile is None:
            return
        with profile:
            wanted = profile.config.daemon.default_workers if workers is None else workers
            supervisor = Supervisor(profile, wanted, stopping, foreground=foreground)
            supervisor.begin()
            _tell(tell, "ready")
            tell = None
            tell_systemd("READY=1")
            end = supervisor.run()
    except Exception as error:
        _tell(tell, str(error))
        raise
    if end == "restart":
        # The same process with new code: whoever looks after it, systemd or a container, need not know.
        argv = [
            sys.executable,
            "-P",
            "-m",
            "grange.core.daemon",
            str(home),
            "--workers",
            str(supervisor.workers),
        ]
        os.execv(sys.executable, [*argv, *(["--foreground"] if foreground else [])])  # noqa: S606


def _open(home: Path, stopping: Stopping, *, patient: bool) -> Profile | None:
    logger = begin_logging()
    said = False
    while not stopping():
        try:
            return open_profile(home)
        except DatabaseUnavailable as error:
            if not patient:
                raise
            if not said:
                logger.warning("waiting for the database: %s", error)
            said = True
            stopping.wait(AGAIN_S)
    return None


def _tell(descriptor: int | None, text: str) -> None:
    if descriptor is not None:
        with suppress(OSError):
            os.write(descriptor, text.encode()[:4096])
        os.close(descriptor)


def main(arguments: Sequence[str]) -> int:
    """The process of the daemon."""
    parser = argparse.ArgumentParser(prog="grange.core.daemon")
    parser.add_argument("home", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--foreground", action="store_true", help="log to standard error")
    parser.add_argument("--tell", type=int, metavar="FD", help="say there when it has begun, or why not")
    given = parser.parse_args(arguments)
    if given.tell is not None:
        os.set_inheritable(given.tell, False)
    try:
        supervise(given.home, given.workers, foreground=given.foreground, tell=given.tell)
    except Exception as error:
        begin_logging().error("%s", error, exc_info=not isinstance(error, GrangeError | OSError))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
