"""The files of deploy/: they can be read, keep secrets, listen nowhere by default, and say what exists."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from base64 import b64decode
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from grange.cli.entry import run
from grange.core.computer_file import computer_of, read
from grange.core.daemon_settings import DaemonSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPUTERS = sorted((DEPLOY / "computers").glob("*.toml"))
SCRIPTS = sorted(DEPLOY.glob("*/*.sh"))
#: What grange's own services have at least; user services cannot have the rest.
HARDENING = {"NoNewPrivileges=yes", "LockPersonality=yes", "RestrictRealtime=yes", "UMask=0077"}
SYSTEM_HARDENING = HARDENING | {
    "PrivateTmp=yes", "PrivateDevices=yes", "ProtectHome=yes", "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
}  # fmt: skip


def pages() -> list[Path]:
    """Pages that lie beside what they explain, and those about clusters."""
    return sorted([*DEPLOY.rglob("README.md"), *(ROOT / "docs" / "cluster").glob("*.md")])


def unit_lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


# ---------------------------------------------------------------- computers


@pytest.mark.parametrize("path", COMPUTERS, ids=lambda path: str(path.stem))
def test_every_file_of_a_computer_is_one(path: Path) -> None:
    computer = computer_of(read(str(path)))
    assert f"grange computer add --config {path.name}" in path.read_text("utf-8")
    assert f"grange computer test {computer.label}" in path.read_text("utf-8")
    assert computer.hostname.endswith(".example.org")  # nobody's


def test_files_of_computers_show_each_way_of_running() -> None:
    found = [computer_of(read(str(path))) for path in COMPUTERS]
    assert len({computer.label for computer in found}) == len(found)
    assert {computer.transport for computer in found} == {"ssh", "openssh"}
    assert {computer.scheduler for computer in found} == {"direct", "slurm"}
    assert any(computer.ssh.restricted for computer in found)
    assert any(computer.hq_binary for computer in found)
    # the server without authentication is for private machines, and no example of these
    assert "private-wheel" not in {computer.hyperqueue for computer in found}


# ---------------------------------------------------------------- unit files


@pytest.mark.parametrize("path", ["minio.service", "postgresql@.service.d/grange.conf"])
def test_system_units_are_hardened(path: str) -> None:
    assert set(unit_lines(DEPLOY / "systemd" / path)) >= SYSTEM_HARDENING


@pytest.mark.parametrize("name", ["grange-allocations.service", "grange-daemon.service"])
def test_user_units_are_hardened(name: str) -> None:
    lines = unit_lines(DEPLOY / "systemd" / name)
    assert set(lines) >= HARDENING
    assert not [line for line in lines if line.startswith(("User=", "Group="))]


def test_the_daemon_has_the_time_it_needs_and_ends_its_own_processes() -> None:
    settings = dict(
        line.split("=", 1) for line in unit_lines(DEPLOY / "systemd/grange-daemon.service") if "=" in line
    )
    assert settings["ExecStart"].endswith("grange daemon start --foreground")
    assert settings["Type"] == "notify"
    assert settings["KillMode"] == "process"
    assert float(settings["TimeoutStopSec"]) > 2 * DaemonSettings().grace_s


def test_the_container_starts_what_there_is() -> None:
    text = (DEPLOY / "container" / "Dockerfile").read_text("utf-8")
    commands = [
        json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|HEALTHCHECK .*CMD) (\[.*\])", text, re.M)
    ]
    assert len(commands) == 2
    for command in commands:
        words = command[command.index("grange") + 1 :]
        assert run([*words, "--help"]) == 0, words
    assert "\nUSER grange\n" in text


def test_minio_is_confined() -> None:
    lines = unit_lines(DEPLOY / "systemd" / "minio.service")
    assert {"User=minio", "EnvironmentFile=/etc/minio/minio.env", "CapabilityBoundingSet="} <= set(lines)
    assert {"ProtectSystem=strict", "ReadWritePaths=/srv/minio"} <= set(lines)


def test_unit_lines_are_lines_of_a_section() -> None:
    for path in [
        *(DEPLOY / "systemd").glob("*.service"),
        DEPLOY / "systemd/postgresql@.service.d/grange.conf",
    ]:
        lines = unit_lines(path)
        assert lines[0].startswith("["), path.name
        for line in lines:
            assert re.fullmatch(r"\[(Unit|Service|Install)\]|[A-Z]\w+=.*", line), f"{path.name}: {line}"


# ---------------------------------------------------------------- containers


def test_containers_publish_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    for port in ports:
        assert re.fullmatch(r"\$\{GRANGE_ADDRESS:-127\.0\.0\.1\}:\$\{\w+:-\d+\}:\d+", port)
    assert "GRANGE_ADDRESS=127.0.0.1\n" in (DEPLOY / "compose" / ".env.example").read_text("utf-8")


def test_services_are_watched_and_keep_their_data(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "no-new-privileges:true" in service["security_opt"], name
        if name.endswith("-setup"):
            (served,) = service["depends_on"]
            assert service["depends_on"][served] == {"condition": "service_healthy"}
            assert service["restart"] == "no"
        else:
            assert service["healthcheck"]["test"], name
            assert any(volume.startswith(f"{name}:") for volume in service["volumes"])
            assert name in compose["volumes"]


def test_variables_of_the_compose_file_are_explained() -> None:
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose" / "compose.yaml").read_text("utf-8")))
    explained = set(re.findall(r"^(\w+)=", (DEPLOY / "compose" / ".env.example").read_text("utf-8"), re.M))
    assert used == explained


def test_files_that_are_mounted_are_there(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if isinstance(volume, str) and volume.startswith("."):
                assert (DEPLOY / "compose" / volume.split(":")[0]).is_file(), volume
                assert volume.endswith(":ro")


def test_secrets_are_files_that_the_script_makes(compose: dict[str, Any], tmp_path: Path) -> None:
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == set(compose["secrets"])
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY", name):
                assert value.startswith("/run/secrets/"), name
    script = tmp_path / "make-secrets.sh"
    script.write_bytes((DEPLOY / "compose" / "make-secrets.sh").read_bytes())
    (tmp_path / ".env").write_text("POSTGRES_PORT=6000\nGRANGE_ROLE=ada\n")
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == used | {"pgpass"}
    assert made["pgpass"] == f"127.0.0.1:6000:grange:ada:{made['grange_password']}\n"
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o600}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made
    for secret in used:
        assert compose["secrets"][secret] == {"file": f"./secrets/{secret}"}
    assert "secrets/" in (DEPLOY / "compose" / ".gitignore").read_text().splitlines()


def test_rgw_listens_on_one_network() -> None:
    found = yaml.safe_load((DEPLOY / "object-store" / "rgw.yaml").read_text("utf-8"))
    assert found["networks"]
    assert found["spec"]["ssl"] is True


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture(scope="module")
def scram() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scram_verifier", DEPLOY / "postgres" / "scram_verifier.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_verifier_is_that_of_the_standard(scram: ModuleType) -> None:
    """Password, salt and iterations of RFC 7677, section 3; the keys are those of its exchange."""
    assert scram.scram_verifier("pencil", b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("password", ["", "pass\u00e9", "a\nb"])
def test_a_password_that_would_be_prepared_is_refused(scram: ModuleType, password: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        scram.scram_verifier(password, bytes(16))


def test_only_passwords_by_scram_and_no_trust() -> None:
    rules = [
        line.split()
        for line in (DEPLOY / "postgres" / "pg_hba.conf").read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert {rule[-1] for rule in rules} == {"peer", "scram-sha-256"}
    assert {rule[3] for rule in rules if rule[0] == "host"} == {"127.0.0.1/32", "::1/128"}


# ---------------------------------------------------------------- all of it


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.name))
def test_scripts_are_shell_and_can_be_run(script: Path) -> None:
    text = script.read_text("utf-8")
    assert text.startswith("#!/bin/sh\n")
    assert "\nset -eu\n" in text
    assert script.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_nothing_listens_everywhere() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix in (".yaml", ".conf", ".service", ".toml", ".example", ".sh"):
            for line in path.read_text("utf-8").splitlines():
                assert "0.0.0.0" not in line, f"{path.name}: {line}"
                assert not re.match(r"\s*listen_addresses\s*=.*\*", line), f"{path.name}: {line}"


def test_no_secret_is_written_down() -> None:
    for path in [*DEPLOY.rglob("*.example"), *DEPLOY.rglob("*.service"), *DEPLOY.rglob("*.conf")]:
        for line in path.read_text("utf-8").splitlines():
            assert not re.match(r"\s*\w*(PASSWORD|SECRET|ACCESS_KEY)\w*\s*[=:]\s*\S", line), (
                f"{path.name}: {line}"
            )


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in pages():
        for target, place in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text("utf-8")):
            if "://" in target:
                continue
            found = page.parent / target if target else page
            assert found.exists(), f"{page.relative_to(ROOT)} links to {target}"
            if place:
                heads = re.findall(r"^#+ (.+)$", found.read_text("utf-8"), re.MULTILINE)
                names = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
                assert place in names, f"{page.relative_to(ROOT)} links to {target}#{place}"
