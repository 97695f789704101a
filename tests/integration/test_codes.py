"""Codes: found by their names, run with all that is theirs, and linked to what they made."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

import grange as gr
from grange.core import codes
from grange.core.errors import InputInvalid, InUse, NameExists, NotFound
from grange.core.graph import load
from grange.core.profile import Profile
from grange.farm.local_pool import LocalPool
from grange.farm.result import ResultPack
from grange.farm.task import Batch, CommandTask, Resources


def add_computer(profile: Profile, label: str, transport: str = "core.local") -> int:
    with profile.transaction() as cursor:
        cursor.execute(
            "INSERT INTO computer (label, hostname, scheduler_type, transport_type)"
            " VALUES (%s, 'localhost', 'core.direct', %s) RETURNING id",
            (label, transport),
        )
        return int((cursor.fetchone() or (0,))[0])


def results(profile: Profile, runnable: Any, *, mpirun: str = "", **inputs: object) -> Any:
    """The frame of a campaign of its own, run by the local pool; it has to go well."""
    resources = inputs.pop("resources", gr.Resources())
    with profile.transaction() as cursor:
        cursor.execute('SELECT count(*) FROM "group"')
        name = f"campaign-{(cursor.fetchone() or (0,))[0]}"
    campaign = gr.Campaign(name, profile)
    campaign.map(runnable, resources=resources, **inputs)
    pool = LocalPool(
        profile.spool / name, slots=8, fetch=fetch_of(profile), **({"mpirun": mpirun} if mpirun else {})
    )
    with pool:
        campaign.run(progress=False, executor=pool)
    frame = campaign.results()
    assert set(frame["exit_status"]) == {0}, frame["exit_message"].tolist()
    return frame


def fetch_of(profile: Profile) -> Callable[[Any], dict[Any, bytes]]:
    def fetch(keys: Any) -> dict[Any, bytes]:
        return dict(zip(keys, profile.read_files(list(keys)), strict=True))

    return fetch


def node_of(profile: Profile, process_id: object) -> Any:
    with profile.transaction() as cursor:
        (node,) = load(cursor, [int(process_id)], profile.read_files)  # type: ignore[call-overload]
    return node


def code_of(profile: Profile, process_id: object) -> int:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT source_id FROM link WHERE target_id = %s AND label = 'code' AND type = 'input_calc'",
            (int(process_id),),  # type: ignore[call-overload]
        )
        return int((cursor.fetchone() or (0,))[0])


class Said(gr.CalcJob):
    """Runs a code with arguments, and tells what it printed."""

    class Inputs:
        code: gr.Code
        words: list[str]

    class Outputs:
        said: str

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command([inputs.code, *inputs.words])

    def parse(self, files: Any) -> dict[str, object]:
        return {"said": files.text("stdout.txt")}


class TestRunning:
    def test_lines_around_the_program(self, profile: Profile) -> None:
        code = gr.InstalledCode(
            "/bin/sh", prepend_text="export A='x y'", append_text='echo "after $A"', label="shell"
        )
        profile.store(code)
        frame = results(profile, Said, code=code, words=[["-c", 'echo "$A" "$1"', "sh", "it's $HOME"]])
        assert frame["said"][0] == "x y it's $HOME\nafter x y\n"
        process = node_of(profile, frame["process"][0])
        assert process.attributes["argv"] == ["/bin/sh", "-c", 'echo "$A" "$1"', "sh", "it's $HOME"]
        assert code_of(profile, frame["process"][0]) == code.id

    def test_a_command_has_lines_of_its_own_inside_those_of_its_code(self, profile: Profile) -> None:
        class Around(Said):
            def prepare(self, inputs: Any) -> gr.Command:
                return gr.Command(
                    [inputs.code, "program"], prepend_text="echo job", append_text="echo job", with_mpi=False
                )

        code = gr.InstalledCode("echo", prepend_text="echo code", append_text="echo code", with_mpi=True)
        frame = results(profile, Around, code=code, words=[[]])
        process = node_of(profile, frame["process"][0])
        assert frame["said"][0] == "code\njob\nprogram\njob\ncode\n"
        assert {name: process.attributes[name] for name in ("prepend_text", "append_text", "withmpi")} == {
            "prepend_text": "echo job",
            "append_text": "echo job",
            "withmpi": False,
        }

    def test_the_files_of_a_portable_code_come_along(self, profile: Profile, tmp_path: Path) -> None:
        (tmp_path / "code" / "bin").mkdir(parents=True)
        (tmp_path / "code" / "bin" / "run.sh").write_text('#!/bin/sh\n. lib/helper.sh\nhelp "$@"\n')
        (tmp_path / "code" / "lib").mkdir()
        (tmp_path / "code" / "lib" / "helper.sh").write_text('help() { echo "helped $GREETING $*"; }\n')
        for before in ("", "export GREETING=kindly"):
            code = gr.PortableCode("bin/run.sh", tmp_path / "code", prepend_text=before)
            frame = results(profile, Said, code=code, words=[["a b"], ["c"]])
            greeting = "kindly " if before else " "
            assert frame["said"].tolist() == [f"helped {greeting}a b\n", f"helped {greeting}c\n"]
            # recorded with the code, and only there
            assert not {"bin/run.sh", "lib/helper.sh"} & set(node_of(profile, frame["process"][0]).files)
            stored = node_of(profile, code_of(profile, frame["process"][0]))
            assert stored.read_file("lib/helper.sh").startswith(b"help()")

    def test_mpi_is_started_as_the_computer_does_it(self, profile: Profile) -> None:
        code = gr.InstalledCode("/bin/sh", with_mpi=True)
        frame = results(
            profile,
            Said,
            mpirun="env MPI={tot_num_mpiprocs} EACH={num_cores_per_mpiproc}",
            resources=gr.Resources(cpus=6, mpi_procs=3),
            code=code,
            words=[["-c", "echo $MPI $EACH $OMP_NUM_THREADS"]],
        )
        assert frame["said"][0] == "3 2 2\n"
        attributes = node_of(profile, frame["process"][0]).attributes
        assert attributes["withmpi"] is True
        assert attributes["resources"] == {"tot_num_mpiprocs": 3, "num_cores_per_mpiproc": 2}

    def test_a_real_mpi(self, profile: Profile) -> None:
        if shutil.which("mpirun") is None:
            pytest.skip("no mpirun here: the package openmpi-bin is needed")
        told = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
        flags = "--allow-run-as-root --oversubscribe" if "Open MPI" in told else ""
        code = gr.InstalledCode("/bin/sh", with_mpi=True, append_text="echo after")
        frame = results(
            profile,
            Said,
            mpirun=f"mpirun {flags} -np {{tot_num_mpiprocs}}",
            resources=gr.Resources(cpus=6, mpi_procs=3),
            code=code,
            words=[
                [
                    "-c",
                    'echo "rank ${OMPI_COMM_WORLD_RANK:-$PMI_RANK} with $OMP_NUM_THREADS $1"',
                    "sh",
                    "a  b",
                ]
            ],
        )
        assert sorted(frame["said"][0].splitlines()) == [
            "after",
            *(f"rank {n} with 2 a  b" for n in range(3)),
        ]

    def test_a_template_that_cannot_be_filled_in_ends_the_calculation(self, profile: Profile) -> None:
        campaign = gr.Campaign("broken", profile)
        campaign.map(gr.ShellJob("true", with_mpi=True))
        with LocalPool(profile.spool / "broken", mpirun="mpirun {np}") as pool:
            campaign.run(progress=False, executor=pool)
        (row,) = campaign.results().to_dict("records")
        assert row["exit_status"] == 181
        assert "mpirun: {np} in 'mpirun {np}' is not known" in row["exit_message"]

    def test_a_walltime_ends_what_a_shell_waits_for(self, tmp_path: Path) -> None:
        task = CommandTask(
            "1",
            ("/bin/sh", "-c", "trap 'echo told; exit 3' TERM; while :; do sleep 0.05; done"),
            prologue="export A=1",
            epilogue="echo after",
        )
        with LocalPool(tmp_path) as pool:
            pool.submit(Batch((task,), Resources(walltime_s=0.3)))
            packs: list[ResultPack] = []
            while not packs:
                packs = pool.poll(5.0)
            (result,) = packs[0].results
            assert (result.outcome, result.return_code) == ("walltime_exceeded", 3)
            with ZipFile(packs[0].path) as pack:
                assert pack.read(result.files["stdout.txt"]) == b"told\nafter\n"
            pool.acknowledge(packs)

    def test_what_waits_is_run_from_the_record_with_its_code(self, profile: Profile) -> None:
        code = gr.PortableCode("run", {"run": b"#!/bin/sh\necho ran $X\n"}, prepend_text="export X=1")
        campaign = gr.Campaign("recorded", profile)
        campaign.map(Said, code=code, words=[["a"]])
        campaign.map(gr.ShellJob("{code} now", outputs={"log": "stdout.txt"}), code=code)
        assert campaign.submit() == 2
        again = gr.Campaign("recorded", profile)
        again.run(progress=False)
        frame = again.results()
        assert frame["said"][0] == frame["stdout"][1] == "ran 1\n"

    def test_a_code_of_a_container_runs_in_it(self, profile: Profile, tmp_path: Path, image: Path) -> None:
        engine = 'env USER=grange ch-run --bind "$PWD:/mnt" --cd /mnt {image_name} --'
        code = gr.ContainerizedCode(engine, str(image), "/bin/program", label="inside")
        frame = results(profile, Said, code=code, words=[["a b", "$HOME"]])
        assert frame["said"][0] == "inside with 2: a b|$HOME|\n"
        # program and arguments as one argument of a shell in there
        code = gr.ContainerizedCode(
            f"{engine} /bin/sh -c",
            str(image),
            "/bin/program",
            wrap_cmdline_params=True,
            append_text="cat left",
        )
        frame = results(profile, Said, code=code, words=[["a b", "$HOME"]])
        assert frame["said"][0] == "inside with 2: a b|$HOME|\nleft there\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder that ch-run takes for an image: a shell, its libraries, and a script that is only there."""
    if shutil.which("ch-run") is None:
        pytest.skip("no container here: the package charliecloud is needed")
    folder = tmp_path / "im age"
    for name in ("bin", "dev", "etc", "home", "mnt", "proc", "sys", "tmp", "usr", "var"):
        (folder / name).mkdir(parents=True)
    for name in ("passwd", "group", "hosts", "resolv.conf"):
        (folder / "etc" / name).touch()
    shutil.copy("/bin/sh", folder / "bin" / "sh")
    told = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+)", told):
        target = folder / library.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (folder / "bin" / "program").write_text(
        '#!/bin/sh\n[ -e /etc/fstab ] && exit 9\necho left there > left\nprintf "inside with $#: "\n'
        'printf "%s|" "$@"; echo\n'
    )
    (folder / "bin" / "program").chmod(0o755)
    run = ["env", "USER=grange", "ch-run", str(folder), "--", "/bin/sh", "-c", "exit 0"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        refused = subprocess.run(["unshare", "-r", "true"], capture_output=True, check=False).returncode
        assert refused, f"ch-run does not work, although user namespaces do: {done.stderr}"
        pytest.skip("no container here: user namespaces are refused")
    return folder


class TestShellJobs:
    def test_a_code_that_is_given(self, profile: Profile) -> None:
        code = gr.InstalledCode("/bin/sh", prepend_text="export X=7", label="shell")
        for command in ("{code} -c 'echo $X {n}'", "shell -c 'echo $X {n}'", "sh -c 'echo $X {n}'"):
            job = gr.ShellJob(command, code=code)
            assert job.label == "shell"
            frame = results(profile, job, n=[1, 2])
            assert frame["stdout"].tolist() == ["7 1\n", "7 2\n"]
        with pytest.raises(InputInvalid, match=r"the code: \{code\} or shell or /bin/sh or sh"):
            gr.ShellJob("bash -c 'echo {n}'", code=code)
        with pytest.raises(InputInvalid, match="load_code"):
            gr.ShellJob("sh", code="sh")  # type: ignore[arg-type]

    def test_a_code_as_an_input_like_others(self, profile: Profile) -> None:
        one, two = (gr.InstalledCode("/bin/sh", prepend_text=f"export X={n}") for n in (1, 2))
        frame = results(profile, gr.ShellJob("{code} -c 'echo $X'"), code=[one, two])
        assert frame["stdout"].tolist() == ["1\n", "2\n"]
        # in place of the program that the command names
        frame = results(profile, gr.ShellJob("true -c 'echo $X'"), code=[one, two])
        assert frame["stdout"].tolist() == ["1\n", "2\n"]
        with pytest.raises(gr.GrangeError, match="code: expected"):
            gr.Campaign("x", profile).map(gr.ShellJob("{code} x"))

    def test_a_code_by_its_name(self, profile: Profile) -> None:
        profile.store(
            gr.InstalledCode(
                "/bin/sh", computer_id=add_computer(profile, "here"), prepend_text="export X=3", label="shell"
            )
        )
        frame = results(profile, gr.ShellJob("shell@here -c 'echo $X'"))
        assert frame["stdout"].tolist() == ["3\n"]
        assert code_of(profile, frame["process"][0]) == profile.load_code("shell").id
        with pytest.raises(NotFound, match="no code 'sell@here': did you mean 'shell@here'"):
            gr.Campaign("x", profile).map(gr.ShellJob("sell@here"))

    def test_a_code_of_another_computer_is_not_run_here(self, profile: Profile) -> None:
        far = gr.InstalledCode(
            "/bin/echo", computer_id=add_computer(profile, "far", "core.ssh"), label="echo"
        )
        profile.store(far)
        campaign = gr.Campaign("far", profile)
        campaign.map(Said, code=far, words=[["a"]])
        with pytest.raises(InputInvalid, match=r'this one is on far: run\(executor="far"\)'):
            campaign.run(progress=False)
        # it waits for a run that is there
        assert {state.value: count for (state, _), count in campaign.counts().items()} == {"created": 1}


class TestCommands:
    def prepared(self, *argv: Any, **more: Any) -> gr.Command:
        from grange.core.command import checked

        return checked(gr.Command(list(argv), **more), "Job")

    def test_a_node_is_as_good_as_its_value(self) -> None:
        code = gr.InstalledCode("/bin/sh", with_mpi=True, prepend_text="a")
        for given in (code, code.value):
            command = self.prepared(given, "x")
            assert (command.words(), command.mpi, command.launch.prepend_text) == (
                ["/bin/sh", "x"],
                True,
                "a",
            )
            assert not command.is_bare
        assert self.prepared("/bin/sh", gr.InstalledCode("/bin/true", prepend_text="a")).is_bare

    @pytest.mark.parametrize(
        ("argv", "more", "message"),
        [
            (["sh", gr.PortableCode("run", {"run": b""})], {}, r"argv\[1\].* such a code as the program"),
            (["sh", gr.ContainerizedCode("{image_name}", "i", "x")], {}, r"argv\[1\]"),
            ([gr.PortableCode("run", {"run": b""})], {"files": {"run": b""}}, "code ./run leave free"),
            ([gr.PortableCode("run", {"run": b""})], {"files": {"run/x": b""}}, "code ./run leave free"),
            ([gr.PortableCode("a/b", {"a/b": b""})], {"files": {"a": b""}}, "code ./a/b leave free"),
            ([gr.PortableCode("run", {"run": b"", "stdout.txt": b""})], {}, "stdout.txt"),
            (["sh"], {"prepend_text": 3}, "prepend_text"),
            (["sh"], {"append_text": "\0"}, "append_text"),
            (["sh"], {"with_mpi": "yes"}, "with_mpi"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_run_is_refused(self, argv: Any, more: Any, message: str) -> None:
        with pytest.raises(InputInvalid, match=message):
            self.prepared(*argv, **more)


class TestNames:
    def test_by_label_computer_id_and_uuid(self, profile: Profile) -> None:
        here, there = add_computer(profile, "here"), add_computer(profile, "there")
        one = gr.InstalledCode("/opt/pw.x", computer_id=here, label="pw")
        two = gr.InstalledCode("/opt/pw.x", computer_id=there, label="pw")
        three = gr.PortableCode("run", {"run": b"#!"}, label="run")
        profile.store(one, two, three, gr.Int(1))
        assert profile.load_code("pw@here").id == one.id
        assert profile.load_code("pw@there").id == two.id
        assert profile.load_code("run").id == three.id
        assert profile.load_code(three.id or 0).read_file("run") == b"#!"
        assert profile.load_code(two.uuid or "").id == two.id
        with pytest.raises(InputInvalid, match=f"there are pw@here .id {one.id}., pw@there"):
            profile.load_code("pw")
        with pytest.raises(NotFound, match="did you mean 'pw@here'"):
            profile.load_code("pw@her")
        with pytest.raises(NotFound, match="no code 'nothing@like': there are pw@here, pw@there, run"):
            profile.load_code("nothing@like")
        with pytest.raises(InputInvalid, match=r"is of the type data\.core\.int\.Int"):
            profile.load_code((three.id or 0) + 1)

    def test_equal_codes_are_one(self, profile: Profile) -> None:
        made = [gr.InstalledCode("/opt/pw.x", label="pw") for _ in range(2)]
        profile.store(*made)
        assert profile.load_code("pw").id == made[0].id
        with profile.transaction() as cursor:
            (line,) = codes.list_codes(cursor)
            assert (line.id, line.name, line.kind, line.uses) == (made[0].id, "pw", "installed", 0)
            assert codes.delete(cursor, "pw") == [node.id for node in made]
        with pytest.raises(NotFound, match="there is none"):
            profile.load_code("pw")

    def test_adding(self, profile: Profile) -> None:
        here = add_computer(profile, "here")
        with profile.transaction() as cursor:
            code = gr.InstalledCode("/opt/pw.x", computer_id=here, label="pw")
            stored, new = codes.add(profile, cursor, code, "here")
            assert new
            again = gr.InstalledCode("/opt/pw.x", computer_id=here, label="pw", description="more")
            assert codes.add(profile, cursor, again, "here")[0].id == stored.id
            other = gr.InstalledCode("/opt/pw.x", label="pw")
            assert codes.add(profile, cursor, other)[1]
            with pytest.raises(NameExists, match=f"another code pw@here .id {stored.id}."):
                codes.add(profile, cursor, gr.InstalledCode("/pw.x", computer_id=here, label="pw"), "here")
            for label in ("a@b", "12"):
                with pytest.raises(InputInvalid, match="label"):
                    codes.add(profile, cursor, gr.InstalledCode("/pw.x", label=label))

    def test_what_was_used_stays(self, profile: Profile) -> None:
        code = gr.InstalledCode("/bin/echo", label="echo")
        profile.store(code)
        results(profile, Said, code=code, words=[["a"], ["b"]])
        with profile.transaction() as cursor:
            assert codes.list_codes(cursor)[0].uses == 2
            with pytest.raises(InUse, match="2 processes have used it"):
                codes.delete(cursor, "echo")

    def test_programs_that_nobody_named_are_in_no_list(self, profile: Profile) -> None:
        results(profile, gr.ShellJob("true"))
        with profile.transaction() as cursor:
            assert codes.list_codes(cursor) == []
            (line,) = codes.list_codes(cursor, unnamed=True)
            assert (line.label, line.filepath_executable, line.uses) == ("", "true", 1)

    def test_a_containerised_code_is_one_node_in_a_campaign(self, profile: Profile) -> None:
        campaign = gr.Campaign("shared", profile)
        for place in range(2):
            code = gr.ContainerizedCode("env {image_name}", "A=1", "/bin/echo")
            campaign.map(Said, code=code, words=[[str(place)]])
            campaign.run(progress=False)
        processes = campaign.results()["process"]
        assert code_of(profile, processes[0]) == code_of(profile, processes[1])
