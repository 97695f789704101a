"""Monitors and stashes of jobs, from the class or template to the record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

import grange as gr
from grange.core import computer as computers
from grange.core.graph import load
from grange.core.profile import Profile
from grange.farm.computer import Computer


def outputs(profile: Profile, process_id: object) -> dict[str, Any]:
    with profile.transaction() as cursor:
        cursor.execute(
            "SELECT label, target_id FROM link WHERE source_id = %s AND type = 'create'",
            (int(process_id),),  # type: ignore[call-overload]
        )
        labels = dict(cursor.fetchall())
        nodes = {node.id: node for node in load(cursor, list(labels.values()), reader=profile.read_files)}
    return {label: nodes[node_id] for label, node_id in labels.items()}


def attributes(profile: Profile, process_id: object) -> dict[str, Any]:
    return profile.load(int(process_id))[0].attributes  # type: ignore[call-overload]


def wants_three(text: str) -> str | None:
    return "three steps are enough" if text.count("step") >= 3 else None


class Relax(gr.CalcJob):
    """Goes on for ever, unless somebody stops it."""

    class Inputs:
        said: str
        to: str

    class Outputs:
        last: str
        more: int

    ODD = gr.ExitCode(310, "odd: {what}")

    monitors = (gr.Monitor("run.log", wants_three, every_s=0.1),)
    parse_failed = True

    def prepare(self, inputs: Any) -> gr.Command:
        return gr.Command(
            ["sh", "-c", f"echo {inputs.said}; echo wave > wfc; while true; do echo step; sleep 0.02; done"],
            stdout="run.log",
            monitors=[gr.Monitor("run.log", "^diverged", every_s=0.1, message="it diverges")],
            stash=gr.Stash(["wfc"], inputs.to),
        )

    def parse(self, files: Any) -> Any:
        assert files.ended_by is not None
        said = files.text("run.log").split()[0]
        if said == "raise":
            raise LookupError("no energy")
        if said == "odd":
            return self.ODD.format(what=files.ended_by.status)
        if said == "wrong":
            return {"nothing": 1}
        return {"last": said} if said == "fine" else None


def test_monitors_of_class_and_command_stop_a_job(profile: Profile, tmp_path: Path) -> None:
    campaign = gr.Campaign("relax", profile)
    said = ["fine", "raise", "odd", "wrong", "nothing"]
    campaign.map(Relax, said=said, to=str(tmp_path / "stash"))
    campaign.run(progress=False)
    frame = campaign.results().set_index("said")
    assert set(frame["state"]) == {"finished"}
    # a monitor knows best why it stopped a program
    assert set(frame["exit_status"]) == {150}
    why = "stopped by a monitor: three steps are enough"
    messages = dict(frame["exit_message"])
    assert messages["fine"] == messages["odd"] == messages["nothing"] == why
    assert messages["raise"] == f"{why}; parse() raised LookupError: no energy"
    assert messages["wrong"].startswith(f"{why}; Relax: parse(): nothing: expected one of its ports")
    # what parse() made of it is there, though not all that was promised
    fine = outputs(profile, frame.loc["fine", "process"])
    assert sorted(fine) == ["last", "remote_stash", "retrieved"]
    assert fine["last"].value == "fine"
    assert fine["retrieved"].read_file("run.log").startswith(b"fine\nstep\nstep\nstep\n")
    stash = fine["remote_stash"]
    assert isinstance(stash, gr.RemoteStashFolder)
    assert stash.node_type == "data.core.remote.stash.folder.RemoteStashFolderData."
    assert (Path(stash.value) / "wfc").read_bytes() == b"wave\n"
    assert (stash.stash_mode, stash.source_list) == ("copy", ["wfc"])
    recorded = attributes(profile, frame.loc["fine", "process"])
    assert recorded["stash"]["target_base"] == str(tmp_path / "stash")
    assert recorded["monitors"] == [
        {"file": "run.log", "every_s": 0.1, "message": "it diverges", "pattern": "^diverged"},
        {"file": "run.log", "every_s": 0.1, "function": f"{__name__}.wants_three"},
    ]


def test_limits_are_told_to_parsers_that_want_to_know(profile: Profile) -> None:
    class Late(gr.CalcJob):
        class Inputs:
            case: str

        class Outputs:
            steps: int
            energy: float

        parse_failed = True
        UNCONVERGED = gr.ExitCode(320, "not converged")

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["sh", "-c", "echo 1; kill -SEGV $$" if inputs.case == "dies" else "sleep 60"])

        def parse(self, files: Any) -> Any:
            assert files.ended_by.status in (120, 170)
            return self.UNCONVERGED if self.inputs.case == "code" else {"steps": 7}

    campaign = gr.Campaign("late", profile)
    campaign.map(Late, case=["late", "code"], resources=gr.Resources(walltime_s=1))
    campaign.map(Late, case="dies")
    campaign.run(progress=False)
    frame = campaign.results().set_index("case")
    assert dict(frame["exit_status"]) == {"late": 120, "code": 320, "dies": 170}
    assert frame.loc["late", "steps"] == frame.loc["dies", "steps"] == 7
    assert pandas.isna(frame.loc["code", "steps"])


def test_a_shell_job_with_both_goes_on_from_the_record(profile: Profile, tmp_path: Path) -> None:
    enough = 2

    def looks(text: str) -> str | None:
        return f"{enough} lines" if text.count("\n") >= enough else None

    job = gr.ShellJob(
        ["sh", "-c", "echo {x} > data; while true; do echo line; sleep 0.05; done"],
        monitors=[gr.Monitor("stdout.txt", looks, every_s=0.1), gr.Monitor("stdout.txt", "never")],
        stash=gr.Stash(["data"], str(tmp_path / "stash"), "tar.gz"),
    )
    again = gr.ShellJob.from_record(job.record())
    assert again.record() == job.record()
    campaign = gr.Campaign("shell", profile)
    campaign.map(job, x=[1, 2])
    campaign.submit()
    later = gr.Campaign("shell", profile)
    later.run(progress=False)
    frame = later.results()
    assert frame["exit_message"].tolist() == ["stopped by a monitor: 2 lines"] * 2
    stash = outputs(profile, frame["process"][0])["remote_stash"]
    assert isinstance(stash, gr.RemoteStashArchive)
    assert stash.value.endswith(".tar.gz")
    assert stash.stash_mode == "compress.tar.gz"
    assert Path(stash.value).exists()

    def same() -> Any:
        def looks(text: str) -> str | None:
            return f"{enough} lines" if text.count("\n") >= enough else None

        return looks

    def fingerprint(look: Any) -> bytes:
        from grange.core.shell_job import ShellRecipe

        return ShellRecipe(gr.ShellJob("ls", monitors=[gr.Monitor("stdout.txt", look)])).fingerprint

    assert fingerprint(same()) == fingerprint(same())
    assert len({fingerprint(look) for look in (same(), wants_three, "a", "b")}) == 4


def test_a_stash_on_a_computer_says_so_and_is_found_by_the_next_job(profile: Profile, tmp_path: Path) -> None:
    machine = Computer(
        label="here", transport="local", scheduler="direct", work_dir=str(tmp_path / "there"),
        python=sys.executable, slots=2,
    )  # fmt: skip
    with profile.transaction() as cursor:
        computer_id = computers.add(cursor, machine, user_id=profile.user_id).id
    job = gr.ShellJob("sh -c 'echo {x} > density'", stash=gr.Stash(["density"], "$GRANGE_WORK/kept"))
    campaign = gr.Campaign("first", profile)
    campaign.map(job, x=[5])
    campaign.run(executor="here", progress=False)
    row = campaign.results().iloc[0]
    assert row["exit_status"] == 0
    stash = outputs(profile, row["process"])["remote_stash"]
    assert stash.computer_id == computer_id
    assert Path(stash.value).parent == tmp_path / "there" / "kept"

    class Next(gr.CalcJob):
        class Inputs:
            start: gr.RemoteStash

        class Outputs:
            read: str

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["cat", f"{inputs.start}/density"])

        def parse(self, files: Any) -> Any:
            return {"read": files.text("stdout.txt")}

    after = gr.Campaign("next", profile)
    after.map(Next, start=stash)
    after.run(executor="here", progress=False)
    assert after.results()["read"].tolist() == ["5\n"]


def test_a_stash_that_cannot_be_made_is_told_and_what_was_computed_is_there(profile: Profile) -> None:
    class Job(gr.CalcJob):
        class Inputs:
            x: int

        class Outputs:
            y: int

        def prepare(self, inputs: Any) -> gr.Command:
            script = f"echo {inputs.x}; echo w > wfc; [ {inputs.x} -lt 3 ]"
            return gr.Command(["sh", "-c", script], stash=gr.Stash(["wfc"], "/dev/null/x"))

        def parse(self, files: Any) -> Any:
            return {"y": 2 * int(files.text("stdout.txt"))}

    campaign = gr.Campaign("unstashed", profile)
    campaign.map(Job, x=[1, 3])
    campaign.run(progress=False)
    frame = campaign.results()
    assert frame["exit_status"].tolist() == [175, 175]
    assert frame["exit_message"].str.contains("could not be stashed").all()
    assert frame["y"][0] == 2
    assert pandas.isna(frame["y"][1])


BAD = [
    (gr.Monitor("../x", "a"), "file: expected a path inside"),
    (gr.Monitor("x", "(a"), "look: expected a regular expression"),
    (gr.Monitor("x", 3), "look: expected a regular expression, or a function"),  # type: ignore[arg-type]
    (gr.Monitor("x", "a", every_s=0), "every_s: expected a number of seconds"),
    (gr.Monitor("x", "a", grace_s=-1), "grace_s: expected a number"),
    (gr.Monitor("x", "a", tail_bytes=1 << 40), "tail_bytes: expected an int"),
    (gr.Monitor("x", "a", stop_file="/STOP"), "stop_file: expected a path inside"),
    ("x", "expected a gr.Monitor"),
]


@pytest.mark.parametrize(("monitor", "said"), BAD)
def test_bad_monitors_are_refused(monitor: Any, said: str) -> None:
    with pytest.raises(gr.GrangeError, match=rf"ShellJob: monitors\[0\].*{said}|{said}"):
        gr.ShellJob("ls", monitors=[monitor])
    with pytest.raises(gr.GrangeError, match=r"monitors: expected a list of gr\.Monitor"):
        gr.ShellJob("ls", monitors=monitor)


def test_bad_monitors_of_a_class_are_refused_when_it_is_mapped(profile: Profile) -> None:
    class Job(gr.CalcJob):
        monitors = (gr.Monitor("log", "(a"),)

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["ls"])

    with pytest.raises(gr.GrangeError, match=r"Job: monitors\[0\]: look: expected a regular expression"):
        gr.Campaign("bad", profile).map(Job)


@pytest.mark.parametrize(
    ("stash", "said"),
    [
        (gr.Stash((), "/x"), "paths: expected a list of at least one"),
        (gr.Stash("wfc", "/x"), "paths: expected a list"),  # type: ignore[arg-type]
        (gr.Stash(("../x",), "/x"), "paths: expected patterns inside"),
        (gr.Stash(("x",), "stash"), "to: expected an absolute path there"),
        (gr.Stash(("x",), "/x", "zip"), "mode: expected one of copy, tar"),  # type: ignore[arg-type]
        ("/x", "expected a gr.Stash"),
    ],
)
def test_bad_stashes_are_refused(stash: Any, said: str) -> None:
    with pytest.raises(gr.GrangeError, match=f"ShellJob: stash.*{said}|{said}"):
        gr.ShellJob("ls", stash=stash)


def test_outputs_cannot_take_the_name_of_the_stash() -> None:
    class Job(gr.CalcJob):
        class Outputs:
            remote_stash: int

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["ls"])

    from grange.core.job_recipe import JobRecipe

    with pytest.raises(gr.GrangeError, match="says where others stayed"):
        JobRecipe(Job)


def test_a_workflow_sees_why_a_call_was_stopped_and_goes_on_from_its_stash(
    profile: Profile, tmp_path: Path
) -> None:
    class GoOn(gr.CalcJob):
        class Inputs:
            start: gr.RemoteStash

        class Outputs:
            read: str

        def prepare(self, inputs: Any) -> gr.Command:
            return gr.Command(["cat", "wfc"], prepend_text=f"cp -r {inputs.start}/. .")

        def parse(self, files: Any) -> Any:
            return {"read": files.text("stdout.txt")}

    @gr.workflow
    def restart(to: str) -> Any:
        first = gr.submit(Relax, said="nothing", to=to)
        first.wait()
        assert (first.exit_status, first.is_failed) == (150, True)
        then = gr.submit(GoOn, start=first.outputs.remote_stash)
        then.wait()
        return {"read": then.outputs["read"]}

    outputs = gr.run(restart, to=str(tmp_path / "stash"), profile=profile, progress=False)
    assert outputs["read"].value == "wave\n"
