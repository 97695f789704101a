"""Programs as calculations: classes and templates, from their inputs to their files in the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest

import grange as gr
from grange.core.graph import load
from grange.core.profile import Profile
from grange.farm.local_pool import LocalPool
from grange.farm.result import ResultPack
from grange.repository.counting_store import CountingStore

HARTREE = 27.2


def scaled(text: str) -> float:
    return float(text) * HARTREE


class Energy(gr.CalcJob):
    """Counts what it is given; uses a helper and a constant of its module."""

    class Inputs:
        atoms: gr.Structure
        notes: gr.SingleFile
        charge: int = 0
        scale: float | None = None
        options: dict[str, int] = {"level": 2}  # noqa: RUF012

    class Outputs:
        energy: float
        forces: numpy.ndarray
        relaxed: gr.Structure
        report: gr.SingleFile
        note: str | None = None

    TOO_CHARGED = gr.ExitCode(310, "a charge of {charge} is too much")

    def prepare(self, inputs: Any) -> gr.Command:
        assert inputs is self.inputs
        inputs.options["level"] += 1  # the job's own copy: no other job sees it
        inputs.atoms.positions += 1.0
        symbols = " ".join(inputs.atoms.get_chemical_symbols())
        return gr.Command(
            [
                "sh",
                "-c",
                'cat notes/in.txt; echo "$FACTOR" > out/energy; echo warned >&2; wc -c < notes/in.txt',
            ],
            files={
                "notes/in.txt": inputs.notes.content,
                "symbols": symbols,
                "out/empty": b"",
                "level": str(inputs.options["level"]),
            },
            environment={"FACTOR": f"{len(inputs.atoms) + inputs.charge}"},
            retrieve=["out/*", "level"],
        )

    def parse(self, files: Any) -> dict[str, object] | gr.ExitCode:
        if self.inputs.charge > 5:
            return self.TOO_CHARGED.format(charge=self.inputs.charge)
        assert self.inputs.scale is None
        return {
            "energy": scaled(files.text("out/energy")),
            "forces": numpy.zeros((len(self.inputs.atoms), 3)),
            "relaxed": self.inputs.atoms,
            "report": gr.SingleFile(b"said " + files["stdout.txt"], "report.txt"),
        }


def node_of(profile: Profile, process_id: object) -> Any:
    with profile.transaction() as cursor:
        (node,) = load(cursor, [int(process_id)], reader=profile.read_files)  # type: ignore[call-overload]
    return node


def linked(profile: Profile, process_id: object, kind: str) -> dict[str, Any]:
    """The data linked with a process, by label."""
    ends = ("target_id", "source_id") if kind == "input_calc" else ("source_id", "target_id")
    with profile.transaction() as cursor:
        cursor.execute(
            f"SELECT label, {ends[1]} FROM link WHERE {ends[0]} = %s AND type = %s",
            (int(process_id), kind),  # type: ignore[call-overload]
        )
        labels = dict(cursor.fetchall())
        nodes = {node.id: node for node in load(cursor, list(labels.values()), reader=profile.read_files)}
    return {label: nodes[node_id] for label, node_id in labels.items()}


def test_a_job_from_inputs_to_files(profile: Profile, tmp_path: Path) -> None:
    ase = pytest.importorskip("ase")
    notes = tmp_path / "notes.txt"
    notes.write_bytes(b"\0\xff binary\n")
    atoms = ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[5, 5, 5])
    campaign = gr.Campaign("job", profile)
    campaign.map(Energy, atoms=atoms, notes=notes, charge=[0, 1, 9])
    assert campaign.run(progress=False).failed == 1
    frame = campaign.results()
    assert list(frame.columns)[:7] == ["process", "atoms", "charge", "notes", "options", "energy", "forces"]
    assert frame["energy"].tolist()[:2] == [2 * HARTREE, 3 * HARTREE]
    assert pandas.isna(frame["energy"][2])
    assert frame["exit_status"].tolist() == [0, 0, 310]
    assert frame["exit_message"][2] == "a charge of 9 is too much"
    first, last = frame["process"][0], frame["process"][2]

    inputs = linked(profile, first, "input_calc")
    assert sorted(inputs) == ["atoms", "charge", "notes", "options"]
    assert inputs["notes"].content == b"\0\xff binary\n"
    assert inputs["options"].value == {"level": 2}
    assert numpy.allclose(inputs["atoms"].value.positions, atoms.positions)
    outputs = linked(profile, first, "create")
    assert sorted(outputs) == ["energy", "forces", "relaxed", "report", "retrieved"]
    assert outputs["report"].content == b"said \0\xff binary\n10\n"
    assert outputs["forces"].value.shape == (2, 3)
    assert numpy.allclose(outputs["relaxed"].value.positions, atoms.positions)
    assert outputs["retrieved"].value == {
        "stdout.txt": b"\0\xff binary\n10\n",
        "stderr.txt": b"warned\n",
        "out/energy": b"2\n",
        "out/empty": b"",
        "level": b"3",
    }
    process = node_of(profile, first)
    assert process.process_type == f"{__name__}.Energy"
    assert process.read_file("notes/in.txt") == b"\0\xff binary\n"
    assert process.read_file("symbols") == b"C O"
    assert b"def prepare" in process.read_file(".grange/source_file")
    assert process.attributes["retrieve_list"] == ["out/*", "level"]
    assert process.attributes["environment_variables"] == {"FACTOR": "2"}
    # what failed keeps its files
    assert linked(profile, last, "create")["retrieved"].value["out/energy"] == b"11\n"


def test_a_class_of_a_local_scope(profile: Profile) -> None:
    unit = "eV"

    class Local(gr.CalcJob):
        class Inputs:
            n: int

        class Outputs:
            said: str

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["cat"], files={"in": f"{inputs.n} {unit}"}, stdin="in")

        def parse(self, files: Any) -> dict[str, object]:
            return {"said": files.text("stdout.txt") + unit}

    campaign = gr.Campaign("local", profile)
    campaign.map(Local, n=[1, 2])
    campaign.submit()
    # run from the record: the class comes out of the repository
    later = gr.Campaign("local", profile)
    later.run(progress=False)
    assert later.results()["said"].tolist() == ["1 eVeV", "2 eVeV"]


def test_every_end_of_a_job_has_its_own_status(profile: Profile) -> None:
    """Issue 2: each way to fail is a finished process with a status, a message, and its files."""

    class Odd(gr.CalcJob):
        class Inputs:
            case: str

        class Outputs:
            energy: float
            extra: int | None = None

        BAD = gr.ExitCode(333, "bad luck")

        def prepare(self, inputs: Any) -> Any:
            case = inputs.case
            if case == "prepare raises":
                raise LookupError("no \x00 such \udcff pseudo")
            if case == "no command":
                return ["ls"]
            if case == "argv text":
                return gr.Command("ls -l")
            if case == "argv nul":
                return gr.Command(["echo", "a\0b"])
            if case == "argv surrogate":
                return gr.Command(["echo", "a\udcffb"])
            if case == "argv number":
                return gr.Command(["echo", 1])  # type: ignore[list-item]
            if case == "file outside":
                return gr.Command(["ls"], files={"../x": "y"})
            if case == "file dot":
                return gr.Command(["ls"], files={"./x": "y"})
            if case == "file nul":
                return gr.Command(["ls"], files={"x\0": "y"})
            if case == "file and folder":
                return gr.Command(["ls"], files={"x": "y", "x/y": "z"})
            if case == "file content":
                return gr.Command(["ls"], files={"x": 3})  # type: ignore[dict-item]
            if case == "source file":
                return gr.Command(["cat", "source_file"], files={"source_file": "mine"})
            if case == "environment":
                return gr.Command(["ls"], environment={"A": 3})  # type: ignore[dict-item]
            if case == "environment name":
                return gr.Command(["ls"], environment={"A=B": "3"})
            if case == "retrieve outside":
                return gr.Command(["ls"], retrieve=["../*"])
            if case == "stdout outside":
                return gr.Command(["ls"], stdout="../../out")
            if case == "same streams":
                return gr.Command(["ls"], stdout="both.txt", stderr="both.txt")
            if case == "missing program":
                return gr.Command(["no-such-program-here", "-v"], files={"in": "kept"})
            if case == "not executable":
                return gr.Command(["./in"], files={"in": "kept"})
            if case == "non-zero":
                return gr.Command(["sh", "-c", "echo out; echo 'the reason' >&2; exit 3"])
            if case == "signal":
                return gr.Command(["sh", "-c", "echo before; kill -SEGV $$"])
            if case == "wild names":
                return gr.Command(
                    ["sh", "-c", r"""printf x > "$(printf 'a\377b')"; touch 'é x'"""], retrieve=["*"]
                )
            return gr.Command(["echo", "1.5"])

        def parse(self, files: Any) -> Any:
            given: dict[str, Any] = {
                "parse raises": None,
                "exit code": self.BAD,
                "undeclared": {"energy": 1.0, "enrgy": 2.0},
                "missing": {"extra": 1},
                "none": None,
                "wrong type": {"energy": "low"},
                "not a dict": 5,
                "a list": [("energy", 1.0)],
                "a name": {"energy": 1.0, 7: 1},
                "retrieved": {"energy": 1.0, "retrieved": 1},
                "nul": {"energy": "a\0"},
                "not a number": {"energy": float("nan")},
            }
            case = self.inputs.case
            if case == "parse raises":
                raise ValueError("line \x00 3 \udcff")
            if case == "parse exits":
                sys.exit(3)
            return given.get(case, {"energy": float(files["stdout.txt"] or 0)})

    expected: dict[str, tuple[str, int | None, str]] = {
        "well": ("finished", 0, "nan"),
        "prepare raises": ("excepted", None, "prepare() raised LookupError: no"),
        "no command": ("excepted", None, "Odd.prepare(): expected a gr.Command, got ['ls'] (list)"),
        "argv text": ("excepted", None, "Odd.prepare(): argv: expected a list of at least one text"),
        "argv nul": ("excepted", None, "Odd.prepare(): argv"),
        "argv surrogate": ("excepted", None, "Odd.prepare(): argv"),
        "argv number": ("excepted", None, "Odd.prepare(): argv"),
        "file outside": ("excepted", None, "Odd.prepare(): files"),
        "file dot": ("excepted", None, "Odd.prepare(): files"),
        "file nul": ("excepted", None, "Odd.prepare(): files"),
        "file and folder": ("excepted", None, "Odd.prepare(): files"),
        "file content": ("excepted", None, "Odd.prepare(): files['x']: expected text or bytes, got 3 (int)"),
        "environment": ("excepted", None, "Odd.prepare(): environment"),
        "environment name": ("excepted", None, "Odd.prepare(): environment"),
        "retrieve outside": ("excepted", None, "Odd.prepare(): retrieve"),
        "stdout outside": ("excepted", None, "Odd.prepare(): stdout"),
        "same streams": ("excepted", None, "Odd.prepare(): stderr"),
        "source file": ("finished", 173, "could not be parsed: parse() raised ValueError"),
        "missing program": ("finished", 180, "no-such-program-here"),
        "not executable": ("finished", 180, "./in"),
        "non-zero": ("finished", 171, "return code: 3; last line of stderr.txt: the reason"),
        "signal": ("finished", 170, "died of a signal: ended by SIGSEGV"),
        "wild names": ("finished", 0, "nan"),
        "parse raises": ("finished", 173, "parse() raised ValueError: line"),
        "parse exits": ("finished", 173, "parse() raised SystemExit"),
        "exit code": ("finished", 333, "bad luck"),
        "undeclared": ("finished", 10, "did you mean 'energy'?"),
        "missing": ("finished", 11, "energy: expected float, got nothing"),
        "none": ("finished", 11, "energy: expected float, got nothing"),
        "wrong type": ("finished", 10, "output energy: expected float, got 'low' (str)"),
        "not a dict": ("finished", 10, "expected a dict of outputs by name, or an exit code, got 5 (int)"),
        "a list": ("finished", 10, "expected a dict of outputs by name"),
        "a name": ("finished", 10, "7"),
        "retrieved": ("finished", 10, "retrieved"),
        "nul": ("finished", 10, "output energy"),
        "not a number": ("finished", 0, "nan"),
    }
    campaign = gr.Campaign("odd", profile)
    campaign.map(Odd, case=list(expected))
    campaign.run(progress=False)
    frame = campaign.results().set_index("case")
    wrong = {
        case: (row["state"], row["exit_status"], row["exit_message"])
        for case, (state, status, said) in expected.items()
        for row in [frame.loc[case]]
        if row["state"] != state
        or (status is None) != pandas.isna(row["exit_status"])
        or (status is not None and row["exit_status"] != status)
        or said not in str(row["exit_message"])
    }
    assert not wrong
    for case in ("missing program", "not executable"):
        assert node_of(profile, frame.loc[case, "process"]).read_file("in") == b"kept"
    kept = {
        case: linked(profile, frame.loc[case, "process"], "create")["retrieved"].value
        for case in (
            "non-zero",
            "signal",
            "parse raises",
            "missing",
            "exit code",
            "wild names",
            "source file",
        )
    }
    assert kept["non-zero"] == {"stdout.txt": b"out\n", "stderr.txt": b"the reason\n"}
    assert kept["signal"]["stdout.txt"] == b"before\n"
    assert kept["parse raises"]["stdout.txt"] == b"1.5\n"
    assert kept["source file"]["stdout.txt"] == b"mine"
    # a name that is no Unicode is written out
    assert {"é x", "a\\udcffb"} <= set(kept["wild names"])


def test_limits_end_the_whole_tree(profile: Profile, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    stubborn = gr.ShellJob(
        ["sh", "-c", "trap '' TERM; (trap '' TERM; echo $$ started; sleep 60 & echo $! >> {pids}; wait)"]
    )
    greedy = gr.ShellJob(
        [
            sys.executable,
            "-c",
            "print('begun', flush=True); x = bytearray({size}); import time; time.sleep(60)",
        ]
    )
    campaign = gr.Campaign("limits", profile)
    campaign.map(stubborn, pids=str(pids), resources=gr.Resources(walltime_s=0.5))
    campaign.map(greedy, size=400_000_000, resources=gr.Resources(memory_mb=100))
    campaign.map(gr.ShellJob("echo {n}"), n=range(10))
    assert campaign.run(progress=False).failed == 2
    frame = campaign.results()
    assert frame["exit_status"].tolist() == [120, 110, *[0] * 10]
    assert "walltime: 0.5 s" in frame["exit_message"][0] or "0.5" in frame["exit_message"][0]
    assert "100" in frame["exit_message"][1]
    assert b"started" in linked(profile, frame["process"][0], "create")["retrieved"].value["stdout.txt"]
    assert linked(profile, frame["process"][1], "create")["retrieved"].value["stdout.txt"] == b"begun\n"
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_shell_jobs(profile: Profile, tmp_path: Path) -> None:
    poem = tmp_path / "poem; touch hacked.txt"
    poem.write_text("roses\nviolets\n")
    nasty = "$(touch hacked) `touch hacked` ; touch hacked | cat > hacked & '\" \\ * é\n{x}"
    job = gr.ShellJob(
        [
            "sh",
            "-c",
            'cat; echo "$0" "$1" "$GREETING"; cat "$2"; cp config out.json; mkdir d; echo 1 > d/e.dat',
            "{text}",
            "{number:.2f}",
            "{poem}",
        ],
        files={"config": '{{"n": {number}}}', "raw": b"{not a field}", "stdin.txt": "in {text}!"},
        stdin="stdin.txt",
        retrieve=["**/*.dat", "raw"],
        outputs={"result": "out.json"},
        environment={"GREETING": "hello {there}"},
        label="shell",
    )
    assert job.fields == ["text", "number", "poem"]
    campaign = gr.Campaign("shell", profile)
    campaign.map(job, text=[nasty, "plain"], number=2, poem=poem)
    assert campaign.run(progress=False).failed == 0, campaign.failures()["exit_message"].tolist()
    frame = campaign.results(nodes=True)
    assert list(frame.columns) == [
        "process",
        "number",
        "poem",
        "text",
        "result",
        "stdout",
        "state",
        "exit_status",
        "exit_message",
    ]
    assert frame["stdout"][0].value == f"in {nasty}!{nasty} 2.00 hello {{there}}\nroses\nviolets\n"
    assert json.loads(frame["result"][0].content) == {"n": 2}
    assert frame["result"][0].filename == "out.json"
    kept = linked(profile, frame["process"][0], "create")["retrieved"].value
    assert sorted(kept) == ["d/e.dat", "out.json", "raw", "stderr.txt", "stdout.txt"]
    assert kept["raw"] == b"{not a field}"
    inputs = linked(profile, frame["process"][0], "input_calc")
    assert inputs["code"].executable == "sh"
    assert inputs["poem"].content == b"roses\nviolets\n"
    # one code node, one file node, whatever the number of calls
    assert inputs["code"].id == linked(profile, frame["process"][1], "input_calc")["code"].id
    node = node_of(profile, frame["process"][0])
    assert node.read_file("config") == b'{"n": 2}'
    assert node.read_file(poem.name) == b"roses\nviolets\n"
    assert not list(Path().glob("hacked*"))


def test_shell_jobs_that_leave_no_output(profile: Profile) -> None:
    campaign = gr.Campaign("nothing", profile)
    campaign.map(gr.ShellJob("echo {n}", outputs={"log": "run.log"}), n=1)
    campaign.map(gr.ShellJob("{program} -x"), program=["false", "nonexistent-program"])
    campaign.map(gr.ShellJob("true {a.b}"), a=3)
    campaign.run(progress=False)
    frame = campaign.results()
    assert frame["exit_status"].tolist()[:3] == [173, 171, 180]
    assert "output log: the program left no file run.log" in frame["exit_message"][0]
    assert frame["state"][3] == "excepted"


def test_jobs_take_files_folders_and_paths(profile: Profile, tmp_path: Path) -> None:
    class Count(gr.CalcJob):
        class Inputs:
            tree: gr.Folder
            one: Path
            many: list[str] = ["a"]  # noqa: RUF012

        class Outputs:
            count: int
            back: gr.Folder

        def prepare(self, inputs: Any) -> gr.Command:
            files = {f"tree/{path}": content for path, content in inputs.tree.items()}
            files["one"] = inputs.one.read_text() + "".join(inputs.many)
            return gr.Command(["sh", "-c", "find tree -type f | wc -l; cat one"], files=files)

        def parse(self, files: Any) -> dict[str, object]:
            count, one = files.text("stdout.txt").split()
            return {"count": int(count), "back": gr.Folder({"a/one": one.encode()})}

    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_bytes(b"x" * 300_000)
    (tmp_path / "one").write_text("uno")
    campaign = gr.Campaign("folders", profile)
    campaign.map(Count, tree=folder, one=tmp_path / "one")
    assert campaign.run(progress=False).failed == 0, campaign.failures()["exit_message"].tolist()
    outputs = linked(profile, campaign.results()["process"][0], "create")
    assert outputs["count"].value == 2
    assert outputs["back"].value == {"a/one": b"unoa"}


SCRIPT = textwrap.dedent("""
    import sys
    import grange as gr

    UNIT = 3

    def helper(text):
        return int(text) * UNIT

    class Job(gr.CalcJob):
        class Inputs:
            n: int

        class Outputs:
            tripled: int

        def prepare(self, inputs):
            return gr.Command(["echo", str(inputs.n)])

        def parse(self, files):
            return {"tripled": helper(files.text("stdout.txt"))}

    def triple(n: int) -> int:
        return helper(n)

    if __name__ == "__main__":
        profile = gr.open(sys.argv[1])
        campaign = gr.Campaign("script", profile)
        campaign.map(Job, n=range(4))
        campaign.map(triple, n=range(4))
        print(campaign.run(progress=False).failed, campaign.results()["tripled"].sum())
""")


def test_a_class_of_a_script_takes_its_helpers_along(profile: Profile, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(profile.home)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GRANGE_HOME": "/nowhere"},
    )
    assert done.stdout.split() == ["0", "18"], done.stderr


def test_exit_codes_of_classes_are_checked() -> None:
    with pytest.raises(gr.GrangeError, match=r"Low\.BAD: expected a status from 200 on"):

        class Low(gr.CalcJob):
            BAD = gr.ExitCode(199, "too low")

    with pytest.raises(gr.GrangeError, match=r"Twice\.B: expected a status that A does not have"):

        class Twice(gr.CalcJob):
            A = gr.ExitCode(300, "a")
            B = gr.ExitCode(300, "b")


class InTwo(LocalPool):
    """Delivers the first pack by itself and all others together."""

    first = True

    def poll(self, timeout_s: float) -> list[ResultPack]:
        packs = super().poll(timeout_s)
        if packs and self.first:
            self.first = False
            self._ready += packs[1:]
            self._outstanding += sum(len(pack.results) for pack in packs[1:])
            return packs[:1]
        while self.outstanding:
            packs += super().poll(timeout_s)
        return packs


def test_what_many_programs_print_alike_is_read_once_for_all_that_are_delivered_together(
    profile: Profile, tmp_path: Path
) -> None:
    counted = CountingStore(profile.repository.store)
    profile.repository.store = counted
    campaign = gr.Campaign("alike", profile)
    campaign.map(gr.ShellJob(["sh", "-c", "echo alike", "sh", "{index}"]), index=range(16))
    with InTwo(tmp_path / "spool", slots=1, flush_s=0.0) as pool:
        done = campaign.run(progress=False, executor=pool)
    assert (done.done, done.failed) == (16, 0)
    assert campaign.results()["stdout"].tolist() == ["alike\n"] * 16
    assert counted.calls["get_ranges"] <= 3
