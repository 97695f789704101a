"""How we say who we are to an SSH server: by keys of files and of the agent, and what a person is asked."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from grange.farm.errors import AuthenticationRefused, TransportUnavailable
from grange.farm.ssh_route import Hop

if TYPE_CHECKING:
    from paramiko import PKey, Transport

#: Asks a person at a terminal for a secret, in these words; its answer is used and forgotten.
Ask = Callable[[str], str]

_USUAL_FILES = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


@dataclass(slots=True)
class _Attempts:
    """What was tried, for the message when nothing helped."""

    tried: list[str] = field(default_factory=list)
    locked: list[Path] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    more_wanted: list[str] = field(default_factory=list)


def authenticate(transport: Transport, hop: Hop, computer: str, ask: Ask | None) -> None:
    """Say who we are; keys first, then, where the server wants more, what a person answers.

    Errors: AuthenticationRefused, TransportUnavailable.
    """
    from paramiko import AuthenticationException, SSHException

    attempts = _Attempts()
    refusal = ""
    with contextlib.closing(_keys(hop, attempts, ask)) as keys:
        for name, key in keys:
            attempts.tried.append(name)
            try:
                rest = transport.auth_publickey(hop.user, key)
            except AuthenticationException as error:
                refusal = str(error)
                if not transport.is_active():
                    break
                continue
            except (SSHException, EOFError, OSError) as error:
                refusal = str(error) or "the connection was closed"
                break
            if not rest:
                return
            attempts.more_wanted = list(rest)
            break
    if not transport.is_active():
        if "too many authentication failures" in refusal.lower():
            raise AuthenticationRefused(
                computer,
                f"{_who(hop)} takes no more keys after {len(attempts.tried)} ({', '.join(attempts.tried)}): "
                "name the right one by key_file, or by IdentityFile and IdentitiesOnly in ~/.ssh/config",
            )
        raise TransportUnavailable(
            computer,
            f"{_who(hop)} closed the connection while we said who we are: {refusal or 'no reason given'}",
        )
    if ask is not None and _answer_questions(transport, hop, ask):
        return
    raise AuthenticationRefused(computer, _explained(hop, attempts, computer))


def _keys(hop: Hop, attempts: _Attempts, ask: Ask | None) -> Generator[tuple[str, PKey]]:
    """The keys to be tried, each with a name: those configured first, by the agent if it has them."""
    from paramiko import Agent, SSHException

    agent = None
    with contextlib.suppress(SSHException, OSError):
        agent = Agent()
    try:
        held: dict[bytes, PKey] = {}
        if agent is not None:
            held = {key.asbytes(): key for key in agent.get_keys()}
        files = hop.key_files or tuple(
            path for path in (Path(file).expanduser() for file in _USUAL_FILES) if path.exists()
        )
        for path in files:
            if not path.exists() and not path.with_name(path.name + ".pub").exists():
                attempts.missing.append(path)
                continue
            public = _public_part(path)
            if public in held:
                yield f"{path} by the agent", held.pop(public)
        if not hop.key_files:  # the agent has what its owner put there: before files that merely lie about
            for key in held.values():
                yield f"{key.get_name()} of the agent", key
        for path in files:
            if (read := _read_key(path, attempts, ask)) is not None:
                yield str(path), read
        if hop.key_files and not hop.only_these_keys:
            for key in held.values():
                yield f"{key.get_name()} of the agent", key
    finally:
        if agent is not None:
            agent.close()


def _public_part(path: Path) -> bytes:
    try:
        return base64.b64decode(path.with_name(path.name + ".pub").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return b""


def _read_key(path: Path, attempts: _Attempts, ask: Ask | None) -> PKey | None:
    """A private key; its passphrase is asked for, three times at most, where there is somebody to ask."""
    from paramiko import PasswordRequiredException

    if not path.exists():
        return None
    try:
        return _loaded(path, None)
    except PasswordRequiredException:
        pass
    for _ in range(3 if ask is not None else 0):
        assert ask is not None
        passphrase = ask(f"Passphrase of the key {path}: ")
        if not passphrase:
            break
        if (key := _loaded(path, passphrase)) is not None:
            return key
    attempts.locked.append(path)
    return None


def _loaded(path: Path, passphrase: str | None) -> PKey | None:
    from paramiko import ECDSAKey, Ed25519Key, PasswordRequiredException, RSAKey, SSHException

    kinds: tuple[type[PKey], ...] = (Ed25519Key, ECDSAKey, RSAKey)
    for kind in kinds:
        try:
            key = kind.from_private_key_file(str(path), passphrase)
        except PasswordRequiredException:
            raise
        except (SSHException, OSError, ValueError):
            continue
        certificate = path.with_name(path.name + "-cert.pub")
        if certificate.exists():
            with contextlib.suppress(SSHException, OSError, ValueError):
                key.load_certificate(str(certificate))
        return key
    return None


def _answer_questions(transport: Transport, hop: Hop, ask: Ask) -> bool:
    """What the server asks of a person (a password, a second factor); whether it is content."""
    from paramiko import AuthenticationException, SSHException

    def answers(title: str, instructions: str, questions: list[tuple[str, bool]]) -> list[str]:
        said = " ".join(part for part in (title, instructions) if part)
        return [ask(f"{said} {question}".strip() + " ") for question, _ in questions]

    try:
        return not transport.auth_interactive(hop.user, answers)
    except (AuthenticationException, SSHException, EOFError, OSError):
        return False


def _explained(hop: Hop, attempts: _Attempts, computer: str) -> str:
    if attempts.more_wanted:
        return (
            f"{_who(hop)} takes our key and wants more ({', '.join(attempts.more_wanted)}), which a person "
            "has to type: set the transport of this computer to openssh, and open it by "
            f"`grange computer connect {computer}`"
        )
    found = [f"{_who(hop)} takes none of our keys"]
    found.append(f"tried: {', '.join(attempts.tried)}" if attempts.tried else "there was none to try")
    for path in attempts.locked:
        found.append(f"{path} has a passphrase: run `ssh-add {path}`, then again")
    for path in attempts.missing:
        found.append(f"there is no {path}")
    if not attempts.locked:
        found.append(
            f"see that one of them is in ~/.ssh/authorized_keys there (`ssh-copy-id -p {hop.port} "
            f"{hop.user}@{hop.host}`) and that the user is the right one"
        )
    return "; ".join(found)


def _who(hop: Hop) -> str:
    return f"{hop.user}@{hop.host}" + (f" port {hop.port}" if hop.port != 22 else "")
