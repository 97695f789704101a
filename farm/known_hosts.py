"""The keys of hosts that are known here, as OpenSSH keeps them in known_hosts."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["known", "unknown", "changed", "revoked"]

#: Where OpenSSH looks, besides what a configuration names.
GLOBAL_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line: for which hosts, which key, and where it stands."""

    patterns: tuple[str, ...]
    type: str
    key: bytes
    where: str
    is_revoked: bool = False

    def is_for(self, name: str) -> bool:
        """Whether it is the key of this host; name: as host_name() gives it."""
        found = False
        for pattern in self.patterns:
            if pattern.startswith("!"):
                if fnmatch.fnmatchcase(name, _quoted(pattern[1:])):
                    return False
            elif pattern.startswith("|1|"):
                found = found or _is_hash_of(pattern, name)
            else:
                found = found or fnmatch.fnmatchcase(name, _quoted(pattern.lower()))
        return found


def host_name(host: str, port: int) -> str:
    """How a host and port are called in known_hosts."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def read_known_hosts(files: Iterable[Path]) -> list[KnownKey]:
    """All keys of these files, those that are not there left out; lines that make no sense are passed over.

    Keys of authorities that sign host keys are passed over, too: a host then counts as unknown.
    """
    keys = []
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for number, line in enumerate(lines, 1):
            words = line.split()
            marker = words.pop(0) if words and words[0].startswith("@") else ""
            if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
                continue
            try:
                key = base64.b64decode(words[2], validate=True)
            except binascii.Error:
                continue
            patterns = tuple(words[0].split(","))
            keys.append(KnownKey(patterns, words[1], key, f"{file}:{number}", marker == "@revoked"))
    return keys


def types_for(keys: Sequence[KnownKey], name: str) -> list[str]:
    """Of which types keys of a host are known: these are asked for first."""
    return list(dict.fromkeys(key.type for key in keys if not key.is_revoked and key.is_for(name)))


def judge(keys: Sequence[KnownKey], name: str, shown: bytes) -> tuple[Verdict, str]:
    """What is to be thought of a key that a host shows, and the line that says so."""
    if revoked := [key for key in keys if key.is_revoked and key.key == shown and key.is_for(name)]:
        return "revoked", revoked[0].where
    ours = [key for key in keys if not key.is_revoked and key.is_for(name)]
    for key in ours:
        if hmac.compare_digest(key.key, shown):
            return "known", key.where
    return ("changed", ours[0].where) if ours else ("unknown", "")


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _is_hash_of(pattern: str, name: str) -> bool:
    try:
        _, _, salt, hashed = pattern.split("|")
        made = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
        return hmac.compare_digest(base64.b64decode(hashed), made)
    except (ValueError, binascii.Error):
        return False


def _quoted(pattern: str) -> str:
    """Brackets stand for themselves here: only * and ? are special."""
    return pattern.replace("[", "[[]")
