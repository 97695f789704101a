"""Results that cannot be recorded as they are: each ends its own process, never the run or its neighbours."""

from __future__ import annotations

from pathlib import Path

import pytest

import grange as gr
from grange.core.intake import Intake
from grange.core.profile import Profile
from grange.farm import read_result_pack, runner
from grange.farm.runner import LABEL_LIMIT
from grange.repository import key_of


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


class Shared(gr.CalcJob):
    """Gives one and the same node from every call, as a constant of a module is easily given."""

    class Inputs:
        n: int

    class Outputs:
        five: int

    def prepare(self, inputs: object) -> gr.Command:
        return gr.Command(["true"])

    def parse(self, files: object) -> dict[str, object]:
        return {"five": FIVE}


FIVE = gr.Int(5)


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


def test_a_node_that_all_calls_give_is_the_output_of_one(profile: Profile) -> None:
    campaign = gr.Campaign("shared", profile)
    campaign.map(Shared, n=range(6))
    campaign.run(progress=False)
    frame = campaign.results()
    assert sorted(frame["exit_status"]) == [0] + [10] * 5
    assert frame["exit_message"].dropna().str.contains("data that is made here").sum() == 5
    with profile.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM link JOIN node ON id = target_id WHERE link.label = 'five'")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("content", [b"good " * 100, b"evil " * 100])
def test_a_pack_with_damaged_contents_takes_nobodys_place(
    profile: Profile, tmp_path: Path, content: bytes
) -> None:
    """What nodes name lies in another pack already; the later pack has it too, as it says."""
    good = b"good " * 100
    node = gr.Folder({"file": good})
    profile.store(node)
    campaign = gr.Campaign("later", profile)
    path = tmp_path / "result-1.zip"
    pack = runner.ZipWriter(str(path))
    pack.add(key_of(good), content)
    pack.add("manifest.json", runner.dump({"format": runner.FORMAT, "results": []}))
    pack.close()
    Intake(profile, campaign.id).record([read_result_pack(path)], {})
    [again] = profile.load(node.id or 0)
    assert again.read_files() == {"file": good}
    with profile.transaction() as cursor:
        cursor.execute("SELECT campaign_id FROM pack JOIN blob ON pack_id = pack.id")
        assert cursor.fetchall() == [(campaign.id if content == good else None,)]
