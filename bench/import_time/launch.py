"""Starts programs and says what each took: "milliseconds mebibytes name", a line each.

Imports next to nothing, so that its own memory hides nobody's. Reads (rounds, [(name, argv), …]) as a
Python literal from its standard input.
"""

import os
import sys
import time


def main():
    rounds, commands = eval(sys.stdin.read(), {})  # what measure.py wrote
    quiet = os.open(os.devnull, os.O_RDWR)
    actions = [(os.POSIX_SPAWN_DUP2, quiet, descriptor) for descriptor in (0, 1, 2)]
    for _ in range(rounds):
        for name, argv in commands:
            start = time.perf_counter()
            pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions)
            _, status, usage = os.wait4(pid, 0)
            milliseconds = (time.perf_counter() - start) * 1000
            if status:
                sys.exit(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
            print(milliseconds, usage.ru_maxrss / 1024, name)


main()
