"""Equal calculations that are to be run at the same time are run once: the first one leads, others follow it.

Which leads is found out when they are about to be submitted, by whoever holds their queue, under the lock of
their keys. Followers are looked after by the same: nobody has to be told when the leader ends, and nothing is
lost when somebody is killed, because who follows whom is in the rows. Where the leader finished, followers
finish as it did, with clones of its outputs; where it did not, or nobody runs it any more, they are run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from grange.core import equal_rows
from grange.core import process as rows
from grange.core.equal_rows import Follower, Source
from grange.core.graph import clone_outputs
from grange.core.process import Claimed, End
from grange.core.profile import Profile
from grange.core.transition import State

#: How often followers are looked after, and at least so many times as long as that takes.
EVERY_S = 0.5
REST = 10
#: So many are dealt with in a transaction.
SLICE = 2000


@dataclass(slots=True)
class Settled:
    """What became of followers.

    answered: process → whether it went well. to_run: claimed by this worker, which has to run them. ended:
    killed by somebody else; process → whether it went well. gone: others that follow no more, as those that
    were paused.
    """

    answered: dict[int, bool] = field(default_factory=dict)
    to_run: list[Claimed] = field(default_factory=list)
    ended: dict[int, bool] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)


def sort_out(cursor: Any, ids: Collection[int]) -> dict[int, int]:
    """Of processes that this worker has claimed, let those follow that equal ones answer, or will.

    Nothing was submitted of them yet. Returns process → the one that it follows; the others are to be run.
    The last thing that a transaction does: it locks their keys.
    """
    equal = equal_rows.find_equal(cursor, ids)
    if not equal:
        return {}
    keys = {one.key for one in equal}
    equal_rows.lock_keys(cursor, keys)
    sources, leaders = equal_rows.find_leaders(cursor, keys, but_not=ids)
    again = equal_rows.find_failed_before(cursor, sources, [(one.parent_id, one.key) for one in equal])
    following = {}
    for one in equal:
        source = sources.get(one.key)
        if source is not None and (one.parent_id, one.key) not in again:
            leader = source.node_id
        else:
            leader = leaders.setdefault(one.key, one.node_id)
        if leader != one.node_id:
            following[one.node_id] = leader
    equal_rows.follow(cursor, following)
    return following


class Followers:
    """The followers of a campaign or queue, for the one who holds it.

    calls: process → how many calls of this run it answers.
    """

    def __init__(self, profile: Profile, queue_id: int) -> None:
        self._profile = profile
        self._queue_id = queue_id
        self._next_at = self._earliest_at = 0.0
        self.calls: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def note(self) -> str:
        """What a person should know of them."""
        if not self.calls:
            return ""
        some = "one call waits" if len(self.calls) == 1 else f"{len(self.calls):,} calls wait"
        return f"{some} for equal ones that are under way elsewhere"

    def more(self, process_id: int, calls: int) -> None:
        """A process answers more calls than was known, if it is one of these."""
        if process_id in self.calls:
            self.calls[process_id] += calls

    def pop(self, process_id: int, calls: int = 0) -> int:
        """Look after it no longer; returns how many calls it answers (calls: if it is none of these)."""
        return self.calls.pop(process_id, calls)

    def add(self, process_id: int, calls: int) -> None:
        """Look after one more, soon: what it follows may have ended."""
        self.calls[process_id] = calls
        self.hurry()

    def hurry(self) -> None:
        """Some may have been waiting for what has ended here: look soon."""
        self._next_at = self._earliest_at

    def recover(self, calls_each: int) -> None:
        """Know those that earlier runs have left."""
        with self._profile.transaction() as cursor:
            found = equal_rows.find_following(cursor, self._queue_id)
        self.calls = dict.fromkeys(found, calls_each)

    def settle(self) -> Settled | None:
        """See whether some need not wait any longer; None where nothing is, or was asked a moment ago."""
        began = time.monotonic()
        if not self.calls or began < self._next_at:
            return None
        result = Settled()
        with self._profile.transaction() as cursor:
            found = equal_rows.find_settled(cursor, self._queue_id, SLICE)
            if found:
                self._settle(cursor, found, result)
            else:
                self._notice(cursor, result)
        # What many followers cost is bounded: looking takes a tenth of the time.
        now = time.monotonic()
        self._earliest_at = now if len(found) == SLICE else now + REST * (now - began)
        self._next_at = max(self._earliest_at, now if len(found) == SLICE else now + EVERY_S)
        return result if found or result.ended or result.gone else None

    def _notice(self, cursor: Any, result: Settled) -> None:
        """See which follow no more because of what somebody else did: killed, paused or deleted."""
        lost = self.calls.keys() - set(equal_rows.find_following(cursor, self._queue_id))
        if lost:
            outcomes = equal_rows.find_outcomes(cursor, lost)
            result.ended = {node_id: well for node_id, well in outcomes.items() if well is not None}
            result.gone = sorted(lost - result.ended.keys())

    def _settle(self, cursor: Any, found: Sequence[Follower], result: Settled) -> None:
        profile = self._profile
        sources = {one.node_id: one.source for one in found if one.source is not None}
        freed = [one.node_id for one in found if one.source is None]
        if sources:
            profile.index(cursor).hold()  # clones rely on the blobs of the others
        parents = {one.parent_id for one in found if one.parent_id is not None}
        rows.lock(cursor, parents | {one.node_id for one in found})
        ended = rows.end(cursor, [_end(one, one.source) for one in found if one.source is not None])
        clones = [(sources[node_id].node_id, node_id) for node_id in sorted(ended)]
        clone_outputs(cursor, clones, user_id=profile.user_id)
        result.answered = {node_id: not sources[node_id].exit_status for node_id in ended}
        if freed:
            equal_rows.free(cursor, freed)
            claimed = rows.find_open(cursor, rows.claim(cursor, freed, profile.worker_id))
            following = sort_out(cursor, [one.node_id for one in claimed])
            result.to_run = [one for one in claimed if one.node_id not in following]


def _end(process: Follower, source: Source) -> End:
    return End(
        node_id=process.node_id,
        attempt=process.attempt,
        state=State.FINISHED,
        exit_status=source.exit_status,
        message=source.exit_message,
        started_at=None,
        wall_s=None,
        cpu_s=None,
        peak_memory_mb=None,
        host=None,
        parent_id=process.parent_id,
        cached_from=source.node_id,
    )
