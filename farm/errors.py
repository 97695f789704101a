"""What can go wrong with commands and machines.

FarmError
├── TaskRefused             the task can never run there (fix the input)
├── FunctionNotShippable    a Python function cannot travel to a runner (fix the input)
├── ResultMalformed         a result pack cannot be read (permanent)
├── SpoolUnwritable         the spool folder cannot be written: full, read-only (mend, then again)
├── ExecutorUnavailable     the executor could not be started or was lost (retry)
├── TransportFailed         a computer could not be used
│   ├── TransportUnavailable    not reached, or the connection was lost (retry)
│   │   ├── CommandTimedOut         a command took too long; it may go on there (retry)
│   │   └── ConnectionNotYet        the next connection may not begin yet (retry after retry_after_s)
│   ├── AuthenticationRefused   it does not let us in (a person has to act)
│   ├── HostKeyRefused          its key is not known, or is another one (a person has to act)
│   ├── CommandRefused          the account may not run that command (fix the configuration)
│   ├── RemoteMissing           a file is not there (permanent)
│   └── RemoteFull              no room there, or not ours to write (mend, then again)
├── ComputerPaused          too many connections failed: resume it (a person has to act)
└── SchedulerRefused        the scheduler did not take a job (fix the input, or wait)
"""

from __future__ import annotations


class FarmError(Exception):
    """Something is wrong with running tasks."""


class TaskRefused(FarmError):
    """A task asks for what this executor can never give."""


class FunctionNotShippable(FarmError):
    """A Python function cannot be sent to a runner."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"the function {name} cannot be sent to a runner: {reason}")


class ResultMalformed(FarmError):
    """A file of the spool is not a result pack."""


class SpoolUnwritable(FarmError):
    """The spool folder cannot be written."""


class ExecutorUnavailable(FarmError):
    """The executor could not be started, or was lost."""


class TransportFailed(FarmError):
    """A computer could not be used."""

    def __init__(self, computer: str, reason: str) -> None:
        self.computer = computer
        self.reason = reason
        super().__init__(f"{computer}: {reason}")


class TransportUnavailable(TransportFailed):
    """A computer was not reached, or the connection was lost."""


class CommandTimedOut(TransportUnavailable):
    """A command took longer than it was given; it may go on there."""


class ConnectionNotYet(TransportUnavailable):
    """There is no connection, and the next one may not begin before some seconds have passed."""

    def __init__(self, computer: str, reason: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(computer, reason)


class AuthenticationRefused(TransportFailed):
    """A computer does not let us in."""


class HostKeyRefused(TransportFailed):
    """The key of a host is not known here, or is another one than it was."""


class CommandRefused(TransportFailed):
    """The account may not run that command."""


class RemoteMissing(TransportFailed):
    """A file is not there."""


class RemoteFull(TransportFailed):
    """There is no room on the other side, or it is not ours to write."""


class ComputerPaused(TransportFailed):
    """Too many connections failed one after the other; nothing is tried until somebody resumes it."""


class SchedulerRefused(TransportFailed):
    """The scheduler did not take a job, or did not answer.

    retryable: it may take it later as it is. unanswered: it may have taken it, only the answer was lost.
    """

    def __init__(
        self, computer: str, reason: str, *, retryable: bool = False, unanswered: bool = False
    ) -> None:
        self.retryable = retryable
        self.unanswered = unanswered
        super().__init__(computer, reason)
