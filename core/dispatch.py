"""The process of a dispatcher of a daemon.

    python -m grange.core.dispatch HOME ID [--daemon N] [--lifeline FD]

It runs the campaign or queue of an id until there was nothing to do for a while, it gets SIGTERM, whoever
started it is gone, or the profile is locked. SIGTERM ends it in order: tasks on this machine end, what they
finished is recorded, the rest is free for the next holder; what was sent to a computer goes on there.

Exit status: 0 when it has ended in order, also where somebody else runs that queue; 75 when the database went
away; 1 for all else that was in its way.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from grange.core.daemon_child import DATABASE_AWAY
from grange.core.daemon_log import begin_logging
from grange.core.dispatcher import dispatch
from grange.core.engine import Progress
from grange.core.errors import CampaignBusy, DatabaseUnavailable, GrangeError
from grange.core.profile import open_profile
from grange.core.profile_lock import Share
from grange.core.stopping import Stopping
from grange.core.worker import DISPATCHER
from grange.farm.errors import FarmError
from grange.repository import RepositoryError


def main(arguments: Sequence[str] | None = None) -> int:
    """Be a dispatcher; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m grange.core.dispatch", description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("queue_id", type=int)
    parser.add_argument("--daemon", type=int)
    parser.add_argument("--lifeline", type=int)
    given = parser.parse_args(arguments)
    stopping = Stopping(given.lifeline)
    logger = begin_logging()
    try:
        return _dispatch(given.home, given.queue_id, given.daemon, stopping, logger)
    except DatabaseUnavailable as error:
        logger.warning("%s", error)
        return DATABASE_AWAY
    except (GrangeError, FarmError, RepositoryError) as error:
        logger.error("%s: %s", type(error).__name__, error)
        return 1


def _dispatch(
    home: Path, queue_id: int, daemon_id: int | None, stopping: Stopping, logger: logging.Logger
) -> int:
    notes = _Notes(logger)
    with open_profile(home) as profile:
        profile.role, profile.daemon_id = DISPATCHER, daemon_id
        share = Share(profile)
        if (locked := share.take()) is not None:
            logger.info("the profile is %s", locked)
            return 0
        logger.info("dispatcher %d of queue %d begins", profile.worker_id, queue_id)
        try:
            done = dispatch(
                profile,
                queue_id,
                stopping=stopping,
                let_go=share.is_wanted,
                listener=notes.listen,
                ends_when_idle=True,
                imports_anew=True,
            )
        except CampaignBusy as busy:
            logger.info("%s", busy)
            return 0
        paused = f", {done.paused} paused" if done.paused else ""
        logger.info("queue %d: %d have ended, %d of them failed%s", queue_id, done.done, done.failed, paused)
    return 0


class _Notes:
    """Writes into the log what a person should know, each time it changes."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._last = ""

    def listen(self, progress: Progress) -> None:
        """A listener of runs."""
        if progress.note != self._last:
            self._last = progress.note
            if progress.note:
                self._logger.info("%s", progress.note)


if __name__ == "__main__":
    sys.exit(main())
