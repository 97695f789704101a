"""The SCRAM-SHA-256 verifier of a password: standard input to standard output.

PostgreSQL stores the verifier as it is, so that the password itself never reaches the server, its log or
its statistics. RFC 5803; what psql's \\password does.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from base64 import b64encode

#: PostgreSQL's own number (scram_iterations).
ITERATIONS = 4096


def scram_verifier(password: str, salt: bytes) -> str:
    """What ALTER ROLE ... PASSWORD takes in place of the password.

    Errors: ValueError for what SASLprep might change: only printable ASCII is the same before and after.
    """
    if not password or not password.isascii() or not password.isprintable():
        raise ValueError("a password of printable ASCII characters was expected")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    parts = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


if __name__ == "__main__":
    sys.stdout.write(scram_verifier(sys.stdin.read().rstrip("\n"), os.urandom(16)) + "\n")
