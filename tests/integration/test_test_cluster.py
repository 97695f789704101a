"""The test cluster itself: what the other tests stand on."""

from __future__ import annotations

from cluster import Cluster


def test_it_is_reached_by_the_program_ssh(cluster: Cluster) -> None:
    assert cluster.shell("whoami") == f"{cluster.user}\n"
