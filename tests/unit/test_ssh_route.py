"""How a computer is reached, from ~/.ssh/config and its settings."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from grange.farm.computer import Computer, SshSettings
from grange.farm.errors import TransportFailed
from grange.farm.ssh_route import route


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def computer(hostname: str, **settings: object) -> Computer:
    return Computer(label="there", hostname=hostname, ssh=SshSettings(**settings))  # type: ignore[arg-type]


def configure(home: Path, text: str, name: str = "config") -> None:
    (home / ".ssh" / name).write_text(text)


def test_without_any_configuration(home: Path) -> None:
    (hop,) = route(computer("Login.Cluster.org"))
    assert (hop.host, hop.port, hop.user) == ("Login.Cluster.org", 22, getpass.getuser())
    assert hop.key_name == "login.cluster.org"
    assert home / ".ssh/known_hosts" in hop.known_hosts
    assert Path("/etc/ssh/ssh_known_hosts") in hop.known_hosts


def test_settings_come_before_the_configuration(home: Path) -> None:
    configure(
        home,
        "Host c\n HostName login.org\n Port 2022\n User ann\n IdentityFile ~/.ssh/c\n IdentitiesOnly yes\n"
        " HostKeyAlias the-cluster\n UserKnownHostsFile ~/.ssh/known_c\n",
    )
    (hop,) = route(computer("c"))
    assert (hop.host, hop.port, hop.user, hop.key_name) == ("login.org", 2022, "ann", "the-cluster")
    assert hop.key_files == (home / ".ssh/c",)
    assert hop.only_these_keys
    assert hop.known_hosts[0] == home / ".ssh/known_c"
    (hop,) = route(computer("c", user="bob", port=22, key_file="~/k", known_hosts="~/hosts"))
    assert (hop.host, hop.port, hop.user) == ("login.org", 22, "bob")
    assert hop.key_files == (home / "k",)
    assert hop.known_hosts[:2] == (home / "hosts", home / ".ssh/known_c")
    (hop,) = route(computer("c", config_file="none"))
    assert (hop.host, hop.port) == ("c", 22)


def test_hosts_on_the_way(home: Path) -> None:
    configure(
        home,
        "Host c\n ProxyJump a,bob@b:2022\nHost a\n HostName a.org\n User ann\n ProxyJump gate\n"
        "Host gate\n ProxyCommand connect %h %p\nHost b\n ProxyCommand never\n",
    )
    hops = route(computer("c"))
    assert [(hop.host, hop.port) for hop in hops] == [("gate", 22), ("a.org", 22), ("b", 2022), ("c", 22)]
    assert [hop.user for hop in hops[1:3]] == ["ann", "bob"]
    assert [hop.proxy_command for hop in hops] == ["connect gate 22", "", "", ""]
    assert [hop.host for hop in route(computer("c", proxy_jump="x"))] == ["x", "c"]
    assert [hop.host for hop in route(computer("c", proxy_jump="none"))] == ["c"]


def test_what_a_configuration_includes(home: Path) -> None:
    configure(home, "Include conf.d/*\nHost c\n User first\n Include more\n Port 2022\nHost *\n User last\n")
    (home / ".ssh/conf.d").mkdir()
    configure(home, "Host d\n User of-d\n", "conf.d/1")
    configure(home, "HostName c.org\n", "more")
    (hop,) = route(computer("c"))
    assert (hop.user, hop.host, hop.port) == ("first", "c.org", 2022)
    (hop,) = route(computer("d"))
    assert (hop.user, hop.host, hop.port) == ("of-d", "d", 22)


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        ("Host c\n ProxyJump c\n", {}, "circles"),
        ("Host c\n Port many\n", {}, "many"),
        ("Host c\n ProxyJump a b:x\n", {}, "proxy_jump"),
        ("", {"proxy_jump": "ann@"}, "proxy_jump"),
        ("", {"config_file": "/nowhere"}, "/nowhere"),
    ],
)
def test_configurations_that_make_no_sense(
    home: Path, text: str, settings: dict[str, str], said: str
) -> None:
    if text:
        configure(home, text)
    with pytest.raises(TransportFailed, match=said):
        route(computer("c", **settings))
