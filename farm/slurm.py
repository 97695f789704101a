"""Slurm's words: the command lines that we ask it with, and what they print, as values.

Pure functions: whoever has a transport runs the command lines. They hold nothing that a restricted account
may not pass: no "|", no ";", no blanks that matter. Times are asked for as durations, because Slurm prints
moments in the time zone of its machine without naming it.

Source: checked with Slurm 22.05; the options are those of 20.02 and later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from grange.farm.errors import SchedulerRefused
from grange.farm.transport import Completed

#: What a job is to us; the words are those of the table `allocation`.
JobState = Literal["queued", "running", "ended", "failed", "cancelled"]

_STATES: dict[str, JobState] = {
    "PENDING": "queued",
    "CONFIGURING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_HOLD": "queued",
    "REQUEUE_FED": "queued",
    "RESV_DEL_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "STOPPED": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "STAGE_OUT": "running",
    "COMPLETED": "ended",
    "TIMEOUT": "ended",
    "PREEMPTED": "ended",
    "REVOKED": "ended",
    "CANCELLED": "cancelled",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "BOOT_FAIL": "failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "DEADLINE": "failed",
}

#: Begins our lines, so that what a login script prints is not taken for a job; "@" parts the fields.
_MARK = "grange-job"
_FIELDS = ("%i", "%T", "%r", "%D", "%C", "%M", "%L", "%j")

# Why Slurm does not take a job now but may later; in the words of its versions since 20.02.
_PASSING = re.compile(
    r"socket timed out|unable to contact slurm controller|slurm controller not responding|connection refused"
    r"|connection timed out|connection reset|communication connection failure|zero bytes were transmitted"
    r"|transport endpoint is not connected|standby mode|resource temporarily unavailable|temporarily unable"
    r"|authentication error|munge|required node not available|required partition not available"
    r"|\w*submit\w*limit",
    re.IGNORECASE,
)
# After these the job may be in the queue all the same.
_UNANSWERED = re.compile(
    r"socket timed out|zero bytes were transmitted|connection (timed out|reset)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Slurm tells of it.

    word: Slurm's own word for the state. reason: why it waits, or how it ended. Units: elapsed_s and left_s
    in seconds, of its walltime; left_s is None where Slurm knows no end.
    """

    id: str
    name: str
    state: JobState
    word: str
    reason: str
    nodes: int
    cores: int
    elapsed_s: int
    left_s: int | None


# ---------------------------------------------------------------- asking


def submit_argv(script: str) -> list[str]:
    """Submit a script. Run it in the job's folder, which is where the job starts."""
    return ["sbatch", "--parsable", script]


def queue_argv(names: Sequence[str] = (), *, user: str = "") -> list[str]:
    """The jobs of these names, or of a user, those included that ended some minutes ago.

    By name and not by number: a number that Slurm has forgotten is an error for it, and a job whose number
    never reached us is found by its name.
    """
    if not names and not user:
        raise ValueError("names or user: expected which jobs are asked for")
    chosen = [f"--name={','.join(names)}"] if names else []
    chosen += [f"--user={user}"] if user else []
    fields = "@".join((_MARK, *_FIELDS))
    return ["squeue", "--noheader", "--array", "--states=all", *chosen, f"--format={fields}"]


def ended_argv(ids: Iterable[str]) -> list[str]:
    """What became of jobs that the queue has forgotten; fails where Slurm keeps no accounts."""
    fields = "JobID,State,ExitCode,Elapsed,NNodes,NCPUS,JobName"
    return [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--format={fields}",
        f"--jobs={','.join(ids)}",
    ]


def cancel_argv(ids: Iterable[str], *, batch_only: bool = False, queued_only: bool = False) -> list[str]:
    """Cancel jobs.

    batch_only: a SIGTERM to the job's script alone. Without, Slurm signals what runs in the job too, and
    tasks that are ended so may count as finished. queued_only: leave alone what runs by now.
    """
    options = ["--batch", "--signal=TERM"] if batch_only else []
    options += ["--state=PENDING"] if queued_only else []
    return ["scancel", *options, *ids]


def kill_argv(ids: Iterable[str]) -> list[str]:
    """End jobs with everything that runs in them, at once."""
    return ["scancel", "--full", "--signal=KILL", *ids]


# ---------------------------------------------------------------- reading


def read_submitted(computer: str, completed: Completed) -> str:
    """The number of a job that was submitted.

    Errors: SchedulerRefused; its `unanswered` says that the job may be in the queue all the same.
    """
    if completed.status == 0:
        for line in reversed(completed.stdout.decode(errors="replace").splitlines()):
            found = re.fullmatch(r"(?:Submitted batch job )?(\d+)(?:;\S*)?", line.strip())
            if found:
                return found[1]
    raise refused(computer, "sbatch", completed)


def read_queue(computer: str, completed: Completed) -> list[Job]:
    """The jobs that queue_argv asked for. Errors: SchedulerRefused."""
    if completed.status != 0:
        raise refused(computer, "squeue", completed)
    jobs = []
    for line in completed.stdout.decode(errors="replace").splitlines():
        if line.startswith(_MARK + "@"):
            id_, word, reason, nodes, cores, elapsed, left, name = line.split("@", len(_FIELDS))[1:]
            jobs.append(
                Job(
                    id=id_,
                    name=name.strip(),
                    state=job_state(word),
                    word=word,
                    reason="" if reason == "None" else reason,
                    nodes=_count(nodes),
                    cores=_count(cores),
                    elapsed_s=parse_time(elapsed) or 0,
                    left_s=parse_time(left),
                )
            )
    return jobs


def read_ended(completed: Completed) -> list[Job]:
    """The jobs that ended_argv asked for; none where Slurm keeps no accounts."""
    if completed.status != 0:
        return []
    jobs = []
    for line in completed.stdout.decode(errors="replace").splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7 and re.fullmatch(r"\d+(_\d+)?", fields[0]) and fields[1]:
            id_, said, exit_code, elapsed, nodes, cores, name = fields
            word = said.split()[0]  # "CANCELLED by 1000"
            jobs.append(
                Job(
                    id=id_,
                    name=name,
                    state=job_state(word),
                    word=word,
                    reason="" if exit_code in ("0:0", "") else f"exit code {exit_code}",
                    nodes=_count(nodes),
                    cores=_count(cores),
                    elapsed_s=parse_time(elapsed) or 0,
                    left_s=None,
                )
            )
    return jobs


def read_cancelled(computer: str, completed: Completed) -> None:
    """See that scancel did what it could; jobs that have ended are no error. Errors: SchedulerRefused."""
    said = _said(completed)
    if completed.status != 0 and not re.search(r"invalid job id|already complet", said, re.IGNORECASE):
        raise refused(computer, "scancel", completed)


def refused(computer: str, program: str, completed: Completed) -> SchedulerRefused:
    """The error that a program of Slurm printed."""
    said = _said(completed)
    return SchedulerRefused(
        computer,
        f"{program}: {said or f'ended with status {completed.status}'}",
        retryable=bool(_PASSING.search(said)),
        unanswered=bool(_UNANSWERED.search(said)),
    )


def _said(completed: Completed) -> str:
    """What a program printed about an error, in one line."""
    text = (completed.stderr or completed.stdout).decode(errors="replace")
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in text.splitlines()]
    return "; ".join(line for line in lines[-4:] if line)[:1000]


def job_state(word: str) -> JobState:
    """What one of Slurm's words for a state means to us; one that we do not know counts as running."""
    return _STATES.get(word, "running")


def _count(text: str) -> int:
    """Slurm's numbers; it shortens large ones: 12K."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KM]?)", text.strip())
    if not found:
        return 0
    return round(float(found[1]) * {"": 1, "K": 1024, "M": 1024**2}[found[2]])


# ---------------------------------------------------------------- times


def time_text(seconds: int) -> str:
    """A walltime as Slurm takes it: "1-02:03:04". It counts whole minutes, upwards."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02}:{minutes:02}:{rest:02}"


def parse_time(text: str) -> int | None:
    """Seconds of a time in Slurm's words: 1-02:03:04, 1-02, 02:03:04, 03:04 (minutes), 5 (minutes).

    None for UNLIMITED, INVALID, N/A and whatever else is no time.
    """
    found = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?|(?:(\d+):)?(\d+):(\d+)|(\d+))", text.strip())
    if not found:
        return None
    days, day_hours, day_minutes, day_seconds, hours, minutes, seconds, only = (
        int(part or 0) for part in found.groups()
    )
    return (
        86400 * days
        + 3600 * (day_hours + hours)
        + 60 * (day_minutes + minutes + only)
        + day_seconds
        + seconds
    )
