"""What every executor must do, tried on the real ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import farm_functions as functions
import pytest

from grange.farm import (
    Batch,
    CommandTask,
    Executor,
    FunctionTask,
    LocalPool,
    Resources,
    ResultPack,
    ShippedFunction,
    SpoolUnwritable,
    TaskRefused,
    TaskResult,
    runner,
    ship,
)
from grange.farm.cluster_executor import ClusterExecutor
from grange.farm.computer import Computer
from grange.farm.hyperqueue_executor import HyperQueueExecutor
from grange.farm.local_transport import LocalTransport
from grange.repository.errors import BlobMissing
from grange.repository.key import Key, key_of

NO_LIMITS = Resources()
#: Fraction of the seconds that our sleeps take: it tells them from anybody else's.
TAG = str(os.getpid())
STORED = {key_of(b"stored content\n"): b"stored content\n"}
KINDS = ["local", "hyperqueue", "computer"]
#: Those whose tasks end with them; what is sent to a computer goes on there (test_cluster_executor.py).
ENDING = pytest.mark.parametrize("kind", ["local", "hyperqueue"], indirect=True)


def make(kind: str, spool: Path) -> Any:
    """A new executor of the kind; "computer" is this machine, used as another one."""
    if kind == "computer":
        there = (
            Path(tempfile.gettempdir())
            / f"grange-there-{os.getpid()}-{hashlib.sha256(bytes(spool)).hexdigest()[:12]}"
        )
        machine = Computer(
            label="here", transport="local", scheduler="direct", work_dir=str(there), python=sys.executable,
            slots=2, memory_mb_per_node=4000,
        )  # fmt: skip
        return ClusterExecutor(spool, machine, LocalTransport(), fetch=fetch, flush_s=0.5)
    if kind == "hyperqueue":
        return HyperQueueExecutor(spool, slots=2, fetch=fetch)
    return LocalPool(spool, slots=2, fetch=fetch)


def fetch(keys: Collection[Key]) -> dict[Key, bytes]:
    missing = [key for key in keys if key not in STORED]
    if missing:
        raise BlobMissing(missing)
    return {key: STORED[key] for key in keys}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lasting(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    """One executor for all tests that leave it as they found it."""
    spool = tmp_path_factory.mktemp(kind)
    made = make(kind, spool)
    yield made
    made.close()
    assert processes_of(spool) == []
    assert list(spool.iterdir()) == []


@pytest.fixture
def executor(lasting: Executor) -> Iterator[Executor]:
    yield lasting
    assert lasting.outstanding == 0


@pytest.fixture
def own(kind: str, spool: Path) -> Iterator[Executor]:
    """An executor of the test's own, in the folder spool."""
    made = make(kind, spool)
    yield made
    made.close()
    assert processes_of(spool) == []


def processes_of(spool: Path) -> list[str]:
    """Command lines of processes that work for this spool."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if folder.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                    continue
                links = [os.readlink(fd) for fd in folder.joinpath("fd").iterdir()]
                environ = folder.joinpath("environ").read_bytes()
            except OSError:
                continue
            if str(spool).encode() in environ or any(str(spool) in link for link in links):
                found.append(folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


class Delivered:
    """What came back: results by id, and the contents of files while their packs were there."""

    def __init__(self) -> None:
        self.results: dict[str, TaskResult] = {}
        self.blobs: dict[str, bytes] = {}
        self.packs: list[ResultPack] = []

    def take(self, packs: list[ResultPack]) -> None:
        for pack in packs:
            self.packs.append(pack)
            with zipfile.ZipFile(pack.path) as file:
                members = [name for name in file.namelist() if name != "manifest.json"]
                assert len(members) == pack.blobs
                for name in members:
                    self.blobs[name] = file.read(name)
                    assert key_of(self.blobs[name]) == name
            for result in pack.results:
                assert result.id not in self.results, "delivered twice"
                self.results[result.id] = result

    def text(self, task_id: str, path: str = "stdout.txt") -> str:
        return self.blobs[self.results[task_id].files[path]].decode()


def drain(executor: Executor, limit_s: float = 60.0) -> Delivered:
    """Poll and acknowledge until everything is delivered."""
    until = time.monotonic() + limit_s
    delivered = Delivered()
    while executor.outstanding:
        assert time.monotonic() < until, f"{executor.outstanding} tasks did not come back"
        packs = executor.poll(1.0)
        delivered.take(packs)
        executor.acknowledge(packs)
    return delivered


def run(executor: Executor, *tasks: Any, resources: Resources = NO_LIMITS) -> Delivered:
    executor.submit(Batch(tuple(tasks), resources))
    return drain(executor)


def calls(function: Callable[..., Any], *kwargs: dict[str, Any]) -> list[FunctionTask]:
    shipped = ship(function)
    return [FunctionTask(str(number), shipped, each) for number, each in enumerate(kwargs)]


def shell(task_id: str, script: str, **more: Any) -> CommandTask:
    return CommandTask(task_id, ("sh", "-c", script), **more)


# Commands


def test_thousands_of_commands(executor: Executor) -> None:
    count = 2000
    executor.submit(Batch(tuple(CommandTask(f"t{n}", ("/bin/true",)) for n in range(count))))
    delivered = drain(executor)
    assert len(delivered.results) == count
    assert {result.outcome for result in delivered.results.values()} == {"finished"}
    assert {result.return_code for result in delivered.results.values()} == {0}


def test_exit_codes_and_streams(executor: Executor) -> None:
    tasks = [shell(str(n), f"echo out {n}; echo err {n} >&2; exit {n}", attempt=n + 1) for n in range(5)]
    delivered = run(executor, *tasks)
    for n in range(5):
        result = delivered.results[str(n)]
        assert (result.outcome, result.return_code, result.signal, result.attempt) == (
            "finished",
            n,
            None,
            n + 1,
        )
        assert delivered.text(str(n)) == f"out {n}\n"
        assert delivered.text(str(n), "stderr.txt") == f"err {n}\n"
        assert result.wall_s > 0
        assert result.peak_memory_mb > 0
        assert abs(result.started_at - time.time()) < 60
        assert result.host == os.uname().nodename


def test_silent_programs_leave_empty_files(executor: Executor) -> None:
    delivered = run(executor, CommandTask("a", ("/bin/true",)))
    assert delivered.results["a"].files == {"stdout.txt": key_of(b""), "stderr.txt": key_of(b"")}
    assert delivered.blobs[key_of(b"")] == b""


def test_input_files_by_bytes_and_by_key(executor: Executor) -> None:
    task = CommandTask(
        "a",
        ("sh", "-c", "cat; cat deep/er/b; ls; pwd"),
        files={"in.txt": b"bytes\n", "deep/er/b": key_of(b"stored content\n")},
        stdin="in.txt",
        environment={"LC_ALL": "C"},
    )
    delivered = run(executor, task)
    lines = delivered.text("a").splitlines()
    assert lines[:-1] == ["bytes", "stored content", "deep", "in.txt", "stderr.txt", "stdout.txt"]
    assert not Path(lines[-1]).exists()


def test_directories_are_never_shared(executor: Executor) -> None:
    tasks = [shell(str(n), f"ls | wc -l; mkdir d{n}; echo {n} > d{n}/f; chmod 000 d{n}") for n in range(6)]
    delivered = run(executor, *tasks)
    assert {delivered.text(str(n)).strip() for n in range(6)} == {"2"}


def test_an_input_file_that_is_a_program(executor: Executor) -> None:
    task = CommandTask("a", ("./go",), files={"go": b"#!/bin/sh\necho went\n"})
    assert run(executor, task).text("a") == "went\n"


def test_environment(executor: Executor) -> None:
    task = shell("a", 'echo "$GREETING $OMP_NUM_THREADS"', environment={"GREETING": "hällo"})
    assert run(executor, task).text("a") == "hällo 1\n"


RETRIEVED: list[tuple[tuple[str, ...], set[str]]] = [
    (("*.out",), {"a.out", "b.out"}),
    (("sub/*.out",), {"sub/c.out"}),
    (("**/*.out",), {"a.out", "b.out", "sub/c.out", "sub/deep/d.out"}),
    (("sub/**",), {"sub/c.out", "sub/deep/d.out"}),
    (("sub",), {"sub/c.out", "sub/deep/d.out"}),
    (("a.out", "missing"), {"a.out"}),
    (("[bx].o?t",), {"b.out"}),
    (("away/*", "passwd", "fifo"), set()),
    (("inside",), {"inside"}),
]


def test_retrieve(executor: Executor) -> None:
    script = """
        mkdir -p sub/deep
        for f in a.out b.out sub/c.out sub/deep/d.out; do echo $f > $f; done
        ln -s /etc away; ln -s /etc/passwd passwd; ln -s a.out inside; mkfifo fifo
    """
    tasks = [shell(str(n), script, retrieve=patterns) for n, (patterns, _) in enumerate(RETRIEVED)]
    delivered = run(executor, *tasks)
    for n, (_, expected) in enumerate(RETRIEVED):
        result = delivered.results[str(n)]
        files = set(result.files) - {"stdout.txt", "stderr.txt"}
        assert result.outcome == "finished"
        assert files == expected
        assert all(
            delivered.text(str(n), path) == f"{'a.out' if path == 'inside' else path}\n" for path in files
        )


def test_streams_of_other_names(executor: Executor) -> None:
    script = "echo out; echo err >&2"
    delivered = run(
        executor,
        shell("apart", script, stdout="logs/a/out", stderr="err"),
        shell("together", script, stdout="both", stderr="both"),
        shell("plain", script),
    )
    assert delivered.text("apart", "logs/a/out") == "out\n"
    assert delivered.text("apart", "err") == "err\n"
    assert set(delivered.results["together"].files) == {"both"}
    assert delivered.text("together", "both") == "out\nerr\n"
    assert set(delivered.results["plain"].files) == {"stdout.txt", "stderr.txt"}


def test_tasks_that_ill_treat_their_directory(executor: Executor) -> None:
    """What one does to its directory and its streams' files, the next does not see."""
    scripts = [
        "echo kept; rm stdout.txt",
        "echo kept; mv stdout.txt stderr.txt",
        "echo kept; rm stdout.txt; ln -s /etc/passwd stdout.txt",
        "echo kept; rm stdout.txt; mkdir stdout.txt",
        "echo kept; ln stdout.txt other; chmod 000 stdout.txt",
        "echo kept; rm -rf $PWD",
        "echo kept; chmod 000 .",
    ]
    tasks = [shell(str(n), script) for n, script in enumerate(scripts) for _ in range(1)]
    probes = [shell(f"probe{n}", "ls -A; cat stdout.txt stderr.txt; pwd") for n in range(len(tasks))]
    mixed = [task for pair in zip(tasks, probes, strict=True) for task in pair]
    delivered = run(executor, *mixed)
    for n in range(len(tasks)):
        assert delivered.text(str(n)) == "kept\n"
        lines = delivered.text(f"probe{n}").splitlines()
        assert lines[:2] == ["stderr.txt", "stdout.txt"]
        assert delivered.results[f"probe{n}"].outcome == "finished"
    assert Path("/etc/passwd").read_text().count("root:")


def test_large_output_is_kept_once(executor: Executor) -> None:
    script = "head -c 20000000 /dev/zero | tr '\\0' 'x' > big; cp big again; cat big"
    delivered = run(executor, shell("a", script, retrieve=("big", "again")))
    files = delivered.results["a"].files
    assert files["big"] == files["again"] == files["stdout.txt"] == key_of(b"x" * 20000000)
    assert sum(pack.blobs for pack in delivered.packs) == 2


MISSING_PROGRAMS: list[tuple[tuple[str, ...], str]] = [
    (("no-such-program",), "no-such-program"),
    (("/no/such/program",), "no such program"),
    (("./data",), "no executable file"),
    (("./orphan",), "interpreter"),
    (("/etc/passwd",), "not executable"),
]


def test_program_missing(executor: Executor) -> None:
    files = {"data": b"just text", "orphan": b"#!/no/such/interpreter\n"}
    tasks = [CommandTask(str(n), argv, files=files) for n, (argv, _) in enumerate(MISSING_PROGRAMS)]
    delivered = run(executor, *tasks)
    for n, (_, words) in enumerate(MISSING_PROGRAMS):
        result = delivered.results[str(n)]
        assert result.outcome == "program_missing"
        assert words in result.message
        assert result.return_code is None


MISSING_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"files": {"../x": b""}}, "'..'"),
    ({"files": {"/tmp/x": b""}}, "relative"),
    ({"files": {"a/../../x": b""}}, "'..'"),
    ({"files": {"x": Key("0" * 64)}}, "0000"),
    ({"stdin": "nowhere"}, "nowhere"),
    ({"stdout": "../out"}, "'..'"),
    ({"environment": {"A=B": "c"}}, "environment"),
]


def test_input_missing(executor: Executor) -> None:
    tasks = [CommandTask(str(n), ("/bin/true",), **more) for n, (more, _) in enumerate(MISSING_INPUTS)]
    delivered = run(executor, *tasks, CommandTask("sound", ("/bin/true",)))
    for n, (_, words) in enumerate(MISSING_INPUTS):
        assert delivered.results[str(n)].outcome == "input_missing"
        assert words in delivered.results[str(n)].message
    assert delivered.results["sound"].outcome == "finished"


def test_walltime_ends_the_whole_tree_and_keeps_files(executor: Executor) -> None:
    script = f"echo begun; echo half > part; (setsid sleep 77.{TAG} &); sleep 77.{TAG} & wait"
    began = time.monotonic()
    delivered = run(executor, shell("a", script, retrieve=("part",)), resources=Resources(walltime_s=0.5))
    result = delivered.results["a"]
    assert result.outcome == "walltime_exceeded"
    assert "0.5 s" in result.message
    assert delivered.text("a") == "begun\n"
    assert delivered.text("a", "part") == "half\n"
    assert 0.4 < result.wall_s < 3
    assert time.monotonic() - began < 5
    assert not running(f"sleep 77.{TAG}")


def test_walltime_of_a_program_that_ignores_sigterm(executor: Executor) -> None:
    began = time.monotonic()
    script = f"trap '' TERM; while :; do sleep 78.{TAG}; done"
    delivered = run(executor, shell("a", script), resources=Resources(walltime_s=0.2))
    assert delivered.results["a"].outcome == "walltime_exceeded"
    assert time.monotonic() - began < 6
    assert not running(f"sleep 78.{TAG}")


ALLOCATE = (
    "import sys, time; x = bytearray(300 << 20); print(len(x), flush=True); time.sleep(float(sys.argv[1]))"
)


@pytest.mark.parametrize("pause", ["20", "0"])
def test_memory_limit(executor: Executor, pause: str) -> None:
    """With a pause it is ended; one that is quick about it is found out afterwards."""
    began = time.monotonic()
    task = CommandTask("a", (sys.executable, "-I", "-S", "-c", ALLOCATE, pause))
    result = run(executor, task, resources=Resources(memory_mb=150)).results["a"]
    assert result.outcome == "memory_exceeded"
    assert "150 MiB" in result.message
    assert result.peak_memory_mb > 150
    assert time.monotonic() - began < 10


def test_memory_limit_counts_the_whole_tree(executor: Executor) -> None:
    piece = f"{sys.executable} -I -S -c 'import time; x = bytearray(90 << 20); time.sleep(20)'"
    task = shell("a", f"{piece} & {piece} & {piece} & wait")
    result = run(executor, task, resources=Resources(memory_mb=200)).results["a"]
    assert result.outcome == "memory_exceeded"


def test_memory_below_the_limit(executor: Executor) -> None:
    task = CommandTask("a", (sys.executable, "-I", "-S", "-c", ALLOCATE, "0"))
    result = run(executor, task, resources=Resources(memory_mb=1000)).results["a"]
    assert (result.outcome, result.return_code) == ("finished", 0)
    assert 300 < result.peak_memory_mb < 500


def test_signals(executor: Executor) -> None:
    delivered = run(executor, shell("a", "kill -SEGV $$"), shell("b", "kill -KILL $$"), shell("c", "true"))
    assert (delivered.results["a"].outcome, delivered.results["a"].signal) == ("crashed", signal.SIGSEGV)
    assert "SIGSEGV" in delivered.results["a"].message
    assert delivered.results["b"].signal == signal.SIGKILL
    assert delivered.results["c"].outcome == "finished"


def test_sigpipe_is_as_in_a_shell(executor: Executor) -> None:
    delivered = run(executor, shell("a", "yes | head -n1"), shell("b", "kill -PIPE $$"))
    assert delivered.text("a") == "y\n"
    assert delivered.text("a", "stderr.txt") == ""
    assert delivered.results["b"].signal == signal.SIGPIPE


def test_what_a_command_leaves_running_is_ended(executor: Executor) -> None:
    run(executor, shell("a", f"(setsid sleep 79.{TAG} >/dev/null 2>&1 &) ; sleep 79.{TAG} & exit 0"))
    assert not running(f"sleep 79.{TAG}")


def running(command: str) -> bool:
    for folder in Path("/proc").iterdir():
        try:
            if folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode().strip() == command:
                return True
        except OSError:
            continue
    return False


# Functions


def test_function_by_reference(executor: Executor) -> None:
    delivered = run(executor, *calls(functions.add, *({"x": n, "y": 0.5} for n in range(300))))
    assert len(delivered.results) == 300
    assert delivered.results["7"].outputs == {"sum": ["float", 7.5]}
    assert delivered.results["7"].files == {}
    assert ship(functions.add).pickle is None


def test_function_by_value(executor: Executor) -> None:
    offset = 100

    def shifted(x: int) -> int:
        return x + offset

    shipped = ship(shifted)
    assert shipped.pickle is not None
    assert "x + offset" in shipped.source
    delivered = run(executor, *(FunctionTask(str(n), shipped, {"x": n}) for n in range(3)))
    assert [delivered.results[str(n)].outputs["result"] for n in range(3)] == [
        ["int", 100 + n] for n in range(3)
    ]


def test_function_raises(executor: Executor) -> None:
    delivered = run(executor, *calls(functions.raise_value_error, {"x": "luck"}))
    result = delivered.results["0"]
    assert (result.outcome, result.message) == ("raised", "ValueError: no such luck")
    trace = delivered.text("0", "traceback.txt")
    assert "raise_value_error" in trace
    assert "runner.py" not in trace


def test_function_that_cannot_be_loaded(executor: Executor) -> None:
    shipped = ship(functions.add)
    absent = type(shipped)("gone", "no_such_module", "gone", "", None, "")
    result = run(executor, FunctionTask("a", absent, {})).results["a"]
    assert result.outcome == "program_missing"
    assert "no_such_module" in result.message


def test_commands_and_functions_in_one_batch(executor: Executor) -> None:
    """Two programs and two functions; one of them needs what is installed."""
    tasks = [
        shell("a", "echo a"),
        *calls(functions.arrays, {}),
        CommandTask("b", ("echo", "b")),
        FunctionTask("c", ship(functions.identity), {"x": 1}),
    ]
    delivered = run(executor, *tasks)
    assert delivered.text("a") + delivered.text("b") == "a\nb\n"
    assert set(delivered.results["0"].outputs) == {"energies", "scalar", "flags"}
    assert delivered.results["c"].outputs == {"result": ["int", 1]}


def test_a_users_module_named_runner(executor: Executor, tmp_path: Path) -> None:
    """Nothing of ours stands in the way of what a user calls their own modules."""
    (tmp_path / "runner.py").write_text("def go(): return 'mine'\n")
    mine = ShippedFunction("go", "runner", "go", str(tmp_path), None, "")
    result = run(executor, FunctionTask("a", mine, {})).results["a"]
    assert result.outputs == {"result": ["str", "mine"]}, result.message


def test_wrong_arguments(executor: Executor) -> None:
    delivered = run(executor, *calls(functions.add, {"x": 1}, {"x": 1, "y": 2}))
    assert delivered.results["0"].outcome == "raised"
    assert "'y'" in delivered.results["0"].message
    assert delivered.results["1"].outcome == "finished"


def test_arguments_that_cannot_be_pickled(executor: Executor) -> None:
    import threading

    delivered = run(executor, *calls(functions.identity, {"x": threading.Lock()}, {"x": 2}))
    assert delivered.results["0"].outcome == "input_missing"
    assert "'x'" in delivered.results["0"].message
    assert delivered.results["1"].outputs == {"result": ["int", 2]}


NO_DATA: list[tuple[object, str]] = [
    (1j, "complex"),
    ({"a": {"b": [1, float("nan")]}}, "a['b'][1]: NaN"),
    ([float("inf")], "result[0]: Infinity"),
    ({"a": object()}, "a: object"),
    ({"not a name": 1}, "'not a name'"),
    ({1: 2}, "result[1]"),
    ("a\0b", "NUL"),
    (b"bytes", "bytes"),
    ({"a": None}, "a: NoneType"),
]


def test_not_recordable(executor: Executor) -> None:
    delivered = run(executor, *calls(functions.identity, *({"x": value} for value, _ in NO_DATA)))
    for n, (_, words) in enumerate(NO_DATA):
        result = delivered.results[str(n)]
        assert result.outcome == "not_recordable"
        assert words in result.message
        assert result.outputs == {}


def test_what_is_printed_is_kept(executor: Executor) -> None:
    delivered = run(executor, *calls(functions.say, {"x": 1}, {"x": 2}))
    for n in (0, 1):
        assert sorted(delivered.text(str(n)).splitlines()) == ["low level", f"said {n + 1}"]
        assert delivered.text(str(n), "stderr.txt") == "warned\n"


def test_plain_values(executor: Executor) -> None:
    values = [3, 1.5, True, "ä", [1, [2.0, None]], {"a": [1]}, float("nan"), float("-inf"), (1, 2), None]
    delivered = run(executor, *calls(functions.identity, *({"x": [value]} for value in values[:3])))
    assert delivered.results["0"].outputs == {"result": ["list", [3]]}
    delivered = run(executor, *calls(functions.identity, *({"x": value} for value in values)))
    assert [delivered.results[str(n)].outputs for n in range(len(values))] == [
        {"result": ["int", 3]},
        {"result": ["float", 1.5]},
        {"result": ["bool", True]},
        {"result": ["str", "ä"]},
        {"result": ["list", [1, [2.0, None]]]},
        {"a": ["list", [1]]},
        {"result": ["float", "NaN"]},
        {"result": ["float", "-Infinity"]},
        {"result": ["list", [1, 2]]},
        {},
    ]


def test_arrays(executor: Executor) -> None:
    import io

    import numpy as np

    delivered = run(executor, *calls(functions.arrays, {}))
    outputs = delivered.results["0"].outputs
    tag, array = outputs["energies"]
    assert (tag, array["dtype"], array["shape"]) == ("array", "<f8", [2, 3])
    content = np.load(io.BytesIO(delivered.blobs[array["key"]]), allow_pickle=False)
    assert (content == np.arange(6.0).reshape(2, 3)).all()
    assert outputs["scalar"] == ["float", 2.5]
    assert outputs["flags"][1]["dtype"] == "|b1"


def test_structures_enums_files_and_exit_codes(executor: Executor) -> None:
    (structure,) = run(executor, *calls(functions.bulk, {"symbol": "Cu"})).results.values()
    tag, attributes = structure.outputs["structure"]
    assert tag == "structure"
    assert attributes["pbc1"] is True
    assert attributes["kinds"] == [{"name": "Cu", "symbols": ["Cu"], "weights": [1.0], "mass": 63.546}]
    assert [site["kind_name"] for site in attributes["sites"]] == ["Cu"] * 4
    assert attributes["cell"][0][0] == pytest.approx(3.61)

    (colour,) = run(executor, *calls(functions.colour, {})).results.values()
    assert colour.outputs == {"result": ["str", "red"]}

    delivered = run(executor, *calls(functions.write_file, {"text": "one"}, {"text": "two"}))
    tag, file = delivered.results["1"].outputs["file"]
    assert (tag, file["name"], delivered.blobs[file["key"]]) == ("file", "out.dat", b"two")
    assert delivered.results["1"].outputs["left"] == ["list", ["out.dat"]]

    (code,) = run(executor, *calls(functions.exit_code, {"x": 3})).results.values()
    assert (code.outcome, code.return_code, code.message) == ("finished", 410, "did not converge: 3")


def test_calls_cannot_change_each_others_arguments(executor: Executor) -> None:
    from ase.build import bulk

    shared = bulk("Cu")
    delivered = run(executor, *calls(functions.change, *({"atoms": shared} for _ in range(6))))
    assert {result.outputs["result"][1] for result in delivered.results.values()} == {1}


@pytest.mark.parametrize("limits", [Resources(), Resources(walltime_s=30)])
@pytest.mark.parametrize(
    ("function", "number", "code"),
    [(functions.end_by_exit, None, 17), (functions.end_by_signal, signal.SIGSEGV, None)],
)
def test_a_call_that_ends_the_interpreter(
    executor: Executor, function: Callable[..., Any], number: int | None, code: int | None, limits: Resources
) -> None:
    delivered = run(executor, *calls(function, *({"x": n} for n in range(8))), resources=limits)
    crashed = delivered.results["3"]
    assert (crashed.outcome, crashed.signal, crashed.return_code) == ("crashed", number, code)
    assert "17" in crashed.message if code else "SIGSEGV" in crashed.message
    if code:
        assert "last words" in delivered.text("3")
    others = {n: delivered.results[str(n)].outputs["result"] for n in range(8) if n != 3}
    assert others == {n: ["int", n] for n in range(8) if n != 3}


@pytest.mark.parametrize("function", [functions.nap, functions.busy])
def test_walltime_of_a_call(executor: Executor, function: Callable[..., Any]) -> None:
    began = time.monotonic()
    tasks = calls(function, {"seconds": 0.0}, {"seconds": 30.0}, {"seconds": 0.01})
    delivered = run(executor, *tasks, resources=Resources(walltime_s=0.5))
    outcomes = [delivered.results[str(n)].outcome for n in range(3)]
    assert outcomes == ["finished", "walltime_exceeded", "finished"]
    assert time.monotonic() - began < 10


def test_memory_limit_of_a_call(executor: Executor) -> None:
    tasks = calls(functions.allocate, {"mib": 400}, {"mib": 1})
    delivered = run(executor, *tasks, resources=Resources(memory_mb=200))
    assert delivered.results["0"].outcome == "memory_exceeded"
    assert delivered.results["1"].outcome == "finished"


def test_limited_calls_deliver_like_others(executor: Executor) -> None:
    tasks = calls(functions.say, {"x": 1}, {"x": float("nan")})
    delivered = run(executor, *tasks, resources=Resources(walltime_s=30, memory_mb=2000))
    assert delivered.results["0"].outputs == {"result": ["int", 1]}
    assert "said 1" in delivered.text("0")
    delivered = run(executor, *calls(functions.arrays, {}), resources=Resources(walltime_s=30))
    assert delivered.results["0"].outputs["energies"][1]["key"] in delivered.blobs
    delivered = run(
        executor, *calls(functions.raise_value_error, {"x": 1}), resources=Resources(walltime_s=30)
    )
    assert delivered.results["0"].outcome == "raised"
    assert "raise_value_error" in delivered.text("0", "traceback.txt")


# Life and death


def test_results_come_while_others_run(executor: Executor) -> None:
    executor.submit(Batch((shell("quick", "true"), shell("slow", "sleep 2"))))
    began = time.monotonic()
    first = Delivered()
    while "quick" not in first.results:
        first.take(executor.poll(1.0))
    assert time.monotonic() - began < 1.5
    executor.acknowledge(first.packs)
    assert set(drain(executor).results) == {"slow"}


def test_a_call_that_takes_long_holds_back_no_result(executor: Executor) -> None:
    executor.submit(Batch(tuple(calls(functions.nap, {"seconds": 0.0}, {"seconds": 2.0}))))
    began = time.monotonic()
    first = Delivered()
    while not first.results:
        first.take(executor.poll(1.0))
    assert set(first.results) == {"0"}
    assert time.monotonic() - began < 1.5
    executor.acknowledge(first.packs)
    drain(executor)


def test_cancel_some(executor: Executor) -> None:
    executor.submit(Batch(tuple(shell(str(n), f"sleep {n}.{TAG if n else 0}") for n in (0, 60, 61, 62))))
    wait_until(lambda: running(f"sleep 60.{TAG}"))
    executor.cancel(["60", "61", "62", "unknown"])
    began = time.monotonic()
    delivered = drain(executor)
    assert {task_id: result.outcome for task_id, result in delivered.results.items()} == {
        "0": "finished",
        "60": "cancelled",
        "61": "cancelled",
        "62": "cancelled",
    }
    assert time.monotonic() - began < 8
    assert not running(f"sleep 60.{TAG}")


@pytest.mark.parametrize("function", [functions.nap, functions.busy, functions.start_and_wait])
def test_cancel_all_calls(executor: Executor, function: Callable[..., Any]) -> None:
    executor.submit(
        Batch(tuple(calls(function, *({"seconds": float(f"{30 + n}.{TAG}1")} for n in range(40)))))
    )
    for _ in range(3):
        executor.poll(0.2)
    executor.cancel()
    began = time.monotonic()
    delivered = drain(executor)
    assert {result.outcome for result in delivered.results.values()} == {"cancelled"}
    assert len(delivered.results) == 40
    assert time.monotonic() - began < 8
    assert not running(f"sleep 30.{TAG}1")


def wait_until(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_acknowledge_frees_the_spool(own: Executor, spool: Path) -> None:
    own.submit(Batch(tuple(CommandTask(f"t{n}", ("/bin/true",)) for n in range(50))))
    packs: list[ResultPack] = []
    while own.outstanding:
        packs += own.poll(1.0)
    assert all(pack.path.exists() for pack in packs)
    packs[0].path.rename(spool / "adopted.zip")
    own.acknowledge(packs)
    wait_until(lambda: own.poll(0.05) == [] and list(spool.glob("run-*/chunk-*")) == [])


@ENDING
def test_close_in_the_middle_leaves_no_process(kind: str, spool: Path) -> None:
    executor = make(kind, spool)
    executor.submit(Batch(tuple(shell(str(n), f"trap '' TERM; sleep 81.{TAG}") for n in range(4))))
    wait_until(lambda: running(f"sleep 81.{TAG}"))
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 4
    assert not running(f"sleep 81.{TAG}")
    assert processes_of(spool) == []


def test_close_after_everything_leaves_an_empty_spool(kind: str, spool: Path) -> None:
    executor = make(kind, spool)
    run(executor, CommandTask("a", ("/bin/true",)), *calls(functions.identity, {"x": 1}))
    executor.close()
    assert list(spool.iterdir()) == []


def test_undelivered_results_are_recovered(kind: str, spool: Path) -> None:
    executor = make(kind, spool)
    executor.submit(Batch(tuple(CommandTask(f"t{n}", ("/bin/true",)) for n in range(20))))
    packs: list[ResultPack] = []
    while executor.outstanding:
        packs += executor.poll(1.0)
    executor.close()
    heir = make(kind, spool)
    recovered = Delivered()
    recovered.take(heir.recover())
    assert set(recovered.results) == {f"t{n}" for n in range(20)}
    heir.acknowledge(recovered.packs)
    assert heir.recover() == []
    heir.close()
    assert list(spool.iterdir()) == []


def test_a_living_executor_is_not_recovered(own: Executor, kind: str, spool: Path) -> None:
    own.submit(Batch((shell("a", "sleep 0.5"),)))
    other = make(kind, spool)
    began = time.monotonic()
    assert other.recover() == []
    assert time.monotonic() - began < 1
    other.close()
    assert drain(own).results["a"].outcome == "finished"


def test_kill_of_the_runners_loses_nothing(own: Executor, spool: Path, tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    tasks = [shell(str(n), f"sleep 0.02; echo {n} >> {tally}") for n in range(100)]
    own.submit(Batch(tuple(tasks)))
    delivered = Delivered()
    for _ in range(3):
        packs = own.poll(0.3)
        delivered.take(packs)
        own.acknowledge(packs)
        runner.send(runners(), signal.SIGKILL)
    while own.outstanding:
        packs = own.poll(1.0)
        delivered.take(packs)
        own.acknowledge(packs)
    assert len(delivered.results) == 100
    assert {result.outcome for result in delivered.results.values()} == {"finished"}
    # Those that ran, or whose result had not been handed over, when their runner was killed, ran again.
    lines = tally.read_text().split()
    assert set(lines) == {str(n) for n in range(100)}


def runners() -> list[int]:
    """The runners below this process."""
    found = []
    for pid in runner.descendants():
        with contextlib.suppress(OSError):
            if b"import runner" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


SUBMIT = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_executor import *
executor = make({kind!r}, Path({spool!r}))
tasks = [shell(f"c{{n}}", "sleep 0.01; echo x >> {tally}/c%d" % n) for n in range(300)]
executor.submit(Batch(tuple(tasks)))
shipped = ship(functions.nap)
executor.submit(Batch(tuple(FunctionTask(f"f{{n}}", shipped, {{"seconds": 0.01}}) for n in range(100))))
while True:
    packs = executor.poll(1.0)
    for pack in packs:
        for result in pack.results:
            print(result.id, flush=True)
    executor.acknowledge(packs)
"""


@ENDING
def test_kill_of_the_submitter_loses_nothing_and_does_nothing_twice(
    kind: str, spool: Path, tmp_path: Path
) -> None:
    tally = tmp_path / "tally"
    tally.mkdir()
    script = SUBMIT.format(here=str(Path(__file__).parent), kind=kind, spool=str(spool), tally=str(tally))
    submitter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert submitter.stdout is not None
    lines = [submitter.stdout.readline().strip() for _ in range(30)]
    time.sleep(0.3)
    submitter.kill()
    lines += submitter.stdout.read().split()
    submitter.wait()
    submitter.stdout.close()
    assert len(lines) < 400, "killed too late to prove anything"

    (dead,) = spool.glob("run-*")
    executor = make(kind, spool)
    recovered: set[str] = set()
    packs = executor.recover()
    for pack in packs:
        recovered |= {result.id for result in pack.results}
    assert processes_of(dead) == []
    # What was delivered but not acknowledged comes again; what was acknowledged does not.
    known = set(lines) | recovered
    done = {path.name for path in tally.iterdir() if path.read_text().count("x") == 1}
    assert len(done) == len(list(tally.iterdir())), "a task ran twice"
    executor.acknowledge(packs)
    left = [f"c{n}" for n in range(300) if f"c{n}" not in known]
    # The killed runners' two running commands may have left their mark without a result.
    assert len({name for name in done if name not in known}) <= 2
    delivered = run(executor, *(CommandTask(task_id, ("/bin/true",)) for task_id in left))
    assert set(delivered.results) | known >= {f"c{n}" for n in range(300)}
    executor.close()
    assert list(spool.iterdir()) == []


@ENDING
def test_recover_waits_for_the_runners_and_kills_them_at_last(kind: str, spool: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_executor import *
executor = make({kind!r}, Path({str(spool)!r}))
executor.submit(Batch(tuple([shell(str(n), "sleep 0.2; echo done") for n in range(3)])))
executor.submit(Batch(tuple([shell("x", "trap '' TERM; sleep 82.{TAG}")])))
wait_until(lambda: executor.poll(0.05) is None or running("sleep 82.{TAG}"))
print("ready", flush=True)
time.sleep(60)
"""
    submitter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert submitter.stdout is not None
    assert submitter.stdout.readline() == "ready\n"
    submitter.kill()
    submitter.wait()
    submitter.stdout.close()
    executor = make(kind, spool)
    packs = executor.recover()
    assert not running(f"sleep 82.{TAG}")
    assert {result.outcome for pack in packs for result in pack.results} <= {"finished"}
    executor.acknowledge(packs)
    executor.close()


# Refusals


def test_refusals(executor: Executor) -> None:
    with pytest.raises(TaskRefused, match=r"asks for 5000 cpus.* 2"):
        executor.submit(Batch((CommandTask("a", ("/bin/true",)),), Resources(cpus=5000)))
    with pytest.raises(TaskRefused, match="MiB"):
        executor.submit(Batch((CommandTask("a", ("/bin/true",)),), Resources(memory_mb=1 << 40)))
    assert executor.outstanding == 0


def test_a_spool_that_cannot_be_made(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnwritable, match=str(tmp_path / "file")):
        make(kind, tmp_path / "file" / "spool")


FULL = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from test_executor import *
executor = None
try:
    executor = make({kind!r}, Path({spool!r}))
    executor.submit(Batch(tuple(shell(str(n), "head -c 3000000 /dev/urandom") for n in range(20))))
    for _ in range(40):
        executor.poll(0.5)
except SpoolUnwritable as problem:
    print("refused:", problem)
if executor is not None:
    executor.close()
assert processes_of(Path({spool!r})) == []
print("closed")
"""


@pytest.mark.parametrize(("options", "words"), [("size=8m", "No space left"), ("ro", "Read-only")])
def test_a_spool_that_is_full_or_read_only(kind: str, tmp_path: Path, options: str, words: str) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare and mounts in a user namespace")
    spool = tmp_path / "spool"
    spool.mkdir()
    script = FULL.format(here=str(Path(__file__).parent), kind=kind, spool=str(spool))
    mount = f'mount -t tmpfs -o {options} none {spool} && exec {sys.executable} -c "$1"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "refused:" in done.stdout, done.stderr
    assert words in done.stdout
    assert str(spool) in done.stdout
    assert done.stdout.endswith("closed\n"), done.stderr
