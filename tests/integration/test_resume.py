"""Going on without the script that began, caching, retrying, and the frames that show it."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pandas
import pytest

import grange as gr
from grange.core import frame as frames
from grange.core.profile import Profile, open_profile
from grange.core.transition import State
from grange.farm.local_pool import LocalPool

MODULE = textwrap.dedent("""
    import grange as gr

    FACTOR = 2

    def helper(n):
        return n * FACTOR

    def doubled(n: int) -> int:
        return helper(n)

    class Outer:
        class Job(gr.CalcJob):
            class Inputs:
                n: int

            class Outputs:
                doubled: int

            def prepare(self, inputs):
                return gr.Command(["echo", str(inputs.n)])

            def parse(self, files):
                return {"doubled": helper(int(files["stdout.txt"]))}
""")

SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr
    import beside

    PLUS = 100

    def more(n: int) -> int:
        return beside.doubled(n) + PLUS

    class Own(gr.CalcJob):
        class Inputs:
            n: int

        class Outputs:
            more: int

        def prepare(self, inputs):
            return gr.Command(["echo", str(inputs.n)])

        def parse(self, files):
            return {"more": more(int(files["stdout.txt"]))}

    campaign = gr.Campaign("later", gr.open(sys.argv[1]))
    campaign.map(beside.doubled, n=range(3))
    campaign.map(beside.Outer.Job, n=range(3), resources=gr.Resources(walltime_s=30))
    campaign.map(more, n=range(3))
    campaign.map(Own, n=range(3))
    sleep = gr.ShellJob("sh -c 'sleep {seconds}; echo 1'")
    campaign.map(sleep, seconds=[0, 60], resources=gr.Resources(walltime_s=1))
    print(campaign.submit())
""")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )


def grange(profile: Profile, *words: str, cwd: Path) -> str:
    done = run("-m", "grange", "--home", str(profile.home), *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "beside.py").write_text(MODULE)
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_the_command_line_runs_what_a_script_has_submitted(
    profile: Profile, project: Path, elsewhere: Path
) -> None:
    submitted = run("script.py", profile.home, cwd=project)
    assert submitted.stdout == "14\n", submitted.stderr
    said = grange(profile, "campaign", "run", "later", cwd=elsewhere)
    assert "13 ok · 1 failed" in said, said
    results = gr.Campaign("later", profile).results()
    assert results["result"].tolist()[:3] == [0, 2, 4]
    assert results["doubled"].tolist()[3:6] == [0, 2, 4]
    assert results["result"].tolist()[6:9] == [100, 102, 104]
    assert results["more"].tolist()[9:12] == [100, 102, 104]
    # limits are those that were recorded
    assert results["exit_status"].tolist() == [0] * 13 + [120]


def test_code_that_has_changed_is_not_run(profile: Profile, project: Path, elsewhere: Path) -> None:
    assert run("script.py", profile.home, cwd=project).returncode == 0
    changed = MODULE.replace("return helper(n)", "return helper(n) + 1").replace(
        'return gr.Command(["echo", str(inputs.n)])', 'return gr.Command(["echo", "7"])'
    )
    (project / "beside.py").write_text(changed)
    said = grange(profile, "campaign", "run", "later", cwd=elsewhere)
    assert "3 calls paused: the source of beside.doubled has changed" in said, said
    campaign = gr.Campaign("later", profile)
    assert campaign.counts()[State.CREATED, False] == 6
    paused = campaign.results().iloc[:6]
    assert set(paused["exit_message"]) == {
        "the source of beside.doubled has changed since this call was recorded: map it again",
        "the source of beside.Outer.Job has changed since this call was recorded: map it again",
    }
    shown = grange(profile, "process", "show", str(paused["process"][0]), cwd=elsewhere)
    assert "paused" in shown
    assert "beside.doubled has changed" in shown

    # a helper counts too; and what can no more be imported says why
    (project / "beside.py").write_text(MODULE.replace("FACTOR = 2", "FACTOR = 3"))
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET paused = false")
    grange(profile, "campaign", "run", "later", cwd=elsewhere)
    assert "something that is used by beside.doubled has changed" in campaign.results()["exit_message"][0]
    (project / "beside.py").write_text("import nothing_of_that_name\n")
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET paused = false")
    grange(profile, "campaign", "run", "later", cwd=elsewhere)
    assert (
        "beside.doubled cannot be imported here: ModuleNotFoundError" in campaign.results()["exit_message"][0]
    )

    # as it was: mapping again plays what is paused
    (project / "beside.py").write_text(MODULE)
    assert run("script.py", profile.home, cwd=project).stdout == "6\n"
    grange(profile, "campaign", "run", "later", cwd=elsewhere)
    results = campaign.results()
    assert results["result"].tolist()[:3] == [0, 2, 4]
    assert results["doubled"].tolist()[3:6] == [0, 2, 4]
    assert campaign.counts() == {(State.FINISHED, False): 13, (State.FINISHED, True): 1}


def test_a_map_goes_on_with_what_is_paused_or_left(profile: Profile) -> None:
    campaign = gr.Campaign("left", profile)
    campaign.map(_twice, n=range(6))
    campaign.submit()
    with profile.transaction() as cursor:
        cursor.execute("UPDATE process SET paused = true, exit_message = 'why' WHERE ordinal < 3")
    assert gr.Campaign("left", profile).run(progress=False).total == 3
    again = gr.Campaign("left", profile)
    again.map(_twice, n=range(6))
    done = again.run(progress=False)
    assert (done.done, done.reused, done.failed) == (6, 3, 0)
    assert again.results()["exit_message"].isna().all()


def _twice(n: int) -> int:
    return 2 * n


def test_retry_takes_the_limits_of_the_map_or_of_the_run(profile: Profile) -> None:
    sleep = gr.ShellJob("sleep {seconds}")
    campaign = gr.Campaign("limits", profile)
    campaign.map(sleep, seconds=[0.0, 0.8], resources=gr.Resources(walltime_s=0.2))
    campaign.map(gr.ShellJob("false"))
    assert campaign.run(progress=False).failed == 2
    assert campaign.retry([120]) == 1
    # from the record: the old limit; with another in its place; mapped anew: the map's
    recorded = gr.Campaign("limits", profile)
    assert recorded.run(progress=False).failed == 1
    assert recorded.retry([120]) == 1
    assert recorded.run(progress=False, resources=gr.Resources(walltime_s=20)).failed == 0
    assert recorded.retry() == 1
    mapped = gr.Campaign("limits", profile)
    mapped.map(sleep, seconds=[0.9], resources=gr.Resources(walltime_s=0.2))
    assert mapped.run(progress=False).failed == 1
    mapped.retry([120])
    longer = gr.Campaign("limits", profile)
    longer.map(sleep, seconds=[0.9], resources=gr.Resources(walltime_s=20))
    assert longer.run(progress=False).failed == 0


# -- caching ---------------------------------------------------------------------------------------


def imported(folder: Path, name: str, source: str) -> ModuleType:
    (folder / f"{name}.py").write_text(source)
    # The runners' byte code of the version before: of the same second and size, it would pass for this one's.
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    import linecache

    linecache.clearcache()
    return importlib.import_module(name)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Makes versions of one module: each is found where the others were."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda source: imported(tmp_path, "versions_of_a_module", source)
    sys.modules.pop("versions_of_a_module", None)


def test_only_equal_calls_are_reused(profile: Profile, modules: Callable[[str], ModuleType]) -> None:
    base = (
        "A = 1\n"
        "def helper(x):\n    return x + A\n"
        "def f(x: int, y: int = 1) -> dict:\n    return {'z': helper(x) + y, 'file': [x, y]}\n"
    )
    number = iter(range(100))

    def reused(function: Any, **inputs: Any) -> int:
        campaign = gr.Campaign(f"cache-{next(number)}", profile)
        cache = inputs.pop("cache", True)
        campaign.map(function, {"x": [1, 2, 3], **inputs}, cache=cache)
        done = campaign.run(progress=False)
        assert done.failed == 0
        return done.reused

    assert reused(modules(base).f) == 0
    assert reused(modules(base).f) == 3
    assert reused(modules(base).f, x=[3, 4]) == 1
    assert reused(modules(base).f, cache=False) == 0
    for old, new in (
        ("A = 1", "A = 2"),
        ("y: int = 1", "y: int = 5"),
        ("return x + A", "return x - A"),
        ("'z'", "'q'"),
    ):
        assert reused(modules(base.replace(old, new)).f) == 0, new
    assert reused(modules(base + "f.version = '2'\n").f) == 0
    assert reused(modules(base + "f.version = '2'\n").f) == 3
    assert reused(modules(base).f) == 3
    add = modules("def add(x: int, n: int) -> int:\n    return x + n\n").add
    assert reused(partial(add, n=1)) == 0
    assert reused(partial(add, n=2)) == 0
    assert reused(partial(add, n=2)) == 3
    # what was reused is a calculation of its own, with outputs of its own
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT count(*), count(DISTINCT l.target_id) FROM process p"
            " JOIN link l ON l.source_id = p.node_id AND l.type = 'create' WHERE p.cached_from IS NOT NULL"
        )
        count, distinct = cursor.fetchone() or (0, 0)
    assert count == distinct > 0


def test_files_of_reused_jobs_are_theirs_too(profile: Profile) -> None:
    job = gr.ShellJob("sh -c 'date +%N > {name}.out; cat {name}.out'", outputs={"out": "a.out"})
    values = []
    for name in ("one", "two"):
        campaign = gr.Campaign(name, profile)
        campaign.map(job, name="a")
        campaign.run(progress=False)
        values.append(campaign.results(nodes=True).iloc[0])
    assert values[0]["out"].id != values[1]["out"].id
    assert values[0]["out"].content == values[1]["out"].content == values[1]["stdout"].value.encode()
    with profile.transaction() as cursor:
        cursor.execute("SELECT cached_from FROM process ORDER BY node_id")
        assert cursor.fetchall() == [(None,), (values[0]["process"],)]


# -- frames ----------------------------------------------------------------------------------------


def mixed(n: int, points: list[float], atoms: Any, state: str) -> dict[str, Any]:
    if n % 4 == 3:
        raise ValueError("three")
    return {
        "whole": 2**60 + n,
        "real": math.inf if n == 0 else n / 2,
        "flag": n > 1,
        "text": "t" * n,
        "table": {"n": n},
        "row": [n, n],
        "array": numpy.arange(n),
        "atoms": atoms,
        "state": state.upper(),
        **({"sometimes": n} if n % 2 else {}),
    }


def test_frames_of_everything(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("H2O", positions=numpy.arange(9.0).reshape(3, 3))
    first = gr.Campaign("first", profile)
    first.map(_twice, n=[1, 2])
    first.run(progress=False)
    nodes = first.results(nodes=True)["result"].tolist()
    campaign = gr.Campaign("frames", profile)
    campaign.map(mixed, n=range(8), points=gr.fixed(nodes), atoms=atoms, state="solid")
    assert campaign.run(progress=False).failed == 2
    frame = campaign.results()
    assert frame["points"].tolist() == [[2, 4]] * 8
    assert frame["atoms"].tolist() == ["H2O"] * 8
    assert frame["state"].tolist() == ["finished"] * 3 + ["excepted"] + ["finished"] * 3 + ["excepted"]
    assert frame["state_in"].tolist() == ["solid"] * 8
    assert frame["state_out"].dropna().tolist() == ["SOLID"] * 6
    assert frame["whole"].tolist()[:3] == [2**60, 2**60 + 1, 2**60 + 2]
    assert pandas.isna(frame["whole"][3])
    assert frame["real"].tolist()[:3] == [math.inf, 0.5, 1.0]
    assert frame["flag"].tolist()[:3] == [False, False, True]
    assert frame["table"][2] == {"n": 2}
    assert frame["row"][2] == [2, 2]
    assert frame["array"][2].tolist() == [0, 1]
    assert frame["sometimes"].dropna().tolist() == [1, 5]
    assert all(
        pandas.isna(frame.loc[3, name]) for name in ("whole", "real", "flag", "text", "table", "row", "array")
    )

    more = gr.Campaign("frames", profile)
    more.map(mixed, n=[0, 8], points=gr.fixed(nodes), atoms=atoms, state="solid")
    before = more.results()  # one call has no process yet
    assert before["state"].tolist() == ["finished", "created"]
    assert before["whole"].tolist()[0] == 2**60
    assert pandas.isna(before["whole"][1])

    pytest.importorskip("dask.dataframe")
    monkeypatch.setattr(frames, "PARTITION_ROWS", 3)
    lazy = campaign.results(lazy=True)
    assert lazy.npartitions == 3
    computed = lazy.compute(scheduler="sync")
    assert computed["n"].tolist() == list(range(8))
    assert computed["state"].tolist() == frame["state"].tolist()
    assert computed["whole"].tolist()[:3] == [2**60, 2**60 + 1, 2**60 + 2]
    assert pandas.isna(computed["whole"].iloc[3])
    assert lazy["real"].count().compute(scheduler="sync") == 6
    assert computed["sometimes"].dropna().tolist() == [1, 5]


def test_results_come_in_while_another_process_runs(profile: Profile, project: Path) -> None:
    (project / "slow.py").write_text(
        textwrap.dedent("""
        import sys, time
        import grange as gr

        def slow(n: int) -> int:
            import time
            time.sleep(0.05)
            return n

        campaign = gr.Campaign("slow", gr.open(sys.argv[1]))
        campaign.map(slow, n=range(100))
        campaign.run(progress=False)
    """)
    )
    runner = threading.Thread(target=run, args=("slow.py", profile.home), kwargs={"cwd": project})
    runner.start()
    seen = set()
    with open_profile(profile.home) as watching:
        while runner.is_alive():
            frame = gr.Campaign("slow", watching).results()
            if len(frame) and "result" in frame:
                done = frame["state"] == "finished"
                assert frame[done]["result"].tolist() == frame[done]["n"].tolist()
                seen.add(int(done.sum()))
    runner.join()
    assert len([count for count in seen if 0 < count < 100]) > 2
    assert len(gr.Campaign("slow", profile).results()) == 100


def slow(n: int) -> int:
    time.sleep(0.02)
    return n


def test_a_run_that_was_interrupted_while_it_ended_is_gone_on_with_by_the_same_process(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = gr.Campaign("impatient", profile)
    campaign.map(slow, n=range(60))
    reap = LocalPool._reap

    def impatient(pool: LocalPool, ending: Any) -> None:
        monkeypatch.setattr(LocalPool, "_reap", reap)
        raise KeyboardInterrupt  # Ctrl-C again, while the runners end

    def stop(progress: gr.Progress) -> None:
        if progress.done > 10:
            monkeypatch.setattr(LocalPool, "_reap", impatient)
            raise ValueError("enough")

    with pytest.raises(KeyboardInterrupt):
        campaign.run(progress=stop)
    assert campaign.counts().get((State.WAITING, False), 0) > 0
    again = gr.Campaign("impatient", profile)
    again.map(slow, n=range(60))
    done = again.run(progress=False)
    assert done.done == done.total == 60
    assert again.counts() == {(State.FINISHED, False): 60}
    left = [path.name for path in (profile.spool / f"campaign-{campaign.id}").iterdir()]
    assert left == []
