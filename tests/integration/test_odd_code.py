"""Workflows whose code does what nobody expects: each ends by itself, and whoever runs it goes on."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grange as gr
from grange.core.client_waiter import future_of
from grange.core.hub import Hub
from grange.core.profile import Profile
from grange.core.transition import State


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Stop(BaseException):
    pass


@gr.calcfunction
def raises_mute(x: int) -> int:
    raise Mute


@gr.workflow
def mute(x: Any) -> Any:
    raise Mute


@gr.workflow
def mute_within(x: Any) -> Any:
    return raises_mute(x)


@gr.workflow
def base(x: Any) -> Any:
    raise Stop("stop")


@gr.workflow
def cancelled(x: Any) -> Any:
    raise asyncio.CancelledError


@gr.workflow
def generator(x: Any) -> Any:
    raise GeneratorExit


@gr.workflow
def interrupted(x: Any) -> Any:
    raise KeyboardInterrupt


@gr.workflow
def number_as_message(x: Any) -> Any:
    return gr.ExitCode(401, 5)  # type: ignore[arg-type]


@gr.workflow
def no_message(x: Any) -> Any:
    return gr.ExitCode(402, None)  # type: ignore[arg-type]


@gr.workflow
def half_a_letter(x: Any) -> Any:
    return gr.ExitCode(403, "a\0\ud800")


@gr.workflow
def long_message(x: Any) -> Any:
    return gr.ExitCode(404, "m" * 5_000_000)


@gr.workflow
def number_as_label(x: Any) -> Any:
    return gr.submit(mute, x=x, label=3).result()  # type: ignore[arg-type]


class Reports(gr.WorkChain):
    """Says what is no text."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.input("x", valid_type=gr.Int)
        spec.outline(cls.say)

    def say(self) -> None:
        self.report(self.ctx)  # type: ignore[arg-type]
        self.logger.warning(None)  # type: ignore[arg-type]
        self.report(3)  # type: ignore[arg-type]


ENDS = {
    mute: (State.EXCEPTED, None, "Mute: (no text: its __str__ raised RuntimeError)"),
    mute_within: (State.FINISHED, 190, "Mute: (no text: its __str__ raised RuntimeError)"),
    base: (State.EXCEPTED, None, "Stop: stop (line "),
    cancelled: (State.EXCEPTED, None, "CancelledError: "),
    generator: (State.EXCEPTED, None, "GeneratorExit: "),
    interrupted: (State.EXCEPTED, None, "KeyboardInterrupt: "),
    number_as_message: (State.FINISHED, 401, "5"),
    no_message: (State.FINISHED, 402, ""),
    half_a_letter: (State.FINISHED, 403, "a\N{SYMBOL FOR NULL}?"),
    long_message: (State.FINISHED, 404, "mmm … (4,990,050 more characters)"),
    number_as_label: (State.EXCEPTED, None, "mute: label: expected a text, got 3"),
    Reports: (State.FINISHED, 0, ""),
}


def test_each_ends_alone(profile: Profile) -> None:
    futures = [gr.submit(code, x=1, profile=profile) for code in ENDS]
    hub = Hub(profile)
    before = signal.signal(signal.SIGINT, lambda *_: None)  # as a worker has it
    try:
        for _ in range(10):
            hub.step(0.0)
    finally:
        signal.signal(signal.SIGINT, before)
    hub.let_go()
    for future, (state, exit_status, said) in zip(futures, ENDS.values(), strict=True):
        assert future.wait(0.0), future
        assert (future.state, future.exit_status) == (state, exit_status), future
        assert said in (future.exit_message or ""), future


def test_a_script_sees_what_is_recorded(profile: Profile) -> None:
    _, run = gr.run_get_node(half_a_letter, x=1, profile=profile, progress=False)
    assert run.exit_message == future_of(profile, run.id).exit_message == "a\N{SYMBOL FOR NULL}?"


def test_the_line_is_that_of_the_step(profile: Profile) -> None:
    _, run = gr.run_get_node(Looks, profile=profile, progress=False)
    assert run.is_excepted
    assert f"of {__file__})" in str(run.exit_message)


class Looks(gr.WorkChain):
    """Asks for what is not there."""

    @classmethod
    def define(cls, spec: Any) -> None:
        super().define(spec)
        spec.outline(cls.look)

    def look(self) -> None:
        self.report(self.ctx.nothing)


class Secret:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Odd(gr.CalcJob):
    """A program whose output is read in odd ways."""

    class Inputs:
        how: str

    class Outputs:
        y: int

    def prepare(self, inputs: Any) -> gr.Command:
        if inputs.how == "prepare":
            raise Mute
        return gr.Command(["true"])

    def parse(self, files: Any) -> Any:
        match self.inputs.how:
            case "raise":
                raise Mute
            case "cancel":
                raise asyncio.CancelledError
            case "message":
                return gr.ExitCode(310, 5)  # type: ignore[arg-type]
            case _:
                return {"y": Secret()}


def raises_in_a_runner(how: str) -> int:
    raise Mute if how == "raise" else asyncio.CancelledError


def test_programs_and_functions_end_alone(profile: Profile) -> None:
    campaign = gr.Campaign("odd", profile)
    campaign.map(Odd, how=["prepare", "raise", "cancel", "message", "secret"])
    campaign.map(raises_in_a_runner, how=["raise", "cancel"])
    done = campaign.run(progress=False)
    assert (done.done, done.failed) == (7, 7)
    frame = campaign.results()
    assert frame["exit_status"].fillna(0).astype(int).tolist() == [0, 173, 173, 310, 10, 0, 0]
    assert frame["state"].tolist() == ["excepted", *4 * ["finished"], *2 * ["excepted"]]
