"""The forced command of a restricted automation account: lets through a few phrases, and nothing else.

    command="python3 forced_command.py ALLOWED_DIR" in authorized_keys

Written from what is known of such accounts (README.md beside this file). Where that does not say, this one is
stricter, so that what passes here passes there.

- A folder is ALLOWED_DIR or below ("allowed"), or exactly the home folder ("home"); bare, in double quotes,
  or single-quoted inside the single quotes of `bash -l -c '…'`.
- `bash -l -c 'cd ALLOWED && ( sbatch … )'`, also rm and rmdir, whose absolute paths must be allowed, too.
- `bash -l -c 'cd HOME && ( SLURM_TIME_FORMAT='"'"'standard'"'"' squeue … )'`; also sacct with arguments,
  whoami, echo -n.
- The SFTP server, if it is asked for by its literal path.
- Nowhere `..`, `;`, `|`, a second `&&`; here also no other `&`, no redirection and no substitution.

Runs of blanks are squeezed, inside quotes too. A refusal is a line on stdout, with exit status 0.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

NAME = "forced_command.py"
#: By this name the SFTP server has to be asked for; it is run from where it is.
SFTP_SERVER = "/usr/libexec/openssh/sftp-server"
SFTP_SERVERS = (SFTP_SERVER, "/usr/lib/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
#: A single quote inside single quotes.
QUOTE = """'"'"'"""
PHRASE = re.compile(r"bash -l -c 'cd (?P<folder>\S+) && \( (?P<command>.+) \)'")
AT_HOME = re.compile(rf"SLURM_TIME_FORMAT={QUOTE}standard{QUOTE} squeue( .*)?|sacct .+|whoami|echo -n")
IN_ALLOWED = re.compile(r"(?P<program>sbatch|rm|rmdir) (?P<arguments>.+)")
FORBIDDEN = ("..", ";", "|", "`", "$", "<", ">")


def accepted(request: str, allowed: str, home: str) -> str | None:
    """The shell command to run for a request, or None: it is refused."""
    phrase = " ".join(request.split())
    if phrase == SFTP_SERVER:
        return phrase
    matched = PHRASE.fullmatch(phrase)
    if matched is None or phrase.count("&") != 2 or any(word in phrase for word in FORBIDDEN):
        return None
    # Single quotes in the middle only as whole quote marks: none may end the outer quotes.
    inner = phrase[len("bash -l -c '") : -1]
    if "'" in inner.replace(QUOTE, ""):
        return None
    folder = unquoted(matched["folder"])
    if folder is None:
        return None
    if folder == home and AT_HOME.fullmatch(matched["command"]):
        return phrase
    order = IN_ALLOWED.fullmatch(matched["command"])
    if not is_below(folder, allowed) or order is None:
        return None
    if order["program"] != "sbatch":
        words = order["arguments"].replace(QUOTE, " ").replace('"', " ").split()
        if any(word.startswith("~") or (word[0] == "/" and not is_below(word, allowed)) for word in words):
            return None
    return phrase


def unquoted(word: str) -> str | None:
    """A folder's name without its quotes, or None where they do not match."""
    for mark in (QUOTE, '"'):
        if len(word) > 2 * len(mark) and word.startswith(mark) and word.endswith(mark):
            word = word[len(mark) : -len(mark)]
            break
    return None if "'" in word or '"' in word else word


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def main() -> None:
    request = os.environ.get("SSH_ORIGINAL_COMMAND", "")
    command = accepted(request, sys.argv[1].rstrip("/"), str(Path.home()))
    if command is None:
        sys.stdout.write(f"Command rejected by {NAME}: {request}\n")
        return
    if command == SFTP_SERVER:
        program = next(path for path in SFTP_SERVERS if os.path.exists(path))
        argv = [program]
    else:
        program, argv = "/bin/bash", ["bash", "-c", command]
    os.execv(program, argv)  # noqa: S606 - that is what a forced command is for


if __name__ == "__main__":
    main()
