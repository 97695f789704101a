"""How a runner is started on this machine.

As a module, whose compiled form Python keeps: compiling it anew takes longer than all else that a runner
does before its first task.
"""

from __future__ import annotations

import os

from grange.farm import runner

#: The runner's folder is on the path for this import alone, and its name is free for a user's module.
START = (
    "import sys; place = sys.argv.pop(1); sys.path[:] = [place] + [entry for entry in sys.path if entry]; "
    "import runner; sys.path.remove(place); sys.exit(sys.modules.pop('runner').main(sys.argv[1:]))"
)


def runner_command(python: str, *, commands: bool) -> list[str]:
    """The command line, up to the runner's mode. Under commands the interpreter is lean: it loads nobody's
    packages, and reads no environment variables of Python's."""
    options = ["-I", "-S"] if commands else []
    return [python, *options, "-c", START, os.path.dirname(os.path.abspath(runner.__file__))]
