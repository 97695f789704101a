"""Tasks that need a shell: what bash makes of the script, run for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grange.farm.task import CommandTask, Resources
from grange.farm.task_script import filled_mpirun, needs_script, scripted

#: Prints its arguments as a runner would have given them.
SHOW = (sys.executable, "-I", "-S", "-c", "import sys; print(sys.argv[1:])")
ODD = [
    *(
        "",
        " ",
        "a b",
        "it's",
        '"',
        "$HOME",
        "${HOME}",
        "`id`",
        "$(id)",
        "\\",
        "a\\",
        "-n",
        "--",
        "*",
        "~",
        "!",
    ),
    *("\n", "a\nb\n", "\t", "#", ";", "|", "&", "<", "ü", "日本", "\x01", "'; exit 3; '", "{grange_argv}"),
]
ONE = Resources()


def run(
    task: CommandTask, resources: Resources = ONE, *, mpirun: str = "", folder: Path | None = None,
    stdin: bytes = b"", **environment: str,
) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
    made = scripted(task, resources, mpirun) if mpirun else scripted(task, resources)
    return subprocess.run(
        made.argv,
        input=stdin,
        capture_output=True,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **made.environment, **environment},
        check=False,
    )


def printed(done: subprocess.CompletedProcess[bytes]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


class TestPlainTasks:
    def test_no_shell_is_started_for_them(self) -> None:
        task = CommandTask("1", ("xtb", "in.xyz"), {"in.xyz": b"1"})
        assert not needs_script(task)
        assert scripted(task, Resources(cpus=4)) is task

    @pytest.mark.parametrize(
        "more", [{"prologue": ":"}, {"epilogue": ":"}, {"mpi": True}, {"container": "env"}, {"expand": True}]
    )
    def test_each_of_these_needs_one(self, more: dict[str, object]) -> None:
        assert needs_script(replace(CommandTask("1", ("true",)), **more))


class TestArguments:
    @pytest.mark.parametrize("after", ["", "true"])
    def test_they_reach_the_program_as_they_are(self, after: str) -> None:
        task = CommandTask("1", (*SHOW, *ODD), prologue=":", epilogue=after)
        assert printed(run(task)).rstrip("\n") == repr(ODD)

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
            max_size=5,
        ),
        st.booleans(),
        st.booleans(),
    )
    def test_whatever_they_are(self, words: list[str], after: bool, in_one: bool) -> None:
        task = CommandTask("1", (*SHOW, *words), prologue=":", epilogue="true" if after else "")
        if in_one:
            task = replace(task, container="/bin/sh -c", line=True)
        assert printed(run(task)).rstrip("\n") == repr(words)

    def test_a_file_that_the_lines_before_read_does_not_see_them(self, tmp_path: Path) -> None:
        (tmp_path / "vars.sh").write_text("[ $# -eq 0 ] || exit 4; set -- changed\n")
        task = CommandTask("1", (*SHOW, "one"), prologue=". ./vars.sh")
        assert printed(run(task, folder=tmp_path)) == "['one']\n"

    @pytest.mark.parametrize("after", ["", "true"])
    def test_a_program_is_no_builtin_and_no_option(self, tmp_path: Path, after: str) -> None:
        for name in ("echo", "exit", "-a", "time"):
            (tmp_path / name).write_text("#!/bin/sh\necho a program\n")
            (tmp_path / name).chmod(0o700)
            task = CommandTask("1", (name,), prologue=f"PATH={tmp_path}:$PATH", epilogue=after)
            assert printed(run(task)) == "a program\n"

    def test_names_are_filled_in_where_that_is_asked_for(self) -> None:
        words = ["$X", "${X}!", "it's", '"', "a\\", "\\$X", "\\\\", "a  b", "*"]
        task = CommandTask("1", (*SHOW[:-1], SHOW[-1], *words), expand=True, environment={"X": "a  b"})
        assert printed(run(task)).rstrip("\n") == repr(
            ["a  b", "a  b!", "it's", '"', "a\\", "$X", "\\", "a  b", "*"]
        )


class TestExitStatus:
    @pytest.mark.parametrize("status", [0, 1, 2, 77, 126, 127, 130, 143, 255])
    @pytest.mark.parametrize("after", ["", "true", "false", "exit 9", "set -e; false", "if", "cat <<END\nx"])
    def test_it_is_the_programs(self, status: int, after: str) -> None:
        task = CommandTask("1", ("/bin/sh", "-c", f"exit {status}"), prologue=":", epilogue=after)
        assert run(task).returncode == status

    def test_the_lines_after_run_in_any_case(self) -> None:
        for program in ("true", "false"):
            task = CommandTask("1", (program,), prologue="set -eu; X=1", epilogue='echo "after $X"')
            assert run(task).stdout == b"after 1\n"

    def test_a_signal_is_what_the_task_died_of(self) -> None:
        task = CommandTask("1", ("/bin/sh", "-c", "kill -SEGV $$"), prologue=":")
        assert run(task).returncode == -signal.SIGSEGV

    def test_a_signal_is_128_and_its_number_where_lines_follow(self) -> None:
        task = CommandTask("1", ("/bin/sh", "-c", "kill -KILL $$"), epilogue="echo after")
        done = run(task)
        assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, b"after\n")

    @pytest.mark.parametrize("before", ["exit 0", "set -e; false", "cat <<END\nnever ended", "'", "if true"])
    def test_lines_before_that_end_the_shell_are_no_success(self, before: str) -> None:
        done = run(CommandTask("1", ("expr", "40", "+", "2"), prologue=before))
        assert done.returncode != 0
        assert b"42" not in done.stdout

    def test_a_failing_line_before_does_not_hold_up_the_program(self) -> None:
        assert printed(run(CommandTask("1", ("echo", "here"), prologue="false\nX=\\"))) == "here\n"

    @pytest.mark.parametrize("after", ["", "true"])
    def test_a_program_that_is_not_there(self, after: str) -> None:
        done = run(CommandTask("1", ("/no/such/program",), prologue=":", epilogue=after))
        assert done.returncode == 127
        assert b"/no/such/program" in done.stderr


class TestLinesAround:
    @pytest.mark.parametrize("after", ["", "true"])
    def test_standard_input_is_the_programs(self, after: str) -> None:
        task = CommandTask(
            "1", ("cat",), {"in": b""}, stdin="in", prologue="cat; read x; true", epilogue=after
        )
        assert printed(run(task, stdin=b"one\ntwo\n")) == "one\ntwo\n"

    def test_variables_reach_the_program_and_the_lines_after(self) -> None:
        task = CommandTask(
            "1", ("/bin/sh", "-c", "echo $A"), prologue="export A=1; B=2", epilogue="echo $A $B"
        )
        assert printed(run(task)) == "1\n1 2\n"

    def test_a_trap_of_the_lines_before_is_kept(self, tmp_path: Path) -> None:
        before = "mkdir scratch; trap 'rmdir scratch' EXIT; cd scratch"
        task = CommandTask("1", ("pwd",), prologue=before.replace("rmdir s", f"rmdir {tmp_path}/s"))
        assert printed(run(task, folder=tmp_path)).endswith("/scratch\n")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("after", ["", "echo after"])
    def test_a_signal_to_the_session_lets_the_program_end_in_its_way(self, after: str) -> None:
        program = "trap 'sleep 0.2; echo ended; exit 5' TERM; echo begun; while :; do sleep 0.05; done"
        made = scripted(
            CommandTask("1", ("/bin/sh", "-c", program), epilogue=after, prologue=":"), Resources()
        )
        with subprocess.Popen(made.argv, stdout=subprocess.PIPE, start_new_session=True) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"begun\n"
            os.killpg(running.pid, signal.SIGTERM)
            assert running.stdout.read() == (b"ended\nafter\n" if after else b"ended\n")
        assert running.returncode == 5

    def test_modules_are_looked_for_where_the_shell_does_not_know_them(self, tmp_path: Path) -> None:
        (tmp_path / "init").mkdir()
        (tmp_path / "init" / "bash").write_text('module() { export "LOADED_$2=yes"; }\n')
        task = CommandTask("1", ("/bin/sh", "-c", "echo $LOADED_qe"), prologue="module load qe")
        assert printed(run(task, MODULESHOME=str(tmp_path))) == "yes\n"

    def test_real_modules(self, tmp_path: Path) -> None:
        if not Path("/usr/share/modules/init/bash").exists():
            pytest.skip("no modules here: the package environment-modules is needed")
        (tmp_path / "qe").write_text("#%Module1.0\nsetenv LOADED yes\n")
        before = f"module use {tmp_path}\nmodule load qe"
        for after in ("", "module unload qe; echo $LOADED"):
            task = CommandTask("1", ("/bin/sh", "-c", "echo $LOADED"), prologue=before, epilogue=after)
            assert printed(run(task)) == ("yes\n\n" if after else "yes\n")

    def test_a_program_among_the_files_is_made_executable(self, tmp_path: Path) -> None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "run.sh").write_text("#!/bin/sh\necho it runs\n")
        task = CommandTask("1", ("./bin/run.sh",), {"bin/run.sh": b""}, prologue="PATH=")
        assert printed(run(task, folder=tmp_path)) == "it runs\n"


class TestMpi:
    def test_the_template_is_filled_from_the_resources(self) -> None:
        resources = Resources(cpus=12, nodes=2, mpi_procs=6)
        assert filled_mpirun("mpirun -np {tot_num_mpiprocs}", resources) == "mpirun -np 6"
        assert (
            filled_mpirun(
                "srun -N {nodes} --ntasks-per-node {procs_per_node} -c {num_cores_per_mpiproc}", resources
            )
            == "srun -N 2 --ntasks-per-node 3 -c 2"
        )
        assert filled_mpirun(
            "x {cpus} {num_machines} {num_mpiprocs_per_machine} ${X}", Resources(cpus=3)
        ) == ("x 3 1 3 ${X}")

    @pytest.mark.parametrize("template", ["mpirun {np}", "mpirun {}", "mpirun\n-np 2"])
    def test_a_template_that_cannot_be_filled_in_is_named(self, template: str) -> None:
        with pytest.raises(ValueError, match="mpirun: "):
            filled_mpirun(template, Resources())

    @pytest.mark.parametrize("template", ["env MPI={tot_num_mpiprocs}", "MPI={tot_num_mpiprocs}"])
    @pytest.mark.parametrize("after", ["", "true"])
    def test_each_process_has_its_share_of_the_cpus(self, template: str, after: str) -> None:
        task = CommandTask("1", ("/bin/sh", "-c", "echo $MPI $OMP_NUM_THREADS"), mpi=True, epilogue=after)
        assert printed(run(task, Resources(cpus=8, mpi_procs=2), mpirun=template)) == "2 4\n"
        own = replace(task, environment={"OMP_NUM_THREADS": "1"})
        assert printed(run(own, Resources(cpus=8, mpi_procs=2), mpirun=template)) == "2 1\n"


class TestContainers:
    def test_the_engine_runs_what_follows_it(self, tmp_path: Path) -> None:
        task = CommandTask("1", (*SHOW, "a b"), container='env -C / W="$PWD"')
        assert printed(run(task, folder=tmp_path)) == "['a b']\n"
        task = CommandTask("1", ("/bin/sh", "-c", "echo $W; pwd"), container='env -C / W="$PWD"')
        assert printed(run(task, folder=tmp_path)) == f"{tmp_path}\n/\n"

    def test_mpi_comes_before_the_engine(self) -> None:
        task = CommandTask("1", ("/bin/sh", "-c", "echo $A $B"), container="env A=inner B=$A", mpi=True)
        assert printed(run(task, mpirun="env A=outer")) == "inner\n"

    def test_the_command_can_be_one_argument(self) -> None:
        task = CommandTask("1", (*SHOW, "a b", "$X"), container="/bin/sh -c", line=True)
        assert printed(run(task, X="1")) == "['a b', '$X']\n"
        assert printed(run(replace(task, expand=True), X="1")) == "['a b', '1']\n"
