"""What is done with allocations: start, look after, stop. Slurm is asked outside of transactions.

Whatever is interrupted here is found again: a job by its name, a row by its state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grange.core import allocation as rows
from grange.core import allocation_policy as policies
from grange.core.allocation import Allocation
from grange.core.database import Cursor
from grange.core.errors import InputInvalid
from grange.core.profile import Profile
from grange.core.site import Site
from grange.farm import slurm
from grange.farm.allocation import (
    LOG,
    SCRIPT,
    SETTINGS,
    STOP,
    AllocationRequest,
    job_script,
    settings_text,
)
from grange.farm.allocation_policy import after_failure, after_success
from grange.farm.computer import Computer
from grange.farm.errors import CommandRefused, SchedulerRefused

#: So old a row has to be before a job that Slurm does not know is given up. Seconds.
LOST_AFTER_S = 60.0
#: So long workers may take to end in order before their job is cancelled. Seconds.
GRACE_S = 45.0


@dataclass(frozen=True, slots=True)
class Started:
    """What came of starting allocations. refused: why some were not started, None where all were."""

    allocations: list[Allocation]
    refused: SchedulerRefused | None


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of an allocation since it was last looked at."""

    before: Allocation
    after: Allocation


def checked_computer(computer: Computer) -> Computer:
    """The computer, if there can be allocations on it. Errors: InputInvalid."""
    if computer.scheduler != "slurm":
        raise InputInvalid(
            computer.label,
            computer.scheduler,
            "a computer with the scheduler slurm: without one, chunks run there at once",
        )
    if computer.hyperqueue == "none":
        raise InputInvalid(
            computer.label,
            computer.hyperqueue,
            "a computer with HyperQueue, whose workers allocations hold: without it, chunks are jobs of "
            f"their own; `grange computer edit {computer.label} --hyperqueue hq` names it",
        )
    return computer


# ---------------------------------------------------------------- starting


def start(profile: Profile, site: Site, requests: Sequence[AllocationRequest]) -> Started:
    """Start allocations: their rows, then their folders there, then their jobs.

    Errors: InputInvalid; SchedulerRefused where the computer's bounds leave no room; those of Transport,
    after which refresh() finds out whether the last job was taken.
    """
    checked_computer(site.computer)
    site.remote.prepare()
    with profile.transaction() as cursor:
        ids = rows.reserve(cursor, site.id, site.computer, requests)
    return submit(profile, site, ids, requests)


def submit(
    profile: Profile, site: Site, ids: Sequence[int], requests: Sequence[AllocationRequest]
) -> Started:
    """Submit allocations that are reserved by this session; however it ends, they are released."""
    refused, tried = None, 0
    try:
        _send(site, requests)
        for id_, request in zip(ids, requests, strict=True):
            tried += 1
            folder = site.paths.folder(request.token)
            done = site.remote.transport.run(slurm.submit_argv(SCRIPT), cwd=folder)
            try:
                job_id = slurm.read_submitted(site.computer.label, done)
            except SchedulerRefused as error:
                refused = error
            with profile.transaction() as cursor:
                if refused is None:
                    rows.record_submitted(cursor, id_, job_id)
                elif not refused.unanswered:
                    rows.record_not_submitted(cursor, [id_], "failed", refused.reason)
                    _record_outcome(cursor, site, failed=refused.reason)
            if refused is not None:
                break
    finally:
        # One that was tried and had no answer stays as it is: refresh() looks for its job.
        with profile.transaction() as cursor:
            rows.record_not_submitted(cursor, ids[tried:], "cancelled", "not submitted")
            rows.release(cursor, ids)
    with profile.transaction() as cursor:
        return Started(rows.find(cursor, ids), refused)


def _send(site: Site, requests: Sequence[AllocationRequest]) -> None:
    """Put the folders of allocations there."""
    files: list[tuple[bytes, str]] = []
    for request in requests:
        folder = site.paths.folder(request.token)
        settings = settings_text(site.computer, request, site.paths)
        files.append((settings.encode(), f"{folder}/{SETTINGS}"))
        files.append((job_script(site.computer, request, site.paths).encode(), f"{folder}/{SCRIPT}"))
    site.remote.transport.put(files)


# ---------------------------------------------------------------- looking after


def refresh(profile: Profile, site: Site, *, lost_after_s: float = LOST_AFTER_S) -> list[Change]:
    """Ask Slurm once about all allocations of a computer, and record what has become of them.

    Failures and successes are counted for the computer's policy.
    Errors: SchedulerRefused where Slurm does not answer; those of Transport.
    """
    with profile.transaction() as cursor:
        watched = rows.watched(cursor, site.id)
    if not watched:
        return []
    jobs, surplus = chosen(watched, _ask(site, watched))
    if surplus:
        _cancel(site, slurm.cancel_argv(surplus, queued_only=True))
    observed = [rows.observe(one, jobs.get(one.id), lost_after_s=lost_after_s) for one in watched]
    news = _with_reasons(site, watched, [one for one in observed if one is not None])
    if not news:
        return []
    with profile.transaction() as cursor:
        changed = rows.record_observed(cursor, news)
        ids = [one.id for one in watched if one.id in changed]
        after = rows.find(cursor, ids)
        failed = [one.reason for one in after if one.state == "failed"]
        if failed:
            _record_outcome(cursor, site, failed=failed[0])
        elif any(one.state == "ended" for one in after):
            _record_outcome(cursor, site, failed=None)
    before = {one.id: one for one in watched}
    return [Change(before[one.id], one) for one in after]


def _with_reasons(
    site: Site, watched: Sequence[Allocation], news: Sequence[rows.Observed]
) -> list[rows.Observed]:
    """Let those that ended by themselves tell why: that their workers were idle, for example."""
    ended = {one.id for one in news if one.state == "ended" and not one.reason}
    if not ended:
        return list(news)
    said = workers(site, [one for one in watched if one.id in ended])
    reasons = {
        id_: "; ".join(sorted({str(worker["reason"]) for worker in those if worker.get("reason")}))
        for id_, those in said.items()
    }
    return [replace(one, reason=reasons[one.id]) if one.id in ended else one for one in news]


def chosen(
    watched: Sequence[Allocation], jobs: Sequence[slurm.Job]
) -> tuple[dict[int, slurm.Job], list[str]]:
    """The job of each allocation that has one, by the allocation's id, and the numbers of jobs beyond that.

    A connection that is lost while sbatch runs is made again, and sbatch is run again: two jobs may have one
    name. The script sees to it that one of them alone becomes the allocation; the other waits for nothing.
    """
    found: dict[int, slurm.Job] = {}
    surplus: list[str] = []
    order = ("running", "queued")
    for one in watched:
        named = [job for job in jobs if job.name == one.name]
        named.sort(
            key=lambda job: (
                order.index(job.state) if job.state in order else len(order),
                job.id != one.job_id,
                -job.elapsed_s,
                len(job.id),
                job.id,
            )
        )
        if named:
            found[one.id] = named[0]
            surplus += [job.id for job in named[1:] if job.state == "queued"]
    return found, surplus


def _ask(site: Site, watched: Sequence[Allocation]) -> list[slurm.Job]:
    """What Slurm knows of allocations: the queue, and its accounts for those that the queue has forgotten."""
    label, transport = site.computer.label, site.remote.transport
    jobs = slurm.read_queue(label, transport.run(slurm.queue_argv([one.name for one in watched])))
    seen = {job.name for job in jobs}
    forgotten = [one.job_id for one in watched if one.job_id is not None and one.name not in seen]
    if forgotten:
        # Numbers are given out again when a cluster is set up anew: only jobs of ours, by their names.
        names = {one.name for one in watched}
        ended = slurm.read_ended(transport.run(slurm.ended_argv(forgotten)))
        jobs += [job for job in ended if job.name in names]
    return jobs


def _record_outcome(cursor: Cursor, site: Site, *, failed: str | None) -> None:
    """Count for the policy of a computer that an allocation failed (why), or did well (None)."""
    rows.lock_queue(cursor, site.id)
    stored = policies.find(cursor, site.id, site.computer)
    if stored is None:
        return
    if failed is not None:
        policies.record_failures(cursor, site.id, after_failure(stored.policy, time.time()), failed)
    elif stored.policy.failures:
        policies.record_failures(cursor, site.id, after_success(stored.policy), "")


# ---------------------------------------------------------------- stopping


def stop(profile: Profile, site: Site, ids: Collection[int], *, now: bool = False) -> None:
    """Tell allocations to end: queued ones never start, workers hand over what is finished and end in order.

    Returns when they are told; wait_for_end() waits. now: end them with all that runs in them; tasks that
    ran are run again by others.
    Errors: those of Transport; SchedulerRefused.
    """
    with profile.transaction() as cursor:
        rows.record_stopping(cursor, ids)
    refresh(profile, site)  # the numbers of jobs that were just being submitted
    with profile.transaction() as cursor:
        open_ = [one for one in rows.find(cursor, list(ids)) if one.is_open]
    if not open_:
        return
    transport = site.remote.transport
    # For workers, and for the script of a job that begins in this moment, or that nobody may cancel.
    transport.put([(b"", f"{site.paths.folder(one.token)}/{STOP}") for one in open_])
    jobs = [one.job_id for one in open_ if one.job_id is not None]
    running = [one.job_id for one in open_ if one.job_id is not None and one.state == "running"]
    if now:
        _cancel(site, slurm.kill_argv(jobs) if jobs else None)
    else:
        _cancel(site, slurm.cancel_argv(jobs, queued_only=True) if jobs else None)
        _cancel(site, slurm.cancel_argv(running, batch_only=True) if running else None)
    refresh(profile, site)


def wait_for_end(
    profile: Profile, site: Site, ids: Collection[int], *, grace_s: float = GRACE_S, every_s: float = 1.0
) -> list[Allocation]:
    """Wait until allocations that were told to stop have ended; cancel the jobs of those that take too long.

    Returns those that are open still, because the account may not cancel jobs for example.
    """
    deadline, patience = time.monotonic() + grace_s, 1
    while True:
        refresh(profile, site)
        with profile.transaction() as cursor:
            open_ = [one for one in rows.find(cursor, list(ids)) if one.is_open]
        if not open_:
            return []
        if time.monotonic() >= deadline:
            if not patience:
                return open_
            patience, deadline = 0, time.monotonic() + grace_s
            jobs = [one.job_id for one in open_ if one.job_id is not None]
            _cancel(site, slurm.cancel_argv(jobs) if jobs else None)
        time.sleep(every_s)


def _cancel(site: Site, argv: list[str] | None) -> None:
    """Run scancel; an account that may not is served by the stop mark."""
    if argv is None or site.computer.ssh.restricted:
        return
    try:
        slurm.read_cancelled(site.computer.label, site.remote.transport.run(argv))
    except CommandRefused:
        return


# ---------------------------------------------------------------- looking in


def workers(site: Site, allocations: Sequence[Allocation]) -> dict[int, list[dict[str, Any]]]:
    """What the workers of allocations say of themselves, by the allocation's id."""
    folders = [site.paths.folder(one.token) for one in allocations]
    listed = site.remote.transport.list(folders)
    paths = [
        (one.id, f"{folder}/{entry.name}")
        for one, folder, entries in zip(allocations, folders, listed, strict=True)
        for entry in entries or ()
        if entry.name.startswith("worker-") and entry.name.endswith(".json")
    ]
    said: dict[int, list[dict[str, Any]]] = {one.id: [] for one in allocations}
    for (id_, _), content in zip(paths, site.remote.transport.read([path for _, path in paths]), strict=True):
        try:
            worker = json.loads(content or b"null")
        except ValueError:  # being written
            continue
        if isinstance(worker, dict):
            said[id_].append(worker)
    return said


def logs(site: Site, one: Allocation) -> dict[str, bytes]:
    """What an allocation's job said, and each of its workers, by the names of their files."""
    folder = site.paths.folder(one.token)
    (entries,) = site.remote.transport.list([folder])
    names = [entry.name for entry in entries or () if entry.name == LOG or entry.name.endswith(".log")]
    names.sort(key=lambda name: (name != LOG, name))
    contents = site.remote.transport.read([f"{folder}/{name}" for name in names])
    return {name: content for name, content in zip(names, contents, strict=True) if content}
