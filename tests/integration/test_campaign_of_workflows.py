"""Campaigns of workflows: recorded once, run by whoever, gone on with."""

from __future__ import annotations

import os
import socket

import pytest
import workflow_site as site

import grange as gr
from grange.core import overview
from grange.core.hub import Hub
from grange.core.profile import Profile
from grange.core.worker import free_dead


def count(profile: Profile, what: str) -> int:
    with profile.transaction() as cursor:
        cursor.execute(f"SELECT count(*) FROM process WHERE {what}")
        return int((cursor.fetchone() or (0,))[0])


def mapped(profile: Profile, times: int = 2) -> gr.Campaign:
    campaign = gr.Campaign("mixed", profile)
    campaign.map(site.double, x=range(3))
    campaign.map(site.doubled, x=range(4), times=times, labels=["a", "b", "c", "d"])
    return campaign


def test_workflows_beside_calculations(profile: Profile) -> None:
    campaign = mapped(profile)
    done = campaign.run(progress=False)
    assert (done.total, done.done, done.failed) == (7, 7, 0)
    frame = campaign.results()
    assert frame["result"].tolist() == [0, 2, 4, 0, 4, 8, 12]
    assert frame["label"].tolist() == ["", "", "", "a", "b", "c", "d"]
    # 3 of the campaign's own, 4 workflows with two calls each
    assert count(profile, "campaign_id IS NOT NULL") == 7
    assert count(profile, "parent_id IS NOT NULL") == 8
    # what is one value for all is one node
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(DISTINCT source_id) FROM link WHERE label = 'times'")
        assert cursor.fetchone() == (1,)
    # again: from the record, also in another script and without a map
    before = count(profile, "true")
    again = mapped(profile).run(progress=False)
    assert (again.done, again.reused) == (7, 7)
    assert count(profile, "true") == before
    assert gr.Campaign("mixed", profile).results()["result"].tolist() == [0, 2, 4, 0, 4, 8, 12]


def test_what_a_worker_left_is_gone_on_with(profile: Profile) -> None:
    assert mapped(profile, times=3).submit() == 7
    with site.another(profile) as own:
        hub = Hub(own)
        hub.step(0.0)
        hub.step(0.0)
    free_dead(profile)
    assert count(profile, "parent_id IS NOT NULL") == 4
    done = gr.Campaign("mixed", profile).run(progress=False)
    assert done.failed == 0
    assert mapped(profile, times=3).results()["result"].tolist() == [0, 2, 4, 0, 8, 16, 24]
    assert count(profile, "parent_id IS NOT NULL") == 12
    assert count(profile, "state <> 'finished'") == 0


def test_workflows_have_no_resources(profile: Profile) -> None:
    campaign = gr.Campaign("refused", profile)
    with pytest.raises(gr.GrangeError, match="resources"):
        campaign.map(site.doubled, x=[1], resources=gr.Resources(cpus=2))
    with pytest.raises(gr.GrangeError, match="labels"):
        campaign.map(site.doubled, x=[1, 2], labels=["a"])
    with pytest.raises(gr.GrangeError, match="int"):
        campaign.map(site.doubled, x=[1, "two"])
    assert count(profile, "true") == 0


def test_a_campaign_of_workflows_is_killed_with_all_that_they_called(profile: Profile) -> None:
    campaign = mapped(profile, times=2)
    campaign.submit()
    with site.another(profile) as own:
        hub = Hub(own)
        hub.step(0.0)
        hub.step(0.0)
    free_dead(profile)
    assert campaign.kill() >= 7
    assert count(profile, "state <> 'killed'") == 0


def test_calls_of_earlier_maps_are_no_part_of_a_run(profile: Profile) -> None:
    first = gr.Campaign("maps", profile)
    first.map(site.doubled, x=range(4), times=1)
    first.run(progress=False)
    shown: list[tuple[int, int]] = []
    second = gr.Campaign("maps", profile)
    second.map(site.doubled, x=range(4), times=2)
    done = second.run(progress=lambda progress: shown.append((progress.done, progress.total)))
    assert (done.done, done.total, done.failed, done.reused) == (4, 4, 0, 0)
    assert shown
    assert all(0 <= finished <= total == 4 for finished, total in shown)
    again = gr.Campaign("maps", profile)
    again.map(site.doubled, x=range(2), times=2)
    done = again.run(progress=False)
    assert (done.done, done.total, done.reused) == (2, 2, 2)


def test_it_says_which_workers_have_its_workflows(profile: Profile) -> None:
    campaign = mapped(profile, times=3)
    campaign.submit()
    with profile.transaction() as cursor:
        assert overview.campaigns(cursor, ids=[campaign.id])[0].run_by is None
    with site.another(profile) as own:
        hub = Hub(own)
        hub.step(0.0)
        with profile.transaction() as cursor:
            said = overview.campaigns(cursor, ids=[campaign.id])[0].run_by
        assert said == f"process {os.getpid()} on {socket.gethostname()}"
        hub.let_go()
    with profile.transaction() as cursor:
        assert overview.campaigns(cursor, ids=[campaign.id])[0].run_by is None
