"""What can go wrong with commands and machines.

FarmError
├── TaskRefused             the task can never run there (fix the input)
├── FunctionNotShippable    a Python function cannot travel to a runner (fix the input)
├── ResultMalformed         a result pack cannot be read (permanent)
├── SpoolUnwritable         the spool folder cannot be written: full, read-only (mend, then again)
└── ExecutorUnavailable     the executor could not be started or was lost (retry)
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
