"""The exit codes of a class, by label: Energy.exit_codes.ERROR_SCHEDULER_OUT_OF_WALLTIME."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from grange.core import exit_status
from grange.core.exit_code import ExitCode

#: Those of every calculation job, with AiiDA's labels where AiiDA has the thing.
OF_JOBS = {
    "ERROR_UNSPECIFIED": exit_status.UNSPECIFIED,
    "ERROR_INVALID_OUTPUT": exit_status.OUTPUT_INVALID,
    "ERROR_MISSING_OUTPUT": exit_status.OUTPUT_MISSING,
    "ERROR_NO_RETRIEVED_FOLDER": exit_status.NO_RETRIEVED_FOLDER,
    "ERROR_SCHEDULER_OUT_OF_MEMORY": exit_status.OUT_OF_MEMORY,
    "ERROR_SCHEDULER_OUT_OF_WALLTIME": exit_status.OUT_OF_WALLTIME,
    "ERROR_SCHEDULER_INVALID_ACCOUNT": exit_status.INVALID_ACCOUNT,
    "ERROR_SCHEDULER_NODE_FAILURE": exit_status.NODE_FAILURE,
    "STOPPED_BY_MONITOR": exit_status.STOPPED_BY_MONITOR,
    "ERROR_DIED": exit_status.DIED,
    "ERROR_NON_ZERO_EXIT": exit_status.NON_ZERO_EXIT,
    "ERROR_OUTPUT_NOT_RETRIEVED": exit_status.OUTPUT_NOT_RETRIEVED,
    "ERROR_OUTPUT_NOT_PARSED": exit_status.OUTPUT_NOT_PARSED,
    "ERROR_OUTPUT_NOT_STASHED": exit_status.OUTPUT_NOT_STASHED,
    "ERROR_PROGRAM_MISSING": exit_status.PROGRAM_MISSING,
    "ERROR_INPUT_NOT_WRITTEN": exit_status.INPUT_NOT_WRITTEN,
}


class ExitCodes(Mapping[str, ExitCode]):
    """Exit codes by label, also as attributes; called with a status, the exit code that has it."""

    def __init__(self, codes: Mapping[str, ExitCode]) -> None:
        self._codes = codes

    def __getitem__(self, label: str) -> ExitCode:
        return self._codes[label]

    def __getattr__(self, label: str) -> ExitCode:
        if label.startswith("_"):
            raise AttributeError(label)
        try:
            return self._codes[label]
        except KeyError:
            there = ", ".join(self._codes) or "none"
            raise AttributeError(f"there is no exit code {label!r}; there are: {there}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)

    def __call__(self, status: int) -> ExitCode:
        """The exit code of a status. Errors: KeyError."""
        for code in self._codes.values():
            if code.status == status:
                return code
        raise KeyError(status)

    def __repr__(self) -> str:
        return f"ExitCodes({', '.join(f'{code.status} {label}' for label, code in self._codes.items())})"


class ExitCodesOfClass:
    """A descriptor: the exit codes that a CalcJob class declares, with those of every job."""

    def __get__(self, instance: object, owner: type) -> ExitCodes:
        codes = dict(OF_JOBS)
        for base in reversed(owner.__mro__):
            codes |= {label: code for label, code in vars(base).items() if isinstance(code, ExitCode)}
        return ExitCodes(codes)
