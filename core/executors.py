"""Which executor runs a campaign, by name."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grange.core import computer as computers
from grange.core.computer import StoredComputer
from grange.core.connection import open_connection
from grange.core.delivery import delivery_of
from grange.core.errors import ComputerDisabled, InputInvalid, NotFound
from grange.core.profile import Profile
from grange.farm.chunk_folder import Fetch
from grange.farm.executor import Executor
from grange.farm.offer import Offer
from grange.repository import Key

if TYPE_CHECKING:
    from grange.farm.cluster_executor import ClusterExecutor

#: Names that computers cannot have.
NAMES = ("local", "hyperqueue", "hyperqueue-open-server")


@dataclass(frozen=True, slots=True)
class OpenExecutor:
    """An executor for the time of a run, and the computer that it stands for, if it does for one."""

    executor: Executor
    computer_id: int | None = None


@contextmanager
def open_executor(profile: Profile, campaign_id: int, executor: str | Executor) -> Iterator[OpenExecutor]:
    """An executor for the time of a run; one that was handed in is left open.

    "local": runner processes on this machine, no server, no port. "hyperqueue": HyperQueue's own
    server and worker on this machine, in a network namespace that nothing outside reaches, so that its
    tasks have no network either. "hyperqueue-open-server": the same without the namespace; whoever
    reaches the server's port can run commands as you. Any other name is a computer's.

    Each campaign has a spool of its own, and one for each computer, so that what a killed run left is found
    by the next run of it. Errors: InputInvalid, NotFound for a name that nothing has.
    """
    if not isinstance(executor, str):
        if not all(hasattr(executor, name) for name in ("submit", "poll", "acknowledge", "recover")):
            raise _refused(executor)
        yield OpenExecutor(executor)
        return
    if executor not in NAMES:
        with _on_computer(profile, campaign_id, executor) as opened:
            yield opened
        return
    made = _make(profile, campaign_id, executor)
    try:
        yield OpenExecutor(made)
    finally:
        made.close()


def checked_name(profile: Profile, executor: str | Executor) -> str | None:
    """The name of a computer, if the executor is one; None for all others.

    Errors: InputInvalid, NotFound.
    """
    if not isinstance(executor, str) or executor in NAMES:
        return None
    return load_computer(profile, executor).computer.label


def computer_id_of(profile: Profile, executor: str | Executor | None) -> int | None:
    """The row of the computer that an executor's name means; None for all others. Errors: as checked_name."""
    if not isinstance(executor, str) or executor in NAMES:
        return None
    return load_computer(profile, executor).id


def load_computer(profile: Profile, label: str) -> StoredComputer:
    """The computer that an executor's name means. Errors: NotFound, ComputerDisabled."""
    try:
        with profile.transaction() as cursor:
            stored = computers.load(cursor, label, user_id=profile.user_id)
    except NotFound as error:
        raise NotFound(f"{error} (and no executor is called so: there are {', '.join(NAMES)})") from None
    if not stored.enabled:
        raise ComputerDisabled(label)
    return stored


@contextmanager
def _on_computer(profile: Profile, campaign_id: int, label: str) -> Iterator[OpenExecutor]:
    from grange.farm.cluster_executor import ClusterExecutor

    stored = load_computer(profile, label)

    def tell(why: str) -> None:
        made.lost = why

    with contextlib.closing(open_connection(profile, stored.computer, stored.id, tell=tell)) as transport:
        made = ClusterExecutor(
            profile.spool / f"campaign-{campaign_id}@{label}",
            stored.computer,
            transport,
            fetch=_fetch(profile),
            delivery=delivery_of(profile, campaign_id),
            offer=_offer(profile, stored),
        )
        try:
            with _policy_followed(profile, stored, made):
                yield OpenExecutor(made, stored.id)
        finally:
            made.close()


def _policy_followed(
    profile: Profile, stored: StoredComputer, executor: ClusterExecutor
) -> AbstractContextManager[None]:
    """While a campaign runs, its computer's allocations grow and shrink as its policy says.

    The executor is told why no workers are there.
    """
    if stored.computer.hyperqueue == "none" or stored.computer.scheduler != "slurm":
        return contextlib.nullcontext()
    from grange.core.allocation_watch import followed

    def say(why: str) -> None:
        executor.said = why

    return followed(profile, stored.computer.label, say, lambda: executor.cores > 0)


def _offer(profile: Profile, stored: StoredComputer) -> Offer:
    """What the allocations of a computer come to: those that are there, and those of its policy."""
    if stored.computer.hyperqueue == "none":
        return Offer()
    with profile.transaction() as cursor:
        cursor.execute(
            """
            SELECT nodes, walltime_s, max_allocations FROM allocation_policy
            WHERE computer_id = %(id)s AND max_allocations > 0
            UNION ALL
            SELECT nodes, walltime_s, 1 FROM allocation
            WHERE computer_id = %(id)s AND state IN ('submitting', 'queued', 'running')
            """,
            {"id": stored.id},
        )
        rows = cursor.fetchall()
    if not rows:
        nodes = stored.computer.max_allocations
        return Offer(nodes * (stored.computer.cores_per_node or 1))
    most = max(nodes * count for nodes, _, count in rows)
    return Offer(
        most * (stored.computer.cores_per_node or 1),
        max(nodes for nodes, _, _ in rows),
        float(max(walltime_s for _, walltime_s, _ in rows)),
    )


def _fetch(profile: Profile) -> Fetch:
    def fetch(keys: Collection[Key]) -> dict[Key, bytes]:
        wanted = list(keys)
        with profile.transaction() as cursor:
            return dict(zip(wanted, profile.repository.read(wanted, profile.index(cursor)), strict=True))

    return fetch


def _make(profile: Profile, campaign_id: int, name: str) -> Executor:
    spool = profile.spool / f"campaign-{campaign_id}"
    fetch = _fetch(profile)
    if name == "local":
        from grange.farm.local_pool import LocalPool

        return LocalPool(spool, slots=profile.config.slots, fetch=fetch)
    from grange.farm.hyperqueue_executor import HyperQueueExecutor

    return HyperQueueExecutor(
        spool, slots=profile.config.slots, fetch=fetch, allow_open_server=name == "hyperqueue-open-server"
    )


def _refused(executor: object) -> InputInvalid:
    return InputInvalid(
        "executor", executor, f"one of {', '.join(NAMES)}, a computer's label, or an Executor"
    )
