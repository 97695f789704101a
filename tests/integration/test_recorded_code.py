"""Going on with a campaign without its script: by the code that was recorded, or not at all."""

from __future__ import annotations

import importlib
import linecache
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import grange as gr
from grange.core.campaign_run import CampaignRun
from grange.core.intake import Intake
from grange.core.profile import Profile
from grange.farm.result import ResultPack, TaskResult

MODULE = """
import grange as gr


def double(x: int) -> int:
    return 2 * x


class Outer:
    class Echo(gr.CalcJob):
        class Inputs:
            x: int

        def prepare(self, inputs):
            return gr.Command(["echo", str(inputs.x)])

        def parse(self, files):
            return {"said": int(files.text("stdout.txt"))}
"""

SUBMIT = "import sys, grange as gr, recorded_code as m; p = gr.open(sys.argv[1]); "
SUBMIT += "c = gr.Campaign('c', p); c.map({what}, x=[1, 2]); c.submit()"
RUN = "import sys, grange as gr; p = gr.open(sys.argv[1]); gr.Campaign('c', p).run(progress=False)"


def python(code: str, profile: Profile, folder: Path) -> None:
    subprocess.run([sys.executable, "-c", code, str(profile.home)], cwd=folder, check=True)


def states(profile: Profile) -> list[tuple[str, bool, str | None]]:
    with profile.transaction() as cursor:
        cursor.execute("SELECT state::text, paused, exit_message FROM process ORDER BY node_id")
        return list(cursor.fetchall())


@pytest.mark.parametrize("what", ["m.double", "m.Outer.Echo"])
def test_unchanged_code_is_run(what: str, profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "recorded_code.py").write_text(MODULE)
    python(SUBMIT.format(what=what), profile, tmp_path)
    python(RUN, profile, tmp_path)
    assert states(profile) == [("finished", False, None)] * 2


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [("m.double", "2 * x", "3 * x"), ("m.Outer.Echo", 'int(files.text("stdout.txt"))', "0")],
)
def test_changed_code_is_not_run(what: str, old: str, new: str, profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "recorded_code.py").write_text(MODULE)
    python(SUBMIT.format(what=what), profile, tmp_path)
    (tmp_path / "recorded_code.py").write_text(MODULE.replace(old, new))
    python(RUN, profile, tmp_path)
    found = states(profile)
    assert [(state, paused) for state, paused, _ in found] == [("created", True)] * 2
    assert all("has changed since this call was recorded" in str(message) for _, _, message in found)


def test_code_that_cannot_be_imported_pauses_its_calls_only(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "recorded_code.py").write_text(MODULE)
    python(SUBMIT.format(what="m.double"), profile, tmp_path)
    (tmp_path / "recorded_code.py").write_text("def double(")
    python(RUN, profile, tmp_path)
    found = states(profile)
    assert [(state, paused) for state, paused, _ in found] == [("created", True)] * 2
    assert all("recorded_code.double cannot be imported here: SyntaxError" in str(m) for _, _, m in found)


ECHO = """
import grange as gr
class Echo(gr.CalcJob):
    class Inputs:
        x: int
    class Outputs:
        y: int
    def prepare(self, inputs):
        return gr.Command(["sh", "-c", f"echo ran >> {log}; echo {{inputs.x}}"])
    def parse(self, files):
        return {{"y": int(files.text("stdout.txt"))}}
"""


def test_a_computed_result_waits_for_its_code(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run dies between computing and recording; the code changes, and comes back: nothing runs twice."""
    module = tmp_path / "grange_test_waiting.py"
    source = ECHO.format(log=tmp_path / "log")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def loaded(text: str) -> type[gr.CalcJob]:
        module.write_text(text)
        linecache.clearcache()
        importlib.invalidate_caches()
        sys.modules.pop(module.stem, None)
        made: type[gr.CalcJob] = importlib.import_module(module.stem).Echo
        return made

    came: list[TaskResult] = []

    def die(_run: CampaignRun, packs: Sequence[ResultPack]) -> None:
        came.extend(result for pack in packs for result in pack.results)
        if len(came) == 4:  # a calculation that is cut off while it runs may run again
            raise RuntimeError("died before recording")

    first = gr.Campaign("waiting", profile)
    first.map(loaded(source), x=range(4))
    with monkeypatch.context() as dying:
        dying.setattr(CampaignRun, "_record", die)
        with pytest.raises(RuntimeError, match="died"):
            first.run(progress=False)
    assert len((tmp_path / "log").read_text().split()) == 4
    loaded(source.replace("int(files", "1 + int(files"))
    changed = gr.Campaign("waiting", profile)
    changed.run(progress=False)
    assert sum(changed.paused().values()) == 4
    assert len((tmp_path / "log").read_text().split()) == 4
    again = gr.Campaign("waiting", profile)
    again.map(loaded(source), x=range(4))
    assert again.run(progress=False).failed == 0
    assert again.results()["y"].tolist() == [0, 1, 2, 3]
    assert len((tmp_path / "log").read_text().split()) == 4


def test_a_call_that_somebody_else_ended_is_not_waited_for(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = gr.Campaign("ended", profile)
    campaign.map(gr.ShellJob("true {x}"), x=range(3))
    record = Intake.record

    def kill_first(self: Intake, *given: object) -> object:
        with profile.transaction() as cursor:
            cursor.execute("UPDATE process SET state = 'killed', finished_at = now() WHERE ordinal = 0")
        return record(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Intake, "record", kill_first)
    assert campaign.run(progress=False).done == 3
    assert campaign.results()["state"].tolist() == ["killed", "finished", "finished"]
