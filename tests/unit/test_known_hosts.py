"""Which keys of hosts are known."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from grange.farm.known_hosts import fingerprint, host_name, judge, read_known_hosts, types_for

ED, RSA, OTHER = (base64.b64encode(name).decode() for name in (b"ed key", b"rsa key", b"other key"))


def known(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "known_hosts"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("line", "host", "port"),
    [
        ("host", "host", 22),
        ("HOST", "Host", 22),
        ("other,host,1.2.3.4", "host", 22),
        ("[host]:2222", "host", 2222),
        ("*.cluster.org", "login1.cluster.org", 22),
        ("login?,!login3", "login1", 22),
        ("[*.org]:2222", "login1.cluster.org", 2222),
    ],
)
def test_a_host_is_known_by_its_line(tmp_path: Path, line: str, host: str, port: int) -> None:
    keys = read_known_hosts([tmp_path / "none", known(tmp_path, f"# x\n\n{line} ssh-ed25519 {ED} note\n")])
    assert judge(keys, host_name(host, port), b"ed key") == ("known", f"{tmp_path}/known_hosts:3")
    assert judge(keys, host_name(host, port), b"other key") == ("changed", f"{tmp_path}/known_hosts:3")


@pytest.mark.parametrize(
    "line",
    [
        "[host]:2222",
        "hosts",
        "*,!host",
        "ho[s]t",
        "@cert-authority *",
        "|1|AAAA|AAAA",
        "|1|what",
        "",
    ],
)
def test_a_host_is_not_known_by_another_line(tmp_path: Path, line: str) -> None:
    keys = read_known_hosts([known(tmp_path, f"{line} ssh-ed25519 {ED}\n")])
    assert judge(keys, "host", b"ed key") == ("unknown", "")


def test_names_that_openssh_has_hashed(tmp_path: Path) -> None:
    path = known(tmp_path, f"host ssh-ed25519 {_real_key(tmp_path)}\n[host]:22022 ssh-rsa {RSA}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert "host" not in path.read_text()
    keys = read_known_hosts([path])
    assert judge(keys, "host", base64.b64decode(_real_key(tmp_path)))[0] == "known"
    assert judge(keys, "other", base64.b64decode(_real_key(tmp_path)))[0] == "unknown"


def _real_key(tmp_path: Path) -> str:
    path = tmp_path / "key"
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().split()[1]


def test_a_host_may_have_several_keys(tmp_path: Path) -> None:
    keys = read_known_hosts([known(tmp_path, f"host ssh-rsa {RSA}\nhost ssh-ed25519 {ED}\n")])
    assert types_for(keys, "host") == ["ssh-rsa", "ssh-ed25519"]
    assert types_for(keys, "other") == []
    assert judge(keys, "host", b"ed key")[0] == judge(keys, "host", b"rsa key")[0] == "known"


def test_a_revoked_key_is_never_good(tmp_path: Path) -> None:
    keys = read_known_hosts([known(tmp_path, f"host ssh-rsa {RSA}\n@revoked * ssh-rsa {RSA}\n")])
    assert judge(keys, "host", b"rsa key") == ("revoked", f"{tmp_path}/known_hosts:2")
    assert judge(keys, "elsewhere", b"rsa key")[0] == "revoked"
    assert judge(keys, "host", b"other key")[0] == "changed"


def test_a_fingerprint_is_openssh_s(tmp_path: Path) -> None:
    key = base64.b64decode(_real_key(tmp_path))
    shown = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True)
    assert shown.stdout.split()[1] == fingerprint(key)
