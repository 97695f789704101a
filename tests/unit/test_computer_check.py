"""What a computer may be: every field named where it is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from grange.core.computer_check import checked, checked_field
from grange.core.errors import InputInvalid, InputMissing
from grange.farm.computer import Computer, SshSettings

GOOD = Computer(label="lumi", hostname="lumi.example.org")


def test_a_good_one_stays_as_it_is() -> None:
    assert checked(GOOD) == GOOD


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("directives", ["#SBATCH --constraint=rome", " -C gpu "], ("--constraint=rome", "-C gpu")),
        ("connection_interval_s", 5, 5.0),
        ("work_dir", "~/grange/", "~/grange"),
        ("work_dir", "/scratch//{username}/./runs/", "/scratch/{username}/runs"),
        ("mpirun", "srun  -n {tot_num_mpiprocs} 'a b'", "srun -n {tot_num_mpiprocs} 'a b'"),
        ("mpirun", "", ""),
        ("prepend_text", "module load x\r\n", "module load x\n"),
        ("hostname", "fe80::1%eth0", "fe80::1%eth0"),
        ("hostname", "my_alias", "my_alias"),
        ("cores_per_node", None, None),
        ("shebang", "#!/usr/bin/env -S bash -l", "#!/usr/bin/env -S bash -l"),
        ("ssh.user", "ada@cluster", "ada@cluster"),
        ("ssh.proxy_jump", "ada@one:22,ssh://two,[::1]:2222", "ada@one:22,ssh://two,[::1]:2222"),
        ("ssh.keepalive_s", 0, 0.0),
    ],
)  # fmt: skip
def test_what_is_kept(field: str, given: Any, kept: Any) -> None:
    assert checked_field(field, given) == kept
    if not field.startswith("ssh."):
        assert getattr(checked(dataclasses.replace(GOOD, **{field: given})), field) == kept


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("label", "a b", "letters, digits"),
        ("label", "-a", "letters, digits"),
        ("label", "local", "names an executor"),
        ("label", 3, "as text"),
        ("hostname", "-oProxyCommand=date", "name or address of a host"),
        ("hostname", "ada@host", "no user and no port"),
        ("hostname", "host:22", "no user and no port"),
        ("hostname", "a b", "name or address"),
        ("hostname", "$(date)", "name or address"),
        ("description", "a\nb", "in one line"),
        ("description", "a\0b", "NUL"),
        ("description", "a\ud800b", "UTF-8"),
        ("transport", "telnet", "one of local, ssh, openssh"),
        ("scheduler", "core.slurm", "one of direct, slurm"),
        ("hyperqueue", True, "one of none, hq, private-wheel"),
        ("work_dir", "grange", "absolute folder"),
        ("work_dir", "/", "not / or ~ itself"),
        ("work_dir", "~", "not / or ~ itself"),
        ("work_dir", "/a/../b", "without .."),
        ("work_dir", "~ada/x", "absolute folder"),
        ("work_dir", "/scratch/{user}", "no other fields than {username}"),
        ("work_dir", "/scratch/{username!r}", "no other fields"),
        ("work_dir", "/scratch/{username", "braces only around"),
        ("work_dir", "/scratch/{}", "no other fields"),
        ("work_dir", "/a\nb", "in one line"),
        ("python", "-c", "absolute path of a program"),
        ("python", "bin/python", "absolute path of a program"),
        ("python", "~/bin/python", "absolute path of a program"),
        ("hq_program", " hq", "absolute path of a program"),
        ("hq_binary", "hq", "on this machine"),
        ("ssh", {"user": "ada"}, "SshSettings"),
        ("ssh.user", "-l", "a name on that host"),
        ("ssh.user", "a;b", "a name on that host"),
        ("ssh.port", 70000, "from 0 to 65,535"),
        ("ssh.port", True, "a whole number"),
        ("ssh.key_file", "id_rsa", "absolute or from ~/"),
        ("ssh.config_file", "all", '"none"'),
        ("ssh.proxy_jump", "-oProxyCommand=date", "ssh -J"),
        ("ssh.proxy_jump", "one,,two", "ssh -J"),
        ("ssh.restricted", "yes", "true or false"),
        ("ssh.connect_timeout_s", 0, "at least 0.1"),
        ("ssh.keepalive_s", float("nan"), "seconds"),
        ("cores_per_node", 0, "from 1"),
        ("cores_per_node", 1.5, "a whole number"),
        ("memory_mb_per_node", -1, "from 1"),
        ("gpus_per_node", None, "from 0"),
        ("partition", "a b", "a partition as Slurm has it"),
        ("account", "--x", "an account"),
        ("qos", "a\n#SBATCH", "in one line"),
        ("directives", "--exclusive", "a list of options"),
        ("directives", ["--a\nrm -rf"], "in one line"),
        ("directives", ["exclusive"], "options of sbatch"),
        ("directives", ["--job-name=mine"], "grange sets that one itself"),
        ("directives", ["-J mine"], "grange sets that one itself"),
        ("directives", ["--array=1-3"], "grange sets that one itself"),
        ("shebang", "/bin/bash", "#! and an absolute path"),
        ("shebang", "#!/bin/bash\ndate", "in one line"),
        ("shebang", "#! bash", "#! and an absolute path"),
        ("prepend_text", None, "lines of shell"),
        ("append_text", "x" * 70_000, "at most 65,536"),
        ("mpirun", "mpirun -np {n}", "no other fields than {tot_num_mpiprocs}"),
        ("mpirun", "mpirun 'x", "quotes do not match"),
        ("max_queued_jobs", 0, "from 1"),
        ("max_allocations", "4", "a whole number"),
        ("connection_interval_s", -1, "seconds"),
        ("connection_interval_s", float("inf"), "seconds"),
        ("slots", -1, "from 0"),
        ("delivery", "s3", "ssh, store"),
    ],
)
def test_what_is_refused(field: str, value: Any, words: str) -> None:
    if field.startswith("ssh."):
        settings = dataclasses.replace(GOOD.ssh, **{field.removeprefix("ssh."): value})
        computer = dataclasses.replace(GOOD, ssh=settings)
    else:
        computer = dataclasses.replace(GOOD, **{field: value})
    with pytest.raises(InputInvalid) as caught:
        checked(computer)
    assert caught.value.port.partition("[")[0] == field
    assert words in str(caught.value)


@pytest.mark.parametrize("field", ["label", "hostname", "work_dir", "python", "hq_program", "shebang"])
def test_what_has_to_be_there(field: str) -> None:
    with pytest.raises(InputMissing, match=f"{field}: expected .* got nothing: it is required"):
        checked(dataclasses.replace(GOOD, **{field: ""}))


def test_only_computers() -> None:
    with pytest.raises(InputInvalid, match="a Computer"):
        checked(SshSettings())  # type: ignore[arg-type]
