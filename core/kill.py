"""Ending what nobody wants any more: some processes, a campaign, or all that is run on a computer."""

from __future__ import annotations

from collections.abc import Collection

from grange.core import process as rows
from grange.core.campaign import CAMPAIGN_TYPE, Campaign
from grange.core.group import labels_of
from grange.core.profile import Profile


def kill(
    profile: Profile,
    *,
    ids: Collection[int] | None = None,
    computer: str | None = None,
    progress: bool = False,
) -> int:
    """End these processes, or all that have not ended of campaigns that are run on a computer.

    What waits never starts; what runs gets SIGTERM and then SIGKILL, and what it left is recorded. Whoever
    runs a campaign sees to it within seconds; where nobody does, it is done here. Returns how many were to be
    ended. What cannot be ended now, because its computer cannot be reached, is marked, and ended by whoever
    goes on with the campaign.

    Errors: those of reaching a computer.
    """
    if ids is None and computer is None:
        raise ValueError("kill: expected ids or a computer")
    with profile.transaction() as cursor:
        asked = rows.ask_to_kill(cursor, ids=ids, computer=computer)
        names = labels_of(cursor, asked, CAMPAIGN_TYPE)
    for name in names:
        Campaign(name, profile).end_killed(progress=progress)
    return sum(asked.values())
