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
    from grange.cli.entry import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
