"""Bad input: refused before anything is stored, with the port, the value and what was expected."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest

import grange as gr
from grange.core.errors import GrangeError, InputInvalid, InputMissing, NameExists, NotFound
from grange.core.group import create
from grange.core.profile import Profile
from grange.farm.errors import FunctionNotShippable, TaskRefused


def contents(profile: Profile) -> tuple[object, ...]:
    """What there is: rows by table, and the files of the store."""
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM node), (SELECT count(*) FROM link), (SELECT count(*) FROM process),"
            ' (SELECT count(*) FROM pack), (SELECT count(*) FROM blob), (SELECT count(*) FROM "group")'
        )
        counts = cursor.fetchone()
    files = sorted(str(path) for path in (profile.home / "store").rglob("*") if path.is_file())
    return counts, files


@contextmanager
def nothing_stored(profile: Profile) -> Iterator[None]:
    before = contents(profile)
    yield
    assert contents(profile) == before


def relax(structure: gr.Structure, steps: int, method: Literal["emt", "lj"] = "emt", **more: float) -> float:
    return 0.0


def read(path: gr.SingleFile, options: dict | None = None) -> int:  # type: ignore[type-arg]
    return 1


def many(numbers: list[float], weights: numpy.ndarray | None = None) -> float:
    return 1.0


class Job(gr.CalcJob):
    class Inputs:
        kpoints: int
        pseudo: gr.SingleFile | None = None

    class Outputs:
        energy: float

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command(["true"])


def test_values_that_no_port_takes(profile: Profile, tmp_path: Path) -> None:
    ase = pytest.importorskip("ase")
    crystal = ase.Atoms("Al", cell=[4, 4, 4], pbc=True)
    flat = ase.Atoms("Al", pbc=True)
    kept_from_us = tmp_path / "kept"
    kept_from_us.mkdir()
    good = tmp_path / "good"
    good.write_text("x")
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (
            relax,
            {"structure": [crystal, "Al"], "steps": 1},
            InputInvalid,
            "relax: structure[1]: expected ase.Atoms, got 'Al' (str)",
        ),
        (
            relax,
            {"structure": [crystal, flat], "steps": 1},
            InputInvalid,
            "relax: structure[1]: expected a cell for a periodic structure",
        ),
        (
            relax,
            {"structure": crystal, "steps": [1, 2.5]},
            InputInvalid,
            "relax: steps[1]: expected int, got 2.5 (float)",
        ),
        (
            relax,
            {"structure": crystal, "steps": numpy.array([1.5])},
            InputInvalid,
            "relax: steps[0]: expected int",
        ),
        (
            relax,
            {"structure": crystal, "steps": 1, "method": "dft"},
            InputInvalid,
            "relax: method: expected one of 'emt', 'lj', got 'dft'",
        ),
        (
            relax,
            {"structure": crystal},
            InputMissing,
            "relax: steps: expected int, got nothing: it is required",
        ),
        (relax, {}, InputMissing, "missing too: steps"),
        (
            relax,
            {"structure": crystal, "steps": 1, "tol": "x"},
            InputInvalid,
            "relax: tol: expected float, got 'x' (str)",
        ),
        (
            relax,
            {"structure": crystal, "steps": [1, 2], "tol": [0.1, 0.2, 0.3]},
            InputInvalid,
            "'steps': 2, 'tol': 3",
        ),
        (relax, {"structure": crystal, "steps": None}, InputInvalid, "relax: steps: expected int, got None"),
        (read, {"path": tmp_path / "none"}, InputInvalid, "a file that exists"),
        (read, {"path": [good, tmp_path / "none"]}, InputInvalid, "read: path[1]"),
        (read, {"path": kept_from_us}, InputInvalid, "read: path: expected the pathlib.Path of a file"),
        (
            read,
            {"path": "good"},
            InputInvalid,
            "expected the pathlib.Path of a file, or SingleFile, got 'good' (str)",
        ),
        (
            read,
            {"path": good, "options": {"a": float("nan")}},
            InputInvalid,
            "read: options['a']: expected a finite number",
        ),
        (read, {"path": good, "options": {"a": "x\0"}}, InputInvalid, "without NUL"),
        (read, {"path": good, "options": {"a": object()}}, InputInvalid, "read: options['a']"),
        (read, {"path": good, "options": {1: 2}}, InputInvalid, "a string as key"),
        (read, {"path": good, "optoins": {}}, InputInvalid, "did you mean 'options'?"),
        (many, {"numbers": gr.fixed([1.0, "a"])}, InputInvalid, "many: numbers[1]: expected float, got 'a'"),
        (many, {"numbers": gr.fixed([1.0]), "weights": gr.fixed("no")}, InputInvalid, "many: weights"),
        (
            many,
            {"numbers": gr.fixed([1.0]), "weights": gr.fixed(numpy.array([object()]))},
            InputInvalid,
            "many: weights",
        ),
        (Job, {"kpoints": "4"}, InputInvalid, "Job: kpoints: expected int, got '4' (str)"),
        (Job, {"kpoint": 4}, InputInvalid, "did you mean 'kpoints'?"),
        (Job, {"pseudo": good}, InputMissing, "Job: kpoints"),
        (Job, {"kpoints": [1, 2], "pseudo": [good]}, InputInvalid, "lengths"),
        (
            gr.ShellJob("echo {text}"),
            {"text": ["a", "b\0"]},
            InputInvalid,
            "echo: text[1]: expected text without NUL",
        ),
        (gr.ShellJob("echo {text}"), {}, InputMissing, "echo: text"),
        (
            gr.ShellJob("echo {text}"),
            {"text": "a", "code": 3, "test": 1},
            InputInvalid,
            "did you mean 'text'?",
        ),
        (Job(), {"kpoints": 1}, InputInvalid, "a function or workflow, a CalcJob or WorkChain class"),
        (gr.CalcJob, {}, InputInvalid, "CalcJob: expected a class with a method prepare"),
        (int, {"x": 1}, InputInvalid, "a function or workflow, a CalcJob or WorkChain class"),
        ("relax", {}, InputInvalid, "a function or workflow, a CalcJob or WorkChain class"),
    ]
    campaign = gr.Campaign("bad", profile)
    with nothing_stored(profile):
        for runnable, inputs, error, said in cases:
            with pytest.raises(error) as refused:
                campaign.map(runnable, inputs)
            assert said in str(refused.value), inputs
        assert campaign.run(progress=False).total == 0
    assert len(campaign.results()) == 0


def test_files_that_may_not_be_read(profile: Profile, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.write_text("x")
    hidden.chmod(0)
    if os.access(hidden, os.R_OK):  # root reads everything but what cannot be opened at all
        hidden.unlink()
        hidden.symlink_to(hidden)
    campaign = gr.Campaign("files", profile)
    with nothing_stored(profile):
        for runnable, port in ((read, "path"), (gr.ShellJob("cat {path}"), "path"), (Job, "pseudo")):
            with pytest.raises(InputInvalid, match=rf": {port}: expected a file that"):
                campaign.map(runnable, {port: hidden, **({"kpoints": 1} if runnable is Job else {})})


def generator(n: int) -> Iterator[int]:
    yield n


async def later(n: int) -> int:
    return n


def starred(*numbers: int) -> int:
    return 0


def private(_n: int) -> int:
    return 0


def test_functions_that_cannot_be_run(profile: Profile) -> None:
    lock, stream = threading.Lock(), open(os.devnull)  # noqa: SIM115

    def locked(n: int) -> int:
        with lock:
            return n

    def streaming(n: int) -> str:
        return stream.read(n)

    def by_default(n: int, guard: Any = lock) -> int:
        return n

    cases: list[tuple[Callable[..., Any], str]] = [
        (generator, "the function generator cannot be sent to a runner: it is a generator"),
        (later, "a coroutine"),
        (locked, "its variable 'lock' is a _thread.lock"),
        (streaming, "its variable 'stream'"),
        (by_default, "lock"),
        (starred, "*numbers"),
        (private, "_n"),
        (print, "print"),
    ]
    campaign = gr.Campaign("functions", profile)
    with nothing_stored(profile), stream:
        for function, said in cases:
            with pytest.raises((FunctionNotShippable, InputInvalid)) as refused:
                campaign.map(function, {"n": 1})
            assert said in str(refused.value)
    assert campaign.map(lambda n: n + 1, n=[1, 2]) == 2
    assert campaign.run(progress=False).failed == 0
    assert campaign.results()["result"].tolist() == [2, 3]


def test_shell_templates_that_cannot_be_filled() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ("echo {", {}, "doubled literal braces"),
        ("echo }", {}, "doubled literal braces"),
        ("echo {}", {}, "names in braces"),
        ("echo {0}", {}, "names in braces"),
        ("echo {a-b}", {}, "names in braces"),
        ("echo {code}", {}, "'code' is the program itself"),
        ("echo {_a}", {}, "a letter first"),
        ("echo 'a", {}, "quotes closed"),
        ("", {}, "a program and its arguments"),
        ([], {}, "a program and its arguments"),
        (["echo", 1], {}, "a program and its arguments"),
        (None, {}, "a program and its arguments"),
        (["echo", "a\0"], {}, "without NUL"),
        ("cat", {"stdin": "in"}, "one of the files"),
        ("cat", {"files": {"/etc/in": ""}}, "a path inside"),
        ("cat", {"files": {"in": 3}}, "text or bytes"),
        ("cat", {"files": {"in": "{"}}, "doubled literal braces"),
        ("cat", {"retrieve": "*.dat"}, "a list of glob patterns"),
        ("cat", {"retrieve": ["../*"]}, "a path inside"),
        ("cat", {"outputs": {"a b": "x"}}, "a name of ASCII letters"),
        ("cat", {"outputs": {"retrieved": "x"}}, "another name"),
        ("cat", {"outputs": {"log": "../x"}}, "a path inside"),
        ("cat", {"environment": {"A": 1}}, "environment['A']: expected text, got 1 (int)"),
    ]
    for command, options, said in cases:
        with pytest.raises(InputInvalid) as refused:
            gr.ShellJob(command, **options)
        assert said in str(refused.value), (command, options)
    assert gr.ShellJob("echo {n:{width}}").fields == ["n", "width"]


def test_campaigns_and_groups_with_bad_names(profile: Profile) -> None:
    with profile.transaction() as cursor:
        create(cursor, "taken", user_id=profile.user_id)
    with nothing_stored(profile):
        for name in ("", "  ", None, 3, "a\0b", "a\udcffb"):
            with pytest.raises(InputInvalid, match="Campaign: name: expected"):
                gr.Campaign(name, profile)  # type: ignore[arg-type]
        with pytest.raises(InputInvalid, match=r"a profile, as gr\.open"):
            gr.Campaign("good", None)  # type: ignore[arg-type]
        with pytest.raises(NameExists, match="'taken'"), profile.transaction() as cursor:
            create(cursor, "taken", user_id=profile.user_id)
    # a campaign may have the name of a group
    gr.Campaign("taken", profile)


def test_resources_and_executors_that_there_are_not(profile: Profile) -> None:
    campaign = gr.Campaign("resources", profile)
    with nothing_stored(profile):
        for resources, said in [
            (gr.Resources(cpus=100_000), "100000 cpus"),
            (gr.Resources(cpus=0), "relaxed: cpus: expected an int from 1 on, got 0"),
            (gr.Resources(memory_mb=10**9), "1000000000 MiB"),
            (gr.Resources(memory_mb=0), "memory_mb"),
            (gr.Resources(walltime_s=0), "walltime_s"),
            (gr.Resources(walltime_s=-1.0), "walltime_s"),
            (gr.Resources(walltime_s="1h"), "walltime_s"),  # type: ignore[arg-type]
            ("2 cpus", "gr.Resources"),
        ]:
            with pytest.raises((TaskRefused, GrangeError), match=said):
                gr_run(campaign, resources)
        for executor in ("slurm", ""):
            with pytest.raises(NotFound, match="there are local, hyperqueue"):
                campaign.run(progress=False, executor=executor)
        with pytest.raises(InputInvalid, match="executor: expected one of local, hyperqueue"):
            campaign.run(progress=False, executor=3)  # type: ignore[arg-type]


def gr_run(campaign: gr.Campaign, resources: Any) -> None:
    fresh = gr.Campaign(campaign.name, campaign.profile)
    fresh.map(relaxed, n=[1], resources=resources)
    fresh.run(progress=False)


def relaxed(n: int) -> int:
    return n


def test_nothing_to_do_is_no_error(profile: Profile) -> None:
    campaign = gr.Campaign("empty", profile)
    assert len(campaign.results()) == 0
    assert len(campaign.failures()) == 0
    assert campaign.run(progress=False).total == 0
    assert campaign.map(relaxed, n=[]) == 0
    assert campaign.map(relaxed, n=(n for n in ())) == 0
    assert campaign.run(progress=False).total == 0
    assert campaign.submit() == 0
    assert campaign.retry() == 0
    assert len(campaign.results()) == 0
    pytest.importorskip("dask.dataframe")
    assert len(campaign.results(lazy=True).compute()) == 0
    assert len(gr.Campaign("empty", profile).results(lazy=True).compute()) == 0


def test_classes_that_are_no_jobs() -> None:
    with pytest.raises(InputInvalid, match="from 200 on"):

        class Low(gr.CalcJob):
            BAD = gr.ExitCode(42, "too low")

    with pytest.raises(ValueError, match="above 0"):
        gr.ExitCode(0, "success")
