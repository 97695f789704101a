"""Codes on another computer: looked at and run over SSH, on the test cluster."""

from __future__ import annotations

from typing import Any

import pytest

import grange as gr
from grange.core import computer as computers
from grange.core.code_test import Finding, examine
from grange.core.connection import open_connection
from grange.core.data.code import Code
from grange.core.profile import Profile
from tests.cluster import Cluster


class Said(gr.CalcJob):
    """Runs a code with arguments, and tells what it printed."""

    class Inputs:
        code: gr.Code
        words: list[str]

    class Outputs:
        said: str

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command([inputs.code, *inputs.words])

    def parse(self, files: Any) -> dict[str, object]:
        return {"said": files.text("stdout.txt")}


@pytest.fixture
def stored(profile: Profile, cluster: Cluster) -> computers.StoredComputer:
    """The login node of the cluster, which runs tasks itself."""
    computer = cluster.computer(
        "codes",
        scheduler="direct",
        hyperqueue="none",
        prepend_text="export OF_THE_COMPUTER=1\n",
        mpirun="env MPI={tot_num_mpiprocs}",
    )
    with profile.transaction() as cursor:
        return computers.add(cursor, computer, user_id=profile.user_id)


def looked_at(profile: Profile, stored: computers.StoredComputer, code: Code) -> list[Finding]:
    transport = open_connection(profile, stored.computer, stored.id)
    try:
        return list(examine(code, transport, stored.computer))
    finally:
        transport.close()


def test_codes_are_looked_at_where_they_are(
    profile: Profile, cluster: Cluster, stored: computers.StoredComputer
) -> None:
    cluster.shell("mkdir -p ~/bin; printf '#!/bin/sh\\n' > ~/bin/pw.x; chmod 755 ~/bin/pw.x")
    before = f'[ -n "$OF_THE_COMPUTER" ] && PATH={cluster.home}/bin:$PATH'
    code = gr.InstalledCode("pw.x", computer_id=stored.id, prepend_text=before, with_mpi=True)
    found = looked_at(profile, stored, code)
    assert [(one.name, one.state) for one in found] == [("program", "ok"), ("mpirun", "ok")]
    assert found[0].detail == f"{cluster.home}/bin/pw.x on codes"
    cluster.shell("chmod 644 ~/bin/pw.x")
    (one,) = looked_at(profile, stored, gr.InstalledCode(f"{cluster.home}/bin/pw.x", computer_id=stored.id))
    assert (one.state, one.detail) == ("failed", f"{cluster.home}/bin/pw.x on codes may not be run")


def test_codes_run_there_with_all_that_is_theirs(profile: Profile, stored: computers.StoredComputer) -> None:
    installed = gr.InstalledCode(
        "/bin/sh", computer_id=stored.id, with_mpi=True, prepend_text="export X=1", append_text="echo after"
    )
    portable = gr.PortableCode(
        "run.sh", {"run.sh": b'#!/bin/sh\n. ./lib; help "$@"\n', "lib": b"help() { echo $#; }"}
    )
    campaign = gr.Campaign("there", profile)
    campaign.map(
        Said, code=installed, words=[["-c", "echo $MPI $X $1", "sh", "it's"]], resources=gr.Resources(cpus=2)
    )
    campaign.map(Said, code=portable, words=[["a b"], ["c", "d"]])
    campaign.run(progress=False, executor="codes")
    frame = campaign.results()
    assert frame["said"].tolist() == ["2 1 it's\nafter\n", "1\n", "2\n"], frame["exit_message"].tolist()
