"""Waiting for processes from a script or notebook: many at once, hastened by news from the database."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

from grange.core import workflow_rows
from grange.core.errors import DatabaseUnavailable
from grange.core.future import Future
from grange.core.graph import load
from grange.core.node import Data, ProcessNode, class_of
from grange.core.process import ENDED_NEWS
from grange.core.profile import Profile
from grange.core.transition import State
from grange.core.wakeups import Wakeups

#: Seconds between looks where nobody tells of an end.
LOOK_S = 0.5
#: After a look it rests for so many times as long as that took.
RESTS = 4
#: So many ids in one question.
ASKED = 10_000
#: Seconds after which it is said that nobody is at work, or what is paused; then it is looked at again
#: after so many.
NOBODY_AFTER_S, SAY_S = 3.0, 10.0

_IS_ANYBODY_THERE = """
SELECT EXISTS (
    SELECT FROM worker JOIN pg_locks held ON held.objid::bigint = worker.id
    WHERE worker.ended_at IS NULL AND worker.role IN ('worker', 'dispatcher') AND held.locktype = 'advisory'
      AND held.objsubid = 2 AND held.granted AND held.classid::bigint = %s
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


class ClientWaiter:
    """The Waiter of processes that were submitted outside of workflows.

    told: is called now and then with those that have ended of those that are waited for.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._wakeups: Wakeups | None = None
        self.told: Callable[[Sequence[Future]], None] = lambda _: None

    def wait_for(self, futures: Sequence[Future], timeout_s: float | None, any_of_them: bool) -> bool:
        """Waiter.wait_for; a database that is away is waited for, too."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        said: set[str] = set()
        try:
            while True:
                try:
                    return self._wait(futures, until, any_of_them, said)
                except DatabaseUnavailable as error:
                    if not self._profile.is_open or (until is not None and time.monotonic() >= until):
                        raise
                    _say(f"waiting for the database: {error}", said)
                    time.sleep(LOOK_S)
        finally:
            if self._wakeups is not None:
                self._wakeups.stop()

    def _wait(
        self, futures: Sequence[Future], until: float | None, any_of_them: bool, said: set[str]
    ) -> bool:
        began = time.monotonic()
        say_at = began + NOBODY_AFTER_S
        if self._wakeups is None:
            self._wakeups = Wakeups(self._profile)
        while True:
            looked_at = time.monotonic()
            left = [future for future in futures if not future.is_terminated]
            self.look(left)
            left = [future for future in left if not future.is_terminated]
            self.told([future for future in futures if future.is_terminated])
            if not left or (any_of_them and len(left) < len(futures)):
                return True
            now = time.monotonic()
            if until is not None and now >= until:
                return False
            if until is None and now > say_at:
                say_at = now + SAY_S
                self._warn(left, said)
            self._hear(now, RESTS * (now - looked_at), LOOK_S if until is None else min(LOOK_S, until - now))

    def _hear(self, now: float, rest_s: float, timeout_s: float) -> None:
        """Wait until something has ended; rest before: looking at thousands must not slow down who works."""
        assert self._wakeups is not None
        time.sleep(min(rest_s, timeout_s))
        while (left_s := now + timeout_s - time.monotonic()) > 0:
            news = self._wakeups.wait(left_s)
            if news is None or ENDED_NEWS in news:
                return

    def look(self, futures: Sequence[Future]) -> None:
        """See which of these have ended."""
        by_id = {future.id: future for future in futures}
        ids = list(by_id)
        for start in range(0, len(ids), ASKED):
            with self._profile.transaction() as cursor:
                ends = workflow_rows.read_ends(cursor, ids[start : start + ASKED])
            for process_id, state, status, message in ends:
                by_id[process_id].settle(state, status, message)

    def _warn(self, left: Sequence[Future], said: set[str]) -> None:
        """Say, once each, what keeps these from ending."""
        from grange.core.worker import WORKER_LOCK

        with self._profile.transaction() as cursor:
            cursor.execute(_IS_ANYBODY_THERE, (WORKER_LOCK,))
            (there,) = cursor.fetchone() or (True,)
        nobody = (
            "nobody is at work in this profile: `grange daemon start` starts workers; "
            "gr.run(…) runs a process in the script itself"
        )
        for one in ("" if there else nobody, said_of_paused(self._profile, left)):
            _say(one, said)

    def name(self, futures: Sequence[Future]) -> None:
        """Waiter.name; those of clients have their ids from the beginning."""

    def load_outputs(self, futures: Sequence[Future]) -> None:
        """Waiter.load_outputs"""
        load_outputs(self._profile, futures)

    def kill(self, futures: Sequence[Future]) -> None:
        """Waiter.kill"""
        from grange.core.process_control import kill

        kill(self._profile, [future.id for future in futures])


def _say(message: str, said: set[str]) -> None:
    """Tell a person, once."""
    if message and message not in said:
        said.add(message)
        sys.stderr.write(f"{message}\n")


def said_of_paused(profile: Profile, futures: Sequence[Future]) -> str:
    """Which of these is paused, why, and how it goes on; "" where none is."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT node_id, exit_message FROM process WHERE node_id = ANY(%s) AND paused"
            " ORDER BY node_id LIMIT 1",
            ([future.id for future in futures],),
        )
        row = cursor.fetchone()
    if row is None:
        return ""
    process_id, reason = row
    hint = f"`grange process play {process_id}` lets it go on"
    return f"process {process_id} is paused: {reason or 'nobody said why'}; {hint}"


def load_outputs(profile: Profile, futures: Sequence[Future]) -> None:
    """Give futures that have ended their outputs, in two questions for all of them."""
    wanted = [future for future in futures if not future.has_outputs]
    outputs: dict[int, dict[str, Data]] = {future.id: {} for future in wanted}
    with profile.transaction() as cursor:
        links = workflow_rows.read_outputs(cursor, list(outputs))
        ids = list({node_id for _, _, node_id in links})
        nodes = dict(zip(ids, load(cursor, ids, profile.read_files), strict=True))
    for process_id, label, node_id in links:
        node = nodes[node_id]
        if isinstance(node, Data):
            outputs[process_id][label] = node
    for future in wanted:
        future.give(outputs[future.id])


def future_of(profile: Profile, process_id: int) -> Future:
    """The future of a process that is recorded already. Errors: NotFound."""
    from grange.core.errors import NotFound

    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT process.label, state::text, exit_status, exit_message, node_type, kind::text"
            " FROM process JOIN node ON node.id = node_id WHERE node_id = %s",
            (process_id,),
        )
        row = cursor.fetchone()
    if row is None:
        raise NotFound(f"no process has the id {process_id}")
    label, state, status, message, node_type, kind = row
    node_class = cast(type[ProcessNode], class_of(node_type, kind))
    future = Future(ClientWaiter(profile), label, process_id, node_class)
    future.settle(State(state), status, message)
    return future
