"""The transport that a computer asks for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from grange.farm.computer import Computer
from grange.farm.errors import TransportFailed
from grange.farm.transport import Transport

if TYPE_CHECKING:
    from grange.farm.ssh_authentication import Ask
    from grange.farm.ssh_transport import Permit


def open_transport(
    computer: Computer, folder: Path, *, ask: Ask | None = None, permit: Permit = contextlib.nullcontext
) -> Transport:
    """A transport of the computer's kind. It connects when it is first used.

    folder: where the sockets of control masters lie. ask: asks a person for a secret, None where nobody is
    there. permit: is entered around each making of a connection: it may refuse, and learns how it went.
    Errors: TransportFailed for settings that do not go together.
    """
    if computer.transport == "local":
        from grange.farm.local_transport import LocalTransport

        return LocalTransport(computer.label)
    if computer.transport == "ssh":
        from grange.farm.ssh_transport import SshTransport

        ssh = SshTransport(computer, ask=ask, permit=permit)
        if not computer.ssh.restricted:
            return ssh
        from grange.farm.restricted_transport import RestrictedTransport

        return RestrictedTransport(ssh, computer.label)
    if computer.ssh.restricted:
        raise TransportFailed(computer.label, "a restricted account needs the transport ssh, not openssh")
    from grange.farm.openssh_transport import OpenSshTransport

    return OpenSshTransport(computer, folder, permit=permit)
