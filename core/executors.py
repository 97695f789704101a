"""Which executor runs a campaign, by name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from grange.core.errors import InputInvalid
from grange.core.profile import Profile
from grange.farm.executor import Executor
from grange.repository import Key

NAMES = ("local", "hyperqueue", "hyperqueue-open-server")


@contextmanager
def open_executor(profile: Profile, campaign_id: int, executor: str | Executor) -> Iterator[Executor]:
    """An executor for the time of a run; one that was handed in is left open.

    "local": runner processes on this machine, no server, no port. "hyperqueue": HyperQueue's own
    server and worker on this machine, in a network namespace that nothing outside reaches, so that its
    tasks have no network either. "hyperqueue-open-server": the same without the namespace; whoever
    reaches the server's port can run commands as you.

    Each campaign has a spool of its own, so that what a killed run left is found by the next run of it.
    """
    if not isinstance(executor, str):
        if not all(hasattr(executor, name) for name in ("submit", "poll", "acknowledge", "recover")):
            raise _refused(executor)
        yield executor
        return
    made = _make(profile, campaign_id, executor)
    try:
        yield made
    finally:
        made.close()


def _make(profile: Profile, campaign_id: int, name: str) -> Executor:
    spool = profile.spool / f"campaign-{campaign_id}"

    def fetch(keys: Collection[Key]) -> dict[Key, bytes]:
        wanted = list(keys)
        with profile.transaction() as cursor:
            return dict(zip(wanted, profile.repository.read(wanted, profile.index(cursor)), strict=True))

    if name == "local":
        from grange.farm.local_pool import LocalPool

        return LocalPool(spool, slots=profile.config.slots, fetch=fetch)
    if name in ("hyperqueue", "hyperqueue-open-server"):
        from grange.farm.hyperqueue_executor import HyperQueueExecutor

        return HyperQueueExecutor(
            spool, slots=profile.config.slots, fetch=fetch, allow_open_server=name == "hyperqueue-open-server"
        )
    raise _refused(name)


def _refused(executor: object) -> InputInvalid:
    return InputInvalid("executor", executor, f"one of {', '.join(NAMES)}, or an Executor")
