"""Fixtures of the tests of faults: a computer of the test cluster, and campaigns that run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster
from fault_campaign import FaultCampaign
from fault_site import HQ, FaultSite

from grange.core import computer as computers
from grange.core.profile import Profile

#: HyperQueue by its wheel, and by its program where there is one.
KINDS = ["private-wheel", *(["hq"] if HQ else [])]


@pytest.fixture(scope="session", params=KINDS)
def site(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[FaultSite]:
    kind = str(request.param)
    if kind == "private-wheel" and not cluster.confined:
        pytest.skip("network namespaces are refused here: the wheel's server would be open to all")
    made = FaultSite(cluster, f"faults-{kind}", kind)
    yield made
    made.close()


@pytest.fixture
def campaign(site: FaultSite, profile: Profile) -> Iterator[Callable[..., FaultCampaign]]:
    """Makes campaigns on the computer: campaign(**what). What they have left is ended with the test."""
    with profile.transaction() as cursor:
        computers.add(cursor, site.computer, user_id=profile.user_id)
    made: list[FaultCampaign] = []

    def make(**what: Any) -> FaultCampaign:
        made.append(FaultCampaign(site, profile, f"campaign{len(made)}", **what))
        return made[-1]

    yield make
    for one in made:
        one.kill()
    site.mend()
