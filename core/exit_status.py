"""The exit statuses that mean the same for every process, with AiiDA's numbers where AiiDA has the thing.

0 is success. Up to 99 what any process may end with; 100-199 what the farm found, where AiiDA's scheduler
would have. Classes give their own ways to fail numbers from 200 on.
"""

from __future__ import annotations

from grange.core.exit_code import ExitCode

UNSPECIFIED = ExitCode(1, "the process failed, and nothing says how")
OUTPUT_INVALID = ExitCode(10, "an output is not what was promised")
OUTPUT_MISSING = ExitCode(11, "an output that was promised is missing")
NO_RETRIEVED_FOLDER = ExitCode(100, "nothing of what the calculation left could be had")
OUT_OF_MEMORY = ExitCode(110, "the calculation used more memory than it was given")
OUT_OF_WALLTIME = ExitCode(120, "the calculation did not end within its walltime")
INVALID_ACCOUNT = ExitCode(131, "the scheduler does not take jobs for this account")
NODE_FAILURE = ExitCode(140, "the node that ran the calculation was lost")
STOPPED_BY_MONITOR = ExitCode(150, "stopped by a monitor")
# what AiiDA has no number for
DIED = ExitCode(170, "the process died of a signal")
NON_ZERO_EXIT = ExitCode(171, "the program ended with a non-zero return code")
OUTPUT_NOT_RETRIEVED = ExitCode(172, "the output could not be read or kept")
OUTPUT_NOT_PARSED = ExitCode(173, "the output could not be parsed")
OUTPUT_NOT_STASHED = ExitCode(175, "files could not be stashed")
PROGRAM_MISSING = ExitCode(180, "the program is not there or cannot be executed")
INPUT_NOT_WRITTEN = ExitCode(181, "an input file could not be written")
CALL_FAILED = ExitCode(190, "a process that the workflow called did not finish well")

#: The first number that a class may use for a way to fail of its own.
FIRST_OWN = 200

#: What the farm's outcomes mean; "finished", "raised", "not_recordable" and "cancelled" mean what the
#: recipe says.
OF_OUTCOME = {
    "memory_exceeded": OUT_OF_MEMORY,
    "walltime_exceeded": OUT_OF_WALLTIME,
    "account_refused": INVALID_ACCOUNT,
    "node_lost": NODE_FAILURE,
    "stopped": STOPPED_BY_MONITOR,
    "crashed": DIED,
    "retrieve_failed": OUTPUT_NOT_RETRIEVED,
    "stash_failed": OUTPUT_NOT_STASHED,
    "program_missing": PROGRAM_MISSING,
    "input_missing": INPUT_NOT_WRITTEN,
}
#: Those in which a program has run, and left what its parser may make something of.
RAN = frozenset({"memory_exceeded", "walltime_exceeded", "stopped", "crashed", "stash_failed"})


def exit_code_of(outcome: str, has_files: bool) -> ExitCode:
    """What an outcome means that is one of OF_OUTCOME; has_files: whether anything was kept."""
    if outcome == "retrieve_failed" and not has_files:
        return NO_RETRIEVED_FOLDER
    return OF_OUTCOME[outcome]
