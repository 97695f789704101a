"""Exit codes: the known ways for a calculation to fail."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ExitCode:
    """A known way to fail: a number above 0, and what it means.

    The message may have {places} that are filled when it happens: `ERROR.format(energy=e)`.
    invalidates_cache: equal calculations do not believe one that failed so: they are run. Without it they
    fail at once in the same way, as in AiiDA.
    """

    status: int
    message: str
    invalidates_cache: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.message, str):  # None, as AiiDA takes it, or what somebody had at hand
            object.__setattr__(self, "message", "" if self.message is None else str(self.message))
        if type(self.status) is not int or not 0 < self.status < 1 << 31:
            raise ValueError(
                f"an exit status is an int above 0, as 0 means success, and below 2**31; got {self.status!r}"
            )

    def format(self, **places: object) -> ExitCode:
        """The same exit code with its message filled in.

        Errors: KeyError for a place that was not given.
        """
        return replace(self, message=self.message.format(**places))
