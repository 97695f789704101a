"""The exit statuses that mean the same for every calculation.

0 is success. 100-199 are grange's and AiiDA's own; where AiiDA has a number for the same thing, it is
that. Classes give their own ways to fail numbers from 200 on.
"""

from __future__ import annotations

from grange.core.exit_code import ExitCode

OUT_OF_MEMORY = ExitCode(110, "the calculation used more memory than it was given")
OUT_OF_WALLTIME = ExitCode(120, "the calculation did not end within its walltime")
DIED = ExitCode(170, "the process died of a signal")
NON_ZERO_EXIT = ExitCode(171, "the program ended with a non-zero return code")
OUTPUT_NOT_RETRIEVED = ExitCode(172, "the output could not be read or kept")
OUTPUT_NOT_PARSED = ExitCode(173, "the output could not be parsed")
OUTPUT_INVALID = ExitCode(174, "parse() gave outputs that were not promised, or not all that were")
PROGRAM_MISSING = ExitCode(180, "the program is not there or cannot be executed")
INPUT_NOT_WRITTEN = ExitCode(181, "an input file could not be written")

#: The first number that a class may use for a way to fail of its own.
FIRST_OWN = 200

#: What the farm's outcomes mean; "finished", "raised", "not_recordable" and "cancelled" mean what the
#: recipe says.
OF_OUTCOME = {
    "memory_exceeded": OUT_OF_MEMORY,
    "walltime_exceeded": OUT_OF_WALLTIME,
    "crashed": DIED,
    "retrieve_failed": OUTPUT_NOT_RETRIEVED,
    "program_missing": PROGRAM_MISSING,
    "input_missing": INPUT_NOT_WRITTEN,
}
