"""Following the policies of computers: look, decide, start and stop, again and again.

What is decided is decided by farm.allocation_policy. Any number of processes may watch the same computers:
each decides and reserves under a lock on the computer, so that together they never start too many.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from grange.core import allocation as rows
from grange.core import allocation_launcher as launcher
from grange.core import allocation_policy as policies
from grange.core import computer as computers
from grange.core.allocation import Allocation
from grange.core.errors import GrangeError
from grange.core.profile import Profile, open_profile
from grange.core.site import Site, reached
from grange.farm.allocation import AllocationRequest, request_on
from grange.farm.allocation_policy import OpenAllocation, Start, Stop, decide
from grange.farm.errors import FarmError
from grange.farm.slurm import time_text

#: Seconds between two looks at a computer.
EVERY_S = 15.0
#: Seconds to the first look of a campaign's run, in which it records what is to be done; then twice as many
#: each time.
FIRST_S = 2.0
#: Seconds in which workers come once their job has begun.
WORKERS_COME_S = 30.0
#: A computer that cannot be asked is left alone for twice as long each time, at most so long. Seconds.
LONGEST_PAUSE_S = 600.0

EventKind = Literal["started", "changed", "stopped", "refused", "held", "trouble"]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened while allocations were watched."""

    time: datetime
    computer: str
    event: EventKind
    message: str
    allocation: int | None = None
    job_id: str | None = None
    state: str | None = None


Report = Callable[[WatchEvent], None]


def watch(
    profile: Profile,
    labels: Sequence[str],
    report: Report,
    *,
    once: bool = False,
    every_s: float = EVERY_S,
) -> bool:
    """Follow the policies of these computers, or of all that have one, until interrupted.

    once: look and act a single time; returns whether there was no trouble. What goes wrong with one
    computer is reported, and tried again later; the others are looked after meanwhile.
    """
    watchers: dict[str, _Watcher] = {}
    with ExitStack() as stack:
        while True:
            wanted = list(labels)
            try:
                if not wanted:
                    with profile.transaction() as cursor:
                        wanted = policies.computers_with_policy(cursor)
            except GrangeError as error:
                if once:
                    raise
                report(_event("", "trouble", str(error)))
            for label in wanted:
                if label not in watchers:
                    watchers[label] = stack.enter_context(_Watcher(profile, label, report))
            for label in wanted:
                watchers[label].look(every_s)
            if once:
                return not any(watcher.failures for watcher in watchers.values())
            time.sleep(every_s)


@contextmanager
def followed(
    profile: Profile,
    label: str,
    say: Callable[[str], None],
    has_workers: Callable[[], bool],
    *,
    every_s: float = EVERY_S,
) -> Iterator[None]:
    """Follow the policy of a computer for the time of the block, if it has one, also one that is said
    meanwhile; and say why no workers are there.

    A thread does it, with a profile of its own: what goes wrong there is said and does not concern the
    block.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_follow_until,
        args=(ended, profile.home, label, say, has_workers, every_s),
        name=f"policy {label}",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2.0)


def _follow_until(
    ended: threading.Event,
    home: Path,
    label: str,
    say: Callable[[str], None],
    has_workers: Callable[[], bool],
    every_s: float,
) -> None:
    trouble = ""

    def report(event: WatchEvent) -> None:
        nonlocal trouble
        trouble = event.message if event.event in ("trouble", "held", "refused") else ""

    pause_s = FIRST_S
    try:
        with open_profile(home) as profile, _Watcher(profile, label, report) as watcher:
            while not ended.wait(min(pause_s, every_s)):
                pause_s *= 2
                with profile.transaction() as cursor:
                    has_policy = label in policies.computers_with_policy(cursor)
                if has_policy or not has_workers():
                    watcher.look(every_s, has_policy=has_policy)
                    say(trouble or watcher.why_no_workers(has_policy=has_policy))
    except (GrangeError, FarmError) as error:
        say(str(error))


class _Watcher:
    """Watches one computer; what it is and how it is reached is read anew after trouble."""

    def __init__(self, profile: Profile, label: str, report: Report) -> None:
        self._profile = profile
        self._label = label
        self._report = report
        self._stack = ExitStack()
        self._site: Site | None = None
        self._not_before_s = 0.0
        self._said = ""
        self.failures = 0

    def __enter__(self) -> _Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, every_s: float, *, has_policy: bool = True) -> None:
        """Look once, unless trouble was a short while ago, and do what the policy says, if there is one."""
        if time.monotonic() < self._not_before_s:
            return
        try:
            if self._site is None:
                self._site = self._stack.enter_context(reached(self._profile, self._label))
            for event in (
                follow(self._profile, self._site) if has_policy else refreshed(self._profile, self._site)
            ):
                self._say(event)
        except (GrangeError, FarmError) as error:
            self.failures += 1
            pause_s = min(every_s * 2 ** min(self.failures, 10), LONGEST_PAUSE_S)
            self._not_before_s = time.monotonic() + pause_s
            self._site = None
            self._stack.close()
            self._say(_event(self._label, "trouble", str(error)))
        else:
            self.failures = 0
            self._not_before_s = 0.0

    def why_no_workers(self, *, has_policy: bool) -> str:
        """Why no workers are there."""
        with self._profile.transaction() as cursor:
            id_ = computers.computer_id(cursor, self._label)
            newest = rows.list_allocations(cursor, id_, ended=True, limit=20, before=2**31 - 1)
        return why_no_workers(self._label, newest, has_policy=has_policy)

    def _say(self, event: WatchEvent) -> None:
        """Report an event; what is said of a lasting state is said once."""
        lasting = event.message if event.event in ("trouble", "held") else ""
        if lasting and lasting == self._said:
            return
        self._said = lasting
        self._report(event)


def follow(profile: Profile, site: Site) -> list[WatchEvent]:
    """One look at a computer: record what has become of its allocations, and do what its policy says.

    Errors: those of Transport; SchedulerRefused where Slurm does not answer; DatabaseUnavailable.
    """
    label = site.computer.label
    events = refreshed(profile, site)
    with profile.transaction() as cursor:
        stored = policies.find(cursor, site.id, site.computer)
    if stored is None:
        return events
    launcher.checked_computer(site.computer)
    decided = _decide(profile, site)
    for command in decided.stops:
        launcher.stop(profile, site, [command.id])
        with profile.transaction() as cursor:
            (one,) = rows.find(cursor, [command.id])
        events.append(_event(label, "stopped", f"allocation {one.id} is not needed any more", one))
    if decided.requests:
        # Sends our code if need be; the rows are reserved after it, because it may take long.
        site.remote.prepare()
        events += _start(profile, site)
    with profile.transaction() as cursor:
        stored = policies.find(cursor, site.id, site.computer)
    if stored is not None and stored.policy.held_until_s > time.time():
        events.append(_event(label, "held", held_text(stored)))
    return events


def refreshed(profile: Profile, site: Site) -> list[WatchEvent]:
    """Record what has become of the allocations of a computer; those whose state is another one.

    Why a job waits changes with every look; what it is does not. Errors: those of Transport;
    SchedulerRefused where Slurm does not answer; DatabaseUnavailable.
    """
    changes = launcher.refresh(profile, site)
    return [_changed(change.after) for change in changes if change.before.state != change.after.state]


def why_no_workers(label: str, newest: Sequence[Allocation], *, has_policy: bool) -> str:
    """What the allocations of a computer, the newest first, tell somebody who waits for workers."""
    queued = [one for one in newest if one.is_open and one.state != "running" and not one.is_stopping]
    running = [one for one in newest if one.state == "running" and not one.is_stopping]
    if running:
        one = running[0]
        if (one.elapsed_s or 0.0) < WORKERS_COME_S:
            return f"allocation {one.id} has begun, its workers are about to come"
        return f"allocation {one.id} runs, but no worker of it has come: grange allocation log {one.id}"
    if queued:
        ids = ", ".join(str(one.id) for one in reversed(queued))
        waits = "allocation {} waits" if len(queued) == 1 else "allocations {} wait"
        reason = f" ({queued[-1].reason})" if queued[-1].reason else ""
        return f"{waits.format(ids)} in the queue of Slurm{reason}"
    if has_policy:
        return "no worker is there yet; an allocation is started as its policy says"
    failed = f"; the last one failed: {newest[0].reason}" if newest and newest[0].state == "failed" else ""
    return f"no worker is there: grange allocation start {label}{failed}"


@dataclass(frozen=True, slots=True)
class _Decided:
    """What is to be done. ids: the rows of the requests, where they were reserved."""

    stops: list[Stop]
    requests: list[AllocationRequest]
    ids: list[int]


def _decide(profile: Profile, site: Site, *, reserve: bool = False) -> _Decided:
    """Decide under the computer's lock; reserve: and take the rows of what is to be started."""
    with profile.transaction() as cursor:
        rows.lock_queue(cursor, site.id)
        stored = policies.find(cursor, site.id, site.computer)
        if stored is None:
            return _Decided([], [], [])
        open_ = rows.open_allocations(cursor, site.id)
        backlog = policies.backlog(cursor, site.id, site.computer)
        stopping = sum(one.is_stopping for one in open_)
        bound = min(stored.policy.max_allocations, site.computer.max_allocations)
        policy = replace(stored.policy, max_allocations=max(bound - stopping, 0))
        commands = decide(
            policy,
            [_open(one) for one in open_ if not one.is_stopping],
            backlog,
            time.time(),
            room=site.computer.max_queued_jobs - len(open_),
        )
        requests = [
            request_on(site.computer, nodes=policy.nodes, walltime_s=policy.walltime_s, idle_s=command.idle_s)
            for command in commands
            if isinstance(command, Start)
            for _ in range(command.count)
        ]
        ids = []
        if reserve and requests:
            ids = rows.reserve(cursor, site.id, site.computer, requests, by_policy=True)
    return _Decided([command for command in commands if isinstance(command, Stop)], requests, ids)


def _start(profile: Profile, site: Site) -> list[WatchEvent]:
    label = site.computer.label
    decided = _decide(profile, site, reserve=True)
    if not decided.requests:
        return []
    started = launcher.submit(profile, site, decided.ids, decided.requests)
    events = [
        _event(label, "started", f"allocation {one.id} submitted: {_size(one)}", one)
        for one in started.allocations
        if one.job_id
    ]
    if started.refused is not None:
        events.append(_event(label, "refused", started.refused.reason))
    return events


def _open(one: Allocation) -> OpenAllocation:
    return OpenAllocation(
        id=one.id,
        state="running" if one.state == "running" else "queued",
        cores=one.cores or one.nodes,
        left_s=one.left_s or 0.0,
        idle_s=one.idle_s,
        walltime_s=one.walltime_s,
        by_policy=one.by_policy,
    )


def _size(one: Allocation) -> str:
    return f"{one.nodes} {'node' if one.nodes == 1 else 'nodes'} for {time_text(one.walltime_s)}"


def _changed(one: Allocation) -> WatchEvent:
    why = f": {one.reason}" if one.reason else ""
    return _event(one.computer, "changed", f"allocation {one.id} {one.state}{why}", one)


def _event(label: str, kind: EventKind, message: str, one: Allocation | None = None) -> WatchEvent:
    return WatchEvent(
        datetime.now(UTC),
        label,
        kind,
        message,
        one.id if one else None,
        one.job_id if one else None,
        one.state if one else None,
    )


def held_text(stored: policies.StoredPolicy) -> str:
    """Why nothing is started, and until when."""
    policy = stored.policy
    tries = "1 failure" if policy.failures == 1 else f"{policy.failures} failures in a row"
    if policies.is_held_for_good(policy):
        return f"nothing is started after {tries} until somebody looks: {stored.held_reason}"
    until = datetime.fromtimestamp(policy.held_until_s, UTC).astimezone().strftime("%H:%M:%S")
    return f"nothing is started before {until}, after {tries}: {stored.held_reason}"
