"""Where codes are installed, and where their calculations are about to be run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from grange.core.data.code_value import CodeValue
from grange.core.errors import InputInvalid
from grange.core.profile import Profile

# What a computer is called, and how it is reached.
_COMPUTER = "SELECT label, transport_type FROM computer WHERE id = %s"


class CodePlaces:
    """Looks at the codes of calls before a run hands them out.

    computer_id: the computer that the run is on; None for this machine, whose programs are also those of
    computers that are reached without leaving it.
    """

    def __init__(self, profile: Profile, computer_id: int | None) -> None:
        self._profile = profile
        self._computer_id = computer_id
        self._right: set[int | None] = {None, computer_id}

    def require(self, calls: Iterable[Mapping[str, object]]) -> None:
        """Errors: InputInvalid for a code that is installed on another computer than the run's."""
        for values in calls:
            for value in values.values():
                if type(value) is CodeValue and value.launch.computer_id not in self._right:
                    self._look(value, value.launch.computer_id)

    def _look(self, code: CodeValue, computer_id: int | None) -> None:
        with self._profile.transaction() as cursor:
            cursor.execute(_COMPUTER, (computer_id,))
            label, transport = cursor.fetchone() or ("?", "")
        if self._computer_id is not None or transport != "core.local":
            raise InputInvalid(
                "executor",
                str(code),
                f'a program of where calculations are run; this one is on {label}: run(executor="{label}")',
            )
        self._right.add(computer_id)
