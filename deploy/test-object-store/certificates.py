"""A certificate authority of one's own, which signs one certificate and forgets its key."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

DAYS = "3650"
NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:*.localhost"


def make(certificate: Path, key: Path, ca_file: Path) -> None:
    """Write a server's certificate and key, and the certificate of the authority that signed it.

    Errors: subprocess.CalledProcessError.
    """
    with tempfile.TemporaryDirectory() as place:
        ca_key, request, extensions = (os.path.join(place, name) for name in ("ca.key", "request", "names"))
        Path(extensions).write_text(f"{NAMES}\nbasicConstraints=critical,CA:FALSE\n")
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        _openssl("req", "-x509", *new, "-keyout", ca_key, "-out", str(ca_file), "-days", DAYS, "-subj",
                 "/CN=grange test object store", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
        _openssl("req", *new, "-keyout", str(key), "-out", request, "-subj", "/CN=localhost")
        _openssl("x509", "-req", "-in", request, "-CA", str(ca_file), "-CAkey", ca_key, "-CAcreateserial",
                 "-CAserial", os.path.join(place, "serial"), "-extfile", extensions, "-days", DAYS,
                 "-out", str(certificate))  # fmt: skip
    key.chmod(0o600)


def _openssl(*arguments: str) -> None:
    try:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as failed:
        raise RuntimeError(f"openssl {arguments[0]}: {failed.stderr.strip()}") from None
