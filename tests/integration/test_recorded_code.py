"""Going on with a campaign without its script: by the code that was recorded, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grange.core.profile import Profile

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
