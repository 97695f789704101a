"""The runner by itself: packs, marks, globs, typed values, and that old interpreters take it."""

from __future__ import annotations

import ast
import enum
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.farm import lookout, read_result_pack, runner, stower
from grange.farm.chunk_folder import write_chunk
from grange.farm.errors import ResultMalformed
from grange.farm.monitor import Monitor
from grange.farm.stash import Stash
from grange.farm.task import CommandTask, Resources
from grange.repository.key import key_of


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks work in a scratch of the test's own."""
    path = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(path))
    return path


# Old interpreters


@pytest.mark.parametrize("module", [runner, lookout, stower])
def test_it_is_python_3_9_and_standard_library_only(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text(), feature_version=(3, 9))
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)


def interpreters() -> Iterator[str]:
    """Pythons of other versions that run here."""
    for minor in (9, 10, 12, 13, 14):
        name = f"python3.{minor}"
        # A version manager's shim runs when the version is named.
        environment = {**os.environ, "PYENV_VERSION": f"3.{minor}"}
        if minor == sys.version_info.minor or shutil.which(name) is None:
            continue
        done = subprocess.run(
            [name, "-c", "import sys; print(sys.executable)"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if done.returncode == 0:
            yield done.stdout.strip()


OTHERS = list(interpreters())


@pytest.mark.parametrize("python", OTHERS or [pytest.param("", marks=pytest.mark.skip("no other Python"))])
def test_other_interpreters_run_it(python: str, tmp_path: Path) -> None:
    watched = CommandTask(
        "b",
        ("sh", "-c", "echo kept > x; echo bad; sleep 60"),
        monitors=(Monitor("stdout.txt", "^bad$", every_s=0.1),),
        stash=Stash(("x",), str(tmp_path / "stash"), "tar.gz"),
    )
    folder = chunk(tmp_path, CommandTask("a", ("sh", "-c", "echo $0; exit 3"), retrieve=("**/x*",)), watched)
    subprocess.run([python, "-I", "-S", runner.__file__, "run", str(folder)], check=True, timeout=60)
    first, second = sorted(
        (result for path in folder.glob("result-*.zip") for result in read_result_pack(path).results),
        key=lambda result: result.id,
    )
    assert (first.outcome, first.return_code) == ("finished", 3)
    assert (second.outcome, second.message) == ("stopped", "stdout.txt: bad")
    assert second.stash is not None
    assert Path(second.stash.path).exists()


# Packs


def chunk(tmp_path: Path, *tasks: CommandTask, resources: Resources | None = None) -> Path:
    folder = tmp_path / "chunk-000001"
    folder.mkdir()
    scratch = f"grange-test-{tmp_path.name}-{os.getpid()}"
    assert write_chunk(folder, tasks, resources or Resources(), scratch=scratch, fetch=None) == {}
    return folder


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=9000), max_size=20), st.booleans())
def test_zip_files_are_read_by_everyone(tmp_path_factory: Any, contents: list[bytes], sync: bool) -> None:
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    pack = runner.ZipWriter(str(path))
    members = {key_of(content): content for content in contents}
    for name, content in members.items():
        pack.add(name, content)
    pack.close(sync=sync)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {name: file.read(name) for name in file.namelist()} == members
    reader = runner.ZipReader(str(path))
    assert {name: reader.read(name) for name in reader.names} == members
    assert all(reader.size(name) == len(content) for name, content in members.items())
    reader.close()


def test_what_deflates_well_is_deflated(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    pack = runner.ZipWriter(str(path))
    for name, content in {"a": b"abc " * 5000, "b": os.urandom(20000), "c": b"x" * 4096}.items():
        pack.add(name, content)
    pack.close()
    with zipfile.ZipFile(path) as file:
        methods = [member.compress_type for member in file.infolist()]
    assert methods == [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_STORED]


@pytest.mark.parametrize("content", [b"x" * 5_000_000, os.urandom(3_000_000), b"", b"small"])
def test_files_are_streamed_into_packs_once(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    path = tmp_path / "a.zip"
    pack = runner.ZipWriter(str(path))
    pack.add("before", b"before")
    known: set[str] = set()
    with source.open("rb") as file:
        for _ in range(2):
            key = pack.add_file(file.fileno(), len(content), known.__contains__)
            assert key == key_of(content)
            known.add(key)
    pack.add("after", b"after")
    pack.close()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["before", key_of(content), "after"]
        assert archive.read(key_of(content)) == content


def test_zip64_of_many_members(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    pack = runner.ZipWriter(str(path))
    for number in range(66000):
        pack.add(str(number), b"")
    pack.close()
    with zipfile.ZipFile(path) as file:
        assert len(file.namelist()) == 66000
    reader = runner.ZipReader(str(path))
    assert reader.names[-1] == "65999"
    reader.close()


def test_zip64_of_offsets(tmp_path: Path) -> None:
    """Behind a hole of five gigabytes that takes no room."""
    path = tmp_path / "a.zip"
    pack = runner.ZipWriter(str(path))
    pack.offset = 5 << 30
    os.lseek(pack._fd, pack.offset, os.SEEK_SET)
    pack.add("after", b"after")
    pack.close(sync=False)
    with zipfile.ZipFile(path) as archive:
        assert archive.read("after") == b"after"
    reader = runner.ZipReader(str(path))
    assert reader.read("after") == b"after"
    reader.close()


def test_zip64_of_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header of a large member, made of a small one."""
    monkeypatch.setattr(runner, "WIDE", 1000)
    source = tmp_path / "source"
    source.write_bytes(b"wide" * 5000)
    path = tmp_path / "a.zip"
    pack = runner.ZipWriter(str(path))
    with source.open("rb") as file:
        key = pack.add_file(file.fileno(), 20000, lambda _key: False)
    pack.add("after", b"after")
    pack.close()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read(key) == b"wide" * 5000
    reader = runner.ZipReader(str(path))
    assert reader.read(key) == b"wide" * 5000
    reader.close()


@pytest.mark.parametrize("damage", [b"", b"PK", b"no pack at all" * 100])
def test_what_is_no_pack_is_told(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "result-1.zip"
    path.write_bytes(damage)
    with pytest.raises(ResultMalformed, match="result-1"):
        read_result_pack(path)


def test_a_pack_whose_writing_failed_is_never_finished(tmp_path: Path) -> None:
    pack = runner.ZipWriter("/dev/full")
    pack.add("a", b"x" * 5000)
    for _ in range(2):
        with pytest.raises(runner.SpoolFailed, match="No space left"):
            pack.close()


# Life, death, and what comes after


def wait_until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "nothing came of it"
        time.sleep(0.01)


def told() -> tuple[list[tuple[int, bool, int, int]], Any]:
    calls: list[tuple[int, bool, int, int]] = []
    return calls, lambda *what: calls.append(what)


def test_a_second_life_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    calls, tell = told()
    results = runner.Results(str(tmp_path), 4, 0.5, tell)
    first = results.keep(b"content")
    results.begin(1)
    results.add(1, runner.result_of({"id": "b"}, "finished"))
    results.flush()
    results.begin(2)
    assert calls == [(1, False, 1, 1)]

    again = runner.Results(str(tmp_path), 4, 0.5, tell)
    assert [again.done(index) for index in range(4)] == [False, True, False, False]
    assert again.running() == (2, 1)
    again.begin(2)
    assert runner.Results(str(tmp_path), 4, 0.5, tell).running() == (2, 2)
    # A content of an earlier pack is referred to, not written again.
    assert again.keep(b"content") == first
    again.add(2, runner.result_of({"id": "c"}, "finished"))
    again.close()
    assert calls[1:] == [(2, False, 1, 0)]
    assert read_result_pack(tmp_path / "result-2.zip").blobs == 0


def test_a_pack_that_was_complete_but_had_not_its_name_yet(tmp_path: Path) -> None:
    """Killed between the marks and the rename: the next life, or the executor, gives it its name."""
    _, tell = told()
    results = runner.Results(str(tmp_path), 2, 0.5, tell)
    results.add(0, runner.result_of({"id": "a"}, "finished"))
    results.flush()
    (tmp_path / "result-1.zip").rename(tmp_path / "result-1.part")
    (tmp_path / "result-2.part").write_bytes(b"half a pack")
    runner.settle_parts(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks", "result-1.zip"]

    (tmp_path / "result-1.zip").rename(tmp_path / "result-1.part")
    again = runner.Results(str(tmp_path), 2, 0.5, tell)
    assert (tmp_path / "result-1.zip").exists()
    assert again.done(0)


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.45])
def test_kill_of_the_runner_loses_at_most_the_running_task(
    tmp_path: Path, scratch: Path, delay: float
) -> None:
    tally = tmp_path / "tally"
    script = f'echo "$1" >> {tally}; sleep 0.02'
    tasks = [CommandTask(str(n), ("sh", "-c", script, "sh", str(n))) for n in range(20)]
    folder = chunk(tmp_path, *tasks)
    command = [sys.executable, "-I", "-S", runner.__file__, "run", str(folder)]
    first = subprocess.Popen(command, start_new_session=True)
    time.sleep(delay)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command, check=True, timeout=30)
    ids = [
        result.id
        for path in folder.glob("result-*.zip")
        for result in read_result_pack(path).results
        if result.outcome == "finished"
    ]
    assert sorted(ids, key=int) == [str(n) for n in range(20)]
    assert list(scratch.iterdir()) == []


def test_a_task_that_kills_its_runner_is_found_out(tmp_path: Path) -> None:
    folder = chunk(
        tmp_path,
        CommandTask("before", ("/bin/true",)),
        CommandTask("killer", ("sh", "-c", "kill -9 $PPID; sleep 5")),
        CommandTask("after", ("/bin/true",)),
    )
    subprocess.run([sys.executable, "-I", "-S", runner.__file__, "run", str(folder)], check=True, timeout=30)
    outcomes = {
        result.id: (result.outcome, result.message)
        for path in folder.glob("result-*.zip")
        for result in read_result_pack(path).results
    }
    assert outcomes["before"][0] == outcomes["after"][0] == "finished"
    assert outcomes["killer"] == ("crashed", "the runner died 3 times while this task ran")


def test_a_task_during_which_its_node_is_lost_is_told_after_some_times(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner goes together with its supervisor, as with the node, and is started elsewhere."""
    monkeypatch.setenv("GRANGE_WORK", str(tmp_path))
    begun = tmp_path / "begun"
    folder = chunk(
        tmp_path,
        CommandTask("lost", ("sh", "-c", f"echo x >> {begun}; exec sleep 300")),
        CommandTask("after", ("/bin/true",)),
    )
    command = [sys.executable, "-I", "-S", runner.__file__, "run", str(folder)]
    for count in range(1, runner.DEATHS + 1):
        process = subprocess.Popen(command, start_new_session=True)
        wait_until(lambda n=count: begun.exists() and begun.read_text().count("x") == n)  # type: ignore[misc]
        # the supervisor first: it is not to see the end of its runner
        below = runner.children_of(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        for pid in [*below, process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        runner.kill_strays(str(folder))
    subprocess.run(command, check=True, timeout=30)
    outcomes = {
        result.id: (result.outcome, result.message)
        for path in folder.glob("result-*.zip")
        for result in read_result_pack(path).results
    }
    lost = "the node, or the job on it, was lost 3 times while this task ran"
    assert outcomes == {"lost": ("node_lost", lost), "after": ("finished", "")}


def test_two_runners_of_one_chunk_take_turns(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    tasks = [CommandTask(str(n), ("sh", "-c", f"sleep 0.02; echo x >> {tally}")) for n in range(10)]
    folder = chunk(tmp_path, *tasks)
    command = [sys.executable, "-I", "-S", runner.__file__, "run", str(folder)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert tally.read_text().count("x") == 10


def test_nothing_of_the_runner_leaks_into_tasks(tmp_path: Path) -> None:
    folder = chunk(tmp_path, CommandTask("a", ("sh", "-c", "ls /proc/$$/fd; pwd; umask")))
    subprocess.run([sys.executable, "-I", "-S", runner.__file__, "run", str(folder)], check=True, timeout=30)
    (result,) = read_result_pack(folder / "result-1.zip").results
    with zipfile.ZipFile(folder / "result-1.zip") as pack:
        lines = pack.read(result.files["stdout.txt"]).decode().splitlines()
    assert {"0", "1", "2"} == set(lines[:-2]) - {"10"}
    assert not Path(lines[-2]).parent.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_output_that_cannot_be_read_is_told_and_the_rest_is_kept() -> None:
    """As an ordinary user, because root reads everything."""
    folder = Path(
        subprocess.run(
            ["mktemp", "-d", "-p", "/tmp"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    try:
        task = CommandTask(
            "a", ("sh", "-c", "echo a > a; echo b > b; chmod 0 b; mkdir c; chmod 0 c"), retrieve=("*", "**/x")
        )
        made = chunk(folder, task)
        shutil.copy(runner.__file__, folder / "runner.py")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
            path.chmod(0o700)
        python = next((path for path in ("/usr/bin/python3",) if os.path.exists(path)), None)
        if python is None:
            pytest.skip("no Python that everyone may run")
        done = subprocess.run(
            [python, "-I", "-S", str(folder / "runner.py"), "run", str(made)],
            user=65534,
            group=65534,
            cwd="/",
            env={**os.environ, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (result,) = read_result_pack(made / "result-1.zip").results
        assert result.outcome == "retrieve_failed"
        assert "b: Permission denied" in result.message
        assert set(result.files) == {"a", "stdout.txt", "stderr.txt"}
    finally:
        shutil.rmtree(folder)


# Globs and paths


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*.out", ["a.out", ".out", "a.out/below"], ["b/a.out", "a.outer"]),
        ("**/*.out", ["a.out", "b/a.out", "b/c/a.out"], ["a.txt"]),
        ("b/**", ["b/a", "b/c/a"], ["b", "bb/a"]),
        ("a?c", ["abc"], ["ac", "a/c", "abbc"]),
        ("[ab]x", ["ax", "bx"], ["cx", "/x"]),
        ("[!ab]x", ["cx"], ["ax", "/x"]),
        ("[!a]x", ["^x"], []),
        ("[^a]x", ["^x", "ax"], ["bx"]),
        ("[", ["["], ["a"]),
        ("a.b", ["a.b"], ["aXb"]),
        ("x*(y)", ["x1(y)"], ["x1y"]),
        ("[a\\]x", ["ax", "\\x"], ["]x"]),
        ("[!]", ["[!]"], ["a", "!"]),
        ("[!]a]", ["b"], ["a", "]"]),
        ("[z-a]", [], ["a", "z", "-"]),
    ],
)
def test_globs(pattern: str, matches: list[str], others: list[str]) -> None:
    regex = runner.glob_regex(pattern)
    assert all(regex.fullmatch(path) for path in matches)
    assert not any(regex.fullmatch(path) for path in others)


@given(st.text(alphabet="[]!^*?a\\-/.", min_size=1, max_size=8))
def test_any_pattern_is_taken(pattern: str) -> None:
    try:
        inside = runner.inside(pattern)
    except ValueError:
        return
    runner.glob_regex(inside).fullmatch("a/a")


@pytest.mark.parametrize("path", ["", ".", "/", "/etc", "..", "a/../b", "../a", "a\0b", "./."])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        runner.inside(path)


@pytest.mark.parametrize(
    ("path", "made"), [("a", "a"), ("./a//b/", "a/b"), ("..a", "..a"), ("a/...", "a/...")]
)
def test_paths_that_are_taken(path: str, made: str) -> None:
    assert runner.inside(path) == made


# Typed values


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


Point = namedtuple("Point", "x y")


@pytest.fixture
def kept() -> dict[str, bytes]:
    return {}


@pytest.fixture
def encoder(kept: dict[str, bytes]) -> runner.Encoder:
    def keep(content: bytes) -> str:
        kept[key_of(content)] = content
        return key_of(content)

    return runner.Encoder(keep, lambda fd: keep(os.pread(fd, 1 << 20, 0)))


def test_typed_values(encoder: runner.Encoder) -> None:
    numpy = pytest.importorskip("numpy")
    cases = [
        (1, ["int", 1]),
        (1 << 80, ["int", 1 << 80]),
        (True, ["bool", True]),
        (numpy.int8(3), ["int", 3]),
        (numpy.float32(0.5), ["float", 0.5]),
        (numpy.longdouble(0.5), ["float", 0.5]),
        (numpy.bool_(True), ["bool", True]),
        (numpy.str_("a"), ["str", "a"]),
        (float("nan"), ["float", "NaN"]),
        (numpy.float64("inf"), ["float", "Infinity"]),
        (Colour.RED, ["str", "red"]),
        (Level.LOW, ["int", 1]),
        (Point(1, 2), ["list", [1, 2]]),
        (OrderedDict(a=(1, 2)), ["dict", {"a": [1, 2]}]),
        ([Colour.RED, Level.LOW, numpy.int64(2), None], ["list", ["red", 1, 2, None]]),
    ]
    for value, typed in cases:
        assert encoder.typed(value) == typed
        json.dumps(typed, allow_nan=False)


def test_arrays_are_what_numpy_saves(encoder: runner.Encoder, kept: dict[str, bytes]) -> None:
    numpy = pytest.importorskip("numpy")
    import io

    arrays = [
        numpy.arange(3),
        numpy.arange(6.0).reshape(2, 3).T,
        numpy.array(2.5),
        numpy.zeros((0, 3)),
        numpy.array(["a", "bc"]),
        numpy.array([(1, 2.0)], dtype=[("n", "i4"), ("x", "f8")]),
        numpy.array([1 + 2j]),
        numpy.array([numpy.nan, numpy.inf]),
        numpy.arange(10)[::3],
    ]
    for array in [*arrays, *arrays]:
        tag, described = encoder.typed(array)
        loaded = numpy.load(io.BytesIO(kept[described["key"]]), allow_pickle=False)
        assert tag == "array"
        assert described["shape"] == list(array.shape)
        assert loaded.dtype == array.dtype
        assert loaded.tobytes() == array.tobytes()
        assert loaded.shape == array.shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda np: np.array([object()]), "Python objects"),
        (lambda np: np.ma.array([1], mask=[True]), "masked"),
        (lambda np: {"a": {"b": np.zeros(2)}}, "a['b']: a NumPy array inside"),
        (lambda np: np.complex128(1j), "complex"),
    ],
)
def test_arrays_that_are_refused(encoder: runner.Encoder, make: Any, words: str) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(runner.NotRecordable) as caught:
        encoder.outputs(make(numpy))
    assert words in f"{caught.value.where}: {caught.value.reason}"


def test_a_value_that_contains_itself(encoder: runner.Encoder) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(runner.NotRecordable, match="contains itself"):
        encoder.outputs(endless)


def test_structures_keep_tags_and_masses(encoder: runner.Encoder) -> None:
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("FeFeFeO", positions=[[n, 0, 0] for n in range(4)], cell=[4, 5, 6], pbc=(1, 0, 1))
    atoms.set_tags([0, 1, 0, 0])
    masses = atoms.get_masses()
    masses[2] = 57.0
    atoms.set_masses(masses)
    tag, attributes = encoder.typed(atoms)
    assert tag == "structure"
    assert [site["kind_name"] for site in attributes["sites"]] == ["Fe", "Fe1", "Fe_1", "O"]
    assert [kind["mass"] for kind in attributes["kinds"]][2] == 57.0
    assert [attributes[f"pbc{n}"] for n in (1, 2, 3)] == [True, False, True]
    assert attributes["cell"] == [[4.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 6.0]]
    atoms.positions[0, 0] = float("nan")
    with pytest.raises(runner.NotRecordable, match="NaN"):
        encoder.typed(atoms)


@given(st.text())
def test_messages_are_text_that_databases_take(text: str) -> None:
    clean = runner.clean_text(text)
    assert "\0" not in clean
    clean.encode()
    assert len(runner.clean_text(text * 5000)) < 110_000
