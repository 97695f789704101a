"""A transport for accounts whose key runs a few commands only, as automation accounts of some centres do.

The forced command of such a key compares what it is asked for letter by letter, so everything is phrased as
it expects; what cannot be phrased is refused here. Files go by SFTP.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from grange.farm.errors import CommandRefused
from grange.farm.ssh_transport import SshTransport, shortened
from grange.farm.transport import Completed, Entry

#: Programs that run in a folder of ours, and those that run in the home folder.
_IN_FOLDER = ("sbatch", "rm", "rmdir")
_IN_HOME = ("squeue", "sacct", "whoami", "echo")
#: Times as the reader of squeue expects them; the forced command wants to see this before squeue.
_SQUEUE_TIMES = "SLURM_TIME_FORMAT='standard' "
#: Refused wherever they stand, in quotes too. Runs of blanks are squeezed to one, in quotes too.
_FORBIDDEN = ("..", ";", "|", "&", "\n", "  ", "\t")
#: A folder stands bare, or in one pair of quotes.
_FORBIDDEN_IN_FOLDER = (*_FORBIDDEN, " ", "'", '"')
_REFUSAL = re.compile(rb"^\s*(Command rejected by[^\n]*)")


class RestrictedTransport:
    """A Transport over the connection of an SshTransport, for such an account.

    Programs: sbatch, squeue, sacct, whoami; rm, rmdir, and `echo -n`.
    Errors: those of a Transport; CommandRefused for other programs, and for what the forced command refuses.
    """

    def __init__(self, transport: SshTransport, label: str) -> None:
        self._transport = transport
        self._label = label

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", cwd: str | None = None, timeout_s: float = 120.0
    ) -> Completed:
        """Run one of the few programs. cwd: needed where it is not the home folder (sbatch, rm, rmdir)."""
        if argv[0] not in (*_IN_FOLDER, *_IN_HOME):
            raise CommandRefused(
                self._label,
                f"the account may not run {argv[0]}: it is a restricted one, for {', '.join(_IN_FOLDER)}, "
                f"{', '.join(_IN_HOME)} and SFTP",
            )
        folder = cwd
        if argv[0] in _IN_HOME:
            folder = self.home()
        elif folder is None and argv[-1].startswith("/"):
            folder = posixpath.dirname(argv[-1])
        if folder is None:
            raise CommandRefused(
                self._label, f"{argv[0]}: expected the folder in which it is to run, got none"
            )
        line = restricted_line(self._label, argv, folder)
        completed = self._transport.run_line(line, stdin=stdin, timeout_s=timeout_s)
        # A refusal has the status 0.
        if refusal := _REFUSAL.match(completed.stdout):
            said = refusal[1].decode(errors="replace").strip()
            raise CommandRefused(
                self._label, f"the account may not run `{shortened(shlex.join(argv))}`: {said}"
            )
        return completed

    def put(self, files: Sequence[tuple[Path | bytes, str]], *, mode: int = 0o600) -> None:
        """Send files (or contents), each whole or not at all."""
        self._transport.put(files, mode=mode)

    def get(self, files: Sequence[tuple[str, Path]]) -> None:
        """Fetch files, each whole or not at all. Errors: RemoteMissing."""
        self._transport.get(files)

    def read(self, paths: Sequence[str]) -> list[bytes | None]:
        """The contents of small files; None for those that are not there."""
        return self._transport.read(paths)

    def list(self, folders: Sequence[str]) -> list[list[Entry] | None]:
        """What lies in folders, by name; None for those that are not there."""
        return self._transport.list(folders)

    def make_folders(self, paths: Sequence[str], *, mode: int = 0o700) -> None:
        """Make folders, and what is missing above them."""
        self._transport.make_folders(paths, mode=mode)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove files, and folders with all below them."""
        self._transport.remove(paths)

    def home(self) -> str:
        """Our home folder there."""
        return self._transport.home()

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


def restricted_line(label: str, argv: Sequence[str], folder: str) -> str:
    """The line that a forced command lets through. Errors: CommandRefused for what it never would.

    The blanks inside the brackets have to be there, and the program stands bare.
    """
    for word in (*argv, folder):
        for forbidden in _FORBIDDEN_IN_FOLDER if word is folder else _FORBIDDEN:
            if forbidden in word:
                raise CommandRefused(
                    label,
                    f"{argv[0]}: {forbidden!r} cannot be said to a restricted account, but {word!r} holds it",
                )
    before = _SQUEUE_TIMES if argv[0] == "squeue" else ""
    words = " ".join((argv[0], *map(shlex.quote, argv[1:])))
    return f"bash -l -c {shlex.quote(f'cd {shlex.quote(folder)} && ( {before}{words} )')}"
