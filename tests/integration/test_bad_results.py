"""Results that cannot be recorded as they are: each ends its own process, never the run or its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

import grange as gr
from grange.core.profile import Profile
from grange.farm.runner import LABEL_LIMIT


def odd(n: int) -> object:
    if n == 3:
        return 10**5000
    if n == 5:
        return {"deep": [{"inside": -(10**5000)}]}
    if n == 7:
        return {"x" * 9000: n}
    return n


class ExitCode:
    """What another package may call its own exit codes."""

    def __init__(self, status: int) -> None:
        self.status, self.message = status, "far too large"


def far(n: int) -> object:
    return ExitCode(2**40) if n else n


def test_what_cannot_be_written_ends_its_own_call_alone(profile: Profile) -> None:
    campaign = gr.Campaign("odd", profile)
    campaign.map(odd, n=range(40))
    campaign.run(progress=False)
    frame = campaign.results().set_index("n")
    assert list(frame.index[frame["state"] != "finished"]) == [3, 5, 7]
    assert (frame["exit_status"].dropna() == 0).all()
    assert "an int of more than 4,300 digits" in frame["exit_message"][3]
    assert "deep[0]['inside']: an int of more than 4,300 digits" in frame["exit_message"][5]
    assert f"at most {LABEL_LIMIT} characters" in frame["exit_message"][7]


def test_an_exit_status_that_no_column_takes(profile: Profile) -> None:
    campaign = gr.Campaign("far", profile)
    campaign.map(far, n=range(2))
    campaign.run(progress=False)
    assert list(campaign.results()["state"]) == ["finished", "excepted"]
    with pytest.raises(ValueError, match=r"below 2\*\*31"):
        gr.ExitCode(2**40, "far")
