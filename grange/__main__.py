"""The command `grange`. Nothing is imported before it is known to be needed: `--version` is instant."""

from __future__ import annotations

import sys

from grange.version import VERSION


def main() -> int:
    """Run the command line; returns the exit status of the process."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        sys.stdout.write(f"grange {VERSION}\n")
        return 0
    import signal

    from grange.cli.entry import run

    status = run(arguments)
    # The interpreter, which may have to wait for threads, prints a Ctrl-C and ends as if there were none.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return status


if __name__ == "__main__":
    sys.exit(main())
