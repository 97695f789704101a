"""How a computer is reached by SSH: the hosts on the way, from ~/.ssh/config and the computer's settings."""

from __future__ import annotations

import getpass
import glob
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grange.farm.computer import Computer
from grange.farm.errors import TransportFailed
from grange.farm.known_hosts import GLOBAL_FILES, USER_FILES, host_name

if TYPE_CHECKING:
    from paramiko import SSHConfig

#: A configuration that leads in circles is found out here.
_MOST_HOPS = 8


@dataclass(frozen=True, slots=True)
class Hop:
    """One host on the way, the last one being the computer itself.

    name: what was asked for, host: what is connected to. key_name: under which name its key is known.
    key_files: those to be tried. only_these_keys: whether the agent's others are left alone.
    proxy_command: what carries the connection, "" for a connection of our own.
    """

    name: str
    host: str
    port: int
    user: str
    key_name: str
    key_files: tuple[Path, ...]
    only_these_keys: bool
    known_hosts: tuple[Path, ...]
    proxy_command: str = ""


def route(computer: Computer) -> list[Hop]:
    """The hosts on the way to a computer, in the order in which they are connected to.

    Errors: TransportFailed for a configuration that makes no sense.
    """
    settings = computer.ssh
    config = _configuration(computer)
    extra = (Path(settings.known_hosts).expanduser(),) if settings.known_hosts else ()
    found = _options(config, computer.hostname)
    last = _hop(
        computer,
        computer.hostname,
        found,
        extra,
        user=settings.user,
        port=settings.port,
        key=settings.key_file,
    )
    jumps = settings.proxy_jump or str(found.get("proxyjump") or "")
    if jumps and jumps.lower() != "none":
        hops = [*_jumps(computer, config, jumps, extra, _MOST_HOPS), last]
        return [*hops[:-1], _without_proxy(last)]
    return [last]


def _jumps(
    computer: Computer, config: SSHConfig | None, jumps: str, extra: tuple[Path, ...], left: int
) -> list[Hop]:
    hops: list[Hop] = []
    for place, jump in enumerate(jumps.split(",")):
        user, host, port = _parsed(computer, jump.strip())
        options = _options(config, host)
        # A key that is named for the computer is tried on its way, too, where there is none for a host.
        key = "" if options.get("identityfile") else computer.ssh.key_file
        hop = _hop(computer, host, options, extra, user=user, port=port, key=key)
        theirs = str(options.get("proxyjump") or "")
        if place == 0 and theirs and theirs.lower() != "none":
            if left <= 0:
                raise TransportFailed(
                    computer.label, f"ProxyJump leads in circles: see what {host} is reached by"
                )
            hops = _jumps(computer, config, theirs, extra, left - 1)
        hops.append(_without_proxy(hop) if hops else hop)
    return hops


def _parsed(computer: Computer, jump: str) -> tuple[str, str, int]:
    """[ssh://][user@]host[:port], a host of colons in brackets."""
    rest = jump.removeprefix("ssh://").rstrip("/")
    user, _, place = rest.rpartition("@")
    host, port = place, ""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    if not host or (port and not port.isdigit()):
        raise TransportFailed(
            computer.label, f"proxy_jump: expected [user@]host[:port], several parted by commas, got {jump!r}"
        )
    return user, host, int(port or 0)


def _without_proxy(hop: Hop) -> Hop:
    """A hop that is reached through another one."""
    return Hop(
        hop.name,
        hop.host,
        hop.port,
        hop.user,
        hop.key_name,
        hop.key_files,
        hop.only_these_keys,
        hop.known_hosts,
    )


def _hop(
    computer: Computer,
    name: str,
    options: dict[str, object],
    extra: tuple[Path, ...],
    *,
    user: str = "",
    port: int = 0,
    key: str = "",
) -> Hop:
    host = str(options.get("hostname") or name)
    try:
        port = port or int(str(options.get("port") or 22))
    except ValueError:
        raise TransportFailed(
            computer.label, f"Port of {name} in ~/.ssh/config: expected a number, got {options['port']!r}"
        ) from None
    found = options.get("identityfile")
    names = [key] if key else [str(file) for file in found] if isinstance(found, list) else []
    theirs = str(options.get("userknownhostsfile") or "")
    user_files = shlex.split(theirs) if theirs else list(USER_FILES)
    files = [*(str(file) for file in extra), *user_files, *GLOBAL_FILES]
    alias = str(options.get("hostkeyalias") or "")
    return Hop(
        name=name,
        host=host,
        port=port,
        user=user or str(options.get("user") or "") or getpass.getuser(),
        key_name=alias or host_name(host, port),
        key_files=tuple(Path(file).expanduser() for file in names if file.lower() != "none"),
        only_these_keys=str(options.get("identitiesonly") or "").lower() == "yes",
        known_hosts=tuple(Path(file).expanduser() for file in files if file.lower() != "none"),
        proxy_command=str(options.get("proxycommand") or ""),
    )


# ---------------------------------------------------------------- ~/.ssh/config


def _configuration(computer: Computer) -> SSHConfig | None:
    import paramiko

    given = computer.ssh.config_file
    if given.lower() == "none":
        return None
    path = Path(given or "~/.ssh/config").expanduser()
    try:
        text = "\n".join(_lines(path, 16))
    except FileNotFoundError:
        if given:
            raise TransportFailed(computer.label, f"config_file: there is no {path}") from None
        return None
    except OSError as error:
        raise TransportFailed(computer.label, f"{path} cannot be read: {error.strerror}") from error
    try:
        return paramiko.SSHConfig.from_text(text)
    except Exception as error:  # its errors share no base
        raise TransportFailed(computer.label, f"{path}: {error}") from error


def _lines(path: Path, left: int) -> Iterator[str]:
    """The lines of a configuration with those that it includes, which paramiko would pass over."""
    section = ""
    for line in path.read_text(errors="replace").splitlines():
        words = line.replace("=", " ", 1).split()
        keyword = words[0].lower() if words else ""
        if keyword in ("host", "match"):
            section = line
        if keyword != "include" or left <= 0:
            yield line
            continue
        for pattern in shlex.split(line)[1:]:
            place = os.path.join(Path("~/.ssh").expanduser(), os.path.expanduser(pattern))
            for included in sorted(glob.glob(place)):
                yield from _lines(Path(included), left - 1)
                yield section or "Host *"  # what follows belongs where it stands


def _options(config: SSHConfig | None, host: str) -> dict[str, object]:
    return dict(config.lookup(host)) if config is not None else {}
