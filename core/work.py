"""A worker of a daemon: runs workflows of a profile until it is told to end.

    python -m grange.core.work HOME [--daemon ID] [--lifeline FD] [--at FD]

Told to end (SIGTERM, or the supervisor is gone), it brings to a stop what it is at and gives back what it
holds.
While the profile is locked it holds nothing, and waits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grange.core.daemon_child import DATABASE_AWAY
from grange.core.daemon_log import begin_logging
from grange.core.errors import DatabaseUnavailable, GrangeError
from grange.core.profile import Profile, open_profile
from grange.core.profile_lock import LOOK_S, Share
from grange.core.stopping import Stopping
from grange.core.whereabouts import Whereabouts
from grange.core.worker import WORKER


def work(profile: Profile, stopping: Stopping, run: Callable[[Callable[[], bool]], None]) -> None:
    """Work until it is told to end.

    run: works until what it is given says that it is to stop, and then holds nothing any more.
    Errors: DatabaseUnavailable, when it goes away while nothing is run; what run raises.
    """
    logger = begin_logging()
    share = Share(profile)
    standing_by = False

    def is_wanted() -> bool:
        try:
            return share.is_wanted()
        except DatabaseUnavailable:
            return False  # unknown; whoever runs has the same trouble and waits for its end

    while not stopping():
        profile.worker_id  # noqa: B018 – is known as a worker, also while it stands by
        locked = share.take()
        if locked is None:
            standing_by = False
            try:
                run(lambda: stopping() or is_wanted())
            finally:
                share.let_go()
            continue
        if not standing_by:
            logger.info("stands by: the profile is %s", locked)
            # With its session goes all that it may hold, the store among it: that may be moved now.
            profile.connection.close()
        standing_by = True
        stopping.wait(LOOK_S)


def main(arguments: Sequence[str]) -> int:
    """The process of a worker."""
    parser = argparse.ArgumentParser(prog="grange.core.work")
    parser.add_argument("home", type=Path)
    parser.add_argument("--daemon", type=int)
    parser.add_argument("--lifeline", type=int)
    parser.add_argument("--at", type=int, metavar="FD", help="where to tell whose code is run")
    given = parser.parse_args(arguments)
    stopping = Stopping(given.lifeline)
    logger = begin_logging()
    try:
        with open_profile(given.home) as profile:
            profile.role = WORKER
            profile.daemon_id = given.daemon
            logger.info("worker %d begins", profile.worker_id)
            # Imported when the database is known to be there: it takes longest.
            from grange.core.hub import Hub

            at = (lambda _: None) if given.at is None else Whereabouts(given.at).tell
            work(profile, stopping, lambda ends: Hub(profile, wakes=stopping.descriptors, at=at).run(ends))
            logger.info("worker %d ends", profile.worker_id)
    except DatabaseUnavailable as error:
        logger.error("%s", error)
        return DATABASE_AWAY
    except GrangeError as error:
        logger.error("%s", error)
        return 1
    except Exception:
        logger.exception("worker ends by an error of grange")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
