"""Computers in the tables: in and out without loss, under AiiDA's names, gone when nothing needs them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from grange.core import computer as computers
from grange.core.data.code import InstalledCode
from grange.core.errors import InputInvalid, InUse, NameExists, NotFound
from grange.core.profile import Profile
from grange.farm.computer import Computer, SshSettings

#: No field as it is by default.
FULL = Computer(
    label="lumi",
    hostname="lumi.example.org",
    description="the big one",
    transport="openssh",
    scheduler="direct",
    hyperqueue="hq",
    work_dir="/scratch/{username}/grange",
    python="/usr/bin/python3.9",
    ssh=SshSettings(
        user="ada",
        port=2222,
        key_file="~/.ssh/cluster",
        proxy_jump="ada@gate.example.org:22",
        known_hosts="/etc/known",
        config_file="none",
        restricted=True,
        connect_timeout_s=12.5,
        keepalive_s=5.0,
    ),
    cores_per_node=128,
    memory_mb_per_node=256_000,
    gpus_per_node=8,
    partition="small,large",
    account="project_1",
    qos="normal",
    directives=("--constraint=rome", "--exclusive"),
    shebang="#!/bin/sh -l",
    prepend_text="module load hq\nexport A='b'\n",
    append_text="date\n",
    mpirun="srun -n {tot_num_mpiprocs} -N {nodes} --label 'a b'",
    hq_program="/opt/hq",
    hq_binary="~/hq",
    max_queued_jobs=7,
    max_allocations=2,
    connection_interval_s=31.0,
    slots=3,
    delivery="store",
)


def test_full_is_full() -> None:
    for full, plain in ((FULL, Computer(label="")), (FULL.ssh, SshSettings())):
        same = [f.name for f in dataclasses.fields(full) if getattr(full, f.name) == getattr(plain, f.name)]
        assert same == []


def row(profile: Profile, label: str) -> dict[str, Any]:
    """The rows of a computer as they are."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT row_to_json(c), row_to_json(a) FROM computer c LEFT JOIN authinfo a ON computer_id = c.id"
            " WHERE label = %s",
            (label,),
        )
        computer, settings = cursor.fetchone() or ({}, {})
    return {**computer, "authinfo": settings}


@pytest.mark.parametrize("computer", [FULL, Computer(label="plain", hostname="host")], ids=["full", "plain"])
def test_what_goes_in_comes_out(profile: Profile, computer: Computer) -> None:
    with profile.transaction() as cursor:
        added = computers.add(cursor, computer, user_id=profile.user_id)
    with profile.transaction() as cursor:
        found = computers.load(cursor, computer.label, user_id=profile.user_id)
        assert found == added
        assert found.computer == computer
        assert found.enabled
        again = computers.replace(cursor, found.computer, user_id=profile.user_id)
    assert again == found


def test_the_names_are_those_of_aiida(profile: Profile) -> None:
    with profile.transaction() as cursor:
        computers.add(cursor, FULL, user_id=profile.user_id)
    found = row(profile, "lumi")
    assert (found["scheduler_type"], found["transport_type"]) == ("core.direct", "core.ssh_async")
    metadata = found["metadata"]
    assert metadata["workdir"] == "/scratch/{username}/grange"
    assert metadata["mpirun_command"] == [
        *("srun", "-n", "{tot_num_mpiprocs}", "-N", "{num_machines}", "--label", "a b")
    ]
    assert metadata["default_memory_per_machine"] == 256_000 * 1024
    assert metadata["default_mpiprocs_per_machine"] == 128
    assert metadata["shebang"] == "#!/bin/sh -l"
    assert metadata["grange"]["partition"] == "small,large"
    settings = found["authinfo"]["auth_params"]
    assert settings["username"] == "ada"
    assert settings["safe_interval"] == 31
    assert settings["grange"]["restricted"] is True
    assert found["authinfo"]["enabled"] is True


def test_rows_that_aiida_wrote(profile: Profile) -> None:
    metadata = {
        "workdir": "/scratch/{username}/aiida_run/",
        "shebang": "#!/bin/bash",
        "mpirun_command": ["mpirun", "-np", "{num_machines}"],
        "default_memory_per_machine": 2_097_152,
        "default_mpiprocs_per_machine": None,
        "minimum_scheduler_poll_interval": 25,
        "use_double_quotes": False,
    }
    auth_params = {
        "username": "ada",
        "port": 22,
        "look_for_keys": True,
        "key_filename": "",
        "timeout": 60,
        "key_policy": "AutoAddPolicy",
        "safe_interval": 30,
        "use_login_shell": True,
    }
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type, metadata)"
            " VALUES ('of aiida', 'daint', 'core.slurm', 'core.ssh', %s) RETURNING id",
            (json.dumps(metadata),),
        )
        (identity,) = cursor.fetchone() or (0,)
        cursor.execute(
            "INSERT INTO authinfo (user_id, computer_id, auth_params, enabled) VALUES (%s, %s, %s, false)",
            (profile.user_id, identity, json.dumps(auth_params)),
        )
        cursor.execute(
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type)"
            " VALUES ('bare', 'localhost', 'core.direct', 'core.local')"
        )
    with profile.transaction() as cursor:
        found = computers.load(cursor, "of aiida", user_id=profile.user_id)
        bare = computers.load(cursor, "bare", user_id=profile.user_id)
    assert found.computer == Computer(
        label="of aiida",
        hostname="daint",
        work_dir="/scratch/{username}/aiida_run",
        mpirun="mpirun -np {nodes}",
        memory_mb_per_node=2048,
        connection_interval_s=30.0,
        ssh=SshSettings(user="ada", port=22, connect_timeout_s=60.0),
    )
    assert not found.enabled
    assert bare.computer == Computer(label="bare", transport="local", scheduler="direct")
    with profile.transaction() as cursor:
        with pytest.raises(InputInvalid, match="label: expected letters"):
            computers.replace(cursor, found.computer, user_id=profile.user_id)
        cursor.execute("UPDATE computer SET label = 'of-aiida' WHERE id = %s", (identity,))
        renamed = dataclasses.replace(found.computer, label="of-aiida", partition="p")
        computers.replace(cursor, renamed, user_id=profile.user_id)
    after = row(profile, "of-aiida")
    assert (
        after["metadata"].items()
        >= {"minimum_scheduler_poll_interval": 25, "use_double_quotes": False}.items()
    )
    assert after["metadata"]["mpirun_command"] == metadata["mpirun_command"]
    assert (
        after["authinfo"]["auth_params"].items() >= {"look_for_keys": True, "use_login_shell": True}.items()
    )
    assert after["authinfo"]["enabled"] is False


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"scheduler_type": "core.pbspro"}, "computer odd: scheduler_type: .*core.slurm"),
        ({"transport_type": "ipi.transport"}, "computer odd: transport_type: "),
        ({"hostname": "-oProxyCommand=touch /tmp/x"}, "computer odd: hostname: expected the name"),
        ({"metadata": '{"workdir": "relative"}'}, "computer odd: work_dir: expected an absolute"),
        ({"metadata": '{"shebang": "#!/bin/sh\\ndate"}'}, "computer odd: shebang: "),
        ({"metadata": '{"grange": {"directives": ["-A x\\ndate"]}}'}, r"computer odd: directives\[0\]: "),
        ({"metadata": '{"grange": {"slots": "3"}}'}, "computer odd: slots: "),
    ],
)
def test_rows_that_cannot_be_used_say_why(profile: Profile, columns: dict[str, str], words: str) -> None:
    values = {
        "label": "odd", "hostname": "h", "scheduler_type": "core.slurm", "transport_type": "core.ssh",
        **columns,
    }  # fmt: skip
    with profile.transaction() as cursor:
        names = ", ".join(values)
        places = ", ".join(f"%({name})s" for name in values)
        cursor.execute(f"INSERT INTO computer ({names}) VALUES ({places})", values)
        with pytest.raises(InputInvalid, match=words):
            computers.load(cursor, "odd", user_id=profile.user_id)
        [line] = computers.list_computers(cursor, user_id=profile.user_id)
    assert (line.label, line.configured, line.enabled) == ("odd", False, True)


def test_a_label_is_taken_once(profile: Profile) -> None:
    with profile.transaction() as cursor:
        computers.add(cursor, FULL, user_id=profile.user_id)
        with pytest.raises(NameExists, match="a computer 'lumi' exists"):
            computers.add(cursor, FULL, user_id=profile.user_id)
        copy = computers.duplicate(cursor, "lumi", "lumi-2", user_id=profile.user_id)
        assert copy.computer == dataclasses.replace(FULL, label="lumi-2")
        with pytest.raises(NameExists):
            computers.duplicate(cursor, "lumi", "lumi-2", user_id=profile.user_id)


def test_a_label_that_is_not_there(profile: Profile) -> None:
    with profile.transaction() as cursor:
        with pytest.raises(NotFound, match="`grange computer add` makes the first"):
            computers.load(cursor, "lumi", user_id=profile.user_id)
        computers.add(cursor, FULL, user_id=profile.user_id)
        other = dataclasses.replace(FULL, label="lmui")
        for ask in (
            lambda: computers.load(cursor, "lmui", user_id=profile.user_id),
            lambda: computers.replace(cursor, other, user_id=profile.user_id),
            lambda: computers.delete(cursor, "lmui"),
            lambda: computers.enable(cursor, ["lmui"], user_id=profile.user_id),
            lambda: computers.computer_id(cursor, "lmui"),
            lambda: computers.summary(cursor, "lmui", user_id=profile.user_id),
        ):
            with pytest.raises(NotFound, match="no computer 'lmui'; did you mean 'lumi'"):
                ask()


def test_settings_are_those_of_a_user(profile: Profile) -> None:
    with profile.transaction() as cursor:
        cursor.execute("INSERT INTO \"user\" (email) VALUES ('other@host') RETURNING id")
        (other,) = cursor.fetchone() or (0,)
        computers.add(cursor, FULL, user_id=profile.user_id)
        computers.enable(cursor, ["lumi"], user_id=other, enabled=False)
        assert computers.load(cursor, "lumi", user_id=profile.user_id).enabled
        theirs = computers.load(cursor, "lumi", user_id=other)
        assert not theirs.enabled
        assert theirs.computer.ssh == SshSettings()
        assert theirs.computer.partition == FULL.partition
        computers.enable(cursor, ["lumi"], user_id=other)
        assert computers.load(cursor, "lumi", user_id=other).enabled


def test_what_is_needed_is_not_deleted(profile: Profile) -> None:
    with profile.transaction() as cursor:
        stored = computers.add(cursor, FULL, user_id=profile.user_id)
        computers.duplicate(cursor, "lumi", "unused", user_id=profile.user_id)
    profile.store(InstalledCode("/usr/bin/xtb", computer_id=stored.id))
    with profile.transaction() as cursor:
        assert computers.uses(cursor, "lumi") == ["1 node names it"]
        cursor.execute(
            "INSERT INTO allocation (computer_id, token, state, nodes, walltime_s)"
            " VALUES (%s, 'a', 'queued', 1, 60)",
            (stored.id,),
        )
        with pytest.raises(
            InUse, match="'lumi' cannot be deleted: 1 node names it and 1 allocation of it is"
        ):
            computers.delete(cursor, "lumi")
        assert computers.uses(cursor, "unused") == []
        computers.delete(cursor, "unused")
        cursor.execute("SELECT count(*) FROM authinfo")
        assert cursor.fetchone() == (1,)


def test_a_node_that_is_stored_meanwhile_keeps_its_computer(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with profile.transaction() as cursor:
        stored = computers.add(cursor, FULL, user_id=profile.user_id)
    profile.store(InstalledCode("/usr/bin/xtb", computer_id=stored.id))
    monkeypatch.setattr(computers, "uses", lambda cursor, label: [])
    with pytest.raises(InUse, match=r"'lumi' cannot be deleted: computer \d+ still has nodes"):
        with profile.transaction() as cursor:
            computers.delete(cursor, "lumi")


def test_a_summary_tells_of_connection_and_queue(profile: Profile) -> None:
    with profile.transaction() as cursor:
        stored = computers.add(cursor, FULL, user_id=profile.user_id)
        cursor.execute(
            "INSERT INTO connection (computer_id, failures, last_error, paused)"
            " VALUES (%s, 5, 'no route', true)",
            (stored.id,),
        )
        cursor.execute(
            "INSERT INTO allocation (computer_id, token, state, nodes, walltime_s)"
            " SELECT %s, s, s::allocation_state, 1, 60 FROM unnest(%s) AS s",
            (stored.id, ["submitting", "running", "ended", "failed"]),
        )
        line = computers.summary(cursor, "lumi", user_id=profile.user_id)
        assert (line.hyperqueue, line.paused, line.failures, line.last_error) == ("hq", True, 5, "no route")
        assert (line.state, line.open_allocations) == ("paused", 2)
