"""Calls of a workflow that a campaign has mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from grange.core import process as rows
from grange.core.caching import recorded_blocks
from grange.core.client_waiter import ClientWaiter
from grange.core.errors import InputInvalid
from grange.core.future import Future
from grange.core.graph import forget
from grange.core.live_frame import EXECUTOR_ATTRIBUTE
from grange.core.node import Node
from grange.core.pending_call import PendingCall, WorkflowCall, hash_of_given, record
from grange.core.profile import Profile
from grange.core.queues import lock_recording
from grange.core.runnable import givens_of
from grange.core.transition import ENDED
from grange.core.workflow_recipe import Given, WorkflowRecipe

#: So many are recorded in a transaction.
SLICE = 2000


class WorkflowMap:
    """The calls of one map, checked when it is made. offset: how many calls the maps before it have.

    Errors: InputInvalid.
    """

    def __init__(
        self,
        recipe: WorkflowRecipe,
        columns: Mapping[str, object],
        labels: Sequence[str] | None,
        offset: int,
        *,
        product: bool,
    ) -> None:
        self.recipe = recipe
        self.offset = offset
        self._given: list[Given] = list(givens_of(recipe, columns, product=product))
        if labels is not None and (
            isinstance(labels, str)
            or len(labels) != len(self._given)
            or not all(isinstance(label, str) for label in labels)
        ):
            raise InputInvalid(
                f"{recipe.label}: labels", labels, f"{len(self._given)} texts, one for each call"
            )
        self._labels = list(labels) if labels is not None else [""] * len(self._given)
        fingerprint = str(recipe.attributes.get("fingerprint", "")).encode()
        self._keys = [
            hashlib.sha256(b"workflow" + fingerprint + hash_of_given(recipe.process_type, given)).digest()
            for given in self._given
        ]

    def __len__(self) -> int:
        return len(self._given)

    def record(self, profile: Profile, campaign_id: int, executor: str | None) -> tuple[list[int], int]:
        """Record what the campaign has not recorded yet, for whoever claims it; paused ones are played.

        Returns the process of each call, and how many of them have ended already.
        """
        places: list[int] = []
        answered = 0
        for start in range(0, len(self), SLICE):
            found, ended = self._record(
                profile, campaign_id, executor, range(start, min(start + SLICE, len(self)))
            )
            places += found
            answered += ended
        return places, answered

    def find(self, profile: Profile, campaign_id: int) -> list[int]:
        """The process of each call; 0 for those that are not recorded."""
        with profile.transaction() as cursor:
            known = rows.find_recorded(cursor, campaign_id, set(self._keys))
        return [known[key].node_id if key in known else 0 for key in self._keys]

    def _record(
        self, profile: Profile, campaign_id: int, executor: str | None, numbers: range
    ) -> tuple[list[int], int]:
        new: list[Node] = []
        try:
            with profile.transaction() as cursor:
                lock_recording(cursor, campaign_id)
                known = rows.find_recorded(cursor, campaign_id, {self._keys[number] for number in numbers})
                pending = self._pending(
                    profile, campaign_id, executor, [n for n in numbers if self._keys[n] not in known]
                )
                writing = record(profile, cursor, list(pending.values()))
                new = writing.nodes
                rows.play(cursor, [found.node_id for found in known.values() if found.state not in ENDED])
                rows.tell(cursor, writing.news)
                ids = {key: found.node_id for key, found in known.items()}
                ids |= {key: one.row.node_id for key, one in pending.items() if one.row is not None}
                ended = {key for key, found in known.items() if found.state in ENDED}
        except BaseException:
            forget(new)
            raise
        keys = [self._keys[number] for number in numbers]
        return [ids[key] for key in keys], sum(key in ended for key in keys)

    def _pending(
        self, profile: Profile, campaign_id: int, executor: str | None, numbers: Sequence[int]
    ) -> dict[bytes, PendingCall]:
        attributes: dict[str, Any] = {
            **({EXECUTOR_ATTRIBUTE: executor} if executor else {}),
            **recorded_blocks(),
        }
        waiter = ClientWaiter(profile)
        pending: dict[bytes, PendingCall] = {}
        for number in numbers:
            if self._keys[number] in pending:
                continue
            one = PendingCall(
                WorkflowCall(self.recipe, self._given[number], attributes),
                Future(waiter, self.recipe.label, node_class=self.recipe.node_class),
                self._labels[number],
                hash_of_given(self.recipe.process_type, self._given[number]),
            )
            one.campaign_id, one.ordinal, one.key = campaign_id, self.offset + number, self._keys[number]
            pending[one.key] = one
        return pending
